"""Whether stated probabilities come true: among points predicted at confidence c, a share c should be right.

For labels, the top-label reliability over B bins of equal width, [0, 1/B), ..., [1 - 1/B, 1], and from it

    ECE = sum_b n_b / N |accuracy_b - confidence_b|      MCE = max_b |accuracy_b - confidence_b|.

For real targets, the probability integral transform u = F(y), uniform on [0, 1] under a calibrated predictive.

References:
    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017, eq. (3) and (5).
    Nixon, Dusenberry, Zhang, Jerfel and Tran, "Measuring calibration in deep learning", CVPR workshops 2019.
    Kumar, Liang and Ma, "Verified uncertainty calibration", NeurIPS 2019.
    Kuleshov, Fenner and Ermon, "Accurate uncertainties for deep learning using calibrated regression", ICML 2018.
    Gneiting, Balabdaoui and Raftery, "Probabilistic forecasts, calibration and sharpness", JRSS B 2007.
"""

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, check_fraction, check_one_of, check_probability
from bayesuq.evaluation.binning import Reliability, sums_by_bin
from bayesuq.evaluation.gaps import Gaps
from bayesuq.evaluation.kinds import check_categorical, check_real
from bayesuq.evaluation.observed import as_weight, observe, weighted_mean
from bayesuq.evaluation.ranks import tie_groups
from bayesuq.evaluation.scores import central_interval, top_label
from bayesuq.evaluation.uncertainty import maximum_probability
from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import generator, resolve_seed
from bayesuq.waiting import in_one_read

__all__ = [
    "adaptive_calibration_error",
    "calibration_error_floor",
    "classwise_calibration_error",
    "debiased_calibration_error",
    "expected_calibration_error",
    "interval_coverage",
    "interval_width",
    "maximum_calibration_error",
    "probability_integral_transform",
    "regression_calibration_error",
    "reliability",
]
__dir__ = __all__.copy

Steps = Literal["randomised", "middle"]
FOR_LABELS = "Of real targets take `probability_integral_transform` or `interval_coverage`."
FOR_REAL_TARGETS = "Of labels take `reliability` or `expected_calibration_error`."


@in_one_read()
def reliability(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    num_bins: int = 15,
    *,
    classwise: bool = False,
    threshold: float = 0.0,
    weight: ArrayLike | None = None,
) -> Reliability:
    """Top-label reliability: confidence is the mean's largest probability, right is that class being the label.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        num_bins: B, bins of equal width, the last closed at 1.
        classwise: Whether it is that of each class's own probability, (C, B) each: confidence is p_k, right is the
            label being k.
        threshold: Probabilities below it are left out: of many classes nearly all are near 0.
        weight: How much each row counts, (N,), or each target, of y's shape; what has weight 0 is left out, whatever
            stands in y there. None counts all alike.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes; fewer than one bin; `threshold` outside [0, 1);
            weights of another shape, negative, not finite, or all 0.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[1.0, 0.0], [0.625, 0.375], [0.625, 0.375]]]))
        >>> result = reliability(predictive, [0, 0, 1], num_bins=2)
        >>> result.count, result.confidence, result.accuracy
        (tensor([0, 3]), tensor([   nan, 0.7500], dtype=torch.float64), tensor([   nan, 0.6667], dtype=torch.float64))
    """
    check_count(num_bins, "num_bins")
    check_probability(threshold, "threshold")
    check_categorical(predictive, FOR_LABELS)
    seen = observe(predictive, y, weight)

    def tallied(stated: Tensor, right: Tensor) -> Reliability:
        heavy = _flat(seen.weight)
        if threshold > 0:
            kept = (stated >= threshold).double()
            heavy = kept if heavy is None else kept * heavy
        return Reliability.tally(stated, right, num_bins, weight=heavy)

    if not classwise:
        confidence, right = top_label(predictive, seen.y)
        return tallied(confidence.flatten(), right.flatten())
    labels, probs = predictive.labels(seen.y), predictive.mean.clamp(max=1.0)
    return Reliability.stack([tallied(p.flatten(), (labels == k).flatten()) for k, p in enumerate(probs.unbind(dim=1))])


def classwise_reliability(*args: Any, **options: Any) -> Reliability:
    """`reliability` with `classwise=True`, which is what to write: this name goes with version 0.3."""
    warnings.warn("Write `reliability(..., classwise=True)`.", DeprecationWarning, stacklevel=2)
    return reliability(*args, classwise=True, **options)


