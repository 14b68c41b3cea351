"""The linear algebra of Gaussian processes: Cholesky factors that tell why they fail, and the log marginal likelihood.

    log p(y) = -r^T S^-1 r / 2 - log det S / 2 - N log(2 pi) / 2,   S = K + noise,  r = y - mean

Its gradient, (alpha alpha^T - S^-1) / 2 with alpha = S^-1 r, is written by hand: half of what autograd's way through
the factor costs.

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. (2.30) and (5.9).
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayesuq.subnormals import flushed

LOG_TWO_PI = math.log(2 * math.pi)
JITTERS = (0.0, 1e-10, 1e-8, 1e-6, 1e-4)  # over the mean of the diagonal, in turn
LOG = logging.getLogger(__name__)


@dataclass
class Jitters:
    """How often factors needed jitter.

    Attributes:
        count: Of factors.
        rows: Of the largest such covariance.
        largest: Jitter, over the mean of the diagonal.
    """

    count: int = 0
    rows: int = 0
    largest: float = 0.0

    def add(self, rows: int, jitter: float) -> None:
        """One more."""
        self.count, self.rows, self.largest = self.count + 1, max(self.rows, rows), max(self.largest, jitter)

    def tell(self) -> None:
        """Log them in one line; nothing where none was needed."""
        if self.count:
            LOG.warning(
                "%d covariances of up to %d rows needed jitter, at most %.0e of their diagonal.",
                *(self.count, self.rows, self.largest),
            )


_COUNTING: ContextVar[Jitters | None] = ContextVar("counting", default=None)


@contextmanager
def jitter_told_once() -> Iterator[None]:
    """Log the jitter that factors need in one line at the end, instead of one for each."""
    counted = Jitters()
    token = _COUNTING.set(counted)
    try:
        yield
    finally:
        _COUNTING.reset(token)
        counted.tell()


class NotPositiveDefiniteError(FloatingPointError):
    """A covariance that no jitter makes positive definite."""


@flushed()
def stable_cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of a covariance (..., N, N), with the least jitter on its diagonal that lets it have one.

    Raises:
        NotPositiveDefiniteError: None does; says whether data, kernel or noise is at fault.
    """
    size = matrix.diagonal(dim1=-2, dim2=-1).mean(dim=-1).detach()
    for jitter in JITTERS:
        added = (jitter * size).unsqueeze(-1).expand(matrix.shape[:-1])
        raised = matrix if jitter == 0 else matrix + torch.diag_embed(added)
        factor, info = torch.linalg.cholesky_ex(raised)
        if not info.any() and bool(factor.isfinite().all()):
            if jitter:
                _note(matrix.shape[-1], jitter)
            return factor
    raise NotPositiveDefiniteError(_diagnosis(matrix.detach()))


def _note(rows: int, jitter: float) -> None:
    """Count a jitter for who tells all of them at once, or tell it."""
    counting = _COUNTING.get()
    if counting is None:
        Jitters(1, rows, jitter).tell()
    else:
        counting.add(rows, jitter)


def _diagnosis(matrix: Tensor) -> str:
    """Why a covariance has no factor."""
    if not matrix.isfinite().all():
        return (
            "The covariance holds NaN or infinite values: the kernel overflows. Standardise the data, or give the "
            "kernel a smaller variance or a larger lengthscale."
        )
    lowest = float(torch.linalg.eigvalsh(matrix).min())
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    if lowest < -1e-6 * float(diagonal.max()):
        return (
            f"The kernel is not positive definite: its covariance has an eigenvalue of {lowest:.3g} beside a diagonal "
            f"of up to {float(diagonal.max()):.3g}. Is it a kernel of your own?"
        )
    return (
        "The covariance is singular: rows repeat, or nearly, and the noise is too small to tell them apart. Raise the "
        "noise scale, shorten the lengthscale, or merge such rows."
    )


class _LogMarginal(torch.autograd.Function):
    """log N(r; 0, S), summed over outputs, with its gradient in closed form."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, residual: Tensor) -> Tensor:
        factor = stable_cholesky(covariance)
        alpha = solve(factor, residual)
        ctx.save_for_backward(factor, alpha)
        return log_density(factor, alpha, residual)

    @staticmethod
    @flushed()
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        factor, alpha = ctx.saved_tensors
        inverse = torch.cholesky_inverse(factor)
        repeats = len(alpha) // len(factor)
        columns = alpha.unsqueeze(-1) if repeats == 1 else alpha.mT.unsqueeze(0)
        # (alpha alpha^T - S^-1) / 2
        slope = torch.baddbmm(inverse, columns, columns.mT, beta=-0.5 * repeats, alpha=0.5)
        return gradients[0] * slope, -gradients[0] * alpha


def log_marginal(covariance: Tensor, residual: Tensor) -> Tensor:
    """sum_c log N(r_c; 0, S_c), 0-d, in nats.

    Args:
        covariance: S, noise inside, (C, N, N), or (1, N, N) for one that all outputs share.
        residual: r, (C, N).
    """
    value: Tensor = _LogMarginal.apply(covariance, residual)
    return value


def log_density(factor: Tensor, alpha: Tensor, residual: Tensor) -> Tensor:
    """sum_c log N(r_c; 0, S_c), 0-d, in nats, from the factor of S, (C or 1, N, N), and alpha = S^-1 r, (C, N)."""
    log_det = 2 * factor.diagonal(dim1=1, dim2=2).log().sum()
    repeats = len(residual) // len(factor)  # outputs that share one covariance
    return -0.5 * ((alpha * residual).sum() + repeats * log_det + residual.numel() * LOG_TWO_PI)


@flushed()
def solve(factor: Tensor, residual: Tensor) -> Tensor:
    """S^-1 r, (C, N), from the factor of S, (C or 1, N, N)."""
    if len(factor) == len(residual):
        return torch.cholesky_solve(residual.unsqueeze(-1), factor).squeeze(-1)
    return torch.cholesky_solve(residual.mT, factor[0]).mT


class _QuadraticForm(torch.autograd.Function):
    """a^T S a of each column, with its gradient in a from the product that it is made of."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, covariance: Tensor) -> Tensor:
        product = stacked_product(covariance, a)
        ctx.save_for_backward(product)
        ctx.is_shared = len(a) < len(covariance)
        return (product * a).sum(dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (product,) = ctx.saved_tensors
        slope = product * (2 * gradients[0]).unsqueeze(1)
        return slope.sum(dim=0, keepdim=True) if ctx.is_shared else slope, None


def quadratic_form(a: Tensor, covariance: Tensor) -> Tensor:
    """a_n^T S a_n, (C, N): one product forwards, and none backwards; no gradient in S.

    Args:
        a: Columns (C, M, N), or (1, M, N) where all outputs share them.
        covariance: S, symmetric, (C, M, M).
    """
    value: Tensor = _QuadraticForm.apply(a, covariance)
    return value


def stacked_product(left: Tensor, right: Tensor) -> Tensor:
    """left (C, M, K) times right (C, K, N), or (1, K, N) for one that all share: as a single product."""
    if len(right) < len(left):
        return (left.flatten(0, 1) @ right[0]).unflatten(0, left.shape[:2])
    return left @ right
