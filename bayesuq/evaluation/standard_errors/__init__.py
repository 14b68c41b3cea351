"""Standard errors of measures: in closed form, of weighted rows, and by the bootstrap."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.evaluation.standard_errors import bootstrap as bootstrap

__getattr__, __dir__, __all__ = lazy(__name__)
