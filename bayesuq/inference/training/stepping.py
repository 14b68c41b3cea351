"""Runs of a fixed number of steps, which are stopped, go on, and show how far they are."""

from abc import ABC, abstractmethod
from typing import Protocol

from bayesuq.inference.training.bars import bar
from bayesuq.inference.training.checkpoint import Checkpoint, State
from bayesuq.inference.training.identity import Identity
from bayesuq.inference.training.resumable import Resumable


class Planned(Protocol):
    """How long a run is."""

    @property
    def num_steps(self) -> int:
        """All of them."""


class Stepped(ABC):
    """A run that knows how to make a step, and what a checkpoint must hold between two.

    Attributes:
        plan: How long.
        done: Steps so far.
    """

    plan: Planned
    done: int

    def finish(self, checkpoint: Checkpoint | None, fit: Identity | None, progress: bool | None) -> None:
        """Make the steps that are left.

        Args:
            checkpoint: To go on from, and to write; None does neither.
            fit: What tells this fit from others, for that file; None without one.
            progress: Whether to show a bar; None shows it on a terminal and in a notebook.

        Raises:
            ValueError: A checkpoint of another fit; see the steps of the run, too.
        """
        resumable, total = Resumable(checkpoint, fit, self._state), self.plan.num_steps
        with resumable.alone():
            self._resume(resumable)
            with bar(progress, total=total, done=self.done, unit="step") as shown:
                while self.done < total:
                    self._step()
                    shown.update()
                    resumable.note(self.done)
            resumable.write(self.done)

    @abstractmethod
    def _resume(self, resumable: Resumable) -> None:
        """Take up what the file has, if there is one."""

    @abstractmethod
    def _step(self) -> None:
        """Make one, and count it in `done`."""

    @abstractmethod
    def _state(self) -> State:
        """All that a checkpoint holds."""