@in_one_read()
def expected_calibration_error(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, weight: ArrayLike | None = None
) -> Tensor:
    """ECE = sum_b n_b / N |accuracy_b - confidence_b|, top label, weighted by points: Guo et al. (2017), eq. (3).

    It is 0 for calibrated predictions in the limit; from N points its mean is above 0, by `calibration_error_floor`.
    See `reliability` for the rest.

    Returns:
        Fraction, 0-d float64.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.95, 0.05], [1.0, 0.0]]]))
        >>> expected_calibration_error(predictive, [1, 0], num_bins=10)  # both are in the last bin
        tensor(0.4750, dtype=torch.float64)
    """
    return reliability(predictive, y, num_bins, weight=weight).expected_calibration_error


@in_one_read()
def calibration_error_floor(
    predictive: CategoricalPredictive, num_bins: int = 15, *, weight: ArrayLike | None = None
) -> Tensor:
    """Mean ECE that labels drawn from the predictive itself would give: what a calibrated one shows on these points.

    In closed form, points being independent; the spread of confidences within a bin is neglected. An ECE near it says
    nothing against the predictive. Of weighted points it goes by Kish's effective number of them in each bin.

    Args:
        predictive: Of labels, at N points.
        num_bins: B, bins of equal width.
        weight: How much each row, (N,), or each point, (N, ...), counts; None counts all alike.

    Returns:
        Fraction, 0-d float64.

    Raises:
        TypeError: Not a CategoricalPredictive.
        ValueError: Fewer than one bin; weights of another shape, negative, not finite, or all 0.

    Example:
        >>> calibration_error_floor(CategoricalPredictive.from_probs(torch.tensor([[[0.9, 0.1]]])))  # 2 x .9 x .1
        tensor(0.1800, dtype=torch.float64)
    """
    check_categorical(predictive, FOR_LABELS)
    confidence = predictive.mean.amax(dim=1).clamp(max=1.0)
    heavy = None if weight is None else as_weight(weight, confidence.shape).to(confidence.device).reshape(-1, 1)
    flat = confidence.reshape(-1, 1)  # points as rows, since they are independent here
    return Gaps.of(flat, torch.ones_like(flat), heavy, num_bins).floor


@in_one_read()
def maximum_calibration_error(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, weight: ArrayLike | None = None
) -> Tensor:
    """MCE = max_b |accuracy_b - confidence_b| over bins with points: Guo et al. (2017), eq. (5).

    A bin of few points may set it: read it beside `reliability(...).count`.

    Returns:
        Fraction, 0-d float64.
    """
    return reliability(predictive, y, num_bins, weight=weight).maximum_calibration_error


@in_one_read()
def debiased_calibration_error(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, weight: ArrayLike | None = None
) -> Tensor:
    """Root mean squared top-label gap, less what the noise of N points adds: Kumar et al. (2019).

    0 where the noise explains all of the gap. The squared error before the root, which averages well over test sets, is
    `reliability(...).debiased_squared_error`. Of weighted points the noise is that of Kish's effective number of them
    in each bin: one row of weight two is no second row. See `reliability` for the rest.

    Returns:
        Fraction, 0-d float64.
    """
    return reliability(predictive, y, num_bins, weight=weight).debiased_squared_error.clamp(min=0.0).sqrt()


@in_one_read()
def adaptive_calibration_error(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, weight: ArrayLike | None = None
) -> Tensor:
    """As `expected_calibration_error` with bins of equally many points, or weights: Nixon et al. (2019), top label.

    Equal confidences stay in one bin, that of their middle rank, so that the order of points does not matter.

    Returns:
        Fraction, 0-d float64.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25], [1.0, 0.0]]]))
        >>> adaptive_calibration_error(predictive, [1, 0], num_bins=2)  # a bin for each point
        tensor(0.3750, dtype=torch.float64)
    """
    check_count(num_bins, "num_bins")
    check_categorical(predictive, FOR_LABELS)
    seen = observe(predictive, y, weight)
    right = top_label(predictive, seen.y)[1]
    return equal_mass_gap(
        -maximum_probability(predictive).flatten(), right.flatten(), num_bins, weight=_flat(seen.weight)
    )


