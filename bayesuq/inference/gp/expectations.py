"""E log p(y | f) over normal marginals of f: in closed form, by Gauss-Hermite quadrature, or by draws.

Letters: N points, C latent functions, Q nodes or draws.
"""

import math

import torch
from torch import Tensor

from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.derived import normal_points
from bayesuq.models.likelihoods.labels import Categorical

SMALLEST_SHARE = 1e-20  # of the largest variance: what counts as none
NUM_PREDICTIVE_DRAWS = 64  # for a validation loss


def expected_log_prob(
    likelihood: Likelihood,
    mean: Tensor,
    variance: Tensor,
    y: Tensor,
    weight: Tensor | None,
    noise: torch.Generator,
    num_draws: int,
) -> Tensor:
    """sum_n w_n E log p(y_n | f_n), 0-d, in nats.

    Args:
        likelihood: At its current parameters.
        mean: Of f, (N, C).
        variance: Of f, (N, C).
        y: Targets.
        weight: (N,), or of y's shape, or None.
        noise: Of the draws, where there are any.
        num_draws: Q of them.
    """
    terms = likelihood.expected_log_prob(mean, variance, likelihood.align(mean, y))
    if terms is not None:
        return (terms if weight is None else terms * (weight if weight.ndim > 1 else weight.unsqueeze(1))).sum()
    f, log_shares = _points(likelihood, mean, variance, noise, num_draws)
    terms = _terms(likelihood, f, y, weight)
    return (log_shares.exp() @ terms).sum()


def has_curvature(likelihood: Likelihood) -> bool:
    """Whether natural gradients have a curvature to go by: E d^2 log p / d f^2, at most 0 in expectation."""
    return likelihood.is_elementwise or likelihood.has_normal_noise or isinstance(likelihood, Categorical)


def softmax_curvature(
    likelihood: Categorical, mean: Tensor, variance: Tensor, y: Tensor, noise: torch.Generator, num_draws: int
) -> Tensor:
    """E d^2 log p(y_n | f_n) / d f_nc^2 = - E p_c (1 - p_c) times the class weight, (N, C).

    By draws it is far less noisy than the slope of E log p(y | f) in the variance, which is half of it (Price's
    theorem), and it never has the wrong sign.
    """
    f, log_shares = _points(likelihood, mean, variance, noise, num_draws)
    p = f.softmax(dim=2)
    curvature = -torch.einsum("q,qnc->nc", log_shares.exp(), p * (1 - p))
    return curvature * likelihood.target_weights(y).unsqueeze(1)


def log_predictive(
    likelihood: Likelihood, mean: Tensor, variance: Tensor, y: Tensor, weight: Tensor | None, noise: torch.Generator
) -> Tensor:
    """log E p(y_n | f_n) of each row, weighted, (N,), in nats; the arguments are those of `expected_log_prob`."""
    f, log_shares = _points(likelihood, mean, variance, noise, NUM_PREDICTIVE_DRAWS)
    return (_terms(likelihood, f, y, weight) + log_shares.unsqueeze(1)).logsumexp(dim=0)


def _points(
    likelihood: Likelihood, mean: Tensor, variance: Tensor, noise: torch.Generator, num_draws: int
) -> tuple[Tensor, Tensor]:
    """Values of f (Q, N, C), and the logarithms of their shares (Q,)."""
    smallest = (SMALLEST_SHARE * variance.detach().amax()).clamp(min=torch.finfo(variance.dtype).tiny)
    deviation = torch.maximum(variance, smallest).sqrt()  # the root has no slope at 0
    if likelihood.is_elementwise and mean.shape[1] == 1:
        points, shares = normal_points(mean, deviation)
        return points, shares.log()
    half = torch.randn(
        (num_draws + 1) // 2, *mean.shape, generator=noise, dtype=mean.dtype, device=mean.device
    )  # fmt: skip
    draws = torch.cat([half, -half])  # antithetic: odd terms of the integrand cancel
    return mean + draws * deviation, mean.new_full((len(draws),), -math.log(len(draws)))


def _terms(likelihood: Likelihood, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """w_n log p(y_n | f_qn), (Q, N)."""
    number = len(f)

    def repeated(value: Tensor) -> Tensor:
        return value.repeat(number, *[1] * (value.ndim - 1))

    weights = None if weight is None else repeated(weight)
    return likelihood.log_prob(f.flatten(0, 1), repeated(y), weights).view(number, -1)
