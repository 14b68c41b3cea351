"""Probability models: networks, priors, likelihoods, and their product, the Bayesian network."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesuq.models import gp, likelihoods, networks, priors
    from bayesuq.models.bnn import BayesianNetwork

__all__ = ["BayesianNetwork", "gp", "likelihoods", "networks", "priors"]


def __getattr__(name: str) -> Any:
    if name == "BayesianNetwork":
        return import_module("bayesuq.models.bnn").BayesianNetwork
    if name in __all__:
        return import_module(f"bayesuq.models.{name}")
    raise AttributeError(f"module 'bayesuq.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
