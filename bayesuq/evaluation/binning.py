"""Stated probabilities against what came true, in bins of equal width: what the calibration errors are made of.

References:
    Kumar, Liang and Ma, "Verified uncertainty calibration", NeurIPS 2019.
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self, TypeVar

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, to_tensor
from bayesuq.waiting import are_noted

WILSON_QUANTILE = 1.959963984540054  # of the standard normal at 0.975
T = TypeVar("T")


@dataclass(frozen=True, eq=False, kw_only=True)
class Reliability:
    """How often predictions were right, by confidence. The state is exact, of fixed size, and adds up over batches.

    Attributes:
        count: Points in each bin, int64, (..., B): (B,) for top labels, (C, B) class by class. Of weighted points the
            sum of the weights, float64.
        num_correct: Of these, those predicted right, likewise.
        confidence_sum: Sum of the points' confidences, weighted, float64, (..., B).
        square_count: Sum of squared weights, float64, (..., B); without weights the number of points.
    """

    count: Tensor
    num_correct: Tensor
    confidence_sum: Tensor
    square_count: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.square_count is None:
            object.__setattr__(self, "square_count", self.count.double())

    @classmethod
    def from_confidences(cls, confidence: ArrayLike, correct: ArrayLike, *, num_bins: int = 15) -> Self:
        """Count any stated probabilities against what came true.

        Args:
            confidence: Stated probabilities, in [0, 1], any shape.
            correct: Whether each came true, boolean or 0 and 1, of the same shape.
            num_bins: B, bins of equal width.

        Raises:
            TypeError: Not numbers; `num_bins` not a whole number.
            ValueError: Shapes that differ, confidences outside [0, 1] or NaN, truths that are not 0 or 1, fewer than
                one bin.
        """
        check_count(num_bins, "num_bins")
        stated, truth = to_tensor(confidence, "confidence"), to_tensor(correct, "correct")
        if stated.shape != truth.shape:
            raise ValueError(
                f"`correct` must have the shape of `confidence`, {tuple(stated.shape)}; got {tuple(truth.shape)}."
            )
        if not ((stated >= 0) & (stated <= 1)).all():
            raise ValueError("`confidence` must lie in [0, 1] with no NaN.")
        if not ((truth == 0) | (truth == 1)).all():
            raise ValueError("`correct` must be boolean, or 0 and 1.")
        return cls.tally(stated.flatten().double(), truth.flatten().to(stated.device, torch.bool), num_bins)

    @classmethod
    def tally(cls, stated: Tensor, right: Tensor, num_bins: int, *, weight: Tensor | None = None) -> Self:
        """Count probabilities that are known to be such, float64 (N,), against booleans (N,), with weights (N,)."""
        if weight is not None and not are_noted(stated) and bool(((weight == 0) | (weight == 1)).all()):
            stated, right, weight = stated[weight > 0], right[weight > 0], None
        bins = bin_index(stated, num_bins)
        if weight is not None:
            sums = [sums_by_bin(bins, num_bins, part) for part in _weighted(weight, right, stated)]
            return cls(count=sums[0], num_correct=sums[1], confidence_sum=sums[2], square_count=sums[3])
        wrong, correct = counts_by_bin(bins + num_bins * right, 2 * num_bins).split(num_bins)
        return cls(
            count=wrong + correct,
            num_correct=correct,
            confidence_sum=sums_by_bin(bins, num_bins, stated),
        )

    @classmethod
    def empty(cls, num_bins: int = 15, *, device: torch.device | str = "cpu") -> Self:
        """Of no point: what merging starts from.

        Raises:
            TypeError, ValueError: `num_bins` is not a whole number of at least 1.
        """
        check_count(num_bins, "num_bins")
        count = torch.zeros(num_bins, dtype=torch.int64, device=device)
        return cls(count=count, num_correct=count, confidence_sum=count.double())

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """Those of several classes as one, (C, B)."""
        return cls(**{field.name: torch.stack([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    @property
    def effective_count(self) -> Tensor:
        """Independent points that each bin is worth, (..., B), float64: Kish's (sum w)^2 / sum w^2, or their number."""
        return torch.where(self.count > 0, self.count.double().square() / self.square_count, 0.0)

    @property
    def edges(self) -> Tensor:
        """Bin edges 0, 1/B, ..., 1, (B + 1,)."""
        return bin_edges(self.count.shape[-1], self.count.device)

    @property
    def confidence(self) -> Tensor:
        """Mean confidence in each bin, (..., B); NaN where it is empty."""
        return self.confidence_sum / self.count

    @property
    def accuracy(self) -> Tensor:
        """Share of right predictions in each bin, (..., B); NaN where it is empty."""
        return self.num_correct.double() / self.count

    @property
    def accuracy_interval(self) -> Tensor:
        """Wilson's 95 % interval of each bin's accuracy for independent points, lower and upper, (2, ..., B)."""
        squared = WILSON_QUANTILE**2 / self.effective_count
        centre = self.accuracy + squared / 2
        half = (squared * (self.accuracy * (1 - self.accuracy) + squared / 4)).sqrt()
        lower, upper = (centre - half) / (1 + squared), (centre + half) / (1 + squared)
        return torch.stack([lower.minimum(self.accuracy), upper.maximum(self.accuracy)])  # rounding may exclude 0 or 1

    @property
    def expected_calibration_error(self) -> Tensor:
        """ECE, the gap |accuracy - confidence| averaged over points, a fraction, (...); NaN without any point."""
        return (self.num_correct - self.confidence_sum).abs().sum(dim=-1) / self.count.sum(dim=-1)

    @property
    def maximum_calibration_error(self) -> Tensor:
        """MCE, the largest gap of a bin that holds a point, a fraction, (...). A bin of one point may set it."""
        return (self.accuracy - self.confidence).abs().nan_to_num(nan=0.0).amax(dim=-1)

    @property
    def debiased_squared_error(self) -> Tensor:
        """sum_b n_b / N (gap_b^2 - a_b (1 - a_b) / (n_b - 1)) with accuracy a_b, (...): Kumar et al. (2019).

        Without bias given the confidences, and so below 0 now and then. Bins of one point, which say nothing, count 0.
        """
        number = self.effective_count
        variance = self.accuracy * (1 - self.accuracy) / (number - 1)
        excess = (self.accuracy - self.confidence).square() - variance
        return torch.where(number > 1, self.count * excess, 0.0).sum(dim=-1) / self.count.sum(dim=-1)

    def merge(self, other: Self) -> Self:
        """The reliability over the points of both.

        Raises:
            ValueError: Another number of bins.
        """
        if self.count.shape != other.count.shape:
            own, others = (" x ".join(map(str, each.count.shape)) for each in (self, other))
            raise ValueError(f"Only equal bins merge; got {own} and {others} bins.")
        return added(self, other)


