"""Where the truth lies with 95 % probability, where a value plus or minus two standard errors says it wrongly.

A standard error is symmetric and knows no limits: of 30 right answers in 30 it is 0, of a skewed score it is too short
on one side, and of few positives it is hardly known. Each interval here is known to hold from some 30 rows and 10
positives on (the tests simulate it), as long as the spread is not held by one row: of what is rarer than one in N no
sample of N tells.

References:
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    Hall, "On the removal of skewness by transformation", JRSS B 1992, eq. (2.2) and its inverse.
    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics
    in Medicine 2006, method 5.
    Zou and Donner, "Construction of confidence limits about effect measures", Statistics in Medicine 2008.
"""

from typing import NamedTuple

import numpy as np
import scipy.special
import torch
from torch import Tensor

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
NORMAL_QUANTILE = float(scipy.special.ndtri(1 - TAIL))
BISECTIONS = 60  # down to the resolution of a float64 in [0, 1]
LEAST_RATIO, LARGEST_RATIO = 0.5, 2.5  # of the AUROC's measured variance to the model's: few positives leave it open


class Interval(NamedTuple):
    """Ends of an interval, 0-d float64 each; NaN where there is none."""

    lower: Tensor
    upper: Tensor

    def clamp(self, lowest: float, highest: float) -> "Interval":
        """Within the values that the measure can have."""
        return Interval(self.lower.clamp(lowest, highest), self.upper.clamp(lowest, highest))

    def sqrt(self) -> "Interval":
        """Of the root of what lies in this interval."""
        return Interval(self.lower.clamp(min=0.0).sqrt(), self.upper.clamp(min=0.0).sqrt())


def skewed_interval(mean: Tensor, standard_error: Tensor, skewness: Tensor, rows: Tensor) -> Interval:
    """Of a mean of N rows, or of what is nearly one, whose rows' moves have this skewness: Hall (1992).

    With T = (estimate - truth) / SE and a = skewness / sqrt N, g(T) = T + a T^2 / 3 + a^2 T^3 / 27 + a / 6 has nearly
    Student's t distribution; g is a cube and has an inverse.
    """
    student = float(scipy.special.stdtrit(max(float(rows) - 1, 1.0), 1 - TAIL))
    a = skewness / rows.double().sqrt()
    ends = [mean - standard_error * _unskewed(y, a) for y in (student, -student)]
    return Interval(*ends)


def _unskewed(y: float, a: Tensor) -> Tensor:
    base = 1 + a * (y - a / 6)
    root = base.sign() * base.abs() ** (1 / 3)
    small = a.abs() < 1e-6  # where the quotient is all rounding
    return torch.where(small, y - a * (y * y / 3 + 1 / 6), 3 * (root - 1) / torch.where(small, 1.0, a))


def share_interval(share: Tensor, standard_error: Tensor, most: Tensor) -> Interval:
    """Wilson's, of a share or another mean of numbers in [0, 1].

    Args:
        share: The value.
        standard_error: From it comes the number of independent points that the share is worth.
        most: That number where all are equal, and the error is 0; never more than it.
    """
    variance = (share * (1 - share)).clamp(min=0.0)
    known = standard_error > 1e-9
    number = torch.where(known, variance / torch.where(known, standard_error, 1.0).square(), most).minimum(most)
    number = torch.where(number > 0, number, most)  # rounding may leave no variance and some error
    squared = NORMAL_QUANTILE**2 / number
    half = (squared * (variance + squared / 4)).sqrt()
    lower, upper = ((share + squared / 2 + side) / (1 + squared) for side in (-half, half))
    interval = Interval(lower.minimum(share), upper.maximum(share)).clamp(0.0, 1.0)
    return Interval(*(torch.where(standard_error.isnan(), torch.nan, end) for end in interval))


def auroc_interval(
    area: Tensor, standard_error: Tensor, num_positive: Tensor, num_negative: Tensor, *, independent: bool = True
) -> Interval:
    """Newcombe's method 5: all areas A with |area - A| at most 1.96 sqrt V(A), V that of exponential scores.

    V is multiplied by what the measured variance is to it, so that scores of any law have their own.

    Args:
        area: The AUROC.
        standard_error: Measured.
        num_positive: Rows with a positive.
        num_negative: Rows with a negative.
        independent: Whether each row is one point, whose variance cannot be far from V.
    """
    size = num_positive * num_negative
    halves = (num_positive + num_negative) / 2 - 1

    def variance(a: Tensor) -> Tensor:
        return a * (1 - a) * (1 + halves * ((1 - a) / (2 - a) + a / (1 + a))) / size

    measured = (standard_error > 0) & (area > 0) & (area < 1)
    ratio = standard_error.square() / torch.where(measured, variance(area), 1.0)
    ratio = torch.where(measured, ratio.clamp(LEAST_RATIO, LARGEST_RATIO) if independent else ratio, 1.0)

    def end(limit: float) -> Tensor:
        near, far = area, torch.full_like(area, limit)
        for _ in range(BISECTIONS):
            middle = (near + far) / 2
            inside = (area - middle).square() <= NORMAL_QUANTILE**2 * ratio * variance(middle)
            near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
        return torch.where(standard_error.isnan(), torch.nan, far)

    return Interval(end(0.0), end(1.0))


def false_positive_rate_interval(
    alarms: Tensor, rate: Tensor, num_negative: int, true_positive_rate: float
) -> Interval:
    """Of the share of negatives at or above the threshold that finds `true_positive_rate` of all positives there are.

    The threshold is a quantile of the positives, known between two of their order statistics; the share above it is
    Wilson's. Both are put together as squares (Zou and Donner 2008). With few positives the upper end is 1: below the
    lowest of 10 lie one in twenty of all others more often than not.

    Args:
        alarms: Share of negatives at or above each positive, rising, (P,).
        rate: The measure itself, one of them.
        num_negative: Number of negatives.
        true_positive_rate: Share of positives to find.
    """
    number = len(alarms)
    # P(at most k - 1 of the positives need no lower threshold than the true one), k = 0, ..., P
    below = scipy.special.bdtr(np.arange(-1.0, number), number, true_positive_rate)
    below[0] = 0.0
    is_open = 1 - below[-1] > TAIL  # even the last order statistic is too low too often
    lower, upper = _order_statistic(alarms, below, 2 * TAIL if is_open else TAIL), torch.ones_like(rate)
    if not is_open:
        upper = _order_statistic(alarms, below, 1 - TAIL)
    error = (rate * (1 - rate) / num_negative).sqrt()
    few = share_interval(rate, error, torch.full_like(rate, num_negative))
    return Interval(
        rate - ((rate - lower).square() + (rate - few.lower).square()).sqrt(),
        rate + ((upper - rate).square() + (few.upper - rate).square()).sqrt(),
    ).clamp(0.0, 1.0)


def _order_statistic(alarms: Tensor, below: "np.ndarray[tuple[int], np.dtype[np.float64]]", level: float) -> Tensor:
    place = float(np.interp(level, below, np.arange(len(below), dtype=np.float64)))
    place = min(max(place, 1.0), float(len(alarms)))
    first = int(place)
    second = min(first, len(alarms) - 1)
    return alarms[first - 1] + (place - first) * (alarms[second] - alarms[first - 1])
