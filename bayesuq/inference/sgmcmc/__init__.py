"""Stochastic-gradient MCMC: chains that read a minibatch a step; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.sgmcmc.fitting import SgmcmcPosterior as SgmcmcPosterior
    from bayesuq.inference.sgmcmc.fitting import fit as fit

__getattr__, __dir__, __all__ = lazy(__name__, returned=["SgmcmcPosterior"])
