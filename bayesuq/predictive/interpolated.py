"""Laws between quantiles: y is a broken line of a standard normal variable, through the quantiles that are known.

Between two neighbouring levels, and beyond the outermost ones, y = a + b z with z ~ N(0, 1), so that the quantiles of a
normal law give that law back, tails included. Density, moments and CRPS are in closed form.

Letters: K quantiles at levels t_k, z_k = Phi^-1(t_k); K - 1 pieces, whose edges are -inf, z_2, ..., z_(K-1), inf.
`...` stands for any dimensions, those of the quantiles but the last.

Reference:
    Gneiting and Raftery 2007, section 4.2, for the CRPS; the integral of Phi^2 is by parts.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Interpolated:
    """Laws through known quantiles.

    Attributes:
        levels: Rising, in (0, 1), (K,), float64.
        quantiles: Not falling over the last dimension, (..., K), float64.
    """

    levels: Tensor
    quantiles: Tensor

    @property
    def has_atoms(self) -> bool:
        """Whether two quantiles are equal somewhere, where y has a probability and no density."""
        return bool((self._slopes == 0).any())

    @cached_property
    def mean(self) -> Tensor:
        """E[y], (...)."""
        mass, first, _ = self._normal_moments
        return self._centre + (self._starts * mass + self._slopes * first).sum(dim=-1)

    @cached_property
    def variance(self) -> Tensor:
        """Var[y], (...)."""
        mass, first, second = self._normal_moments
        starts, slopes = self._starts, self._slopes
        square = (starts.square() * mass + 2 * starts * slopes * first + slopes.square() * second).sum(dim=-1)
        return (square - (self.mean - self._centre).square()).clamp(min=0.0)

    def cdf(self, y: Tensor) -> Tensor:
        """P(y* <= y), of the shape of y, (...)."""
        return torch.special.ndtr(self._standard(y)[0])

    def log_density(self, y: Tensor) -> Tensor:
        """log density, (...), where there are no atoms."""
        standard, slope = self._standard(y)
        return -0.5 * standard.square() - 0.5 * math.log(math.tau) - slope.log()

    def quantile(self, level: Tensor) -> Tensor:
        """At levels in (0, 1), (...) or ()."""
        standard = torch.special.ndtri(level).expand(self.quantiles.shape[:-1]).unsqueeze(-1)
        piece = torch.searchsorted(self._inner_edges, standard.contiguous(), right=True)
        value = self._starts.gather(-1, piece) + self._slopes.gather(-1, piece) * standard
        return self._centre + value.squeeze(-1)

    def crps(self, y: Tensor) -> Tensor:
        """The integral of (F(t) - 1[t >= y])^2 over t, (...), in units of y."""
        lower, upper = self._edges[:-1], self._edges[1:]
        centred = (y - self._centre).unsqueeze(-1)
        reached = torch.where(self._slopes > 0, (centred - self._starts) / self._slopes, 0.0)
        reached = reached.maximum(lower).minimum(upper)
        below = _integrated_square(reached) - _integrated_square(lower)
        above = _integrated_square(-reached) - _integrated_square(-upper)
        return (self._slopes * (below + above)).sum(dim=-1) + self._beyond(y)

    def _beyond(self, y: Tensor) -> Tensor:
        """Distance of y from the law's end, on the side where that is an atom and not a tail, (...)."""
        ends = (
            (self.quantiles[..., 0] - y, self._slopes[..., 0]),
            (y - self.quantiles[..., -1], self._slopes[..., -1]),
        )
        first, last = (torch.where(slope == 0, gap.clamp(min=0.0), 0.0) for gap, slope in ends)
        return first + last

    def _standard(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """z of y and the slope there, (...) each."""
        inner, centred = self.quantiles[..., 1:-1].contiguous(), y.expand(self.quantiles.shape[:-1]).unsqueeze(-1)
        piece = torch.searchsorted(inner, centred.contiguous(), right=True)
        start, slope = self._starts.gather(-1, piece), self._slopes.gather(-1, piece)
        residual = centred - self._centre.unsqueeze(-1) - start
        beyond = torch.where(residual < 0, -math.inf, math.inf)  # on an end piece that is one point
        return torch.where(slope > 0, residual / slope, beyond).squeeze(-1), slope.squeeze(-1)

    @cached_property
    def _centre(self) -> Tensor:
        """A value in the middle, about which moments lose nothing, (...)."""
        return self.quantiles[..., self.quantiles.shape[-1] // 2]

    @cached_property
    def _slopes(self) -> Tensor:
        """b of each piece, (..., K - 1)."""
        return self.quantiles.diff(dim=-1) / torch.special.ndtri(self.levels).diff()

    @cached_property
    def _starts(self) -> Tensor:
        """a of each piece, less the centre, (..., K - 1)."""
        centred = self.quantiles - self._centre.unsqueeze(-1)
        return centred[..., :-1] - self._slopes * torch.special.ndtri(self.levels)[:-1]

    @property
    def _inner_edges(self) -> Tensor:
        return torch.special.ndtri(self.levels)[1:-1]

    @property
    def _edges(self) -> Tensor:
        """Ends of the pieces in z, (K,)."""
        infinite = self.levels.new_full((1,), math.inf)
        return torch.cat([-infinite, self._inner_edges, infinite])

    @property
    def _normal_moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """P(z in piece), E[z 1] and E[z^2 1] of each, (K - 1,)."""
        edges = self._edges
        density = torch.exp(-edges.square() / 2) / math.sqrt(math.tau)
        mass = torch.special.ndtr(edges).diff()
        finite = torch.where(edges.isinf(), 0.0, edges)
        return mass, -density.diff(), mass - (finite * density).diff()


def _integrated_square(z: Tensor) -> Tensor:
    """The integral of Phi^2 from -inf to z: z Phi^2 + 2 Phi phi - Phi(sqrt 2 z) / sqrt pi; infinite only at inf."""
    cdf = torch.special.ndtr(z)
    density = torch.exp(-z.square() / 2) / math.sqrt(math.tau)
    value = z * cdf.square() + 2 * cdf * density - torch.special.ndtr(math.sqrt(2) * z) / math.sqrt(math.pi)
    return torch.where(z == -math.inf, 0.0, value)
