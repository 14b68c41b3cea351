"""What methods need of a likelihood, derived from the law of y alone by automatic differentiation.

A user's own likelihood has all of it by these; those of bayesuq write down what is cheaper in closed form.

Letters: N points, C outputs, K all numbers in a row's outputs, L labels, Q values of y.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesuq.randomness import isolated

NUM_NODES = 20  # of a quadrature over y, exact for a normal law and polynomials of degree 39
NUM_DRAWS = 256  # of y, where its law has no quantiles
DRAWS_SEED = 1925  # of these draws, which are the same in every call
BUDGET = 2**22  # numbers in the second derivatives taken together


def fisher_information(law_of: Callable[[Tensor], Any], f: Tensor) -> Tensor:
    """Lambda = E[-d^2 log p(y | f) / df df^T] over y ~ p(y | f), (N, K, K), float64.

    Over labels the expectation is a sum, and taken of squared slopes, which is the same matrix: exact. Else it is of
    the second derivatives: over normal quantiles of y by Gauss and Hermite's rule, or over 256 fixed draws where the
    law has no quantiles. Where second derivatives do not depend on y, as those of exponential families in their natural
    parameters, that is exact too; else entries are off by a sixteenth of their standard deviation between draws.

    Args:
        law_of: From f to the law of y, of batch shape (N,), independent over points.
        f: Outputs, (N, C, ...).
    """
    f = f.detach().double()
    with torch.enable_grad():
        law = law_of(f)
        if law.has_enumerate_support:
            return _mean_square_slopes(law_of, f)
        shares, values = _values_of(law)
        total = f.new_zeros(())
        together = max(1, BUDGET // (len(f) * f[0].numel() ** 2))
        for share, y in zip(shares.split(together), values.split(together), strict=True):
            several = f.repeat(len(y), *[1] * (f.ndim - 1))
            found = _curvature(law_of, several, y.flatten(0, 1))
            total = total + torch.einsum("q,qnkl->nkl", share, found.unflatten(0, (len(y), -1)))
        return total


def root_of(information: Tensor) -> Tensor:
    """R with R R^T = Lambda, (N, K, K).

    A direction in which a mean over draws has the wrong sign counts as one that y says nothing of.
    """
    values, vectors = torch.linalg.eigh(information)
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2)


def label_log_probs(law: Any) -> Tensor:
    """log p of each label at each target, (N, L, ...), normalised.

    Raises:
        TypeError: A law over other values than the labels 0 to L - 1.
    """
    base = _of_one_target(law)
    if not base.has_enumerate_support:
        raise TypeError(f"The law of `y`, {type(base).__name__}, is not one over labels.")
    labels = base.enumerate_support(expand=False)
    if labels.ndim != len(base.batch_shape) + 1 or not torch.equal(labels.flatten(), _counted(labels)):
        raise TypeError(f"The law of `y`, {type(base).__name__}, is over other values than the labels 0 to L - 1.")
    log_probs: Tensor = base.log_prob(labels)
    return log_probs.movedim(0, 1)


def normal_points(mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss and Hermite's values of normal variables, (Q, N, C), and their shares, (Q,)."""
    nodes, shares = (mean.new_tensor(each) for each in _nodes())
    return mean + nodes[:, None, None] * deviation, shares


def _nodes() -> tuple[np.ndarray, np.ndarray]:
    """Gauss and Hermite's nodes for a standard normal variable, and their shares, (Q,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES)
    return nodes, weights / math.sqrt(2 * math.pi)


def _counted(labels: Tensor) -> Tensor:
    return torch.arange(len(labels), dtype=labels.dtype, device=labels.device)


def _of_one_target(law: Any) -> Any:
    """The law whose batch is all targets of all points, of a law over the targets of a point that are independent."""
    while isinstance(law, torch.distributions.Independent):
        law = law.base_dist
    return law


def _mean_square_slopes(law_of: Callable[[Tensor], Any], f: Tensor) -> Tensor:
    """The sum over targets and labels of p d log p / df (d log p / df)^T."""
    f = f.requires_grad_()
    base = _of_one_target(law_of(f))
    log_probs = base.log_prob(base.enumerate_support(expand=False)).reshape(-1, len(f), base.batch_shape[1:].numel())
    of_each = [one for of_label in log_probs for one in of_label.unbind(1)]
    columns = torch.stack([(0.5 * one).exp().detach().unsqueeze(1) * _slope(one, f) for one in of_each], dim=2)
    return columns @ columns.mT


def _curvature(law_of: Callable[[Tensor], Any], f: Tensor, y: Tensor) -> Tensor:
    """-d^2 log p(y | f) / df df^T, (N, K, K)."""
    f = f.detach().requires_grad_()
    log_probs = law_of(f).log_prob(y)
    (slope,) = torch.autograd.grad(log_probs.sum(), f, create_graph=True)
    if slope.grad_fn is None:  # log p is linear in f
        return f.new_zeros(len(f), slope[0].numel(), slope[0].numel())
    rows = [_slope(one, f) for one in slope.flatten(1).unbind(1)]
    return -torch.stack(rows, dim=1)


def _slope(values: Tensor, f: Tensor) -> Tensor:
    """d values_n / d f_n, (N, K): rows do not mix, so that the sum has the slopes of all."""
    (slope,) = torch.autograd.grad(values.sum(), f, retain_graph=True, materialize_grads=True)
    return slope.flatten(1)


def _values_of(law: Any) -> tuple[Tensor, Tensor]:
    """Values of y, (Q, N, ...), and their shares, (Q,)."""
    nodes, shares = _nodes()
    base = _of_one_target(law)
    try:
        levels = torch.special.ndtr(torch.as_tensor(nodes))
        values = [base.icdf(level.to(base.mean).expand(base.batch_shape)).detach() for level in levels]
    except NotImplementedError:
        with isolated(DRAWS_SEED):
            values = [law.sample() for _ in range(NUM_DRAWS)]
        shares = np.full(NUM_DRAWS, 1 / NUM_DRAWS)
    whole = torch.stack(values)
    return torch.as_tensor(shares, device=whole.device), whole
