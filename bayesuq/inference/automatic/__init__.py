"""One call for a table: candidates are fitted within a time, judged by held-out rows, and mixed; see `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.automatic.fitting import classify as classify
    from bayesuq.inference.automatic.fitting import regress as regress

__getattr__, __dir__, __all__ = lazy(__name__)
