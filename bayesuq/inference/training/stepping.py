"""Runs of a fixed number of steps, which are stopped, go on, and show how far they are.

How long a run will take is told after its first steps, by the fastest of them: a machine that has other work to do
makes single steps slow.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from torch import Tensor

from bayesuq.inference.training.bars import bar
from bayesuq.inference.training.checkpoint import Checkpoint, State
from bayesuq.inference.training.cost import LONG_FOR_CERTAIN, seconds_of, warn_of_seconds
from bayesuq.inference.training.identity import Identity
from bayesuq.inference.training.interruptions import Interruptions
from bayesuq.inference.training.resumable import Resumable
from bayesuq.inference.training.workers import ALONE, Workers
from bayesuq.subnormals import flushed

NUM_TIMED = 5  # steps; the first ones are slower, where something is made ready


class Planned(Protocol):
    """How long a run is."""

    @property
    def num_steps(self) -> int:
        """All of them."""


class Stepped(ABC):
    """A run that knows how to make a step, and what a checkpoint must hold between two.

    Attributes:
        plan: How long; a step may find that it is shorter.
        done: Steps so far.
        workers: Processes that make it together.
        interruptions: Signals that wait for the end of a step.
        asked: The signal that has come to any of the processes, which a step tells.
        STEP: What a step computes, for the warning of a run that is long.
        REMEDY: What to do about it, a sentence.
    """

    plan: Planned
    done: int
    workers: Workers = ALONE
    interruptions: Interruptions
    asked: int | None = None
    STEP: ClassVar[str]
    REMEDY: ClassVar[str]

    def finish(self, checkpoint: Checkpoint | None, fit: Identity | None, progress: bool | None) -> None:
        """Make the steps that are left.

        Args:
            checkpoint: To go on from, and to write; None does neither.
            fit: What tells this fit from others, for that file; None without one.
            progress: Whether to show a bar; None shows it on a terminal and in a notebook.

        Raises:
            ValueError: A checkpoint of another fit; see the steps of the run, too.

        Warns:
            UserWarning: What is left takes more than three minutes, by the first steps.
        """
        resumable, total = Resumable(checkpoint, fit, self._state, workers=self.workers), self.plan.num_steps
        self.interruptions = resumable.interruptions
        with resumable.alone():
            self._resume(resumable)
            with flushed(), bar(progress, total=total, done=self.done, unit="step") as shown:

                def advance() -> None:
                    self._step()
                    shown.update()
                    resumable.note(self.done, asked=self.asked)

                self._foretell([seconds_of(advance) for _ in range(min(NUM_TIMED, total - self.done))])
                while self.done < self.plan.num_steps:
                    advance()
            resumable.write(self.done)

    def _foretell(self, seconds: Sequence[float]) -> None:
        """Warn where the steps that are left take long, by those that were made."""
        one = min(seconds, default=0.0)
        left = self.plan.num_steps - self.done
        warn_of_seconds(
            one * left,
            f"The chains have {{}} to go: {left} steps of {self.STEP}, {1000 * one:.2g} ms each. {self.REMEDY}",
            LONG_FOR_CERTAIN,
        )

    def _resume(self, resumable: Resumable) -> None:
        with resumable.reading() as found:
            if found is not None:
                self._put_back(*found)
                resumable.begin(self.done)

    @abstractmethod
    def _put_back(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Take up what a checkpoint holds."""

    @abstractmethod
    def _step(self) -> None:
        """Make one, and count it in `done`."""

    @abstractmethod
    def _state(self) -> State:
        """All that a checkpoint holds."""
