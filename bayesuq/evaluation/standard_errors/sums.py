"""What is kept of a pointwise measure: its mean, its standard error and its interval from sums of fixed size.

A row r has a weighted total t_r over its values and a weight w_r; the mean is m = sum t_r / sum w_r, and what each row
moves it by is (t_r - m w_r) / sum w_r. Of these moves the sums of powers up to four are needed. They are kept about a
value near the mean, so that a mean of 1e9 with a spread of 1 cancels nothing, and moved when two states merge. Beside
them are the rows at both ends: from the largest comes how heavy the tail is.

References:
    Chan, Golub and LeVeque, "Algorithms for computing the sample variance", American Statistician 1983.
    Hall, "On the removal of skewness by transformation", JRSS B 1992, section 2.
    Dekkers, Einmahl and de Haan, "A moment estimator for the index of an extreme-value distribution", Annals of
    Statistics 1989, eq. (1.7).
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bayesuq.evaluation.standard_errors.intervals import Interval, skewed_interval
from bayesuq.waiting import numbers

ORDER = 4  # of the moments
NUM_ENDS = 64  # rows that are kept of either end
FEWEST_IN_TAIL = 10  # moves, of which a tail is told: 50 rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Sums:
    """Sums of a pointwise measure over rows, each of one or more values.

    Attributes:
        shift: A number near the mean that totals are taken about, 0-d, float64.
        moments: At (i, j) the sum over rows of (t_r - shift w_r)^i w_r^j for i + j up to 4, (5, 5), float64.
        infinite: The sum of the totals that are not finite, and in no moment, 0-d, float64.
        count: Values that count, int64, 0-d.
        rows: Rows that hold one, int64, 0-d.
        ends: (t_r - shift w_r, w_r) of the 64 finite rows where the first is least and of the 64 where it is largest,
            (128, 2), float64; zeros where there are fewer.
    """

    shift: Tensor
    moments: Tensor
    infinite: Tensor
    count: Tensor
    rows: Tensor
    ends: Tensor

    @classmethod
    def of(cls, values: Tensor, weight: Tensor | None = None) -> Self:
        """Of a pointwise measure.

        Args:
            values: (N, ...); where the weight is 0 they may be anything.
            weight: At least 0, of the same shape; None is 1 everywhere.
        """
        flat = values.double().reshape(len(values), values[:1].numel())
        heavy = torch.ones_like(flat) if weight is None else weight.double().reshape(flat.shape)
        known = heavy > 0
        flat = torch.where(known, flat, 0.0)
        in_row, per_row = known.any(dim=1), heavy.sum(dim=1)
        finite = in_row & flat.isfinite().all(dim=1)
        counts = slice(None) if numbers(finite.all())[0] else finite  # as a rule there is nothing to leave out
        totals, sizes = (heavy * flat).sum(dim=1)[counts], per_row[counts]
        # Twice, the second time about the mean: equal rows then differ by exactly 0.
        shift = totals[0] / sizes[0] if len(totals) else flat.new_zeros(())
        around = (heavy * (flat - shift)).sum(dim=1)[counts]
        move = around.sum() / sizes.sum() if len(totals) else flat.new_zeros(())
        moments = _moments(around - move * sizes, sizes)
        ends = _both_ends(torch.stack([around - move * sizes, sizes], dim=1))
        infinite = flat.new_zeros(())
        if counts is finite:
            unbounded = in_row & ~finite
            # A row that is not finite still weighs.
            moments[0] += _moments(flat.new_zeros(int(unbounded.sum())), per_row[unbounded])[0]
            infinite = (heavy * flat).sum(dim=1)[unbounded].sum()
        return cls(
            shift=shift + move,
            moments=moments,
            infinite=infinite,
            count=known.sum(),
            rows=in_row.sum(),
            ends=ends,
        )

    @property
    def weight(self) -> Tensor:
        """Sum of all weights: the number of values where none were given."""
        return self.moments[0, 1]

    @property
    def mean(self) -> Tensor:
        """Over all values, weighted; NaN of none."""
        return torch.where(self.rows > 0, self.shift + (self.moments[1, 0] + self.infinite) / self.weight, torch.nan)

    @property
    def standard_error(self) -> Tensor:
        """Of the mean, over rows, as `standard_errors.of_mean`; rows may differ in size. NaN for one row."""
        error = (self._moves(2).clamp(min=0.0) * self.rows / (self.rows - 1)).sqrt() / self.weight
        return torch.where(self._is_defined, error, torch.nan)

    @property
    def root_standard_error(self) -> Tensor:
        """Of the root of the mean, by the delta method; 0 where the mean is."""
        root = self.mean.clamp(min=0.0).sqrt()
        return torch.where(root > 0, self.standard_error / torch.where(root > 0, 2 * root, 1.0), 0.0 * root)

    @property
    def skewness(self) -> Tensor:
        """Of the rows' moves, 0-d; 0 where nothing moves."""
        spread = self._moves(2)
        value = self.rows.double().sqrt() * self._moves(3) / spread.clamp(min=torch.finfo(spread.dtype).tiny) ** 1.5
        return torch.where(self._is_defined & (spread > 0), value, 0.0)

    @property
    def concentration(self) -> Tensor:
        """Sum over rows of (share of the squared moves)^2, from 1 / N to 1: a quarter where one row holds half."""
        spread = self._moves(2)
        return torch.where(self._is_defined & (spread > 0), self._moves(4) / spread.square(), 0.0)

    @property
    def tail_index(self) -> Tensor:
        """The power a of the tail P(|move| > x) ~ x^-a, by the largest moves: the variance is infinite below 2.

        These are a fifth of all, or 3 sqrt N, as of Pareto-smoothed importance sampling, or 63; and half of them, whose
        index must not be larger by much: of a few large values among small ones it is. The larger of both is taken.

        Returns:
            0-d float64; infinite for tails that are lighter than every power, for fewer than 50 rows, and where all
            moves taken are equal.
        """
        rows = int(self.rows)
        number = min(rows // 5, int(3 * math.sqrt(rows)), NUM_ENDS - 1)
        if number < FEWEST_IN_TAIL or not bool(self._is_defined):
            return torch.full_like(self.weight, torch.inf)
        sizes = self._end_moves.abs().sort(descending=True).values
        return _index(sizes[: number + 1]).maximum(_index(sizes[: number // 2 + 1]))

    @property
    def interval(self) -> Interval:
        """95 % for the mean, with the skewness taken out (Hall 1992); NaN for one row.

        It holds that of one row more, as far out as the furthest: of what is rarer than one in N no sample tells.
        """
        own, more = (
            skewed_interval(each.mean, each.standard_error, each.skewness, each.rows)
            for each in (self, self._with_furthest_again())
        )
        return Interval(own.lower.minimum(more.lower), own.upper.maximum(more.upper))

    def merge(self, other: Self) -> Self:
        """Over the rows of both."""
        weight = self.weight + other.weight
        shares = [torch.where(each.weight > 0, each.weight / weight, 0.0) for each in (self, other)]
        shift = torch.where(shares[1] == 0, self.shift, other.shift)
        near = self.shift + shares[1] * (other.shift - self.shift)
        shift = torch.where((shares[0] > 0) & (shares[1] > 0), near, shift)
        return type(self)(
            shift=shift,
            moments=self._about(shift) + other._about(shift),
            infinite=self.infinite + other.infinite,
            count=self.count + other.count,
            rows=self.rows + other.rows,
            ends=_both_ends(torch.cat([self._ends_about(shift), other._ends_about(shift)])),
        )

    def moved(self, shift: Tensor) -> Self:
        """The same sums about another number."""
        return replace(self, shift=shift, moments=self._about(shift), ends=self._ends_about(shift))

    @property
    def _is_defined(self) -> Tensor:
        return (self.rows > 1) & (self.infinite == 0)

    def _with_furthest_again(self) -> Self:
        """The same with the row that moves the mean most counting twice."""
        row = self.ends[self._end_moves.abs().argmax()].unsqueeze(0)
        return replace(self, moments=self.moments + _moments(row[:, 0], row[:, 1]), rows=self.rows + 1)

    @property
    def _end_moves(self) -> Tensor:
        return self.ends[:, 0] - self.moments[1, 0] / self.weight * self.ends[:, 1]

    def _ends_about(self, shift: Tensor) -> Tensor:
        away, sizes = self.ends.unbind(dim=1)
        return torch.stack([away + (self.shift - shift) * sizes, sizes], dim=1)

    def _moves(self, power: int) -> Tensor:
        """sum_r (t_r - m w_r)^power."""
        step = -self.moments[1, 0] / self.weight
        terms = [math.comb(power, k) * step**k * self.moments[power - k, k] for k in range(power + 1)]
        return torch.stack(terms).sum()

    def _about(self, shift: Tensor) -> Tensor:
        """The moments about another number: (t - b w)^i = sum_k C(i, k) (t - a w)^(i - k) ((a - b) w)^k."""
        places, factors = (table.to(self.moments.device) for table in (PLACES, FACTORS))
        steps = (self.shift - shift) ** torch.arange(ORDER + 1, device=self.moments.device)
        return (factors * steps * self.moments.flatten()[places]).sum(dim=1).view(ORDER + 1, ORDER + 1)


def _terms() -> tuple[Tensor, Tensor]:
    """Of each moment (i, j), row i (ORDER + 1) + j, the moments (i - k, j + k) that it is made of, and C(i, k)."""
    size = ORDER + 1
    places, factors = torch.zeros(size**2, size).long(), torch.zeros(size**2, size).double()
    for i in range(size):
        for j in range(size - i):
            for k in range(i + 1):
                places[i * size + j, k] = (i - k) * size + j + k
                factors[i * size + j, k] = math.comb(i, k)
    return places, factors


PLACES, FACTORS = _terms()


def _moments(totals: Tensor, sizes: Tensor) -> Tensor:
    every = _powers(totals).T @ _powers(sizes)
    order = torch.arange(ORDER + 1, device=totals.device)
    return torch.where(order.unsqueeze(1) + order <= ORDER, every, 0.0)


def _index(sizes: Tensor) -> Tensor:
    """The tail index by all but the last of the largest sizes, which fall, (k + 1,)."""
    logs = (sizes[:-1] / sizes[-1].clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(min=1.0).log()
    first, second = logs.mean(), logs.square().mean()
    shape = first + 1 - 0.5 / (1 - first.square() / second)
    return torch.where(shape > 0, 1 / shape, torch.inf)  # not a number where all are equal


def _both_ends(rows: Tensor) -> Tensor:
    """The rows of least and of largest first number, (N, 2) -> (128, 2); where there are fewer, rows of no weight."""
    if len(rows) <= 2 * NUM_ENDS:
        return torch.nn.functional.pad(rows, (0, 0, 0, 2 * NUM_ENDS - len(rows)))
    least, largest = (rows[:, 0].topk(NUM_ENDS, largest=side).indices for side in (False, True))
    return rows[torch.cat([least, largest])]


def _powers(values: Tensor) -> Tensor:
    columns = [torch.ones_like(values)]
    for _ in range(ORDER):
        columns.append(columns[-1] * values)
    return torch.stack(columns, dim=1)
