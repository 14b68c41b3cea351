"""Lesions, the connected parts of a foreground: which are found, and which of those predicted are none.

A lesion of the truth is found where the share of its pixels that is predicted reaches a threshold, by default where any
pixel is; a predicted one is false where none of its pixels is in the truth. Small lesions count as much as large ones,
which Dice forgets. The uncertainty of each predicted lesion says which of them to look at.

Reference:
    Nair, Precup, Arnold & Arbel 2020, Exploring uncertainty measures in deep networks for multiple sclerosis lesion
    detection and segmentation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_share
from bayesuq.evaluation.segmentation.masks import class_masks, each
from bayesuq.predictive.categorical import CategoricalPredictive


@dataclass(frozen=True, eq=False, kw_only=True)
class LesionCounts:
    """Of each image and class, int64, (N, K), and of each predicted lesion.

    Attributes:
        true: Lesions of the truth.
        found: Of these, those found.
        predicted: Lesions that are predicted.
        false: Of these, those that are none.
        uncertainty: Mean total uncertainty of each predicted lesion, nats a pixel, (L,), images and classes in order.
        is_false: Whether it is none, boolean, (L,): what `detection.auroc(uncertainty, is_false)` asks.
    """

    true: Tensor
    found: Tensor
    predicted: Tensor
    false: Tensor
    uncertainty: Tensor
    is_false: Tensor

    @property
    def recall(self) -> Tensor:
        """Share of true lesions found, of all images together, 0-d; NaN where there is none."""
        return self.found.sum().double() / self.true.sum()

    @property
    def precision(self) -> Tensor:
        """Share of predicted lesions that are some, of all images together, 0-d; NaN where there is none."""
        return 1 - self.false.sum().double() / self.predicted.sum()

    @property
    def f1(self) -> Tensor:
        """Harmonic mean of the two, 0-d: 0 where both are 0, and NaN where one is that."""
        both = self.recall + self.precision
        return torch.where(both == 0, 0.0, 2 * self.recall * self.precision / both)

    @classmethod
    def concatenate(cls, parts: Sequence["LesionCounts"]) -> "LesionCounts":
        """The images of all parts."""
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})


def lesion_counts(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    *,
    least_share: float = 0.0,
    ignore_index: int | None = None,
    background: bool = False,
    regions: bool = False,
) -> LesionCounts:
    """Count connected parts; pixels that touch at a corner are connected.

    Args:
        predictive: Of the pixels of N images, with a mean (N, C, ...).
        y: Labels, (N, ...).
        least_share: Of a true lesion's pixels that must be predicted for it to be found; at 0 any one will do.
        ignore_index: The label of void pixels, which belong to no lesion and connect nothing.
        background: Whether class 0 is among the K classes.
        regions: Whether they are K regions that may overlap, with a mean (N, 2, K, ...) and y (N, K, ...) of 0 and 1;
            otherwise K is an axis of space.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or a label outside the classes; a share outside [0, 1]; regions of one label a
            pixel, or with a background.

    Example:
        >>> said = torch.tensor([[0.1, 0.9, 0.1, 0.1, 0.1, 0.8]])
        >>> predictive = CategoricalPredictive.from_probs(torch.stack([1 - said, said], dim=1)[None])
        >>> counts = lesion_counts(predictive, [[0, 1, 1, 0, 0, 0]])  # one found, and one that is none
        >>> int(counts.found), int(counts.false), counts.is_false
        (1, 1, tensor([False,  True]))
    """
    share = check_share(least_share, "least_share")
    said, truth = class_masks(predictive, y, ignore_index=ignore_index, background=background, regions=regions)
    maps = predictive.total if regions else predictive.total.unsqueeze(1).expand(said.shape)
    uncertainty = maps.cpu().numpy()
    counts = torch.zeros(4, *said.shape[:2], dtype=torch.int64)
    means: list[float] = []
    are_false: list[bool] = []
    for n, k, one, other in each(said, truth):
        (predicted, hits, _), (_, found, sizes) = _met(one.numpy(), other.numpy()), _met(other.numpy(), one.numpy())
        is_found = (found > 0) & (found / sizes >= share)  # a quotient: 0.07 x 100 > 7, while 7 / 100 is 0.07
        counts[:, n, k] = torch.tensor([len(found), is_found.sum(), len(hits), (hits == 0).sum()])
        means += ndimage.mean(uncertainty[n, k], predicted, np.arange(1, len(hits) + 1)).tolist() if len(hits) else []
        are_false += (hits == 0).tolist()
    return LesionCounts(
        true=counts[0].to(said.device),
        found=counts[1].to(said.device),
        predicted=counts[2].to(said.device),
        false=counts[3].to(said.device),
        uncertainty=torch.tensor(means, dtype=torch.float64, device=said.device),
        is_false=torch.tensor(are_false, dtype=torch.bool, device=said.device),
    )


def _met(mask: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The parts of a mask by number, how many pixels of each are in the other one, and how many there are."""
    parts, number = ndimage.label(mask, structure=np.ones([3] * mask.ndim))
    inside = np.bincount(parts[other].ravel(), minlength=number + 1)[1:]
    return parts, inside, np.bincount(parts.ravel(), minlength=number + 1)[1:]
