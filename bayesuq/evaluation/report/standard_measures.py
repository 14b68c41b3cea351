"""The measures of a standard report: which there are, of which values each is made, and in which unit.

Chosen to be read together: how often right (accuracy, RMSE), how good the whole distribution is (proper scores),
whether probabilities come true (calibration error, coverage beside width), what the uncertainty is made of, and whether
it finds the model's own errors (AUROC for the order alone, AURC with the number of errors). The functions of the other
modules measure more. Of several target columns the error, the score and the coverage of each stand beside those of all:
one that is too sure hides behind one that is not.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.evaluation.calibration import pointwise_coverage
from bayesuq.evaluation.kinds import check_known
from bayesuq.evaluation.observed import Observed, observe
from bayesuq.evaluation.report.tables import counted
from bayesuq.evaluation.scores import (
    CRPS_DRAWS,
    CRPS_QUANTILES,
    central_interval,
    observed_log_loss,
    pointwise_accuracy,
    pointwise_brier_score,
    pointwise_crps,
    pointwise_squared_error,
    winkler_score,
)
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.evaluation.standard_errors.weighted import Weighted
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.empirical import EmpiricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.recalibrated import RecalibratedPredictive
from bayesuq.predictive.thinned import held_of, num_draws_of

COVERAGE_LEVEL = 0.9
CALIBRATION_ERROR = "expected_calibration_error"
BOUND = "its error an upper bound"
LOG_SCORE = "negative_log_likelihood"
Formula = Literal["mean", "root", "share", "coverage", "coverage of counts"]


@dataclass(frozen=True, eq=False)
class Pointwise:
    """A measure that is the mean of values of points, or the root of it.

    Attributes:
        name: As the function that computes it.
        values: Of each point, (N, ...); anything where the weight is 0.
        weight: Of each value, of the same shape; None is 1 everywhere.
        unit: Such as "nats".
        remark: What must be known to read the value, often empty.
        formula: "root" of the mean; "share" of values 0 and 1; "coverage", a share that is to be `COVERAGE_LEVEL`, or
            at least that of counts.
        is_of_errors: Whether it grows with the distance of a real target, so that it may have no variance.
        least: What a value can be at least: a log score of densities has no such number.
        most: What it can be at most.
    """

    name: str
    values: Tensor
    weight: Tensor | None
    unit: str
    remark: str = ""
    formula: Formula = "mean"
    is_of_errors: bool = False
    least: float = 0.0
    most: float = math.inf

    @property
    def weighted(self) -> Weighted:
        """As a function of how often each row counts."""
        take = weighted.root_mean if self.formula == "root" else weighted.mean
        return take(self.values, self.weight)


@dataclass(frozen=True, eq=False)
class StandardMeasure:
    """One measure of a predictive, before it is a number.

    Attributes:
        name: As the function that computes it.
        weighted: The measure itself, as a function of how often each row counts.
        unit: Such as "nats".
        remark: What must be known to read the value, often empty.
    """

    name: str
    weighted: Weighted
    unit: str
    remark: str = ""


def standard_measures(
    predictive: PredictiveDistribution, y: ArrayLike, *, weight: ArrayLike | None = None, num_bins: int
) -> list[StandardMeasure]:
    """The measures that a report of this kind of predictive has, in order, as functions of the weights of rows.

    The arguments and errors are those of `report.evaluate`.
    """
    seen = observe(check_known(predictive), y, weight)
    parts = pointwise_measures(predictive, seen)
    measures = [StandardMeasure(part.name, part.weighted, part.unit, _told(part)) for part in parts]
    if not isinstance(predictive, CategoricalPredictive):
        return measures
    entropy, wrong = predictive.total, parts[0].values == 0
    error = weighted.expected_calibration_error(predictive, seen.y, num_bins, weight=seen.weight)
    measures.insert(3, StandardMeasure(CALIBRATION_ERROR, error, "fraction", f"{num_bins} equal bins"))
    area, risk = (take(entropy, wrong, weight=seen.weight) for take in (weighted.auroc, weighted.aurc))
    return [
        *measures,
        StandardMeasure("misclassification_auroc", area, "fraction", by_entropy(int(_known(wrong, seen).sum()))),
        StandardMeasure("aurc", risk, "fraction", "error rate over coverages, by entropy"),
    ]


def by_entropy(num_errors: int) -> str:
    """The remark on how well the entropy finds errors."""
    return f"entropy against {counted(num_errors, 'error')}"


def pointwise_measures(predictive: PredictiveDistribution, seen: Observed) -> list[Pointwise]:
    """All that are means of values of points, in the order of a report. The first three of labels come before the ECE.

    The errors are those of `report.evaluate`.
    """
    known = check_known(predictive)
    if isinstance(known, CategoricalPredictive):
        return list(_of_labels(known, seen, observed_log_loss(known, seen)))
    return list(_of_real_targets(known, seen))


def _of_labels(predictive: CategoricalPredictive, seen: Observed, log_loss: Tensor) -> Iterator[Pointwise]:
    weight = seen.weight
    yield Pointwise("accuracy", pointwise_accuracy(predictive, seen.y), weight, "fraction", formula="share")
    yield Pointwise(LOG_SCORE, log_loss, weight, "nats")
    score = pointwise_brier_score(predictive, seen.y)
    yield Pointwise("brier_score", score, weight, "probability²", "from 0 to 2", most=2.0)
    num_draws, num_classes = predictive.num_samples, predictive.probability_sum.shape[1]
    largest, apart = math.log(num_classes), math.log(min(num_draws, num_classes))
    yield Pointwise("predictive_entropy", predictive.total, weight, "nats", most=largest)
    yield Pointwise("expected_entropy", predictive.aleatoric, weight, "nats", most=largest)
    draws = f"from S = {num_draws} draws"
    yield Pointwise("mutual_information", predictive.epistemic, weight, "nats", draws, most=apart)


def _of_real_targets(predictive: RealPredictive, seen: Observed) -> Iterator[Pointwise]:
    y, weight = seen.y, seen.weight
    squares, (lower, upper) = pointwise_squared_error(predictive, y), central_interval(predictive, COVERAGE_LEVEL)
    ends = ", ends included" if predictive.is_discrete else ""
    root = Pointwise("root_mean_squared_error", squares, weight, "y", formula="root", is_of_errors=True)
    score = Pointwise("crps", pointwise_crps(predictive, y), weight, "y", _by_draws(predictive), is_of_errors=True)
    coverage = Pointwise(
        "interval_coverage",
        pointwise_coverage(predictive, y, COVERAGE_LEVEL),
        weight,
        "fraction",
        joined(f"nominal {COVERAGE_LEVEL}, central intervals{ends}", predictive.interval_remark(COVERAGE_LEVEL)),
        "coverage of counts" if ends else "coverage",
    )
    yield from _with_columns(root)
    yield _log_score(predictive, seen)
    yield from _with_columns(score)
    if predictive.without_split:
        yield Pointwise("total_variance", predictive.total, weight, "y²", predictive.without_split)
    else:
        yield Pointwise("aleatoric_variance", predictive.aleatoric, weight, "y²", predictive.moments_basis)
        draws = f"from S = {num_draws_of(predictive)} draws"
        yield Pointwise("epistemic_variance", predictive.epistemic, weight, "y²", draws)
    yield from _with_columns(coverage)
    yield Pointwise("interval_width", upper - lower, weight, "y", "of the same intervals")
    winkler = winkler_score(lower, upper, predictive.targets(y), COVERAGE_LEVEL)
    yield Pointwise("interval_score", winkler, weight, "y", "width, and what misses cost", is_of_errors=True)


def _log_score(predictive: RealPredictive, seen: Observed) -> Pointwise:
    """The log score; where there is no density it is NaN, and the remark says why."""
    if predictive.without_density:
        values = torch.full((predictive.shape[1],), torch.nan, dtype=torch.float64, device=predictive.device)
        return Pointwise(LOG_SCORE, values, seen.weight_of(values), "nats", predictive.without_density)
    values = observed_log_loss(predictive, seen)
    remark = joined(_jointly(predictive.shape[2], seen), predictive.density_basis)
    least = 0.0 if predictive.is_discrete else -math.inf
    return Pointwise(LOG_SCORE, values, seen.weight_of(values), "nats", remark, is_of_errors=True, least=least)


def _with_columns(whole: Pointwise) -> Iterator[Pointwise]:
    """A measure over all columns, and that of each, where there are several."""
    yield whole
    columns = whole.values.shape[1]
    for d in range(columns if columns > 1 else 0):
        weight = None if whole.weight is None else whole.weight[:, d]
        name, told = f"{whole.name}[{d}]", f"column {d}"
        yield replace(whole, name=name, values=whole.values[:, d], weight=weight, remark=told)


def _jointly(columns: int, seen: Observed) -> str:
    if columns == 1:
        return ""
    known = seen.known
    what = "columns" if known is None or bool(known.all()) else "columns, the known ones of each row"
    return f"jointly over {columns} {what} (not the mean of theirs)"


def _known(flags: Tensor, seen: Observed) -> Tensor:
    return flags if seen.known is None else flags & seen.known


def _by_draws(predictive: RealPredictive) -> str:
    held = held_of(predictive)
    if held is not predictive:
        return joined(_by_draws(held), f"{held.num_samples} of {num_draws_of(predictive)} draws held")
    if isinstance(predictive, RecalibratedPredictive):
        return f"from {CRPS_QUANTILES} quantiles"
    if isinstance(predictive, EmpiricalPredictive):
        return predictive.crps_basis
    return "" if isinstance(predictive, GaussianPredictive) else f"fair, from {CRPS_DRAWS} draws of y"


def num_impossible(part: Pointwise) -> Tensor:
    """Points whose truth has probability 0, where the measure is the log score; else 0; 0-d."""
    if part.name != LOG_SCORE:
        return torch.zeros(())
    infinite = part.values.isposinf()
    return (infinite if part.weight is None else infinite & (part.weight > 0)).sum()


def _told(part: Pointwise) -> str:
    return joined(part.remark, impossible(int(num_impossible(part))))


def impossible(count: int) -> str:
    """The remark on so many points of probability 0."""
    return f"{count} of probability 0" if count else ""


def joined(*remarks: str) -> str:
    """Remarks as one, without the empty ones."""
    return ", ".join(filter(None, remarks))
