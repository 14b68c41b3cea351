"""The predictive distribution p(y* | x*, D), the one type that every measure, plot and report consumes.

A posterior approximation gives S draws of the network's function; their equal mixture is the predictive. Three final
types: `CategoricalPredictive` for labels (its state is of fixed size, whatever S), `GaussianPredictive` for real
targets, and `bayesuq.predictive.mixture.MixturePredictive` for those of other families.

Each splits its total uncertainty into an aleatoric part (the mean uncertainty of the draws, what stays when the weights
are known) and an epistemic part (the disagreement of the draws): in nats by entropies for labels, in units of y squared
by the law of total variance for real targets. total = aleatoric + epistemic always.

Letters: S draws, N points, C classes, D target columns, `...` further dimensions such as an image's height and width.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike

BLOCK_NUMBERS = 2**18  # that fit a processor's cache in float64


class PredictiveDistribution(ABC):
    """The distribution of y* at N new inputs, after the weights have been integrated out."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """S, the number of draws in the mixture."""

    @property
    @abstractmethod
    def mean(self) -> Tensor:
        """E[y*]: class probabilities (N, C, ...), or target means (N, D)."""

    @property
    @abstractmethod
    def total(self) -> Tensor:
        """Total uncertainty: entropy in nats (N, ...), or variance (N, D)."""

    @property
    @abstractmethod
    def aleatoric(self) -> Tensor:
        """Mean uncertainty of the single draws, of the same shape and unit as `total`."""

    @property
    @abstractmethod
    def epistemic(self) -> Tensor:
        """Disagreement between the draws, of the same shape and unit as `total`."""

    @abstractmethod
    def log_prob(self, y: ArrayLike) -> Tensor:
        """log p(y | x*, D) of the mixture, in nats: (N, ...) for labels, (N,) jointly over columns of real targets."""

    @abstractmethod
    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Draws of y*, (num_samples, N, ...) or (num_samples, N, D)."""

    @abstractmethod
    def component_log_prob(self, y: ArrayLike) -> Tensor:
        """log p(y | x*, draw) of each draw, in nats, (S, N, ...) for labels and (S, N) for real targets.

        Its logsumexp over draws is `log_prob(y)` + log S.
        """

    @abstractmethod
    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """One y* from each draw, in the draws' order, (S, N, ...) or (S, N, D)."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""

    @classmethod
    @abstractmethod
    def mixture(cls, parts: Iterable[Self]) -> Self:
        """The equal mixture of the draws of all parts, at the same points."""

    @classmethod
    @abstractmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The predictive at the points of all parts, in order; each part must have the same number of draws."""

    @abstractmethod
    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y* for real targets; labels have no unit and stay as they are."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_samples} draws, mean: {tuple(self.mean.shape)})"

    def merge(self, other: Self) -> Self:
        """The equal mixture of the draws of both, at the same points.

        Raises:
            ValueError: Predictives at different points.
        """
        return type(self).mixture([self, other])


def check_draws(values: Tensor, name: str, shape: str, mend: str) -> None:
    """Raise a ValueError unless values have a dimension of draws, one of points and one more, and none is empty."""
    if values.ndim < 3 or values.numel() == 0:
        raise ValueError(
            f"`{name}` must have shape {shape} with no empty dimension; got {tuple(values.shape)}. "
            f"Use `{mend}` for one draw."
        )


def over_columns(log_probs: Tensor, observed: Tensor | None) -> Tensor:
    """Sum over the last dimension of what is observed, (N, D), of independent columns' log densities, (S, N, D)."""
    return (log_probs if observed is None else torch.where(observed, log_probs, 0.0)).sum(dim=-1)


def check_mergeable(one: Tensor, other: Tensor) -> None:
    """Raise a ValueError unless two predictives, by their state, stand at the same points."""
    if one.shape != other.shape:
        raise ValueError(
            f"Only predictives at the same points merge; got shapes {tuple(one.shape)} and {tuple(other.shape)}. "
            "Use `concatenate` for further points."
        )


def check_concatenable(counts: Sequence[int], shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise a ValueError unless predictives differ only in their points, by their draws and the shape of a point."""
    if len(set(counts)) != 1:
        raise ValueError(f"Parts must have the same number of draws, at least one part; got {sorted(set(counts))}.")
    if len(set(shapes)) != 1:
        raise ValueError(f"Parts may differ only in their points; got points of shapes {sorted(set(shapes))}.")
