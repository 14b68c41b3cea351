"""The mass of a Hamiltonian system: how momenta are drawn, and how fast they move each coordinate.

    r ~ N(0, M),   K(r) = r^T M^-1 r / 2,   du/dt = M^-1 r

M^-1 is best the posterior's covariance. Diagonal, it gives every coordinate its own scale. Dense, it also undoes linear
correlations, at P^2 numbers a chain and P^2 operations a step.

Reference:
    Neal 2011, MCMC using Hamiltonian Dynamics, section 5.4.2.4.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

MassName = Literal["diagonal", "dense"]
LARGEST_DENSE = 4096  # coordinates: 128 MiB a matrix in float64


class Mass(Protocol):
    """Of coordinates (P,); rows (C, P) are taken as vectors (P,) are."""

    @property
    def inverse(self) -> Tensor:
        """M^-1: (P,) its diagonal, or (P, P)."""

    def momenta(self, white: Tensor) -> Tensor:
        """r ~ N(0, M) from as many numbers ~ N(0, 1)."""

    def velocities(self, momenta: Tensor) -> Tensor:
        """M^-1 r."""

    def kinetic_energies(self, momenta: Tensor) -> Tensor:
        """r^T M^-1 r / 2, in nats, float64, without the last dimension."""

    def moved(self, positions: Tensor, momenta: Tensor, time: float) -> Tensor:
        """u + time M^-1 r."""


@dataclass(frozen=True, eq=False, slots=True)
class Diagonal:
    """Of scales alone.

    Attributes:
        inverse: Variances, (P,).
    """

    inverse: Tensor

    def momenta(self, white: Tensor) -> Tensor:
        """See `Mass`, like the following."""
        return white * self.inverse.rsqrt()

    def velocities(self, momenta: Tensor) -> Tensor:
        """As there."""
        return momenta * self.inverse

    def kinetic_energies(self, momenta: Tensor) -> Tensor:
        """As there."""
        return 0.5 * (momenta.square() * self.inverse).sum(dim=-1, dtype=torch.float64)

    def moved(self, positions: Tensor, momenta: Tensor, time: float) -> Tensor:
        """As there."""
        return torch.addcmul(positions, momenta, self.inverse, value=time)


@dataclass(frozen=True, eq=False, slots=True)
class Dense:
    """Of a whole covariance.

    Attributes:
        inverse: Covariance, (P, P).
        whitener: L^-1 where M^-1 = L L^T, (P, P): rows z of white noise become momenta z L^-1.
    """

    inverse: Tensor
    whitener: Tensor

    @classmethod
    def of(cls, covariance: Tensor) -> "Dense":
        """Of a covariance (P, P), whose diagonal grows where rounding has left it without a Cholesky factor.

        Raises:
            torch.linalg.LinAlgError: It is not finite.
        """
        growth = torch.finfo(covariance.dtype).eps
        # in float64, but of the rounded matrix: momenta and velocities have the same M
        while torch.linalg.cholesky_ex(covariance.double()).info and growth < len(covariance):
            covariance, growth = covariance + growth * covariance.diagonal().diag_embed(), 4 * growth
        factor = torch.linalg.cholesky(covariance.double())
        eye = torch.eye(len(covariance), dtype=factor.dtype, device=factor.device)
        return cls(covariance, torch.linalg.solve_triangular(factor, eye, upper=False).to(covariance))

    def momenta(self, white: Tensor) -> Tensor:
        """See `Mass`, like the following."""
        return white @ self.whitener

    def velocities(self, momenta: Tensor) -> Tensor:
        """As there."""
        return momenta @ self.inverse

    def kinetic_energies(self, momenta: Tensor) -> Tensor:
        """As there."""
        return 0.5 * (momenta * (momenta @ self.inverse)).sum(dim=-1, dtype=torch.float64)

    def moved(self, positions: Tensor, momenta: Tensor, time: float) -> Tensor:
        """As there."""
        return torch.add(positions, momenta @ self.inverse, alpha=time)


def mass_of(inverse: Tensor) -> Diagonal | Dense:
    """The mass whose inverse this is: (P,) its diagonal, or (P, P)."""
    return Diagonal(inverse) if inverse.ndim == 1 else Dense.of(inverse)
