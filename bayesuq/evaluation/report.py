"""One call, all measures: a predictive and the truth become a frozen table of values, standard errors and units."""

import json
import math
import os
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.evaluation import bootstrap, standard_errors, weighted
from bayesuq.evaluation.comparison import Comparison, compare_measures
from bayesuq.evaluation.detection import auroc, average_precision, false_positive_rate_at
from bayesuq.evaluation.measure import Measure
from bayesuq.evaluation.standard_measures import standard_measures
from bayesuq.evaluation.tables import aligned, counted, in_line
from bayesuq.predictive import PredictiveDistribution

SCHEMA = "bayesuq report, version 2"
READABLE = ("bayesuq report, version 1", SCHEMA)
LATER_KEYS = {"num_missing": 0}  # which version 1 lacks, and what it means by that
MOST_RESAMPLED = 2**17  # scores, beyond which 200 bootstrap samples take seconds


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
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise KeyError(f"no measure {name!r}; there are {', '.join(measure.name for measure in self.measures)}")

    def __str__(self) -> str:
        missing = f" ({self.num_missing} more without a known target)" if self.num_missing else ""
        head = f"{self.num_points} points{missing}, {counted(self.num_samples, 'draw')} (value ± standard error)"
        if not self.measures:
            return head
        values, errors, units = zip(*(measure.cells for measure in self.measures), strict=True)
        names = [measure.name for measure in self.measures]
        return "\n".join([head, *aligned(list(zip(names, in_line(values, errors), units, strict=True)))])

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
        plain = {"schema": SCHEMA, **asdict(self)}
        plain["measures"] = [
            {**measure, "value": measure["value"] if math.isfinite(measure["value"]) else None}
            for measure in plain["measures"]
        ]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The report of `to_dict`; None becomes NaN, but for a log score of impossible points, which is infinite.

        Raises:
            TypeError: A value of another type.
            ValueError: Another schema, keys that are missing or unknown, one measure twice, numbers that are infinite
                or that no report has.
        """
        _check_type(plain, Mapping, "report")
        if plain.get("schema") == READABLE[0]:
            plain = {**LATER_KEYS, **plain}
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
        measures = tuple(_measure_from(measure, counts["num_impossible"] > 0) for measure in plain["measures"])
        names = [measure.name for measure in measures]
        if len(set(names)) < len(names):
            raise ValueError(f"Each measure must come once; got {', '.join(names)}.")
        return cls(measures=measures, **counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write strict JSON, whole or not at all.

        Raises:
            OSError: The folder does not exist or cannot be written; an older file at `path` is then as it was.
        """
        target = Path(path)
        temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}"
        try:
            temporary.write_text(json.dumps(self.to_dict(), allow_nan=False, indent=1) + "\n", encoding="utf-8")
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

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


def evaluate(predictive: PredictiveDistribution, y: ArrayLike, *, num_bins: int = 15, seed: int = 0) -> Report:
    """All measures of a predictive at points whose truth is known.

    Labels: accuracy, log score, Brier score, ECE, mean entropies and mutual information, and how well the entropy picks
    out the model's own errors (AUROC, AURC). Real targets: RMSE, log score, CRPS, mean variances; coverage, width and
    score of 90 % intervals.

    Args:
        predictive: Of labels or real targets, at N points.
        y: The truth: labels (N, ...), or real targets (N, D) or (N,) for D = 1.
        num_bins: Of the ECE.
        seed: Of the bootstrap that gives the ECE its standard error; the others have closed forms.

    Raises:
        TypeError: Another kind of predictive; labels that are not whole numbers.
        ValueError: `y` of another shape, not finite, or outside the classes; a Gaussian component of zero variance.

    Example:
        >>> report = evaluate(bq.CategoricalPredictive.from_probs([[[0.9, 0.1], [0.2, 0.8]]]), [0, 1])
        >>> print(report["brier_score"])  # (2 x .1^2 + 2 x .2^2) / 2
        brier_score 0.050 ± 0.030 probability², from 0 to 2
    """
    measures, num_impossible = standard_measures(predictive, y, num_bins=num_bins, seed=seed)
    return Report(
        tuple(_measure(m.name, m.weighted.value, m.standard_error(), m.unit, m.remark) for m in measures),
        measures[0].weighted.num_rows,
        predictive.num_samples,
        num_impossible,
    )


