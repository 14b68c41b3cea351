"""What is measured of every posterior: its report on test data, and how well it tells data of another kind."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bayesuq.cli.settings import PredictionOptions
from bayesuq.data import Dataset, Standardizer
from bayesuq.evaluation import uncertainty
from bayesuq.evaluation.measure import Measure
from bayesuq.evaluation.report import Report, evaluate, evaluate_detection
from bayesuq.evaluation.segmentation_report import SegmentationResult, evaluate_segmentation, predictions
from bayesuq.inference.temperature import TemperaturePosterior
from bayesuq.posterior import Posterior
from bayesuq.predictive import CategoricalPredictive, PredictiveDistribution

IMAGES_AT_A_TIME = 4
NUM_SHOWN = 3  # images in a picture


@dataclass(frozen=True, eq=False)
class Judged:
    """A posterior's predictions, and the report of them.

    Attributes:
        predictive: At the test points, in the targets' own units.
        y: The truth there.
        ood: At points of another kind; None where the data have none.
        report: All measures.
        segmentation: What was counted, where there is a label for every pixel; the predictive and the truth are then
            those of a few images, and `ood` is not there.
    """

    predictive: PredictiveDistribution
    y: Tensor
    ood: PredictiveDistribution | None
    report: Report
    segmentation: SegmentationResult | None = None

    @property
    def detection_scores(self) -> dict[str, Tensor]:
        """By name, a score of each test point and then of each point of another kind, larger where more uncertain."""
        if self.ood is None:
            return {}
        inside, outside = _scores(self.predictive), _scores(self.ood)
        return {name: torch.cat([inside[name], outside[name]]) for name in inside}

    @property
    def is_ood(self) -> Tensor:
        """Whether each of the points of `detection_scores` is of another kind."""
        num_ood = 0 if self.ood is None else len(self.ood.mean)
        return torch.arange(len(self.y) + num_ood) >= len(self.y)


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
    """
    if data.is_labelled and data.y.ndim > 1:
        return _judge_maps(posterior, data, options, further, validation, ignore_index)

    def predict(part: Dataset) -> PredictiveDistribution:
        x = part.x if standardizer is None else standardizer.transform(part).x
        predictive = posterior.predict(x, num_samples=options.num_samples, seed=options.seed)
        return predictive if standardizer is None else standardizer.inverse(predictive)

    predictive = predict(data)
    judged = Judged(predictive, data.y, None if ood is None else predict(ood), evaluate(predictive, data.y))
    measures = [*_temperature(posterior), *_detection(judged), *further]
    return Judged(judged.predictive, judged.y, judged.ood, judged.report.extended(measures))


def _judge_maps(
    posterior: Posterior,
    data: Dataset,
    options: PredictionOptions,
    further: Iterable[Measure],
    validation: Dataset | None,
    ignore_index: int | None,
) -> Judged:
    """A few images at a time, so that memory is theirs."""
    predict = partial(posterior.predict, num_samples=options.num_samples, seed=options.seed)

    def counted(part: Dataset, chosen: SegmentationResult | None) -> SegmentationResult:
        batches = predictions(predict, part.x, part.y, batch_size=IMAGES_AT_A_TIME)
        return evaluate_segmentation(batches, ignore_index=ignore_index, validation=chosen)

    result = counted(data, None if validation is None else counted(validation, None))
    shown = data.rows(torch.arange(0, len(data), max(1, -(-len(data) // NUM_SHOWN))))
    report = result.report.extended([*_temperature(posterior), *further])
    return Judged(predict(shown.x), shown.y, None, report, result)


def _temperature(posterior: Posterior) -> list[Measure]:
    if not isinstance(posterior, TemperaturePosterior) or posterior.biases != (0.0,):  # a vector has no one number
        return []
    return [Measure("temperature", posterior.temperature, None, "", "fitted on the validation rows")]


def _detection(judged: Judged) -> list[Measure]:
    return [
        measure
        for name, scores in judged.detection_scores.items()
        for measure in evaluate_detection(scores, judged.is_ood, name=f"ood_{name}")
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
