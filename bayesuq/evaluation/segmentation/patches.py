"""Accuracy against uncertainty, patch by patch: errors of segmentation come in regions, not in single pixels.

Images are cut into patches of so many pixels a side. A patch is accurate where more than half of its labelled pixels
are predicted right, and uncertain where their mean uncertainty is above a threshold. Three shares are asked of them,

    p(accurate | certain),     p(uncertain | inaccurate),     PAvPU = (accurate certain + inaccurate uncertain) / all

Reference:
    Mukhoti & Gal 2018, "Evaluating Bayesian deep learning methods for semantic segmentation", section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.arrays import ArrayLike, check_count, check_fraction
from bayesuq.evaluation.segmentation.image_counts import ImageCounts
from bayesuq.evaluation.segmentation.overlap import PUBLISHED_THRESHOLDS, check_thresholds, checked_maps

_COUNTS = ("accurate_certain", "accurate_uncertain", "inaccurate_certain", "inaccurate_uncertain")


@dataclass(frozen=True, eq=False, kw_only=True)
class PatchCounts(ImageCounts):
    """Patches of N images at each of T thresholds, int64, (N, T).

    Attributes:
        accurate_certain: Most pixels right, and sure.
        accurate_uncertain: Most pixels right, and unsure.
        inaccurate_certain: Most pixels wrong, and sure: what must not be.
        inaccurate_uncertain: Most pixels wrong, and unsure.
    """

    accurate_certain: Tensor
    accurate_uncertain: Tensor
    inaccurate_certain: Tensor
    inaccurate_uncertain: Tensor

    def weighted(self, weights: Tensor) -> Self:
        """Of all images together, each as often as its weight says, (R, N); counts are then (R, T), float64."""
        return replace(self, **{name: weights @ getattr(self, name).double() for name in _COUNTS})

    def of_images(self, number: int) -> Self:
        """Of so many images, each of which has as many rows as the others here, such as one for each region."""
        return replace(self, **{name: getattr(self, name).unflatten(0, (number, -1)).sum(dim=1) for name in _COUNTS})

    @property
    def pooled(self) -> Self:
        """Of all images together, counts (1, T)."""
        return self.weighted(torch.ones(1, len(self.accurate_certain)).to(self.thresholds))

    @property
    def accurate_given_certain(self) -> Tensor:
        """p(accurate | certain); NaN where no patch is certain."""
        return self.accurate_certain.double() / (self.accurate_certain + self.inaccurate_certain)

    @property
    def uncertain_given_inaccurate(self) -> Tensor:
        """p(uncertain | inaccurate); NaN where no patch is inaccurate."""
        return self.inaccurate_uncertain.double() / (self.inaccurate_certain + self.inaccurate_uncertain)

    @property
    def accuracy_against_uncertainty(self) -> Tensor:
        """PAvPU, the share of patches that are accurate and certain or neither."""
        agree = self.accurate_certain + self.inaccurate_uncertain
        return agree.double() / (agree + self.accurate_uncertain + self.inaccurate_certain)


def patch_sweep(
    uncertainty: ArrayLike,
    errors: ArrayLike,
    *,
    size: int = 4,
    accuracy_threshold: float = 0.5,
    thresholds: Sequence[float] = PUBLISHED_THRESHOLDS,
    labelled: ArrayLike | None = None,
) -> PatchCounts:
    """Count the patches of N images at all thresholds.

    Args:
        uncertainty: In [0, 1], (N, ...) of any spatial rank, such as (N, H, W): see `overlap.fractions`.
        errors: Whether each pixel is predicted wrong, (N, ...).
        size: Pixels a side, along every axis; patches at the far ends may be smaller.
        accuracy_threshold: A patch with more right pixels than this share is accurate.
        thresholds: Of the uncertainty, rising.
        labelled: Which pixels count, (N, ...); a patch without any counts nowhere. None is all.

    Raises:
        TypeError: Not numbers; `size` not a whole number.
        ValueError: Shapes that differ or are no maps, values that are not finite, thresholds that do not rise, a size
            below 1.

    Example:
        >>> counts = patch_sweep([[[0.9, 0.1]]], [[[True, False]]], size=1, thresholds=(0.5,))
        >>> counts.accuracy_against_uncertainty  # unsure where wrong, sure where right
        tensor([[1.]], dtype=torch.float64)
    """
    values, wrong, mask = checked_maps(uncertainty, errors, labelled, fewest_dimensions=2)
    share, edges = check_fraction(accuracy_threshold, "accuracy_threshold"), check_thresholds(thresholds)
    edges = edges.to(values.device)
    check_count(size, "size")
    num = _sums(mask.double(), size)
    there = (num > 0).unsqueeze(-1)
    # A quotient, since 0.57 x 100 < 57 in floating point while 57 / 100 is the same number as 0.57.
    accurate = (_sums((mask & ~wrong).double(), size) / num.clamp(min=1) > share).unsqueeze(-1)
    uncertain = (_sums(torch.where(mask, values, 0.0), size) / num.clamp(min=1)).unsqueeze(-1) > edges
    return PatchCounts(
        thresholds=edges,
        accurate_certain=(there & accurate & ~uncertain).sum(dim=1),
        accurate_uncertain=(there & accurate & uncertain).sum(dim=1),
        inaccurate_certain=(there & ~accurate & ~uncertain).sum(dim=1),
        inaccurate_uncertain=(there & ~accurate & uncertain).sum(dim=1),
    )


def _sums(values: Tensor, size: int) -> Tensor:
    """Over the patches of each image, (N, number of patches)."""
    for axis in range(1, values.ndim):
        padding = [0, 0] * (values.ndim - 1 - axis) + [0, -values.shape[axis] % size]
        values = functional.pad(values, padding).unflatten(axis, (-1, size)).sum(dim=axis + 1)
    return values.flatten(1)
