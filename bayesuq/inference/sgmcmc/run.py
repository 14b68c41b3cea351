"""Stochastic gradient chains on their way: when steps explore, when they are kept, and what a checkpoint must hold.

All chains step together, each on minibatches and with noise of its own, so that a chain's path does not depend on how
many others there are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.sgmcmc.langevin import Chains, Kernel
from bayesuq.inference.sgmcmc.potential import MinibatchPotential, ProgramMinibatchPotential
from bayesuq.inference.training.checkpoint import State, put_back, random_states, set_random_states
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.stability import largest_curvature, largest_curvatures
from bayesuq.inference.training.stepping import Stepped
from bayesuq.randomness import generator
from bayesuq.storage import below, named

STABLE_SHARE = 0.25  # of the largest stable step: SGLD's variances are then 7 % too large at most
HEAT = 0.5  # of minibatches beside the step's own, were they independent
NUM_LOOKS = 10  # at the curvature during the warm-up
MEMORY = 0.99  # of squared gradients
SMALLEST_SCALE = 0.1  # of the mean root mean square of gradients, so that a weight without gradient does not run away
BETWEEN_CHECKS = 50  # steps, of chains on an accelerator, at whether their numbers are finite
ORDER, NOISE, DIRECTION = range(3)  # what a chain's seed is split into


@dataclass(frozen=True)
class Plan:
    """How long chains run, with which steps.

    Attributes:
        num_samples: Kept draws of each chain.
        num_warmup: Steps before the first draw of each cycle.
        thinning: Steps for one kept draw.
        num_cycles: Of the step size; 1 where it is constant.
        cyclical: Whether steps shrink along a cycle, and explore without noise at its beginning.
        step_size: The largest; None measures one.
        preconditioned: Whether scales are learned in the first warm-up.
    """

    num_samples: int
    num_warmup: int
    thinning: int
    num_cycles: int
    cyclical: bool
    step_size: float | None
    preconditioned: bool

    @property
    def length(self) -> int:
        """Steps in a cycle."""
        return self.num_warmup + self.num_samples // self.num_cycles * self.thinning

    @property
    def num_steps(self) -> int:
        """In all."""
        return self.num_cycles * self.length

    def factor(self, step: int) -> float:
        """On the step size: the root of Zhang et al. 2020, eq. (1), which is on its square."""
        if not self.cyclical:
            return 1.0
        return math.sqrt(0.5 * (math.cos(math.pi * (step % self.length) / self.length) + 1))

    def temperature(self, step: int) -> float:
        """0 while a cycle explores (Zhang et al. 2020, algorithm 1), else 1."""
        return 0.0 if self.cyclical and step % self.length < self.num_warmup else 1.0

    def kept_as(self, step: int) -> int | None:
        """Number of the draw that the positions before this step are."""
        cycle, place = divmod(step, self.length)
        number, rest = divmod(place - self.num_warmup + 1, self.thinning)
        if place < self.num_warmup or rest:
            return None
        return cycle * (self.num_samples // self.num_cycles) + number - 1

    def looks_at(self, step: int) -> bool:
        """Whether the curvature is measured before this step: at tenths of the warm-up, and at 1, 2, 4, ... before.

        From where chains begin they fall to much larger curvatures within a few steps, most of all where the noise of
        the targets is inferred and falls with the errors.
        """
        if self.step_size is not None:
            return False
        is_early = step < self.num_warmup // NUM_LOOKS and step & (step - 1) == 0
        return is_early or step in {self.num_warmup * k // NUM_LOOKS for k in range(NUM_LOOKS + 1)}


class Stream:
    """Minibatches without end, one a chain and step, and the place in them.

    Chains see all rows once in each epoch, in orders of their own; of a DataLoader, all chains see the same.

    Attributes:
        epoch: Number of the epoch under way.
        batch: Minibatches taken from it.
        started: Random states that this epoch began from, which a DataLoader draws its order from.
    """

    def __init__(self, source: Source, keys: Sequence[int]) -> None:
        self.source, self.keys = source, keys
        self.epoch, self.batch = 0, 0
        self.started: dict[str, Tensor] = {}
        self._left: Iterator[tuple[Batch, ...]] | None = None

    def take(self) -> tuple[Batch, ...]:
        """The next minibatch of each chain."""
        if self._left is None:
            self._left = self._open()
        found = next(self._left)
        self.batch += 1
        if self.batch == self.source.num_batches:
            self.epoch, self.batch, self._left = self.epoch + 1, 0, None
        return found

    def _open(self) -> Iterator[tuple[Batch, ...]]:
        """What is left of the epoch under way."""
        device, loader = self.source.device, self.source.loader
        if self.source.workers.are_together:
            return self._open_together()
        now = random_states(device, loader)
        if self.batch:
            set_random_states(self.started, device, loader)
        else:
            self.started = now
        if loader is None:
            orders = [self.source.shuffled_epoch(key, self.epoch) for key in self.keys]
            batches: Iterator[tuple[Batch, ...]] = zip(*orders, strict=True)
        else:
            batches = ((batch,) * len(self.keys) for batch in self.source.epoch(None))
        for _ in range(self.batch):
            next(batches)
        if self.batch:
            set_random_states(now, device, loader)
        return batches

    def _open_together(self) -> Iterator[tuple[Batch, ...]]:
        """The same of one of several processes, by number of the epoch and of the process alone."""
        source = self.source
        source.seed_loader(self.keys[0], self.epoch)
        if source.loader is None:
            orders = [source.shuffled_epoch(key, self.epoch) for key in self.keys]
            batches: Iterator[tuple[Batch, ...]] = zip(*orders, strict=True)
        else:
            batches = ((batch,) * len(self.keys) for batch in source.epoch(None))
        return islice(batches, self.batch, None)


class Run(Stepped):
    """The loop, and all that a checkpoint of it must hold.

    Attributes:
        done: Steps so far.
        step_size: The largest of the plan; as last measured where the plan has none.
        squares: Running mean of squared gradients per data point, (C, P).
        draws: Positions kept, (C, D, P).
        told: `lp` and `step_size` of each draw, (C, D), and under "warmup ..." of each step of the first warm-up.
    """

    plan: Plan
    STEP = "a minibatch for each chain"
    REMEDY = "Lower `num_warmup`, `num_samples` or `thinning`, or take `ensemble` or `variational`."

    def __init__(
        self,
        potential: MinibatchPotential | ProgramMinibatchPotential,
        kernel: Kernel,
        source: Source,
        positions: Tensor,
        plan: Plan,
        keys: Sequence[Sequence[int]],
        *,
        vectorised: bool,
    ) -> None:
        """Put the chains at their starts.

        Args:
            potential: On minibatches.
            kernel: One step.
            source: Of minibatches.
            positions: Where chains start, (C, P).
            plan: How long they run.
            keys: A seed for each purpose of each chain.
            vectorised: Whether gradients are computed in one pass.
        """
        self.potential, self.kernel, self.plan, self.vectorised = potential, kernel, plan, vectorised
        device = positions.device
        self.noises = [generator(key[NOISE], device=device) for key in keys]
        self.directions = [generator(key[DIRECTION], device=device) for key in keys]
        self.workers = source.workers
        self.stream = Stream(source, [self.workers.key(key[ORDER]) for key in keys])
        self.chains = Chains.at(positions, self.noises)
        self.done, self.step_size = 0, math.nan if plan.step_size is None else plan.step_size
        self.squares = torch.zeros_like(positions)
        self.draws = positions.new_zeros(len(positions), plan.num_samples, positions.shape[1])
        sizes = {"": plan.num_samples, "warmup ": plan.num_warmup}
        self.told = {
            kind + name: torch.zeros(len(positions), size, dtype=torch.float64, device=device)
            for kind, size in sizes.items()
            for name in ("lp", "step_size")
        }

    def _step(self) -> None:
        """Keep where the chains are, if that is a draw, and move them."""
        plan, number, chains = self.plan, self.done, self.chains
        values, gradients, batches = self._evaluated()
        if plan.preconditioned and number < plan.num_warmup:
            self._learn_scales(gradients)
        if plan.looks_at(number):
            found = self.workers.agreed(lambda: self._measured_step_size(batches))
            self.step_size = float(self.workers.of_first(torch.tensor(found, dtype=torch.float64)))
        step_size = self.step_size * plan.factor(number)
        self._tell(number, -values, step_size)
        self.kernel.step(chains, gradients, step_size, plan.temperature(number))
        self.done += 1

    def _evaluated(self) -> tuple[Tensor, Tensor, tuple[Batch, ...]]:
        """The energy of each chain, (C,), its gradient, (C, P), and the minibatches that they are of.

        Of processes that run the chains together they are those of the union of their minibatches.
        """
        positions, count, failure = self.chains.positions, 0, None
        values, gradients = torch.zeros_like(positions[:, 0]), torch.zeros_like(positions)
        batches: tuple[Batch, ...] = ()
        try:
            place = self.stream.batch
            batches = self.stream.take()
            at = self.potential.at_rows if self._go_together(batches) else self.potential.at
            values, gradients = self._checked(*at(positions, batches))
            count = self.stream.source.count(place, batches[0])
        except Exception as error:
            if not self.workers.are_together:
                raise
            failure = error  # all processes raise it
        asked = self.interruptions.asked
        self.asked = self.workers.mean([values, gradients], count, failure=failure, asked=asked)
        return values, gradients, batches

    def _go_together(self, batches: Sequence[Batch]) -> bool:
        """Whether chains compute in one pass."""
        return self.vectorised and len({len(batch.x) for batch in batches}) == 1

    def _checked(self, values: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
        """The same, or an error where they are not finite.

        An accelerator would have to be waited for: there, one in `BETWEEN_CHECKS` steps is looked at, and each draw.
        What is not finite stays so.
        """
        is_draw = self.plan.kept_as(self.done) is not None
        if values.device.type != "cpu" and not is_draw and self.done % BETWEEN_CHECKS:
            return values, gradients
        finite = values.isfinite() & gradients.isfinite().all(dim=1)
        if not finite.all():
            chains = ", ".join(str(chain) for chain in (~finite).nonzero().flatten().tolist())
            raise FloatingPointError(
                f"The log joint of chain {chains} stopped being finite at step {self.done}, with step size "
                f"{self.step_size:.3g}. Lower `step_size`, `start` from a fitted posterior, or standardise the data."
            )
        return values, gradients

    def _tell(self, number: int, lp: Tensor, step_size: float) -> None:
        kept = self.plan.kept_as(number)
        if kept is not None:
            self.draws[:, kept] = self.chains.positions
        for kind, place in (("", kept), ("warmup ", number if number < self.plan.num_warmup else None)):
            if place is not None:
                self.told[kind + "lp"][:, place] = lp
                self.told[kind + "step_size"][:, place] = step_size

    def _learn_scales(self, gradients: Tensor) -> None:
        """RMSprop's, with a mean of 1 for each chain, so that step sizes keep their meaning."""
        mean_squares = self.squares.mul_(MEMORY).addcmul_(gradients, gradients, value=1 - MEMORY)
        roots = mean_squares.sqrt()
        scales = (roots + SMALLEST_SCALE * roots.mean(dim=1, keepdim=True)).rsqrt()
        self.chains.scales.copy_(scales / scales.mean(dim=1, keepdim=True))

    def _measured_step_size(self, batches: Sequence[Batch]) -> float:
        """A share of the step that is stable in every chain, by the curvature of its minibatch, or what heats little.

        Raises:
            ValueError: It cannot be measured.
        """
        try:
            largest = self._largest_curvature(batches)
        except RuntimeError as error:
            raise ValueError(f"No step size can be measured ({error}). Pass `step_size`.") from error
        if not 0 < largest < math.inf:
            raise ValueError("The log joint has no finite curvature where the chains are. Pass `step_size`.")
        num_batches = self.stream.source.num_batches
        cool = math.sqrt(HEAT * self.kernel.warmth / num_batches) if num_batches > 1 else math.inf
        return min(STABLE_SHARE * 2, cool) / math.sqrt(largest)

    def _largest_curvature(self, batches: Sequence[Batch]) -> float:
        """Of all chains, each on its minibatch."""
        positions, scales, noises = self.chains.positions, self.chains.scales, self.directions
        if self._go_together(batches):
            energies = partial(self.potential.energies, batches=batches)
            return float(largest_curvatures(energies, positions, noises, scales=scales).max())
        rows = zip(positions, scales, batches, noises, strict=True)
        return max(
            largest_curvature(partial(self._energy, batch), position, noise, scales=scale)
            for position, scale, batch, noise in rows
        )

    def _energy(self, batch: Batch, flat: Tensor) -> Tensor:
        return self.potential.energy(flat, *batch)

    def _tensors(self) -> dict[str, Tensor]:
        """What changes from step to step."""
        chains = self.chains
        own = {"positions": chains.positions, "momenta": chains.momenta, "scales": chains.scales}
        return own | {"squares": self.squares, "draws": self.draws} | named("told.", self.told)

    def _put_back(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.done, self.step_size = values["done"], float(tensors["step_size"])
        self.stream.epoch, self.stream.batch = values["epoch"], values["batch"]
        self.stream.started = below("started.", tensors)
        for name, tensor in self._tensors().items():
            part = tensors[name]
            if name == "draws" or name.startswith("told."):  # a run may be longer than the file's
                tensor = tensor[:, : part.shape[1]]
            put_back(tensor, part, name, must_be_finite=name in ("positions", "draws"))
        for kind, streams in (("noises", self.noises), ("directions", self.directions)):
            for stream, state in zip(streams, tensors[kind], strict=True):
                stream.set_state(state.clone())
        source = self.stream.source
        set_random_states(below("now.", tensors), source.device, source.loader)

    def _state(self) -> State:
        """All that a checkpoint holds."""
        stream = self.stream
        tensors = self._tensors() | {"step_size": torch.tensor(self.step_size, dtype=torch.float64)}
        for kind, streams in (("noises", self.noises), ("directions", self.directions)):
            tensors[kind] = torch.stack([one.get_state() for one in streams])
        tensors |= named("started.", stream.started)
        tensors |= named("now.", random_states(stream.source.device, stream.source.loader))
        return {"done": self.done, "epoch": stream.epoch, "batch": stream.batch}, tensors
