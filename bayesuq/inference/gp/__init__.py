"""Gaussian processes in the network's place: exact or sparse; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.gp.exact import ExactGpPosterior as ExactGpPosterior
    from bayesuq.inference.gp.fitting import fit as fit
    from bayesuq.inference.gp.sparse_posterior import SparseGpPosterior as SparseGpPosterior

__getattr__, __dir__, __all__ = lazy(__name__, returned=["ExactGpPosterior", "SparseGpPosterior"])
