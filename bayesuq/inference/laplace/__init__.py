"""Laplace's approximation: a Gaussian around the mode, as wide as the curvature says; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.laplace.fitting import fit as fit
    from bayesuq.inference.laplace.posterior import LaplacePosterior as LaplacePosterior

__getattr__, __dir__, __all__ = lazy(__name__, returned=["LaplacePosterior"])
