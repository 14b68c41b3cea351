"""Chains on their way: warm-up, draws, and all that a checkpoint of them must hold.

A run is one chain, or several that move together and learn one step size and one set of scales. Every random number
comes from a generator of the run's own, so that neither other chains nor a stop between two iterations change a bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayesuq.inference.chains.hamiltonian import Info, Kernel, Points, harmonic_mean, reasonable_step_size
from bayesuq.inference.chains.mass import Diagonal, Mass, MassName, mass_of
from bayesuq.inference.chains.potential import NetworkPotential, Potential
from bayesuq.inference.chains.warmup import Moments, StepSize, window_ends, window_start
from bayesuq.inference.training.bars import bar, is_shown
from bayesuq.inference.training.checkpoint import Checkpoint, State, put_back
from bayesuq.inference.training.identity import Identity
from bayesuq.inference.training.resumable import Resumable
from bayesuq.randomness import generator
from bayesuq.storage import below, named

FIRST_GUESS = 0.1
REFUSED, STUCK = 0.01, 10  # an acceptance; so many in a row below it, and nothing is learned from a chain


@dataclass(frozen=True)
class Plan:
    """How long chains run, and how they adapt.

    Attributes:
        num_samples: Kept draws of each chain.
        num_warmup: Transitions before, in which the step size and the scales are learned.
        thinning: Transitions for one kept draw.
        step_size: Where its adaptation begins (without warm-up: the one that is used); None finds one.
        target_acceptance: Mean acceptance that the step size is adapted to.
        keep_warmup: Whether the statistics of the warm-up are kept.
        mass: Which scales the warm-up learns.
    """

    num_samples: int
    num_warmup: int
    thinning: int = 1
    step_size: float | None = None
    target_acceptance: float = 0.8
    keep_warmup: bool = True
    mass: MassName = field(default="diagonal", repr=False)  # files of format 1 have the other options' words

    @property
    def num_transitions(self) -> int:
        """Warm-up and all."""
        return self.num_warmup + self.num_samples * self.thinning


@dataclass(frozen=True, eq=False)
class Chains:
    """What a run gives.

    Attributes:
        draws: (C, D, P).
        statistics: Of each draw, (C, D), by name.
        warmup_statistics: Of each transition of the warm-up, (C, W), by name; empty where it was not kept.
        inverse_mass: The adapted scales squared, of each chain, (C, P), or covariances, (C, P, P).
        ends: What going on needs besides, of each chain, or of each run of chains that move together: `positions`,
            (C, P); `noise`, the states of the generators, (R, B); `log_step_size`, (R,); whether the potential was
            `recorded`, (R,).
    """

    draws: Tensor
    statistics: Mapping[str, Tensor]
    warmup_statistics: Mapping[str, Tensor]
    inverse_mass: Tensor
    ends: Mapping[str, Tensor]

    @classmethod
    def joined(cls, parts: "list[Chains]") -> "Chains":
        """Several runs side by side."""
        first = parts[0]
        return cls(
            torch.cat([part.draws for part in parts]),
            {name: torch.cat([part.statistics[name] for part in parts]) for name in first.statistics},
            {name: torch.cat([part.warmup_statistics[name] for part in parts]) for name in first.warmup_statistics},
            torch.cat([part.inverse_mass for part in parts]),
            {name: torch.cat([part.ends[name] for part in parts]) for name in first.ends},
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, as `of` takes it."""
        found = {"draws": self.draws, "inverse_mass": self.inverse_mass}
        tables = {"kept.": self.statistics, "warmup.": self.warmup_statistics, "ends.": self.ends}
        for prefix, table in tables.items():
            found |= named(prefix, table)
        return found

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Chains":
        """The reverse of `tensors`."""
        kept, warmup, ends = (below(prefix, tensors) for prefix in ("kept.", "warmup.", "ends."))
        return cls(tensors["draws"], kept, warmup, tensors["inverse_mass"], ends)


