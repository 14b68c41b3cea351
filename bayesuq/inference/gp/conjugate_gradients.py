"""Exact Gaussian processes of many rows, without a Cholesky factor: GPyTorch's preconditioned conjugate gradients.

S^-1 r by conjugate gradients behind a partial pivoted Cholesky preconditioner, log det S by Lanczos quadrature over
random probes. A step costs O(N^2) for each iteration instead of O(N^3); the log determinant is an estimate, whose
probes are the same in every step, so that an optimiser sees a smooth function.

Reference:
    Gardner, Pleiss et al. 2018, GPyTorch: Blackbox Matrix-Matrix Gaussian Process Inference, sections 4 and 5.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gpytorch
import torch
from linear_operator import to_linear_operator
from torch import Tensor

from bayesuq.inference.gp.algebra import LOG_TWO_PI
from bayesuq.randomness import isolated

TOLERANCE, SOLVE_TOLERANCE = 1e-2, 1e-4  # relative residuals: of training, of predictions
NUM_PROBES, PRECONDITIONER, MOST_ITERATIONS = 64, 100, 2000


def estimated_log_marginal(covariance: Tensor, residual: Tensor) -> Tensor:
    """sum_c log N(r_c; 0, S_c), 0-d, in nats, with a random log determinant; see `gp_algebra.log_marginal`."""
    with _settings(TOLERANCE), isolated(0):
        operator = to_linear_operator(covariance).expand(len(residual), *covariance.shape[1:])
        quadratic, log_det = operator.inv_quad_logdet(residual.unsqueeze(-1), logdet=True)
    total: Tensor = -0.5 * (quadratic.sum() + log_det.sum() + residual.numel() * LOG_TWO_PI)
    return total


def iterated_solve(covariance: Tensor, columns: Tensor) -> Tensor:
    """S^-1 columns, (C or 1, N, K), of S (C or 1, N, N), which counts as constant: gradients are in the columns."""
    solved: Tensor = _Solve.apply(covariance.detach(), columns)
    return solved


class _Solve(torch.autograd.Function):
    """S is symmetric, so the gradient of a solve is a solve of the gradient, at the same tolerance."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(covariance)
        with _settings(SOLVE_TOLERANCE), isolated(0):
            solved: Tensor = to_linear_operator(covariance).solve(columns)
        return solved

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, iterated_solve(ctx.saved_tensors[0], gradients[0])


@contextmanager
def _settings(tolerance: float) -> Iterator[None]:
    """GPyTorch's options, which are global, for a while: all that matter here, for BoTorch changes their defaults."""
    chosen: list[Any] = [
        gpytorch.settings.fast_computations(covar_root_decomposition=True, log_prob=True, solves=True),
        gpytorch.settings.max_cholesky_size(0),
        gpytorch.settings.min_preconditioning_size(0),
        gpytorch.settings.cg_tolerance(tolerance),
        gpytorch.settings.eval_cg_tolerance(tolerance),
        gpytorch.settings.max_cg_iterations(MOST_ITERATIONS),
        gpytorch.settings.max_preconditioner_size(PRECONDITIONER),
        gpytorch.settings.num_trace_samples(NUM_PROBES),
    ]
    with ExitStack() as stack:
        for one in chosen:
            stack.enter_context(one)
        yield
