"""Network outputs that no predictive can hold: rows far outside of the data, where floats run out.

Infinite outputs and variances become the largest that measures stay finite with, and the rows are told in one warning
a prediction. NaN has no such number and is refused, with the rows.
"""

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.waiting import are_noted, check, note

LARGEST = 1e100  # of outputs in float64: its square is a float, and so is the sum of many
LARGEST_LOG = math.log(LARGEST)


@dataclass
class FarRows:
    """How many rows of a prediction had an output that was cut, in any draw."""

    count: int = 0
    _rows: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Rows of the present chunk, boolean, (N,)."""
        self._rows = rows if self._rows is None else self._rows | rows

    def end_chunk(self) -> None:
        """Count the present chunk; further rows are of another."""
        if self._rows is not None:
            note(self._rows.sum(), self._add)
        self._rows = None

    def _add(self, number: float) -> None:
        self.count += int(number)


_COUNTED: ContextVar[FarRows | None] = ContextVar("_COUNTED", default=None)


@contextmanager
def counted_far_rows() -> Iterator[FarRows]:
    """Within, far rows are counted, and told in one warning at the end."""
    found = FarRows()
    token = _COUNTED.set(found)
    try:
        yield found
    finally:
        _COUNTED.reset(token)
    found.end_chunk()
    if found.count:
        _warn(f"{found.count} rows")


def within_floats(f: Tensor, *, highest: float = math.inf, lowest: float = -math.inf) -> Tensor:
    """Outputs (S, N, ...) between two numbers; those that are not are cut, and their rows told.

    Args:
        f: Of S draws at N rows.
        highest: At most this, or what is finite in f's dtype and below 1e100.
        lowest: Likewise.

    Raises:
        ValueError: NaN.
    """
    if not are_noted(f) and are_within(f, highest=highest, lowest=lowest):
        return f
    bound = _bound(f)
    highest, lowest = min(highest, bound), max(lowest, -bound)
    unknown = _rows(f.isnan())
    check(~unknown.any(), lambda: _unknown(unknown))
    rows = _rows((f > highest) | (f < lowest))
    found = _COUNTED.get()
    if found is None:
        note(rows.sum(), lambda number: _warn(f"{int(number)} of {len(rows)} rows") if number else None)
    else:
        found.add(rows)
    return f.clamp(lowest, highest)


def are_within(f: Tensor, *, highest: float = math.inf, lowest: float = -math.inf) -> bool:
    """Whether outputs need no cut, in one pass over them: see `within_floats`."""
    low, high = torch.stack(f.detach().aminmax()).tolist()  # NaN spreads to both
    return max(lowest, -_bound(f)) <= low and high <= min(highest, _bound(f))


def _unknown(rows: Tensor) -> ValueError:
    return ValueError(
        f"The network's outputs are NaN at {int(rows.sum())} of {len(rows)} rows, the first is row "
        f"{int(rows.nonzero()[0])} of them: no prediction is possible there. Leave these rows out, or bring `x` to the "
        "size of the data that was fitted."
    )


def _bound(f: Tensor) -> float:
    return min(LARGEST, torch.finfo(f.dtype).max)


def _rows(flags: Tensor) -> Tensor:
    """Whether any number of a row is flagged in any draw, (N,)."""
    return flags.movedim(1, 0).flatten(1).any(dim=1)


def _warn(which: str) -> None:
    warnings.warn(
        f"The network's outputs overflow at {which}, and were cut to the largest that measures are finite with. Such "
        "rows are far outside of the data that was fitted, and what is predicted there says no more than that.",
        UserWarning,
        stacklevel=2,
    )
