"""One call, all measures of segmented images, batch by batch: what is kept of a batch are counts, and its pixels go.

    batches = predictions(partial(posterior.predict, num_samples=50, seed=0), test.x, test.y, batch_size=8)
    result = evaluate_segmentation(batches, ignore_index=11, validation=on_validation_images)
    print(result.report)

or `evaluate_segmentation(predictive, y)` of a few images. Batches take the memory of one, whatever the number of images
and draws. The image is the unit of every standard error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from bayesuq.arrays import ArrayLike, as_labels, check_count, to_tensor
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report
from bayesuq.evaluation.report.standard_measures import LOG_SCORE, impossible
from bayesuq.evaluation.segmentation.masks import near_foreground, region_by_region
from bayesuq.evaluation.segmentation.measures import rank_correlation
from bayesuq.evaluation.segmentation.overlap import SCORES, THRESHOLDS, OverlapCounts, fractions, overlap_sweep
from bayesuq.evaluation.segmentation.patches import PatchCounts, patch_sweep
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts, labelled
from bayesuq.evaluation.standard_errors import bootstrap, weighted
from bayesuq.evaluation.standard_errors.weighted import Weighted
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive, same_names

Batches = Iterable[tuple[PredictiveDistribution, ArrayLike]]
MOST_PARTS = 4  # batches whose counts are held one by one
VOID = -1  # in labels that are known to be at least 0
UNITS: Mapping[str, tuple[str, Callable[[PixelCounts], Tensor]]] = {
    "pixel_accuracy": ("fraction", lambda counts: counts.accuracy),
    "intersection_over_union": ("fraction", lambda counts: counts.intersection_over_union),
    LOG_SCORE: ("nats a pixel", lambda counts: counts.negative_log_likelihood),
    "brier_score": ("probability², from 0 to 2", lambda counts: counts.brier_score),
    "expected_calibration_error": ("fraction", lambda counts: counts.reliability.expected_calibration_error),
    "predictive_entropy": ("nats a pixel", lambda counts: counts.total),
    "expected_entropy": ("nats a pixel", lambda counts: counts.aleatoric),
    "mutual_information": ("nats a pixel", lambda counts: counts.epistemic),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentationResult:
    """What was counted of N images, and the measures of it.

    Attributes:
        pixels: Of each image.
        overlaps: Of uncertain and wrong pixels, by score.
        patches: Of accurate and certain patches, by the predictive entropy.
        thresholds: Above which a pixel is uncertain, by score.
        is_chosen_elsewhere: Whether the thresholds come from other images than these.
        num_samples: S, draws in the predictives.
        seed: Of the bootstrap.
        background: Whether class 0 counts in the mean Dice of more than two classes.
        close: Of each image's pixels in and near the foreground, where they were asked for.
    """

    pixels: PixelCounts
    overlaps: Mapping[str, OverlapCounts]
    patches: PatchCounts
    thresholds: Mapping[str, float]
    is_chosen_elsewhere: bool
    num_samples: int
    seed: int = 0
    background: bool = False
    close: PixelCounts | None = None

    @property
    def best_thresholds(self) -> dict[str, float]:
        """Those of the largest mean overlap here, by score."""
        return {score: counts.best_threshold for score, counts in self.overlaps.items()}

    @property
    def is_labelled(self) -> Tensor:
        """Which images have a labelled pixel, (N,), boolean: of the others nothing is known, and no measure is."""
        return self.pixels.num_pixels > 0

    @property
    def image_dice(self) -> Tensor:
        """Dice of each image, (N,); 1 where there is nothing to find and nothing was found, NaN without a label."""
        return self._dice(self.pixels)

    @property
    def image_uncertainty(self) -> dict[str, Tensor]:
        """Mean uncertainty of each image's labelled pixels in nats, (N,), by score; it does not see the truth."""
        return {"predictive_entropy": self.pixels.total, "mutual_information": self.pixels.epistemic}

    @cached_property
    def measures(self) -> dict[str, tuple[Weighted, str, str]]:
        """Each with its unit and remark, as a function of how often each image counts: for paired comparisons.

        Images without a labelled pixel are in none of them.
        """
        labelled_images = self.is_labelled.double()
        told = {LOG_SCORE: impossible(int(self.pixels.num_impossible.sum()))}
        found = {name: (self._of_pixels(read), unit, told.get(name, "")) for name, (unit, read) in UNITS.items()}
        found["dice"] = (self._of_pixels(self._dice), "fraction", self._classes)
        if self.close is not None:
            close = weighted_counts(self.close, lambda counts: counts.reliability.expected_calibration_error)
            found["expected_calibration_error_near_foreground"] = (
                close,
                "fraction",
                "pixels in or near the foreground",
            )
        origin = "chosen on other images" if self.is_chosen_elsewhere else "chosen on these very images"
        for score, counts in self.overlaps.items():
            chosen = self.thresholds[score]
            best = counts.best_threshold
            place = counts.index(chosen)
            values = {
                f"{score}_overlap": (counts.at(chosen), f"above {chosen:g}, {origin}"),
                f"{score}_overlap_shuffled": (counts.shuffled[:, place], "its map shuffled within each image"),
                f"{score}_overlap_test_maximum": (counts.at(best), f"above {best:g}, the best of these images"),
            }
            found |= {
                name: (weighted.mean(value, labelled_images), "fraction", remark)
                for name, (value, remark) in values.items()
            }
        floor = self.overlaps[SCORES[0]].floor
        found["overlap_floor"] = (weighted.mean(floor, labelled_images), "fraction", "all pixels called uncertain")
        chosen = self.thresholds[SCORES[0]]
        place = self.overlaps[SCORES[0]].index(chosen)
        found["patch_accuracy_against_uncertainty"] = (
            self._of_patches(lambda counts: counts.accuracy_against_uncertainty[:, place]),
            "fraction",
            f"entropy above {chosen:g}",
        )
        return found

    @cached_property
    def report(self) -> Report:
        """All measures with their standard errors over images."""
        measures = [
            Measure.of(name, measure.value, bootstrap.standard_error(measure, seed=self.seed), unit, remark)
            for name, (measure, unit, remark) in self.measures.items()
        ]
        there = self.is_labelled
        for score, values in self.image_uncertainty.items():
            correlation = rank_correlation(values[there], self.image_dice[there])
            remark = "of an image's mean with its Dice; -1 is best"
            measures.append(Measure.of(f"{score}_rank_correlation", correlation, None, "", remark))
        known, lost = int(there.sum()), int(self.pixels.num_impossible.sum())
        return Report(tuple(measures), known, self.num_samples, lost, num_missing=len(there) - known)

    def class_report(self, names: Sequence[str] | None = None) -> Report:
        """Dice of each class, of all images together, with standard errors over images.

        Args:
            names: Of the classes; None is their numbers.

        Raises:
            ValueError: Another number of names than classes.
        """
        measures, num_classes = [], self.pixels.confusion.shape[-1]
        if names is not None and len(names) != num_classes:
            raise ValueError(f"`names` must be {num_classes}, one for each class; got {len(names)}.")
        for k in range(num_classes):
            value = self._of_pixels(lambda counts, k=k: counts.class_dice[..., k])  # type: ignore[misc]
            error = bootstrap.standard_error(value, seed=self.seed)
            measures.append(Measure.of(f"dice_{k if names is None else names[k]}", value.value, error, "fraction", ""))
        known = int(self.is_labelled.sum())
        return Report(tuple(measures), known, self.num_samples, num_missing=len(self.is_labelled) - known)

    @property
    def _classes(self) -> str:
        """Which classes the mean Dice is of."""
        number = self.pixels.confusion.shape[-1]
        if number == 2:
            return "of class 1"
        return f"mean of classes 0 to {number - 1}" if self.background else f"mean of classes 1 to {number - 1}"

    def _dice(self, counts: PixelCounts) -> Tensor:
        return counts.dice if self.background else counts.foreground_dice

    def _of_pixels(self, read: Callable[[PixelCounts], Tensor]) -> Weighted:
        return weighted_counts(self.pixels, read)

    def _of_patches(self, read: Callable[[PatchCounts], Tensor]) -> Weighted:
        counts = self.patches.accurate_certain
        known = int(self.is_labelled.sum())
        return Weighted(len(counts), counts.numel(), counts.device, lambda w: read(self.patches.weighted(w)), known)


