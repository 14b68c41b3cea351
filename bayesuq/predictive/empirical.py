"""Predictives that another library made, known by draws of y* or by quantiles: everything here measures them too.

    EmpiricalPredictive.from_draws(draws)                # (S, N) or (S, N, D): a diffusion model, a simulator, MCMC
    EmpiricalPredictive.from_quantiles(levels, values)   # (K, N) or (K, N, D): quantile regression, boosting

Draws of y* hold the noise and the model's doubt in one, and so do quantiles: their spread is not split. Draws have no
density, hence no log score; of quantiles it is that of a law interpolated between them. CRPS, pinball loss, intervals,
coverage and the probability integral transform need neither.

Letters: S draws, M forecasts, K levels, N points, D target columns.

References:
    Ferro 2014, Fair scores for ensemble forecasts. Czado, Gneiting and Held 2009, for transforms of steps.
    Chernozhukov, Fernandez-Val and Galichon 2010, Quantile and Probability Curves Without Crossing.
"""

import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, check_finite, check_fraction, to_floating, to_tensor
from bayesuq.predictive.base import RealPredictive, chosen_points
from bayesuq.predictive.interpolated import Interpolated
from bayesuq.predictive.quantiles import continuous_quantile
from bayesuq.randomness import generator, resolve_seed

NO_DENSITY_OF_DRAWS = "draws of y* have no density, so no log score: take the CRPS"
SAME_LEVEL = 1e-7  # by which levels that came in float32 are off
NODES = 512  # of an integral over y
NO_SPLIT = "not split: what is known of y* does not tell noise from the model's doubt"


class EmpiricalPredictive(RealPredictive):
    """A predictive that is known by draws of y*, or by some of its quantiles.

    Example:
        >>> drawn = EmpiricalPredictive.from_draws([[0.0, 5.0], [1.0, 5.0], [2.0, 8.0]])  # three draws at two points
        >>> drawn.mean.flatten()
        tensor([1., 6.], dtype=torch.float64)
        >>> known = EmpiricalPredictive.from_quantiles([0.1, 0.5, 0.9], [[-1.0], [0.0], [3.0]])
        >>> known.quantile(0.9)
        tensor([[3.]], dtype=torch.float64)
    """

    @classmethod
    def from_draws(cls, draws: ArrayLike, *, is_discrete: bool | None = None) -> "DrawnPredictive":
        """The predictive of which these are equally likely draws of y*, noise included.

        Draws of a mean are none of y*: those have a likelihood of their own, `likelihood.predictive(f)`.

        Args:
            draws: (S, N, D), or (S, N) for D = 1; each draw is joint over points and columns.
            is_discrete: Whether targets are counts, whose quantiles are counts. None takes whole-number dtypes so.

        Raises:
            TypeError: Not numbers.
            ValueError: Another shape, fewer than two draws, values that are not finite, or counts that are not whole.
        """
        whole = to_tensor(draws, "draws")
        counts = not whole.is_floating_point() if is_discrete is None else bool(is_discrete)
        values = to_floating(draws, "draws").detach()
        values = values.unsqueeze(-1) if values.ndim == 2 else values
        if values.ndim != 3 or values.numel() == 0 or len(values) < 2:
            raise ValueError(
                "`draws` must have shape (S, N, D), or (S, N) for one target column, with at least two draws of y*; "
                f"got {tuple(whole.shape)}."
            )
        check_finite(values, "draws")
        if counts and bool((values != values.round()).any()):
            raise ValueError("`draws` must be whole numbers where `is_discrete` is true.")
        return DrawnPredictive(values, counts)

    @classmethod
    def from_quantiles(cls, levels: ArrayLike, values: ArrayLike) -> "QuantilePredictive":
        """The predictive that has these quantiles, column by column.

        Between two levels and beyond the outermost ones y* is taken as linear in a standard normal variable, so that
        quantiles of a normal law give that law. Pinball losses and intervals at the given levels need no such rule;
        mean, variance, CRPS, log score and whatever lies beyond the outermost levels do.

        Args:
            levels: K of them, rising, in (0, 1), (K,).
            values: The quantiles, (K, N, D), or (K, N) for D = 1.

        Raises:
            TypeError: Not numbers.
            ValueError: Other shapes, fewer than two levels, levels that do not rise from above 0 to below 1, values
                that are not finite.

        Warns:
            UserWarning: Quantiles cross at some points; they are put in order, which never costs pinball loss.
        """
        steps, given = to_floating(levels, "levels").double().detach(), to_floating(values, "values").detach()
        if (
            steps.ndim != 1
            or len(steps) < 2
            or not bool((steps.diff() > 0).all() & (steps > 0).all() & (steps < 1).all())
        ):
            raise ValueError(f"`levels` must be at least two, rising, above 0 and below 1; got {steps.tolist()}.")
        columns = given.unsqueeze(-1) if given.ndim == 2 else given
        if columns.ndim != 3 or columns.numel() == 0 or len(columns) != len(steps):
            raise ValueError(
                f"`values` must have shape (K, N, D), or (K, N) for one target column, with K = {len(steps)} as "
                f"`levels` has; got {tuple(given.shape)}."
            )
        check_finite(columns, "values")
        quantiles = columns.double().movedim(0, -1)
        crossed = (quantiles.diff(dim=-1) < 0).any(dim=-1)
        if crossed.any():
            warnings.warn(
                f"Quantiles cross at {int(crossed.sum())} of {crossed.numel()} targets; they are put in order there.",
                stacklevel=2,
            )
            quantiles = quantiles.sort(dim=-1).values
        return QuantilePredictive(steps.to(columns.device), quantiles.unsqueeze(0))

    @property
    @abstractmethod
    def crps_basis(self) -> str:
        """How `pointwise_crps` comes about, in words."""

    @abstractmethod
    def pointwise_crps(self, y: ArrayLike) -> Tensor:
        """CRPS of each point and column, (N, D), in units of y."""


