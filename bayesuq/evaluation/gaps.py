"""Right minus confidence, summed by bin: the calibration error, how sure it is, and what a calibrated model would show.

The ECE is a sum of absolute values, and so above 0 for a calibrated predictive too, with a kink where its gaps are. A
plain bootstrap starts from the gaps as they are seen, noise included, and is too wide there. Here a gap that its own
noise explains (below 1.64 standard deviations) is taken as 0 first: that of all bins together, and then what is left of
each bin's. What remains is simulated bin by bin: as many points as there are, and of them as many right as their
confidence, the gap of all bins, and the bin's own share where it is another, say.

References:
    Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks", ICML 2017, eq. (3).
    Diaconis and Zabell, "Closed form summation for classical distributions", Statistical Science 1991, for the mean
    absolute deviation of a binomial.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.evaluation.binning import added, bin_index, sums_by_bin
from bayesuq.randomness import generator
from bayesuq.waiting import numbers

CLEAR_GAP = 1.645  # standard deviations, above which a gap is taken as real
FEW_ROWS = 50  # below which a gap above 0 may be real and not clear
PRIOR_POINTS = 2  # of the stated confidence, beside those of a bin whose gap is real: few points tell little of a share
NORMAL_FROM = 1e4  # variance of a count from which its law is as good as normal


@dataclass(frozen=True, eq=False, kw_only=True)
class Gaps:
    """What is kept of N rows of one or more points: of fixed size, and it adds up over batches.

    Attributes:
        weight: Sum of weights by bin, (B,), float64; the number of points where there are none.
        square_weight: Sum of squared weights by bin, (B,), float64.
        confidence: Weighted sum of confidences by bin, (B,), float64.
        gap: Weighted sum of right minus confidence by bin, (B,), float64.
        products: Sum over rows of the products of their own gap sums, and of their weight last, (B + 1, B + 1).
        rows: Rows that hold a point, int64, 0-d.
        points: Points of weight above 0, int64, 0-d.
    """

    weight: Tensor
    square_weight: Tensor
    confidence: Tensor
    gap: Tensor
    products: Tensor
    rows: Tensor
    points: Tensor

    @classmethod
    def of(cls, confidence: Tensor, right: Tensor, weight: Tensor | None, num_bins: int) -> Self:
        """Of a batch.

        Args:
            confidence: In [0, 1], (N, ...), float64.
            right: Whether each point is right, (N, ...).
            weight: At least 0, of the same shape; None is 1 everywhere.
            num_bins: B.
        """
        check_count(num_bins, "num_bins")
        heavy = torch.ones_like(confidence) if weight is None else weight
        row_sums, sizes = sums_of_rows(confidence, right, heavy, num_bins)
        counted = torch.cat([row_sums, sizes.unsqueeze(1)], dim=1)
        bins, flat = bin_index(confidence.flatten(), num_bins), heavy.flatten()

        def by_bin(values: Tensor) -> Tensor:
            return sums_by_bin(bins, num_bins, values)

        return cls(
            weight=by_bin(flat),
            square_weight=by_bin(flat.square()),
            confidence=by_bin(flat * confidence.flatten()),
            gap=row_sums.sum(dim=0),
            products=counted.T @ counted,
            rows=(sizes > 0).sum(),
            points=(flat > 0).sum(),
        )

    def merge(self, other: Self) -> Self:
        """Of the rows of both."""
        return added(self, other)

    @property
    def expected_calibration_error(self) -> Tensor:
        """ECE, a fraction, 0-d; NaN of no point."""
        return self.gap.abs().sum() / self.weight.sum()

    @property
    def floor(self) -> Tensor:
        """Expected ECE of a calibrated predictive of as many points at these confidences, a fraction, 0-d.

        Exact but for the spread of confidences within a bin; with rows of many points, which are not independent, of
        normal sums with the variance over rows that is seen.
        """
        if self._is_grouped:
            expected = (2 / math.pi * self._row_variance).sqrt()
        else:
            number, stated = self._number.round(), self._stated
            expected = self._mean_weight * mean_absolute_deviation(number, stated)
        return torch.where(self.weight > 0, expected, 0.0).sum() / self.weight.sum()

    def standard_error(self, *, num_replicates: int, seed: int) -> Tensor:
        """Of the ECE, over rows; NaN for one row. The arguments are those of `of_expected_calibration_error`."""
        check_count(num_replicates, "num_replicates", minimum=2)
        check_count(seed, "seed", minimum=0)
        if int(self.rows) < 2:
            return torch.full_like(self.weight[0], torch.nan)
        noise = generator(seed, device=self.weight.device)
        draw = self._normal_errors if self._is_grouped else self._binomial_errors
        return draw(num_replicates, noise).std()

    @property
    def is_bounded(self) -> bool:
        """Whether the standard error is but an upper bound: for fewer than 50 rows that are right more often than said.

        Where nothing is wrong, few rows do not tell a predictive that knows all from one that was lucky.
        """
        return int(self.rows) < FEW_ROWS and bool(self.gap.sum() > 0)

    def _binomial_errors(self, num_replicates: int, noise: torch.Generator) -> Tensor:
        number, stated, there = self._number, self._stated, self.weight > 0
        expected = self._expected
        share = torch.where(there, stated + self.gap / self.weight - expected, 0.0)
        is_real = share.abs() > CLEAR_GAP * (expected * (1 - expected) / number.clamp(min=1e-12)).sqrt()
        true = expected + torch.where(is_real, share * number / (number + PRIOR_POINTS), 0.0)
        counts = torch.poisson(number.expand(num_replicates, -1), generator=noise)
        hits = torch.binomial(counts, true.clamp(0.0, 1.0).expand_as(counts), generator=noise)
        sums = (hits - counts * stated).abs() @ self._mean_weight
        return sums / (counts @ self._mean_weight).clamp(min=float(self._mean_weight.max()))

    def _normal_errors(self, num_replicates: int, noise: torch.Generator) -> Tensor:
        is_real = self.gap.abs() > CLEAR_GAP * self.products.diagonal()[:-1].sqrt()
        start = torch.cat([torch.where(is_real, self.gap, 0.0), self.weight.sum()[None]])
        drawn = start + normal_draws(self.products, num_replicates, noise)
        return drawn[:, :-1].abs().sum(dim=1) / drawn[:, -1].clamp(min=float(self.weight.sum()) / int(self.rows))

    @property
    def _expected(self) -> Tensor:
        """Share of right ones in each bin, but for its own gap, (B,): as stated, or with the gap of all bins together.

        Where that is real and below 0, all bins are as much too sure; where it is above 0, errors are fewer than
        stated by one factor, which leaves none where all is right.
        """
        stated, gap = self._stated, self.gap.sum()
        variance = (self.square_weight * stated * (1 - stated)).sum()
        if not bool(gap.abs() > CLEAR_GAP * variance.sqrt()):
            return stated
        if float(gap) < 0:
            return (stated + gap / self.weight.sum()).clamp(min=0.0)
        return 1 - (1 - stated) * (1 - gap / (self.weight * (1 - stated)).sum()).clamp(min=0.0)

    @property
    def _is_grouped(self) -> bool:
        return bool(numbers(self.points > self.rows)[0])

    @property
    def _number(self) -> Tensor:
        """Independent points that each bin is worth, (B,): Kish's effective number."""
        return torch.where(self.weight > 0, self.weight.square() / self.square_weight, 0.0)

    @property
    def _mean_weight(self) -> Tensor:
        return torch.where(self.weight > 0, self.square_weight / self.weight, 0.0)

    @property
    def _stated(self) -> Tensor:
        return torch.where(self.weight > 0, self.confidence / self.weight, 0.0).clamp(0.0, 1.0)

    @property
    def _row_variance(self) -> Tensor:
        """Of each bin's sum, over rows, (B,)."""
        return (self.products.diagonal()[:-1] - self.gap.square() / self.rows).clamp(min=0.0)


