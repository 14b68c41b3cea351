"""E log p(y | f) over normal marginals of f: in closed form, by Gauss-Hermite quadrature, or by draws.

Letters: N points, C latent functions, Q nodes or draws.
"""

import math

import numpy as np
import torch
from torch import Tensor

from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.counts import Poisson
from bayesuq.models.likelihoods.labels import Bernoulli, Categorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal, Normal, StudentT

NUM_NODES = 20  # exact for polynomials of degree 39
SMALLEST_SHARE = 1e-20  # of the largest variance: what counts as none
NUM_PREDICTIVE_DRAWS = 64  # for a validation loss


def is_elementwise(likelihood: Likelihood) -> bool:
    """Whether each target has one latent function of its own, so that its expectation is one-dimensional."""
    return isinstance(likelihood, Normal | Bernoulli | StudentT | Poisson)


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
    if isinstance(likelihood, Normal):
        # E log N(y; f, s^2) = log N(y; mean, s^2) - variance / (2 s^2)
        scale = torch.as_tensor(likelihood.scale, dtype=mean.dtype, device=mean.device)
        excess = 0.5 * variance / scale.square()
        if weight is not None:
            excess = excess * (weight if weight.ndim > 1 else weight.unsqueeze(1))
        return likelihood.total_log_prob(mean, y, weight) - excess.sum()
    if isinstance(likelihood, HeteroscedasticNormal):
        terms = _heteroscedastic(likelihood, mean, variance, y)
        return (terms if weight is None else terms * (weight if weight.ndim > 1 else weight.unsqueeze(1))).sum()
    f, log_shares = _points(likelihood, mean, variance, noise, num_draws)
    terms = _terms(likelihood, f, y, weight)
    return (log_shares.exp() @ terms).sum()


def _heteroscedastic(likelihood: HeteroscedasticNormal, mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """E log N(y; f, v(g)) = -(((y - E f)^2 + Var f) E[1 / v] + E[log v] + log 2 pi) / 2, (N, D).

    Of two columns of latent functions for each of y, means f and then log variances g. Where v = exp(g) the two
    expectations are exp(-E g + Var g / 2) and E g; a floor or a ceiling of the noise takes quadrature.
    """
    (f, g), (f_variance, g_variance) = (each.chunk(2, dim=1) for each in (mean, variance))
    squares = (y.view_as(f) - f).square() + f_variance
    if likelihood.maximum_scale is None and likelihood.minimum_scale == 0:
        inverse, log_variance = (0.5 * g_variance - g).exp(), g
    else:
        points, log_shares = _normal_points(g, g_variance.clamp(min=1e-20).sqrt())
        at_points = likelihood.log_variance(points)
        inverse = torch.einsum("q,qnd->nd", log_shares.exp(), (-at_points).exp())
        log_variance = torch.einsum("q,qnd->nd", log_shares.exp(), at_points)
    return -0.5 * (squares * inverse + log_variance + math.log(2 * math.pi))


def has_curvature(likelihood: Likelihood) -> bool:
    """Whether natural gradients have a curvature to go by: E d^2 log p / d f^2, at most 0 in expectation."""
    return is_elementwise(likelihood) or isinstance(likelihood, Categorical | HeteroscedasticNormal)


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
    if likelihood.ignore_index is not None:
        curvature = curvature * (y != likelihood.ignore_index).unsqueeze(1)
    if likelihood.class_weights is not None:
        weights = mean.new_tensor(likelihood.class_weights)
        curvature = curvature * weights[y.clamp(0, len(weights) - 1)].unsqueeze(1)
    return curvature


def log_predictive(
    likelihood: Likelihood, mean: Tensor, variance: Tensor, y: Tensor, weight: Tensor | None, noise: torch.Generator
) -> Tensor:
    """log E p(y_n | f_n) of each row, weighted, (N,), in nats; the arguments are those of `expected_log_prob`."""
    f, log_shares = _points(likelihood, mean, variance, noise, NUM_PREDICTIVE_DRAWS)
    density = (_terms(likelihood, f, y, None) + log_shares.unsqueeze(1)).logsumexp(dim=0)
    if weight is None:
        return density
    return density * (weight if weight.ndim == 1 else weight.flatten(1).mean(dim=1))


def _points(
    likelihood: Likelihood, mean: Tensor, variance: Tensor, noise: torch.Generator, num_draws: int
) -> tuple[Tensor, Tensor]:
    """Values of f (Q, N, C), and the logarithms of their shares (Q,)."""
    smallest = (SMALLEST_SHARE * variance.detach().amax()).clamp(min=torch.finfo(variance.dtype).tiny)
    deviation = torch.maximum(variance, smallest).sqrt()  # the root has no slope at 0
    if is_elementwise(likelihood) and mean.shape[1] == 1:
        return _normal_points(mean, deviation)
    half = torch.randn(
        (num_draws + 1) // 2, *mean.shape, generator=noise, dtype=mean.dtype, device=mean.device
    )  # fmt: skip
    draws = torch.cat([half, -half])  # antithetic: odd terms of the integrand cancel
    return mean + draws * deviation, mean.new_full((len(draws),), -math.log(len(draws)))


def _normal_points(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss and Hermite's values of normal variables, (Q, N, C), and the logarithms of their shares (Q,)."""
    nodes, shares = (mean.new_tensor(each) for each in np.polynomial.hermite_e.hermegauss(NUM_NODES))
    return mean + nodes[:, None, None] * deviation, (shares / math.sqrt(2 * math.pi)).log()


def _terms(likelihood: Likelihood, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """w_n log p(y_n | f_qn), (Q, N)."""
    number = len(f)

    def repeated(value: Tensor) -> Tensor:
        return value.repeat(number, *[1] * (value.ndim - 1))

    weights = None if weight is None else repeated(weight)
    return likelihood.log_prob(f.flatten(0, 1), repeated(y), weights).view(number, -1)
