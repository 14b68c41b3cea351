"""Draws of a last layer's outputs at few rows, without draws of its weights.

Let the deviations of the weights be U Z with Z_oi ~ N(0, v_oi) independent, U being the axes of the outputs. At rows
with inputs x_1, ..., x_N, in the axes of the inputs, the outputs are U z_1, ..., U z_N with

    (z_1o, ..., z_No) ~ N(0, K_o),      K_o,nm = sum_i v_oi x_ni x_mi      independently for each o.

That is the joint law over rows and outputs, exactly, from N C normals instead of the C I of the weights: a draw is a
function at these rows, with all of its correlations.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

JITTER = 1e-12  # of a variance: what rounding takes from the roots of rows that are the same


@dataclass(frozen=True, eq=False)
class OutputsAtRows:
    """The normal law around 0 of C outputs at N rows.

    Attributes:
        roots: L_o with L_o L_o^T = K_o, (C, N, N), float64.
        axes: U, (C, C), float64; None is 1.
    """

    roots: Tensor
    axes: Tensor | None

    @classmethod
    def of(cls, inputs: Tensor, variances: Tensor, axes: Tensor | None) -> Self:
        """From inputs (N, I) in their axes, and variances v (C, I), both float64."""
        pairs = (inputs.unsqueeze(1) * inputs).flatten(0, 1)  # (N N, I)
        covariances = (variances @ pairs.T).view(len(variances), len(inputs), len(inputs))
        roots, failures = torch.linalg.cholesky_ex(covariances)
        if failures.any():
            slack = JITTER * covariances.diagonal(dim1=1, dim2=2).diag_embed()
            roots = torch.linalg.cholesky(covariances + slack)
        return cls(roots, axes)

    def draws(self, noise: Tensor) -> Tensor:
        """(S, N, C), of standard normal noise (S, C, N), in its dtype."""
        own = self.roots.to(noise.dtype) @ noise.permute(1, 2, 0)  # (C, N, S)
        if self.axes is not None:  # one product of matrices
            own = (self.axes.to(noise.dtype) @ own.flatten(1)).view(own.shape)
        return own.permute(2, 1, 0)
