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

    A signal that the system answers, as it does SIGTERM unless a program says otherwise, ends the process as ever. In a
    thread other than the main one nothing waits: signals do not come there.
    """

    def __init__(self) -> None:
        self.handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self.waiting: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ASKED_TO_END:
                handler = signal.getsignal(number)
                if callable(handler):
                    self.handlers[number] = handler
                    signal.signal(number, self._take)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.deliver()

    def deliver(self) -> None:
        """Let the one that waits be answered, which most often raises an exception."""
        if self.waiting is not None:
            (number, frame), self.waiting = self.waiting, None
            self.handlers[number](number, frame)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.waiting is not None:  # the user has waited enough
            self.handlers[number](number, frame)
        self.waiting = number, frame
