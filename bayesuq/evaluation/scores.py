"""Scores of a predictive at known targets: the log score, Brier score and CRPS are proper, so honesty is best.

Each score is a mean over points, and `pointwise` gives what it is the mean of. Larger is worse, but for accuracy. All
are of the mixture that the draws form, never of a summary of it. Rows or single targets may be weighted, or missing
(weight 0).

References:
    Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 2007.
    Grimit, Gneiting, Berrocal and Johnson, "The continuous ranked probability score for circular variables and its
    application to mesoscale forecast ensemble verification", QJRMS 2006, eq. (5), for mixtures of Gaussians.
    Ferro, "Fair scores for ensemble forecasts", QJRMS 2014, for samples.
    Bracher, Ray, Gneiting and Reich, "Evaluating epidemic forecasts in an interval format", PLOS Comp. Biol. 2021.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_targets, check_finite, check_fraction, to_floating, to_tensor
from bayesuq.evaluation.kinds import check_categorical, check_real
from bayesuq.evaluation.observed import Observed, as_weight, observe, weighted_mean
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive, block_size, central_levels
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.empirical import EmpiricalPredictive, crps_of_draws
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.recalibrated import RecalibratedPredictive
from bayesuq.predictive.thinned import held_of
from bayesuq.waiting import are_noted, check, in_one_read

__all__ = [
    "accuracy",
    "brier_score",
    "crps",
    "interval_score",
    "negative_log_likelihood",
    "pinball_loss",
    "pointwise",
    "root_mean_squared_error",
    "weighted_interval_score",
]
__dir__ = __all__.copy

ZERO_VARIANCE = "A component has zero variance. Give the likelihood a noise scale above 0."
FOR_LABELS = "Of real targets take `root_mean_squared_error`, `negative_log_likelihood` or `crps`."
FOR_REAL_TARGETS = "Of labels take `accuracy`, `negative_log_likelihood` or `brier_score`."
TIES_BELOW = 0.51  # a half, and what the probabilities of a row may sum to above 1
HUB_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
CRPS_DRAWS = 1000  # of y, where the score has no closed form
CRPS_QUANTILES = 200  # likewise, where levels were recalibrated
DRAWN_NUMBERS = 2**22  # float64 at a time: 32 megabytes
NODE_STEP = 0.6  # scales of the narrowest component, for an error of 1e-12
FURTHEST_NODE = 7.5  # scales: beyond lies less than 1e-13
BLOCK_NUMBERS = 2**15  # of float64 at a time: a quarter of a megabyte, which stays in a processor's cache


def pointwise(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What a score is the mean of, as a function of the same arguments but for `weight`.

    Args:
        score: One of the others of this module. Of `root_mean_squared_error` it is the squares under the root.

    Returns:
        Predictive and truth -> float64, in the unit of the score: (N, ...) of labels; of real targets (N, D), each
        column by itself, but (N,) of `negative_log_likelihood`, whose density is of all columns together.

    Raises:
        ValueError: Another function.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
        >>> pointwise(brier_score)(predictive, [0, 1])
        tensor([0.1250, 0.5000], dtype=torch.float64)
    """
    if score not in POINTWISE:
        known = ", ".join(one.__name__ for one in POINTWISE)
        raise ValueError(f"`score` must be one of {known}; got {getattr(score, '__name__', repr(score))}.")
    return POINTWISE[score]


@in_one_read()
def negative_log_likelihood(
    predictive: PredictiveDistribution, y: ArrayLike, *, weight: ArrayLike | None = None
) -> Tensor:
    """Log score, the mean over points of -log p(y | x*, D): Gneiting and Raftery (2007), section 4.1.

    Args:
        predictive: Of labels or real targets, at N points.
        y: The truth: labels (N, ...), or real targets (N, D) or (N,) for D = 1.
        weight: How much each row counts, (N,), or each target, of y's shape; what has weight 0 is left out, whatever
            stands in y there. None counts all alike. Of a row with missing columns the density is that of the others,
            and the row counts as these do on average.

    Returns:
        Nats a point (jointly over target columns, per unit of y), 0-d float64; infinite where any point is impossible.

    Raises:
        TypeError: Labels that are not whole numbers.
        ValueError: `y` of another shape, not finite, or outside the classes; a Gaussian component of zero variance;
            weights of another shape, negative, not finite, or all 0.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]))
        >>> negative_log_likelihood(predictive, [0, 1])  # (log 2 + log 4/3) / 2
        tensor(0.4904, dtype=torch.float64)
    """
    seen = observe(predictive, y, weight)
    return seen.mean(observed_log_loss(predictive, seen))


