"""What is measured of every posterior: its report on test data, and what its uncertainty finds.

It should find the errors of the posterior itself, and data of another kind.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayesuq.cli.methods import Fitted
from bayesuq.cli.problem import Problem
from bayesuq.cli.settings import PredictionOptions
from bayesuq.data import Dataset, Standardizer
from bayesuq.datasets import named as datasets
from bayesuq.evaluation import uncertainty
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report, evaluate, evaluate_detection
from bayesuq.evaluation.scores import pointwise_accuracy
from bayesuq.evaluation.segmentation.reporting import SegmentationResult, evaluate_segmentation, predictions
from bayesuq.inference.confidence.fitting import ConfidencePosterior
from bayesuq.inference.temperature.fitting import TemperaturePosterior
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive

IMAGES_AT_A_TIME = 4
NUM_SHOWN = 3  # images in a picture


@dataclass(frozen=True, eq=False)
class Sought:
    """What is to be found among some points, and scores that should find it.

    Attributes:
        scores: Of each point, larger where it is expected, (N,), by name.
        positives: Whether each point is it, (N,), boolean.
    """

    scores: dict[str, Tensor]
    positives: Tensor


@dataclass(frozen=True, eq=False)
class Judged:
    """A posterior's predictions, and the report of them.

    Attributes:
        predictive: At the test points, in the targets' own units.
        y: The truth there.
        ood: At points of another kind; None where the data have none.
        report: All measures.
        confidence: What a method with a network for it says of the test points: the estimated probability of the true
            class, (N,).
        segmentation: What was counted, where there is a label for every pixel; the predictive and the truth are then
            those of a few images, and `ood` is not there.
        rows: Which of the test rows these images are, in order; None is all.
    """

    predictive: PredictiveDistribution
    y: Tensor
    ood: PredictiveDistribution | None
    report: Report
    confidence: Tensor | None = None
    segmentation: SegmentationResult | None = None
    rows: Tensor | None = None

    @property
    def num_classes(self) -> int:
        """That have a probability; 0 of real targets."""
        return self.predictive.mean.shape[1] if isinstance(self.predictive, CategoricalPredictive) else 0

    @property
    def sought(self) -> dict[str, Sought]:
        """Errors among the test points, of labels; points of another kind among them and the test points."""
        found = {}
        if isinstance(self.predictive, CategoricalPredictive) and self.segmentation is None:
            scores = {"maximum_probability": uncertainty.maximum_probability(self.predictive)}
            if self.confidence is not None:
                scores["learned_confidence"] = 1 - self.confidence
            found["error"] = Sought(scores, pointwise_accuracy(self.predictive, self.y) == 0)
        if self.ood is not None:
            inside, outside = _scores(self.predictive), _scores(self.ood)
            is_outside = torch.arange(len(self.y) + len(self.ood.mean)) >= len(self.y)
            found["ood"] = Sought({name: torch.cat([inside[name], outside[name]]) for name in inside}, is_outside)
        return found


def judge_fit(fitted: Fitted, problem: Problem, options: PredictionOptions) -> Judged:
    """Predict and measure on the test rows of the problem that was fitted."""
    split = problem.split
    return judge(
        fitted.posterior,
        split.test,
        split.ood,
        problem.standardizer,
        options,
        further=fitted.quality,
        validation=split.val,
        ignore_index=problem.ignore_index,
        background=problem.name in datasets.WITHOUT_BACKGROUND,
        classes=() if problem.columns is None else problem.columns.target.classes,
    )


def judge(
    posterior: Posterior,
    data: Dataset,
    ood: Dataset | None,
    standardizer: Standardizer | None,
    options: PredictionOptions,
    *,
    further: Iterable[Measure] = (),
    validation: Dataset | None = None,
    ignore_index: int | None = None,
    background: bool = False,
    classes: Sequence[str] = (),
) -> Judged:
    """Predict and measure.

    Args:
        posterior: In the standardizer's units.
        data: Rows in raw units.
        ood: Rows of another kind, likewise.
        standardizer: None where the raw units were fitted.
        options: Of the predictions.
        further: Measures that were taken elsewhere, for the end of the report.
        validation: Images that thresholds of the uncertainty are chosen on, where there is a label for every pixel;
            None chooses them on the data.
        ignore_index: The label of void pixels.
        background: Whether class 0 of the pixels counts in the mean Dice of more than two.
        classes: Names of the labels, where these have some that the posterior does not know.
    """
    if data.is_labelled and data.y.ndim > 1:
        return _judge_maps(posterior, data, options, further, validation, ignore_index, background)

    def inputs(part: Dataset) -> Any:
        return part.x if standardizer is None else standardizer.inputs(part.x)

    def predict(part: Dataset) -> PredictiveDistribution:
        x = inputs(part)
        predictive = posterior.predict(x, num_samples=options.num_samples, seed=options.seed)
        if classes and isinstance(predictive, CategoricalPredictive):
            predictive = predictive.named(classes)
        return predictive if standardizer is None else standardizer.inverse(predictive)

    predictive = predict(data)
    confidence = posterior.confidence(inputs(data)) if isinstance(posterior, ConfidencePosterior) else None
    outside = None if ood is None else predict(ood)
    judged = Judged(predictive, data.y, outside, evaluate(predictive, data.y, weight=data.weight), confidence)
    measures = [*_temperature(posterior), *_found(judged), *further]
    return replace(judged, report=judged.report.extended(measures))


def _judge_maps(
    posterior: Posterior,
    data: Dataset,
    options: PredictionOptions,
    further: Iterable[Measure],
    validation: Dataset | None,
    ignore_index: int | None,
    background: bool,
) -> Judged:
    """A few images at a time, so that memory is theirs."""
    predict = partial(posterior.predict, num_samples=options.num_samples, seed=options.seed)

    def counted(part: Dataset, chosen: SegmentationResult | None) -> SegmentationResult:
        batches = predictions(predict, part.x, part.y, batch_size=IMAGES_AT_A_TIME)
        return evaluate_segmentation(batches, ignore_index=ignore_index, validation=chosen, background=background)

    result = counted(data, None if validation is None else counted(validation, None))
    places = torch.arange(0, len(data), max(1, -(-len(data) // NUM_SHOWN)))
    shown = data.rows(places)
    report = result.report.extended([*_temperature(posterior), *further])
    return Judged(predict(shown.x), shown.y, None, report, segmentation=result, rows=places)


def _temperature(posterior: Posterior) -> list[Measure]:
    if not isinstance(posterior, TemperaturePosterior) or posterior.biases != (0.0,):  # a vector has no one number
        return []
    return [Measure("temperature", posterior.temperature, None, "", "fitted on the validation rows")]


def _found(judged: Judged) -> list[Measure]:
    return [
        measure
        for what, sought in judged.sought.items()
        for name, scores in sought.scores.items()
        for measure in evaluate_detection(scores, sought.positives, name=f"{what}_{name}")
    ]


def _scores(predictive: PredictiveDistribution) -> dict[str, Tensor]:
    """Uncertainties of each row, larger where it is less like the training rows."""
    if isinstance(predictive, CategoricalPredictive):
        return {
            "predictive_entropy": uncertainty.predictive_entropy(predictive),
            "mutual_information": uncertainty.mutual_information(predictive),
        }
    return {
        "total_variance": predictive.total.sum(dim=1),
        "epistemic_variance": predictive.epistemic.sum(dim=1),
    }
