"""Whether stated probabilities come true: among points predicted at confidence c, a share c should be right.

For labels, the top-label reliability over B bins of equal width, [0, 1/B), ..., [1 - 1/B, 1], and from it

    ECE = sum_b n_b / N |accuracy_b - confidence_b|      MCE = max_b |accuracy_b - confidence_b|.

For real targets, the probability integral transform u = F(y), uniform on [0, 1] under a calibrated predictive.

References:
    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017, eq. (3) and (5).
    Gneiting, Balabdaoui and Raftery, "Probabilistic forecasts, calibration and sharpness", JRSS B 2007.
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, check_fraction, to_tensor
from bayesuq.evaluation.kinds import check_categorical, check_gaussian
from bayesuq.evaluation.scores import pointwise_accuracy
from bayesuq.predictive import CategoricalPredictive, GaussianPredictive

FOR_LABELS = "Of real targets take `probability_integral_transform` or `interval_coverage`."
FOR_REAL_TARGETS = "Of labels take `reliability` or `expected_calibration_error`."
WILSON_QUANTILE = 1.959963984540054  # of the standard normal at 0.975


@dataclass(frozen=True, eq=False, kw_only=True)
class Reliability:
    """How often predictions were right, by confidence. The state is exact, of fixed size, and adds up over batches.

    Attributes:
        count: Points in each bin, int64, (B,).
        num_correct: Of these, those predicted right, int64, (B,).
        confidence_sum: Sum of the points' confidences, float64, (B,).
    """

    count: Tensor
    num_correct: Tensor
    confidence_sum: Tensor

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
        stated, right = stated.flatten().double(), truth.flatten().to(stated.device, torch.bool)
        bins = bin_index(stated, num_bins)
        return cls(
            count=torch.bincount(bins, minlength=num_bins),
            num_correct=torch.bincount(bins[right], minlength=num_bins),
            confidence_sum=torch.bincount(bins, weights=stated, minlength=num_bins),
        )

    @property
    def edges(self) -> Tensor:
        """Bin edges 0, 1/B, ..., 1, (B + 1,)."""
        return bin_edges(len(self.count), self.count.device)

    @property
    def confidence(self) -> Tensor:
        """Mean confidence in each bin, (B,); NaN where it is empty."""
        return self.confidence_sum / self.count

    @property
    def accuracy(self) -> Tensor:
        """Share of right predictions in each bin, (B,); NaN where it is empty."""
        return self.num_correct.double() / self.count

    @property
    def accuracy_interval(self) -> Tensor:
        """Wilson's 95 % interval of each bin's accuracy, for independent points, (2, B): lower, upper; NaN if empty."""
        squared = WILSON_QUANTILE**2 / self.count.double()  # whole numbers would divide in float32
        centre = self.accuracy + squared / 2
        half = (squared * (self.accuracy * (1 - self.accuracy) + squared / 4)).sqrt()
        lower, upper = (centre - half) / (1 + squared), (centre + half) / (1 + squared)
        return torch.stack([lower.minimum(self.accuracy), upper.maximum(self.accuracy)])  # rounding may exclude 0 or 1

    @property
    def expected_calibration_error(self) -> Tensor:
        """ECE, the gap |accuracy - confidence| averaged over points, a fraction, 0-d."""
        return (self.num_correct - self.confidence_sum).abs().sum() / self.count.sum()

    @property
    def maximum_calibration_error(self) -> Tensor:
        """MCE, the largest gap of a bin that holds a point, a fraction, 0-d. A bin of one point may set it."""
        return (self.accuracy - self.confidence).abs().nan_to_num(nan=0.0).max()

    def merge(self, other: Self) -> Self:
        """The reliability over the points of both.

        Raises:
            ValueError: Another number of bins.
        """
        if len(self.count) != len(other.count):
            raise ValueError(f"Only equal bins merge; got {len(self.count)} and {len(other.count)} bins.")
        return type(self)(
            count=self.count + other.count,
            num_correct=self.num_correct + other.num_correct,
            confidence_sum=self.confidence_sum + other.confidence_sum,
        )


def bin_edges(num_bins: int, device: torch.device) -> Tensor:
    """Edges of equal bins of [0, 1], float64, (num_bins + 1,); k / B is the number nearest to each edge."""
    return torch.arange(num_bins + 1, dtype=torch.float64, device=device) / num_bins


def bin_index(confidence: Tensor, num_bins: int) -> Tensor:
    """Which of the equal bins [0, 1/B), ..., [1 - 1/B, 1] each confidence falls in, int64; 1 is in the last."""
    edges = bin_edges(num_bins, confidence.device)
    return torch.bucketize(confidence.contiguous(), edges[1:-1], right=True)


def reliability(predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15) -> Reliability:
    """Top-label reliability: confidence is the mean's largest probability, right is that class being the label.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        num_bins: B, bins of equal width, the last closed at 1.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes; fewer than one bin.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[1.0, 0.0], [0.625, 0.375], [0.625, 0.375]]]))
        >>> result = reliability(predictive, [0, 0, 1], num_bins=2)
        >>> result.count, result.confidence, result.accuracy
        (tensor([0, 3]), tensor([   nan, 0.7500], dtype=torch.float64), tensor([   nan, 0.6667], dtype=torch.float64))
    """
    check_categorical(predictive, FOR_LABELS)
    # Rounding of a streamed sum may leave a probability a hair above 1.
    confidence = predictive.mean.amax(dim=1).clamp(max=1.0)
    return Reliability.from_confidences(confidence, pointwise_accuracy(predictive, y), num_bins=num_bins)


def expected_calibration_error(predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15) -> Tensor:
    """ECE = sum_b n_b / N |accuracy_b - confidence_b|, top label, weighted by points: Guo et al. (2017), eq. (3).

    It is 0 for calibrated predictions in the limit; from N points its mean is above 0. See `reliability` for the rest.

    Returns:
        Fraction, 0-d float64.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.95, 0.05], [1.0, 0.0]]]))
        >>> expected_calibration_error(predictive, [1, 0], num_bins=10)  # both are in the last bin
        tensor(0.4750, dtype=torch.float64)
    """
    return reliability(predictive, y, num_bins).expected_calibration_error


def maximum_calibration_error(predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15) -> Tensor:
    """MCE = max_b |accuracy_b - confidence_b| over bins with points: Guo et al. (2017), eq. (5).

    A bin of few points may set it: read it beside `reliability(...).count`.

    Returns:
        Fraction, 0-d float64.
    """
    return reliability(predictive, y, num_bins).maximum_calibration_error


def probability_integral_transform(predictive: GaussianPredictive, y: ArrayLike) -> Tensor:
    """u = P(y* <= y), column by column, exact for the mixture; uniform on [0, 1] under a calibrated predictive.

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.

    Returns:
        Fractions, (N, D), float64.

    Raises:
        TypeError: Not a GaussianPredictive.
        ValueError: `y` of another shape or not finite; a component of zero variance.
    """
    check_gaussian(predictive, FOR_REAL_TARGETS)
    return predictive.cdf(y)


def interval_coverage(predictive: GaussianPredictive, y: ArrayLike, level: float) -> Tensor:
    """Share of targets inside the central interval of probability `level`, near `level` if calibrated.

    The interval runs from the quantile (1 - level) / 2 to the quantile (1 + level) / 2 of the mixture, and holds y
    where |2u - 1| <= level. See `probability_integral_transform` for the rest.

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.
        level: Probability inside, between 0 and 1.

    Returns:
        Fraction over points and columns, 0-d float64.

    Raises:
        ValueError: `level` outside (0, 1).

    Example:
        >>> predictive = GaussianPredictive(mean=torch.zeros(1, 4, 1), noise_variance=1.0)
        >>> interval_coverage(predictive, [-3.0, -1.0, 0.0, 1.7], level=0.9)  # inside (-1.645, 1.645)
        tensor(0.5000, dtype=torch.float64)
    """
    return pointwise_coverage(predictive, y, level).mean()


def pointwise_coverage(predictive: GaussianPredictive, y: ArrayLike, level: float) -> Tensor:
    """1 where the central interval holds y, else 0, (N, D), float64; see `interval_coverage`."""
    check_fraction(level, "level")
    off_centre = (2 * probability_integral_transform(predictive, y) - 1).abs()
    return (off_centre <= level).double()
