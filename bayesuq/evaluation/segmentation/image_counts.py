"""Counts of each image: which of its pixels count, at which thresholds, and the images of several batches together."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageCounts:
    """Counts of N images at T thresholds; a subclass names them, each (N, ...).

    Attributes:
        thresholds: Rising, (T,), float64.
    """

    thresholds: Tensor

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The images of all parts.

        Raises:
            ValueError: No part, or other thresholds.
        """
        if not parts or any(not part.thresholds.equal(parts[0].thresholds) for part in parts):
            raise ValueError("Parts must have the same thresholds, and be at least one.")
        names = [field.name for field in fields(cls) if field.name != "thresholds"]
        return replace(parts[0], **{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


class CountedPixels:
    """Those pixels of N images that count, one after another.

    Where all do, which is usual, nothing is searched for: that takes longer than what is counted.

    Args:
        mask: Which pixels do, (N, ...), boolean.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = None if bool(mask.all()) else mask
        self.images = self.of(_number_of_image(mask))

    def of(self, values: Tensor) -> Tensor:
        """Their values, (number,), of maps (N, ...)."""
        return values.reshape(-1) if self.mask is None else values[self.mask]


def _number_of_image(mask: Tensor) -> Tensor:
    return torch.arange(len(mask), device=mask.device).view(-1, *[1] * (mask.ndim - 1)).expand_as(mask)
