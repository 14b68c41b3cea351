"""Rows that are collected one batch after another: in memory up to a bound, and in a file beyond it.

The file has no name from when it is complete, and goes when the last tensor over it does.
"""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from torch import Tensor


class RowStore:
    """Batches of rows (B, ...) of one shape and dtype, as one tensor (N, ...)."""

    def __init__(self, memory: int) -> None:
        """Of no row; `memory` bytes are held at most before they go to a file."""
        self.memory = memory
        self._parts: list[Tensor] = []
        self._held = 0
        self._shape: tuple[int, ...] = ()
        self._file: str | None = None

    @property
    def is_filled(self) -> bool:
        """Whether there is a row."""
        return bool(self._parts) or self._file is not None

    def add(self, rows: Tensor) -> None:
        """Take further rows."""
        self._parts.append(rows)
        self._shape = tuple(rows.shape[1:])
        self._held += rows.numel() * rows.element_size()
        if self._held > self.memory:
            self._spill()

    def whole(self) -> Tensor:
        """All rows in order, on the device that they came from, or on the CPU over a file."""
        if self._file is None:
            return self._parts[0] if len(self._parts) == 1 else torch.cat(self._parts)
        if self._parts:
            self._spill()
        found = np.memmap(self._file, dtype=self._dtype, mode="r+")
        os.unlink(self._file)
        return torch.from_numpy(found).view(-1, *self._shape)

    def _spill(self) -> None:
        if self._file is None:
            with NamedTemporaryFile(prefix="bayesuq-", suffix=".rows", delete=False) as made:
                self._file = made.name
        with Path(self._file).open("ab") as file:
            for rows in self._parts:
                array = rows.cpu().contiguous().numpy()
                self._dtype = array.dtype
                file.write(array.data)
        self._parts, self._held = [], 0