@dataclass(frozen=True, eq=False, repr=False)
class DrawnPredictive(EmpiricalPredictive):
    """A predictive that is known by draws of y*; from `EmpiricalPredictive.from_draws`.

    Attributes:
        draws: (S, N, D), as they came.
        counts: Whether targets are counts.
    """

    draws: Tensor
    counts: bool = False

    @property
    def shape(self) -> torch.Size:
        """(S, N, D): draws, points and target columns."""
        return self.draws.shape

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.draws.device

    @property
    def is_discrete(self) -> bool:
        """Whether targets are counts."""
        return self.counts

    @property
    def has_steps(self) -> bool:
        """True: a draw is a step of the cdf."""
        return True

    @property
    def without_density(self) -> str:
        """Why there is no log score."""
        return NO_DENSITY_OF_DRAWS

    @property
    def without_split(self) -> str:
        """Why the variance is told as a whole."""
        return NO_SPLIT

    @property
    def component_means(self) -> Tensor:
        """The draws, (S, N, D), in units of y."""
        return self.draws.double()

    @property
    def component_variances(self) -> Tensor:
        """0, a draw being a number, (S, N, D)."""
        return torch.zeros_like(self.draws, dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """Mean of the draws, (N, D), in units of y."""
        return self.draws.mean(dim=0, dtype=torch.float64)

    @property
    def total(self) -> Tensor:
        """Variance that the draws estimate without bias (ddof 1), (N, D), in units of y squared."""
        return self.draws.double().var(dim=0, correction=1)

    @property
    def aleatoric(self) -> Tensor:
        """Not known.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(_sentence(NO_SPLIT))

    @property
    def epistemic(self) -> Tensor:
        """Not known.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(_sentence(NO_SPLIT))

    @property
    def crps_basis(self) -> str:
        """The fair score of the draws."""
        return f"fair, from {len(self.draws)} draws of y"

    def pointwise_crps(self, y: ArrayLike) -> Tensor:
        """mean_s |x_s - y| - sum_st |x_s - x_t| / (2 S (S - 1)), (N, D): unbiased for the law that the draws are from.

        Reference:
            Ferro 2014, eq. (6).
        """
        return crps_of_draws(self._sorted, self.targets(y))

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """None.

        Raises:
            NotImplementedError: Always; the message says what to take.
        """
        raise NotImplementedError(_sentence(NO_DENSITY_OF_DRAWS))

    def component_log_prob(self, y: ArrayLike) -> Tensor:
        """None.

        Raises:
            NotImplementedError: Always; the message says what to take.
        """
        raise NotImplementedError(_sentence(NO_DENSITY_OF_DRAWS))

    def cdf(self, y: ArrayLike) -> Tensor:
        """Share of the draws that are at most y, column by column, (N, D)."""
        return self._share_up_to(self.targets(y), right=True)

    def transform_ends(self, y: ArrayLike) -> tuple[Tensor, Tensor]:
        """(draws below y) / (S + 1), and (draws up to y, and one) / (S + 1), (N, D) each.

        Drawn evenly between them the transform is uniform wherever y and the draws are exchangeable, however few.
        """
        target, number = self.targets(y), len(self.draws)
        below, upto = (self._share_up_to(target, right=right) * number for right in (False, True))
        return below / (number + 1), (upto + 1) / (number + 1)

    def quantile(self, level: float) -> Tensor:
        """The quantile that the draws estimate, column by column, (N, D).

        Of real targets the order statistic at level (S + 1), interpolated: a further draw falls below it with
        probability `level`, as long as that is from 1 / (S + 1) to S / (S + 1); beyond it is the outermost draw. Of
        counts it is the smallest that the share `level` of the draws does not exceed.

        Raises:
            ValueError: `level` outside (0, 1).
        """
        level = check_fraction(level, "level")
        number = len(self.draws)
        if self.counts:
            return self._sorted[min(math.ceil(level * number - 1e-9), number) - 1]
        place = min(max(level * (number + 1) - 1, 0.0), number - 1.0)
        lower = min(math.floor(place + 1e-9), number - 2)
        return torch.lerp(self._sorted[lower], self._sorted[lower + 1], max(place - lower, 0.0))

    def interval_remark(self, level: float) -> str:
        """What so few draws cannot cover."""
        most = (len(self.draws) - 1) / (len(self.draws) + 1)
        return f"{len(self.draws)} draws cover {most:.2g} at most" if most < level else ""

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Draws chosen at random, with replacement, (num_samples, N, D), float64, each for all points."""
        check_count(num_samples, "num_samples")
        noise = generator(resolve_seed(seed), device=self.device)
        chosen = torch.randint(len(self.draws), (num_samples,), generator=noise, device=self.device)
        return self.draws[chosen].double()

    def component_sample(self, *, seed: int | None = None) -> Tensor:  # noqa: ARG002 - the interface's
        """The draws, (S, N, D), float64."""
        return self.draws.double()

    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive at some of its points."""
        return type(self)(self.draws[:, chosen_points(points, self.shape[1], self.device)], self.counts)

    def components_at(self, chosen: Tensor) -> Self:
        """Some of the draws."""
        return type(self)(self.draws[chosen], self.counts)

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        return type(self)(self.draws.to(device), self.counts)

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*; `loc` and `scale` are () or (D,), in the new unit.

        Raises:
            ValueError: Another number of columns; counts, which have no unit.
        """
        if self.counts:
            raise ValueError("Counts have no unit, and cannot be rescaled.")
        self.check_columns(loc, scale)
        return type(self)(loc.to(self.device, torch.float64) + scale.to(self.device, torch.float64) * self.draws)

    @classmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        """See `RealPredictive.joined`."""
        if len({part.counts for part in parts}) != 1:
            raise ValueError("Counts and real targets do not join.")
        return cls(torch.cat([part.draws for part in parts], dim), parts[0].counts)

    @cached_property
    def _sorted(self) -> Tensor:
        """The draws of each target in rising order, (S, N, D), float64."""
        return self.draws.sort(dim=0).values.double()

    def _share_up_to(self, target: Tensor, *, right: bool) -> Tensor:
        ranked, wanted = self._sorted.movedim(0, -1).contiguous(), target.unsqueeze(-1).contiguous()
        return torch.searchsorted(ranked, wanted, right=right).squeeze(-1).double() / len(self.draws)


@dataclass(frozen=True, eq=False, repr=False)
class QuantilePredictive(EmpiricalPredictive):
    """A predictive that is known by quantiles, or the equal mixture of several; `EmpiricalPredictive.from_quantiles`.

    The quantiles of one column say nothing of how points and columns go together: `sample` draws them independently
    within a forecast, and a log score is there for one column only.

    Attributes:
        levels: Of the given quantiles, rising, (K,), float64.
        quantiles: Of each forecast, (M, N, D, K), float64, in order.
    """

    levels: Tensor
    quantiles: Tensor

    @property
    def shape(self) -> torch.Size:
        """(M, N, D): forecasts, points and target columns."""
        return self.quantiles.shape[:-1]

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self.quantiles.device

    @property
    def is_discrete(self) -> bool:
        """False."""
        return False

    @property
    def without_density(self) -> str:
        """Why there is no log score, where there is none."""
        if self.shape[2] > 1:
            return "quantiles of single columns have no joint density: take the CRPS, or each column"
        if self._laws.has_atoms:
            return "equal quantiles are a point without density: take the CRPS"
        return ""

    @property
    def density_basis(self) -> str:
        """How the density comes about."""
        return f"interpolated between {len(self.levels)} quantiles"

    @property
    def without_split(self) -> str:
        """Why one forecast's variance is told as a whole; several disagree, which is epistemic."""
        return NO_SPLIT if self.num_samples == 1 else ""

    @property
    def component_means(self) -> Tensor:
        """Mean of each forecast, (M, N, D), in units of y."""
        return self._laws.mean

    @property
    def component_variances(self) -> Tensor:
        """Variance of each forecast, (M, N, D), in units of y squared."""
        return self._laws.variance

    @property
    def mean(self) -> Tensor:
        """E[y*], (N, D), in units of y."""
        return self.component_means.mean(dim=0)

    @property
    def total(self) -> Tensor:
        """Var[y*] by the law of total variance, (N, D), in units of y squared."""
        return self.component_variances.mean(dim=0) + self.component_means.var(dim=0, correction=0)

    @property
    def aleatoric(self) -> Tensor:
        """Mean variance of several forecasts, (N, D), in units of y squared.

        Raises:
            NotImplementedError: One forecast alone, which does not tell.
        """
        return self._split(self.component_variances.mean(dim=0))

    @property
    def epistemic(self) -> Tensor:
        """Variance of several forecasts' means (ddof 0), (N, D), in units of y squared.

        Raises:
            NotImplementedError: One forecast alone, which does not tell.
        """
        return self._split(self.component_means.var(dim=0, correction=0))

    @property
    def crps_basis(self) -> str:
        """Exact for the interpolated law of one forecast."""
        return self.density_basis

    def pointwise_crps(self, y: ArrayLike) -> Tensor:
        """CRPS of the interpolated law, (N, D): in closed form for each forecast, less half their mean distance.

        Of M forecasts it is mean_m CRPS(F_m, y) - sum_ml integral (F_m - F_l)^2 / (2 M^2), the integral by 512 nodes.
        """
        each = self._laws.crps(self.targets(y)).mean(dim=0)
        return each if self.num_samples == 1 else each - self._disagreement

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density of the interpolated law, (N,), in nats.

        Raises:
            NotImplementedError: Several columns, or quantiles that are equal.
        """
        return self.component_log_prob(y, observed=observed).logsumexp(dim=0) - math.log(self.num_samples)

    def component_log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density of each forecast, (M, N), in nats; see `log_prob`."""
        if self.without_density:
            raise NotImplementedError(_sentence(self.without_density))
        each = self._laws.log_density(self.targets(y)).squeeze(-1)
        return each if observed is None else torch.where(observed.squeeze(-1), each, 0.0)

    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y) column by column, (N, D)."""
        return self._laws.cdf(self.targets(y)).mean(dim=0)

    def quantile(self, level: float) -> Tensor:
        """The value that y* does not exceed with probability `level`, column by column, (N, D).

        Raises:
            ValueError: `level` outside (0, 1).
        """
        wanted = self.levels.new_tensor(check_fraction(level, "level"))
        near = (self.levels - wanted).abs()
        if self.num_samples == 1 and bool(near.min() < SAME_LEVEL):
            return self.quantiles[0, ..., int(near.argmin())]  # as given, to the last bit
        components = self._laws.quantile(wanted)

        def cdf_and_density(point: Tensor) -> tuple[Tensor, Tensor]:
            density = torch.nan_to_num(self._laws.log_density(point).exp(), nan=0.0, posinf=0.0)
            return self._laws.cdf(point).mean(dim=0), density.mean(dim=0)

        # A mixture's quantile lies among its components'.
        return continuous_quantile(components.amin(dim=0), components.amax(dim=0), cdf_and_density, level)

    def interval_remark(self, level: float) -> str:
        """Whether the ends lie beyond the given levels."""
        lower, upper = float(self.levels[0]), float(self.levels[-1])
        outside = (1 - level) / 2 < lower - SAME_LEVEL or (1 + level) / 2 > upper + SAME_LEVEL
        return f"ends extrapolated beyond the levels {lower:g} to {upper:g}" if outside else ""

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Targets, (num_samples, N, D), float64; each sample takes one forecast for all points."""
        check_count(num_samples, "num_samples")
        noise = generator(resolve_seed(seed), device=self.device)
        chosen = torch.randint(self.num_samples, (num_samples,), generator=noise, device=self.device)
        return self.components_at(chosen)._drawn(noise)

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """Targets, one from each forecast, (M, N, D), float64."""
        return self._drawn(generator(resolve_seed(seed), device=self.device))

    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive at some of its points."""
        return type(self)(self.levels, self.quantiles[:, chosen_points(points, self.shape[1], self.device)])

    def components_at(self, chosen: Tensor) -> Self:
        """The mixture of some of the forecasts."""
        return type(self)(self.levels, self.quantiles[chosen])

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        return type(self)(self.levels.to(device), self.quantiles.to(device))

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*, scale above 0; `loc` and `scale` are () or (D,), in the new unit.

        Raises:
            ValueError: Another number of columns; a scale of 0 or below, which turns levels round.
        """
        self.check_columns(loc, scale)
        shift, factor = (each.to(self.device, torch.float64).unsqueeze(-1) for each in (loc, scale))
        return type(self)(self.levels, shift + factor * self.quantiles)

    @classmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        """See `RealPredictive.joined`; the parts must have the same levels."""
        if any(not torch.equal(part.levels, parts[0].levels) for part in parts):
            raise ValueError("Parts must have the same levels of quantiles.")
        return cls(parts[0].levels, torch.cat([part.quantiles for part in parts], dim))

    @cached_property
    def _laws(self) -> Interpolated:
        return Interpolated(self.levels, self.quantiles)

    @property
    def _disagreement(self) -> Tensor:
        """sum_ml integral (F_m - F_l)^2 / (2 M^2) = integral of the variance of F over the forecasts, (N, D)."""
        ends = [self._laws.quantile(self.levels.new_tensor(level)) for level in (1e-6, 1 - 1e-6)]
        lower, width = ends[0].amin(dim=0), ends[1].amax(dim=0) - ends[0].amin(dim=0)
        shares = torch.arange(1, NODES, device=self.device) / NODES
        return (
            sum((self._laws.cdf(lower + s * width).var(dim=0, correction=0) for s in shares), 0 * width) * width / NODES
        )

    def _drawn(self, noise: torch.Generator) -> Tensor:
        uniform = torch.rand(self.shape, generator=noise, dtype=torch.float64, device=self.device)
        return self._laws.quantile(uniform.clamp(1e-16, 1 - 1e-16))

    def _split(self, part: Tensor) -> Tensor:
        if self.without_split:
            raise NotImplementedError(_sentence(self.without_split))
        return part


def crps_of_draws(ranked: Tensor, y: Tensor, *, fair: bool = True) -> Tensor:
    """mean_s |x_s - y| - sum_st |x_s - x_t| / (2 S (S - 1)) of each target, (N, D), or with S^2 where it is not fair.

    Args:
        ranked: The draws x of each target in rising order, (S, N, D), float64; at least two of a fair score.
        y: Targets, (N, D).
        fair: Whether to correct for the number of draws.
    """
    number = len(ranked)
    # sum_(s < t) |x_s - x_t| = sum_i (2 i - S - 1) x_(i)
    factors = torch.arange(1 - number, number, 2, dtype=torch.float64, device=ranked.device)
    spread = torch.tensordot(factors, ranked, dims=1)
    return (ranked - y).abs().mean(dim=0) - spread / (number * (number - 1) if fair else number**2)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."