def added(one: T, other: T) -> T:
    """Two frozen dataclasses of sums as one, field by field."""
    names = [field.name for field in fields(one)]  # type: ignore[arg-type]
    return replace(one, **{name: getattr(one, name) + getattr(other, name) for name in names})  # type: ignore[type-var]


def _weighted(weight: Tensor, right: Tensor, stated: Tensor) -> tuple[Tensor, ...]:
    return weight, weight * right, weight * stated, weight.square()


def counts_by_bin(bins: Tensor, num_bins: int) -> Tensor:
    """How many of the bins' numbers, (n,), are each, int64, (num_bins,)."""
    if bins.device.type == "cpu":
        return torch.bincount(bins, minlength=num_bins)
    return sums_by_bin(bins, num_bins, torch.ones_like(bins))  # for `bincount` reads the largest


def sums_by_bin(bins: Tensor, num_bins: int, values: Tensor) -> Tensor:
    """Sums of values, (n,), by bin, (num_bins,)."""
    if bins.device.type == "cpu":
        return torch.bincount(bins, weights=values, minlength=num_bins)
    return values.new_zeros(num_bins).index_add_(0, bins, values)


def bin_edges(num_bins: int, device: torch.device) -> Tensor:
    """Edges of equal bins of [0, 1], float64, (num_bins + 1,); k / B is the number nearest to each edge."""
    return torch.arange(num_bins + 1, dtype=torch.float64, device=device) / num_bins


def bin_index(confidence: Tensor, num_bins: int) -> Tensor:
    """Which of the equal bins [0, 1/B), ..., [1 - 1/B, 1] each confidence falls in, int64; 1 is in the last."""
    edges = bin_edges(num_bins, confidence.device)
    return torch.bucketize(confidence.contiguous(), edges[1:-1], right=True)
