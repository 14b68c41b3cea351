"""Uncertainty-error overlap: is what the map calls uncertain what the segmentation got wrong? By Jungo & Reyes (2019).

    U = {u > t},   E = {prediction != truth},   overlap(t) = 2 #(E and U) / (#E + #U),   1 where both are empty

image by image, then the mean over images that have a labelled pixel; others say nothing. One threshold t serves all
images of a method. It is chosen where the truth may be looked at, on validation images (`best_threshold`); the
published tables take the maximum over the test images instead (`test_maximum`), which flatters. Two controls stand
beside it: the floor, all pixels called uncertain,

    floor = 2 e / (1 + e)   at error rate e,

and the same map with its pixels shuffled within the image, whose expected overlap is 2 #U e / (#E + #U), never above
the floor: an overlap near them says nothing.

Reference:
    Jungo & Reyes 2019, "Assessing reliability and challenges of uncertainty estimations for medical image
    segmentation", and its code; Judge et al. 2022, "CRISP", for the mean weighted by errors.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_finite, check_finite_number, to_floating, to_tensor
from bayesuq.evaluation.kinds import check_categorical
from bayesuq.evaluation.ranks import as_flags
from bayesuq.evaluation.scores import FOR_LABELS
from bayesuq.evaluation.segmentation.image_counts import CountedPixels, ImageCounts
from bayesuq.evaluation.uncertainty import maximum_probability, mutual_information, predictive_entropy
from bayesuq.predictive.categorical import CategoricalPredictive

PUBLISHED_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# Mutual information is a small share of log C: most of it lies below the first published threshold.
THRESHOLDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, *PUBLISHED_THRESHOLDS)


def _of_log_classes(score: Callable[[CategoricalPredictive], Tensor]) -> Callable[[CategoricalPredictive], Tensor]:
    def fraction(predictive: CategoricalPredictive) -> Tensor:
        return score(predictive) / math.log(predictive.probability_sum.shape[1])

    return fraction


def _of_largest_gap(predictive: CategoricalPredictive) -> Tensor:
    num_classes = predictive.probability_sum.shape[1]
    return maximum_probability(predictive) * num_classes / (num_classes - 1)


_FRACTIONS: Mapping[str, Callable[[CategoricalPredictive], Tensor]] = {
    "predictive_entropy": _of_log_classes(predictive_entropy),
    "mutual_information": _of_log_classes(mutual_information),
    "maximum_probability": _of_largest_gap,
}
SCORES = tuple(_FRACTIONS)


def fractions(predictive: CategoricalPredictive, score: str) -> Tensor:
    """An uncertainty of each pixel as a fraction of the largest that it can be, (N, ...), float64, in [0, 1].

    Args:
        predictive: Of labels, with C classes.
        score: One of `SCORES`: entropy or mutual information over log C, or (1 - max p) C / (C - 1).

    Raises:
        TypeError: Not a CategoricalPredictive.
        ValueError: Another score.
    """
    check_categorical(predictive, FOR_LABELS)
    if score not in _FRACTIONS:
        raise ValueError(f"`score` must be one of {', '.join(SCORES)}; got {score!r}.")
    return _FRACTIONS[score](predictive).clamp(0.0, 1.0)  # rounding may leave it


@dataclass(frozen=True, eq=False, kw_only=True)
class OverlapCounts(ImageCounts):
    """How uncertain and wrong pixels meet, image by image, at each of T thresholds.

    Attributes:
        uncertain: Pixels above each threshold, int64, (N, T).
        uncertain_errors: Of these, those predicted wrong, int64, (N, T).
        errors: Pixels predicted wrong, int64, (N,).
        pixels: Labelled pixels, int64, (N,).
    """

    uncertain: Tensor
    uncertain_errors: Tensor
    errors: Tensor
    pixels: Tensor

    @property
    def overlap(self) -> Tensor:
        """2 #(E and U) / (#E + #U) of each image, (N, T); 1 where both are empty, NaN without a labelled pixel."""
        return self._of_labelled(_dice(self.uncertain_errors, self.errors.unsqueeze(1) + self.uncertain))

    @property
    def mean(self) -> Tensor:
        """Over images with a labelled pixel, (T,): the curve that is looked at."""
        return self.overlap.nanmean(dim=0)

    @property
    def error_weighted_mean(self) -> Tensor:
        """Over images, weighted by their wrong pixels, (T,): that of CRISP; NaN without any."""
        return (self.errors.double() @ self.overlap.nan_to_num(nan=0.0)) / self.errors.sum()

    @property
    def recall(self) -> Tensor:
        """#(E and U) / #E of each image, (N, T); NaN where nothing is wrong."""
        return self.uncertain_errors.double() / self.errors.unsqueeze(1)

    @property
    def precision(self) -> Tensor:
        """#(E and U) / #U of each image, (N, T); NaN where nothing is uncertain."""
        return self.uncertain_errors.double() / self.uncertain

    @property
    def floor(self) -> Tensor:
        """2 e / (1 + e) of each image, (N,): all of it called uncertain; NaN without a labelled pixel."""
        return self._of_labelled(_dice(self.errors, self.errors + self.pixels))

    @property
    def shuffled(self) -> Tensor:
        """Expected overlap of each image's map with its pixels shuffled, (N, T): #U stays, and hits #U #E / n of E.

        Exact over all shuffles, so that none is drawn; NaN without a labelled pixel.
        """
        expected_hits = self.uncertain.double() * (self.errors / self.pixels.clamp(min=1)).unsqueeze(1)
        return self._of_labelled(_dice(expected_hits, self.errors.unsqueeze(1) + self.uncertain))

    @property
    def best_threshold(self) -> float:
        """That of the largest mean overlap: choose it on validation images. The first of several."""
        return float(self.thresholds[self.mean.argmax()])

    @property
    def test_maximum(self) -> Tensor:
        """The largest mean overlap, 0-d: of test images it is the published number, and an optimistic one."""
        return self.mean.max()

    def at(self, threshold: float) -> Tensor:
        """The overlap of each image at one of the thresholds, (N,).

        Raises:
            ValueError: None of the thresholds.
        """
        return self.overlap[:, self.index(threshold)]

    def index(self, threshold: float) -> int:
        """The place of one of the thresholds, or the error that `at` tells."""
        found = (self.thresholds == threshold).nonzero().flatten().tolist()
        if not found:
            raise ValueError(f"`threshold` must be one of {self.thresholds.tolist()}; got {threshold}.")
        return int(found[0])

    def _of_labelled(self, values: Tensor) -> Tensor:
        """NaN in the rows of images without a labelled pixel, of whose overlap nothing is known."""
        return torch.where((self.pixels > 0).view(-1, *[1] * (values.ndim - 1)), values, torch.nan)


