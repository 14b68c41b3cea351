"""How long a step of a gradient method may be: by the largest curvature of what it descends.

On a quadratic with curvatures lambda_i, gradient descent with rate r and momentum m is stable below
r = 2 (1 + m) / max lambda_i, and a Langevin or Hamiltonian step of length h below h = 2 / sqrt(max lambda_i). The
largest curvature of a minibatch comes from power iterations on products of its Hessian with vectors (Pearlmutter 1994),
each of which costs one more backward pass.
"""

import math
from collections.abc import Callable

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
    scales = torch.ones_like(at) if scales is None else scales
    origin = torch.zeros_like(at).requires_grad_()
    with torch.enable_grad(), full_precision(), PlainAttention():  # fused attention has no second derivative
        (gradient,) = torch.autograd.grad(energy(at.detach() + scales * origin), origin, create_graph=True)
        if not gradient.requires_grad:
            return 0.0  # linear
        direction = torch.empty_like(at).normal_(generator=noise)
        curvature = 0.0
        for _ in range(NUM_ITERATIONS):
            direction = direction / direction.norm()
            (product,) = torch.autograd.grad(gradient, origin, direction, retain_graph=True)
            curvature = float(product.norm())
            if curvature == 0 or not math.isfinite(curvature):
                break
            direction = product
    return curvature if math.isfinite(curvature) else math.inf
