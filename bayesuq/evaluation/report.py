"""One call, all measures: a predictive and the truth become a frozen table of values, standard errors and units."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.evaluation import standard_errors
from bayesuq.evaluation.calibration import expected_calibration_error, pointwise_coverage
from bayesuq.evaluation.detection import auroc
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
