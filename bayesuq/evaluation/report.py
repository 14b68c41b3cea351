"""One call, all measures: a predictive and the truth become a frozen table of values, standard errors and units."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.evaluation import standard_errors
from bayesuq.evaluation.calibration import expected_calibration_error, pointwise_coverage
from bayesuq.evaluation.detection import auroc, average_precision, false_positive_rate_at
from bayesuq.evaluation.scores import (
    pointwise_accuracy,
    pointwise_brier_score,
    pointwise_crps,
    pointwise_negative_log_likelihood,
    pointwise_squared_error,
)
from bayesuq.predictive import CategoricalPredictive, GaussianPredictive, PredictiveDistribution

COVERAGE_LEVEL = 0.9


@dataclass(frozen=True)
class Measure:
    """One number of a report.

    Attributes:
        name: As the function that computes it.
        value: NaN where it is undefined; the remark then says why.
        standard_error: Over test points, see `standard_errors`; None where there is none.
        unit: Such as "nats".
        remark: What must be known to read the value, often empty.
    """

    name: str
    value: float
    standard_error: float | None
    unit: str
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.name} {' '.join(self.cells)}".rstrip()

    @property
    def cells(self) -> tuple[str, str, str]:
        """Value, standard error, and unit with remark, as printed."""
        value, error = _rounded(self.value, self.standard_error)
        return value, f"± {error}" if error else "", f"{self.unit}, {self.remark}" if self.remark else self.unit


@dataclass(frozen=True)
class Report:
    """The measures of one predictive.

    Attributes:
        measures: In the order printed.
        num_points: N, test points.
        num_samples: S, draws in the predictive.
        num_impossible: Points (pixels, for images) whose truth has log probability -inf.
    """

    measures: tuple[Measure, ...]
    num_points: int
    num_samples: int
    num_impossible: int = 0

    def __getitem__(self, name: str) -> Measure:
        for measure in self.measures:
            if measure.name == name:
                return measure
        raise KeyError(f"no measure {name!r}; there are {', '.join(measure.name for measure in self.measures)}")

    def __str__(self) -> str:
        rows = [(measure.name, *measure.cells) for measure in self.measures]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            f"{name:<{widths[0]}}  {value:>{widths[1]}} {error:<{widths[2]}}  {unit}".rstrip()
            for name, value, error, unit in rows
        ]
        return "\n".join([f"{self.num_points} points, {self.num_samples} draws (value ± standard error)", *lines])

    def extended(self, measures: Iterable[Measure]) -> "Report":
        """The same report with further measures at its end."""
        return replace(self, measures=(*self.measures, *measures))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: undefined and infinite values are None, their remark says why."""
        plain = asdict(self)
        plain["measures"] = [
            {**measure, "value": measure["value"] if math.isfinite(measure["value"]) else None}
            for measure in plain["measures"]
        ]
        return plain


def evaluate(predictive: PredictiveDistribution, y: ArrayLike, *, num_bins: int = 15, seed: int = 0) -> Report:
    """All measures of a predictive at points whose truth is known.

    Labels: accuracy, log score, Brier score, ECE, mean entropies and mutual information, and how well the entropy picks
    out the model's own errors. Real targets: RMSE, log score, CRPS, mean variances, coverage of 90 % intervals.

    Args:
        predictive: Of labels or real targets, at N points.
        y: The truth: labels (N, ...), or real targets (N, D) or (N,) for D = 1.
        num_bins: Of the ECE.
        seed: Of the bootstrap that gives the ECE its standard error; the others have closed forms.

    Raises:
        TypeError: Another kind of predictive; labels that are not whole numbers.
        ValueError: `y` of another shape, not finite, or outside the classes; a Gaussian component of zero variance.

    Example:
        >>> report = evaluate(CategoricalPredictive.from_probs([[[0.9, 0.1], [0.2, 0.8]]]), [0, 1])
        >>> print(report["brier_score"])  # (2 x .1^2 + 2 x .2^2) / 2
        brier_score 0.050 ± 0.030 probability², from 0 to 2
    """
    if not isinstance(predictive, CategoricalPredictive | GaussianPredictive):
        raise TypeError(
            "`predictive` must be a CategoricalPredictive or a GaussianPredictive; got "
            f"{type(predictive).__name__}. Pass what `posterior.predict(x)` returns."
        )
    log_loss = pointwise_negative_log_likelihood(predictive, y)
    if isinstance(predictive, CategoricalPredictive):
        measures = _of_labels(predictive, y, log_loss, num_bins, seed)
    else:
        measures = _of_real_targets(predictive, y, log_loss)
    return Report(tuple(measures), len(log_loss), predictive.num_samples, int(log_loss.isposinf().sum()))


