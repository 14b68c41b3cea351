"""Hamiltonian Monte Carlo: draws from the posterior itself; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.hmc.fitting import extend as extend
    from bayesuq.inference.hmc.fitting import fit as fit
    from bayesuq.inference.hmc.posterior import HmcPosterior as HmcPosterior

__getattr__, __dir__, __all__ = lazy(__name__, returned=["HmcPosterior"])
