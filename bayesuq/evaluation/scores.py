"""Scores of a predictive at known targets: the log score, Brier score and CRPS are proper, so honesty is best.

Each score is the mean over points of its `pointwise_` function. Larger is worse, but for accuracy. All are of the
mixture that the draws form, never of a summary of it.

References:
    Gneiting and Raftery, "Strictly proper scoring rules, prediction, and estimation", JASA 2007.
    Grimit, Gneiting, Berrocal and Johnson, "The continuous ranked probability score for circular variables and its
    application to mesoscale forecast ensemble verification", QJRMS 2006, eq. (5), for mixtures of Gaussians.
"""

import math

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.evaluation.kinds import check_categorical, check_gaussian
from bayesuq.predictive import CategoricalPredictive, GaussianPredictive, PredictiveDistribution

FOR_LABELS = "Of real targets take `root_mean_squared_error`, `negative_log_likelihood` or `crps`."
FOR_REAL_TARGETS = "Of labels take `accuracy`, `negative_log_likelihood` or `brier_score`."
BLOCK_NUMBERS = 2**15  # of float64 at a time: a quarter of a megabyte, which stays in a processor's cache


def negative_log_likelihood(predictive: PredictiveDistribution, y: ArrayLike) -> Tensor:
    """Log score, the mean over points of -log p(y | x*, D): Gneiting and Raftery (2007), section 4.1.

    Args:
        predictive: Of labels or real targets, at N points.
        y: The truth: labels (N, ...), or real targets (N, D) or (N,) for D = 1.

    Returns:
        Nats a point (jointly over target columns, per unit of y), 0-d float64; infinite where any point is impossible.

    Raises:
        TypeError: Labels that are not whole numbers.
        ValueError: `y` of another shape, not finite, or outside the classes; a Gaussian component of zero variance.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]))
        >>> negative_log_likelihood(predictive, [0, 1])  # (log 2 + log 4/3) / 2
        tensor(0.4904, dtype=torch.float64)
    """
    return pointwise_negative_log_likelihood(predictive, y).mean()


def pointwise_negative_log_likelihood(predictive: PredictiveDistribution, y: ArrayLike) -> Tensor:
    """-log p(y | x*, D) in nats, (N, ...) for labels, (N,) for real targets; see `negative_log_likelihood`."""
    return -predictive.log_prob(y)


def brier_score(predictive: CategoricalPredictive, y: ArrayLike) -> Tensor:
    """Brier score, the mean over points of sum_k (p_k - 1[y = k])^2: Gneiting and Raftery (2007), section 4.1.

    The sum is over all classes, so two classes give twice what scikit-learn's binary score gives.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).

    Returns:
        In [0, 2], 0-d float64.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes.

    Example:
        >>> brier_score(CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25]]])), [0])  # 2 x .25^2
        tensor(0.1250, dtype=torch.float64)
    """
    return pointwise_brier_score(predictive, y).mean()


def pointwise_brier_score(predictive: CategoricalPredictive, y: ArrayLike) -> Tensor:
    """sum_k (p_k - 1[y = k])^2, (N, ...); see `brier_score`."""
    check_categorical(predictive, FOR_LABELS)
    labels = predictive.labels(y).unsqueeze(1)
    probs = predictive.mean
    return probs.scatter(1, labels, probs.gather(1, labels) - 1).square().sum(dim=1)


def accuracy(predictive: CategoricalPredictive, y: ArrayLike) -> Tensor:
    """Share of points whose label is the most probable class of the mean; see `brier_score` for the rest.

    Returns:
        Fraction, 0-d float64; larger is better.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]))
        >>> accuracy(predictive, [1, 1])  # a tie goes to the first class
        tensor(0.5000, dtype=torch.float64)
    """
    return pointwise_accuracy(predictive, y).mean()


def pointwise_accuracy(predictive: CategoricalPredictive, y: ArrayLike) -> Tensor:
    """1 where the most probable class of the mean is the label, else 0, (N, ...), float64; see `accuracy`."""
    check_categorical(predictive, FOR_LABELS)
    return (predictive.probability_sum.argmax(dim=1) == predictive.labels(y)).double()


