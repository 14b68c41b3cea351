"""Ctrl-C between two steps, not within one: there, weights, optimiser and torch's own modes belong together.

Raised in the midst of a step, `KeyboardInterrupt` left torch's gradients switched off for good once in 60 to 400 times.
"""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

ASKED_TO_END = (signal.SIGINT, signal.SIGTERM)


class Interruptions:
    """While it is entered, signals that a handler of Python's answers wait for `deliver`; a second one does not.

    A signal that the system answers, as it does SIGTERM unless a program says otherwise, ends the process as ever: at
    once, or, where there is something to save first, between two steps. In a thread other than the main one nothing
    waits: signals do not come there.

    Args:
        saves: Whether there is.
    """

    def __init__(self, *, saves: bool = False) -> None:
        self.saves = saves
        self.handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self.before: dict[int, Any] = {}
        self.waiting: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ASKED_TO_END:
                handler = signal.getsignal(number)
                if handler is signal.SIG_DFL and self.saves:
                    handler = _end
                if callable(handler):
                    self.before[number] = signal.getsignal(number)
                    self.handlers[number] = handler
                    signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.deliver()

    @property
    def asked(self) -> int | None:
        """The signal that waits."""
        return None if self.waiting is None else self.waiting[0]

    def deliver(self, number: int | None = None) -> None:
        """Let the one that waits be answered, which most often raises an exception.

        Args:
            number: One that has come to another process of this fit, which is answered here likewise.
        """
        if self.waiting is None and number is not None:
            self.waiting = number, None
        if self.waiting is not None:
            (found, frame), self.waiting = self.waiting, None
            self.handlers.get(found, _end)(found, frame)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.waiting is not None:  # the user has waited enough
            self.handlers[number](number, frame)
        self.waiting = number, frame


def _end(number: int, _frame: FrameType | None) -> None:
    """What the system does."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
