"""Which targets count, and how much: weights of rows or of single targets, and targets that are missing.

A weight is at least 0, of each row, (N,), or of each target, of y's shape. What has weight 0 is left out of every
measure, whatever stands in y there: NaN, or a label that is no class. A weighted measure is the ratio of weighted sums
that the plain one is of sums, so that a whole-number weight is a row repeated, and a weight of 0 a row that is absent.
What the number of independent points decides, as a correction for noise, goes by Kish's (sum w)^2 / sum w^2: a row that
is repeated tells nothing new.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_finite, to_floating, to_tensor
from bayesuq.evaluation.kinds import check_real
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive, by_name
from bayesuq.waiting import check

ALL_ZERO = "`weight` must be above 0 somewhere: all of it is 0, and nothing is left to measure."
EXTREME = "`weight` must be such that its squares are numbers above 0, too. Multiply all weights by one number."


class Observed(NamedTuple):
    """Targets as a predictive takes them, and how much each counts."""

    y: ArrayLike  # with numbers of no meaning where it is missing
    weight: Tensor | None  # float64, (N, ...) as the predictive has its targets; None is 1 everywhere

    @property
    def known(self) -> Tensor | None:
        """Which targets count, boolean, of the weight's shape; None is all."""
        return None if self.weight is None else self.weight > 0

    @property
    def row_weight(self) -> Tensor | None:
        """Of each row as one, (N,): the mean weight of its known targets, 0 without any; None is 1 everywhere."""
        if self.weight is None:
            return None
        flat = self.weight.reshape(len(self.weight), -1)
        return flat.sum(dim=1) / (flat > 0).sum(dim=1).clamp(min=1)

    def weight_of(self, values: Tensor) -> Tensor | None:
        """Of a pointwise measure: of single targets, of the weight's shape, or of rows, (N,)."""
        if self.weight is None or values.shape == self.weight.shape:
            return self.weight
        return self.row_weight

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean of a pointwise measure of single targets or of rows, 0-d float64."""
        return weighted_mean(values, self.weight_of(values))


def observe(predictive: PredictiveDistribution, y: ArrayLike, weight: ArrayLike | None) -> Observed:
    """Targets with what is missing filled in, and their weights.

    Args:
        predictive: Of labels or real targets, at N points.
        y: The truth, as the predictive's `log_prob` takes it, and anything at weight 0.
        weight: Of rows, (N,), or of single targets, of y's shape; None counts all alike.

    Raises:
        TypeError: Not numbers.
        ValueError: Weights of another shape, negative, not finite or all 0; and as `log_prob` where they are above 0.
    """
    if weight is None:
        return Observed(y, None)
    names = predictive.names if isinstance(predictive, CategoricalPredictive) else None
    if names is not None:
        y = by_name(y, names, known=as_weight(weight, torch.Size(np.shape(y))) > 0)
    raw = to_tensor(y, "y")
    weights = as_weight(weight, raw.shape)
    known = weights > 0
    if isinstance(predictive, CategoricalPredictive):
        targets = predictive.labels(torch.where(known, raw, 0))
    else:
        # Any known target lies in the support, as a count or a positive number must.
        targets = check_real(predictive, "").targets(torch.where(known, raw, _first(raw, known)))
    return Observed(targets, weights.reshape(targets.shape).to(targets.device))


def _first(raw: Tensor, known: Tensor) -> Tensor:
    """The first known target, 0-d."""
    return raw.flatten().take(known.flatten().to(torch.uint8).argmax())


def as_weight(weight: ArrayLike, shape: torch.Size) -> Tensor:
    """Weights of targets of this shape, (N, ...), as float64 of that shape.

    Raises:
        TypeError: Not numbers.
        ValueError: Another shape than (N,) or the targets', negative, not finite, all 0, or of a size whose squares no
            float holds.
    """
    given = to_floating(weight, "weight").double()
    if given.shape == shape[:1]:
        given = given.reshape(-1, *[1] * (len(shape) - 1))
    elif given.shape != shape:
        raise ValueError(
            f"`weight` must have shape ({shape[0] if shape else 'N'},), one of each row, or {tuple(shape)} as the "
            f"targets; got {tuple(given.shape)}."
        )
    check_finite(given, "weight")
    check(~(given < 0).any(), lambda: ValueError(f"`weight` must be at least 0; got {float(given.min()):g}."))
    check((given > 0).any(), lambda: ValueError(ALL_ZERO))
    squared = given.square()
    check(((squared > 0) == (given > 0)).all() & (squared.sum() < torch.inf), lambda: ValueError(EXTREME))
    return given.expand(shape)


def has_weight(weight: ArrayLike) -> bool:
    """Whether any weight is not 0; an accelerator is waited for."""
    return bool((to_tensor(weight, "weight") != 0).any())


def known_points(scores: ArrayLike, flags: ArrayLike, weight: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, what is true of each, and weights, (n,) each, of the points whose weight is above 0.

    An accelerator would be waited for to tell how many these are: there the others stay, of weight 0 and score 0.

    Raises:
        TypeError: Not numbers.
        ValueError: Shapes that differ; see `as_weight`.
    """
    values, truths = to_tensor(scores, "scores"), to_tensor(flags, "positives")
    if values.shape != truths.shape:
        raise ValueError(f"Scores and truths must have one shape; got {tuple(values.shape)}, {tuple(truths.shape)}.")
    weights = as_weight(weight, values.shape).to(values.device)
    known, truths = weights > 0, truths.to(values.device)
    if values.device.type == "cpu":
        return values[known], truths[known], weights[known]
    return torch.where(known, values, 0).flatten(), torch.where(known, truths, 0).flatten(), weights.flatten()


def counting_points(scores: ArrayLike, flags: ArrayLike, weight: ArrayLike) -> tuple[Tensor, Tensor, Tensor]:
    """As `known_points`, on every device: an accelerator is waited for."""
    values, truths, weights = known_points(scores, flags, weight)
    there = weights > 0
    return values[there], truths[there], weights[there]


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """sum w v / sum w over all entries, 0-d float64; what has weight 0 may be anything."""
    if weight is None:
        return values.double().mean()
    return torch.where(weight > 0, weight * values, 0.0).sum() / weight.sum()