@in_one_read()
def pointwise_negative_log_likelihood(predictive: PredictiveDistribution, y: ArrayLike) -> Tensor:
    """-log p(y | x*, D) in nats, (N, ...) for labels, (N,) for real targets; see `negative_log_likelihood`."""
    return -predictive.log_prob(y)


def observed_log_loss(predictive: PredictiveDistribution, seen: Observed) -> Tensor:
    """As `pointwise_negative_log_likelihood`, of what is known of each row of real targets."""
    if seen.known is None or isinstance(predictive, CategoricalPredictive):
        return -predictive.log_prob(seen.y)
    return -check_real(predictive, "").log_prob(seen.y, observed=seen.known)


@in_one_read()
def brier_score(predictive: CategoricalPredictive, y: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """Brier score, the mean over points of sum_k (p_k - 1[y = k])^2: Gneiting and Raftery (2007), section 4.1.

    The sum is over all classes, so two classes give twice what scikit-learn's binary score gives.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        weight: How much each row counts, (N,), or each target, of y's shape; what has weight 0 is left out, whatever
            stands in y there. None counts all alike.

    Returns:
        In [0, 2], 0-d float64.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes; weights of another shape, negative, or all 0.

    Example:
        >>> brier_score(CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25]]])), [0])  # 2 x .25^2
        tensor(0.1250, dtype=torch.float64)
    """
    check_categorical(predictive, FOR_LABELS)
    seen = observe(predictive, y, weight)
    return seen.mean(pointwise_brier_score(predictive, seen.y))


@in_one_read()
def pointwise_brier_score(predictive: CategoricalPredictive, y: ArrayLike) -> Tensor:
    """sum_k (p_k - 1[y = k])^2, (N, ...); see `brier_score`."""
    check_categorical(predictive, FOR_LABELS)
    labels, sums = predictive.labels(y).unsqueeze(1), predictive.probability_sum
    stated = sums.gather(1, labels).squeeze(1) / predictive.num_samples
    squares = torch.einsum("nc...,nc...->n...", sums, sums) / predictive.num_samples**2
    # Of the other classes together; one pass over all, and rounding may leave a little below 0.
    others = (squares - stated.square()).clamp(min=0.0)
    return (1 - stated).square() + others


@in_one_read()
def accuracy(predictive: CategoricalPredictive, y: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """Share of points whose label is the most probable class of the mean; see `brier_score` for the rest.

    Returns:
        Fraction, 0-d float64; larger is better.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]))
        >>> accuracy(predictive, [1, 1])  # a tie goes to the first class
        tensor(0.5000, dtype=torch.float64)
    """
    check_categorical(predictive, FOR_LABELS)
    seen = observe(predictive, y, weight)
    return seen.mean(pointwise_accuracy(predictive, seen.y))


@in_one_read()
def pointwise_accuracy(predictive: CategoricalPredictive, y: ArrayLike) -> Tensor:
    """1 where the most probable class of the mean is the label, else 0, (N, ...), float64; see `accuracy`."""
    return top_label(predictive, y)[1].double()


def top_label(predictive: CategoricalPredictive, y: ArrayLike) -> tuple[Tensor, Tensor]:
    """The largest probability of the mean, float64, and whether its class is the label, boolean, each (N, ...)."""
    check_categorical(predictive, FOR_LABELS)
    labels, sums, num_draws = predictive.labels(y), predictive.probability_sum, predictive.num_samples
    largest = sums.amax(dim=1) / num_draws
    # Of the mean, as its argmax is: dividing may make two sums equal.
    right = sums.gather(1, labels.unsqueeze(1)).squeeze(1) / num_draws == largest
    # Finding the class takes four times as long as its probability, and only half the sum or less can have an equal.
    tied = right & (largest < TIES_BELOW)
    if right.device.type != "cpu":  # whose masks would be waited for
        winners = (sums / num_draws).argmax(dim=1)
        return largest.clamp(max=1.0), right & (~tied | (winners == labels))
    right[tied] = (sums.movedim(1, -1)[tied] / num_draws).argmax(dim=-1) == labels[tied]
    # Rounding of a streamed sum may leave a probability a hair above 1.
    return largest.clamp(max=1.0), right


@in_one_read()
def root_mean_squared_error(predictive: RealPredictive, y: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """sqrt of the mean of (y - E y*)^2 over points and columns; see `crps` for the rest.

    Returns:
        In units of y, 0-d float64.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> predictive = GaussianPredictive(mean=torch.tensor([[[0.0], [0.0]]]), noise_variance=1.0)
        >>> root_mean_squared_error(predictive, [3.0, 4.0])
        tensor(3.5355, dtype=torch.float64)
    """
    check_real(predictive, FOR_REAL_TARGETS)
    seen = observe(predictive, y, weight)
    return seen.mean(pointwise_squared_error(predictive, seen.y)).sqrt()


@in_one_read()
def pointwise_squared_error(predictive: RealPredictive, y: ArrayLike) -> Tensor:
    """(y - E y*)^2 in units of y squared, (N, D); see `root_mean_squared_error`."""
    check_real(predictive, FOR_REAL_TARGETS)
    return (predictive.targets(y) - predictive.mean).square()


@in_one_read()
def crps(predictive: RealPredictive, y: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """Continuous ranked probability score of the mixture: the integral over t of (F(t) - 1[t >= y])^2, F its cdf.

    A point forecast's is its absolute error. Of Gaussians it is exact, by Grimit et al. (2006), eq. (5), or within 1e-9
    of it, where an integral takes the place of the sum over pairs of components: at a few places for each scale of the
    narrowest component between the lowest and the highest, where these are fewer than the S components, so that time
    grows as S N D; else as S^2 N D. Memory beyond the predictive's own is O(N D). Other families have no closed form:
    theirs is `sample_crps` of 1,000 draws with a fixed seed, unbiased, with an error of some 3 % of a point's value
    that falls as 1 / sqrt(N). Of recalibrated quantiles it is that of 200 evenly spread ones, off by less than .1 %,
    or by 1 % where a few components are far wider than the others. Of draws of y* it is the fair score, of
    quantiles that of the law between them: see `bayesuq.predictive.empirical`.

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.
        weight: How much each row counts, (N,), or each target, of y's shape; what has weight 0 is left out, whatever
            stands in y there. None counts all alike.

    Returns:
        In units of y, the mean over points and columns, 0-d float64.

    Raises:
        TypeError: Labels.
        ValueError: `y` of another shape or not finite; a component of zero variance; weights of another shape,
            negative, or all 0.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> crps(GaussianPredictive(mean=torch.tensor([[[0.0]]]), noise_variance=1.0), [0.0])  # (sqrt 2 - 1) / sqrt pi
        tensor(0.2337, dtype=torch.float64)
    """
    check_real(predictive, FOR_REAL_TARGETS)
    seen = observe(predictive, y, weight)
    return seen.mean(pointwise_crps(predictive, seen.y))


@in_one_read()
def pointwise_crps(predictive: RealPredictive, y: ArrayLike) -> Tensor:
    """CRPS of each point and column in units of y, (N, D); see `crps`."""
    check_real(predictive, FOR_REAL_TARGETS)
    target = predictive.targets(y)
    predictive = held_of(predictive)
    if isinstance(predictive, RecalibratedPredictive):
        levels = [(k + 0.5) / CRPS_QUANTILES for k in range(CRPS_QUANTILES)]
        return pointwise_sample_crps(torch.stack([predictive.quantile(level) for level in levels]), target, fair=False)
    if isinstance(predictive, EmpiricalPredictive):
        return predictive.pointwise_crps(target)
    if not isinstance(predictive, GaussianPredictive):
        return _crps_by_draws(predictive, target)
    check(~(predictive.laws.component_variances == 0).any(), lambda: ValueError(ZERO_VARIANCE))
    together = block_size(BLOCK_NUMBERS, predictive.laws.at(slice(0, 1)).component_means)
    starts = range(0, len(target), together)
    blocks = [(predictive.at(slice(start, start + together)), target[start : start + together]) for start in starts]
    return torch.cat([_mixture_crps(y, part) for part, y in blocks])


@in_one_read()
def sample_crps(samples: ArrayLike, y: ArrayLike, *, fair: bool = True, weight: ArrayLike | None = None) -> Tensor:
    """CRPS of a distribution that is known by S draws of y only, column by column: Ferro (2014).

    mean_s |x_s - y| - sum_st |x_s - x_t| / (2 S (S - 1)), whose expectation is the CRPS of what the draws are from.
    With S^2 for S (S - 1) (`fair=False`) it is the CRPS of the empirical distribution, too large for that by
    E|x - x'| / (2 S). Where the mixture is known take `crps`, which has no noise.

    Args:
        samples: Draws of y*, (S, N, D), or (S, N) for D = 1.
        y: Targets, (N, D), or (N,) for D = 1.
        fair: Whether to correct for the number of draws.
        weight: See `crps`.

    Returns:
        In units of y, the mean over points and columns, 0-d float64.

    Raises:
        TypeError: Not numbers.
        ValueError: Other shapes, values that are not finite, fewer than two draws of a fair score.

    Example:
        >>> sample_crps([[0.0], [1.0]], [0.0])  # 1/2 - 2 / (2 x 2 x 1)
        tensor(0., dtype=torch.float64)
    """
    if weight is None:
        return pointwise_sample_crps(samples, y, fair=fair).mean()
    targets = to_floating(y, "y")
    weights = as_weight(weight, targets.shape)
    values = pointwise_sample_crps(samples, torch.where(weights > 0, targets, 0.0), fair=fair)
    return weighted_mean(values, weights.reshape(values.shape).to(values.device))


@in_one_read()
def pointwise_sample_crps(samples: ArrayLike, y: ArrayLike, *, fair: bool = True) -> Tensor:
    """CRPS of each point and column in units of y, (N, D), below 0 now and then if fair; see `sample_crps`."""
    draws, target = to_floating(samples, "samples").double(), as_targets(y).double()
    draws = draws.unsqueeze(-1) if draws.ndim == 2 else draws
    if draws.ndim != 3 or draws.shape[1:] != target.shape:
        raise ValueError(
            f"`samples` must have shape (S, N, D) with `y`'s (N, D), {tuple(target.shape)}; got {tuple(draws.shape)}."
        )
    check_finite(draws, "samples")
    fewest = 2 if fair else 1
    if len(draws) < fewest:
        raise ValueError(f"`samples` must hold at least {fewest} draws; got {len(draws)}.")
    return crps_of_draws(draws.sort(dim=0).values, target.to(draws.device), fair=fair)


@in_one_read()
def interval_score(
    predictive: RealPredictive, y: ArrayLike, level: float, *, weight: ArrayLike | None = None
) -> Tensor:
    """Winkler's score of the central interval [l, u] of probability `level`: Gneiting and Raftery (2007), eq. (43).

    u - l + 2 / (1 - level) x the distance of y from the interval, where the width is given up for coverage at the rate
    that makes the true quantiles best. The quantiles are those of the mixture. See `crps` for the rest.

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.
        level: Probability inside, between 0 and 1.
        weight: See `crps`.

    Returns:
        In units of y, 0-d float64.

    Raises:
        ValueError: `level` outside (0, 1).

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> predictive = GaussianPredictive(mean=torch.zeros(1, 2, 1), noise_variance=1.0)
        >>> interval_score(predictive, [0.0, 2.0], level=0.9)  # 2 x 1.645 + 20 x (2 - 1.645) / 2
        tensor(6.8412, dtype=torch.float64)
    """
    check_real(predictive, FOR_REAL_TARGETS)
    seen = observe(predictive, y, weight)
    return seen.mean(pointwise_interval_score(predictive, seen.y, level))


@in_one_read()
def pointwise_interval_score(predictive: RealPredictive, y: ArrayLike, level: float) -> Tensor:
    """Interval score of each point and column in units of y, (N, D); see `interval_score`."""
    target = check_real(predictive, FOR_REAL_TARGETS).targets(y)
    return winkler_score(*central_interval(predictive, level), target, level)


@in_one_read()
def pinball_loss(predictive: RealPredictive, y: ArrayLike, level: float, *, weight: ArrayLike | None = None) -> Tensor:
    """Loss of the quantile q at `level`, (y - q) (level - 1[y < q]): least on average for the true quantile.

    Twice its mean over all levels is the CRPS. The quantile is that of the mixture. See `crps` for the rest.

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.
        level: Of the quantile, between 0 and 1.
        weight: See `crps`.

    Returns:
        In units of y, 0-d float64.

    Raises:
        ValueError: `level` outside (0, 1).

    Example:
        >>> from bayesuq.predictive.empirical import EmpiricalPredictive
        >>> known = EmpiricalPredictive.from_quantiles([0.1, 0.9], [[0.0, 0.0], [1.0, 1.0]])
        >>> pinball_loss(known, [0.5, 2.0], level=0.9)  # (.1 x .5 + .9 x 1) / 2
        tensor(0.4750, dtype=torch.float64)
    """
    check_real(predictive, FOR_REAL_TARGETS)
    seen = observe(predictive, y, weight)
    return seen.mean(pointwise_pinball_loss(predictive, seen.y, level))


@in_one_read()
def pointwise_pinball_loss(predictive: RealPredictive, y: ArrayLike, level: float) -> Tensor:
    """Pinball loss of each point and column in units of y, (N, D); see `pinball_loss`."""
    check_real(predictive, FOR_REAL_TARGETS)
    residual = predictive.targets(y) - predictive.quantile(check_fraction(level, "level"))
    return torch.maximum(level * residual, (level - 1) * residual)


@in_one_read()
def weighted_interval_score(
    predictive: RealPredictive,
    y: ArrayLike,
    levels: Sequence[float] = HUB_LEVELS,
    *,
    weight: ArrayLike | None = None,
) -> Tensor:
    """WIS of the median m and K central intervals of probabilities 1 - a_k: Bracher et al. (2021), eq. (3).

    (|y - m| / 2 + sum_k a_k / 2 x interval score_k) / (K + 1/2): the mean of twice the pinball losses of all these
    quantiles, which for many evenly spread levels is the CRPS. See `crps` for the rest.

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.
        levels: Probabilities inside, each between 0 and 1. The default are those of the COVID-19 Forecast Hub.
        weight: See `crps`.

    Returns:
        In units of y, 0-d float64.

    Raises:
        ValueError: No level, or one outside (0, 1).

    Example:
        >>> from bayesuq.predictive.empirical import EmpiricalPredictive
        >>> known = EmpiricalPredictive.from_quantiles([0.1, 0.5, 0.9], [[0.0], [1.0], [2.0]])
        >>> weighted_interval_score(known, [3.0], levels=[0.8])  # (2 / 2 + .1 x (2 + 10 x 1)) / 1.5
        tensor(1.4667, dtype=torch.float64)
    """
    check_real(predictive, FOR_REAL_TARGETS)
    seen = observe(predictive, y, weight)
    return seen.mean(pointwise_weighted_interval_score(predictive, seen.y, levels))


@in_one_read()
def pointwise_weighted_interval_score(
    predictive: RealPredictive, y: ArrayLike, levels: Sequence[float] = HUB_LEVELS
) -> Tensor:
    """WIS of each point and column in units of y, (N, D); see `weighted_interval_score`."""
    check_real(predictive, FOR_REAL_TARGETS)
    levels = to_tensor(list(levels), "levels").double().flatten().tolist()
    if not levels:
        raise ValueError("`levels` must hold at least one probability of a central interval; got none.")
    target = predictive.targets(y)
    ends = [end for level in levels for end in central_levels(level)]
    median, *quantiles = predictive.quantiles_at((0.5, *ends))
    total = 0.5 * (target - median).abs()
    for level, lower, upper in zip(levels, quantiles[::2], quantiles[1::2], strict=True):
        total = total + (1 - level) / 2 * winkler_score(lower, upper, target, level)
    return total / (len(levels) + 0.5)


def winkler_score(lower: Tensor, upper: Tensor, y: Tensor, level: float) -> Tensor:
    """Interval score of any intervals [lower, upper] that claim probability `level`, of the shape of all three."""
    outside = (lower - y).clamp(min=0) + (y - upper).clamp(min=0)
    return upper - lower + 2 / (1 - level) * outside


def central_interval(predictive: RealPredictive, level: float) -> tuple[Tensor, Tensor]:
    """The quantiles (1 - level) / 2 and (1 + level) / 2 of the mixture, each (N, D), in units of y."""
    check_real(predictive, FOR_REAL_TARGETS)
    return predictive.interval(level)


def _crps_by_draws(predictive: RealPredictive, target: Tensor) -> Tensor:
    width = max(1, DRAWN_NUMBERS // (CRPS_DRAWS * target.shape[1]))
    blocks = [slice(start, start + width) for start in range(0, len(target), width)]
    draws = [predictive.at(block).marginal_sample(CRPS_DRAWS, seed=number) for number, block in enumerate(blocks)]
    return torch.cat([pointwise_sample_crps(*pair) for pair in zip(draws, target.split(width), strict=True)])


def _mixture_crps(target: Tensor, mixture: GaussianPredictive) -> Tensor:
    """E|X - y| - E|X - X'| / 2 of each point and column, (N, D)."""
    means, variances = mixture.laws.component_means, mixture.laws.component_variances
    scales = variances.sqrt()
    lower, upper = (means - FURTHEST_NODE * scales).amin(dim=0), (means + FURTHEST_NODE * scales).amax(dim=0)
    to_target = mixture.average(_mean_absolute_value(target - means, variances))
    # How many nodes suffice is not waited for: of an accelerator it is the sum.
    needed = math.inf if are_noted(target) else float(((upper - lower) / (NODE_STEP * scales.amin(dim=0))).amax())
    if not needed < len(means):
        return to_target - _half_spread_of_pairs(means, variances, mixture.weights[:, None, None])
    number = max(2, math.ceil(needed))
    return to_target - _half_spread_at_nodes(mixture, scales, lower, (upper - lower) / number, number)


def _half_spread_of_pairs(means: Tensor, variances: Tensor, weights: Tensor) -> Tensor:
    """E|X - X'| / 2 exactly, by eq. (5): sum_st w_s w_t A(mu_s - mu_t, v_s + v_t) / 2."""
    S = len(means)
    between = (weights.square() * _mean_absolute_value(torch.zeros_like(means), 2 * variances)).sum(dim=0)
    for lag in range(1, S // 2 + 1):  # the pairs (s, s + lag mod S): those of lag and of S - lag are the same pairs
        gaps = means - means.roll(lag, dims=0)
        both = weights * weights.roll(lag, dims=0)
        pairs = (both * _mean_absolute_value(gaps, variances + variances.roll(lag, dims=0))).sum(dim=0)
        between += pairs if 2 * lag == S else 2 * pairs
    return between / 2


def _half_spread_at_nodes(
    mixture: GaussianPredictive, scales: Tensor, lower: Tensor, step: Tensor, number: int
) -> Tensor:
    """E|X - X'| / 2 as the integral of F (1 - F), by the trapezoidal rule at evenly spread places.

    Its error falls as exp(-(pi scale / step)^2), with the scale of the narrowest component.
    """
    slopes = math.sqrt(0.5) / scales
    shifts = (lower - mixture.laws.component_means) * slopes
    total = torch.zeros_like(lower)
    for node in range(1, number):  # F is 0 or 1 at both ends
        cdf = mixture.average(torch.erfc(-(shifts + (node * step) * slopes))) / 2
        total += cdf * (1 - cdf)
    return total * step


def _mean_absolute_value(mean: Tensor, variance: Tensor) -> Tensor:
    # A(mu, v) = E|X| for X ~ N(mu, v) = 2 sqrt(v) phi(mu / sqrt v) + mu (2 Phi(mu / sqrt v) - 1)
    twice = 2 * variance
    return (twice / math.pi).sqrt() * torch.exp(-mean.square() / twice) + mean * torch.erf(mean / twice.sqrt())


POINTWISE: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    accuracy: pointwise_accuracy,
    brier_score: pointwise_brier_score,
    crps: pointwise_crps,
    interval_score: pointwise_interval_score,
    negative_log_likelihood: pointwise_negative_log_likelihood,
    pinball_loss: pointwise_pinball_loss,
    root_mean_squared_error: pointwise_squared_error,
    sample_crps: pointwise_sample_crps,
    weighted_interval_score: pointwise_weighted_interval_score,
}
