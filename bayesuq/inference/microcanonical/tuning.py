"""How a chain's step size and length are found, each chain's for itself.

The step size: the variance of the energy error a dimension, E[dE^2] / d, grows as eps^6. With weights w that are
largest where a step's error is near the target v, eps = (v sum w / sum (w dE^2 / (d eps^6)))^(1/6), over the last
steps. It is learned at every step: a chain goes on to where the density is steeper, and another length changes the
error of the same step. At first a step is doubled or halved until its error is within a hundred times the target, for
one that is much too small would be remembered for long. In the first phase, over which v falls from 0.5 to the one that
is wanted by a constant factor a step, fifty steps are remembered; from then on, and anew where the length changes, a
third of those since. So the learning dies out, as it must for the draws to be those of a fixed step (Roberts &
Rosenthal 2007).

In the first phase a step whose error is beyond ten standard deviations of the target is not taken: the chain goes
another way. From the mode of 402 weights, with narrow noise, the first two steps took a chain 1,342 nats of minus log
density up, where a normal law's mean lies 201 above its mode; without such steps it is 212 at most in the first eighty.

The length L: after the second phase the root of the sum of the coordinates' variances in it. A chain that is still on
its way has gone a distance s, whose spread is s / sqrt(12): L is then short against the posterior and long against a
step, which is what the phase is most of the warm-up for. After the third 0.4 eps times the mean number of steps that an
effective draw takes, where the phase is ten times as long; in a shorter one that number would be the phase's own.

Reference:
    Robnik et al. 2023, Microcanonical Hamiltonian Monte Carlo, section 4; Sommer et al. 2025, section 4; Roberts &
    Rosenthal 2007, Coupling and Ergodicity of Adaptive Markov Chain Monte Carlo Algorithms.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayesuq.inference.microcanonical.dynamics import arrays_of, module_of, tensor_of

FIRST_TARGET = 0.5
TRUST = 9.0  # nats of the squared error's ratio to its target, at which a step's weight has fallen by exp(-1/2)
FEWEST_REMEMBERED, GROWTH = 50.0, 3.0  # steps; then a third of those since the last change
LEAST_RATIO = 1e-8
FAR = 100.0  # times the target, or less than its share: a step size that nothing is learned from at first
SHRINKS = 0.8  # what a divergence leaves of a step size
FIRST_STEP = 0.01  # of the root of d
SHORTEST = 15.0
LENGTH_SHARE = 0.4
MOST_COORDINATES = 2000
RESOLVED = 10  # effective draws' worth of steps, in which their number is seen
FIRST_SHARE, LAST_SHARE = 0.3, 0.1  # of the warm-up; the second phase is what lies between


@dataclass(frozen=True)
class Phases:
    """Steps at which the phases of a warm-up end.

    Attributes:
        first: Of the falling target.
        second: Of the variances.
        third: Of the autocorrelations: all of the warm-up.
    """

    first: int
    second: int
    third: int

    @classmethod
    def of(cls, num_warmup: int) -> Self:
        """Those of so many steps."""
        last = num_warmup - round(0.8 * num_warmup) - round(LAST_SHARE * num_warmup)  # as in checkpoints of before
        return cls(round(FIRST_SHARE * num_warmup), num_warmup - last, num_warmup)

    def remembered(self, step: float) -> float:
        """Steps that the step size is learned from at a step: few where what it is learned for has just changed."""
        since = max((step - end for end in (self.first, self.second, self.third) if end <= step), default=0)
        return max(FEWEST_REMEMBERED, since / GROWTH)


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

    def learn(self, errors: Tensor, diverged: Tensor, target: float, dimension: int, remembered: float) -> None:
        """From the energy errors of a step (C,), in nats, and those of so many steps before."""
        of = module_of(self.current)
        errors, diverged, current = map(arrays_of, (errors, diverged, self.current))
        ratios, weights = arrays_of(self.ratios), arrays_of(self.weights)
        kept, searching = 1 - 1 / remembered, weights == 0
        ratio = errors * errors / (dimension * target)
        low, high = searching & (ratio < 1 / FAR), searching & ((ratio > FAR) | diverged)
        ratio = ratio + LEAST_RATIO
        weight = of.where(diverged | low | high, 0.0, of.exp(-0.5 * (of.log(ratio) / TRUST) ** 2))
        ratios, weights = kept * ratios + weight * ratio * target / current**6, kept * weights + weight
        found = of.where(weights > 0, (target * weights / of.where(weights > 0, ratios, 1.0)) ** (1 / 6), current)
        found = of.where(low, 2 * found, of.where(high, 0.5 * found, found))
        largest = of.where(diverged, SHRINKS * current, arrays_of(self.largest))
        self.ratios, self.weights = tensor_of(ratios), tensor_of(weights)
        self.largest, self.current = tensor_of(largest), tensor_of(of.minimum(found, largest))


def target_at(step: float, phases: Phases, wanted: float) -> float:
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
