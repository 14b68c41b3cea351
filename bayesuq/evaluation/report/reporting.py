"""One call, all measures: a predictive and the truth become a frozen table of values, standard errors and units."""

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, to_tensor
from bayesuq.evaluation.kinds import check_known
from bayesuq.evaluation.observed import as_weight
from bayesuq.evaluation.ranks import check_scores, warn_undefined
from bayesuq.evaluation.report.comparison import Comparison, compare_measures
from bayesuq.evaluation.report.measure import COLUMNS, Measure
from bayesuq.evaluation.report.tables import aligned, compared, counted, in_line, named
from bayesuq.evaluation.report.tally import Tally
from bayesuq.evaluation.standard_errors import bootstrap
from bayesuq.evaluation.standard_errors import closed_form as standard_errors
from bayesuq.evaluation.standard_errors.intervals import (
    Interval,
    auroc_interval,
    false_positive_rate_interval,
    share_interval,
)
from bayesuq.evaluation.standard_errors.weighted import Ranks
from bayesuq.evaluation.streaming.ranking import DEFAULT_LIMIT
from bayesuq.notebook import table
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.writing import write_text

SCHEMA = "bayesuq report, version 3"
TRUE_POSITIVE_RATE = 0.95
READABLE = ("bayesuq report, version 1", "bayesuq report, version 2", SCHEMA)
LATER_KEYS = {"num_missing": 0}  # which version 1 lacks, and what it means by that
LATER_MEASURE_KEYS = {"interval": None, "off": None}  # which version 1 lacks, and version 2 the last of them
MOST_RESAMPLED = 2**17  # scores, beyond which 200 bootstrap samples take seconds

Batches = Iterable[
    tuple[PredictiveDistribution, ArrayLike] | tuple[PredictiveDistribution, ArrayLike, ArrayLike | None]
]


