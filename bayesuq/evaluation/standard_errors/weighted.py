"""Measures as functions of how often each row of the test set counts: what a bootstrap or a derivative needs.

A row may hold many values (an image its pixels); they count together. With all weights 1 each is the measure of that
name in `scores`, `calibration` or `detection`; with whole numbers it is that measure with rows repeated. Values may
have weights of their own beside those of the rows, 0 where they are missing: see `observed`. Scores are sorted once,
whatever the number of weightings, and by `Ranks` for all measures.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.evaluation.gaps import sums_of_rows
from bayesuq.evaluation.observed import as_weight, observe
from bayesuq.evaluation.ranks import check_losses, check_rate, check_scores, head_weight, tie_groups
from bayesuq.evaluation.scores import top_label
from bayesuq.predictive.categorical import CategoricalPredictive


@dataclass(frozen=True, eq=False)
class Weighted:
    """A measure of N rows, to be called with R weightings of them at once.

    Attributes:
        num_rows: N.
        num_values: Values in all rows, N for one a row: what a weighting costs, in time and memory.
        device: Where the weights are.
        function: Weights at least 0, float64, (R, N) -> the measure for each, (R,); NaN where it is undefined.
        num_known: Rows that hold a value, a number that an accelerator may have yet to tell; None is all.
    """

    num_rows: int
    num_values: int
    device: torch.device
    function: Callable[[Tensor], Tensor]
    num_known: int | Tensor | None = None

    @property
    def num_counting(self) -> int:
        """Rows that hold a value of weight above 0."""
        return self.num_rows if self.num_known is None else int(self.num_known)

    def __call__(self, weights: Tensor) -> Tensor:
        """The measure for each row of weights, (R, N) -> (R,)."""
        return self.function(weights)

    @property
    def value(self) -> Tensor:
        """The measure itself, every row counting once, 0-d float64."""
        return self(torch.ones(1, self.num_rows, dtype=torch.float64, device=self.device))[0]

    def __sub__(self, other: "Weighted") -> "Weighted":
        """The difference of two measures of the same rows.

        Raises:
            ValueError: Another number of rows.
        """
        if self.num_rows != other.num_rows:
            raise ValueError(f"Both must be of the same rows; got {self.num_rows} and {other.num_rows}.")
        most, known = max(self.num_values, other.num_values), min(self.num_counting, other.num_counting)
        return Weighted(self.num_rows, most, self.device, lambda weights: self(weights) - other(weights), known)


def mean(values: Tensor, weight: Tensor | None = None) -> Weighted:
    """Of a pointwise measure, such as `scores.pointwise_crps` gives.

    Args:
        values: (N, ...); anything where the weight is 0.
        weight: Of each value, of the same shape; None is 1 everywhere.

    Example:
        >>> mean(torch.tensor([1.0, 4.0]))(torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=torch.float64))
        tensor([2.5000, 4.0000], dtype=torch.float64)
    """
    if weight is None:
        rows = values.double().reshape(len(values), -1).mean(dim=1)
        return Weighted(len(rows), len(rows), rows.device, lambda weights: weights @ rows / weights.sum(dim=1))
    totals = torch.where(weight > 0, weight * values, 0.0).reshape(len(values), -1).sum(dim=1)
    sizes = weight.reshape(len(values), -1).sum(dim=1)
    known = int((sizes > 0).sum())
    return Weighted(len(sizes), len(sizes), sizes.device, lambda w: w @ totals / (w @ sizes), known)


def root_mean(squares: Tensor, weight: Tensor | None = None) -> Weighted:
    """The root of the mean of squared errors, (N, ...); see `mean`."""
    of_mean = mean(squares, weight)
    return replace(of_mean, function=lambda weights: of_mean(weights).sqrt())


def expected_calibration_error(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, weight: ArrayLike | None = None
) -> Weighted:
    """As `calibration.expected_calibration_error`, whose errors it raises."""
    counted = row_gaps(predictive, y, num_bins, weight=weight)
    gaps, sizes = counted[:, :-1], counted[:, -1]

    def error(weights: Tensor) -> Tensor:
        return (weights @ gaps).abs().sum(dim=1) / (weights @ sizes)

    return Weighted(len(gaps), gaps.numel(), gaps.device, error, int((sizes > 0).sum()))


def row_gaps(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int, *, weight: ArrayLike | None = None
) -> Tensor:
    """What each row adds to the ECE: right minus confidence by bin, and the row's weight last, (N, B + 1), float64.

    Both are over a row's number of values, so that the weight of a row is 1 where none are given.
    """
    check_count(num_bins, "num_bins")
    seen = observe(predictive, y, weight)
    confidence, right = top_label(predictive, seen.y)
    heavy = torch.ones_like(confidence) if seen.weight is None else seen.weight
    gaps, sizes = sums_of_rows(confidence, right, heavy, num_bins)
    return torch.cat([gaps, sizes.unsqueeze(1)], dim=1) / max(confidence[:1].numel(), 1)


def auroc(scores: ArrayLike, positives: ArrayLike, *, weight: ArrayLike | None = None) -> Weighted:
    """As `detection.auroc`, whose errors it raises."""
    return Ranks.of_positives(scores, positives, weight).auroc()


def average_precision(scores: ArrayLike, positives: ArrayLike, *, weight: ArrayLike | None = None) -> Weighted:
    """As `detection.average_precision`, whose errors it raises."""
    return Ranks.of_positives(scores, positives, weight).average_precision()


def false_positive_rate_at(
    scores: ArrayLike, positives: ArrayLike, true_positive_rate: float = 0.95, *, weight: ArrayLike | None = None
) -> Weighted:
    """As `detection.false_positive_rate_at`, whose errors it raises. It has no derivative: take the bootstrap."""
    return Ranks.of_positives(scores, positives, weight).false_positive_rate_at(true_positive_rate)


def aurc(scores: ArrayLike, errors: ArrayLike, *, weight: ArrayLike | None = None) -> Weighted:
    """As `detection.aurc`, whose errors it raises."""
    return Ranks.of(*check_losses(scores, errors), weight).aurc()


def augrc(scores: ArrayLike, errors: ArrayLike, *, weight: ArrayLike | None = None) -> Weighted:
    """As `detection.augrc`, whose errors it raises."""
    return Ranks.of(*check_losses(scores, errors), weight).augrc()


@dataclass(frozen=True, eq=False)
class Ranks:
    """All values by rising score, sorted once for every measure of ranks.

    Attributes:
        row: The row that each value is in, (n,).
        start: The place where each value's tie begins.
        end: The place after it.
        found: Whether each value is a positive, or its loss, float64.
        num_rows: N.
        weight: Of each value beside its row's, of mean 1, (n,); None is 1 everywhere.
        num_known: Rows that hold a value of weight above 0, see `Weighted`; None is all.
    """

    row: Tensor
    start: Tensor
    end: Tensor
    found: Tensor
    num_rows: int
    weight: Tensor | None
    num_known: int | Tensor | None

    @classmethod
    def of_positives(cls, scores: ArrayLike, positives: ArrayLike, weight: ArrayLike | None = None) -> Self:
        """Sort scores, (N, ...), of which some are of positives; the errors are those of `detection.auroc`."""
        return cls.of(*check_scores(scores, positives), weight)

    @classmethod
    def of(cls, values: Tensor, found: Tensor, weight: ArrayLike | None = None) -> Self:
        """Sort scores, (N, ...), with whether each is of a positive, or its loss, as `ranks` has checked them."""
        row = torch.arange(len(values), device=values.device).repeat_interleave(max(values[:1].numel(), 1))
        heavy: Tensor | None = None
        num_known: int | Tensor | None = None
        scores, truths = values.flatten(), found.flatten()
        if weight is not None:
            weights = as_weight(weight, values.shape).to(values.device)
            there, heavy = (weights > 0).flatten(), weights.flatten()
            num_known = (weights.reshape(len(weights), -1) > 0).any(dim=1).sum()
            if values.device.type == "cpu":  # elsewhere what weighs nothing stays: to tell how many these are is a wait
                scores, truths, row, heavy = scores[there], truths[there], row[there], heavy[there]
            heavy = heavy / (heavy.sum() / there.sum())
        ranked, order = scores.sort()
        group, sizes = tie_groups(ranked)
        end = sizes.cumsum(0)
        ordered = None if heavy is None else heavy[order]
        start, end, truths = (end - sizes)[group], end[group], truths[order].double()
        return cls(row[order], start, end, truths, len(values), ordered, num_known)

    def auroc(self) -> Weighted:
        """As `detection.auroc`."""

        def area(weights: Tensor) -> Tensor:
            w = self.of_points(weights)
            up, down = w * self.found, w * self.others
            below, up_to = self.around(down)
            return (up * (below + up_to)).sum(dim=1) / (2 * up.sum(dim=1) * down.sum(dim=1))

        return self._weighted(area)

    def average_precision(self) -> Weighted:
        """As `detection.average_precision`."""

        def precision(weights: Tensor) -> Tensor:
            w = self.of_points(weights)
            up = w * self.found
            num_positive = up.sum(dim=1, keepdim=True)
            found = num_positive - self.around(up)[0]
            called = w.sum(dim=1, keepdim=True) - self.around(w)[0]
            share = torch.where(called > 0, found / torch.where(called > 0, called, 1.0), 0.0)
            return (up * share).sum(dim=1) / num_positive.squeeze(1)

        return self._weighted(precision)

    def false_positive_rate_at(self, true_positive_rate: float) -> Weighted:
        """As `detection.false_positive_rate_at`."""
        check_rate(true_positive_rate)

        def rate(weights: Tensor) -> Tensor:
            w = self.of_points(weights)
            up, down = w * self.found, w * self.others
            num_positive, num_negative = (side.sum(dim=1, keepdim=True) for side in (up, down))
            suffices = (num_positive - self.around(up)[0]) / num_positive >= true_positive_rate
            alarms = (num_negative - self.around(down)[0]) / num_negative
            # The highest threshold that suffices has the fewest alarms.
            fewest = torch.where(suffices, alarms, torch.inf).amin(dim=1)
            return torch.where(num_positive.squeeze(1) > 0, fewest, torch.nan)

        return self._weighted(rate)

    def aurc(self) -> Weighted:
        """As `detection.aurc`."""

        def area(weights: Tensor) -> Tensor:
            w = self.of_points(weights)
            total = w.sum(dim=1, keepdim=True)
            before, after = self.around(w)
            size = after - before
            shared = torch.where(size > 0, size, 1.0)
            risk = w * self.found * (head_weight(after, total) - head_weight(before, total)) / shared
            return risk.sum(dim=1) / total.squeeze(1)

        return self._weighted(area)

    def augrc(self) -> Weighted:
        """As `detection.augrc`."""

        def area(weights: Tensor) -> Tensor:
            w = self.of_points(weights)
            total = w.sum(dim=1, keepdim=True)
            before, after = self.around(w)
            return (w * self.found * (total - (before + after) / 2)).sum(dim=1) / total.squeeze(1).square()

        return self._weighted(area)

    @cached_property
    def others(self) -> Tensor:
        """1 for what is no positive, (n,), float64."""
        return 1 - self.found

    def of_points(self, weights: Tensor) -> Tensor:
        """Weights of the values in order, (R, N) -> (R, n)."""
        return weights[:, self.row] if self.weight is None else weights[:, self.row] * self.weight

    def around(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """What lies below each value's score, and at it or below, (R, n) each."""
        sums = torch.nn.functional.pad(w.cumsum(dim=1), (1, 0))
        return sums[:, self.start], sums[:, self.end]

    def by_row(self, values: Tensor) -> Tensor:
        """The sum over each row's values, (n,) -> (N,)."""
        return values.new_zeros(self.num_rows).index_add_(0, self.row, values)

    def _weighted(self, function: Callable[[Tensor], Tensor]) -> Weighted:
        return Weighted(self.num_rows, len(self.row), self.row.device, function, self.num_known)
