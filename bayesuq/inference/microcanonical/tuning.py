"""How a chain's step size and length are found, each chain's for itself.

1. The step size: the variance of the energy error a dimension, E[dE^2] / d, grows as eps^6. Its target v falls from 0.5
   to the one that is wanted over the first phase, here by a constant factor a step; with weights w that are largest
   where a step's error is near the target, eps = (v sum w / sum (w dE^2 / (d eps^6)))^(1/6), over the last hundred.
2. The length L: the root of the sum of the coordinates' variances.
3. L again: 0.4 eps times the mean number of steps an effective draw takes.

Reference:
    Robnik et al. 2023, Microcanonical Hamiltonian Monte Carlo, section 4; Sommer et al. 2025, section 4 (the shares).
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FIRST_TARGET = 0.5
TRUST = 9.0  # nats of the squared error's ratio to its target, at which a step's weight has fallen by exp(-1/2)
FORGETTING = 99 / 101  # a hundred steps
LEAST_RATIO = 1e-8
SHRINKS = 0.8  # what a divergence leaves of a step size
FIRST_STEP = 0.01  # of the root of d
SHORTEST = 15.0
LENGTH_SHARE = 0.4
MOST_COORDINATES = 2000
FIRST_SHARE, SECOND_SHARE = 0.8, 0.1  # of the warm-up; the rest is the third phase


@dataclass(frozen=True)
class Phases:
    """Steps at which the phases of a warm-up end.

    Attributes:
        first: Of the step size alone.
        second: Of the variances, too.
        third: Of the autocorrelations: all of the warm-up.
    """

    first: int
    second: int
    third: int

    @classmethod
    def of(cls, num_warmup: int) -> Self:
        """Those of so many steps."""
        first = round(FIRST_SHARE * num_warmup)
        return cls(first, first + round(SECOND_SHARE * num_warmup), num_warmup)


@dataclass(eq=False)
class StepSizes:
    """Step sizes on their way, all (C,), float64.

    Attributes:
        current: eps.
        largest: What none exceeds, lowered where a chain diverges.
        ratios: Running sum of weights times squared errors over dimension and eps^6.
        weights: Running sum of weights.
    """

    current: Tensor
    largest: Tensor
    ratios: Tensor
    weights: Tensor

    @classmethod
    def of(cls, positions: Tensor) -> Self:
        """Where they begin, for chains at (C, P)."""
        size = FIRST_STEP * math.sqrt(positions.shape[1])
        like = positions.new_zeros(len(positions), dtype=torch.float64)
        return cls(like + size, like + math.inf, like.clone(), like.clone())

    def learn(self, errors: Tensor, diverged: Tensor, target: float, dimension: int) -> None:
        """From the energy errors of a step (C,), in nats."""
        ratio = errors.square() / (dimension * target) + LEAST_RATIO
        weight = torch.where(diverged, 0.0, (-0.5 * (ratio.log() / TRUST).square()).exp())
        self.ratios.mul_(FORGETTING).add_(weight * ratio * target / self.current**6)
        self.weights.mul_(FORGETTING).add_(weight)
        self.largest = torch.where(diverged, SHRINKS * self.current, self.largest)
        found = (target * self.weights / self.ratios).pow(1 / 6)
        self.current = torch.minimum(torch.where(self.weights > 0, found, self.current), self.largest)


def target_at(step: int, phases: Phases, wanted: float) -> float:
    """The variance of the energy error a dimension that is aimed at, in nats squared."""
    if wanted >= FIRST_TARGET:
        return wanted
    share = min(step / max(phases.first, 1), 1.0)
    return FIRST_TARGET * (wanted / FIRST_TARGET) ** share


def first_lengths(positions: Tensor) -> Tensor:
    """Where L begins, (C,)."""
    return positions.new_full((len(positions),), max(math.sqrt(positions.shape[1]), SHORTEST), dtype=torch.float64)


def steps_per_draw(trace: Tensor) -> Tensor:
    """Mean over coordinates of steps over effective draws, (C,), of traces (C, T, K).

    By Geyer's initial positive sequence: autocorrelations count up to the first pair whose sum is not above 0.
    """
    chains, steps, _ = trace.shape
    centred = trace.double() - trace.double().mean(dim=1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * steps, dim=1)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * steps, dim=1)[:, :steps]
    variance = covariance[:, :1]
    correlation = torch.where(variance > 0, covariance / variance.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    pairs = correlation[:, : steps // 2 * 2].unflatten(1, (-1, 2)).sum(dim=2)
    positive = (pairs > 0).cumprod(dim=1)
    times = (2 * (pairs * positive).sum(dim=1) - 1).clamp(min=1.0)
    return times.reshape(chains, -1).mean(dim=1)


def coordinates(dimension: int) -> Tensor:
    """Which coordinates autocorrelations are taken of, evenly, (K,)."""
    return torch.linspace(0, dimension - 1, min(dimension, MOST_COORDINATES)).round().long()
