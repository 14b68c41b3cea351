"""Split conformal prediction: sets and intervals that hold the truth with a chosen probability, whatever the model.

A score says how badly a target fits its prediction. Of n calibration rows, exchangeable with those to come and used for
nothing else, take the k-th smallest score as threshold,

    k = ceil((n + 1)(1 - alpha)),      P(y in the set of all targets whose score is at most the threshold) >= 1 - alpha,

and at most k / (n + 1) where scores have no ties. Where k > n the rows are too few: the set is everything. What is
promised is the share over calibration rows and new ones together, and nothing of a single input or a class; a shift
between the two breaks it.

Letters: N points, C classes, D target columns.

References:
    Vovk, Gammerman & Shafer 2005; Lei et al. 2018, Distribution-Free Predictive Inference for Regression.
    Sadinle, Lei & Wasserman 2019 (`method="lac"`); Romano, Sesia & Candes 2020 ("aps"); Romano, Patterson & Candes
    2019, Conformalized Quantile Regression ("quantile").
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_fraction, check_one_of
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import generator, resolve_seed

__all__ = ["calibrate_intervals", "calibrate_labels"]
__dir__ = __all__.copy

LabelMethod = Literal["lac", "aps"]
IntervalMethod = Literal["absolute", "normalised", "quantile"]
ROUNDING = 1e-9  # (n + 1)(1 - alpha) is often a whole number, which floating point puts a little above itself


@dataclass(frozen=True, eq=False)
class ConformalLabels:
    """Sets of labels; from `calibrate_labels`.

    Attributes:
        threshold: A label is in the set where its score is at most this; infinity where rows were too few.
        alpha: The share of truths that may be missed.
        method: Of the score.
        num_calibration: n.
        seed: Of the uniform numbers of "aps".
    """

    threshold: float
    alpha: float
    method: LabelMethod
    num_calibration: int
    seed: int

    def sets(self, predictive: CategoricalPredictive) -> Tensor:
        """Whether each label is in the set of each point, boolean, (N, C).

        "aps" may leave a set empty where the model is very unsure: that is what makes its coverage exact.

        Raises:
            TypeError: Not a CategoricalPredictive.
            ValueError: Labels of pixels.
        """
        return _label_scores(predictive, self.method, generator(self.seed, 1)) <= self.threshold


def calibrate_labels(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    *,
    alpha: float = 0.1,
    method: LabelMethod = "aps",
    seed: int | None = None,
) -> ConformalLabels:
    """Choose the threshold of sets of labels on calibration rows.

    Args:
        predictive: At the calibration rows, (N, C).
        y: Their labels, (N,).
        alpha: The share of truths that may be missed, in (0, 1).
        method: "lac", 1 - p of the label, whose sets are the smallest on average; or "aps", the sum of all larger p
            and a random share of the label's own, whose sets follow the difficulty of the input.
        seed: Of those shares.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `alpha` outside (0, 1), an unknown method, labels of pixels (whose rows are no exchangeable
            points), or outside the classes.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25]] * 9]))
        >>> calibrate_labels(predictive, [0] * 8 + [1], alpha=0.2, method="lac").threshold
        0.25
    """
    check_fraction(alpha, "alpha")
    key = resolve_seed(seed)
    scores = _label_scores(predictive, method, generator(key, 0))
    own = scores.gather(1, predictive.labels(y).unsqueeze(1)).squeeze(1)
    return ConformalLabels(float(_threshold(own, alpha)), alpha, method, len(own), key)


@dataclass(frozen=True, eq=False)
class ConformalIntervals:
    """Intervals of real targets; from `calibrate_intervals`.

    Attributes:
        threshold: Of the score, column by column, (D,), float64; infinity where rows were too few.
        alpha: The share of truths that may be missed in each column.
        method: Of the score.
        num_calibration: n.
    """

    threshold: Tensor
    alpha: float
    method: IntervalMethod
    num_calibration: int

    def intervals(self, predictive: RealPredictive) -> tuple[Tensor, Tensor]:
        """Lower and upper ends at each point, (N, D) each, in units of y.

        Raises:
            TypeError: Not a predictive of real targets.
            ValueError: Another number of columns.
        """
        centre, spread = _interval_parts(predictive, self.method, self.alpha)
        threshold = self.threshold.to(centre.device)
        if threshold.shape != centre.shape[1:]:
            raise ValueError(f"`predictive` must have {len(threshold)} target columns; got {centre.shape[1]}.")
        if self.method == "quantile":
            half = (spread + threshold).clamp(min=0.0)  # a very negative threshold would turn the ends round
            return centre - half, centre + half
        return centre - threshold * spread, centre + threshold * spread


def calibrate_intervals(
    predictive: RealPredictive,
    y: ArrayLike,
    *,
    alpha: float = 0.1,
    method: IntervalMethod = "normalised",
) -> ConformalIntervals:
    """Choose how much wider, or narrower, the predictive's intervals must be, on calibration rows.

    Args:
        predictive: At the calibration rows, (N, D).
        y: Their targets, (N, D) or (N,).
        alpha: The share of truths that may be missed in each column, in (0, 1).
        method: "absolute", |y - mean|: all intervals are equally wide; "normalised", |y - mean| / sqrt(total variance):
            in proportion to the predictive's own; or "quantile", the distance beyond the predictive's central interval
            of level 1 - alpha, which is moved by a constant.

    Raises:
        TypeError: Not a predictive of real targets.
        ValueError: `alpha` outside (0, 1), an unknown method, `y` of another shape or not finite; a predictive whose
            mean or variance is not finite, or whose variance is 0.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> predictive = GaussianPredictive(mean=torch.zeros(1, 9, 1), noise_variance=1.0)
        >>> calibrated = calibrate_intervals(predictive, torch.arange(9.0), alpha=0.2)
        >>> calibrated.threshold  # the 8th smallest of 9
        tensor([7.], dtype=torch.float64)
    """
    check_fraction(alpha, "alpha")
    centre, spread = _interval_parts(predictive, method, alpha)
    distance = (predictive.targets(y) - centre).abs()
    scores = distance - spread if method == "quantile" else distance / spread
    return ConformalIntervals(_threshold(scores, alpha), alpha, method, len(scores))


def _threshold(scores: Tensor, alpha: float) -> Tensor:
    """The k-th smallest of each column of (n,) or (n, D), k = ceil((n + 1)(1 - alpha)); infinity where k > n."""
    if scores.isnan().any():
        raise ValueError("A score of the calibration rows is NaN: the predictive is not finite there.")
    k = math.ceil((len(scores) + 1) * (1 - alpha) - ROUNDING)
    if k > len(scores):
        return torch.full_like(scores[0], math.inf)
    return scores.kthvalue(max(k, 1), dim=0).values


def _label_scores(predictive: CategoricalPredictive, method: LabelMethod, noise: torch.Generator) -> Tensor:
    """How badly each label fits, (N, C)."""
    if not isinstance(predictive, CategoricalPredictive):
        raise TypeError(
            f"`predictive` must be a CategoricalPredictive; got {type(predictive).__name__}. Pass what "
            "`posterior.predict(x)` returns; of real targets take `calibrate_intervals`."
        )
    probs = predictive.mean
    if probs.ndim != 2:
        raise ValueError(f"`predictive` must have one label a point, (N, C); got {tuple(probs.shape)}.")
    check_one_of(method, "method", LabelMethod)
    if method == "lac":
        return 1 - probs
    ranked, order = probs.sort(dim=1, descending=True, stable=True)
    share = torch.rand(len(probs), 1, generator=noise, dtype=torch.float64).to(probs.device)
    scores = ranked.cumsum(dim=1) - share * ranked
    return torch.zeros_like(scores).scatter_(1, order, scores)


def _interval_parts(predictive: PredictiveDistribution, method: IntervalMethod, alpha: float) -> tuple[Tensor, Tensor]:
    """Centre and half width of the interval that is moved or stretched, (N, D) each."""
    if not isinstance(predictive, RealPredictive):
        raise TypeError(
            f"`predictive` must be one of real targets; got {type(predictive).__name__}. Pass what "
            "`posterior.predict(x)` returns; of labels take `calibrate_labels`."
        )
    check_one_of(method, "method", IntervalMethod)
    if method == "quantile":
        lower, upper = predictive.quantile(alpha / 2), predictive.quantile(1 - alpha / 2)
        return (lower + upper) / 2, (upper - lower) / 2
    centre = predictive.mean
    spread = torch.ones_like(centre) if method == "absolute" else predictive.total.sqrt()
    if not (centre.isfinite() & spread.isfinite() & (spread > 0)).all():
        raise ValueError(
            "The predictive's mean and variance must be finite, and the variance above 0. Use method='quantile'."
        )
    return centre, spread
