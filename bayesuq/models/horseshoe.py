"""The law of a horseshoe prior, w ~ N(0, lambda^2 s^2) with lambda ~ half-Cauchy(1), lambda integrated out.

With u = w^2 / (2 s^2) and E1 the exponential integral,

    p(w) = exp(u) E1(u) / (s sqrt(2 pi^3))

It has a pole at 0 and tails like 1 / w^2: most weights are nearly nothing, the others are left alone. Integrating
lambda out spares a second latent for every weight, and the funnel between the two.

Reference:
    Carvalho, Polson and Scott 2010, The horseshoe estimator for sparse signals, section 2 and theorem 1.
"""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

EMPTY = torch.Size()
EULER = 0.5772156649015329
LOG_NORMALISER = 0.5 * math.log(2 * math.pi**3)
# The pole has no use: its gradient, near 1 / w, has no variance under any density, so an optimiser would see spikes. In
# the innermost ten-thousandth of a scale the density is held constant, which takes 5e-5 of its mass away.
CORE = 1e-4
BORDER = 2.0  # below, the series; above, the continued fraction: both to 1e-14 in float64
NUM_TERMS, NUM_FRACTIONS = 24, 45


class HorseshoeLaw(dist.TorchDistribution):
    """The horseshoe for every entry of `batch_shape`, as a Pyro distribution on the real line, without variance."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, scale: Tensor, batch_shape: torch.Size = EMPTY) -> None:
        self.scale = scale
        super().__init__(batch_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "HorseshoeLaw":
        """The same law for each entry of another shape."""
        return HorseshoeLaw(self.scale, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log density of each entry, in nats; once differentiable."""
        half_square = 0.5 * (value / self.scale).square().clamp(min=CORE**2)
        return log_scaled_exponential_integral(half_square) - self.scale.log() - LOG_NORMALISER

    def sample(self, sample_shape: torch.Size = EMPTY) -> Tensor:
        """Draws, of shape `sample_shape` + `batch_shape`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        local = torch.empty(shape, dtype=self.scale.dtype, device=self.scale.device).cauchy_()
        return torch.randn_like(local) * local * self.scale  # of lambda the sign does not matter

    @property
    def mean(self) -> Tensor:
        """Zero, the centre of symmetry; as an integral it does not exist."""
        return self.scale.new_zeros(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Infinite."""
        return self.scale.new_full(self.batch_shape, math.inf)


def log_scaled_exponential_integral(u: Tensor) -> Tensor:
    """log(exp(u) E1(u)) for u > 0, entry by entry, to rounding; once differentiable.

    Reference:
        Abramowitz and Stegun 1964, eq. (5.1.11) for the series and (5.1.22) for the continued fraction.
    """
    return _LogScaledE1.apply(u)[0]


class _LogScaledE1(torch.autograd.Function):
    """log(exp(u) E1(u)) with derivative 1 - 1 / (u exp(u) E1(u))."""

    generate_vmap_rule = True

    @staticmethod
    def forward(u: Tensor) -> tuple[Tensor, Tensor]:
        """The value and the derivative."""
        small, large = u.clamp(max=BORDER), u.clamp(min=BORDER)
        series = small.exp() * (_regular_part(small) - small.log() - EULER)
        rest = _rest(large)
        # exp(u) E1(u) = 1 / (u + 1 - rest), so that the derivative is (rest - 1) / u without any cancellation.
        value = torch.where(u < BORDER, series.log(), -(large + 1 - rest).log())
        return value, torch.where(u < BORDER, 1 - 1 / (small * series), (rest - 1) / large)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG004
        """Keep the derivative."""
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _unused: Tensor) -> Tensor:
        """The chain rule."""
        (slope,) = ctx.saved_tensors
        return gradient * slope


def _regular_part(u: Tensor) -> Tensor:
    """-sum_k (-u)^k / (k k!), the part of E1 without its logarithm, by Horner's rule."""
    total = torch.zeros_like(u)
    for k in range(NUM_TERMS, 0, -1):
        total = (total - (-1) ** k / (k * math.factorial(k))) * u
    return total


def _rest(u: Tensor) -> Tensor:
    """1 / (u + 3 - 4 / (u + 5 - 9 / (u + 7 - ...))), from the inside out."""
    denominator = u + (2 * NUM_FRACTIONS + 1)
    for k in range(NUM_FRACTIONS, 1, -1):
        denominator = u + (2 * k - 1) - k**2 / denominator
    return 1 / denominator
