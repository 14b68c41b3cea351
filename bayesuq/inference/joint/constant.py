"""What a constant would predict: the law of y without its inputs, as a likelihood has it."""

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from bayesuq.models.likelihoods.base import Likelihood

MOST_ITERATIONS = 20  # of L-BFGS, on as many numbers as the network has outputs
TOLERANCE = 1e-5  # nats a row that its last iteration may gain: far less than what is called a signal


def best_constant(likelihood: Likelihood, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """log p(y | c) of each row, (N,), in nats, at the outputs c that fit all rows best, one number an output.

    Args:
        likelihood: At fixed values of its unknowns.
        f: A network's outputs, (N, C, ...), from whose means the search starts.
        y: Targets.
        weight: Of rows or targets, or None.
    """
    own, given = f.detach().chunk(2, dim=1) if likelihood.takes_scale else (f.detach(), None)
    start = own.mean(dim=[0, *range(2, f.ndim)])

    def outputs(c: Tensor) -> Tensor:
        constant = c.view(-1, *[1] * (f.ndim - 2)).expand_as(own)
        return constant if given is None else torch.cat([constant, given], dim=1)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        c = torch.as_tensor(values).to(start).requires_grad_()
        with torch.enable_grad():
            value = -likelihood.total_log_prob(outputs(c), y, weight) / len(f)
            (gradient,) = torch.autograd.grad(value, [c])
        return float(value.detach()), gradient.double().cpu().numpy()

    options = {"maxiter": MOST_ITERATIONS, "ftol": TOLERANCE}
    found = minimize(loss, start.double().cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    with torch.no_grad():
        return likelihood.log_prob(outputs(torch.as_tensor(found.x).to(start)), y, weight)
