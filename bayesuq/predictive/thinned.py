"""The predictive of real targets of which some draws are held, and the moments of all.

So many draws at so many rows do not fit memory. The mean and both variances need a running sum alone, and are those of
all S draws, to rounding. What needs the laws themselves (log score, cdf, quantiles, CRPS, intervals, samples) is that
of the K draws that are held, an even thinning: the standard error of a quantile is about sqrt(epistemic / K), that of
the mean of K draws, and a log score is a little too large, by about epistemic / (2 K total) nats a column.

Letters: S draws, K of them held, N points, D target columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.predictive.base import RealPredictive, chosen_points


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean and variances of draws, (N, D) each, which add up over further draws.

    Attributes:
        num_draws: S.
        mean: E[y*].
        aleatoric: Mean variance of the draws.
        epistemic: Variance of the draws' means, ddof 0.
    """

    num_draws: int
    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor

    @classmethod
    def of(cls, predictive: RealPredictive) -> Self:
        """Of all draws of a predictive, those that are not held too."""
        return cls(num_draws_of(predictive), predictive.mean, predictive.aleatoric, predictive.epistemic)

    @classmethod
    def mixture(cls, parts: "Sequence[Moments]") -> "Moments":
        """Of the draws of all parts, by the law of total variance."""
        total = sum(part.num_draws for part in parts)
        shares = [part.num_draws / total for part in parts]
        weighed = list(zip(shares, parts, strict=True))
        mean = torch.stack([share * part.mean for share, part in weighed]).sum(dim=0)
        within = torch.stack([share * part.epistemic for share, part in weighed]).sum(dim=0)
        between = torch.stack([share * (part.mean - mean).square() for share, part in weighed]).sum(dim=0)
        aleatoric = torch.stack([share * part.aleatoric for share, part in weighed]).sum(dim=0)
        return cls(total, mean, aleatoric, within + between)


