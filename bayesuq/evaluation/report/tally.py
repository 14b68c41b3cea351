"""What a report keeps of the points that it has seen: sums of fixed size, and the ranks of uncertainties.

Every mean and its standard error, the log score to the calibration error, is that of all points at once whatever the
batches; ranks are exact up to a limit and bounded beyond it (see `error_ranks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.evaluation.gaps import Gaps
from bayesuq.evaluation.kinds import check_known
from bayesuq.evaluation.observed import has_weight, observe
from bayesuq.evaluation.report.error_ranks import Block, ErrorRanks, Ranked
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.standard_measures import (
    BOUND,
    CALIBRATION_ERROR,
    COVERAGE_LEVEL,
    LOG_SCORE,
    Formula,
    Pointwise,
    by_entropy,
    impossible,
    joined,
    num_impossible,
    pointwise_measures,
)
from bayesuq.evaluation.scores import top_label
from bayesuq.evaluation.standard_errors.intervals import Interval, share_interval
from bayesuq.evaluation.standard_errors.sums import Sums
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.thinned import num_draws_of
from bayesuq.waiting import in_one_read, note

REPLICATES = 200  # simulated test sets, for the error of the calibration error
FEWEST_ROWS = 10  # of which one may hold the spread without a word
HELD_BY_FEW = 0.25  # of `Sums.concentration`: one row holds half of the spread, or two of them two thirds
FELT = 0.1  # of the same, beyond which a heavy tail is felt; that of bounded values falls below it as rows are added
FINITE_VARIANCE = 2.0  # the tail index above which there is one
NOTABLE = 2.0  # standard errors that a coverage is off


@dataclass(frozen=True, eq=False)
class MeanOf:
    """One mean of values of points, and how it is told."""

    name: str
    unit: str
    remark: str
    formula: Formula
    is_of_errors: bool
    least: float
    most: float
    sums: Sums

    @classmethod
    def of(cls, part: Pointwise) -> "MeanOf":
        """Of a batch."""
        sums = Sums.of(part.values, part.weight)
        told = part.name, part.unit, part.remark, part.formula, part.is_of_errors
        return cls(*told, part.least, part.most, sums)

    def merge(self, other: "MeanOf") -> "MeanOf":
        """Of the points of both; of two remarks the one that says more."""
        return replace(self, sums=self.sums.merge(other.sums), remark=max(self.remark, other.remark, key=len))

    def measure(self, num_impossible: int) -> Measure:
        """The number for the report."""
        if self.formula == "root":
            interval = self.sums.interval.sqrt()
            value, error = self.sums.mean.clamp(min=0.0).sqrt(), self.sums.root_standard_error
            error = error if self.sums.rows > 1 else self.sums.standard_error
            return Measure.of(self.name, value, error, self.unit, joined(self.remark, self._in_doubt), interval)
        value, error = self.sums.mean, self.sums.standard_error
        if self.formula == "mean":
            told = impossible(num_impossible) if self.name == LOG_SCORE else ""
            remark = joined(self.remark, told, self._in_doubt)
            interval = self.sums.interval.clamp(self.least, self.most)
            return Measure.of(self.name, value, error, self.unit, remark, interval)
        off = self._off
        side = "" if off is None else f"{'above' if off > 0 else 'below'} it by {abs(off):.1f} standard errors"
        measure = Measure.of(self.name, value, error, self.unit, joined(self.remark, side), self._share_interval)
        return replace(measure, off=off)

    @property
    def _number(self) -> Tensor:
        """Independent points that a share is worth where its error tells nothing: rows, or less by their weights."""
        return self.sums.moments[0, 1].square() / self.sums.moments[0, 2]

    @property
    def _is_grouped(self) -> bool:
        return bool(self.sums.count > self.sums.rows)

    @property
    def _share_interval(self) -> Interval:
        if self._is_grouped and self.sums.standard_error > 0:
            return self.sums.interval.clamp(0.0, 1.0)
        return share_interval(self.sums.mean, self.sums.standard_error, self._number)

    @property
    def _off(self) -> float | None:
        """How far a coverage is from what it is to be; of counts, which may cover more, only how far below."""
        if self.formula == "share" or self.sums.rows < 2:
            return None
        error = (COVERAGE_LEVEL * (1 - COVERAGE_LEVEL) / self._number).sqrt()
        if self._is_grouped and self.sums.standard_error > 0:
            error = self.sums.standard_error
        off = float((self.sums.mean - COVERAGE_LEVEL) / error)
        return off if off < -NOTABLE or (off > NOTABLE and self.formula != "coverage of counts") else None

    @property
    def _in_doubt(self) -> str:
        """Why the standard error, or the interval too, says less than it seems to."""
        index, held = float(self.sums.tail_index), float(self.sums.concentration)
        if self.is_of_errors and index < FINITE_VARIANCE and held > FELT:
            return f"tail index {index:.1f}, below 2: no interval is to be trusted"
        is_held = self.sums.rows >= FEWEST_ROWS and held > HELD_BY_FEW
        return "few rows hold its spread: the error is too small" if is_held else ""


class Tally:
    """Adds batches of points up into the measures of a report."""

    def __init__(self, num_bins: int, limit: int | None) -> None:
        """Of no point yet; a limit of None ranks all points exactly."""
        self.num_points = self.num_missing = self.num_impossible = self.num_samples = 0
        self._num_bins, self._limit, self._num_classes = num_bins, limit, 0
        self._means: list[MeanOf] = []
        self._gaps: Gaps | None = None
        self._ranks: ErrorRanks | None = None

    @torch.no_grad()
    @in_one_read()
    def add(self, predictive: PredictiveDistribution, y: ArrayLike, weight: ArrayLike | None) -> None:
        """Count a further batch.

        Raises:
            TypeError: Another kind of predictive; labels that are not whole numbers.
            ValueError: Another kind than before, or another number of draws; see `report.evaluate`.
        """
        known = check_known(predictive)
        draws = known.num_samples if isinstance(known, CategoricalPredictive) else num_draws_of(known)
        if self.num_samples and self.num_samples != draws:
            raise ValueError(f"Batches must have one number of draws; got {self.num_samples} and {draws}.")
        self.num_samples = draws
        self._check_classes(known)
        if weight is not None and not has_weight(weight):
            self.num_missing += len(known.mean)
            return
        seen = observe(known, y, weight)
        parts = pointwise_measures(known, seen)
        means = [MeanOf.of(part) for part in parts]
        if self._means and [one.name for one in self._means] != [one.name for one in means]:
            raise ValueError("Batches must be of one kind of targets, with as many columns.")
        self._means = [one.merge(new) for one, new in zip(self._means, means, strict=True)] if self._means else means
        for part in parts:
            note(num_impossible(part), self._add_impossible)
        note(means[0].sums.rows, partial(self._add_rows, len(parts[0].values)))
        if isinstance(known, CategoricalPredictive):
            self._add_labels(known, parts[0])
            confidence, right = top_label(known, seen.y)
            gaps = Gaps.of(confidence, right, seen.weight, self._num_bins)
            self._gaps = gaps if self._gaps is None else self._gaps.merge(gaps)

    def _check_classes(self, known: PredictiveDistribution) -> None:
        """Refuse labels of another number of classes than before."""
        number = known.mean.shape[1] if isinstance(known, CategoricalPredictive) else 0
        if self._num_classes and number and self._num_classes != number:
            raise ValueError(f"Batches must have one number of classes; got {self._num_classes} and {number}.")
        self._num_classes = number

    def _add_impossible(self, number: float) -> None:
        self.num_impossible += int(number)

    def _add_rows(self, number: int, known: float) -> None:
        self.num_points += int(known)
        self.num_missing += number - int(known)

    @torch.no_grad()
    def measures(self, *, seed: int) -> tuple[Measure, ...]:
        """In the order of a report."""
        if not self._means:
            raise ValueError("No target is known: all weights are 0, or there was no batch. A generator is used once.")
        kept: list[Sums | Gaps] = [one.sums for one in self._means]
        kept += [] if self._gaps is None else [self._gaps]
        there = on_host(kept)
        told = (replace(one, sums=cast(Sums, sums)) for one, sums in zip(self._means, there, strict=False))
        means = [one.measure(self.num_impossible) for one in told]
        if self._gaps is None or self._ranks is None:
            return tuple(means)
        gaps = cast(Gaps, there[-1])
        area, risk = self._ranks.auroc, self._ranks.aurc
        return (
            *means[:3],
            self._calibration_error(gaps, seed),
            *means[3:],
            _of_ranks("misclassification_auroc", area, by_entropy(self._ranks.num_errors)),
            _of_ranks("aurc", risk, "error rate over coverages, by entropy"),
        )

    def _add_labels(self, predictive: CategoricalPredictive, correct: Pointwise) -> None:
        if self._ranks is None:
            self._ranks = ErrorRanks(self._limit)
        self._ranks.add(Block.of(predictive.total, correct.values == 0, correct.weight))

    def _calibration_error(self, gaps: Gaps, seed: int) -> Measure:
        error = gaps.standard_error(num_replicates=REPLICATES, seed=seed)
        floor = f"{float(gaps.floor):.2g} if calibrated"
        bound = BOUND if gaps.is_bounded else ""
        remark = joined(f"{self._num_bins} equal bins", floor, bound)
        return Measure.of(CALIBRATION_ERROR, gaps.expected_calibration_error, error, "fraction", remark)


def on_host(kept: Sequence[Sums | Gaps]) -> Sequence[Sums | Gaps]:
    """The same on the host, in one transfer: of what is read number by number. Whole numbers stay so up to 2^53."""
    if kept[0].rows.device.type == "cpu":
        return kept
    tensors = [getattr(one, field.name) for one in kept for field in fields(one)]
    flat = torch.cat([tensor.double().flatten() for tensor in tensors]).cpu().split([each.numel() for each in tensors])
    moved = iter([one.view(like.shape).to(like.dtype) for one, like in zip(flat, tensors, strict=True)])
    return [type(one)(**{field.name: next(moved) for field in fields(one)}) for one in kept]


def _of_ranks(name: str, found: Ranked, remark: str) -> Measure:
    bounds = found.bounded
    doubt = float(bounds.upper - bounds.lower) / 2
    told = f"give or take {doubt:.1g}, from counts in bins" if doubt > 0 else ""
    return Measure.of(name, bounds.value, found.standard_error, "fraction", joined(remark, told), found.interval)
