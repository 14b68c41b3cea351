"""What the warm-up of a Hamiltonian sampler learns: a step size, and the scale of every coordinate.

The step size is moved until the mean acceptance is the target (dual averaging). Scales are the inverse masses,
variances, or whole covariances, over windows that double in length, so that what was seen far from the typical set is
forgotten.

Reference:
    Hoffman & Gelman 2014, The No-U-Turn Sampler, algorithm 5; Stan Development Team, Reference Manual, "Automatic
    Parameter Tuning", for the windows and the shrinkage of variances.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor

SHRINKAGE = 0.05  # gamma in the paper
DELAY = 10.0  # t_0
FORGETTING = 0.75  # kappa
ANCHOR = math.log(10)  # mu = log(10 eps_1): steps tend to be tried larger
FIRST_WINDOW = 25
OPENING, CLOSING = 75, 50  # iterations before and after the windows, where the step size alone moves
SHORTEST = 60  # fewer iterations of warm-up learn the step size alone


@dataclass(frozen=True)
class StepSize:
    """Dual averaging of log(step size).

    Attributes:
        anchor: What the iterates shrink to.
        log_current: Tried now.
        log_average: To be kept.
        error: Running mean of target minus acceptance.
        count: Iterations so far.
    """

    anchor: float
    log_current: float
    log_average: float
    error: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, step_size: float) -> Self:
        """Beginning at a step size."""
        return cls.kept(math.log(step_size))

    @classmethod
    def kept(cls, log_step_size: float) -> Self:
        """Beginning at the logarithm of a step size."""
        return cls(log_step_size + ANCHOR, log_step_size, log_step_size)

    @property
    def current(self) -> float:
        """The step size tried now."""
        return math.exp(self.log_current)

    @property
    def average(self) -> float:
        """The one to be kept after the warm-up."""
        return math.exp(self.log_average)

    def updated(self, acceptance: float, target: float) -> Self:
        """After an iteration of this mean acceptance, a fraction in [0, 1]."""
        count = self.count + 1
        share = 1 / (count + DELAY)
        error = (1 - share) * self.error + share * (target - acceptance)
        log_current = self.anchor - math.sqrt(count) / SHRINKAGE * error
        forget = count**-FORGETTING
        log_average = forget * log_current + (1 - forget) * self.log_average
        return replace(self, log_current=log_current, log_average=log_average, error=error, count=count)


@dataclass(frozen=True, eq=False)
class Moments:
    """Running mean and sum of squared deviations of vectors (Welford; Chan et al. 1979 for several at once).

    Attributes:
        count: Vectors so far.
        mean: (P,), float64.
        squares: Sum of squared deviations from the mean, (P,), or of products of deviations, (P, P), float64.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def none(cls, like: Tensor, *, dense: bool = False) -> Self:
        """Of no vector yet, for vectors like this one (P,); `dense` takes products of all their pairs."""
        zeros = torch.zeros_like(like, dtype=torch.float64)
        return cls(0, zeros, zeros.diag_embed() if dense else zeros)

    def updated(self, rows: Tensor) -> Self:
        """With C more vectors, (C, P)."""
        rows = rows.double()
        mean = rows.mean(dim=0)
        difference, count = mean - self.mean, self.count + len(rows)
        between = self._products(difference.unsqueeze(0)) * (self.count * len(rows) / count)
        squares = self.squares + self._products(rows - mean) + between
        return replace(self, count=count, mean=self.mean + difference * (len(rows) / count), squares=squares)

    def _products(self, deviations: Tensor) -> Tensor:
        """Sum over rows (C, P), as `squares`."""
        return deviations.square().sum(dim=0) if self.squares.ndim == 1 else deviations.T @ deviations

    def regularised_variance(self) -> Tensor:
        """Variances shrunk towards 0.001, and covariances towards 0, by the weight of five vectors, as in Stan."""
        variance, shrunk = self.squares / max(self.count - 1, 1), torch.full_like(self.mean, 5e-3)
        return (self.count * variance + (shrunk if variance.ndim == 1 else shrunk.diag_embed())) / (self.count + 5)


def window_ends(num_warmup: int) -> list[int]:
    """After which iterations of the warm-up, counted from 1, the scales are renewed.

    Example:
        >>> window_ends(1000)
        [100, 150, 250, 450, 950]
    """
    if num_warmup < SHORTEST:
        return []
    opening, closing = OPENING, CLOSING
    if opening + FIRST_WINDOW + closing > num_warmup:
        # Twice Stan's 10 %: after new scales the step size begins anew, and a dozen iterations are the least for it.
        return [num_warmup - int(0.2 * num_warmup)]
    edges, length, last = [opening], FIRST_WINDOW, num_warmup - closing
    while edges[-1] < last:
        # The last window takes what would be left over for the next one, twice as long.
        whole = edges[-1] + 3 * length <= last
        edges.append(edges[-1] + length if whole else last)
        length *= 2
    return [end for _, end in pairwise(edges)]


def window_start(num_warmup: int) -> int:
    """Number of iterations before the first window."""
    return OPENING if num_warmup >= OPENING + FIRST_WINDOW + CLOSING else int(0.15 * num_warmup)
