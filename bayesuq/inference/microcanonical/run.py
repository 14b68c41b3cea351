"""Microcanonical chains on their way: the three phases of the warm-up, the draws, and what a checkpoint must hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesuq.deadline import Pace
from bayesuq.inference.microcanonical.dynamics import Energies, Moved, Noise, Particles, held_back, move
from bayesuq.inference.microcanonical.tuning import (
    FAR,
    LENGTH_SHARE,
    RESOLVED,
    SHRINKS,
    Phases,
    StepSizes,
    coordinates,
    first_lengths,
    steps_per_draw,
    target_at,
)
from bayesuq.inference.training.checkpoint import Checkpoint, State, put_back
from bayesuq.inference.training.identity import Identity
from bayesuq.inference.training.stepping import Stepped
from bayesuq.inference.training.workers import ALONE, Workers
from bayesuq.models.precision import full_precision
from bayesuq.randomness import generator

GROWING = "draws."  # tensors (C, D, ...) that a longer run has more of


@dataclass(frozen=True)
class Plan:
    """How long chains run, and how finely.

    Attributes:
        num_samples: Kept draws of each chain.
        num_warmup: Steps before.
        thinning: Steps for one kept draw.
        energy_variance: E[dE^2] / d that step sizes are tuned to, in nats squared.
        step_size: eps of all chains instead of a tuned one.
        length: L likewise.
    """

    num_samples: int
    num_warmup: int
    thinning: int
    energy_variance: float
    step_size: float | None = None
    length: float | None = None

    @property
    def num_steps(self) -> int:
        """Warm-up and all."""
        return self.num_warmup + self.num_samples * self.thinning

    def told(self, seed: int) -> dict[str, Any]:
        """What tells it from others, however many draws are kept."""
        return {"seed": seed, **{name: value for name, value in vars(self).items() if name != "num_samples"}}


class Run(Stepped):
    """The loop.

    With a deadline the phases of the warm-up, and the draws, are as much shorter as the time asks for: `plan` becomes
    what was made.

    Attributes:
        done: Steps so far.
        pace: How far they have come in the plan of the beginning, by which phases and targets go.
        particles: The chains.
        step_sizes: As tuned so far.
        lengths: L, (C,), float64.
        draws: Positions kept, (C, D, P).
        told: Of each draw, (C, D).
        sharing: Processes of which each moves some of the chains, by itself.
        divergences: Of the warm-up, (C,).
        traced: Steps of the last phase of the warm-up whose positions are held.
    """

    plan: Plan
    STEP = "two gradients over all rows for each chain"
    REMEDY = (
        "Lower `num_warmup`, `num_samples` or `thinning`, fit fewer rows, or take `ensemble` or `variational`, whose "
        "fits read minibatches."
    )

    def __init__(self, energies: Energies, positions: Tensor, plan: Plan, seed: int, sharing: Workers = ALONE) -> None:
        """Put chains at their starts, (C, P); of several processes, each moves those of its number modulo theirs.

        Raises:
            ValueError: Fewer chains than processes.
        """
        if len(positions) < sharing.size:
            raise ValueError(f"{len(positions)} chains cannot be shared out among {sharing.size} processes.")
        self.energies, self.plan, self.phases = energies, plan, Phases.of(plan.num_warmup)
        self.pace, self.traced = Pace(plan.num_steps), 0
        self.noise = Noise(generator(seed, device=positions.device), sharing.rank, sharing.size, len(positions))
        self.sharing, positions = sharing, positions[sharing.rank :: sharing.size]
        self.particles = Particles.at(positions, energies, self.noise)
        self.step_sizes, self.lengths = StepSizes.of(positions), first_lengths(positions)
        self.dimension, self.done = positions.shape[1], 0
        if plan.step_size is not None:
            self.step_sizes.current.fill_(plan.step_size)
        if plan.length is not None:
            self.lengths.fill_(plan.length)
        chains, number = len(positions), plan.num_samples
        self.moments = {name: torch.zeros_like(positions, dtype=torch.float64) for name in ("mean", "squares")}
        self.time = positions.new_zeros(chains, dtype=torch.float64)
        self.chosen = coordinates(self.dimension).to(positions.device)
        self.trace = positions.new_zeros(chains, self.phases.third - self.phases.second, len(self.chosen))
        self.draws = positions.new_zeros(chains, number, self.dimension)
        kinds = {"lp": torch.float64, "energy_error": torch.float64, "step_size": torch.float64}
        kinds |= {"length": torch.float64, "n_steps": torch.int64, "diverging": torch.bool}
        self.told = {name: torch.zeros(chains, number, dtype=kind) for name, kind in kinds.items()}
        self.divergences = torch.zeros(chains, dtype=torch.int64)
        self.squares = positions.new_zeros(chains, dtype=torch.float64)  # of energy errors since the last draw
        self.diverging = positions.new_zeros(chains, dtype=torch.bool)

    @full_precision()  # differences of energies decide
    def finish(self, checkpoint: Checkpoint | None, fit: Identity | None, progress: bool | None) -> None:
        """Make the steps that are left: see `Stepped.finish`. All processes then have all draws."""
        workers, own = self.sharing, checkpoint
        if workers.size > 1:
            own = None if checkpoint is None else checkpoint.of_part(str(workers.rank))
            progress = progress if workers.is_first else False
        finish = super().finish
        with np.errstate(all="ignore"):  # steps that go too far diverge, and say so
            workers.agreed(lambda: finish(own, fit, progress))
        self.pace.end()
        if workers.size > 1:
            self._gather()

    def _gather(self) -> None:
        """Draws of the chains of all processes, by number."""
        workers = self.sharing
        own = {"positions": self.draws, **self.told}
        parts = [workers.tensors(own if rank == workers.rank else None, rank) for rank in range(workers.size)]
        found = {}
        for name, tensor in own.items():
            found[name] = tensor.new_empty(sum(len(part[name]) for part in parts), *tensor.shape[1:])
            for rank, part in enumerate(parts):
                found[name][rank :: workers.size] = part[name]
        self.draws, self.told = found.pop("positions"), found

    def _step(self) -> None:
        before = self.particles
        self.particles, moved = move(before, self.energies, self.step_sizes.current, self.lengths, self.noise)
        place, self.done = self.pace.place, self.done + 1
        if place < self.phases.first and self.plan.step_size is None:
            self._hold_back(before, moved, place)
        self.pace.advance(self.done)
        if place < self.phases.third:
            self.divergences += moved.diverged.cpu()
            self._learn(place, moved)
            self._tune(place)
            if self.pace.place >= self.phases.third:
                self.plan = replace(self.plan, num_warmup=self.done)
        else:
            self._keep(self.done - 1 - self.plan.num_warmup, moved)
            self._learn(place, moved)
            if self.pace.is_over:
                self._end()

    def _hold_back(self, before: Particles, moved: Moved, place: float) -> None:
        """Do not take steps whose error is far beyond the target, in the first phase."""
        target = target_at(place, self.phases, self.plan.energy_variance)
        far = moved.errors.square() > FAR * self.dimension * target
        if far.any():
            self.particles = held_back(before, self.particles, far)

    def _end(self) -> None:
        """Leave out the draws that were not made, though not the first one."""
        number = (self.done - self.plan.num_warmup) // self.plan.thinning
        if 1 <= number < self.plan.num_samples:
            self.plan = replace(self.plan, num_samples=number)
            self.draws = self.draws[:, :number].clone()
            self.told = {name: told[:, :number].clone() for name, told in self.told.items()}

    def _learn(self, number: float, moved: Moved) -> None:
        """Move step sizes towards the target; a given one is made smaller where the chain diverges."""
        plan, step_sizes = self.plan, self.step_sizes
        if plan.step_size is None:
            target, remembered = target_at(number, self.phases, plan.energy_variance), self.phases.remembered(number)
            step_sizes.learn(moved.errors, moved.diverged, target, self.dimension, remembered)
        elif bool(moved.diverged.any()):
            step_sizes.current = torch.where(moved.diverged, SHRINKS * step_sizes.current, step_sizes.current)

    def _tune(self, number: float) -> None:
        plan, phases, after = self.plan, self.phases, self.pace.place
        if plan.length is not None:
            return
        if phases.first <= number < phases.second:
            self._add_moments()
            if after >= phases.second:
                self._length_by_variances()
        elif number >= phases.second:
            self.trace[:, self.traced] = self.particles.positions[:, self.chosen]
            self.traced += 1
            if after >= phases.third and self.traced > 1:
                self._length_by_autocorrelations()

    def _keep(self, number: int, moved: Moved) -> None:
        """Note a step after the warm-up down, and the draw that it may be."""
        self.squares += moved.errors.square()
        self.diverging |= moved.diverged
        place, rest = divmod(number + 1, self.plan.thinning)
        if rest:
            return
        self.draws[:, place - 1] = self.particles.positions
        told = {
            "lp": -self.particles.potentials,
            "energy_error": (self.squares / self.plan.thinning).sqrt(),
            "step_size": self.step_sizes.current,
            "length": self.lengths,
            "n_steps": torch.full_like(self.diverging, self.plan.thinning, dtype=torch.int64),
            "diverging": self.diverging,
        }
        for name, value in told.items():
            self.told[name][:, place - 1] = value.cpu()
        self.squares.zero_()
        self.diverging.zero_()

    def _add_moments(self) -> None:
        """Means weighted by step sizes."""
        positions, weight = self.particles.positions.double(), self.step_sizes.current
        self.time += weight
        share = (weight / self.time).unsqueeze(1)
        self.moments["mean"].lerp_(positions, share)
        self.moments["squares"].lerp_(positions.square(), share)

    def _length_by_variances(self) -> None:
        variance = (self.moments["squares"] - self.moments["mean"].square()).clamp(min=0).sum(dim=1)
        self.lengths = torch.where(variance > 0, variance.sqrt(), self.lengths)

    def _length_by_autocorrelations(self) -> None:
        steps = steps_per_draw(self.trace[:, : self.traced])
        found = LENGTH_SHARE * self.step_sizes.current * steps
        self.lengths = torch.where(RESOLVED * steps <= self.traced, found, self.lengths)

    def _tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds, but for the noise."""
        own = {"lengths": self.lengths, "time": self.time, "trace": self.trace, "divergences": self.divergences}
        own |= {"squares": self.squares, "diverging": self.diverging}
        parts = {"particles.": vars(self.particles), "step_sizes.": vars(self.step_sizes), "moments.": self.moments}
        for prefix, tensors in parts.items():
            own |= {prefix + name: tensor for name, tensor in tensors.items()}
        return own | {f"{GROWING}positions": self.draws} | {GROWING + name: told for name, told in self.told.items()}

    def _state(self) -> State:
        kept = max(0, self.done - self.plan.num_warmup) // self.plan.thinning
        tensors = {name: t[:, :kept] if name.startswith(GROWING) else t for name, t in self._tensors().items()}
        return {"done": self.done}, tensors | {"noise": self.noise.generator.get_state()}

    def _put_back(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self._tensors().items():
            part = tensors[name]
            target = tensor[:, : part.shape[1]] if name.startswith(GROWING) else tensor
            put_back(target, part, name, must_be_finite=name in ("particles.positions", f"{GROWING}positions"))
        self.noise.generator.set_state(tensors["noise"])
        self.done = values["done"]
        self.pace.go_on(self.done)
        self.traced = min(max(self.done - self.phases.second, 0), self.trace.shape[1])

    def energy_variance(self) -> float:
        """E[dE^2] / d of the kept steps, the mean over chains, in nats squared."""
        errors = self.told["energy_error"]
        return float(errors.square().mean()) / self.dimension if errors.numel() else math.nan
