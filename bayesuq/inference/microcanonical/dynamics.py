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
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

FIRST_KICK = 0.1931833275037836  # of the minimal-norm integrator (Omelyan et al. 2003)
LOG_TWO = math.log(2)
LEAST_NORM = 1e-300
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
        diverged: Which chains did, (C,): they are where they were, and go another way.
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
    of = module_of(particles.positions)
    positions, directions, gradients = map(arrays_of, (particles.positions, particles.directions, particles.gradients))
    sizes, eps = arrays_of(step_sizes), _column(arrays_of(step_sizes), positions)
    spread = _column(of.sqrt(of.expm1(sizes / arrays_of(lengths)) / positions.shape[1]), positions)
    directions = _refreshed(directions, spread, noise, particles.positions, of)
    directions, kinetic = _kick(directions, gradients, FIRST_KICK * sizes, of)
    middle = positions + 0.5 * eps * directions
    directions, gained = _kick(directions, arrays_of(energies(tensor_of(middle))[1]), (1 - 2 * FIRST_KICK) * sizes, of)
    kinetic = kinetic + gained
    positions = middle + 0.5 * eps * directions
    potentials, slopes = energies(tensor_of(positions))
    directions, gained = _kick(directions, arrays_of(slopes), FIRST_KICK * sizes, of)
    errors = kinetic + gained + arrays_of(potentials) - arrays_of(particles.potentials)
    directions = _refreshed(directions, spread, noise, particles.positions, of)
    after = Particles(tensor_of(positions), tensor_of(directions), potentials, slopes)
    # What is infinite or NaN in a row makes the row's sum so.
    sums = (positions + directions + arrays_of(slopes)).sum(1)
    most = MOST_ENERGY_ERROR + 10 * math.sqrt(positions.shape[1])
    diverged = tensor_of(~((abs(errors) <= most) & of.isfinite(sums)))
    return _checked(particles, after, tensor_of(errors), diverged)


def _checked(before: Particles, after: Particles, errors: Tensor, diverged: Tensor) -> tuple[Particles, Moved]:
    """The step, but for chains that diverged."""
    if diverged.device.type == "cpu" and not bool(diverged.any()):  # an accelerator would be waited for
        return after, Moved(errors, diverged)
    return held_back(before, after, diverged), Moved(errors.masked_fill(diverged, 0.0), diverged)


def held_back(before: Particles, after: Particles, rows: Tensor) -> Particles:
    """`after`, but chains of these rows (C,) are where they were `before`, and go another way.

    That is the one before with its coordinates moved on by one: no random number is drawn, of which processes that
    share out chains must draw the same ones; and the way back may lead to a step that is as bad, again and again.
    """
    column = rows.unsqueeze(1)
    return Particles(
        torch.where(column, before.positions, after.positions),
        torch.where(column, before.directions.roll(1, dims=1), after.directions),
        torch.where(rows, before.potentials, after.potentials),
        torch.where(column, before.gradients, after.gradients),
    )


def random_directions(like: Tensor, noise: Noise) -> Tensor:
    """Directions drawn evenly, (C, P)."""
    vectors = noise.like(like)
    return vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True)


# What follows is of NumPy's arrays on the CPU, whose calls cost a fifth of torch's for arrays as small as these, and of
# torch's elsewhere; `of` is the module.


def _refreshed(directions: Any, spread: Any, noise: Noise, like: Tensor, of: Any) -> Any:
    return _normalised(directions + spread * arrays_of(noise.like(like)), of)


def _kick(directions: Any, gradients: Any, step_sizes: Any, of: Any) -> tuple[Any, Any]:
    """New directions, and what the kinetic energy gains, (C,), float64, in nats; the gradients are minus those of p."""
    freedom, norms = directions.shape[1] - 1, _norms(gradients, of)
    q = of.clip(-_dots(directions, gradients, of) / norms, -1.0, 1.0)
    turns = step_sizes * norms / freedom
    zeta = of.exp(-turns)
    gained = freedom * (turns - LOG_TWO + of.log(1 + q + (1 - q) * zeta * zeta))
    ahead = (zeta - 1) * (1 + zeta + q * (1 - zeta)) / norms
    return _normalised(gradients * _column(ahead, gradients) + directions * _column(2 * zeta, gradients), of), gained


def _normalised(vectors: Any, of: Any) -> Any:
    return vectors / _column(_norms(vectors, of), vectors)


def _norms(vectors: Any, of: Any) -> Any:
    """Of rows, (C,), float64, above 0."""
    return of.sqrt(_dots(vectors, vectors, of)) + LEAST_NORM


def _dots(vectors: Any, others: Any, of: Any) -> Any:
    """Of rows, (C,), float64."""
    if of is np:
        return np.einsum("cp,cp->c", vectors, others, dtype=np.float64, casting="same_kind")
    return (vectors * others).sum(dim=1, dtype=torch.float64)


def _column(numbers: Any, like: Any) -> Any:
    """A number of each chain beside its vector."""
    cast = numbers.astype(like.dtype) if isinstance(numbers, np.ndarray) else numbers.to(like.dtype)
    return cast[:, None]


def module_of(tensor: Tensor) -> Any:
    """NumPy on the CPU, torch elsewhere: the functions that `arrays_of` it takes."""
    return np if tensor.device.type == "cpu" else torch


def arrays_of(tensor: Tensor) -> Any:
    """The same memory as NumPy's array on the CPU; the tensor elsewhere."""
    return tensor.numpy() if tensor.device.type == "cpu" else tensor


def tensor_of(arrays: Any) -> Tensor:
    """The reverse of `arrays_of`."""
    return torch.from_numpy(arrays) if isinstance(arrays, np.ndarray) else arrays
