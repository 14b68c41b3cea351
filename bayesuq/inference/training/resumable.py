"""Loops that are stopped and go on: what they write down as they go, and when they are interrupted."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from os import fspath
from time import perf_counter

from bayesuq.deadline import has_deadline
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.training.checkpoint import Checkpoint, State
from bayesuq.inference.training.identity import Identity
from bayesuq.inference.training.interruptions import Interruptions
from bayesuq.inference.training.locks import locked
from bayesuq.inference.training.workers import ALONE, Workers

Place = tuple[int, ...]


class Resumable:
    """The checkpoint of one loop, which calls `alone` around `reading`, its steps, a `note` after each, and `write`.

    Attributes:
        checkpoint: Where it is written; None writes nothing.
        identity: What tells the fit from others.
        take: Gives the state between two steps; its tensors may change afterwards.
        parent: The process that this one works for, and ends with; None is its own master.
        workers: Processes that make the fit together: the first one alone reads and writes, and all hear of it.

    Raises:
        ValueError: A fit with a deadline, whose course depends on the clock, is to be written down, or to be made by
            several processes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | None,
        identity: Identity | None,
        take: Callable[[], State],
        *,
        parent: int | None = None,
        workers: Workers = ALONE,
    ) -> None:
        if has_deadline() and (checkpoint is not None or workers.are_together):
            raise ValueError(
                "A fit with a deadline has no checkpoint, and is made by one process: leave one of them out."
            )
        self.checkpoint = checkpoint if workers.is_first else None
        self.take, self.parent, self.workers = take, parent, workers
        self.identity = Identity({}) if identity is None else identity
        self.told: Place | None = None  # where the state in the file is
        self.written = perf_counter()
        self.interruptions = Interruptions(saves=checkpoint is not None)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other fit writes to this path, and Ctrl-C waits for the end of a step.

        Raises:
            BlockingIOError: One does already.
        """
        lock = nullcontext() if self.checkpoint is None else locked(self.checkpoint.path)
        with ExitStack() as held:
            self.workers.agreed(lambda: held.enter_context(lock))
            with self.interruptions:
                yield

    @contextmanager
    def reading(self) -> Iterator[State | None]:
        """What the file has, for a block that puts it back; None where there is none yet: see `Checkpoint.load`.

        Raises:
            ValueError: The file has not all that the block needs, or in another form.
        """
        found = self._read()
        try:
            yield found
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            place = "" if self.checkpoint is None else f" {fspath(self.checkpoint.path)!r}"
            raise ValueError(
                f"The checkpoint{place} does not hold the state of such a fit ({error}). It stays as it is; use an "
                "earlier copy of it, or choose another path."
            ) from error

    def _read(self) -> State | None:
        workers = self.workers
        found = workers.agreed(lambda: None if self.checkpoint is None else self.checkpoint.load(self.identity))
        if not workers.are_together:
            return found
        told = json.loads(workers.text(json.dumps(None if found is None else found[0])))
        return None if told is None else (told, workers.tensors(None if found is None else found[1]))

    def begin(self, *place: int) -> None:
        """Say where the state in the file is."""
        self.told = place

    def note(self, number: int, *place: int, asked: int | None = None) -> None:
        """Say that a step is made; the file is written where steps, time or an interruption say so.

        Args:
            number: Of the steps that are made.
            place: Where the loop is, in more numbers where one does not tell.
            asked: Of processes that fit together, the signal that has come to any of them, which all answer here.
        """
        # Asked once: what comes from here on waits for the next.
        asked = asked if self.workers.are_together else self.interruptions.asked
        interrupted = asked is not None
        if interrupted or self._is_due(number):
            self.write(*(place or (number,)))
        if interrupted:
            self.workers.check(None)  # none ends before the first has written
            self.interruptions.deliver(asked)

    def write(self, *place: int) -> None:
        """Write the state as it is at that place, unless the file has it; a disk that is full ends no fit.

        Warns:
            UserWarning: The file could not be written.
        """
        if self.checkpoint is None or self.told == place:
            return
        if self.parent is not None and os.getppid() != self.parent:
            os._exit(1)  # the fit is over, and another one may be at its place
        try:
            self.checkpoint.save(self.identity, self.take())
            self.told = place
        except OSError as error:
            warn_of_fit(
                f"The checkpoint {fspath(self.checkpoint.path)!r} could not be written ({error}). The fit goes on, and "
                "tries again; an older file there is as it was.",
                UserWarning,
            )
        self.written = perf_counter()

    def _is_due(self, number: int) -> bool:
        if self.checkpoint is None:
            return False
        every = self.checkpoint.every_steps
        by_steps = every is not None and number % every == 0
        return by_steps or perf_counter() - self.written > self.checkpoint.every_seconds
