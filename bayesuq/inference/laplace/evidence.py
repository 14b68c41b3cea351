"""The evidence of a Laplace approximation, and the prior precisions that it asks for.

With the mode held fixed, prior precisions t_k p, a factor t_k for each group of weights, change the evidence by

    log Z(t) = const + 1/2 sum_k (R_k log t_k - t_k s_k) - 1/2 log det(H + sum_k t_k P_k)

    s_k = sum p (theta* - loc)^2

which is concave in u = log t: log det is the logarithm of a posynomial. So there is one best t, which quasi-Newton
steps in u find.

Reference:
    MacKay 1992, Bayesian Interpolation; Immer et al. 2021, Scalable Marginal Likelihood Estimation for Model Selection
    in Deep Learning.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.laplace.structures import NormalWeights
from bayesuq.inference.training.quasi_newton import minimum

LARGEST_LOG_FACTOR = math.log(1e8)
MAX_ITERATIONS = 200
TOLERANCE = 1e-9  # on the gradient, in nats a weight and nat

Law = Callable[[Mapping[str, Tensor]], NormalWeights]


def log_evidence(
    log_likelihood: float, squares: Mapping[str, Tensor], prior: Mapping[str, Tensor], log_det: Tensor
) -> Tensor:
    """log p(y | theta*) + log p(theta*) + R/2 log(2 pi) - 1/2 log det(H + P), in nats, 0-d.

    Args:
        log_likelihood: At the mode.
        squares: (theta* - loc)^2 by parameter.
        prior: Precisions by parameter.
        log_det: Of H + P.
    """
    terms = [(value.log() - value * squares[name]).sum() for name, value in prior.items()]  # the 2 pi cancel
    return log_likelihood + 0.5 * (torch.stack(terms).sum() - log_det)


def best_factors(
    law: Law, prior: Mapping[str, Tensor], squares: Mapping[str, Tensor], *, each: bool
) -> tuple[float, ...]:
    """The factors on the prior's precisions, one for each parameter, that maximise the evidence.

    Args:
        law: From prior precisions to the normal law of the weights.
        prior: Precisions by parameter, float64.
        squares: (theta* - loc)^2 by parameter.
        each: Whether each parameter has a factor of its own.

    Warns:
        UserWarning: A factor that reached a bound.
    """
    eigenvalues = law(prior).eigenvalues()
    size = len(eigenvalues)

    def of_one(logs: Tensor) -> Tensor:  # the decomposition is made once
        factor = logs.exp()
        misfit = torch.stack([(value * squares[name]).sum() for name, value in prior.items()]).sum()
        return 0.5 * (size * logs - factor * misfit - (factor + eigenvalues).log().sum()).sum()

    def of_each(logs: Tensor) -> Tensor:
        scaled = {name: logs[number].exp() * value for number, (name, value) in enumerate(prior.items())}
        return log_evidence(0.0, squares, scaled, law(scaled).log_det())

    start = eigenvalues.new_zeros(len(prior) if each else 1)
    logs = _maximised(of_each if each else of_one, start, size)
    if (logs.abs() > LARGEST_LOG_FACTOR).any():
        warn_of_fit(
            "The evidence asks for a prior factor outside [1e-8, 1e8]: the data say nothing of some weights, or the "
            "mode stands at the prior's centre. The factor was set to the bound.",
            UserWarning,
        )
    factors = logs.clamp(-LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR).exp().tolist()
    return tuple(factors if each else factors * len(prior))


def _maximised(objective: Callable[[Tensor], Tensor], start: Tensor, size: int) -> Tensor:
    """Where a concave function of logarithms, in nats over `size` weights, is largest.

    Warns:
        UserWarning: The gradient did not vanish.
    """

    def loss(point: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            place = point.detach().requires_grad_()
            value = -objective(place) / size
            (gradient,) = torch.autograd.grad(value, place)
        return value.detach(), gradient

    point = minimum(loss, start, max_iterations=MAX_ITERATIONS, tolerance=TOLERANCE)
    steepest = float(loss(point)[1].abs().max())
    if not steepest <= 1e3 * TOLERANCE:
        warn_of_fit(
            f"The prior factors did not settle in {MAX_ITERATIONS} iterations: the evidence still rises by "
            f"{steepest:.1g} nats a weight and nat.",
            UserWarning,
        )
    return point
