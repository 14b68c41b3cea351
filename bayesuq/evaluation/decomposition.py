"""What the Brier score is made of: how far probabilities are from what came true, and how well they tell cases apart.

Probabilities of each class k fall in B bins of equal width. With n points in a bin, p its mean probability, a its share
that came true, and o the class's share among all N points,

    Brier = reliability          sum n/N (p - a)^2
          - resolution           sum n/N (a - o)^2
          + uncertainty          sum_k o (1 - o)
          + within-bin variance - within-bin covariance,

summed over classes and bins. The last two terms make it exact where probabilities differ within a bin.

References:
    Murphy, "A new vector partition of the probability score", Journal of Applied Meteorology 1973.
    Stephenson, Coelho and Jolliffe, "Two extra components in the Brier score decomposition", Weather and Forecasting
    2008.
    Ferro and Fricker, "A bias-corrected decomposition of the Brier score", QJRMS 2012; Broecker, "Estimating
    reliability and resolution of probability forecasts through decomposition of the empirical score", 2012.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.evaluation.binning import added, bin_index
from bayesuq.evaluation.kinds import check_categorical
from bayesuq.evaluation.observed import observe
from bayesuq.evaluation.scores import FOR_LABELS
from bayesuq.predictive.categorical import CategoricalPredictive

__all__ = ["brier_decomposition"]
__dir__ = __all__.copy


@dataclass(frozen=True, eq=False, kw_only=True)
class BrierDecomposition:
    """Parts of the Brier score, each 0-d float64: `score` is their sum, which is exact.

    Attributes:
        reliability: Squared distance of probabilities from what came true; 0 if calibrated.
        resolution: Variance between bins of what came true; larger is better, at most `uncertainty`.
        uncertainty: Variance of the labels themselves, which no forecast changes.
        within_bin_variance: Of probabilities that share a bin.
        within_bin_covariance: Twice the covariance of probability and truth within bins.
    """

    reliability: Tensor
    resolution: Tensor
    uncertainty: Tensor
    within_bin_variance: Tensor
    within_bin_covariance: Tensor

    @property
    def score(self) -> Tensor:
        """The Brier score, in [0, 2] (but for a debiased one's rounding)."""
        within = self.within_bin_variance - self.within_bin_covariance
        return self.reliability - self.resolution + self.uncertainty + within

    @property
    def generalised_resolution(self) -> Tensor:
        """Resolution with the within-bin terms, so that reliability - it + uncertainty is the Brier score."""
        return self.resolution - self.within_bin_variance + self.within_bin_covariance


@dataclass(frozen=True, eq=False, kw_only=True)
class BrierBins:
    """What a decomposition is computed from: exact, of fixed size, and it adds up over batches. All are (C, B).

    Attributes:
        count: Points whose probability of the class falls in the bin, int64; of weighted points their weight, float64.
        num_true: Of these, those of the class, likewise.
        prob_sum: Sum of the probabilities, float64.
        square_sum: Sum of their squares, float64.
        true_sum: Sum of the probabilities of those of the class, float64.
    """

    count: Tensor
    num_true: Tensor
    prob_sum: Tensor
    square_sum: Tensor
    true_sum: Tensor

    def merge(self, other: Self) -> Self:
        """The bins over the points of both.

        Raises:
            ValueError: Another number of classes or bins.
        """
        if self.count.shape != other.count.shape:
            raise ValueError(
                f"Only equal bins merge; got {tuple(self.count.shape)} and {tuple(other.count.shape)} (classes, bins)."
            )
        return added(self, other)

    @property
    def decomposition(self) -> BrierDecomposition:
        """The parts, as the module's formula has them."""
        total = self.count[0].sum()
        n = torch.where(self.count > 0, self.count, 1).double()  # an empty bin adds 0
        p, a = self.prob_sum / n, self.num_true / n
        o = self.num_true.sum(dim=1, keepdim=True).double() / total
        return BrierDecomposition(
            reliability=(self.count * (p - a).square()).sum() / total,
            resolution=(self.count * (a - o).square()).sum() / total,
            uncertainty=(o * (1 - o)).sum(),
            within_bin_variance=(self.square_sum - self.count * p.square()).sum() / total,
            within_bin_covariance=2 * (self.true_sum - self.count * a * p).sum() / total,
        )

    @property
    def debiased(self) -> BrierDecomposition:
        """The parts without what N points add to each on average; the score is the same: Ferro and Fricker (2012).

        Reliability and resolution may then be below 0. Bins of one point, whose part is unknown, stay as they are.

        Raises:
            ValueError: Weighted points, whose number of independent ones is not known.
        """
        if self.count.is_floating_point():
            raise ValueError("What chance adds is known of points that count alike; these have weights.")
        parts = self.decomposition
        total = self.count[0].sum().double()
        a = self.num_true / self.count.clamp(min=1).double()
        o = self.num_true.sum(dim=1).double() / total
        noise = (self.count * a * (1 - a) / (self.count - 1).clamp(min=1)).sum() / total
        spread = (o * (1 - o)).sum() / (total - 1).clamp(min=1)
        return BrierDecomposition(
            reliability=parts.reliability - noise,
            resolution=parts.resolution - noise + spread,
            uncertainty=parts.uncertainty + spread,
            within_bin_variance=parts.within_bin_variance,
            within_bin_covariance=parts.within_bin_covariance,
        )


def brier_decomposition(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, weight: ArrayLike | None = None
) -> BrierDecomposition:
    """Reliability, resolution and uncertainty of the Brier score, exactly, with the within-bin terms.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        num_bins: B, bins of equal width for the probability of each class, the last closed at 1.
        weight: How much each row, (N,), or each label, of y's shape, counts; anything may stand in y at weight 0. None
            counts all alike.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes; fewer than one bin.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
        >>> parts = brier_decomposition(predictive, [0, 1])  # sure and right: all of the labels' variance is resolved
        >>> parts.reliability, parts.resolution, parts.uncertainty
        (tensor(0., dtype=torch.float64), tensor(0.5000, dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    return brier_bins(predictive, y, num_bins, weight=weight).decomposition


def brier_bins(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, weight: ArrayLike | None = None
) -> BrierBins:
    """The bins of a batch, to be merged with those of others; see `brier_decomposition`."""
    check_count(num_bins, "num_bins")
    check_categorical(predictive, FOR_LABELS)
    seen = observe(predictive, y, weight)
    labels, probs = predictive.labels(seen.y), predictive.mean.clamp(max=1.0).unbind(dim=1)
    heavy = None
    if seen.weight is not None:
        there = seen.weight > 0
        labels, probs, heavy = labels[there], tuple(p[there] for p in probs), seen.weight[there]
        heavy = None if bool((heavy == 1).all()) else heavy
    classes = [_bins_of_class(p.flatten(), (labels == k).flatten(), num_bins, heavy) for k, p in enumerate(probs)]
    count, num_true, prob_sum, square_sum, true_sum = (torch.stack(part) for part in zip(*classes, strict=True))
    return BrierBins(count=count, num_true=num_true, prob_sum=prob_sum, square_sum=square_sum, true_sum=true_sum)


def _bins_of_class(p: Tensor, is_class: Tensor, num_bins: int, weight: Tensor | None) -> tuple[Tensor, ...]:
    bins = bin_index(p, num_bins)
    of_class = bins[is_class]
    heavy = torch.ones_like(p) if weight is None else weight

    def total(where: Tensor, weights: Tensor | None) -> Tensor:
        return torch.bincount(where, weights=weights, minlength=num_bins)

    return (
        total(bins, weight),
        total(of_class, None if weight is None else weight[is_class]),
        total(bins, heavy * p),
        total(bins, heavy * p.square()),
        total(of_class, (heavy * p)[is_class]),
    )
