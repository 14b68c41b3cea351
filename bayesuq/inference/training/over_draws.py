"""The predictive density of held-out rows, from a few draws: what decides which epoch was the best."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

VALIDATION_DRAWS = 8


def log_mean_over_draws(log_prob: Callable[[], Tensor]) -> Tensor:
    """log of the mean over eight draws of p(y | x, theta), row by row, (N,), in nats.

    Args:
        log_prob: That of a fresh draw at each call, (N,).
    """
    draws = torch.stack([log_prob() for _ in range(VALIDATION_DRAWS)])
    return draws.logsumexp(dim=0) - math.log(VALIDATION_DRAWS)
