"""Two reports, or two predictives of the same points, measure by measure: how far apart, and how sure of it.

From two reports only the standard errors of each are known, which add in quadrature. Where both are of the same test
points that is nearly always too wide: points that are hard for one are hard for the other. With the predictives at hand
`compare_predictives` pairs the points, and the noise that both share is gone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.evaluation.kinds import kind_of_targets
from bayesuq.evaluation.report.measure import COLUMNS, Measure
from bayesuq.evaluation.report.standard_measures import CALIBRATION_ERROR, StandardMeasure, standard_measures
from bayesuq.evaluation.report.tables import aligned, in_line, named
from bayesuq.evaluation.standard_errors import closed_form as standard_errors
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.notebook import table
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive, same_names

PAIRED = "same points, paired"
ROUNDING = 1e-13
QUADRATURE = "standard errors in quadrature: too wide if the test points are the same"


@dataclass(frozen=True)
class Comparison:
    """How two reports differ, measure by measure.

    Attributes:
        differences: First minus second, in the order of the first.
        num_points: N, test points of each.
        basis: Where the standard errors are from.
    """

    differences: tuple[Measure, ...]
    num_points: int
    basis: str

    def __getitem__(self, name: str) -> Measure:
        return named(self.differences, name, "difference")

    def __str__(self) -> str:
        values, errors, units = zip(*(each.cells for each in self.differences), strict=True)
        names = [each.name for each in self.differences]
        rows = list(zip(names, in_line(values, errors), self._in_errors, units, strict=True))
        return "\n".join([self._head, *aligned(rows, right=[2])])

    def _repr_html_(self) -> str:
        differences = zip(self.differences, self._in_errors, strict=True)
        rows = [(each.name, *each.cells[:2], in_errors, each.cells[2]) for each, in_errors in differences]
        return table(self._head, (*COLUMNS[:3], "in errors", COLUMNS[3]), rows)

    @property
    def _head(self) -> str:
        return f"{self.num_points} points, first minus second ({self.basis})"

    @property
    def _in_errors(self) -> list[str]:
        return ["" if math.isnan(each.num_errors) else f"{each.num_errors:+.1f} SE" for each in self.differences]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: undefined and infinite values are None."""
        return {**vars(self), "differences": [each.plain for each in self.differences]}


def compare_measures(one: Sequence[Measure], other: Sequence[Measure], num_points: int) -> Comparison:
    """The measures that both have, of `num_points` test points each, with standard errors in quadrature."""
    others = {measure.name: measure for measure in other}
    shared = [(measure, others[measure.name]) for measure in one if measure.name in others]
    if not shared:
        raise ValueError("The reports have no measure in common: one is of labels and the other of real targets?")
    return Comparison(tuple(_in_quadrature(*pair) for pair in shared), num_points, QUADRATURE)


def _in_quadrature(one: Measure, other: Measure) -> Measure:
    if one.unit != other.unit:
        raise ValueError(f"Only equal units compare; `{one.name}` is in {one.unit!r} and in {other.unit!r}.")
    known = one.standard_error is not None and other.standard_error is not None
    error = math.hypot(one.standard_error or 0.0, other.standard_error or 0.0) if known else None
    return Measure(one.name, _minus(one.value, other.value), error, one.unit, _remark(one, other))


def _minus(one: float, other: float) -> float:
    return math.nan if math.isinf(one) and one == other else one - other


def _remark(one: Measure | StandardMeasure, other: Measure | StandardMeasure) -> str:
    return one.remark if one.remark == other.remark else f"{one.remark or '-'} / {other.remark or '-'}"


def compare_predictives(
    one: PredictiveDistribution,
    other: PredictiveDistribution,
    y: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    num_bins: int = 15,
    seed: int = 0,
) -> Comparison:
    """Differences of two predictives of the same points, which are paired: point by point, each counts for both alike.

    Of measures that only one of the two has, such as the parts of a variance that is not split, there is none.

    Args:
        one: Of labels or real targets, at N points.
        other: Of the same kind, at the same points.
        y: The truth: labels (N, ...), or real targets (N, D) or (N,) for D = 1.
        weight: How much each row counts, (N,), or each target, of y's shape; see `report.evaluate`.
        num_bins: Of the ECE.
        seed: Of the bootstrap that gives the ECE's difference its standard error; the others have derivatives.

    Raises:
        TypeError: Predictives of two kinds, or another kind; labels that are not whole numbers.
        ValueError: Other classes; `y` of another shape than either, not finite, or outside the classes; a Gaussian
            component of zero variance.

    Example:
        >>> sure, unsure = (CategoricalPredictive.from_probs([[[p, 1 - p]] * 4]) for p in (0.9, 0.6))
        >>> print(compare_predictives(sure, unsure, [0, 0, 0, 1])["brier_score"])  # .02 - .32 thrice, 1.62 - .72 once
        brier_score 0.00 ± 0.30 probability², from 0 to 2
    """
    kinds = kind_of_targets(one), kind_of_targets(other)
    if kinds[0] != kinds[1]:
        raise TypeError(f"Only predictives of one kind compare; got {kinds[0]} and {kinds[1]}.")
    if isinstance(one, CategoricalPredictive) and isinstance(other, CategoricalPredictive):
        numbers = [each.probability_sum.shape[1] for each in (one, other)]
        if numbers[0] != numbers[1]:
            raise ValueError(
                f"Only predictives of the same classes compare; got {numbers[0]} and {numbers[1]} classes."
            )
        same_names(one.names, other.names)
    first, second = (standard_measures(each, y, weight=weight, num_bins=num_bins) for each in (one, other))
    others = {measure.name: measure for measure in second}
    pairs = [(measure, others[measure.name]) for measure in first if measure.name in others]
    differences = [_paired(*pair) for pair in pairs if pair[0].name != CALIBRATION_ERROR]
    if isinstance(one, CategoricalPredictive) and isinstance(other, CategoricalPredictive):
        place = [measure.name for measure, _ in pairs].index(CALIBRATION_ERROR)
        gaps = [weighted.row_gaps(each, y, num_bins, weight=weight) for each in (one, other)]
        error = standard_errors.of_gap_difference(*gaps, seed=seed)
        differences.insert(place, _difference(*pairs[place], error))
    return Comparison(tuple(differences), first[0].weighted.num_counting, PAIRED)


def _paired(one: StandardMeasure, other: StandardMeasure) -> Measure:
    return _difference(one, other, standard_errors.by_derivative(one.weighted - other.weighted))


def _difference(one: StandardMeasure, other: StandardMeasure, error: Tensor) -> Measure:
    first, second = float(one.weighted.value), float(other.weighted.value)
    known = float(error) if error.isfinite() else None
    if known is not None and known < ROUNDING * (abs(first) + abs(second)):
        known = 0.0  # what rounding leaves of equal points
    return Measure(one.name, _minus(first, second), known, one.unit, _remark(one, other))
