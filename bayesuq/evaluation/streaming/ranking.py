"""Scores and what they should find, streamed: exact while they are few, and a histogram with rigorous bounds beyond.

A measure of ranks needs all scores in order. Up to a limit they are kept, and every measure is exact. Beyond it they
are counted in 2^16 fixed bins, 512 to each factor of two from 2^-40 to 2^24 on either side of zero: the same bins for
any data, so that states of any batches and machines add up to the same counts. Within a bin the order is unknown; each
measure is then bounded by its value in the best and in the worst order, ties included.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, check_fraction
from bayesuq.evaluation import detection
from bayesuq.evaluation.calibration import equal_mass_gap
from bayesuq.evaluation.ranks import check_scores, head_weight, rising

NUM_BINS = 2**16
MIDDLE = NUM_BINS // 2  # the bin that 0 opens
DROPPED_BITS = 52 - 9  # of a float64's mantissa, which leaves 2^9 = 512 bins to each factor of two
SMALLEST = 2.0**-40
BELOW_LARGEST = 2.0**24 * (1 - 2.0**-53)
DEFAULT_LIMIT = 2**22  # scores kept: 36 MiB


@dataclass(frozen=True, eq=False)
class Bounded:
    """A measure that is known to lie between two bounds.

    Attributes:
        value: The middle of the bounds, or the measure itself where they are equal, 0-d float64.
        lower: At most the exact value, but for rounding.
        upper: At least the exact value, but for rounding.
    """

    value: Tensor
    lower: Tensor
    upper: Tensor

    @classmethod
    def exact(cls, value: Tensor) -> Self:
        """Known without doubt."""
        return cls(value, value, value)

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Self:
        """Known to lie between these."""
        return cls((lower + upper) / 2, lower, upper)


@dataclass(frozen=True, eq=False, kw_only=True)
class Ranking:
    """Scores of positives and negatives, kept or counted. Its measures are those of `detection`, with bounds.

    Attributes:
        limit: Most scores that are kept.
        blocks: The scores kept, float64, and which of them are positives, boolean, (n,) each, in blocks of falling
            size; none once they are more than `limit`.
        counts: Negatives and positives in each bin, int64, (2, 2^16); (2, 0) while the scores are kept.
        sums: Sum of their scores, float64, of the same shape.
    """

    limit: int
    blocks: tuple[tuple[Tensor, Tensor], ...]
    counts: Tensor
    sums: Tensor

    @classmethod
    def of(cls, scores: ArrayLike, positives: ArrayLike, *, limit: int = DEFAULT_LIMIT) -> Self:
        """Of one batch.

        Args:
            scores: Any real numbers, larger where a positive is more likely, any shape.
            positives: Whether each point is a positive, boolean or 0 and 1, of the same shape.
            limit: Most scores that are kept and measured exactly; 0 keeps none.

        Raises:
            TypeError: Not numbers.
            ValueError: NaN scores, positives that are not 0 or 1, shapes that differ, a negative limit.

        Example:
            >>> ranking = Ranking.of([3.0, 1.0], [True, False]).merge(Ranking.of([4.0, 3.0], [True, False]))
            >>> ranking.auroc().value  # 3 1/2 of 4 pairs are in order
            tensor(0.8750, dtype=torch.float64)
        """
        check_count(limit, "limit", minimum=0)
        values, flags = check_scores(scores, positives)
        counts = torch.zeros(2, 0, dtype=torch.int64, device=values.device)
        block = values.flatten().double(), flags.flatten()
        kept = cls(limit=limit, blocks=(block,), counts=counts, sums=counts.double())
        return kept if kept.num_points <= limit else kept.counted()

    @classmethod
    def empty(cls, *, limit: int = DEFAULT_LIMIT, device: torch.device | str = "cpu") -> Self:
        """Of no point."""
        nothing = torch.zeros(0, device=device)
        return cls.of(nothing, nothing.bool(), limit=limit)

    @property
    def scores(self) -> Tensor:
        """The scores kept, float64, (n,)."""
        return torch.cat([scores for scores, _ in self.blocks]) if self.blocks else self.sums.new_zeros(0)

    @property
    def positives(self) -> Tensor:
        """Which of the scores kept are positives, boolean, (n,)."""
        return torch.cat([flags for _, flags in self.blocks]) if self.blocks else self.counts.new_zeros(0).bool()

    @property
    def is_exact(self) -> bool:
        """Whether all scores are kept."""
        return self.counts.shape[1] == 0

    @property
    def num_points(self) -> int:
        """Points seen."""
        return sum(len(scores) for scores, _ in self.blocks) if self.is_exact else int(self.counts.sum())

    def counted(self) -> Self:
        """The same points as a histogram."""
        if not self.is_exact:
            return self
        scores = self.scores
        bins = bin_of(scores) + NUM_BINS * self.positives
        counts, sums = (torch.bincount(bins, weights=each, minlength=2 * NUM_BINS) for each in (None, scores))
        return replace(self, blocks=(), counts=counts.view(2, NUM_BINS), sums=sums.view(2, NUM_BINS))

    def merge(self, other: Self) -> Self:
        """The ranking of the points of both, exact where they are at most `limit`.

        Raises:
            ValueError: Another limit.
        """
        if self.limit != other.limit:
            raise ValueError(f"Only rankings of one limit merge; got {self.limit} and {other.limit}.")
        if self.is_exact and other.is_exact and self.num_points + other.num_points <= self.limit:
            return replace(self, blocks=_settled([*self.blocks, *other.blocks]))
        one, two = self.counted(), other.counted()
        return replace(one, counts=one.counts + two.counts, sums=one.sums + two.sums)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        blocks = tuple((scores.to(device), flags.to(device)) for scores, flags in self.blocks)
        return replace(self, blocks=blocks, counts=self.counts.to(device), sums=self.sums.to(device))

    def auroc(self) -> Bounded:
        """As `detection.auroc`."""
        if self.is_exact:
            return Bounded.exact(detection.auroc(self.scores, self.positives))
        negatives, positives = self.counts
        pairs = positives.sum().double() * negatives.sum()
        in_order = (positives * (negatives.cumsum(0) - negatives)).sum().double()
        return Bounded.between(in_order / pairs, (in_order + (positives * negatives).sum()) / pairs)

    def average_precision(self) -> Bounded:
        """As `detection.average_precision`."""
        if self.is_exact:
            return Bounded.exact(detection.average_precision(self.scores, self.positives))
        alarms, found = (side.flip(0).double() for side in self.counts)
        before, alarms_before = found.cumsum(0) - found, alarms.cumsum(0) - alarms
        called = (before + found + alarms_before).clamp(min=1)
        # At best all positives of a bin are found at once, before its negatives.
        best = found * (before + found) / called
        # At worst one by one after its negatives: sum_i f(i) with f(i) = (before + i) / (before + i + all negatives),
        # which rises with i and so is at least the integral from 0, and `found` times its first term.
        behind = alarms_before + alarms
        integral = found - behind * torch.log1p(found / (before + behind).clamp(min=1))
        worst = torch.maximum(integral, found * (before + 1) / (before + 1 + behind))
        worst = torch.where(behind > 0, worst, found).minimum(best)
        return Bounded.between(worst.sum() / found.sum(), best.sum() / found.sum())

    def false_positive_rate_at(self, true_positive_rate: float = 0.95) -> Bounded:
        """As `detection.false_positive_rate_at`."""
        if self.is_exact:
            return Bounded.exact(detection.false_positive_rate_at(self.scores, self.positives, true_positive_rate))
        detection.check_rate(true_positive_rate)
        alarms, found = (side.flip(0) for side in self.counts)
        first = (found.cumsum(0).double() / found.sum() >= true_positive_rate).long().argmax()
        upper = alarms.cumsum(0)[first].double()
        rates = (upper - alarms[first]) / alarms.sum(), upper / alarms.sum()
        defined = found.sum() > 0
        return Bounded.between(*(torch.where(defined, rate, torch.nan) for rate in rates))

    def aurc(self) -> Bounded:
        """As `detection.aurc`, with the positives as errors."""
        if self.is_exact:
            return Bounded.exact(detection.aurc(self.scores, self.positives))
        errors, after, before, total = self._places()
        # The earlier an error stands the more selective risks it is in.
        early = head_weight(before + errors, total) - head_weight(before, total)
        late = head_weight(after, total) - head_weight(after - errors, total)
        return Bounded.between(late.sum() / total, early.sum() / total)

    def augrc(self) -> Bounded:
        """As `detection.augrc`, with the positives as errors."""
        if self.is_exact:
            return Bounded.exact(detection.augrc(self.scores, self.positives))
        errors, after, before, total = self._places()
        early = errors * (total - before - errors / 2)
        late = errors * (total - after + errors / 2)
        return Bounded.between(late.sum() / total.square(), early.sum() / total.square())

    def _places(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        errors, both = self.counts[1].double(), self.counts.sum(dim=0)
        after = both.cumsum(0)
        return errors, after.double(), (after - both).double(), after[-1].double()

    def quantile(self, level: float) -> Bounded:
        """The smallest score with at least a share `level` of all scores at or below it.

        Raises:
            ValueError: `level` outside (0, 1), or no point.
        """
        check_fraction(level, "level")
        if self.num_points == 0:
            raise ValueError("There is no quantile of no point.")
        if self.is_exact:
            ranked = rising(self.scores)
            shares = torch.arange(1, len(ranked) + 1, dtype=torch.float64, device=ranked.device) / len(ranked)
            return Bounded.exact(ranked[(shares >= level).long().argmax()])
        up_to = self.counts.sum(dim=0).cumsum(0)
        held = int((up_to.double() / up_to[-1] >= level).long().argmax())
        return Bounded.between(*(self.sums.new_tensor(end) for end in bin_range(held)))

    def adaptive_calibration_error(self, num_bins: int = 15) -> Bounded:
        """As `calibration.adaptive_calibration_error`, of scores confidence - 1 and positives that are right.

        Raises:
            ValueError: Fewer than one bin.
        """
        check_count(num_bins, "num_bins")
        if self.is_exact:
            return Bounded.exact(equal_mass_gap(self.scores, self.positives, num_bins))
        both = self.counts.sum(dim=0)
        after, total = both.cumsum(0), both.sum()
        gap = self.counts[1] - both - self.sums.sum(dim=0)  # of right minus confidence
        middle = ((2 * after - both) * num_bins // (2 * total)).clamp(max=num_bins - 1)
        value = torch.bincount(middle, weights=gap, minlength=num_bins).abs().sum() / total
        # Where the first and the last point of a fine bin go; all between them are known to go there too.
        first = (2 * (after - both) + 1) * num_bins // (2 * total)
        last = (2 * after - 1) * num_bins // (2 * total)
        split = (first < last) & (both > 0)
        core = torch.bincount(middle[~split], weights=gap[~split], minlength=num_bins)
        doubt = self._doubt(core, first, last, split.nonzero().squeeze(1)) / total
        return Bounded(value, (value - doubt).clamp(min=0.0), (value + doubt).clamp(max=1.0))

    def _doubt(self, core: Tensor, first: Tensor, last: Tensor, split: Tensor) -> Tensor:
        """How much sum_b |gap_b| may change with where the points of split fine bins go."""
        # A right point raises the gap of its bin by -score, a wrong one lowers it by 1 + score.
        raising, lowering = -self.sums[1][split], self.counts[0][split] + self.sums[0][split]
        spans = list(zip(first[split].tolist(), last[split].tolist(), strict=True))
        lowest, highest = core.clone(), core.clone()
        for (begin, end), up, down in zip(spans, raising, lowering, strict=True):
            highest[begin : end + 1] += up
            lowest[begin : end + 1] -= down
        doubt = core.new_zeros(())
        for (begin, end), up, down in zip(spans, raising, lowering, strict=True):
            reached = slice(begin, end + 1)
            # Between bins whose gaps have one sign whatever goes where, it does not matter what goes where.
            if not ((lowest[reached] >= 0).all() or (highest[reached] <= 0).all()):
                doubt += 2 * (up + down)
        return doubt


def _settled(blocks: list[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], ...]:
    """Each block joined with those after it that are as long: a score is copied log n times, not once a batch."""
    settled: list[tuple[Tensor, Tensor]] = []
    for block in blocks:
        settled.append(block)
        while len(settled) > 1 and len(settled[-2][0]) <= 2 * len(settled[-1][0]):
            after, before = settled.pop(), settled.pop()
            settled.append((torch.cat([before[0], after[0]]), torch.cat([before[1], after[1]])))
    return tuple(settled)


def bin_of(scores: Tensor) -> Tensor:
    """Which of the 2^16 bins each float64 score falls in, int64; it never falls as the score rises."""
    # The bits of a positive float64 rise with its value: exponent first, then mantissa.
    bits = scores.abs().clamp(SMALLEST, BELOW_LARGEST).view(torch.int64) >> DROPPED_BITS
    code = bits - _code_of_smallest()
    return torch.where(scores < 0, MIDDLE - 1 - code, MIDDLE + code)


def bin_range(index: int) -> tuple[float, float]:
    """The least and the greatest score that bin `index` may hold; infinite at the ends, 0 in the middle."""
    code = index - MIDDLE if index >= MIDDLE else MIDDLE - 1 - index
    codes = torch.tensor([code, code + 1]) + _code_of_smallest()
    lower, upper = (codes << DROPPED_BITS).view(torch.float64).tolist()
    lower = 0.0 if code == 0 else lower
    upper = float("inf") if code == MIDDLE - 1 else upper
    return (lower, upper) if index >= MIDDLE else (-upper, -lower)


def _code_of_smallest() -> int:
    return int(torch.tensor(SMALLEST, dtype=torch.float64).view(torch.int64)) >> DROPPED_BITS
