"""Microcanonical Langevin dynamics of C chains at once, as rows of one matrix.

A chain is at x in R^d and moves at constant speed in a direction u, |u| = 1, which the gradient of the log density
turns and noise refreshes:

    dx = u dt,   du = (1 - u u^T) grad log p(x) / (d - 1) dt + noise of size sqrt(2 / L)

Its stationary law is p, to the error of the integrator: no step is refused. With a = grad log p / |grad log p|,
q = u.a, D = eps c |grad log p| / (d - 1) and zeta = exp(-D), a kick of share c of a step eps is exact,

    u <- normalise(a (1 - zeta)(1 + zeta + q (1 - zeta)) + 2 zeta u)
    K <- K + (d - 1)(D - log 2 + log(1 + q + (1 - q) zeta^2))

and a drift is x <- x + eps c u. A step is kick b, drift 1/2, kick 1 - 2 b, drift 1/2, kick b, with b = 0.19318: two
gradients. Before and after, u <- normalise(u + nu z), nu^2 = (exp(eps / L) - 1) / d.

Reference:
    Robnik et al. 2023, Microcanonical Hamiltonian Monte Carlo; Sommer et al. 2025, Microcanonical Langevin Ensembles.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

FIRST_KICK = 0.1931833275037836  # of the minimal-norm integrator (Omelyan et al. 2003)
LOG_TWO = math.log(2)
MOST_ENERGY_ERROR = 1000.0  # nats, and ten times the root of d: beyond it a step has diverged


class Energies(Protocol):
    """Minus the log density at C positions (C, P): (C,) in float64, in nats, and its gradients (C, P)."""

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate it."""


@dataclass(frozen=True, eq=False)
class Noise:
    """White noise of all chains of a fit, of which a process may move every so-manieth.

    The others' is drawn too and left: what a chain gets does not depend on how many processes there are.

    Attributes:
        generator: Where it comes from.
        first: Number of the first chain that is moved here.
        stride: From one of them to the next.
        num_chains: Of the fit.
    """

    generator: torch.Generator
    first: int
    stride: int
    num_chains: int

    def like(self, vectors: Tensor) -> Tensor:
        """Of the chains that are moved here, (C, P)."""
        white = vectors.new_empty(self.num_chains, *vectors.shape[1:]).normal_(generator=self.generator)
        return white[self.first :: self.stride]


@dataclass(frozen=True, eq=False)
class Particles:
    """Where C chains are, and where they go.

    Attributes:
        positions: (C, P).
        directions: u, (C, P), of unit length.
        potentials: Minus the log density there, (C,), float64, in nats.
        gradients: Of it, (C, P).
    """

    positions: Tensor
    directions: Tensor
    potentials: Tensor
    gradients: Tensor

    @classmethod
    def at(cls, positions: Tensor, energies: Energies, noise: Noise) -> "Particles":
        """Chains that begin there in random directions."""
        return cls(positions, random_directions(positions, noise), *energies(positions))


@dataclass(frozen=True, eq=False)
class Moved:
    """What a step did.

    Attributes:
        errors: Of the energy, (C,), float64, in nats; 0 where a chain has diverged.
        diverged: Which chains did, (C,): they are where they were, and go in new directions.
    """

    errors: Tensor
    diverged: Tensor


def move(
    particles: Particles, energies: Energies, step_sizes: Tensor, lengths: Tensor, noise: Noise
) -> tuple[Particles, Moved]:
    """One step of each chain.

    Args:
        particles: The chains.
        energies: Minus the log density.
        step_sizes: eps of each, (C,), float64, in units of the positions.
        lengths: L, over which a chain forgets its direction, (C,), likewise.
        noise: Refreshes directions.
    """
    eps = step_sizes.to(particles.positions.dtype).unsqueeze(1)
    shares = ((step_sizes / lengths).expm1() / particles.positions.shape[1]).sqrt().to(eps.dtype).unsqueeze(1)
    directions = _refreshed(particles.directions, shares, noise)
    directions, kinetic = _kick(directions, particles.gradients, FIRST_KICK * step_sizes)
    middle = torch.addcmul(particles.positions, eps, directions, value=0.5)
    directions, gained = _kick(directions, energies(middle)[1], (1 - 2 * FIRST_KICK) * step_sizes)
    kinetic = kinetic + gained
    positions = torch.addcmul(middle, eps, directions, value=0.5)
    potentials, gradients = energies(positions)
    directions, gained = _kick(directions, gradients, FIRST_KICK * step_sizes)
    errors = kinetic + gained + potentials - particles.potentials
    directions = _refreshed(directions, shares, noise)
    return _checked(particles, Particles(positions, directions, potentials, gradients), errors, noise)


def _checked(before: Particles, after: Particles, errors: Tensor, noise: Noise) -> tuple[Particles, Moved]:
    """The step, but for chains that diverged."""
    most = MOST_ENERGY_ERROR + 10 * math.sqrt(before.positions.shape[1])
    # What is infinite or NaN in a row makes the row's sum so.
    sums = (after.positions + after.directions + after.gradients).sum(dim=1)
    diverged = ~((errors.abs() <= most) & sums.isfinite())
    if diverged.device.type == "cpu" and not bool(diverged.any()):  # an accelerator would be waited for
        return after, Moved(errors, diverged)
    rows = diverged.unsqueeze(1)
    kept = Particles(
        torch.where(rows, before.positions, after.positions),
        torch.where(rows, random_directions(before.positions, noise), after.directions),
        torch.where(diverged, before.potentials, after.potentials),
        torch.where(rows, before.gradients, after.gradients),
    )
    return kept, Moved(errors.masked_fill(diverged, 0.0), diverged)


def random_directions(like: Tensor, noise: Noise) -> Tensor:
    """Directions drawn evenly, (C, P)."""
    return _normalised(noise.like(like))


def _refreshed(directions: Tensor, shares: Tensor, noise: Noise) -> Tensor:
    return _normalised(torch.addcmul(directions, shares, noise.like(directions)))


def _kick(directions: Tensor, gradients: Tensor, step_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """New directions, and what the kinetic energy gains, (C,), float64, in nats."""
    freedom = directions.shape[1] - 1
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True).clamp(min=torch.finfo(gradients.dtype).tiny)
    along = -gradients / norms  # of the log density
    q = (directions * along).sum(dim=1).double().clamp(-1.0, 1.0)
    turns = step_sizes * norms.squeeze(1).double() / freedom
    zeta = (-turns).exp()
    gained = freedom * (turns - LOG_TWO + (1 + q + (1 - q) * zeta.square()).log())
    ahead = ((1 - zeta) * (1 + zeta + q * (1 - zeta))).to(along.dtype).unsqueeze(1)
    turned = along.mul_(ahead).addcmul_(directions, (2 * zeta).to(along.dtype).unsqueeze(1))
    return _normalised(turned), gained


def _normalised(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
