"""The law of a scale-mixture prior, sum_k pi_k N(0, s_k^2): as a Pyro distribution, and as a kernel with its gradient.

With responsibilities r_k(w) proportional to pi_k N(w; 0, s_k^2), summing to one,

    -d log p(w) / dw = w sum_k r_k(w) / s_k^2

Reference:
    Blundell et al. 2015, Weight Uncertainty in Neural Networks, eq. (7).
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

EMPTY = torch.Size()
BLOCK = 2**15  # numbers at a time, which stay in a processor's cache
FAINT = -80.0  # log of a share too small to count: numbers below the normal ones would take ten times as long


class NormalScaleMixture(dist.TorchDistribution):
    """sum_k weights_k N(0, scales_k^2) for every entry of `batch_shape`, as a Pyro distribution on the real line.

    torch's MixtureSameFamily would do, but that autoguides and NUTS cannot map its support to the real line.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real

    def __init__(self, scales: Tensor, weights: Tensor, batch_shape: torch.Size = EMPTY) -> None:
        self.scales, self.weights = scales, weights
        super().__init__(batch_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "NormalScaleMixture":
        """The same law for each entry of another shape."""
        return NormalScaleMixture(self.scales, self.weights, torch.Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log density of each entry, in nats."""
        squares = -0.5 * value.square()
        heights = zip(self._log_heights(), self.scales, strict=True)
        return torch.stack([height + squares / scale**2 for height, scale in heights]).logsumexp(dim=0)

    def sample(self, sample_shape: torch.Size = EMPTY) -> Tensor:
        """Draws, of shape `sample_shape` + `batch_shape`."""
        shape = self._extended_shape(torch.Size(sample_shape))
        chosen = torch.multinomial(self.weights, shape.numel(), replacement=True).reshape(shape)
        return torch.randn(shape, dtype=self.scales.dtype, device=self.scales.device) * self.scales[chosen]

    @property
    def mean(self) -> Tensor:
        """Zero."""
        return self.scales.new_zeros(self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """sum_k weights_k scales_k^2."""
        return (self.weights * self.scales**2).sum().expand(self.batch_shape)

    def kernel(self) -> "ScaleMixtureKernel":
        """The same density for vectors, with its gradient."""
        pairs = sorted(zip((self.scales.double() ** -2).tolist(), self._log_heights().tolist(), strict=True))
        precisions, heights = zip(*pairs, strict=True)
        return ScaleMixtureKernel(heights, precisions)

    def _log_heights(self) -> Tensor:
        return self.weights.log() - self.scales.log() - 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class ScaleMixtureKernel:
    """Minus the log density of a vector of independent entries, and its gradient, in some ten kernels and no graph.

    Attributes:
        log_heights: Logarithms of the components' densities at 0, from the widest component to the narrowest.
        precisions: The components' inverse variances, in the same order.
    """

    log_heights: tuple[float, ...]
    precisions: tuple[float, ...]

    def energy(self, values: Tensor, gradient: Tensor, weight: float = 1.0) -> Tensor:
        """-sum_i log p(w_i) in nats, 0-d; `weight` times its gradient is added to `gradient` in place.

        Args:
            values: w, (P,).
            gradient: (P,).
            weight: A factor.
        """
        blocks = zip(values.split(BLOCK), gradient.split(BLOCK), strict=True)
        return torch.stack([self._of_block(*block, weight) for block in blocks]).sum()

    def _of_block(self, values: Tensor, gradient: Tensor, weight: float) -> Tensor:
        squares = values.square()
        if len(self.precisions) != 2 or self.log_heights[1] - self.log_heights[0] > -FAINT:
            return self._of_any_number(values, squares, gradient, weight)
        (height, narrow_height), (precision, narrow_precision) = self.log_heights, self.precisions
        # The narrow component's density over the wide one's is largest at 0, so that its exponential cannot overflow.
        odds = squares.mul(0.5 * (precision - narrow_precision)).add_(narrow_height - height).clamp_(min=FAINT).exp_()
        energy = 0.5 * precision * squares.sum() - height * len(values) - odds.log1p().sum()
        shares = odds.div_(torch.add(odds, 1, out=squares))
        gradient.addcmul_(shares.mul_(narrow_precision - precision).add_(precision), values, value=weight)
        return energy

    def _of_any_number(self, values: Tensor, squares: Tensor, gradient: Tensor, weight: float) -> Tensor:
        pairs = zip(self.log_heights, self.precisions, strict=True)
        terms = torch.stack([height - 0.5 * precision * squares for height, precision in pairs])
        precisions = torch.tensordot(values.new_tensor(self.precisions), terms.softmax(dim=0), 1)
        gradient.addcmul_(precisions, values, value=weight)
        return -terms.logsumexp(dim=0).sum()
