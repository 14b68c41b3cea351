"""SWAG: the moments of SGD's iterates around the mode; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.swag.fitting import SwagPosterior as SwagPosterior
    from bayesuq.inference.swag.fitting import fit as fit

__getattr__, __dir__, __all__ = lazy(__name__, returned=["SwagPosterior"])
