"""When fits are to end, and how many of their steps there is time for.

What a step takes is not known before it is made, and changes with what else a machine does. So a loop that has a
deadline looks at the clock as it goes: where the steps that are left would end too late, each of them goes further
along what was planned, its falling rate or its warm-up, so that the plan comes to its end with the time. Where they
would not, nothing is changed, to the last bit.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

LOOK = 0.02  # of a loop's time, from one look at the clock to the next


class Ended(NamedTuple):
    """The end of a loop.

    Attributes:
        share: Of the planned steps that were made, a fraction in [0, 1].
        time: By the deadline's clock.
    """

    share: float
    time: float


@dataclass(frozen=True, eq=False)
class Deadline:
    """When fits are to end.

    Attributes:
        clock: What tells the seconds.
        time: The end, by that clock.
        ended: The loops that have ended before it, in order; those of its parts, too.
    """

    clock: Callable[[], float]
    time: float
    ended: list[Ended] = field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until then, below 0 after it."""
        return self.time - self.clock()

    @property
    def since_end(self) -> float:
        """Seconds since the last loop has ended; 0 where none has."""
        return self.clock() - self.ended[-1].time if self.ended else 0.0

    def part(self, share: float) -> "Deadline":
        """The end of this share of the time that is left."""
        end = self.time - (1 - share) * self.left if math.isfinite(self.time) else self.time
        return Deadline(self.clock, end, self.ended)


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


@contextmanager
def until(deadline: Deadline) -> Iterator[None]:
    """Fits within this block end then: those by minibatches, exact processes, and microcanonical chains.

    They end when their time is over, at the end of an epoch, an iteration or a draw, and with fewer of them than were
    planned. Where they do depends on the clock, so that the same seed need not give the same fit.
    """
    token = _current.set(deadline)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def within(share: float) -> Iterator[None]:
    """Fits within this block have this share of the time that is left, where there is a deadline."""
    deadline = _current.get()
    if deadline is None:
        yield
        return
    with until(deadline.part(share)):
        yield


def has_deadline() -> bool:
    """Whether the fits of now are to end at some time."""
    return _current.get() is not None


class Pace:
    """How far a loop has come in what was planned: a step for each step, or more where the time is short.

    Attributes:
        planned: Steps.
        unit: Steps, after whole numbers of which alone the loop can end.
        done: Steps made.
        place: In the plan, from 0 to `planned`: what the next step stands for; a whole number until time is short.
        deadline: None is never short of time.
    """

    def __init__(self, planned: int, *, unit: int = 1) -> None:
        """Begin, under the deadline of now."""
        self.planned, self.unit, self.deadline = planned, unit, _current.get()
        self.done: int = 0
        self.place: float = 0
        self._began = self._before = self._looked = 0.0 if self.deadline is None else self.deadline.clock()
        self._known = 0  # steps at the last look
        self._times: tuple[float, ...] = ()  # of a step, in seconds, by the last two looks
        self._aim: float | None = None  # when the plan is to end; None where there is time for all of it

    def go_on(self, done: int) -> None:
        """Begin after so many steps."""
        self.done = self.place = self._known = done

    @property
    def is_over(self) -> bool:
        """Whether the plan has come to its end."""
        return self.place >= self.planned

    def advance(self, done: int) -> None:
        """Note that so many steps are made, one more than before."""
        further: float = done - self.done
        self.done = done
        if self.deadline is not None:
            now, end = self.deadline.clock(), self.deadline.time
            if self._aim is not None:
                further = max(1, (self.planned - self.place) * _share(now - self._before, self._aim - self._before))
            self._before = now
            if now >= end or now - self._looked >= LOOK * (end - self._began):
                self._look(now, end)
            if self._is_late(now, end):
                further = self.planned
        self.place = min(self.place + further, self.planned)

    def end(self) -> None:
        """Tell the deadline that the loop has ended."""
        if self.deadline is not None:
            share = 1.0 if self.place == self.done else self.done / self.planned
            self.deadline.ended.append(Ended(share, self.deadline.clock()))

    def _look(self, now: float, end: float) -> None:
        """Decide whether the steps that are left end in time, and when the plan ends where they do not."""
        self._times = (*self._times[-1:], (now - self._looked) / (self.done - self._known))
        self._looked, self._known = now, self.done
        taken = min(self._times)  # one slow step, as the first, which loads what it needs, is no pace
        is_short = len(self._times) > 1 and taken * (self.planned - self.place - 1) > end - now
        self._aim = now + taken * (self._last(now, end, taken) - self.done) if is_short else None

    def _last(self, now: float, end: float, taken: float) -> int:
        """Steps after which the loop can end in time, or soonest after it."""
        steps = self.done + max(end - now, 0.0) / taken
        return max(-(-self.done // self.unit), int(steps // self.unit)) * self.unit

    def _is_late(self, now: float, end: float) -> bool:
        """Whether the loop, which can end here, would end too late if it went on."""
        if self.done % self.unit:
            return False
        return now >= end or (self._aim is not None and end - now < min(self._times) * self.unit)


def _share(part: float, whole: float) -> float:
    """From 0 to 1."""
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 1.0
