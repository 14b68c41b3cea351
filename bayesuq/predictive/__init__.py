"""The predictive distribution p(y* | x*, D), the one type that every measure, plot and report consumes."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.predictive.base import PredictiveDistribution as PredictiveDistribution
    from bayesuq.predictive.base import RealPredictive as RealPredictive
    from bayesuq.predictive.categorical import CategoricalPredictive as CategoricalPredictive
    from bayesuq.predictive.empirical import EmpiricalPredictive as EmpiricalPredictive
    from bayesuq.predictive.gaussian import GaussianPredictive as GaussianPredictive
    from bayesuq.predictive.mixture import MixturePredictive as MixturePredictive

__getattr__, __dir__, __all__ = lazy(__name__)