def root_mean_squared_error(predictive: GaussianPredictive, y: ArrayLike) -> Tensor:
    """sqrt of the mean of (y - E y*)^2 over points and columns; see `crps` for the rest.

    Returns:
        In units of y, 0-d float64.

    Example:
        >>> predictive = GaussianPredictive(mean=torch.tensor([[[0.0], [0.0]]]), noise_variance=1.0)
        >>> root_mean_squared_error(predictive, [3.0, 4.0])
        tensor(3.5355, dtype=torch.float64)
    """
    return pointwise_squared_error(predictive, y).mean().sqrt()


def pointwise_squared_error(predictive: GaussianPredictive, y: ArrayLike) -> Tensor:
    """(y - E y*)^2 in units of y squared, (N, D); see `root_mean_squared_error`."""
    check_gaussian(predictive, FOR_REAL_TARGETS)
    return (predictive.targets(y) - predictive.mean).square()


def crps(predictive: GaussianPredictive, y: ArrayLike) -> Tensor:
    """Continuous ranked probability score of the Gaussian mixture, in closed form: Grimit et al. (2006), eq. (5).

    The integral over t of (F(t) - 1[t >= y])^2, with F the predictive's cdf; a point forecast's is its absolute error.
    Costs O(S^2 N D) time; memory beyond the predictive's own is O(N D).

    Args:
        predictive: Of real targets, at N points.
        y: Targets, (N, D), or (N,) for D = 1.

    Returns:
        In units of y, the mean over points and columns, 0-d float64.

    Raises:
        TypeError: Not a GaussianPredictive.
        ValueError: `y` of another shape or not finite; a component of zero variance.

    Example:
        >>> crps(GaussianPredictive(mean=torch.tensor([[[0.0]]]), noise_variance=1.0), [0.0])  # (sqrt 2 - 1) / sqrt pi
        tensor(0.2337, dtype=torch.float64)
    """
    return pointwise_crps(predictive, y).mean()


def pointwise_crps(predictive: GaussianPredictive, y: ArrayLike) -> Tensor:
    """CRPS of each point and column in units of y, (N, D); see `crps`."""
    check_gaussian(predictive, FOR_REAL_TARGETS)
    target = predictive.targets(y)
    variances = predictive.component_variances
    if (variances == 0).any():
        raise ValueError("A component has zero variance. Give the likelihood a noise scale above 0.")
    means, variances = predictive.component_means.flatten(1), variances.flatten(1)
    width = max(1, BLOCK_NUMBERS // len(means))
    blocks = zip(target.flatten().split(width), means.split(width, 1), variances.split(width, 1), strict=True)
    return torch.cat([_mixture_crps(*block) for block in blocks]).reshape(target.shape)


def _mixture_crps(target: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    # eq. (5): sum_s w_s A(y - mu_s, v_s) - 1/2 sum_st w_s w_t A(mu_s - mu_t, v_s + v_t), with w = 1/S
    S = len(means)
    to_target = _mean_absolute_value(target - means, variances).sum(dim=0)
    between = _mean_absolute_value(torch.zeros_like(means), 2 * variances).sum(dim=0)
    for lag in range(1, S // 2 + 1):  # the pairs (s, s + lag mod S): those of lag and of S - lag are the same pairs
        gaps = means - means.roll(lag, dims=0)
        pairs = _mean_absolute_value(gaps, variances + variances.roll(lag, dims=0)).sum(dim=0)
        between += pairs if 2 * lag == S else 2 * pairs
    return to_target / S - between / (2 * S**2)


def _mean_absolute_value(mean: Tensor, variance: Tensor) -> Tensor:
    # A(mu, v) = E|X| for X ~ N(mu, v) = 2 sqrt(v) phi(mu / sqrt v) + mu (2 Phi(mu / sqrt v) - 1)
    twice = 2 * variance
    return (twice / math.pi).sqrt() * torch.exp(-mean.square() / twice) + mean * torch.erf(mean / twice.sqrt())