@dataclass(frozen=True, eq=False, repr=False)
class ThinnedPredictive(RealPredictive):
    """A mixture of which K components are held, with the moments of all S.

    Attributes:
        held: The mixture of the K components.
        moments: Those of all S draws.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> whole = GaussianPredictive(mean=torch.arange(4.0).reshape(4, 1, 1), noise_variance=1.0)
        >>> some = ThinnedPredictive.of(whole, 2)
        >>> some.shape, some.num_draws, some.epistemic  # of 0, 1, 2, 3
        (torch.Size([2, 1, 1]), 4, tensor([[1.2500]], dtype=torch.float64))
    """

    held: RealPredictive
    moments: Moments

    @classmethod
    def of(cls, predictive: RealPredictive, num_held: int) -> Self:
        """The same moments, and an even thinning of the components to this many, or all where they are fewer."""
        moments, held = Moments.of(predictive), held_of(predictive)
        if num_held < held.num_samples:
            chosen = [(2 * k + 1) * held.num_samples // (2 * num_held) for k in range(num_held)]
            held = held.components_at(torch.tensor(chosen, device=held.device))
        return cls(held, moments)

    @property
    def num_draws(self) -> int:
        """S, of which the moments are."""
        return self.moments.num_draws

    @property
    def mean(self) -> Tensor:
        """E[y*] over all S draws, (N, D), in units of y."""
        return self.moments.mean

    @property
    def aleatoric(self) -> Tensor:
        """Mean variance of all S draws, (N, D), in units of y squared."""
        return self.moments.aleatoric

    @property
    def epistemic(self) -> Tensor:
        """Variance of the means of all S draws, (N, D), in units of y squared."""
        return self.moments.epistemic

    @property
    def shape(self) -> torch.Size:
        """(K, N, D): held components, points and target columns."""
        return self.held.shape

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.held.device

    @property
    def is_discrete(self) -> bool:
        """Whether targets are counts."""
        return self.held.is_discrete

    @property
    def has_steps(self) -> bool:
        """Whether the cdf jumps."""
        return self.held.has_steps

    @property
    def without_density(self) -> str:
        """Why there is no log score, if so."""
        return self.held.without_density

    @property
    def density_basis(self) -> str:
        """How the log score comes about."""
        return self.held.density_basis

    @property
    def without_split(self) -> str:
        """Why the variance is not split, if so."""
        return self.held.without_split

    @property
    def moments_basis(self) -> str:
        """How the moments come about."""
        return self.held.moments_basis

    def interval_remark(self, level: float) -> str:
        """Where the quantiles are from."""
        return self.held.interval_remark(level)

    def transform_ends(self, y: ArrayLike) -> tuple[Tensor, Tensor]:
        """See `RealPredictive.transform_ends`."""
        return self.held.transform_ends(y)

    @property
    def component_means(self) -> Tensor:
        """Mean of each held component, (K, N, D)."""
        return self.held.component_means

    @property
    def component_variances(self) -> Tensor:
        """Variance of each held component, (K, N, D)."""
        return self.held.component_variances

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density of the held mixture, (N,), in nats."""
        return self.held.log_prob(y, observed=observed)

    def component_log_prob(self, y: ArrayLike) -> Tensor:
        """log density of each held component, (K, N), in nats."""
        return self.held.component_log_prob(y)

    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y) under the held mixture, (N, D)."""
        return self.held.cdf(y)

    def quantile(self, level: float) -> Tensor:
        """The quantile of the held mixture, (N, D)."""
        return self.held.quantile(level)

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Targets from the held mixture, (num_samples, N, D)."""
        return self.held.sample(num_samples, seed=seed)

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """Targets, one from each held component, (K, N, D)."""
        return self.held.component_sample(seed=seed)

    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive at some of its points."""
        chosen = chosen_points(points, len(self.mean), self.device)
        moments = Moments(self.num_draws, self.mean[chosen], self.aleatoric[chosen], self.epistemic[chosen])
        return type(self)(self.held.at(points), moments)

    def components_at(self, chosen: Tensor) -> Self:
        """Fewer components held; the moments stay those of all draws."""
        return type(self)(self.held.components_at(chosen), self.moments)

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        moments = [value.to(device) for value in (self.mean, self.aleatoric, self.epistemic)]
        return type(self)(self.held.to(device), Moments(self.num_draws, *moments))

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*; see that of the held mixture."""
        held = self.held.rescale(loc, scale)
        loc, scale = (each.to(self.device, torch.float64) for each in (loc, scale))
        square = scale.square()
        moments = Moments(self.num_draws, loc + scale * self.mean, square * self.aleatoric, square * self.epistemic)
        return type(self)(held, moments)

    @classmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        """See `RealPredictive.joined`: in a mixture each part holds components in proportion to its draws.

        Raises:
            ValueError: Points of other numbers of draws, one after another.
        """
        moments = [Moments.of(part) for part in parts]
        kind = type(parts[0].held)
        if dim == 0:
            each = max(part.num_draws / part.num_samples for part in parts)  # draws that one component stands for
            even = [cls.of(part, max(1, round(part.num_draws / each))) for part in parts]
            return cls(kind.mixture([part.held for part in even]), Moments.mixture(moments))
        if len({part.num_draws for part in parts}) != 1:
            raise ValueError(f"Parts must have one number of draws; got {[part.num_draws for part in parts]}.")
        values = [torch.cat([getattr(one, name) for one in moments]) for name in ("mean", "aleatoric", "epistemic")]
        return cls(kind.concatenate([part.held for part in parts]), Moments(moments[0].num_draws, *values))


def at_all_points(parts: Sequence[RealPredictive]) -> RealPredictive:
    """The predictive at the points of all parts, in order, of which some may hold fewer of their draws than others.

    Raises:
        ValueError: Parts of other numbers of draws or columns.
    """
    if any(isinstance(part, ThinnedPredictive) for part in parts):
        fewest = min(part.num_samples for part in parts)
        parts = [ThinnedPredictive.of(part, fewest) for part in parts]
    return parts[0] if len(parts) == 1 else type(parts[0]).concatenate(parts)


def held_of(predictive: RealPredictive) -> RealPredictive:
    """The mixture of the components that are held: itself, where that is all."""
    return predictive.held if isinstance(predictive, ThinnedPredictive) else predictive


def num_draws_of(predictive: RealPredictive) -> int:
    """S, of which the moments are, whether all are held or not."""
    return predictive.num_draws if isinstance(predictive, ThinnedPredictive) else predictive.num_samples
