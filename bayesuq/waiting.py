"""What is read of an accelerator, read together: each read waits until the device has done all that it was asked.

On a host a check reads its value where it stands. Of a tensor elsewhere, what is checked within `Notes` is noted, and
read in one transfer at the end; a number that decides what is done next comes with all that was noted before it. Until
a check is read, its values may be wrong: what a kernel must not be given is taken out of them first.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

Then = Callable[[float], None]


class Notes:
    """What is to be read. Within `with notes:` this thread notes here; `read()` reads it all and does what follows."""

    def __init__(self) -> None:
        """Of nothing yet."""
        self._noted: list[tuple[Tensor, Then]] = []
        self._tokens: list[Token[Notes | None]] = []

    def __enter__(self) -> Self:
        """Note here."""
        self._tokens.append(_OPEN.set(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Note where it was noted before. An error inside may come from what a noted check refuses: that is raised."""
        _OPEN.reset(self._tokens.pop())
        if isinstance(error, Exception):
            self.read()

    def add(self, value: Tensor, then: Then) -> None:
        """Read a number, 0-d, with the others."""
        self._noted.append((value.detach(), then))

    def read(self, more: Sequence[Tensor] = ()) -> list[float]:
        """Read all that is noted, and other numbers, which are returned.

        Raises:
            Exception: That of the first check that fails.
        """
        noted, self._noted = self._noted, []
        if not noted and not more:
            return []
        values = [*(value for value, _ in noted), *(value.detach() for value in more)]
        found: list[float] = torch.stack([value.double() for value in values]).tolist()
        for (_, then), value in zip(noted, found, strict=False):
            then(value)
        return found[len(noted) :]


_OPEN: ContextVar[Notes | None] = ContextVar("notes", default=None)


@contextmanager
def in_one_read() -> Iterator[None]:
    """Read once what is checked within; what is within another such block, at the end of that. Also a decorator."""
    if _OPEN.get() is not None:
        yield
        return
    with Notes() as notes:
        yield
    notes.read()


def are_noted(tensor: Tensor) -> bool:
    """Whether what is checked of a tensor is read later."""
    return tensor.device.type != "cpu" and _OPEN.get() is not None


def note(value: Tensor, then: Then) -> None:
    """Do something with a number, 0-d, when it is read: now, or with all that is noted."""
    notes = _OPEN.get()
    if notes is None or value.device.type == "cpu":
        then(float(value))
    else:
        notes.add(value, then)


def check(holds: Tensor, error: Callable[[], Exception]) -> None:
    """Raise an error unless a condition, 0-d, holds, when it is read: now, or with all that is noted."""
    notes = _OPEN.get()
    if notes is None or holds.device.type == "cpu":
        if not holds:
            raise error()
    else:
        notes.add(holds, lambda value: _refuse(error) if not value else None)


def numbers(*values: Tensor) -> list[float]:
    """Numbers, 0-d each, that decide what is done next: read now, with all that was noted before."""
    notes = _OPEN.get()
    if notes is None or values[0].device.type == "cpu":
        return [float(value) for value in values]
    return notes.read(values)


def _refuse(error: Callable[[], Exception]) -> None:
    raise error()
