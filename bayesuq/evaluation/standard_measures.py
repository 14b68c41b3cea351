"""The measures of a standard report: which there are, how each errs, and in which unit.

Chosen to be read together: how often right (accuracy, RMSE), how good the whole distribution is (proper scores),
whether probabilities come true (calibration error, coverage beside width), what the uncertainty is made of, and whether
it finds the model's own errors (AUROC for the order alone, AURC with the number of errors). The functions of the other
modules measure more.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.evaluation import standard_errors, weighted
from bayesuq.evaluation.calibration import pointwise_coverage
from bayesuq.evaluation.kinds import RealPredictive, check_known, is_discrete
from bayesuq.evaluation.scores import (
    CRPS_DRAWS,
    CRPS_QUANTILES,
    central_interval,
    pointwise_accuracy,
    pointwise_brier_score,
    pointwise_crps,
    pointwise_negative_log_likelihood,
    pointwise_squared_error,
    winkler_score,
)
from bayesuq.evaluation.weighted import Weighted
from bayesuq.predictive import CategoricalPredictive, GaussianPredictive, PredictiveDistribution
from bayesuq.recalibrated import RecalibratedPredictive

COVERAGE_LEVEL = 0.9
CALIBRATION_ERROR = "expected_calibration_error"


@dataclass(frozen=True, eq=False)
class StandardMeasure:
    """One measure of a predictive, before it is a number.

    Attributes:
        name: As the function that computes it.
        weighted: The measure itself, as a function of how often each row counts.
        standard_error: Computes its standard error over rows, NaN where there is none.
        unit: Such as "nats".
        remark: What must be known to read the value, often empty.
    """

    name: str
    weighted: Weighted
    standard_error: Callable[[], Tensor]
    unit: str
    remark: str = ""


def standard_measures(
    predictive: PredictiveDistribution, y: ArrayLike, *, num_bins: int, seed: int
) -> tuple[list[StandardMeasure], int]:
    """The measures that a report of this kind of predictive has, in order, and the number of impossible points.

    The arguments and errors are those of `report.evaluate`.
    """
    known = check_known(predictive)
    log_loss = pointwise_negative_log_likelihood(known, y)
    if isinstance(known, CategoricalPredictive):
        measures = _of_labels(known, y, log_loss, num_bins, seed)
    else:
        measures = _of_real_targets(known, y, log_loss)
    return measures, int(log_loss.isposinf().sum())


def _of_labels(
    predictive: CategoricalPredictive, y: ArrayLike, log_loss: Tensor, num_bins: int, seed: int
) -> list[StandardMeasure]:
    correct, entropy = pointwise_accuracy(predictive, y), predictive.total
    wrong = correct == 0
    found = f"entropy against {int(wrong.sum())} errors"
    return [
        _mean("accuracy", correct, "fraction"),
        _mean("negative_log_likelihood", log_loss, "nats", _impossible(log_loss)),
        _mean("brier_score", pointwise_brier_score(predictive, y), "probability²", "from 0 to 2"),
        StandardMeasure(
            CALIBRATION_ERROR,
            weighted.expected_calibration_error(predictive, y, num_bins),
            lambda: standard_errors.of_expected_calibration_error(predictive, y, num_bins, seed=seed),
            "fraction",
            f"{num_bins} equal bins",
        ),
        _mean("predictive_entropy", entropy, "nats"),
        _mean("expected_entropy", predictive.aleatoric, "nats"),
        _mean("mutual_information", predictive.epistemic, "nats", f"from S = {predictive.num_samples} draws"),
        StandardMeasure(
            "misclassification_auroc",
            weighted.auroc(entropy, wrong),
            lambda: standard_errors.of_auroc(entropy, wrong),
            "fraction",
            found,
        ),
        StandardMeasure(
            "aurc",
            weighted.aurc(entropy, wrong),
            lambda: standard_errors.of_aurc(entropy, wrong),
            "fraction",
            "error rate over coverages, by entropy",
        ),
    ]


def _of_real_targets(predictive: RealPredictive, y: ArrayLike, log_loss: Tensor) -> list[StandardMeasure]:
    squares = pointwise_squared_error(predictive, y)
    lower, upper = central_interval(predictive, COVERAGE_LEVEL)
    score = winkler_score(lower, upper, predictive.targets(y), COVERAGE_LEVEL)
    columns = squares.shape[1]
    jointly = f"jointly over {columns} columns" if columns > 1 else ""
    return [
        StandardMeasure(
            "root_mean_squared_error",
            weighted.root_mean(squares),
            lambda: standard_errors.of_root_mean(squares),
            "y",
        ),
        _mean("negative_log_likelihood", log_loss, "nats", ", ".join(filter(None, [jointly, _impossible(log_loss)]))),
        _mean("crps", pointwise_crps(predictive, y), "y", _by_draws(predictive)),
        _mean("aleatoric_variance", predictive.aleatoric, "y²"),
        _mean("epistemic_variance", predictive.epistemic, "y²", f"from S = {predictive.num_samples} draws"),
        _mean(
            "interval_coverage",
            pointwise_coverage(predictive, y, COVERAGE_LEVEL),
            "fraction",
            f"nominal {COVERAGE_LEVEL}, central intervals{', ends included' if is_discrete(predictive) else ''}",
        ),
        _mean("interval_width", upper - lower, "y", "of the same intervals"),
        _mean("interval_score", score, "y", "width, and what misses cost"),
    ]


def _by_draws(predictive: RealPredictive) -> str:
    if isinstance(predictive, RecalibratedPredictive):
        return f"from {CRPS_QUANTILES} quantiles"
    return "" if isinstance(predictive, GaussianPredictive) else f"fair, from {CRPS_DRAWS} draws of y"


def _impossible(log_loss: Tensor) -> str:
    count = int(log_loss.isposinf().sum())
    return f"{count} of probability 0" if count else ""


def _mean(name: str, values: Tensor, unit: str, remark: str = "") -> StandardMeasure:
    return StandardMeasure(name, weighted.mean(values), lambda: standard_errors.of_mean(values), unit, remark)
