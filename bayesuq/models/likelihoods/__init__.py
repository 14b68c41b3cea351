"""Likelihoods p(y | f): what the network's outputs f say of the targets.

A likelihood knows neither the size of the data nor any error measure. Parameters that are not fixed are its `unknowns`,
learned as point values or inferred under a prior; `given` puts their current values in. Weights (of a row, a target or
a class) multiply log p(y | f) and act in training only: `distribution` and `predictive` are unweighted.

Names are handed on lazily (PEP 562).
"""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.models.likelihoods.base import Likelihood as Likelihood
    from bayesuq.models.likelihoods.counts import Poisson as Poisson
    from bayesuq.models.likelihoods.labels import Bernoulli as Bernoulli
    from bayesuq.models.likelihoods.labels import Categorical as Categorical
    from bayesuq.models.likelihoods.labels import SoftCategorical as SoftCategorical
    from bayesuq.models.likelihoods.labels import balanced_class_weights as balanced_class_weights
    from bayesuq.models.likelihoods.noisy_logits import HeteroscedasticCategorical as HeteroscedasticCategorical
    from bayesuq.models.likelihoods.real import HeteroscedasticNormal as HeteroscedasticNormal
    from bayesuq.models.likelihoods.real import Laplace as Laplace
    from bayesuq.models.likelihoods.real import Normal as Normal
    from bayesuq.models.likelihoods.real import StudentT as StudentT

__getattr__, __dir__, __all__ = lazy(__name__)