@dataclass(frozen=True, eq=False)
class End:
    """Where chains that move together came to their end, and how they move.

    Attributes:
        positions: (C, P).
        inverse_mass: (P,) or (P, P).
        noise: The generator's state.
        log_step_size: As the warm-up has it: the logarithm of the step size itself may differ in its last bit.
        recorded: Whether the potential was recorded: it has other last bits.
    """

    positions: Tensor
    inverse_mass: Tensor
    noise: Tensor
    log_step_size: float
    recorded: bool

    @classmethod
    def of(cls, ends: Mapping[str, Tensor], run: int) -> "End":
        """That of a run by its number, of `Chains.ends` with the chains' `inverse_mass`."""
        together = len(ends["positions"]) // len(ends["noise"])
        chains = slice(run * together, (run + 1) * together)
        positions, scales = ends["positions"][chains], ends["inverse_mass"][chains][0]
        log_step_size, recorded = float(ends["log_step_size"][run]), bool(ends["recorded"][run])
        noise = ends["noise"][run].cpu().clone()  # generators cannot read from the middle of a tensor
        return cls(positions, scales, noise, log_step_size, recorded)


@dataclass(frozen=True)
class Watch:
    """Who looks on.

    Attributes:
        checkpoint: File of this run; None writes none.
        fit: What tells this fit from others, for that file.
        progress: Whether to show a bar; None shows it on a terminal and in a notebook.
        label: Before the bar.
        position: Line of the bar, where several runs show one each.
        parent: The process that this run is made for, in one of its own; it writes nothing after that has ended.
    """

    checkpoint: Checkpoint | None = None
    fit: Identity | None = None
    progress: bool | None = False
    label: str = ""
    position: int = 0
    parent: int | None = None


def run(
    potential: Potential, kernel: Kernel, positions: Tensor, plan: Plan, seed: int, watch: Watch | None = None
) -> Chains:
    """Run chains that move together from `positions` (C, P), or go on where their checkpoint says.

    Raises:
        ValueError: The checkpoint is of another fit, or truncated.
        OSError: Its folder cannot be written.
    """
    return _Run(potential, kernel, positions, plan, seed, watch or Watch()).finish()


def go_on(potential: Potential, kernel: Kernel, end: End, plan: Plan, watch: Watch | None = None) -> Chains:
    """Run chains that move together from where they came to their end, with the bits of a longer run.

    Args:
        potential: As in `run`, like the following.
        kernel: See there.
        end: Theirs.
        plan: Of what follows, without a warm-up.
        watch: See there.
    """
    onwards = _Run(potential, kernel, end.positions, plan, 0, watch or Watch())
    onwards.put(end)
    return onwards.finish()


