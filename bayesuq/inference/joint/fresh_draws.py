"""What held-out rows have at fresh draws of the weights: the density that decides which epoch was the best."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.joint.network import TrainingNetwork

VALIDATION_DRAWS = 8


def log_mean_over_draws(log_prob: Callable[[], Tensor]) -> Tensor:
    """log of the mean over eight draws of p(y | x, theta), row by row, (N,), in nats.

    Args:
        log_prob: That of a fresh draw at each call, (N,).
    """
    draws = torch.stack([log_prob() for _ in range(VALIDATION_DRAWS)])
    return draws.logsumexp(dim=0) - math.log(VALIDATION_DRAWS)


@dataclass(frozen=True, eq=False)
class FreshDraws:
    """A network whose weights are drawn anew, as an `Objective` asks it.

    Attributes:
        network: The network.
        draw: Moves it to a fresh draw.
    """

    network: TrainingNetwork
    draw: Callable[[torch.Generator], object]

    def log_predictive(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """log of the mean over draws of p(y | x, theta), row by row."""

        def at_a_draw() -> Tensor:
            self.draw(noise)
            return self.network.log_prob(self.network.theta(), *batch)

        return log_mean_over_draws(at_a_draw)

    def culprits(self, batch: Batch, noise: torch.Generator) -> list[str]:
        """Sites whose draw or log prior density is not finite, then `y`."""
        self.draw(noise)
        return self.network.culprits(self.network.theta(), *batch)