def equal_mass_gap(scores: Tensor, right: Tensor, num_bins: int, *, weight: Tensor | None = None) -> Tensor:
    """The adaptive calibration error of scores confidence - 1, (N,), which tell apart what rounds to certainty."""
    ranked, order = scores.sort()
    group, sizes = tie_groups(ranked)
    if weight is not None:
        heavy = weight[order]
        mass = sums_by_bin(group, len(sizes), heavy)
        middles = (mass.cumsum(0) - mass / 2) / mass.sum()
        bins = (middles * num_bins).long().clamp(max=num_bins - 1)[group]
        gaps = heavy * (right[order].double() - 1 - ranked)
        return sums_by_bin(bins, num_bins, gaps).abs().sum() / mass.sum()
    middle = 2 * sizes.cumsum(0) - sizes  # twice, to stay with whole numbers
    bins = (middle * num_bins // (2 * len(ranked)))[group]
    return sums_by_bin(bins, num_bins, right[order].double() - 1 - ranked).abs().sum() / len(ranked)


@in_one_read()
def classwise_calibration_error(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    num_bins: int = 15,
    *,
    threshold: float = 0.0,
    weight: ArrayLike | None = None,
) -> Tensor:
    """Mean over classes of the ECE of p_k against y = k (static calibration error): Nixon et al. (2019).

    With many classes most p_k are near 0 and so is the value; a `threshold` of, say, 0.01 leaves those out, and with
    them classes that never reach it. See `reliability` for the rest.

    Returns:
        Fraction, 0-d float64.
    """
    each = reliability(predictive, y, num_bins, classwise=True, threshold=threshold, weight=weight)
    return each.expected_calibration_error.nanmean()


@in_one_read()
def probability_integral_transform(
    predictive: RealPredictive,
    y: ArrayLike,
    *,
    steps: Steps = "randomised",
    seed: int | None = None,
    weight: ArrayLike | None = None,
) -> Tensor:
    """u = P(y* <= y), column by column, exact for the mixture; uniform on [0, 1] under a calibrated predictive.

    The cdf of counts has steps, on each of which u is drawn uniformly, between P(y* < y) and P(y* <= y): without that
    it would not be uniform under the truth either (Czado, Gneiting and Held 2009, section 2). So is that of S draws of
    y*, between (draws below y) / (S + 1) and (draws up to y, and one) / (S + 1): uniform where y is one more draw.

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.
        steps: "randomised", as above; or "middle", the middle of each step, which needs no randomness and has the
            uniform law's mean, but less spread.
        seed: Of the draws on steps; a cdf without steps needs none.
        weight: Of each row, (N,), or of each target, of y's shape: u is NaN where it is 0, whatever stands in y there.
            None is 1 everywhere.

    Returns:
        Fractions, (N, D), float64.

    Raises:
        TypeError: Labels.
        ValueError: `y` of another shape or not finite; a component of zero variance; weights of another shape,
            negative, not finite, or all 0.
    """
    check_real(predictive, FOR_REAL_TARGETS)
    seen = observe(predictive, y, weight)
    check_one_of(steps, "steps", Steps)
    below, at_most = predictive.transform_ends(seen.y)
    if predictive.has_steps:
        noise = generator(resolve_seed(seed), device=at_most.device)
        share = torch.rand(at_most.shape, generator=noise, dtype=at_most.dtype, device=at_most.device)
        at_most = below + (share if steps == "randomised" else 0.5) * (at_most - below)
    return at_most if seen.known is None else torch.where(seen.known, at_most, torch.nan)


@in_one_read()
def interval_coverage(
    predictive: RealPredictive, y: ArrayLike, level: float, *, weight: ArrayLike | None = None
) -> Tensor:
    """Share of targets inside the central interval of probability `level`, near `level` if calibrated.

    The interval runs from the quantile (1 - level) / 2 to the quantile (1 + level) / 2 of the mixture, and holds y
    where |2u - 1| <= level. Of counts, whose quantiles are counts, both ends belong to it, so that it covers at
    least `level` under the truth, and more where counts are few. See `probability_integral_transform` for the rest.

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.
        level: Probability inside, between 0 and 1.
        weight: How much each row counts, (N,), or each target, of y's shape; what has weight 0 is left out, whatever
            stands in y there. None counts all alike.

    Returns:
        Fraction over points and columns, 0-d float64.

    Raises:
        ValueError: `level` outside (0, 1); weights of another shape, negative, not finite, or all 0.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> predictive = GaussianPredictive(mean=torch.zeros(1, 4, 1), noise_variance=1.0)
        >>> interval_coverage(predictive, [-3.0, -1.0, 0.0, 1.7], level=0.9)  # inside (-1.645, 1.645)
        tensor(0.5000, dtype=torch.float64)
    """
    check_real(predictive, FOR_REAL_TARGETS)
    seen = observe(predictive, y, weight)
    return seen.mean(pointwise_coverage(predictive, seen.y, level))


@in_one_read()
def pointwise_coverage(predictive: RealPredictive, y: ArrayLike, level: float) -> Tensor:
    """1 where the central interval holds y, else 0, (N, D), float64; see `interval_coverage`."""
    check_fraction(level, "level")
    check_real(predictive, FOR_REAL_TARGETS)
    if predictive.has_steps:
        (lower, upper), target = central_interval(predictive, level), predictive.targets(y)
        return ((lower <= target) & (target <= upper)).double()
    return ((2 * predictive.cdf(y) - 1).abs() <= level).double()


@in_one_read()
def interval_width(predictive: RealPredictive, level: float, *, weight: ArrayLike | None = None) -> Tensor:
    """Mean width of the central interval of probability `level`, exact for the mixture; read it beside the coverage.

    Args:
        predictive: Of real targets, at N points.
        level: Probability inside, between 0 and 1.
        weight: How much each row counts, (N,), or each target, (N, D); None counts all alike.

    Returns:
        In units of y, over points and columns, 0-d float64.

    Raises:
        TypeError: Labels.
        ValueError: `level` outside (0, 1); a component of zero variance; weights of another shape, negative, not
            finite, or all 0.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> interval_width(GaussianPredictive(mean=torch.zeros(1, 4, 1), noise_variance=1.0), level=0.9)  # 2 x 1.645
        tensor(3.2897, dtype=torch.float64)
    """
    shape = check_real(predictive, FOR_REAL_TARGETS).shape[1:]
    heavy = None if weight is None else as_weight(weight, shape).to(predictive.device)
    return weighted_mean(pointwise_width(predictive, level), heavy)


def pointwise_width(predictive: RealPredictive, level: float) -> Tensor:
    """Width of the central interval in units of y, (N, D); see `interval_width`."""
    check_real(predictive, FOR_REAL_TARGETS)
    lower, upper = central_interval(predictive, level)
    return upper - lower


@in_one_read()
def regression_calibration_error(
    predictive: RealPredictive, y: ArrayLike, *, seed: int | None = None, weight: ArrayLike | None = None
) -> Tensor:
    """Mean over all levels of |coverage of the central interval - level|, exactly: the integral over level from 0 to 1.

    Kuleshov et al. (2018) sum over chosen levels. See `probability_integral_transform` for the rest.

    Returns:
        Fraction, 0-d float64, in [0, 1/2]; over points and columns.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> predictive = GaussianPredictive(mean=torch.zeros(1, 1, 1), noise_variance=1.0)
        >>> regression_calibration_error(predictive, [0.0])  # covered at every level
        tensor(0.5000, dtype=torch.float64)
    """
    # Coverage as a function of level is the cdf of v = |2u - 1|, and the area between a cdf and that of the uniform
    # distribution is the area between their quantile functions.
    heavy = observe(check_real(predictive, FOR_REAL_TARGETS), y, weight).weight
    levels = (2 * probability_integral_transform(predictive, y, seed=seed, weight=weight) - 1).abs().flatten()
    mass = torch.ones_like(levels) if heavy is None else heavy.flatten()
    v, order = levels.sort()  # what is missing, and NaN, comes last
    mass = mass[order]
    ends = torch.nn.functional.pad(mass.cumsum(0), (1, 0))
    ends = ends / ends[-1]
    before, after = v - ends[:-1], ends[1:] - v  # of |v - t| over t from (i - 1)/n to i/n
    inside = (before > 0) & (after > 0)
    area = torch.where(inside, before.square() + after.square(), (before.square() - after.square()).abs()) / 2
    return torch.where(mass > 0, area, 0.0).sum()


def _flat(weight: Tensor | None) -> Tensor | None:
    return None if weight is None else weight.flatten()