class _Run:
    """The loop.

    Attributes:
        done: Transitions so far, the warm-up's included.
        mass: In which they move.
        refusals: Of each chain in a row until now, (C,).
    """

    def __init__(
        self, potential: Potential, kernel: Kernel, positions: Tensor, plan: Plan, seed: int, watch: Watch
    ) -> None:
        self.potential, self.kernel, self.plan, self.watch = potential, kernel, plan, watch
        self.noise = generator(seed)
        self.done, self.is_recorded = 0, True
        self.points = Points.at(positions, potential)
        self.mass: Mass = Diagonal(torch.ones_like(positions[0]))
        self.moments = self._no_moments()
        self.step_size = StepSize.of(FIRST_GUESS)
        self.refusals = torch.zeros(len(positions), dtype=torch.int64)
        self.first_window, self.window_ends = window_start(plan.num_warmup), window_ends(plan.num_warmup)
        self.draws = positions.new_zeros(len(positions), plan.num_samples, positions.shape[1])
        self.kept: dict[str, Tensor] = {}
        self.warmup: dict[str, Tensor] = {}
        self.between: list[Info] = []
        self.resumable = Resumable(watch.checkpoint, watch.fit, self._state, parent=watch.parent)
        self.has_begun = False

    def put(self, end: End) -> None:
        """Set the run to where another one ended."""
        self.noise.set_state(end.noise)
        self.mass = mass_of(end.inverse_mass)
        self.step_size = StepSize.kept(end.log_step_size)
        self.is_recorded, self.has_begun = end.recorded, True
        if not end.recorded:
            self._compute_plainly()
            self.points = Points.at(end.positions, self.potential)

    def finish(self) -> Chains:
        """Make the transitions that are left."""
        with self.resumable.alone():
            if not self._resume() and not self.has_begun:
                self._begin()
            self._run()
            self.resumable.write(self.done)
        inverse_mass = self.mass.inverse
        each = inverse_mass.expand(len(self.draws), *inverse_mass.shape).clone()
        return Chains(self.draws, self.kept, self.warmup, each, self._end())

    def _end(self) -> dict[str, Tensor]:
        """As `Chains.ends` of the one run."""
        return {
            "positions": self.points.positions.clone(),
            "noise": self.noise.get_state().unsqueeze(0),
            "log_step_size": torch.tensor([self.step_size.log_average], dtype=torch.float64),
            "recorded": torch.tensor([self.is_recorded]),
        }

    def _compute_plainly(self) -> None:
        if isinstance(self.potential, NetworkPotential):
            self.potential.compute_plainly()

    def _run(self) -> None:
        """The transitions that are left."""
        watch, total = self.watch, self.plan.num_transitions
        place = partial(bar, watch.progress, unit="draw", label=watch.label, line=watch.position)
        with place(total=total, done=self.done) as shown:
            while self.done < total:
                self._move()
                if is_shown(watch.progress):
                    shown.set_postfix(self._summary(), refresh=False)
                shown.update()
                self.resumable.note(self.done)

    def _begin(self) -> None:
        """Find a first step size."""
        if self.plan.step_size is None:
            self._find_step_size(FIRST_GUESS)
        else:
            self.step_size = StepSize.of(self.plan.step_size)

    def _find_step_size(self, guess: float) -> None:
        """Begin its adaptation anew."""
        counted = self._counted().to(self.points.positions.device)
        points = Points(*(tensor[counted] for tensor in vars(self.points).values()))
        self.step_size = StepSize.of(reasonable_step_size(points, self.potential, guess, self.mass, self.noise))

    def _counted(self) -> Tensor:
        """Which chains step size and scales are learned from, (C,): all but those that are stuck, unless all are."""
        moving = self.refusals < STUCK
        return moving if moving.any() else ~moving

    def _move(self) -> None:
        """One transition."""
        warming = self.done < self.plan.num_warmup
        step_size = self.step_size.current if warming else self.step_size.average
        self.points, info = self.kernel(self.points, self.potential, step_size, self.mass, self.noise)
        self.done += 1
        if warming:
            self._adapt(info["acceptance_rate"].cpu())
            if self.plan.keep_warmup:
                _put(self.warmup, info, self.done - 1, self.plan.num_warmup)
        else:
            self._keep(info)

    def _adapt(self, acceptances: Tensor) -> None:
        """Learn from one transition of the warm-up, of these acceptances (C,)."""
        before = self._counted()
        self.refusals = torch.where(acceptances < REFUSED, self.refusals + 1, 0)
        counted = self._counted()
        if (before & ~counted).any():  # steps were made ever smaller for a chain that accepts none
            self._find_step_size(FIRST_GUESS)
        else:
            self.step_size = self.step_size.updated(harmonic_mean(acceptances[counted]), self.plan.target_acceptance)
        if self.window_ends and self.first_window < self.done <= self.window_ends[-1]:
            self.moments = self.moments.updated(self.points.positions[counted.to(self.draws.device)])
        if self.done in self.window_ends:
            self.mass = mass_of(self.moments.regularised_variance().to(self.points.positions))
            self.moments = self._no_moments()
            self._find_step_size(self.step_size.current)

    def _no_moments(self) -> Moments:
        """A new window's."""
        return Moments.none(self.points.positions[0], dense=self.plan.mass == "dense")

    def _keep(self, info: Info) -> None:
        """Keep the last of `thinning` transitions."""
        self.between.append(info)
        number, rest = divmod(self.done - self.plan.num_warmup, self.plan.thinning)
        if rest == 0:
            self.draws[:, number - 1] = self.points.positions
            _put(self.kept, _merged(self.between), number - 1, self.plan.num_samples)
            self.between = []

    def _summary(self) -> dict[str, Any]:
        phase = "warm-up" if self.done < self.plan.num_warmup else "draws"
        diverged = int(self.kept["diverging"].sum()) if self.kept else 0
        return {"phase": phase, "step size": f"{self.step_size.average:.1e}", "divergences": diverged}

    def _resume(self) -> bool:
        """Set the run to where the file says; False where there is none."""
        with self.resumable.reading() as found:
            if found is not None:
                self._put_back(*found)
                self.resumable.begin(self.done)
        return found is not None

    def _put_back(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        device = self.draws.device
        self.is_recorded = values.get("is_recorded", False)  # files of before have the bits of torch's own sums
        if not self.is_recorded:
            self._compute_plainly()
        self.done = values["done"]
        self.step_size = StepSize(**values["step_size"])
        self.refusals = torch.tensor(values.get("refusals", [0] * len(self.draws)))
        self.points = Points(**{name: tensor.to(device) for name, tensor in below("points.", tensors).items()})
        if self.points.positions.shape != self.draws[:, 0].shape:
            raise ValueError(f"its chains are at {tuple(self.points.positions.shape)}")
        moments = below("moments.", tensors)
        self.moments = Moments(values["moments"], moments["mean"].to(device), moments["squares"].to(device))
        self.mass = mass_of(tensors["inverse_mass"].to(device))
        self.noise.set_state(tensors["noise"])
        draws = tensors["draws"]
        put_back(self.draws[:, : draws.shape[1]], draws, "draws", must_be_finite=True)
        tables = [{name: tensors[f"{table}.{name}"] for name in names} for table, names in values["tables"]]
        self.kept = {name: _lengthened(table, self.plan.num_samples) for name, table in tables[0].items()}
        self.warmup, self.between = tables[1], [*tables[2:]]

    def _state(self) -> State:
        """All that a checkpoint holds."""
        tables: dict[str, Info] = {"kept": self.kept, "warmup": self.warmup}
        tables.update((f"between.{k}", info) for k, info in enumerate(self.between))
        values = {
            "done": self.done,
            "is_recorded": self.is_recorded,
            "step_size": vars(self.step_size),
            "moments": self.moments.count,
            "refusals": self.refusals.tolist(),
            "tables": [[name, list(table)] for name, table in tables.items()],  # a file of tensors has no order
        }
        tensors = {"noise": self.noise.get_state(), "inverse_mass": self.mass.inverse}
        tensors["draws"] = self.draws[:, : max(0, self.done - self.plan.num_warmup) // self.plan.thinning]
        tensors |= named("points.", vars(self.points))
        tensors |= {"moments.mean": self.moments.mean, "moments.squares": self.moments.squares}
        for name, table in tables.items():
            tensors |= named(f"{name}.", table)
        return values, tensors


def _put(table: dict[str, Tensor], info: Info, number: int, length: int) -> None:
    """Write (C,) values into column `number` of (C, length) tables, which stay on the CPU."""
    for name, value in info.items():
        if name not in table:
            table[name] = torch.zeros(len(value), length, dtype=value.dtype)
        table[name][:, number] = value.cpu()


def _lengthened(table: Tensor, length: int) -> Tensor:
    """A table (C, length) that begins with one of at most as many columns: a run may be longer than its file's."""
    return torch.cat([table, table.new_zeros(len(table), length - table.shape[1])], dim=1)


def _merged(infos: list[Info]) -> dict[str, Tensor]:
    """Of the transitions that make one draw: steps added, acceptance averaged, any divergence, the rest of the last."""
    merged = dict(infos[-1])
    if len(infos) > 1:
        merged["n_steps"] = torch.stack([info["n_steps"] for info in infos]).sum(dim=0)
        merged["acceptance_rate"] = torch.stack([info["acceptance_rate"] for info in infos]).mean(dim=0)
        merged["diverging"] = torch.stack([info["diverging"] for info in infos]).any(dim=0)
    return merged
