"""One step of stochastic gradient Langevin and Hamiltonian dynamics, for C chains at once.

With h the step size, g a minibatch's dU/du, s the scales of the preconditioner, xi ~ N(0, I), T the temperature:

    SGLD     u <- u - h^2/2 s^2 g + h s sqrt(T) xi              Welling & Teh 2011, eq. (4), with epsilon = h^2
    SGHMC    r <- r - h s g                                     Chen, Fox & Guestrin 2014, eq. (13), split as B A O A:
             u <- u + h/2 s r
             r <- (1 - a) r + sqrt((1 - (1 - a)^2) T) xi        a the friction, the share of momentum lost in a step
             u <- u + h/2 s r

On a Gaussian with precision H, and exact gradients, SGLD's stationary covariance is H^-1 (I - h^2 H / 4)^-1. The
splitting's is H^-1, at any stable step size, h^2 max eig(H) < 4 (Leimkuhler & Matthews 2013): of all that cost one
gradient a step, it is the one whose positions carry no error there. It is SGD with momentum 1 - a and, on the loss per
data point, the rate N h^2, plus noise.

The noise of minibatches, of variance V, heats the chains: it comes on top of a `warmth` that is theirs by right. Where
V is the Fisher information of N rows times N / B, as near the posterior of a model that is true, the share is at most
h^2 max eig(H) N / (B warmth). Minibatches without replacement, whose noises cancel in an epoch, do far better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    """A step of a sampler."""

    @property
    def warmth(self) -> float:
        """The noise that a step adds, as a variance in the units in which that of the gradient's noise is h^2 s^2 V."""

    def step(self, chains: "Chains", gradients: Tensor, step_size: float, temperature: float) -> None:
        """Move the chains in place, given dU/du (C, P) where they are."""


@dataclass(frozen=True, eq=False)
class Chains:
    """Where C chains are.

    Attributes:
        positions: (C, P), on the unconstrained scale.
        momenta: (C, P), of unit variance under the posterior; SGLD has no use for them.
        scales: The preconditioner s, (C, P).
        noises: A generator for each chain.
    """

    positions: Tensor
    momenta: Tensor
    scales: Tensor
    noises: Sequence[torch.Generator]

    @classmethod
    def at(cls, positions: Tensor, noises: Sequence[torch.Generator]) -> "Chains":
        """Chains that start with momenta from their law."""
        chains = cls(positions.clone(), torch.empty_like(positions), torch.ones_like(positions), noises)
        chains.draw(chains.momenta)
        return chains

    def draw(self, noise: Tensor) -> Tensor:
        """Fill (C, P) with standard normal numbers, each chain's from its own generator."""
        for row, generator in zip(noise, self.noises, strict=True):
            row.normal_(generator=generator)
        return noise


@dataclass(frozen=True)
class Sgld:
    """Overdamped Langevin dynamics by Euler's method."""

    @property
    def warmth(self) -> float:
        """h^2 beside h^4 V / 4."""
        return 4.0

    def step(self, chains: Chains, gradients: Tensor, step_size: float, temperature: float) -> None:
        """See the module."""
        noise = chains.draw(torch.empty_like(gradients)).mul_(step_size * math.sqrt(temperature))
        noise.addcmul_(gradients, chains.scales, value=-0.5 * step_size**2)
        chains.positions.addcmul_(chains.scales, noise)


@dataclass(frozen=True)
class Sghmc:
    """Underdamped Langevin dynamics by the splitting B A O A.

    Attributes:
        friction: Share of the momentum that a step loses, in (0, 1].
    """

    friction: float

    @property
    def warmth(self) -> float:
        """1 - (1 - a)^2 beside h^2 V."""
        return 1 - (1 - self.friction) ** 2

    def step(self, chains: Chains, gradients: Tensor, step_size: float, temperature: float) -> None:
        """See the module."""
        kept = 1 - self.friction
        chains.momenta.addcmul_(gradients, chains.scales, value=-step_size)
        chains.positions.addcmul_(chains.scales, chains.momenta, value=0.5 * step_size)
        noise = chains.draw(torch.empty_like(gradients))
        chains.momenta.mul_(kept).add_(noise, alpha=math.sqrt((1 - kept**2) * temperature))
        chains.positions.addcmul_(chains.scales, chains.momenta, value=0.5 * step_size)