def evaluate_detection(scores: ArrayLike, positives: ArrayLike, *, name: str, seed: int = 0) -> tuple[Measure, ...]:
    r"""How well a score picks out the positives: inputs of another kind, or the model's errors.

    Args:
        scores: Uncertainties of N points, larger where a positive is expected, (N, ...).
        positives: Whether each point is one, (N, ...).
        name: Of the score, with which the measures' names begin.
        seed: Of the bootstrap that gives the false positive rate its standard error, for up to 2^17 scores; the others
            have closed forms.

    Returns:
        AUROC, average precision, and false positive rate at 95 % true positives.

    Raises:
        TypeError: See `detection.auroc`.
        ValueError: See `detection.auroc`.

    Example:
        >>> print(*evaluate_detection([0.1, 0.2, 0.3, 0.9], [0, 0, 1, 1], name="entropy"), sep="\n")
        entropy_auroc 1 ± 0 fraction, 2 of 4 positive
        entropy_average_precision 1 ± 0 fraction, 2 of 4 positive
        entropy_false_positive_rate 0 ± 0 fraction, at 95 % true positives
    """
    is_positive = to_tensor(positives, "positives").bool()
    remark = f"{int(is_positive.sum())} of {is_positive.numel()} positive"
    area, precision = auroc(scores, positives), average_precision(scores, positives)
    precision_error = standard_errors.of_average_precision(scores, positives)
    return (
        _measure(f"{name}_auroc", area, standard_errors.of_auroc(scores, positives), "fraction", remark),
        _measure(f"{name}_average_precision", precision, precision_error, "fraction", remark),
        _measure(
            f"{name}_false_positive_rate",
            false_positive_rate_at(scores, positives, 0.95),
            _error_of_false_positive_rate(scores, positives, seed),
            "fraction",
            "at 95 % true positives",
        ),
    )


def _error_of_false_positive_rate(scores: ArrayLike, positives: ArrayLike, seed: int) -> Tensor | None:
    measure = weighted.false_positive_rate_at(scores, positives)
    return bootstrap.standard_error(measure, seed=seed) if measure.num_values <= MOST_RESAMPLED else None


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
    return "\n".join(aligned(rows))


def _measure(name: str, value: Tensor, standard_error: Tensor | None, unit: str, remark: str = "") -> Measure:
    error = math.nan if standard_error is None else float(standard_error)
    return Measure(name, float(value), error if math.isfinite(error) else None, unit, remark)


def _measure_from(plain: Any, impossible: bool) -> Measure:
    _check_type(plain, dict, "measure")
    _check_keys(plain, {field.name for field in fields(Measure)}, "a measure")
    for key in ("name", "unit", "remark"):
        _check_type(plain[key], str, key)
    for key in ("value", "standard_error"):
        _check_type(plain[key], int | float | None, key)
        if plain[key] is not None and not abs(plain[key]) <= sys.float_info.max:
            raise ValueError(f"`{key}` of {plain['name']} must be finite, or null where it is undefined.")
    if plain["standard_error"] is not None:
        _check_at_least_0(plain["standard_error"], "standard_error")
    infinite = impossible and plain["name"] == "negative_log_likelihood"
    undefined = math.inf if infinite else math.nan
    error = plain["standard_error"]
    return Measure(
        plain["name"],
        undefined if plain["value"] is None else float(plain["value"]),
        None if error is None else float(error),
        plain["unit"],
        plain["remark"],
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
