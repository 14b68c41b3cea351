"""Distances between the borders of what was predicted and what is there, image by image and class by class.

A border is the pixels of a mask that touch what is not in it, or the end of the image. Void pixels are on no side:
where a mask ends at one it is not known to end, and has no border there. d(a, B) being the distance of a pixel a to the
nearest pixel of the border B,

    Hausdorff 95 %            = max(q95 {d(a, B): a in A}, q95 {d(b, A): b in B})
    average surface distance  = mean of d(a, B) and d(b, A) over all a in A and b in B
    surface Dice at t         = #{a: d(a, B) <= t} + #{b: d(b, A) <= t} over #A + #B

in the unit of `spacing`. Where one of the masks is empty the distances are infinite and the surface Dice is 0; where
both are, or one ends at void pixels alone, NaN: nothing is known. Without void pixels these are MONAI's definitions,
whose Hausdorff distance is NaN in both cases of empty masks; medpy pools the two sides before it takes the quantile.
The code of DAVIS (Perazzi et al. 2016) takes void pixels for background: truth and prediction then share a border all
along them, at distance 0, which flatters.

Reference:
    Nikolov et al. 2021, Clinically applicable segmentation of head and neck anatomy, for the surface Dice;
    Maier-Hein et al. 2024, Metrics reloaded, for when to use which; Perazzi et al. 2016, A benchmark dataset and
    evaluation methodology for video object segmentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_positive, check_share
from bayesuq.evaluation.segmentation.masks import class_masks, each
from bayesuq.evaluation.segmentation.pixel_counts import labelled
from bayesuq.predictive.categorical import CategoricalPredictive


@dataclass(frozen=True, eq=False, kw_only=True)
class SurfaceDistances:
    """Of each image and class, (N, K), float64.

    Attributes:
        hausdorff: The largest distance, or that quantile of both sides, in the unit of the spacing.
        average: Mean distance, likewise.
        surface_dice: Share of both borders that lies within the tolerance of the other.
    """

    hausdorff: Tensor
    average: Tensor
    surface_dice: Tensor


def surface_distances(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    *,
    spacing: Sequence[float] | float = 1.0,
    quantile: float = 0.95,
    tolerance: float = 1.0,
    ignore_index: int | None = None,
    background: bool = False,
    regions: bool = False,
) -> SurfaceDistances:
    """Compare borders.

    Args:
        predictive: Of the pixels of N images, with a mean (N, C, ...).
        y: Labels, (N, ...).
        spacing: Of pixels along each axis, or one number for all axes.
        quantile: Of the Hausdorff distance: 0.95 is what papers report, 1 the largest.
        tolerance: Of the surface Dice, in the unit of the spacing.
        ignore_index: The label of void pixels, which belong to no mask and end none.
        background: Whether class 0 is among the K classes.
        regions: Whether they are K regions that may overlap, with a mean (N, 2, K, ...) and y (N, K, ...) of 0 and 1;
            otherwise K is an axis of space.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or a label outside the classes; another number of spacings than axes, or one
            that is not above 0; regions of one label a pixel, or with a background.

    Example:
        >>> predicted = CategoricalPredictive.from_logits([[[[9, 9, 0, 0, 0], [0, 0, 9, 9, 9]]]])
        >>> found = surface_distances(predicted, [[0, 0, 0, 0, 1]], spacing=0.5)
        >>> found.hausdorff, found.average  # borders at pixels 2 and 4, and at pixel 4
        (tensor([[0.9500]], dtype=torch.float64), tensor([[0.3333]], dtype=torch.float64))
    """
    share, near = check_share(quantile, "quantile"), check_positive(tolerance, "tolerance")
    said, truth = class_masks(predictive, y, ignore_index=ignore_index, background=background, regions=regions)
    rank = said.ndim - 2
    given = np.asarray(spacing, dtype=np.float64)
    distances = [float(given)] * rank if given.ndim == 0 else given.tolist()
    if len(distances) != rank:
        may_be_regions = not regions and len(distances) == rank - 1 and rank > 1
        of_regions = " Of K regions pass `regions=True`: K is no axis." if may_be_regions else ""
        raise ValueError(f"`spacing` must have {rank} numbers, one for each axis; got {len(distances)}.{of_regions}")
    sampling = [check_positive(distance, "spacing") for distance in distances]
    known = labelled(predictive, y, ignore_index=ignore_index)[1]
    void = ~(known if regions else known.unsqueeze(1)).expand(said.shape).cpu()
    found = torch.full((3, *said.shape[:2]), torch.nan, dtype=torch.float64)
    for n, k, one, other in each(said, truth):
        masks = one.numpy(), other.numpy()
        found[:, n, k] = _measured(*masks, void[n, k].numpy(), sampling, share, near)
    found = found.to(said.device)
    return SurfaceDistances(hausdorff=found[0], average=found[1], surface_dice=found[2])


def _measured(
    said: np.ndarray, truth: np.ndarray, void: np.ndarray, sampling: Sequence[float], share: float, near: float
) -> Tensor:
    """Hausdorff distance, average distance and surface Dice of two masks, (3,)."""
    if said.any() != truth.any():
        return torch.tensor([np.inf, np.inf, 0.0], dtype=torch.float64)
    edges = [mask & ~ndimage.binary_erosion(mask | void) for mask in (said, truth)]
    if not all(edge.any() for edge in edges):
        return torch.full((3,), torch.nan, dtype=torch.float64)
    away = [ndimage.distance_transform_edt(~edge, sampling=sampling) for edge in edges]
    sides = [away[1][edges[0]], away[0][edges[1]]]
    both = np.concatenate(sides)
    return torch.tensor(
        [max(np.quantile(side, share) for side in sides), both.mean(), (both <= near).mean()], dtype=torch.float64
    )
