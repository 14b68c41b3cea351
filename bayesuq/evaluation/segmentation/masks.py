"""Truth and prediction as masks of classes: what is compared region by region, border by border, lesion by lesion."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.arrays import ArrayLike, as_labels, check_count
from bayesuq.evaluation.segmentation.pixel_counts import labelled
from bayesuq.predictive.categorical import CategoricalPredictive

_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def class_masks(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    *,
    ignore_index: int | None = None,
    background: bool = False,
    regions: bool = False,
) -> tuple[Tensor, Tensor]:
    """Which pixels are predicted to be of each class, and which are, (N, K, ...) each, boolean; void ones in neither.

    Args:
        predictive: Of the pixels of N images, with a mean (N, C, ...).
        y: Labels, (N, ...).
        ignore_index: The label of void pixels.
        background: Whether class 0 is among the K classes.
        regions: Whether they are K regions that may overlap, with a mean (N, 2, K, ...) and y (N, K, ...) of 0 and 1;
            otherwise K is an axis of space.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or a label outside the classes; regions of one label a pixel, or with a
            background; a predictive that knows to be of regions, without `regions`.
    """
    labels, valid = labelled(predictive, y, ignore_index=ignore_index)
    if predictive.is_multilabel and not regions:
        raise ValueError(
            f"`predictive` is of K = {labels.shape[1]} labels a pixel, and K would be taken for an axis of space. Pass "
            "`regions=True` for a value of each; `segmentation.region(predictive, k)` is one of them."
        )
    if regions:
        check_regions(predictive, background=background)
        if as_labels(y).shape != labels.shape:
            raise ValueError(f"One region is no axis: leave `regions` out where `y` is {tuple(as_labels(y).shape)}.")
        return (predictive.mean.max(dim=1).indices == 1) & valid, (labels == 1) & valid
    said, num_classes = predictive.mean.max(dim=1).indices, predictive.mean.shape[1]
    classes = range(0 if background else 1, num_classes)
    of_said, of_truth = (torch.stack([(values == k) & valid for k in classes], dim=1) for values in (said, labels))
    return of_said, of_truth


def class_dice(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    *,
    ignore_index: int | None = None,
    background: bool = False,
    ignore_empty: bool = True,
    regions: bool = False,
) -> Tensor:
    """Dice of each class in each image, (N, K), float64, as MONAI's `DiceMetric` has it.

    Args:
        predictive: See `class_masks`.
        y: Labels, (N, ...).
        ignore_index: The label of void pixels.
        background: Whether class 0 is among the K classes.
        ignore_empty: Whether a class that an image has none of is NaN there, whatever was predicted; else it is 1 where
            none was predicted, and 0.
        regions: See `class_masks`.

    Raises:
        TypeError, ValueError: See `class_masks`.

    Example:
        >>> predicted = CategoricalPredictive.from_logits([[[[0, 0, 9], [9, 0, 0], [0, 9, 0]]]])  # 1, 2, 0
        >>> class_dice(predicted, [[1, 1, 0]])  # class 2 is not there
        tensor([[0.6667,    nan]], dtype=torch.float64)
    """
    masks = class_masks(predictive, y, ignore_index=ignore_index, background=background, regions=regions)
    said, truth = (mask.flatten(2) for mask in masks)
    sizes = said.sum(dim=2) + truth.sum(dim=2)
    dice = 2 * (said & truth).sum(dim=2).double() / sizes.clamp(min=1)
    if ignore_empty:
        return torch.where(truth.any(dim=2), dice, torch.nan)
    return torch.where(sizes == 0, 1.0, dice)


def check_regions(predictive: CategoricalPredictive, k: int = 0, *, background: bool = False) -> None:
    """Raise a ValueError unless a predictive is of more than k labels a pixel, and no background is asked for."""
    shape = predictive.probability_sum.shape
    if len(shape) < 4 or shape[1] != 2 or not 0 <= k < shape[2]:
        raise ValueError(f"`predictive` must be of K > {k} labels a pixel, (N, 2, K, ...); got {tuple(shape)}.")
    if background:
        raise ValueError("`background` is a class, which regions that may overlap have none of.")


def near_foreground(y: ArrayLike, radius: int, *, ignore_index: int, background: int = 0) -> Tensor:
    """Labels with all pixels void but those of the foreground and within so many pixels of it, along every axis.

    Most pixels of a medical image are background that nobody doubts, and hide how calibrated the others are. Pass the
    result with the same `ignore_index` to any measure.

    Args:
        y: Labels, (N, ...), of one to three axes.
        radius: In pixels; 0 is the foreground alone.
        ignore_index: The label of void pixels, before and after.
        background: The class that is no foreground.

    Raises:
        TypeError: Labels or a radius that are not whole numbers.
        ValueError: A radius below 0; labels without an axis, or with more than three.

    Reference:
        Jungo, Balsiger & Reyes 2020, Analyzing the quality and challenges of uncertainty estimations for brain tumor
        segmentation, section 2.4.

    Example:
        >>> near_foreground([[0, 0, 0, 1, 0]], 1, ignore_index=255)
        tensor([[255, 255,   0,   1,   0]])
    """
    labels, size = as_labels(y), check_count(radius, "radius", minimum=0)
    rank = labels.ndim - 1
    if rank not in _POOL:
        raise ValueError(f"`y` must have shape (N, ...) with one to three axes; got {tuple(labels.shape)}.")
    return labels.masked_fill(~dilated((labels != background) & (labels != ignore_index), size), ignore_index)


def dilated(mask: Tensor, radius: int) -> Tensor:
    """Pixels within so many of some that are set, along every axis, of (N, ...)."""
    pool = _POOL[mask.ndim - 1]
    return pool(mask.unsqueeze(1).float(), 2 * radius + 1, stride=1, padding=radius)[:, 0] > 0.5


def region_by_region(predictive: CategoricalPredictive, maps: Tensor) -> Tensor:
    """Maps (N, K, ...) of K regions as those of N K images, so that nothing goes over from one to the next.

    Those of a predictive of one label a pixel, (N, ...), stay as they are.
    """
    return maps.flatten(0, 1) if predictive.is_multilabel else maps


def borders(labels: Tensor) -> Tensor:
    """Pixels that have a neighbour of another class along some axis, (N, ...), boolean."""
    found = torch.zeros_like(labels, dtype=torch.bool)
    for axis in range(1, labels.ndim):
        size = labels.shape[axis] - 1
        differ = labels.narrow(axis, 0, size) != labels.narrow(axis, 1, size)
        found.narrow(axis, 0, size).logical_or_(differ)
        found.narrow(axis, 1, size).logical_or_(differ)
    return found


def each(said: Tensor, truth: Tensor) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Number of the image and of the class, and the two masks of it, on the CPU."""
    said, truth = said.cpu(), truth.cpu()
    for n in range(said.shape[0]):
        for k in range(said.shape[1]):
            yield n, k, said[n, k], truth[n, k]
