"""Counts of each image at thresholds on its uncertainty, and the images of several batches put together."""

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
