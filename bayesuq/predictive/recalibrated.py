"""The predictive of a real target whose quantiles were calibrated: F'(y) = R(F(y)), with R rising from 0 to 1.

F is a Gaussian mixture's distribution function and R a broken line through a few knots (u_j, r_j). Between two knots
the density is the mixture's times the constant slope of R there,

    p'(y) = w(F(y)) p(y),    w = (r_j - r_(j-1)) / (u_j - u_(j-1)),

so that density, quantiles and moments are all in closed form, up to the mixture's own quantiles at the knots. It is a
mixture of S laws again, p_s(y) w(F(y)) with the shares that they come to have, and its variance splits by the law of
total variance as ever.

Letters: S components, N points, K pieces of R.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, check_fraction
from bayesuq.predictive.base import BLOCK_NUMBERS, RealPredictive, block_size, over_columns
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.quantiles import continuous_quantile
from bayesuq.randomness import generator, resolve_seed


@dataclass(frozen=True, eq=False, repr=False)
class RecalibratedPredictive(RealPredictive):
    """A Gaussian mixture of one target column, read through a map of its levels.

    Attributes:
        base: The mixture, of one column.
        knots: u_0 = 0 < ... < u_K = 1, levels of the mixture.
        levels: r_0 = 0 < ... < r_K = 1, what they really are.

    Example:
        >>> base = GaussianPredictive(mean=torch.zeros(1, 1, 1), noise_variance=1.0)
        >>> wide = RecalibratedPredictive(base, (0.0, 0.1, 0.9, 1.0), (0.0, 0.25, 0.75, 1.0))
        >>> wide.cdf(base.quantile(0.1)), wide.log_prob([0.0]) - base.log_prob([0.0])  # log (0.5 / 0.8)
        (tensor([[0.2500]], dtype=torch.float64), tensor([-0.4700], dtype=torch.float64))
    """

    base: GaussianPredictive
    knots: tuple[float, ...]
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.base, GaussianPredictive):
            raise TypeError(f"`base` must be a GaussianPredictive; got {type(self.base).__name__}.")
        if self.shape[2] != 1:
            raise ValueError(
                f"`base` must have one target column; got {self.shape[2]}. A map of each column's "
                "levels does not say how columns go together: fit and calibrate them one by one."
            )
        for name in ("knots", "levels"):
            values = tuple(float(value) for value in getattr(self, name))
            rising = all(before < after for before, after in pairwise(values))
            if len(values) < 2 or values[0] != 0 or values[-1] != 1 or not rising:
                raise ValueError(f"`{name}` must rise from 0 to 1; got {values}.")
            object.__setattr__(self, name, values)
        if len(self.knots) != len(self.levels):
            raise ValueError(f"`knots` and `levels` must be as many; got {len(self.knots)} and {len(self.levels)}.")

    @property
    def shape(self) -> torch.Size:
        """(S, N, 1): components, points and the one target column."""
        return self.base.shape

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.base.device

    @property
    def is_discrete(self) -> bool:
        """False."""
        return False

    @property
    def component_means(self) -> Tensor:
        """Mean of each component's calibrated part, (S, N, 1); the parts' shares need not be equal."""
        return self.base.by_draw(self._law_means)

    @property
    def component_variances(self) -> Tensor:
        """Variance of each component's calibrated part, (S, N, 1)."""
        return self.base.by_draw(self._within / self._moments[2].clamp(min=torch.finfo(torch.float64).tiny))

    @property
    def mean(self) -> Tensor:
        """E[y*], (N, 1), in units of y."""
        return self._summary[0]

    @property
    def aleatoric(self) -> Tensor:
        """Mean variance of the components, less what their function variance has of it, (N, 1), in y squared."""
        return self._summary[1]

    @property
    def epistemic(self) -> Tensor:
        """Variance of the components' means, and the function variance's part of their own, (N, 1)."""
        return self._summary[2]

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density, (N,), in nats (per unit of y); see `GaussianPredictive.log_prob` for the rest."""
        return over_columns((self.base.log_prob(y) + self._log_weight(y)).unsqueeze(-1), observed)

    def component_log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log of each component's part of the density, times S, (S, N): a part need not integrate to 1 / S."""
        return over_columns((self.base.component_log_prob(y) + self._log_weight(y)).unsqueeze(-1), observed)

    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y), (N, 1)."""
        return self._mapped(self.base.cdf(y), self.knots, self.levels)

    def quantile(self, level: float) -> Tensor:
        """The value below which y* falls with probability `level`, (N, 1).

        Raises:
            ValueError: `level` outside (0, 1).
        """
        level = check_fraction(level, "level")
        return self.base.quantile(float(self._mapped(self._tensor((level,)), self.levels, self.knots)))

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Targets, (num_samples, N, 1), float64; each sample is one of the mixture's, moved to its calibrated level."""
        check_count(num_samples, "num_samples")
        return torch.stack([self._moved(drawn) for drawn in self.base.sample(num_samples, seed=seed)])

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """Targets, one from each component's calibrated law, (S, N, 1), float64, by inverting its cdf."""
        noise = generator(resolve_seed(seed), device=self._masses.device)
        shape = self.shape
        masses, edges = self.base.by_draw(self._masses), self.base.by_draw(self._standard_edges)
        uniform = torch.rand(shape, generator=noise, dtype=torch.float64, device=self._masses.device)
        # Pieces first, by their masses; then a normal that is cut to its piece.
        upto = masses.cumsum(dim=-1)
        piece = (uniform.unsqueeze(-1) * upto[..., -1:] > upto).sum(dim=-1).clamp(max=len(self.knots) - 2)
        lower, upper = (edges.gather(-1, (piece + end).unsqueeze(-1)).squeeze(-1) for end in (0, 1))
        share = torch.rand(shape, generator=noise, dtype=torch.float64, device=self._masses.device)
        low, high = torch.special.ndtr(lower), torch.special.ndtr(upper)
        tiny = torch.finfo(torch.float64).tiny
        standard = torch.special.ndtri((low + share * (high - low)).clamp(tiny, 1 - 1e-16))
        return self.base.component_means + self.base.component_variances.sqrt() * standard.clamp(lower, upper)

    def components_at(self, chosen: Tensor) -> Self:
        """The mixture of the components of these numbers, read through the same map."""
        return self._over(self.base.components_at(chosen))

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        return self._over(self.base.to(device))

    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive at some of its points."""
        return self._over(self.base.at(points))

    @classmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        """The predictive at the points of all parts, in order, which must share one map.

        Raises:
            NotImplementedError: A mixture: the map was chosen for the whole one, and is another for a part of it.
            ValueError: Other maps.
        """
        if dim == 0:
            raise NotImplementedError("Mix the posteriors first, and calibrate the quantiles of the mixture.")
        if len({(part.knots, part.levels) for part in parts}) != 1:
            raise ValueError("Parts must have the same map of levels, at least one part.")
        return parts[0]._over(GaussianPredictive.concatenate([part.base for part in parts]))

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*, scale above 0; levels have no unit."""
        return self._over(self.base.rescale(loc, scale))

    def _over(self, base: GaussianPredictive) -> Self:
        return type(self)(base, self.knots, self.levels)

    def _tensor(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=self.device)

    def _mapped(self, values: Tensor, source: tuple[float, ...], target: tuple[float, ...]) -> Tensor:
        """The broken line from `source` to `target`."""
        start, end = self._tensor(source), self._tensor(target)
        piece = (torch.searchsorted(start, values.contiguous(), right=True) - 1).clamp(0, len(source) - 2)
        share = (values - start[piece]) / (start[piece + 1] - start[piece])
        return end[piece] + share * (end[piece + 1] - end[piece])

    def _log_weight(self, y: ArrayLike) -> Tensor:
        """log w(F(y)), (N,)."""
        piece = torch.searchsorted(self._tensor(self.knots), self.base.cdf(y).squeeze(-1).contiguous(), right=True) - 1
        return self._weights.log()[piece.clamp(0, len(self.knots) - 2)]

    @property
    def _weights(self) -> Tensor:
        """w of each piece, (K,)."""
        return self._tensor(self.levels).diff() / self._tensor(self.knots).diff()

    def _moved(self, drawn: Tensor) -> Tensor:
        """Draws of the mixture, (N, 1), at their calibrated levels."""
        level = self._mapped(self.base.cdf(drawn), self.levels, self.knots).clamp(1e-15, 1 - 1e-15)
        scales, means = self._scales, self.base.laws.component_means
        ends = means + scales * torch.special.ndtri(level)
        return continuous_quantile(ends.amin(dim=0), ends.amax(dim=0), self._cdf_and_density, level)

    @property
    def _cdf_and_density(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return lambda point: (self.base.cdf(point), self.base.log_prob(point).exp().unsqueeze(-1))

    @property
    def _scales(self) -> Tensor:
        """Of the K Gaussians that the base holds, (K, N, 1)."""
        return self.base.laws.component_variances.sqrt()

    @cached_property
    @torch.enable_grad()  # for whoever asks next
    def _standard_edges(self) -> Tensor:
        """The mixture's quantiles at the knots in each held Gaussian's own standard units, (held, N, 1, K + 1)."""
        means = self.base.laws.component_means
        inner = [(quantile - means) / self._scales for quantile in self.base.quantiles_at(self.knots[1:-1])]
        infinite = torch.full_like(means, math.inf)
        return torch.stack([-infinite, *inner, infinite], dim=-1)

    @cached_property
    @torch.enable_grad()  # for whoever asks next
    def _masses(self) -> Tensor:
        """Weighted probability of each piece under each held Gaussian, (held, N, 1, K)."""
        return torch.special.ndtr(self._standard_edges).diff(dim=-1) * self._weights

    @cached_property
    @torch.enable_grad()  # for whoever asks next
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """E[y 1_s], E[(y - m_s)^2 1_s] and P_s, each (held, N, 1): of the share that each held Gaussian has.

        Sums over pieces of w_j times the difference of Phi, phi or z phi between both ends are gathered by ends, where
        w falls by w_j - w_(j+1).
        """
        means, scales, slopes = self.base.laws.component_means, self._scales, self._weights
        mass = torch.full_like(means, float(slopes[-1]))
        first, second = torch.zeros_like(means), torch.zeros_like(means)  # of the standard normal, times sqrt(2 pi)
        for quantile, fall in zip(self.base.quantiles_at(self.knots[1:-1]), (-slopes.diff()).tolist(), strict=True):
            edge = (quantile - means) / scales
            bell = torch.exp(edge.square() / -2)
            mass.add_(torch.erfc(-math.sqrt(0.5) * edge), alpha=fall / 2)
            first.sub_(bell, alpha=fall)
            second.addcmul_(edge, bell, value=-fall)
        first, second = first / math.sqrt(math.tau), mass + second / math.sqrt(math.tau)
        weights = self.base.weights[:, None, None]
        return (means * mass + scales * first) * weights, scales.square() * second * weights, mass * weights

    @property
    def _law_means(self) -> Tensor:
        """Mean of each held Gaussian's calibrated part, (held, N, 1)."""
        first, _, share = self._moments
        return first / share.clamp(min=torch.finfo(torch.float64).tiny)

    @cached_property
    @torch.enable_grad()  # for whoever asks next
    def _summary(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean and both parts of the variance, (N, 1) each, of some points at a time."""
        one = self.base.laws.at(slice(0, 1)).component_means
        together = block_size(BLOCK_NUMBERS, one)
        starts = range(0, self.shape[1], together)
        parts = [self.at(slice(start, start + together))._summary_at_once() for start in starts]
        mean, aleatoric, epistemic = (torch.cat(each) for each in zip(*parts, strict=True))
        return mean, aleatoric, epistemic

    def _summary_at_once(self) -> tuple[Tensor, Tensor, Tensor]:
        first, _, share = self._moments
        # The shares are 1 in all but for the tolerance of the quantiles, which a mean far from 0 would multiply.
        mean, within, noise = first.sum(dim=0) / share.sum(dim=0), self._within, self._noise_share
        between = (share * (self._law_means - mean).square()).sum(dim=0)
        return mean, (within * noise).sum(dim=0), (within * (1 - noise)).sum(dim=0) + between

    @property
    def _within(self) -> Tensor:
        """Share times variance of each held Gaussian, (held, N, 1)."""
        first, second, share = self._moments
        safe = share.clamp(min=torch.finfo(torch.float64).tiny)
        offset = (first - self.base.laws.component_means * share) / safe  # of the component's mean from m_s
        return (second - share * offset.square()).clamp(min=0.0)

    @property
    def _noise_share(self) -> Any:
        return self.base.laws.noise_variance / self.base.laws.component_variances
