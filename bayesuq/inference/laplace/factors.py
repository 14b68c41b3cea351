"""Jacobians of layers in factors.

In a linear layer o = W a, and in a convolution, which is one at each position t of its output,

    d f_k / dW = sum_t g_kt a_t^T,        g_kt = d f_k / d o_t

so a layer's inputs a and the gradients g at its outputs hold the Jacobian, and most of what is asked of it can be had
without writing it out.

Reference:
    Dangel, Kunstner & Hennig 2020, BackPACK: Packing More into Backprop; Grosse & Martens 2016, A Kronecker-Factored
    Approximate Fisher Matrix for Convolution Layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution some of whose weights are sought, as a matrix (O, I).

    Attributes:
        path: Of the module.
        weight: The name of its weight, or None where that is not sought.
        bias: The name of its bias, which is one more column of the matrix, or None.
        shape: Of the weight, (O, ...).
    """

    path: str
    weight: str | None
    bias: str | None
    shape: torch.Size

    @property
    def num_columns(self) -> int:
        """I."""
        return (self.shape[1:].numel() if self.weight else 0) + (self.bias is not None)

    def names(self) -> list[str]:
        """Of the parameters in it."""
        return [name for name in (self.weight, self.bias) if name is not None]

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """The parameters by name, (..., *shape), of a matrix (..., O, I)."""
        parts = {}
        if self.weight is not None:
            entries = matrix[..., : self.shape[1:].numel()]
            parts[self.weight] = entries.reshape(*matrix.shape[:-2], *self.shape)
        if self.bias is not None:
            parts[self.bias] = matrix[..., -1]
        return parts

    def join(self, parts: Mapping[str, Tensor]) -> Tensor:
        """The inverse of `split`."""
        columns = []
        if self.weight is not None:
            columns.append(parts[self.weight].flatten(-len(self.shape) + 1))
        if self.bias is not None:
            columns.append(parts[self.bias].unsqueeze(-1))
        return torch.cat(columns, dim=-1)


@dataclass(frozen=True, eq=False)
class Factors:
    """A layer's Jacobian sum_t g_kt a_t^T in factors, float64; a layer used several times has all its positions.

    Attributes:
        inputs: a, (N, T, I).
        gradients: g, (N, K, T, O).
        is_identity: Whether the combinations are the layer's own outputs at its one position, K = O: g is 1.
    """

    inputs: Tensor
    gradients: Tensor
    is_identity: bool = False

    def matrix(self) -> Tensor:
        """(N, K, O, I)."""
        return torch.einsum("nkto,nti->nkoi", self.gradients, self.inputs)

    def covariance(self, variances: Tensor) -> Tensor:
        """sum_oi J_koi variances_oi J_loi, (N, K, K)."""
        if self.inputs.shape[1] == 1:
            g = self.gradients[:, :, 0]
            shares = self.inputs[:, 0].square() @ variances.T  # sum_i a_i^2 variances_oi, (N, O)
            if self.is_identity:
                return shares.diag_embed()
            return (g * shares.unsqueeze(1)) @ g.mT
        jacobian = self.matrix()
        return (jacobian * variances).flatten(2) @ jacobian.flatten(2).mT

    def pushed(self, matrices: Tensor) -> Tensor:
        """sum_oi J_koi matrices_soi, (N, S, K), in their dtype."""
        num_rows, num_positions, _ = self.inputs.shape
        num_draws, num_outputs, _ = matrices.shape
        moved = self.inputs.to(matrices.dtype) @ matrices.flatten(0, 1).T  # what the layer's outputs move by
        if self.is_identity:
            return moved.view(num_rows, num_draws, num_outputs)
        moved = moved.view(num_rows, num_positions, num_draws, num_outputs).transpose(1, 2).flatten(2)
        return moved @ self.gradients.to(matrices.dtype).flatten(2).mT

    def squares(self, weight: Tensor) -> Tensor:
        """sum_nk weight_n J_nkoi^2, (O, I)."""
        if self.inputs.shape[1] == 1:
            squared = self.gradients[:, :, 0].square().sum(dim=1) * weight.unsqueeze(1)
            return squared.T @ self.inputs[:, 0].square()
        return torch.einsum("nkoi,n->oi", self.matrix().square(), weight)


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Of K combinations of the outputs of N rows.

    Attributes:
        layers: Of each layer.
        others: Of the parameters outside of those layers, by name, (N, K, *shape), float64.
    """

    layers: Mapping[Layer, Factors]
    others: Mapping[str, Tensor]

    def flat(self, names: Sequence[str]) -> Tensor:
        """The Jacobian, (N, K, R), its columns in the order of the names."""
        by_name = dict(self.others)
        for layer, factors in self.layers.items():
            by_name |= layer.split(factors.matrix())
        return torch.cat([columns(by_name[name]) for name in names], dim=2)

    def pushed(self, deviations: Mapping[str, Tensor]) -> Tensor:
        """J deviation of each row and draw, (S, N, K).

        Args:
            deviations: Of the parameters by name, (S, *shape), in the dtype to compute in.
        """
        parts = [factors.pushed(layer.join(deviations)) for layer, factors in self.layers.items()]
        for name, jacobian in self.others.items():
            flat = deviations[name].reshape(len(deviations[name]), -1)
            parts.append((columns(jacobian).to(flat.dtype) @ flat.T).mT)
        return torch.stack(parts).sum(dim=0).transpose(0, 1)

    def width(self) -> int:
        """Numbers that `pushed` holds for a row and draw, at most."""
        widths = [factors.gradients[0, 0].numel() for factors in self.layers.values()]
        return max(widths, default=1)


def columns(jacobian: Tensor) -> Tensor:
    """Derivatives (N, K, *shape) in columns, (N, K, R): of a parameter that is one number, shape (), in one."""
    return jacobian.reshape(*jacobian.shape[:2], -1)
