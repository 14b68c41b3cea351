"""Does a score pick out the points that it should: the model's own errors, or inputs from elsewhere?

A score is any real number that grows with uncertainty; the points to be found are the positives. Every measure is
exact: it depends on the order of the scores only, ties count as one threshold, and no score is squashed into [0, 1].

References:
    Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 1982.
    Davis and Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006.
"""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_finite_number, to_tensor


def auroc(scores: ArrayLike, positives: ArrayLike) -> Tensor:
    """P(a positive scores above a negative) + P(they tie) / 2: Mann-Whitney with mid-ranks, the area under the ROC.

    Args:
        scores: Any real numbers, larger where a positive is more likely, any shape.
        positives: Whether each point is a positive, boolean or 0 and 1, of the same shape.

    Returns:
        Fraction, 0-d float64 on the scores' device; NaN, with a warning, where there is one class only.

    Raises:
        TypeError: Not numbers.
        ValueError: NaN scores, positives that are not 0 or 1, shapes that differ.

    Example:
        >>> auroc([3.0, 40.0, 1.0, 3.0], [True, True, False, False])  # 3 1/2 of the 4 pairs are in order
        tensor(0.8750, dtype=torch.float64)
    """
    at = _thresholds(scores, positives)
    if not _is_defined("auroc", positive=at.positives, negative=at.negatives):
        return at.undefined
    above = at.positives.cumsum(0) - at.positives  # positives above each threshold
    twice = (at.negatives * (2 * above + at.positives)).sum()  # whole numbers, so exact
    return twice.double() / (2 * at.positives.sum().double() * at.negatives.sum())


def average_precision(scores: ArrayLike, positives: ArrayLike) -> Tensor:
    """sum_k (recall_k - recall_(k-1)) precision_k over falling thresholds: the step-wise area under precision-recall.

    Nothing is interpolated: the straight lines of a trapezoid promise too much (Davis and Goadrich, 2006). A random
    score gets the share of positives. See `auroc` for the rest.

    Returns:
        Fraction, 0-d float64; NaN, with a warning, where there is no positive.

    Example:
        >>> average_precision([4.0, 3.0, 2.0, 1.0], [True, False, True, False])  # 1/2 x 1 + 1/2 x 2/3
        tensor(0.8333, dtype=torch.float64)
    """
    at = _thresholds(scores, positives)
    if not _is_defined("average_precision", positive=at.positives):
        return at.undefined
    found = at.positives.cumsum(0).double()
    precision = found / (found + at.negatives.cumsum(0))
    return (at.positives * precision).sum() / at.positives.sum()


def false_positive_rate_at(scores: ArrayLike, positives: ArrayLike, true_positive_rate: float = 0.95) -> Tensor:
    """Share of negatives at or above the highest threshold that catches `true_positive_rate` of the positives (FPR95).

    See `auroc` for the rest.

    Args:
        scores: Any real numbers, larger where a positive is more likely, any shape.
        positives: Whether each point is a positive, boolean or 0 and 1, of the same shape.
        true_positive_rate: Share of positives to catch at least, above 0 and at most 1.

    Returns:
        Fraction, 0-d float64; NaN, with a warning, where there is one class only.

    Raises:
        ValueError: `true_positive_rate` outside (0, 1].

    Example:
        >>> false_positive_rate_at([4.0, 3.0, 2.0, 1.0], [True, False, True, False])  # both positives need 2.0
        tensor(0.5000, dtype=torch.float64)
    """
    if not 0 < check_finite_number(true_positive_rate, "true_positive_rate") <= 1:
        raise ValueError(f"`true_positive_rate` must be above 0 and at most 1; got {true_positive_rate!r}.")
    at = _thresholds(scores, positives)
    if not _is_defined("false_positive_rate_at", positive=at.positives, negative=at.negatives):
        return at.undefined
    # A quotient, since 0.07 x 100 > 7 in floating point while 7 / 100 is the same number as 0.07.
    caught = at.positives.cumsum(0).double() / at.positives.sum()
    first = (caught >= true_positive_rate).long().argmax()
    return at.negatives.cumsum(0)[first].double() / at.negatives.sum()


class _Thresholds(NamedTuple):
    positives: Tensor  # at each distinct score, falling, int64
    negatives: Tensor

    @property
    def undefined(self) -> Tensor:
        return torch.full((), torch.nan, dtype=torch.float64, device=self.positives.device)


def _thresholds(scores: ArrayLike, positives: ArrayLike) -> _Thresholds:
    values, positive = check_scores(scores, positives)
    order = values.flatten().argsort(descending=True)
    group = values.flatten()[order].unique_consecutive(return_inverse=True)[1]
    size = int(group[-1]) + 1 if len(group) else 0
    caught = torch.bincount(group[positive.flatten()[order]], minlength=size)
    return _Thresholds(caught, torch.bincount(group, minlength=size) - caught)


def check_scores(scores: ArrayLike, positives: ArrayLike) -> tuple[Tensor, Tensor]:
    """`scores` as a tensor and `positives` as booleans on its device, or the errors that `auroc` lists."""
    values, flags = to_tensor(scores, "scores"), to_tensor(positives, "positives")
    if values.shape != flags.shape:
        raise ValueError(
            f"`positives` must have the shape of `scores`, {tuple(values.shape)}; got {tuple(flags.shape)}."
        )
    if values.isnan().any():
        raise ValueError(f"`scores` must not hold NaN; got {int(values.isnan().sum())}.")
    if not ((flags == 0) | (flags == 1)).all():
        raise ValueError("`positives` must be boolean, or 0 and 1.")
    return values, flags.to(values.device, torch.bool)


def _is_defined(measure: str, **counts: Tensor) -> bool:
    missing = [kind for kind, count in counts.items() if count.sum() == 0]
    if missing:
        warnings.warn(f"`{measure}` is undefined, and NaN: no point is {missing[0]}.", UserWarning, stacklevel=3)
    return not missing
