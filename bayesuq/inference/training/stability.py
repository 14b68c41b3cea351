"""How long a step of a gradient method may be: by the largest curvature of what it descends.

On a quadratic with curvatures lambda_i, gradient descent with rate r and momentum m is stable below
r = 2 (1 + m) / max lambda_i, and a Langevin or Hamiltonian step of length h below h = 2 / sqrt(max lambda_i). The
largest curvature of a minibatch comes from power iterations on products of its Hessian with vectors (Pearlmutter 1994),
each of which costs one more backward pass.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayesuq.models.attention import PlainAttention
from bayesuq.models.precision import full_precision

NUM_ITERATIONS = 20  # a lower bound to within some percent, which the shares of the stable step leave room for


def largest_curvature(
    energy: Callable[[Tensor], Tensor], at: Tensor, noise: torch.Generator, *, scales: Tensor | None = None
) -> float:
    """The largest absolute eigenvalue of the Hessian of `energy`, by power iterations from a random direction.

    Args:
        energy: A function of a vector (P,), in nats.
        at: Where, (P,).
        noise: Draws the direction.
        scales: Curvature along u where the vector is at + scales * u; None is 1.

    Returns:
        The eigenvalue, in nats by units of u squared; infinite where the energy or its derivatives are not finite.

    Raises:
        RuntimeError: A network that autograd cannot differentiate twice.
    """
    row = None if scales is None else scales.unsqueeze(0)
    return float(largest_curvatures(lambda rows: energy(rows[0]).reshape(1), at.unsqueeze(0), [noise], scales=row))


def largest_curvatures(
    energies: Callable[[Tensor], Tensor], at: Tensor, noises: Sequence[torch.Generator], *, scales: Tensor | None = None
) -> Tensor:
    """As `largest_curvature`, of each of C functions, (C,), in passes that they share.

    Args:
        energies: From vectors (C, P) to C values, each of its own row alone.
        at: Where, (C, P).
        noises: Draw the directions.
        scales: (C, P), or None.

    Raises:
        RuntimeError: A network that autograd cannot differentiate twice.
    """
    scales = torch.ones_like(at) if scales is None else scales
    origin = torch.zeros_like(at).requires_grad_()
    with torch.enable_grad(), full_precision(), PlainAttention():  # fused attention has no second derivative
        values = energies(at.detach() + scales * origin)
        (gradients,) = torch.autograd.grad(values.sum(), origin, create_graph=True)
        if not gradients.requires_grad:
            return torch.zeros_like(values)  # linear
        products = torch.stack(
            [torch.empty_like(row).normal_(generator=noise) for row, noise in zip(at, noises, strict=True)]
        )
        for _ in range(NUM_ITERATIONS):
            lengths = torch.linalg.vector_norm(products, dim=1, keepdim=True)
            directions = products / lengths.where(lengths > 0, 1)
            (products,) = torch.autograd.grad(gradients, origin, directions, retain_graph=True)
        curvatures = torch.linalg.vector_norm(products, dim=1)
    return curvatures.where(curvatures.isfinite(), math.inf)