def evaluate_detection(scores: ArrayLike, positives: ArrayLike, *, name: str) -> tuple[Measure, ...]:
    r"""How well a score picks out the positives: inputs of another kind, or the model's errors.

    Args:
        scores: Uncertainties of N points, larger where a positive is expected, (N, ...).
        positives: Whether each point is one, (N, ...).
        name: Of the score, with which the measures' names begin.

    Returns:
        AUROC, average precision, and false positive rate at 95 % true positives.

    Raises:
        TypeError: See `detection.auroc`.
        ValueError: See `detection.auroc`.

    Example:
        >>> print(*evaluate_detection([0.1, 0.2, 0.3, 0.9], [0, 0, 1, 1], name="entropy"), sep="\n")
        entropy_auroc 1 ± 0 fraction, 2 of 4 positive
        entropy_average_precision 1 fraction, 2 of 4 positive
        entropy_false_positive_rate 0 fraction, at 95 % true positives
    """
    is_positive = to_tensor(positives, "positives").bool()
    remark = f"{int(is_positive.sum())} of {is_positive.numel()} positive"
    area = auroc(scores, positives)
    return (
        _measure(f"{name}_auroc", area, standard_errors.of_auroc(scores, positives), "fraction", remark),
        _measure(f"{name}_average_precision", average_precision(scores, positives), None, "fraction", remark),
        _measure(
            f"{name}_false_positive_rate",
            false_positive_rate_at(scores, positives, 0.95),
            None,
            "fraction",
            "at 95 % true positives",
        ),
    )


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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def _of_labels(
    predictive: CategoricalPredictive, y: ArrayLike, log_loss: Tensor, num_bins: int, seed: int
) -> list[Measure]:
    correct = pointwise_accuracy(predictive, y)
    calibration_error = expected_calibration_error(predictive, y, num_bins)
    of_calibration_error = standard_errors.of_expected_calibration_error(predictive, y, num_bins, seed=seed)
    return [
        _mean("accuracy", correct, "fraction"),
        _log_score(log_loss, ""),
        _mean("brier_score", pointwise_brier_score(predictive, y), "probability²", "from 0 to 2"),
        _measure(
            "expected_calibration_error", calibration_error, of_calibration_error, "fraction", f"{num_bins} equal bins"
        ),
        _mean("predictive_entropy", predictive.total, "nats"),
        _mean("expected_entropy", predictive.aleatoric, "nats"),
        _mean("mutual_information", predictive.epistemic, "nats", f"from S = {predictive.num_samples} draws"),
        _misclassification(predictive.total, correct == 0),
    ]


def _misclassification(entropy: Tensor, wrong: Tensor) -> Measure:
    remark = f"entropy against {int(wrong.sum())} errors"
    if bool(wrong.any()) == bool(wrong.all()):
        return _measure("misclassification_auroc", torch.tensor(math.nan), None, "fraction", remark)
    error = standard_errors.of_auroc(entropy, wrong)
    return _measure("misclassification_auroc", auroc(entropy, wrong), error, "fraction", remark)


def _of_real_targets(predictive: GaussianPredictive, y: ArrayLike, log_loss: Tensor) -> list[Measure]:
    num_columns = predictive.mean.shape[1]
    squares = pointwise_squared_error(predictive, y)
    root = squares.mean().sqrt()
    return [
        _measure("root_mean_squared_error", root, standard_errors.of_root_mean(squares), "y"),
        _log_score(log_loss, f"jointly over {num_columns} columns" if num_columns > 1 else ""),
        _mean("crps", pointwise_crps(predictive, y), "y"),
        _mean("aleatoric_variance", predictive.aleatoric, "y²"),
        _mean("epistemic_variance", predictive.epistemic, "y²", f"from S = {predictive.num_samples} draws"),
        _mean(
            "interval_coverage",
            pointwise_coverage(predictive, y, COVERAGE_LEVEL),
            "fraction",
            f"nominal {COVERAGE_LEVEL}, central intervals",
        ),
    ]


def _log_score(log_loss: Tensor, remark: str) -> Measure:
    num_impossible = int(log_loss.isposinf().sum())
    remarks = [remark, f"{num_impossible} of probability 0" if num_impossible else ""]
    return _mean("negative_log_likelihood", log_loss, "nats", ", ".join(filter(None, remarks)))


def _mean(name: str, values: Tensor, unit: str, remark: str = "") -> Measure:
    return _measure(name, values.mean(), standard_errors.of_mean(values), unit, remark)


def _measure(name: str, value: Tensor, standard_error: Tensor | None, unit: str, remark: str = "") -> Measure:
    error = math.nan if standard_error is None else float(standard_error)
    return Measure(name, float(value), error if math.isfinite(error) else None, unit, remark)


def _rounded(value: float, error: float | None) -> tuple[str, str]:
    """Both to two significant digits of the error, or the value to four where there is no error to go by."""
    if not math.isfinite(value):
        return str(value), ""
    if not error:
        return f"{value:.4g}", "" if error is None else "0"
    power = math.floor(math.log10(max(abs(value), error)))
    if -4 <= power < 6 and error >= 1e-6:
        power = 0
    value, error = value / 10.0**power, error / 10.0**power  # one power of ten for both, so that they compare
    decimals = max(0, 1 - math.floor(math.log10(error)))
    suffix = f"e{power:+03d}" if power else ""
    return f"{value:.{decimals}f}{suffix}", f"{error:.{decimals}f}{suffix}"
