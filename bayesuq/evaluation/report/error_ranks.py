"""How well the uncertainty of N points finds those that are wrong, batch by batch: exact up to a limit, bounded beyond.

Up to the limit all points are kept with the rows that they are in, and the measures of `detection` have the standard
errors of `standard_errors`. Beyond it scores are counted in the fixed bins of `ranking`: a measure then lies between
two bounds, whose distance is told, and the points of one bin move it alike.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.evaluation.standard_errors import closed_form as standard_errors
from bayesuq.evaluation.standard_errors.intervals import Interval, auroc_interval, skewed_interval
from bayesuq.evaluation.standard_errors.weighted import Ranks, Weighted
from bayesuq.evaluation.streaming.ranking import Bounded, Ranking
from bayesuq.waiting import numbers


class Ranked(NamedTuple):
    """A measure of ranks, 0-d float64 each."""

    bounded: Bounded
    standard_error: Tensor  # NaN where there is none
    interval: Interval


class Points(NamedTuple):
    """Points by row, and how many rows each of them stands for."""

    scores: Tensor  # (N, k)
    wrong: Tensor  # (N, k), boolean
    weight: Tensor  # (N, k), 0 where there is no point
    times: Tensor  # (N,), 0 without any point

    @property
    def num_rows(self) -> Tensor:
        """Rows that hold a point, 0-d float64."""
        return self.times.sum()

    def rows_with(self, wrong: bool) -> Tensor:
        """Rows that hold a wrong, or a right, point, 0-d float64."""
        return self.times[((self.weight > 0) & (self.wrong == wrong)).any(dim=1)].sum()


@dataclass(frozen=True, eq=False)
class Block:
    """Points of one batch, k to a row, (N, k) each.

    Attributes:
        scores: Uncertainties, float64.
        wrong: Whether each prediction is wrong, boolean.
        weight: At least 0, float64; 0 is no point.
    """

    scores: Tensor
    wrong: Tensor
    weight: Tensor

    @classmethod
    def of(cls, scores: Tensor, wrong: Tensor, weight: Tensor | None) -> "Block":
        """Of a batch, (N, ...) each; a weight of None is 1 everywhere."""
        heavy = torch.ones_like(scores, dtype=torch.float64) if weight is None else weight
        return cls(*(part.reshape(len(scores), -1) for part in (scores.double(), wrong, heavy)))

    def wide(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same with as many points to a row, further ones at weight 0."""
        more = (0, width - self.scores.shape[1])
        wrong = functional.pad(self.wrong.to(torch.uint8), more).bool()
        return functional.pad(self.scores, more), wrong, functional.pad(self.weight, more)


class ErrorRanks:
    """Adds batches up; a limit of None keeps all points."""

    def __init__(self, limit: int | None) -> None:
        """Of no point yet."""
        self._limit = limit
        self._blocks: list[Block] = []
        self._counted: Ranking | None = None
        self._num_points = 0
        self._is_grouped = False
        self._sorted: tuple[Points, Ranks] | None = None

    def add(self, block: Block) -> None:
        """Keep or count the points of a further batch.

        Raises:
            ValueError: Beyond the limit weights other than 0 and 1, which bins do not count.
        """
        self._sorted = None
        self._num_points += int(numbers((block.weight > 0).sum())[0])
        self._is_grouped |= block.scores.shape[1] > 1
        self._blocks.append(block)
        if self._counted is not None or (self._limit is not None and self._num_points > self._limit):
            for one in self._blocks:
                self._count(one)
            self._blocks = []

    @property
    def auroc(self) -> Ranked:
        """As `detection.auroc`, of errors."""
        points, ranks = self._in_order
        if self._counted is None:
            area = Bounded.exact(ranks.auroc().value)
            error = standard_errors.error_of_auroc(ranks)
        else:
            area = self._counted.auroc()
            error = self._error_and_skewness(ranks.auroc(), points)[0]
        rows = points.rows_with(wrong=True), points.rows_with(wrong=False)
        return Ranked(area, error, auroc_interval(area.value, error, *rows))

    @property
    def aurc(self) -> Ranked:
        """As `detection.aurc`, of errors."""
        points, ranks = self._in_order
        measure = ranks.aurc()
        risk = Bounded.exact(measure.value) if self._counted is None else self._counted.aurc()
        error, skewness = self._error_and_skewness(measure, points)
        return Ranked(risk, error, skewed_interval(risk.value, error, skewness, points.num_rows).clamp(0.0, 1.0))

    @property
    def num_errors(self) -> int:
        """Points that are wrong."""
        if self._counted is not None:
            return int(self._counted.counts[1].sum())
        return sum(int((block.wrong & (block.weight > 0)).sum()) for block in self._blocks)

    def _count(self, block: Block) -> None:
        known = block.weight > 0
        if bool((block.weight[known] != 1).any()):
            raise ValueError(
                f"There are more than `limit` = {self._limit} points, with weights other than 0 and 1, and bins do not "
                "count such. Give a larger `limit`, which keeps the points, or weights of 0 and 1."
            )
        part = Ranking.of(block.scores[known], block.wrong[known], limit=0)
        self._counted = part if self._counted is None else self._counted.merge(part)

    @property
    def _in_order(self) -> tuple[Points, Ranks]:
        """All points, sorted once for both measures."""
        if self._sorted is None:
            points = self._points
            self._sorted = points, Ranks.of_positives(points.scores, points.wrong, points.weight)
        return self._sorted

    @property
    def _points(self) -> Points:
        if self._counted is not None:  # the bins that hold points, each a point that stands for many
            wrong, place = self._counted.counts.nonzero(as_tuple=True)
            times = self._counted.counts[wrong, place].double()
            return Points(place.double()[:, None], wrong.bool()[:, None], times[:, None], times)
        width = max(block.scores.shape[1] for block in self._blocks)
        parts = zip(*(block.wide(width) for block in self._blocks), strict=True)
        scores, wrong, weight = (torch.cat(part) for part in parts)
        return Points(scores, wrong, weight, (weight > 0).any(dim=1).double())

    def _error_and_skewness(self, measure: Weighted, points: Points) -> tuple[Tensor, Tensor]:
        """By the derivative in the weight of each row; none where rows of many points were counted one by one."""
        number, undefined = points.num_rows, torch.full_like(points.num_rows, torch.nan)
        is_lost = self._counted is not None and self._is_grouped
        if is_lost or number < 2 or not bool(measure.value.isfinite()):
            return undefined, undefined
        moves = standard_errors.row_slopes(measure) / points.times.clamp(min=1)
        squares, cubes = (points.times @ moves**power for power in (2, 3))
        skewness = torch.where(squares > 0, number.sqrt() * cubes / squares.clamp(min=1e-200) ** 1.5, 0.0)
        return (squares * number / (number - 1)).sqrt(), skewness
