"""Bayesian deep learning as probabilistic programs: data -> model -> posterior -> predictive -> measures.

Names are handed on lazily (PEP 562), so that `import bayesuq` loads neither torch nor Pyro.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bayesuq import conformal, datasets, evaluation, inference, models
    from bayesuq.data import Dataset, Split, Standardizer
    from bayesuq.inference.saved import load
    from bayesuq.mixture import MixturePredictive
    from bayesuq.posterior import Posterior
    from bayesuq.predictive import CategoricalPredictive, GaussianPredictive, PredictiveDistribution
    from bayesuq.recalibrated import RecalibratedPredictive

__version__ = version("bayesuq")

_HOME = {
    "CategoricalPredictive": "bayesuq.predictive",
    "Dataset": "bayesuq.data",
    "GaussianPredictive": "bayesuq.predictive",
    "MixturePredictive": "bayesuq.mixture",
    "Posterior": "bayesuq.posterior",
    "PredictiveDistribution": "bayesuq.predictive",
    "RecalibratedPredictive": "bayesuq.recalibrated",
    "Split": "bayesuq.data",
    "Standardizer": "bayesuq.data",
    "load": "bayesuq.inference.saved",
}
_MODULES = ("conformal", "datasets", "evaluation", "inference", "models")

__all__ = [
    "CategoricalPredictive",
    "Dataset",
    "GaussianPredictive",
    "MixturePredictive",
    "Posterior",
    "PredictiveDistribution",
    "RecalibratedPredictive",
    "Split",
    "Standardizer",
    "conformal",
    "datasets",
    "evaluation",
    "inference",
    "load",
    "models",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _MODULES:
        return import_module(f"bayesuq.{name}")
    raise AttributeError(f"module 'bayesuq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
