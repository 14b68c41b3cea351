"""Whether a variational fit has learned its scales, and whether its ELBO had stopped rising.

A mean-field posterior that was trained too briefly keeps the scales it started from and looks sure of everything. Two
facts tell: how far the log scales have moved, and the slope

    r = mean over weights of  d(-ELBO) / d log_scale,   in nats per nat

which is 0 at an optimum and -1 where the scales are far too small for the likelihood to notice them.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.minibatches import Source
from bayesuq.randomness import generator

MIN_GRADIENTS, MAX_GRADIENTS = 8, 64
WEIGHTS_IN_ALL = (
    512  # over all gradients: with fewer, the skewed slopes of single weights look more certain than they are
)
SMALL_MOVEMENT = 1.0  # nats, of the median log scale
LEARNED_SLOPE = 0.1  # nats a weight and nat; scales that have hardly moved but lie below it may well have started right
RISING_SLOPE = 0.25


@dataclass(frozen=True)
class ScaleSlope:
    """The slope of -ELBO along the log scales, averaged over weights, in nats per nat.

    Attributes:
        mean: Over weights and gradient draws.
        standard_error: Of that mean, over gradient draws.
    """

    mean: float
    standard_error: float

    def exceeds(self, tolerance: float) -> bool:
        """Whether it is beyond the tolerance, by three standard errors."""
        return abs(self.mean) - 3 * self.standard_error > tolerance


def scale_slope(
    slope: Callable[[Batch, torch.Generator], Tensor], num_weights: int, source: Source, seed: int
) -> ScaleSlope:
    """Estimate the slope at the current state from a few minibatches.

    Args:
        slope: Of one minibatch at a fresh draw, averaged over weights.
        num_weights: How many it averages over.
        source: Of the minibatches.
        seed: Of their order and of the draws.
    """
    shuffle, noise = generator(seed, 0), generator(seed, 1, device=source.device)
    count = min(max(MIN_GRADIENTS, WEIGHTS_IN_ALL // num_weights), MAX_GRADIENTS)
    batches = islice((batch for _ in range(count) for batch in source.epoch(shuffle)), count)
    values = torch.stack([slope(batch, noise) for batch in batches])
    return ScaleSlope(float(values.mean()), float(values.std()) / count**0.5)


def warn_unless_learned(slope: ScaleSlope, movement: float, num_epochs: int) -> None:
    """Warn where the scales were not learned, or else where the ELBO was still rising along them.

    Args:
        slope: At the end of the fit.
        movement: Median over weights of how far the log scales moved, in nats.
        num_epochs: Of the fit.
    """
    direction = "wider" if slope.mean < 0 else "narrower"
    if movement < SMALL_MOVEMENT and slope.exceeds(LEARNED_SLOPE):
        warnings.warn(
            f"The posterior scales were not learned: after {num_epochs} epochs the median log scale has moved "
            f"{movement:.2g} nats, and the ELBO still asks for {direction} ones (slope {slope.mean:.2g} nats a weight "
            "and nat). The uncertainty says little. Raise `num_epochs`, `learning_rate` or `scale_rate`.",
            UserWarning,
            stacklevel=4,
        )
    elif slope.exceeds(RISING_SLOPE):
        warnings.warn(
            f"The ELBO was still rising after {num_epochs} epochs: it asks for {direction} posterior scales (slope "
            f"{slope.mean:.2g} nats a weight and nat). Raise `num_epochs` or `learning_rate`.",
            UserWarning,
            stacklevel=4,
        )
