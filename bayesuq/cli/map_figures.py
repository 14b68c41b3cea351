"""The figures of a report on segmented images, told in words: maps, calibration, overlap with errors, quality."""

from collections.abc import Mapping

from torch import Tensor

from bayesuq.cli.figures import Picture, loss_picture
from bayesuq.cli.judging import Judged
from bayesuq.cli.methods import Fitted
from bayesuq.data import Split
from bayesuq.datasets.named import CLASS_NAMES, IGNORED
from bayesuq.evaluation.plots import classification, segmentation
from bayesuq.evaluation.plots.slices import segmentation_slices
from bayesuq.evaluation.segmentation.overlap import SCORES
from bayesuq.evaluation.segmentation.reporting import SegmentationResult
from bayesuq.predictive.categorical import CategoricalPredictive

NUM_SLICES = 16  # of a volume that the page is scrolled through
VOLUMES = 4  # dimensions of labels (N, D, H, W)
Results = dict[str, SegmentationResult]


def draw(data: str, split: Split, judged: Mapping[str, Judged], fitted: Mapping[str, Fitted]) -> list[Picture]:
    """All figures, of methods whose targets have a label for every pixel.

    Args:
        data: Name of the data set.
        split: Its parts.
        judged: What was predicted of its test images, by method.
        fitted: How each method was fitted.
    """
    results = {name: result.segmentation for name, result in judged.items() if result.segmentation is not None}
    pictures = [_maps(data, split, name, result) for name, result in judged.items()]
    if split.test.y.ndim == VOLUMES:
        pictures += [_slices(data, split, name, result) for name, result in judged.items()]
    pictures += [_reliability(results), *(_overlap(results, score) for score in SCORES[:2]), _quality(results)]
    return [*pictures, loss_picture(fitted)] if any(result.losses for result in fitted.values()) else pictures


def _maps(data: str, split: Split, name: str, judged: Judged) -> Picture:
    predictive, y = _labels_of(judged)
    figure = segmentation.segmentation_maps(
        predictive, _images_of(split, judged), y, names=CLASS_NAMES.get(data), ignore_index=IGNORED.get(data)
    )
    return Picture.of(
        figure,
        f"Where is it wrong, and where is it unsure? ({name})",
        "Test images, their true and predicted classes, and the pixels that are wrong. Total uncertainty is the sum of "
        "the aleatoric part, of what nobody could know, and the epistemic part, of what the method does not know yet. "
        "An uncertainty is of use where it lies on the errors. Colours of uncertainties compare within the picture.",
        f"{name}: {len(y)} test images with truth, prediction, errors and three maps of uncertainty.",
        leads=True,
    )


def _slices(data: str, split: Split, name: str, judged: Judged) -> Picture:
    """Of that one of the volumes shown in which most voxels are wrong."""
    predictive, y = _labels_of(judged)
    wrong = ((predictive.mean.max(dim=1).indices != y) & (y != IGNORED.get(data))).flatten(1).sum(dim=1)
    slices = segmentation_slices(
        predictive,
        _images_of(split, judged),
        y,
        volume=int(wrong.argmax()),
        num_slices=NUM_SLICES,
        names=CLASS_NAMES.get(data),
        ignore_index=IGNORED.get(data),
    )
    return Picture(
        f"Through a whole volume ({name})",
        "Scroll through the slices of one test volume, of those shown the one with most wrong voxels; on paper they "
        "lie one below the other. Colours of uncertainties compare over all slices.",
        f"{name}: {len(slices.places)} slices of a volume.",
        source="",
        width=0,
        leads=True,
        fragment=slices.html,
    )


def _labels_of(judged: Judged) -> tuple[CategoricalPredictive, Tensor]:
    if not isinstance(judged.predictive, CategoricalPredictive):
        raise TypeError(f"Maps need labels; got {type(judged.predictive).__name__}.")
    return judged.predictive, judged.y


def _images_of(split: Split, judged: Judged) -> Tensor:
    """The test images that the predictive is of."""
    return split.test.x if judged.rows is None else split.test.x[judged.rows]


def _reliability(results: Results) -> Picture:
    curves = {name: result.pixels.pooled.reliability for name, result in results.items()}
    gaps = [f"{name} {float(curve.expected_calibration_error):.3f}" for name, curve in curves.items()]
    return Picture.of(
        classification.reliability_diagram(curves),
        "Does confidence come true?",
        "Each dot is a group of test pixels predicted with about the same confidence; its height is the share of them "
        "that was right. On the diagonal the two agree; below it the method is too sure, above it not sure enough. The "
        "intervals take pixels for independent, which those of one image are not: they are too short.",
        f"Reliability diagrams over pixels, one a method. Expected calibration error: {', '.join(gaps)}.",
        leads=True,
    )


def _overlap(results: Results, score: str) -> Picture:
    counts = {name: result.overlaps[score] for name, result in results.items()}
    best = [f"{name} {float(each.test_maximum):.3f}" for name, each in counts.items()]
    words = score.replace("_", " ")
    return Picture.of(
        segmentation.overlap_curves(counts),
        f"Do uncertain pixels find the wrong ones? ({words})",
        f"Pixels whose {words} is above a threshold are called uncertain, and held against those that are wrong: 1 "
        "where the two sets are the same. Only what lies above both other lines says something.",
        f"Overlap against the threshold, one panel for each method. At its best: {', '.join(best)}.",
    )


def _quality(results: Results) -> Picture:
    dots = {
        name: (
            result.image_uncertainty["predictive_entropy"][result.is_labelled],
            result.image_dice[result.is_labelled],
        )
        for name, result in results.items()
    }
    return Picture.of(
        segmentation.quality_scatter(dots),
        "Does it know which images went wrong?",
        "Each dot is a test image: how well it was segmented, against how unsure the method says it is on average. "
        "Dots on a line that falls mean that bad segmentations are known without the truth.",
        f"Dice against mean predictive entropy of each test image, one panel for each method: {', '.join(results)}.",
    )