def sums_of_rows(confidence: Tensor, right: Tensor, weight: Tensor, num_bins: int) -> tuple[Tensor, Tensor]:
    """Weighted sums of right minus confidence by row and bin, (N, B), and each row's weight, (N,), float64."""
    stated, hits, heavy = (part.double().reshape(len(part), -1) for part in (confidence, right, weight))
    sums = stated.new_zeros(len(stated), num_bins)
    return sums.scatter_add_(1, bin_index(stated, num_bins), heavy * (hits - stated)), heavy.sum(dim=1)


def mean_absolute_deviation(number: Tensor, share: Tensor) -> Tensor:
    """E|K - n p| of K ~ Binomial(n, p), elementwise, by De Moivre's formula: 2 m C(n, m) p^m (1 - p)^(n - m + 1).

    m is the whole number above n p. Of large n, where the terms cancel, sqrt(2 n p (1 - p) / pi) of the normal law.
    """
    variance = number * share * (1 - share)
    m = (number * share).floor() + 1
    inside = (share > 0) & (share < 1) & (m <= number) & (variance < NORMAL_FROM)
    n, k, p = (torch.where(inside, each, fallback) for each, fallback in ((number, 1.0), (m, 1.0), (share, 0.5)))
    log_choose = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    exact = 2 * k * torch.exp(log_choose + k * p.log() + (n - k + 1) * torch.log1p(-p))
    return torch.where(inside, exact, torch.where(variance >= NORMAL_FROM, (2 / math.pi * variance).sqrt(), 0.0))


def normal_draws(covariance: Tensor, num_replicates: int, noise: torch.Generator) -> Tensor:
    """Draws of a centred normal law, (R, K), whose covariance may be singular, as where bins are empty."""
    # The symmetric root; what rounding leaves of 0 would have a root far from 0.
    values, vectors = torch.linalg.eigh(covariance)
    values = torch.where(values > 1e-13 * values.max(), values, 0.0)
    root = vectors * values.sqrt() @ vectors.T
    size = num_replicates, len(values)
    return torch.randn(size, generator=noise, dtype=covariance.dtype, device=covariance.device) @ root
