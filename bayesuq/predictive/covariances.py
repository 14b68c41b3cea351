"""Covariances of a point's target columns, one matrix a component: their density, their root, and what is none.

Letters: D columns, `...` any leading dimensions.
"""

import math

import torch
from torch import Tensor

from bayesuq.waiting import check

SYMMETRY = 1e-6  # of the largest variance: what rounding in float32 leaves
SINGULAR = "A component's covariance is singular, and so has no density. Give the likelihood a noise scale above 0."
NEGATIVE = 1e-5  # likewise, of the smallest eigenvalue


def check_covariance(covariance: Tensor, shape: torch.Size, name: str) -> Tensor:
    """Covariances as float64 of shape (*shape, D), exactly symmetric, for means of shape (..., D).

    Raises:
        ValueError: Another shape, values that are not finite, or matrices that are no covariances.
    """
    expected = (*shape, shape[-1])
    try:
        value = covariance.double().expand(expected)
    except RuntimeError as error:
        raise ValueError(
            f"`{name}` must broadcast to {expected}, one matrix a component; got {tuple(covariance.shape)}."
        ) from error
    size = value.diagonal(dim1=-2, dim2=-1).amax(dim=-1)
    check(value.isfinite().all(), lambda: ValueError(f"`{name}` must be finite."))
    is_off = (value - value.mT).abs().amax(dim=(-2, -1)) > SYMMETRY * size
    check(~is_off.any(), lambda: ValueError(f"`{name}` must be symmetric in its last two dimensions."))
    symmetric = (value + value.mT) / 2
    # A factor of the matrix raised by what rounding may take exists where no eigenvalue is below minus that.
    raised = symmetric + torch.diag_embed((NEGATIVE * size + torch.finfo(size.dtype).tiny).unsqueeze(-1).expand(shape))
    info = torch.linalg.cholesky_ex(raised).info
    check(~info.any(), lambda: ValueError(f"`{name}` must be positive semidefinite, as a covariance is."))
    return symmetric


def positive_part(matrix: Tensor) -> Tensor:
    """The covariance nearest to a matrix (..., D, D) that rounding or an iterated solve has left a little off one."""
    symmetric = (matrix + matrix.mT) / 2
    values, vectors = torch.linalg.eigh(symmetric.detach())
    nearest = (vectors * values.clamp(min=0).unsqueeze(-2)) @ vectors.mT
    # Eigenvectors have no slope where eigenvalues are alike; the matrix itself, which it is but for rounding, has one.
    return nearest + (symmetric - symmetric.detach()) if symmetric.requires_grad else nearest


def normal_log_prob(residual: Tensor, covariance: Tensor, observed: Tensor | None) -> Tensor:
    """log N(residual; 0, covariance) over the observed columns, (...), in nats; the other columns are integrated out.

    Args:
        residual: (..., D).
        covariance: (..., D, D).
        observed: Boolean, broadcastable to (..., D); None is all.

    Raises:
        ValueError: A covariance without density.
    """
    number: Tensor | int = residual.shape[-1]
    if observed is not None:
        residual = torch.where(observed, residual, 0.0)
        pairs = observed.unsqueeze(-1) & observed.unsqueeze(-2)
        covariance = torch.where(pairs, covariance, torch.eye(residual.shape[-1]).to(covariance))
        number = observed.sum(dim=-1)
    factor, info = torch.linalg.cholesky_ex(covariance)
    check(~info.any(), lambda: ValueError(SINGULAR))
    standard = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False).squeeze(-1)
    log_root = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return -0.5 * (standard.square().sum(dim=-1) + number * math.log(2 * math.pi)) - log_root


def correlated(standard: Tensor, covariance: Tensor) -> Tensor:
    """Draws of N(0, covariance), (..., D), from standard normal ones; the covariance may be singular."""
    factor, info = torch.linalg.cholesky_ex(covariance)
    if info.any():
        values, vectors = torch.linalg.eigh(covariance)
        factor = vectors * values.clamp(min=0).sqrt().unsqueeze(-2)
    return (factor @ standard.unsqueeze(-1)).squeeze(-1)
