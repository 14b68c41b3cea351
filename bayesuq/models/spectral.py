"""Spectral norms as functions of the weights alone.

`torch.nn.utils.spectral_norm`, of either kind, divides a weight by an estimate u' W v of its largest singular value.
u and v follow W by a power iteration while a network trains and then stand still: right around the weights that they
were trained with, and wrong at others by any factor, where a chain goes or a prior draws. There the singular value
itself is taken.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import SpectralNorm


class ExactSpectralNorm(nn.Module):
    """A weight over its largest singular value; the vectors of the power iteration are kept, and not used.

    Attributes:
        dim: The dimension of the outputs, which becomes the rows of a matrix.
        eps: Least length of a weight that is a vector.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.dim, self.eps = int(norm.dim), float(norm.eps)  # type: ignore[arg-type]
        for name, buffer in norm.named_buffers():
            self.register_buffer(name, buffer)

    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight, of its shape."""
        if weight.ndim == 1:
            return functional.normalize(weight, dim=0, eps=self.eps)
        return normalised(weight, self.dim)


class ExactHook:
    """The same for the older kind, which lives in a hook before the layer runs."""

    def __init__(self, hook: SpectralNorm) -> None:
        self.name, self.dim = hook.name, hook.dim

    def __call__(self, module: nn.Module, _inputs: object) -> None:
        """Put the normalised weight into the layer."""
        setattr(module, self.name, normalised(getattr(module, f"{self.name}_orig"), self.dim))


def normalised(weight: Tensor, dim: int) -> Tensor:
    """A weight over the largest singular value of the matrix with `dim` as its rows and all else as its columns."""
    return weight / torch.linalg.matrix_norm(weight.movedim(dim, 0).flatten(1), ord=2)


def with_exact_norms(tree: nn.Module) -> nn.Module:
    """A tree, its own to change, whose spectral norms are functions of the weights alone."""
    for module in list(tree.modules()):
        for name, child in module.named_children():
            if isinstance(child, parametrizations._SpectralNorm):
                setattr(module, name, ExactSpectralNorm(child))
        for key, hook in module._forward_pre_hooks.items():
            if isinstance(hook, SpectralNorm):
                module._forward_pre_hooks[key] = ExactHook(hook)
    return tree
