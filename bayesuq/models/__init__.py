"""Probability models: networks, priors, likelihoods, and their product, the Bayesian network."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.models import gp as gp
    from bayesuq.models import likelihoods as likelihoods
    from bayesuq.models import networks as networks
    from bayesuq.models import priors as priors
    from bayesuq.models.bnn import BayesianNetwork as BayesianNetwork

__getattr__, __dir__, __all__ = lazy(__name__)
