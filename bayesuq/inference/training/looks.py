"""The loss at a few times of a fit, on the same rows and under the same masks.

Masks make the losses of steps so noisy that a fall of .1 nats a data point can hide among them. From one time to
another, at the same rows under the same masks, most of the noise is the same and cancels. What it costs is bounded by
what the fit costs: all looks together take `SHARE` of its row passes, or next to no arithmetic, and their number
follows that of its steps, since a small network's look takes half a step's time for calling its operators alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.options import Schedule
from bayesuq.inference.training.trend import EARLY, Trend, paired_trend
from bayesuq.randomness import generator

RowLosses = Callable[[Batch, torch.Generator], Tensor | None]

FEWEST_LOOKS, MOST_LOOKS = 4, 8
FEWEST_STEPS, STEPS_A_LOOK = 50, 110  # a small network's look takes half a step: those of 320 steps 1 % of them
SHARE = 0.005  # of the fit's passes of rows; beside its other work that is at most 1 % of a small network's time
BACKWARD = 3  # forward passes that a step costs, its backward pass included
FEWEST_ROWS, MOST_ROWS = 20, 512
FEWEST_MASKS, MOST_MASKS = 2, 8
CHEAP_WORK, CHEAP_ROWS = 2**20, 128  # weights times rows of a look, and rows, which cost next to nothing


class Looks:
    """What a fit sees of its loss from time to time.

    Attributes:
        steps: Numbers of steps after which it looks; none where the fit is too short to bear it.
        seen: Losses at the looks so far, each (M, R) for M masks and R rows, float64, in nats a data point.
    """

    def __init__(
        self,
        losses: RowLosses,
        leaves: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        source: Source,
        num_steps: int,
        seed: int,
    ) -> None:
        """Choose times, rows and masks.

        Args:
            losses: Of the rows of a minibatch, (B,), in nats a data point; None where no masks are drawn.
            leaves: What moves.
            buffers: What a pass may change, and a look leaves as it was.
            source: Of the rows.
            num_steps: Of the fit.
            seed: Of rows and masks.
        """
        self.num_data, self.seed, self.device = source.num_data, seed, source.device
        self.seen: list[Tensor] = []
        self._losses, self._leaves, self._buffers, self._rows = losses, leaves, buffers, source.rows
        num_rows, width = len(source.rows.y), -(-source.num_data // source.num_batches)
        cheap = CHEAP_WORK // sum(leaf.numel() for leaf in leaves.values())
        few = min(max(width, CHEAP_ROWS), cheap)
        steps = steps_of_looks(num_steps)
        budget = max(int(SHARE * BACKWARD * num_steps * width / max(len(steps), 1)), few)
        self.num_masks = min(max(budget // num_rows, FEWEST_MASKS), MOST_MASKS)
        count = min(num_rows, MOST_ROWS, budget // self.num_masks)
        self.steps = steps if count >= min(num_rows, FEWEST_ROWS) else []
        chosen = torch.randperm(num_rows, generator=generator(seed, 0))[:count].repeat(self.num_masks)
        self._parts = chosen.to(self.device).tensor_split(max(-(-len(chosen) // max(width, cheap)), 1))

    def after(self, step: int) -> None:
        """Look, if it is time after so many steps."""
        due = len(self.seen) < len(self.steps) and step == self.steps[len(self.seen)]
        if not due or not all(bool(leaf.isfinite().all()) for leaf in self._leaves.values()):
            return
        noise = generator(self.seed, 1, device=self.device)
        with torch.no_grad(), _held(self._buffers):
            parts = [self._losses(self._rows.at(part), noise) for part in self._parts]
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            self.steps, self.seen = [], []
        else:
            self.seen.append(torch.cat(found).double().view(self.num_masks, -1).cpu())

    def trend(self, schedule: Schedule) -> Trend | None:
        """How the loss was falling; None where a look is missing."""
        if not self.steps or len(self.seen) < len(self.steps):
            return None
        times = np.array(self.steps) / self.steps[-1]
        return paired_trend(torch.stack(self.seen).numpy(), times, self.num_data, schedule)

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {"steps": torch.tensor(self.steps), "seen": torch.stack(self.seen) if self.seen else torch.empty(0)}

    def resume(self, state: Mapping[str, Tensor], step: int) -> None:
        """Go on after some steps from what a checkpoint holds; without looks at these times, look no more."""
        seen = list(state.get("seen", torch.empty(0)).unbind())
        due = sum(one <= step for one in self.steps)
        if len(seen) != due or (due and state["steps"].tolist() != self.steps):
            self.steps, seen = [], []
        self.seen = seen


def steps_of_looks(num_steps: int) -> list[int]:
    """After which of so many steps a fit is looked at; none of a fit that is too short to bear it."""
    number = min(FEWEST_LOOKS + (num_steps - FEWEST_STEPS) // STEPS_A_LOOK, MOST_LOOKS)
    return [round(time * num_steps) for time in np.linspace(EARLY, 1, number)] if num_steps >= FEWEST_STEPS else []


@contextmanager
def _held(buffers: Mapping[str, Tensor]) -> Iterator[None]:
    """Put buffers back afterwards."""
    kept = {name: buffer.clone() for name, buffer in buffers.items()}
    yield
    for name, buffer in buffers.items():
        buffer.copy_(kept[name])