def evaluate_segmentation(
    batches: PredictiveDistribution | Batches,
    y: ArrayLike | None = None,
    *,
    ignore_index: int | None = None,
    validation: SegmentationResult | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    num_bins: int = 15,
    patch_size: int = 4,
    seed: int = 0,
    background: bool = False,
    foreground_radius: int | None = None,
) -> SegmentationResult:
    """All measures of segmented images.

    Args:
        batches: Predictives of labels over the pixels of some images, each with its truth, (N, ...), one after the
            other, see `predictions`; or one predictive. Signals (N, L) and volumes (N, D, H, W) are images, too.
        y: The truth of one predictive, (N, ...).
        ignore_index: The label of void pixels, which count nowhere. Images without any other are in no measure and no
            standard error, and the report says how many they are.
        validation: The result on other images, on which the thresholds of the overlap are chosen. None chooses them on
            these images, which flatters, and the report says so.
        thresholds: To choose from, rising, of uncertainties as fractions of the largest (see `overlap.fractions`);
            `overlap.PUBLISHED_THRESHOLDS` are those of Jungo & Reyes (2019).
        num_bins: Of the calibration error.
        patch_size: Pixels a side.
        seed: Of the bootstrap over images that gives the standard errors.
        background: Whether class 0 counts in the mean Dice of more than two classes, as where it is no background but
            the sky of a street scene.
        foreground_radius: Pixels around the foreground of the truth, all but class 0, within which calibration is
            measured once more: most images are background that nobody doubts. None leaves it out.

    Raises:
        TypeError: Predictives of real targets; labels that are not whole numbers; one predictive without `y`, or `y`
            beside batches.
        ValueError: No batch, or batches that do not go together; labels that do not fit; a `validation` of other
            thresholds, or without a labelled pixel.

    Example:
        >>> probs = torch.tensor([0.9, 0.1]).view(1, 1, 2, 1, 1).expand(1, 2, 2, 4, 4)  # one draw, two images
        >>> predictive = bq.CategoricalPredictive.from_probs(probs)
        >>> result = evaluate_segmentation(predictive, torch.zeros(2, 4, 4))
        >>> print(result.report["expected_calibration_error"])
        expected_calibration_error 0.1 ± 0 fraction
    """
    if validation is not None and not bool(validation.is_labelled.any()):
        raise ValueError("`validation` must have a labelled pixel: thresholds are chosen where it is wrong.")
    pixels: list[PixelCounts] = []
    overlaps: dict[str, list[OverlapCounts]] = {score: [] for score in SCORES}
    patches: list[PatchCounts] = []
    close: list[PixelCounts] = []
    num_samples = 0
    for predictive, truth in pairs(batches, y):
        pixels.append(PixelCounts.of(predictive, truth, ignore_index=ignore_index, num_bins=num_bins))  # type: ignore[arg-type]
        labels, mask = labelled(predictive, truth, ignore_index=ignore_index)  # type: ignore[arg-type]
        if foreground_radius is not None:
            known = region_by_region(predictive, labels.masked_fill(~mask, VOID))  # type: ignore[arg-type]
            near = near_foreground(known, foreground_radius, ignore_index=VOID).view(labels.shape)
            close.append(PixelCounts.of(predictive, near, ignore_index=VOID, num_bins=num_bins))  # type: ignore[arg-type]
        errors = predictive.mean.max(dim=1).indices != labels
        for score in SCORES:
            values = fractions(predictive, score)  # type: ignore[arg-type]
            overlaps[score].append(overlap_sweep(values, errors, thresholds=thresholds, labelled=mask))
            if score == SCORES[0]:
                shown, wrong, known = (region_by_region(predictive, each) for each in (values, errors, mask))  # type: ignore[arg-type]
                counts = patch_sweep(shown, wrong, size=patch_size, thresholds=thresholds, labelled=known)
                patches.append(counts.of_images(len(mask)))
        num_samples = predictive.num_samples
        counted: tuple[list[Any], ...] = (pixels, patches, close, *overlaps.values())
        for parts in counted:
            _join(parts)
    if not pixels:
        raise ValueError("`batches` must give at least one batch; it gave none. A generator can be used once only.")
    joined = {score: OverlapCounts.concatenate(parts) for score, parts in overlaps.items()}
    chosen = {score: counts.best_threshold for score, counts in joined.items()}
    return SegmentationResult(
        pixels=PixelCounts.concatenate(pixels),
        overlaps=joined,
        patches=PatchCounts.concatenate(patches),
        thresholds=chosen if validation is None else validation.best_thresholds,
        is_chosen_elsewhere=validation is not None,
        num_samples=num_samples,
        seed=check_count(seed, "seed", minimum=0),
        background=background,
        close=PixelCounts.concatenate(close) if close else None,
    )