@dataclass(frozen=True)
class Report:
    """The measures of one predictive.

    Attributes:
        measures: In the order printed.
        num_points: N, test points of which a target is known.
        num_samples: S, draws in the predictive.
        num_impossible: Points (pixels, for images) whose truth has log probability -inf.
        num_missing: Further rows of which no target is known, such as images without a labelled pixel; they are in no
            measure.
    """

    measures: tuple[Measure, ...]
    num_points: int
    num_samples: int
    num_impossible: int = 0
    num_missing: int = 0

    def __getitem__(self, name: str) -> Measure:
        return named(self.measures, name, "measure")

    def __str__(self) -> str:
        if not self.measures:
            return self._head
        values, errors, units = zip(*(measure.cells for measure in self.measures), strict=True)
        names = [measure.name for measure in self.measures]
        return "\n".join([self._head, *aligned(list(zip(names, in_line(values, errors), units, strict=True)))])

    def _repr_html_(self) -> str:
        return table(self._head, COLUMNS, [(measure.name, *measure.cells) for measure in self.measures])

    @property
    def _head(self) -> str:
        missing = f" ({self.num_missing} more without a known target)" if self.num_missing else ""
        ends = ", or [95 % interval]" if any(measure.is_skewed for measure in self.measures) else ""
        points, draws = counted(self.num_points, "point"), counted(self.num_samples, "draw")
        return f"{points}{missing}, {draws} (value ± standard error{ends})"

    def extended(self, measures: Iterable[Measure]) -> "Report":
        """The same report with further measures at its end."""
        return replace(self, measures=(*self.measures, *measures))

    def compare(self, other: "Report") -> Comparison:
        """This report minus another of the same test points, measure by measure, where both have the measure.

        The standard errors add in quadrature, which ignores that the points are the same: they are too wide, as a rule
        by far. `comparison.compare_predictives` pairs the points.

        Raises:
            ValueError: Reports of different numbers of points, of measures in different units, or with none in common.
        """
        if self.num_points != other.num_points:
            raise ValueError(
                f"Only reports of the same test points compare; got {self.num_points} and {other.num_points} points."
            )
        return compare_measures(self.measures, other.measures, self.num_points)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: undefined and infinite values are None, their remark says why."""
        return {"schema": SCHEMA, **vars(self), "measures": [measure.plain for measure in self.measures]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The report of `to_dict`; None becomes NaN, but for a log score of impossible points, which is infinite.

        Raises:
            TypeError: A value of another type.
            ValueError: Another schema, keys that are missing or unknown, one measure twice, numbers that are infinite
                or that no report has.
        """
        _check_type(plain, Mapping, "report")
        is_early = plain.get("schema") in READABLE[:-1]
        plain = {**LATER_KEYS, **plain} if is_early else plain
        _check_keys(plain, {"schema", *(field.name for field in fields(cls))}, "a report")
        if plain["schema"] not in READABLE:
            raise ValueError(
                f"`schema` must be {SCHEMA!r}; got {plain['schema']!r}. Read it with the version it is of."
            )
        counts = {name: plain[name] for name in ("num_points", "num_samples", "num_impossible", "num_missing")}
        for name, count in counts.items():
            _check_type(count, int, name)
            _check_at_least_0(count, name)
        _check_type(plain["measures"], list, "measures")
        later = LATER_MEASURE_KEYS if is_early else {}
        measures = tuple(_measure_from(each, counts["num_impossible"] > 0, later) for each in plain["measures"])
        names = [measure.name for measure in measures]
        if len(set(names)) < len(names):
            raise ValueError(f"Each measure must come once; got {', '.join(names)}.")
        return cls(measures=measures, **counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write strict JSON, whole or not at all.

        Raises:
            OSError: The folder does not exist or cannot be written; an older file at `path` is then as it was.
        """
        write_text(path, json.dumps(self.to_dict(), allow_nan=False, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote, strictly.

        Raises:
            FileNotFoundError: No such file.
            TypeError: See `from_dict`.
            ValueError: No strict JSON; see `from_dict`.
        """
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(
                f"{os.fspath(path)!r} is not a complete file written by `Report.save`: {error}."
            ) from error
        return cls.from_dict(plain)


def evaluate(
    predictive: PredictiveDistribution | Batches,
    y: ArrayLike | None = None,
    *,
    weight: ArrayLike | None = None,
    num_bins: int = 15,
    seed: int = 0,
    limit: int = DEFAULT_LIMIT,
) -> Report:
    """All measures of a predictive at points whose truth is known.

    Labels: accuracy, log score, Brier score, ECE, mean entropies and mutual information, and how well the entropy picks
    out the model's own errors (AUROC, AURC). Real targets: RMSE, log score (of all columns of a row jointly), CRPS,
    mean variances; coverage, width and score of 90 % intervals; error, score and coverage of each of several columns
    too. A coverage that is off by more than two standard errors is told.

    Args:
        predictive: Of labels or real targets, at N points. Or batches, one after the other, each a predictive with its
            truth, or with its truth and weight, in a tuple: a batch is let go before the next is taken, and every
            number but the ranks' beyond `limit` is that of all points at once.
        y: The truth of one predictive: labels (N, ...), or real targets (N, D) or (N,) for D = 1.
        weight: How much each row counts, (N,), or each target, of y's shape. What has weight 0 is left out, and may be
            NaN in y, or a label that is no class: targets that are missing, void pixels. Of a row with missing columns
            the log score is that of the others. None counts all alike.
        num_bins: Of the ECE.
        seed: Of the simulation that gives the ECE its standard error; the others have closed forms.
        limit: Most points of batches whose uncertainties are kept and ranked exactly; beyond it they are counted in
            bins, and AUROC and AURC have bounds, which the remark tells.

    Raises:
        TypeError: Another kind of predictive; labels that are not whole numbers; one predictive without `y`, or `y` or
            `weight` beside batches.
        ValueError: `y` of another shape, not finite, or outside the classes; a Gaussian component of zero variance;
            weights of another shape, negative, not finite, or all 0; no batch, or batches that do not go together.

    Example:
        >>> report = evaluate(bq.CategoricalPredictive.from_probs([[[0.9, 0.1], [0.2, 0.8]]]), [0, 1])
        >>> print(report["brier_score"])  # (2 x .1^2 + 2 x .2^2) / 2
        brier_score 0.05 [0.00, 0.43] probability², from 0 to 2
    """
    check_count(seed, "seed", minimum=0)
    check_count(limit, "limit", minimum=0)
    if isinstance(predictive, PredictiveDistribution):
        if y is None:
            raise TypeError("Of one predictive `y` is needed, the truth at its points.")
        tally = Tally(check_count(num_bins, "num_bins"), limit=None)
        batches: Batches = [(predictive, y, weight)]
    else:
        if y is not None or weight is not None:
            if isinstance(predictive, Tensor) or not isinstance(predictive, Iterable):
                check_known(predictive)
            raise TypeError(
                "Batches bring their truth and weights with them; `y` and `weight` belong to one predictive."
            )
        tally = Tally(check_count(num_bins, "num_bins"), limit)
        batches = predictive
    for batch in batches:
        tally.add(*_parts(batch))
    return Report(
        tally.measures(seed=seed), tally.num_points, tally.num_samples, tally.num_impossible, tally.num_missing
    )


def _parts(batch: Any) -> tuple[PredictiveDistribution, ArrayLike, ArrayLike | None]:
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        raise TypeError(
            "`predictive` must be what `posterior.predict(x)` returns, or batches, each a tuple of such a predictive, "
            f"its y and, where it has one, its weight; got {type(batch).__name__}."
        )
    predictive, y = batch[:2]
    return predictive, y, batch[2] if len(batch) == 3 else None


def evaluate_detection(
    scores: ArrayLike, positives: ArrayLike, *, name: str, weight: ArrayLike | None = None, seed: int = 0
) -> tuple[Measure, ...]:
    r"""How well a score picks out the positives: inputs of another kind, or the model's errors.

    Args:
        scores: Uncertainties of N points, larger where a positive is expected, (N, ...).
        positives: Whether each point is one, (N, ...).
        name: Of the score, with which the measures' names begin.
        weight: How much each row counts, (N,), or each point, (N, ...); what has weight 0 is left out. None counts all
            alike.
        seed: Of the bootstrap that gives the false positive rate its standard error, for up to 2^17 scores; the others
            have closed forms.

    Returns:
        AUROC, average precision, and false positive rate at 95 % true positives, each with its 95 % interval.

    Raises:
        TypeError: See `detection.auroc`.
        ValueError: See `detection.auroc`.

    Example:
        >>> print(*evaluate_detection([0.1, 0.2, 0.3, 0.9], [0, 0, 1, 1], name="entropy"), sep="\n")
        entropy_auroc 1.00 [0.34, 1.00] fraction, 2 of 4 positive
        entropy_average_precision 1.00 [0.34, 1.00] fraction, 2 of 4 positive
        entropy_false_positive_rate 0.00 [0.00, 1.00] fraction, at 95 % true positives
    """
    values, is_positive = _known_scores(scores, positives, weight)
    ranks = Ranks.of(values, is_positive, weight)
    is_found = ranks.found > 0
    groups = {"positive": ranks.found[is_found], "negative": ranks.found[~is_found]}
    warn_undefined("auroc", **groups)
    warn_undefined("average_precision", positive=groups["positive"])
    warn_undefined("false_positive_rate_at", **groups)
    remark = f"{len(groups['positive'])} of {len(is_found)} positive"
    smooth, jumping = ranks.average_precision(), ranks.false_positive_rate_at(TRUE_POSITIVE_RATE)
    area, precision, rate = ranks.auroc().value, smooth.value, jumping.value
    area_error, precision_error = standard_errors.error_of_auroc(ranks), standard_errors.by_derivative(smooth)
    rate_error = bootstrap.standard_error(jumping, seed=seed) if jumping.num_values <= MOST_RESAMPLED else None
    rows = [(ranks.by_row(side) > 0).sum().double() for side in (ranks.found, ranks.others)]
    is_single = values.numel() == len(values)
    worth = rows[0] if is_single or precision_error == 0 else is_found.sum().double()
    area_interval = auroc_interval(area, area_error, *rows)
    precision_interval = share_interval(precision, precision_error, worth)
    rate_interval = _interval_of_false_positive_rate(ranks, rate) if is_single else None
    told = f"at {TRUE_POSITIVE_RATE:.0%} true positives".replace("%", " %")
    return (
        Measure.of(f"{name}_auroc", area, area_error, "fraction", remark, area_interval),
        Measure.of(f"{name}_average_precision", precision, precision_error, "fraction", remark, precision_interval),
        Measure.of(f"{name}_false_positive_rate", rate, rate_error, "fraction", told, rate_interval),
    )


def _known_scores(scores: ArrayLike, positives: ArrayLike, weight: ArrayLike | None) -> tuple[Tensor, Tensor]:
    """As `check_scores`, of what counts; what has weight 0 may be anything.

    Raises:
        ValueError: No point; and as there.
    """
    values, flags = to_tensor(scores, "scores"), to_tensor(positives, "positives")
    if values.numel() == 0:
        raise ValueError("`scores` must hold at least one point.")
    if weight is not None and values.shape == flags.shape:
        known = as_weight(weight, values.shape) > 0
        values, flags = (torch.where(known.to(part.device), part, 0) for part in (values, flags))
    return check_scores(values, flags)


def _interval_of_false_positive_rate(ranks: Ranks, rate: Tensor) -> Interval | None:
    """None where there is one class only, or weights make order statistics of no use."""
    num_positive, num_negative = int(ranks.found.sum()), int(ranks.others.sum())
    is_even = ranks.weight is None or bool((ranks.weight == ranks.weight[0]).all())
    if not is_even or num_positive == 0 or num_negative == 0:
        return None
    below = ranks.around(ranks.others[None])[0][0, ranks.found > 0]
    alarms = (num_negative - below).flip(0) / num_negative
    return false_positive_rate_interval(alarms, rate, num_negative, TRUE_POSITIVE_RATE)


def side_by_side(reports: Mapping[str, Report]) -> str:
    """Reports of several methods as one plain-text table, a row for each measure and a column for each method.

    Args:
        reports: By the name of the method; a measure that a report lacks stays blank.

    Raises:
        ValueError: No report.
    """
    if not reports:
        raise ValueError("There is nothing to show: pass at least one report.")
    units = {measure.name: measure.unit for report in reports.values() for measure in report.measures}
    rows = [["", *reports, ""], ["draws", *(str(report.num_samples) for report in reports.values()), ""]]
    for name, unit in units.items():
        found = [next((m for m in report.measures if m.name == name), None) for report in reports.values()]
        rows.append([name, *("" if m is None else " ".join(filter(None, m.cells[:2])) for m in found), unit])
    return "\n".join(compared(rows))


def _measure_from(plain: Any, impossible: bool, later: Mapping[str, Any]) -> Measure:
    _check_type(plain, dict, "measure")
    plain = {**later, **plain}
    _check_keys(plain, {field.name for field in fields(Measure)}, "a measure")
    for key in ("name", "unit", "remark"):
        _check_type(plain[key], str, key)
    for key in ("value", "standard_error", "off"):
        _check_type(plain[key], int | float | None, key)
        if plain[key] is not None and not abs(plain[key]) <= sys.float_info.max:
            raise ValueError(f"`{key}` of {plain['name']} must be finite, or null where it is undefined.")
    if plain["standard_error"] is not None:
        _check_at_least_0(plain["standard_error"], "standard_error")
    ends = plain["interval"]
    if ends is not None and not (
        isinstance(ends, list)
        and len(ends) == 2
        and all(type(end) in (int, float) and math.isfinite(end) for end in ends)
    ):
        raise ValueError(f"`interval` of {plain['name']} must be two finite numbers, or null; got {ends!r}.")
    infinite = impossible and plain["name"] == "negative_log_likelihood"
    undefined = math.inf if infinite else math.nan
    error = plain["standard_error"]
    return Measure(
        plain["name"],
        undefined if plain["value"] is None else float(plain["value"]),
        None if error is None else float(error),
        plain["unit"],
        plain["remark"],
        None if ends is None else (float(ends[0]), float(ends[1])),
        None if plain["off"] is None else float(plain["off"]),
    )


def _check_keys(plain: Mapping[str, Any], expected: set[str], what: str) -> None:
    missing, unknown = expected - plain.keys(), plain.keys() - expected
    if missing or unknown:
        told = [f"{kind} {', '.join(sorted(keys))}" for kind, keys in (("lacks", missing), ("has", unknown)) if keys]
        raise ValueError(f"The keys of {what} must be {', '.join(sorted(expected))}; it {' and '.join(told)}.")


def _check_type(value: Any, expected: Any, name: str) -> None:
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be {expected}; got {value!r}.")


def _check_at_least_0(value: float, name: str) -> None:
    if value < 0:
        raise ValueError(f"`{name}` must be at least 0; got {value!r}.")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"Strict JSON holds no {name}; undefined values are null.")
