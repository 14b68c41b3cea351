"""Where the truth lies with 95 % probability, where a value plus or minus two standard errors says it wrongly.

A standard error is symmetric and knows no limits: of 30 right answers in 30 it is 0, of a skewed score it is too short
on one side, and of few positives it is hardly known. Each interval here holds the truth in 90 to 97 % of simulated test
sets from some 30 rows and 10 positives on. Two things no interval can do: of a share so near 0 or 1 that the next count
is a step of several per cent, it holds more often; and of what is rarer than one in N, as far out in a tail without a
variance, no sample of N tells.

References:
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    Hall, "On the removal of skewness by transformation", JRSS B 1992, eq. (2.2) and its inverse.
    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2", Statistics
    in Medicine 2006, method 5.
    Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", Statistical Science 2001, section 3.1 and
    4.1.1, for Jeffreys' interval and what it is at 0 and at 1.
    Hannig, "On generalized fiducial inference", Statistica Sinica 2009, section 4, for discrete observations.
"""

from typing import NamedTuple

import numpy as np
import scipy.special
import torch
from torch import Tensor

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
NORMAL_QUANTILE = float(scipy.special.ndtri(1 - TAIL))
BISECTIONS = 40  # down to 1e-12 in [0, 1]
ONE_SIDED_QUANTILE = float(scipy.special.ndtri(LEVEL))
NEGLIGIBLE = 1e-9  # probability
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

    V is multiplied by what the measured variance is to it, so that scores of any law have their own. Where A is so near
    1 that no area can lie 1.96 deviations above it, those below may be missed in 5 % instead of 2.5: 1.64 deviations.

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
            deviation = (ratio * variance(middle)).sqrt()
            inside = (area - middle).abs() <= _quantile_with((limit - middle).abs() / deviation) * deviation
            near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
        return torch.where(standard_error.isnan(), torch.nan, far)

    return Interval(end(0.0), end(1.0))


def _quantile_with(room: Tensor) -> Tensor:
    """Deviations that are likely on one side, with room for so many on the other: from 1.64, of none, to 1.96."""
    share = ((room - ONE_SIDED_QUANTILE) / (NORMAL_QUANTILE - ONE_SIDED_QUANTILE)).clamp(0.0, 1.0)
    return ONE_SIDED_QUANTILE + share * (NORMAL_QUANTILE - ONE_SIDED_QUANTILE)


def false_positive_rate_interval(
    alarms: Tensor, rate: Tensor, num_negative: int, true_positive_rate: float
) -> Interval:
    """Of the share of negatives at or above the threshold that finds `true_positive_rate` of all positives there are.

    How many of the P positives lie above that threshold is binomial, which puts the threshold between two of them with
    known probabilities; given the share of the negatives above it, that of all there are has Jeffreys' beta law. The
    interval is of the mixture of these laws. With few positives the upper end is 1: below the lowest of 10 lie one in
    twenty of all others more often than not; 5 % are then beyond the lower end alone.

    Args:
        alarms: Share of negatives at or above each positive, rising, (P,).
        rate: The measure itself, one of them.
        num_negative: Number of negatives.
        true_positive_rate: Share of positives to find.
    """
    number = len(alarms)
    shares, chances = _between(alarms, true_positive_rate)
    if true_positive_rate**number > TAIL:  # the threshold may lie below all positives
        return Interval(_mixture_end(shares, chances, num_negative, 2 * TAIL).minimum(rate), torch.ones_like(rate))
    lower, upper = (_mixture_end(shares, chances, num_negative, level) for level in (TAIL, 1 - TAIL))
    return Interval(lower.minimum(rate), upper.maximum(rate))


def _between(alarms: Tensor, true_positive_rate: float) -> tuple[Tensor, Tensor]:
    """Shares of negatives at or above a threshold between two positives, and the chance that it is there, (K,) each.

    With k of P positives above it, its place between the two beside it is where the means of their laws put it: the
    positives above have one more gap than their number to share, and so have those below.
    """
    number = len(alarms)
    found = torch.arange(number + 1.0, dtype=torch.float64)
    chances = torch.from_numpy(np.diff(scipy.special.bdtr(found.numpy(), number, true_positive_rate), prepend=0.0))
    above, below = true_positive_rate / (found + 1), (1 - true_positive_rate) / (number - found + 1)
    steps = torch.nn.functional.pad(alarms.double().cpu(), (1, 1))
    steps[-1] = 1.0
    shares = torch.lerp(steps[:-1], steps[1:], above / (above + below))
    likely = chances > NEGLIGIBLE
    return shares[likely], chances[likely]


def _mixture_end(shares: Tensor, chances: Tensor, num_negative: int, level: float) -> Tensor:
    """Where the mixture of Jeffreys' laws of the shares reaches this probability.

    At 0 there is nothing below and at 1 nothing above: no lower end is above the one, no upper end below the other.
    """
    hits, weights = shares.numpy() * num_negative, (chances / chances.sum()).numpy()
    lower, upper, is_lower = 0.0, 1.0, level < 0.5
    for _ in range(BISECTIONS):
        middle = (lower + upper) / 2
        up_to = scipy.special.betainc(hits + 0.5, num_negative - hits + 0.5, middle)
        up_to = np.where(hits == 0, 1.0, up_to) if is_lower else np.where(hits == num_negative, 0.0, up_to)
        lower, upper = (lower, middle) if float(weights @ up_to) > level else (middle, upper)
    return torch.tensor(lower if is_lower else upper, dtype=torch.float64)