def _join(parts: list[Any]) -> None:
    """The counts of many batches as those of one.

    Left as they come they are small tensors that stay between large ones that go, and a heap with such holes grows by
    fifty times what they hold.
    """
    if len(parts) >= MOST_PARTS:
        parts[:] = [type(parts[0]).concatenate(parts)]


def predictions(
    predict: Callable[[Tensor], PredictiveDistribution], x: ArrayLike, y: ArrayLike, *, batch_size: int = 8
) -> Iterator[tuple[PredictiveDistribution, Tensor]]:
    """Predict a few images at a time, so that only those are in memory.

    Args:
        predict: From images to their predictive, such as `partial(posterior.predict, num_samples=50, seed=0)`. With a
            seed, a posterior over weights has the same draws in every batch; the masks of MC dropout belong to the
            places in a batch, so that its numbers vary a little with the batch size.
        x: Images, (N, ...).
        y: Labels, (N, ...), or real-valued images for `bayesuq.evaluation.real_maps.evaluate_maps`.
        batch_size: Images at a time.

    Raises:
        TypeError: Not numbers; labels or `batch_size` that are not whole numbers.
        ValueError: Not as many labels as images; a batch size below 1.
    """
    images, labels = to_tensor(x, "x"), to_tensor(y, "y")
    if not (labels.is_floating_point() and bool((labels != labels.round()).any())):  # which real-valued images have
        labels = as_labels(labels)
    if len(images) != len(labels):
        raise ValueError(f"`x` and `y` must have as many rows; got {len(images)} and {len(labels)}.")
    size = check_count(batch_size, "batch_size")
    for some, truth in zip(images.split(size), labels.split(size), strict=True):
        yield predict(some), truth