def overlap_sweep(
    uncertainty: ArrayLike,
    errors: ArrayLike,
    *,
    thresholds: Sequence[float] = PUBLISHED_THRESHOLDS,
    labelled: ArrayLike | None = None,
) -> OverlapCounts:
    """Count N images at all thresholds in one pass over their pixels.

    Args:
        uncertainty: In [0, 1], (N, ...): see `fractions`, and `rescaled` for what has no largest value.
        errors: Whether each pixel is predicted wrong, (N, ...).
        thresholds: Rising; a pixel is uncertain above one, not at it.
        labelled: Which pixels count, (N, ...); None is all.

    Raises:
        TypeError: Not numbers.
        ValueError: Shapes that differ, values that are not finite, thresholds that do not rise.

    Example:
        >>> counts = overlap_sweep([[0.9, 0.6, 0.1, 0.1]], [[True, False, True, False]], thresholds=(0.05, 0.5))
        >>> counts.mean, counts.floor  # all four pixels are above .05
        (tensor([0.6667, 0.5000], dtype=torch.float64), tensor([0.6667], dtype=torch.float64))
    """
    values, wrong, mask = checked_maps(uncertainty, errors, labelled)
    edges = check_thresholds(thresholds).to(values.device)
    num_images, num_levels = len(values), len(edges) + 1
    counted = CountedPixels(mask)
    # The level of a pixel is the number of thresholds that it is above.
    level = torch.bucketize(counted.of(values), edges)
    cells = (counted.images * num_levels + level) * 2 + counted.of(wrong)
    by_level = torch.bincount(cells, minlength=num_images * num_levels * 2).view(num_images, num_levels, 2)
    above = by_level.flip(1).cumsum(dim=1).flip(1)
    return OverlapCounts(
        thresholds=edges,
        uncertain=above[:, 1:].sum(dim=2),
        uncertain_errors=above[:, 1:, 1],
        errors=above[:, 0, 1],
        pixels=above[:, 0].sum(dim=1),
    )


def checked_maps(
    uncertainty: ArrayLike, errors: ArrayLike, labelled: ArrayLike | None, *, fewest_dimensions: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Uncertainties, float64, which of them are of errors, and which count, booleans, of one shape (N, ...).

    Raises:
        TypeError: Not numbers.
        ValueError: Shapes that differ or have fewer dimensions, values that are not finite, errors that are not 0 or 1;
            but for what does not count.
    """
    values, truths = to_floating(uncertainty, "uncertainty").double(), to_tensor(errors, "errors")
    mask = torch.ones_like(truths, dtype=torch.bool) if labelled is None else as_flags(labelled, "labelled")
    if not values.shape == truths.shape == mask.shape or values.ndim < fewest_dimensions:
        raise ValueError(
            f"`uncertainty`, `errors` and `labelled` must have one shape (N, ...), such as (N, H, W); got "
            f"{tuple(values.shape)}, {tuple(truths.shape)} and {tuple(mask.shape)}."
        )
    check_finite(torch.where(mask, values, 0.0), "uncertainty")
    return values, as_flags(truths, "errors", known=mask), mask


def rescaled(uncertainty: ArrayLike) -> Tensor:
    """Each image's map from its smallest to its largest value as 0 to 1, (N, ...), float64; a constant map is 0.

    For uncertainties without a largest value, as Jungo & Reyes have it for auxiliary networks. It calls some pixel of
    every image uncertain, also of one that is all sure.

    Raises:
        TypeError: Not numbers.
        ValueError: Values that are not finite.
    """
    values = to_floating(uncertainty, "uncertainty").double()
    check_finite(values, "uncertainty")
    flat = values.flatten(1)
    lowest, highest = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
    return torch.where(highest > lowest, (flat - lowest) / (highest - lowest), 0.0).view(values.shape)


def _dice(both: Tensor, sizes: Tensor) -> Tensor:
    return torch.where(sizes == 0, 1.0, 2 * both.double() / sizes)


def check_thresholds(thresholds: Sequence[float]) -> Tensor:
    """They, as float64, or a ValueError unless they rise."""
    values = [check_finite_number(value, "thresholds") for value in thresholds]
    if not values or sorted(set(values)) != values:
        raise ValueError(f"`thresholds` must rise, and be at least one; got {values}.")
    return torch.tensor(values, dtype=torch.float64)
