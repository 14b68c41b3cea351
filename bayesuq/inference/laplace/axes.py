"""The axes of a curvature A = sum w a a^T of inputs a: as many as there are columns, or as few as there are rows.

Of fewer rows than columns A is singular: with the rows w^(1/2) a^T as B, A = B^T B, whose eigenvalues s that are not 0
are those of the small matrix B B^T = U diag(s) U^T, at the axes V = B^T U diag(s)^(-1/2). In all other directions A is
0, so that nothing of a size of columns squared is ever held. A function h of A that is 1 at 0 gives there

    x^T h(A) x = sum h(s) (V^T x)^2 + |x - V V^T x|^2
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from scipy import linalg
from torch import Tensor

LARGEST_COPIED = 2**24  # numbers in a matrix: beyond, its eigenvectors are sought in its own memory


@dataclass(frozen=True, eq=False)
class Axes:
    """Eigenvalues of a matrix (I, I) that is never indefinite, and its eigenvectors.

    Attributes:
        values: (R,), not below 0, float64.
        vectors: (I, R), float64; of R < I columns the other eigenvalues are 0.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of_matrix(cls, matrix: Callable[[], Tensor]) -> Self:
        """All axes of a matrix that a function makes, whose memory may be written over."""
        values, vectors = _eigen(matrix)
        return cls(values.clamp(min=0), vectors)

    @classmethod
    def of_rows(cls, rows: Tensor) -> Self:
        """Those of B^T B in which it is not 0, of rows B (N, I); what rounding hides counts as 0."""
        values, vectors = _eigen(lambda: rows @ rows.mT)
        is_seen = values > torch.finfo(values.dtype).eps * len(values) * values.max()
        values, vectors = values[is_seen], vectors[:, is_seen]
        return cls(values, rows.mT @ (vectors * values.rsqrt()))

    @property
    def is_complete(self) -> bool:
        """Whether these are all axes."""
        return len(self.vectors) == len(self.values)

    def all_values(self) -> Tensor:
        """(I,): with those that are 0."""
        return torch.cat([self.values, self.values.new_zeros(len(self.vectors) - len(self.values))])

    def coordinates(self, x: Tensor) -> Tensor:
        """V^T x of vectors (..., I), (..., R), and where axes are missing what lies outside of them, (..., R + I)."""
        own = x @ self.vectors
        return own if self.is_complete else torch.cat([own, x - own @ self.vectors.mT], dim=-1)

    def weights(self, shares: Tensor) -> Tensor:
        """Of the squares of coordinates in x^T h(A) x, from h(s), (..., R)."""
        if self.is_complete:
            return shares
        return torch.cat([shares, shares.new_ones(*shares.shape[:-1], len(self.vectors))], dim=-1)

    def turned(self, noise: Tensor, scales: Tensor) -> Tensor:
        """A linear map of standard normal noise (..., I) whose covariance is h(A), from h(s)^(1/2), (..., R)."""
        vectors = self.vectors.to(noise.dtype)
        if self.is_complete:
            return (noise * scales) @ vectors.mT
        own = noise @ vectors
        return noise - own @ vectors.mT + (own * scales) @ vectors.mT

    def spread(self, noise: Tensor, scales: Tensor) -> Tensor:
        """What gives x . turned(noise) by its product with the coordinates of x."""
        if self.is_complete:
            return noise * scales
        return torch.cat([(noise @ self.vectors.to(noise.dtype)) * scales, noise], dim=-1)


def _eigen(matrix: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors; of a large matrix without a workspace of its size beside the two."""
    made = matrix()
    if made.requires_grad or made.device.type != "cpu" or made.numel() <= LARGEST_COPIED:
        values, vectors = torch.linalg.eigh(made)
        return values, vectors
    try:
        found = linalg.eigh(made.mT.numpy(), driver="evr", overwrite_a=True, check_finite=False)
    except linalg.LinAlgError:  # it did not converge, and the matrix is written over
        values, vectors = torch.linalg.eigh(matrix())
        return values, vectors
    return torch.from_numpy(found[0]), torch.from_numpy(found[1])
