"""Draws of whole functions: what a posterior says of several rows at once, and how they go together.

A predictive is of each row by itself. Acquisition functions over batches of points, curves in a plot and the choice of
rows to label ask for more: whether two rows are high in the same draws.
"""

from dataclasses import dataclass

from torch import Tensor

from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive

__all__ = ["Functions"]
__dir__ = __all__.copy


@dataclass(frozen=True, eq=False)
class Functions:
    """Functions drawn from a posterior, at N rows.

    Attributes:
        draws: E[y | x, draw], (S, N, D), in units of y; of labels the class probabilities, (S, N, C). A draw is one
            function at all rows.
        mean: Over the posterior, (N, D): in closed form where `covariance` is, else of the draws.
        covariance: Between all rows and columns, (N, D, N, D), in units of y squared, float64, where it has a closed
            form: a Gaussian process, or a linearised network. None elsewhere.
    """

    draws: Tensor
    mean: Tensor
    covariance: Tensor | None = None

    @classmethod
    def of_draws(cls, draws: Tensor) -> "Functions":
        """Whose mean is that of the draws."""
        return cls(draws, draws.mean(dim=0))

    @classmethod
    def of(cls, predictive: PredictiveDistribution) -> "Functions":
        """Of a predictive that holds its draws, where each is a function of x, the same in every row.

        Raises:
            TypeError: A predictive without such draws.
        """
        if isinstance(predictive, CategoricalPredictive):
            return cls.of_draws(predictive.samples)
        if isinstance(predictive, RealPredictive):
            return cls.of_draws(predictive.component_means)
        raise TypeError(f"A {type(predictive).__name__} has no draws of functions.")
