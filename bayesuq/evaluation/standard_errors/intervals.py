"""Where the truth lies with 95 % probability, where a value plus or minus two standard errors says it wrongly.

A standard error is symmetric and knows no limits: of 30 right answers in 30 it is 0, of a skewed score it is too short
on one side, and of few positives it is hardly known. Each interval here holds the truth in 90 to 97 % of simulated test
sets from some 30 rows and 10 positives on. Three things no interval can do: of a share so near 0 or 1 that the next
count is a step of several per cent, it holds more often; of ten points whose scores are all alike nothing says that the
next is too, so that an AUROC of them is held more often; and of what is rarer than one in N, as far out in a tail
without a variance, no sample of N tells.

References:
    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.
    Hall, "On the removal of skewness by transformation", JRSS B 1992, eq. (2.2) and its inverse.
    Rubin, "The Bayesian bootstrap", Annals of Statistics 1981.
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
BISECTIONS = 30  # down to 1e-9 in [0, 1]
NEGLIGIBLE = 1e-9  # probability
PLACES = 4  # of a threshold between two positives, equally probable
END = 0.5  # points at either end of both samples, as in Jeffreys' interval
ROOM = 2.0, 5.0  # standard deviations to 0 or 1: no miss there, and as many as on the other side
LEAST_WORTH = 1e-3  # points that an area of largest variance is worth: it says nothing


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


def auroc_interval(area: Tensor, standard_error: Tensor, num_positive: Tensor, num_negative: Tensor) -> Interval:
    """Of an AUROC: quantiles of the law that the Bayesian bootstrap of both samples gives it, as a beta law.

    Half a point more lies at either end of all scores, for what few points have not shown: of 10 positives all above,
    one in ten of all there are may be below. It is the more of a sample, the smaller that is. Weights that are uniform
    over all weights give the area a mean and a variance (Rubin 1981); the beta law that has them is Jeffreys' for a
    score in two levels and many negatives. Where the area is so near 1 that it cannot be missed from below, 5 % are
    beyond the upper end instead of 2.5, and likewise at 0.

    Args:
        area: The AUROC.
        standard_error: Measured.
        num_positive: Rows with a positive.
        num_negative: Rows with a negative.
    """
    positive, negative = (
        _Sample(number.double(), END * other.double() / (number + other))
        for number, other in ((num_positive, num_negative), (num_negative, num_positive))
    )
    pairs = positive.number * negative.number * area + negative.end * positive.size + positive.end * negative.number
    mean = pairs / (positive.size * negative.size)
    measured = standard_error.square() / (positive.number + negative.number)  # shared out as if both spread equally
    variance = positive.variance(area, mean, measured * negative.number, negative)
    variance = variance + negative.variance(area, mean, measured * positive.number, positive)
    worth = (mean * (1 - mean) / variance - 1).clamp(min=LEAST_WORTH)
    deviation = variance.sqrt()
    lower = _beta_quantile(worth * mean, worth * (1 - mean), _tail(mean / deviation)).minimum(area)
    upper = _beta_quantile(worth * mean, worth * (1 - mean), 1 - _tail((1 - mean) / deviation)).maximum(area)
    ends = torch.where(area > 0, lower, 0.0), torch.where(area < 1, upper, 1.0)
    return Interval(*(torch.where(standard_error.isnan(), torch.nan, end) for end in ends))


class _Sample(NamedTuple):
    """One side of an AUROC.

    Attributes:
        number: Of its points.
        end: Points more at either end of all scores.
    """

    number: Tensor
    end: Tensor

    @property
    def size(self) -> Tensor:
        """Points in all."""
        return self.number + 2 * self.end

    def variance(self, area: Tensor, mean: Tensor, measured: Tensor, other: "_Sample") -> Tensor:
        """What weights of these points give the area, whose mean over weights is known, of its measured variance."""
        spread = self.number * (self.number - 1) * measured * (other.number / other.size).square()
        middle = self.number * ((other.number * area + other.end) / other.size - mean).square()
        above, below = ((other.number + 1.5 * other.end) / other.size, 0.5 * other.end / other.size)
        ends = self.end * ((above - mean).square() + (below - mean).square())
        return (spread + middle + ends) / (self.size * (self.size + 1))


def _beta_quantile(above: Tensor, below: Tensor, probability: Tensor) -> Tensor:
    found = scipy.special.betaincinv(*(part.cpu().numpy() for part in (above, below, probability)))
    return torch.as_tensor(found, device=above.device)


def _tail(room: Tensor) -> Tensor:
    """Probability beyond one end, with room for so many deviations beyond the other: 5 % with little, else 2.5 %."""
    little, ample = ROOM
    return 2 * TAIL - TAIL * ((room - little) / (ample - little)).clamp(0.0, 1.0)


def false_positive_rate_interval(
    alarms: Tensor, rate: Tensor, num_negative: int, true_positive_rate: float
) -> Interval:
    """Of the share of negatives at or above the threshold that finds `true_positive_rate` of all positives there are.

    How many of the P positives lie above that threshold is binomial, which puts the threshold between two of them with
    known probabilities; given the share of the negatives above it, that of all there are has Jeffreys' beta law. The
    interval is of the mixture of these laws. Of 2.5 % beyond the upper end, 0.95^P are lost: the threshold may lie
    below all positives, where nothing is seen. They are beyond the lower end instead; with 71 positives and fewer that
    has all 5 % and the upper end is 1: below the lowest of 10 lie one in twenty of all others more often than not.

    Args:
        alarms: Share of negatives at or above each positive, rising, (P,).
        rate: The measure itself, one of them.
        num_negative: Number of negatives.
        true_positive_rate: Share of positives to find.
    """
    above = max(0.0, TAIL - true_positive_rate ** len(alarms))
    shares, chances = _between(alarms, true_positive_rate)
    lower = _mixture_end(shares, chances, num_negative, 2 * TAIL - above)
    upper = _mixture_end(shares, chances, num_negative, 1 - above) if above else torch.ones_like(rate)
    return Interval(lower.minimum(rate), upper.maximum(rate))


def _between(alarms: Tensor, true_positive_rate: float) -> tuple[Tensor, Tensor]:
    """Shares of negatives at or above a threshold between two positives, and the chance that it is there, (K,) each.

    With k of P positives above it, the ranks of the two beside it are nearly exponentially far from it: those above
    have one gap more than their number to share, and so have those below. The quotient of two such distances has the
    quantiles that are taken.
    """
    number = len(alarms)
    found = torch.arange(number + 1.0, dtype=torch.float64)
    chances = torch.from_numpy(np.diff(scipy.special.bdtr(found.numpy(), number, true_positive_rate), prepend=0.0))
    above, below = true_positive_rate / (found + 1), (1 - true_positive_rate) / (number - found + 1)
    steps = torch.nn.functional.pad(alarms.double().cpu(), (1, 1))
    steps[-1] = 1.0
    levels = (torch.arange(PLACES, dtype=torch.float64).unsqueeze(1) + 0.5) / PLACES
    shares = torch.lerp(steps[:-1], steps[1:], levels * above / (levels * above + (1 - levels) * below))
    likely = chances > NEGLIGIBLE
    return shares[:, likely].flatten(), chances[likely].repeat(PLACES) / PLACES


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