def weighted_counts(counts: PixelCounts, read: Callable[[PixelCounts], Tensor]) -> Weighted:
    """What is read of the counts of images, as a function of how often each counts."""
    num_images, num_values = len(counts.confusion), counts.confusion.numel()
    known, device = int((counts.num_pixels > 0).sum()), counts.confusion.device
    return Weighted(num_images, num_values, device, lambda w: read(counts.weighted(w)).double(), known)


def pairs(batches: PredictiveDistribution | Batches, y: ArrayLike | None) -> Batches:
    """Each predictive with its truth, of batches or of one predictive.

    Raises:
        TypeError: One predictive without `y`, or `y` beside batches; neither of them.
    """
    if isinstance(batches, PredictiveDistribution):
        if y is None:
            raise TypeError("Of one predictive `y` is needed, the truth of its pixels, (N, ...).")
        return [(batches, y)]
    if y is not None or not isinstance(batches, Iterable):
        raise TypeError("Give one predictive of images and its `y`, or batches that bring their truth with them.")
    return _checked(batches)


def _checked(batches: Batches) -> Batches:
    """The same, one after the other, each a predictive with its truth.

    Raises:
        TypeError: Something else.
        ValueError: Another number of draws than before, or classes that are called otherwise.
    """
    num_samples = 0
    names: tuple[str, ...] | None = None
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[0], PredictiveDistribution):
            parts = batch if isinstance(batch, tuple | list) else [batch]
            told = ", ".join(type(part).__name__ for part in parts)
            raise TypeError(
                f"Each batch must be a predictive and its truth, (predictive, y); got {told}. Void pixels have the "
                "label `ignore_index`, and no weight."
            )
        if num_samples and batch[0].num_samples != num_samples:
            raise ValueError(f"Batches must have one number of draws; got {num_samples} and {batch[0].num_samples}.")
        num_samples = batch[0].num_samples
        names = same_names(names, batch[0].names) if isinstance(batch[0], CategoricalPredictive) else names
        yield batch[0], batch[1]
        del batch  # before the next one is made
