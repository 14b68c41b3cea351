"""Hamiltonian Monte Carlo for C chains at once: momenta are drawn, the leapfrog integrator moves, the energy decides.

    H(u, r) = U(u) + r^T M^-1 r / 2,   r ~ N(0, M)

All chains make the same number of steps of one size, so that C of them are one vectorised pass; each is accepted or
refused for itself. The number of steps is drawn anew for every iteration: a fixed one resonates with periodic orbits.

Reference:
    Neal 2011, MCMC using Hamiltonian Dynamics, sections 3.2 and 5.4.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from bayesuq.inference.chains.mass import Mass
from bayesuq.inference.chains.potential import Potential

MOST_ENERGY_ERROR = 1000.0  # nats; beyond it a trajectory has diverged, as in Stan
MOST_DOUBLINGS = 60

Info = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Points:
    """Where C chains are.

    Attributes:
        positions: (C, P).
        potentials: U there, (C,), float64, in nats.
        gradients: dU/du there, (C, P).
    """

    positions: Tensor
    potentials: Tensor
    gradients: Tensor

    @classmethod
    def at(cls, positions: Tensor, potential: Potential) -> "Points":
        """Evaluate the potential there."""
        return cls(positions, *potential.at_rows(positions))


class Kernel(Protocol):
    """One transition that leaves exp(-U) invariant."""

    def __call__(
        self, points: Points, potential: Potential, step_size: float, mass: Mass, noise: torch.Generator
    ) -> tuple[Points, Info]:
        """The next points, and by ArviZ's names (C,) tensors of what happened."""


@dataclass(frozen=True)
class Hmc:
    """Trajectories of a random number of leapfrog steps.

    Attributes:
        num_steps: Their mean number, drawn evenly from 1 to 2 num_steps - 1.
        trajectory_length: Instead of it, mean of step size times number of steps, in units of the adapted scales.
        most_steps: A bound on the number that a length asks for.
    """

    num_steps: int
    trajectory_length: float | None = None
    most_steps: int = 1024

    def __call__(
        self, points: Points, potential: Potential, step_size: float, mass: Mass, noise: torch.Generator
    ) -> tuple[Points, Info]:
        """Move all chains once."""
        momenta = draw_momenta(points.positions, mass, noise)
        energies = points.potentials + mass.kinetic_energies(momenta)
        num_steps = self._draw_steps(step_size, noise)
        proposed = points
        for _ in range(num_steps):
            proposed, momenta = leapfrog(proposed, momenta, potential, step_size, mass)
        proposed_energies = proposed.potentials + mass.kinetic_energies(momenta)
        error = (proposed_energies - energies).nan_to_num(nan=torch.inf)
        acceptance = (-error).exp().clamp(max=1.0)
        accepted = torch.rand(len(error), dtype=torch.float64, generator=noise).to(error.device) < acceptance
        after = chosen(accepted, proposed, points)
        info = {
            "lp": -after.potentials,
            "energy": torch.where(accepted, proposed_energies, energies),
            "acceptance_rate": acceptance,
            "n_steps": torch.full_like(acceptance, num_steps, dtype=torch.int64),
            "step_size": torch.full_like(acceptance, step_size),
            "diverging": error > MOST_ENERGY_ERROR,
        }
        return after, info

    def _draw_steps(self, step_size: float, noise: torch.Generator) -> int:
        most = 2 * self.num_steps - 1
        if self.trajectory_length is not None:
            most = min(max(2 * round(self.trajectory_length / step_size) - 1, 1), self.most_steps)
        return int(torch.randint(1, most + 1, (), generator=noise))


def draw_momenta(like: Tensor, mass: Mass, noise: torch.Generator) -> Tensor:
    """r ~ N(0, M) for each row, (C, P); drawn on the CPU, so that a seed gives the same ones on every device."""
    white = torch.randn(like.shape, dtype=like.dtype, generator=noise)
    return mass.momenta(white.to(like.device))


def leapfrog(
    points: Points, momenta: Tensor, potential: Potential, step_size: float, mass: Mass
) -> tuple[Points, Tensor]:
    """One step of the velocity Verlet integrator; a negative step size goes back in time."""
    half = torch.add(momenta, points.gradients, alpha=-0.5 * step_size)
    moved = Points.at(mass.moved(points.positions, half, step_size), potential)
    return moved, torch.add(half, moved.gradients, alpha=-0.5 * step_size)


def chosen(which: Tensor, some: Points, others: Points) -> Points:
    """Rows of one where `which` (C,) is true, of the other elsewhere; NaN in what is not chosen does not spread."""
    rows = which.unsqueeze(1)
    return Points(
        torch.where(rows, some.positions, others.positions),
        torch.where(which, some.potentials, others.potentials),
        torch.where(rows, some.gradients, others.gradients),
    )


def harmonic_mean(acceptance: Tensor) -> float:
    """Of acceptances (C,); small where any chain is refused, so that a shared step size leaves none behind.

    For 8 or 64 chains on a Gaussian, steps adapted by it have the mean acceptance of a single chain's (0.87 to 0.90,
    one alone 0.89 to 0.91; by the arithmetic mean 0.80 to 0.84), so that it makes none too short.

    Reference:
        Hoffman, Radul & Sountsov 2021, An Adaptive-MCMC Scheme for Setting Trajectory Lengths, section 3.2.
    """
    return float(1 / acceptance.clamp(min=1e-10).reciprocal().mean())


def reasonable_step_size(
    points: Points, potential: Potential, guess: float, mass: Mass, noise: torch.Generator
) -> float:
    """A step size, by doubling or halving the guess: half of the chains accept one step of it with some 0.8 or more.

    One that refuses everything would ask for a step that no number resolves, and accept that.

    Reference:
        Hoffman & Gelman 2014, algorithm 4, with Stan's 0.8 for its 0.5.
    """
    momenta = draw_momenta(points.positions, mass, noise)
    energies = points.potentials + mass.kinetic_energies(momenta)

    def accepts(step_size: float) -> bool:
        moved, after = leapfrog(points, momenta, potential, step_size, mass)
        error = moved.potentials + mass.kinetic_energies(after) - energies
        acceptance = (-error.nan_to_num(nan=torch.inf)).exp().clamp(max=1.0)
        return float(acceptance.median()) > 0.8

    grows = accepts(guess)
    for _ in range(MOST_DOUBLINGS):
        following = guess * (2.0 if grows else 0.5)
        if accepts(following) != grows:
            return guess if grows else following
        guess = following
    return guess
