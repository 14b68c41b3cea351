"""The predictive of real targets: the equal mixture of S Gaussians, never summarised as one.

Letters: S draws, N points, D target columns.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, check_finite, check_fraction, to_floating
from bayesuq.predictive import broadcasts
from bayesuq.predictive.base import (
    BLOCK_NUMBERS,
    RealPredictive,
    block_size,
    check_draws,
    chosen_points,
    over_columns,
)
from bayesuq.predictive.covariances import check_covariance, correlated, normal_log_prob
from bayesuq.predictive.quantiles import continuous_quantile, moving_root, normal_mixture_quantiles
from bayesuq.randomness import generator, resolve_seed
from bayesuq.waiting import check

WITHOUT_DENSITY = "A component has zero variance, and so no density. Give the likelihood a noise scale above 0."


@dataclass(frozen=True, eq=False, init=False, repr=False)
class GaussianPredictive(RealPredictive):
    """The equal mixture of S Gaussians, one a draw.

    Never summarised as one moment-matched Gaussian: `log_prob`, `cdf` and `quantile` are the mixture's. Given the draw,
    target columns are independent, or have the covariance that a closed form gives them.

    It holds what it was given: means of a float32 network take 4 bytes a draw, point and column, and a variance that is
    one number for all points takes one number. A Gaussian that several draws have may stand once, with their number:
    see `repeated`. Everything is computed in float64, some points at a time.

    Example:
        >>> predictive = GaussianPredictive(mean=torch.tensor([[[-1.0]], [[1.0]]]), noise_variance=0.01)
        >>> predictive.total.sqrt(), predictive.log_prob([1.0])  # never the averaged 0.1
        (tensor([[1.0050]], dtype=torch.float64), tensor([0.6905], dtype=torch.float64))
    """

    _means: Tensor  # float32 or float64
    _noise: Tensor  # the cores of what broadcasts to the means
    _function: Tensor
    _function_covariances: Tensor | None
    _counts: Tensor | None  # (K,), int64, on the host: draws of each of K Gaussians; None is one

    def __init__(
        self,
        *,
        mean: ArrayLike,
        noise_variance: ArrayLike | float,
        function_variance: ArrayLike | float | None = None,
        function_covariance: ArrayLike | None = None,
    ) -> None:
        """Check the components.

        Args:
            mean: Component means, (S, N, D).
            noise_variance: Of the observation noise, independent between columns, broadcastable to (S, N, D).
            function_variance: Of the function within a component, broadcastable to (S, N, D); None is zero.
            function_covariance: In its place, of the function's columns at a point, broadcastable to (S, N, D, D).

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Wrong shapes, values that are not finite, negative variances, a matrix that is no covariance;
                both a variance and a covariance of the function.
        """
        means = to_floating(mean, "mean")
        check_draws(means, "mean", "(S, N, D)", "mean[None]")
        if means.ndim != 3:
            raise ValueError(f"`mean` must have shape (S, N, D); got {tuple(means.shape)}.")
        check_finite(means, "mean")
        noise = _variance_like(means, noise_variance, "noise_variance")
        if function_covariance is None:
            given = 0.0 if function_variance is None else function_variance
            self._set(means, noise, _variance_like(means, given, "function_variance"), None)
            return
        if function_variance is not None:
            raise ValueError("Give `function_variance` or `function_covariance`, whose diagonal it is; got both.")
        given = to_floating(function_covariance, "function_covariance").to(means.device)
        covariance = check_covariance(given, means.shape, "function_covariance")
        self._set(means, noise, _diagonal(covariance), covariance if means.shape[2] > 1 else None)

    def _set(
        self,
        means: Tensor,
        noise: Tensor,
        function: Tensor,
        covariance: Tensor | None,
        counts: Tensor | None = None,
    ) -> Self:
        for name, value in (("_means", means), ("_noise", noise), ("_function", function)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_function_covariances", covariance)
        object.__setattr__(self, "_counts", None if counts is None or bool((counts == 1).all()) else counts)
        return self

    @classmethod
    def with_noise_covariance(cls, mean: ArrayLike, covariance: ArrayLike) -> Self:
        """The mixture of Gaussians whose columns have noise that is correlated.

        Args:
            mean: Component means, (S, N, D).
            covariance: Of the noise of a point's columns, broadcastable to (S, N, D, D).

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Wrong shapes, values that are not finite, a matrix that is no covariance.
        """
        means = to_floating(mean, "mean")
        full = check_covariance(to_floating(covariance, "covariance").to(means.device), means.shape, "covariance")
        noise = _diagonal(full)
        apart = full - torch.diag_embed(noise) if means.shape[2] > 1 else None
        plain = cls(mean=means, noise_variance=noise)
        return cls._of(plain._means, plain._noise, plain._function, apart)

    @classmethod
    def _of(
        cls,
        means: Tensor,
        noise: Tensor,
        function: Tensor,
        covariance: Tensor | None,
        counts: Tensor | None = None,
    ) -> Self:
        """From checked parts: variances as cores."""
        return cls.__new__(cls)._set(means, noise, function, covariance, counts)

    def repeated(self, counts: Sequence[int]) -> Self:
        """The equal mixture in which each of these Gaussians, in order, stands so many times, and is held once.

        Args:
            counts: Of each of the S, at least 1.

        Raises:
            TypeError: Counts that are not whole.
            ValueError: Another number of counts, or one below 1.

        Example:
            >>> two = GaussianPredictive(mean=torch.tensor([[[0.0]], [[4.0]]]), noise_variance=1.0)
            >>> two.repeated([3, 1]).mean, two.repeated([3, 1]).shape
            (tensor([[1.]], dtype=torch.float64), torch.Size([4, 1, 1]))
        """
        given = torch.tensor([check_count(count, "counts") for count in counts], dtype=torch.int64)
        if len(given) != self.num_samples:
            raise ValueError(f"`counts` must be {self.num_samples} numbers of at least 1; got {list(counts)}.")
        if self._counts is not None:
            laws = torch.arange(len(self._means)).repeat_interleave(self._counts)
            given = torch.zeros_like(self._counts).index_add(0, laws, given)
        return self._of(self._means, self._noise, self._function, self._function_covariances, given)

    @property
    def laws(self) -> Self:
        """The K Gaussians that are held, each once."""
        return self._of(self._means, self._noise, self._function, self._function_covariances)

    @property
    def weights(self) -> Tensor:
        """What share of the S draws each Gaussian that is held has, (K,), float64, summing to 1."""
        counts = torch.ones(len(self._means), dtype=torch.int64) if self._counts is None else self._counts
        return (counts.double() / self.num_samples).to(self.device)

    def by_draw(self, values: Tensor) -> Tensor:
        """Values of the Gaussians that are held, (K, ...), as those of the draws, (S, ...)."""
        return values if self._counts is None else values.repeat_interleave(self._counts.to(values.device), dim=0)

    def average(self, values: Tensor) -> Tensor:
        """The mean over draws, (...), of values of the Gaussians that are held, (K, ...), or of one for all."""
        if self._counts is None or len(values) == 1:
            return values.mean(dim=0)
        return torch.tensordot(self.weights, values, dims=1)

    @property
    def shape(self) -> torch.Size:
        """(S, N, D): Gaussians, points and target columns."""
        held = self._means.shape
        return held if self._counts is None else torch.Size((int(self._counts.sum()), *held[1:]))

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return self._means.device

    @property
    def is_discrete(self) -> bool:
        """False."""
        return False

    @property
    def component_means(self) -> Tensor:
        """The draws' function values, float64, (S, N, D)."""
        return self.by_draw(self._means.double())

    @property
    def function_covariance(self) -> Tensor | None:
        """Covariance of a point's columns within a draw beside independent noise, float64, (S, N, D, D).

        None where it was not given, or there is one column. Of correlated noise it is what lies off the diagonal.
        """
        covariance = self._function_covariances
        return None if covariance is None else self.by_draw(covariance)

    @property
    def noise_variance(self) -> Tensor:
        """The draws' noise variances, in units of y squared, float64, (S, N, D); broadcast where they are constant."""
        return self._broadcast(self._noise)

    @property
    def function_variance(self) -> Tensor:
        """Variance of f within a draw (a Gaussian process has one), float64, (S, N, D); see `noise_variance`."""
        return self._broadcast(self._function)

    @property
    def mean(self) -> Tensor:
        """E[y*], (N, D), in units of y."""
        return self._by_rows(lambda part: part.average(part._means.double()))

    @property
    def component_variances(self) -> Tensor:
        """Variance of each component, noise and function together, (S, N, D); see `noise_variance`."""
        return self._broadcast(self._noise + self._function)

    @property
    def aleatoric(self) -> Tensor:
        """Mean noise variance, (N, D), in units of y squared."""
        return self.average(self._noise).expand(self._means.shape[1:]).clone()

    @property
    def epistemic(self) -> Tensor:
        """Mean function variance plus variance of the means (ddof 0, as the mixture's identity needs), (N, D)."""
        return self.average(self._function) + self._by_rows(lambda part: part._variance_of_means())

    def _variance_of_means(self) -> Tensor:
        means = self._means.double()
        if self._counts is None:
            return means.var(dim=0, correction=0)
        return self.average((means - self.average(means)).square())

    def _broadcast(self, core: Tensor) -> Tensor:
        """A core at all draws, points and columns, (S, N, D)."""
        return (core if len(core) == 1 else self.by_draw(core)).expand(self.shape)

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density of the mixture, jointly over columns, (N,), in nats (per unit of y).

        Args:
            y: Targets, (N, D), or (N,) for D = 1.
            observed: Which of them are known, boolean, (N, D): the density is that of these, the others integrated out
                whatever stands in `y`; log 1 in a row without any. None is all.

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Another shape than (N, D), or (N,) for D = 1; NaN; a component of zero variance.
        """
        target = self.targets(y)
        densities = (part._log_densities(target, observed, rows) for part, rows in self._parts())
        if self._counts is None:
            return torch.cat([each.logsumexp(dim=0) for each in densities]) - math.log(self.num_samples)
        weights = self.weights.log().unsqueeze(-1)
        return torch.cat([(weights + each).logsumexp(dim=0) for each in densities])

    def component_log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density of each component, jointly over columns, (S, N), in nats; see `log_prob` for the rest."""
        target = self.targets(y)
        parts = [part._log_densities(target, observed, rows) for part, rows in self._parts()]
        return self.by_draw(torch.cat(parts, dim=1))

    def _log_densities(self, target: Tensor, observed: Tensor | None, rows: slice) -> Tensor:
        """Of each Gaussian that is held at these rows of the targets, (K, N)."""
        residual, variances = target[rows] - self._means.double(), self._density_variances()
        known = None if observed is None else observed.to(target.device)[rows]
        if self._function_covariances is not None:
            return normal_log_prob(residual, self._covariances(), known)
        # Columns first: they share the draw, so they are independent only within a component.
        return over_columns(-0.5 * (residual**2 / variances + (2 * math.pi * variances).log()), known)

    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y) column by column, (N, D); the probability integral transform where y is the truth."""
        target = self.targets(y)
        return torch.cat([part._cdf_and_density(target[rows])[0] for part, rows in self._parts()])

    def quantile(self, level: float) -> Tensor:
        """The value below which y* falls with probability `level`, column by column, (N, D).

        To the resolution of the cdf in float64, by two or three evaluations of it: see
        `bayesuq.predictive.quantiles.normal_mixture_quantiles`.

        Raises:
            ValueError: `level` outside (0, 1), or a component of zero variance.
        """
        return self.quantiles_at((level,))[0]

    def quantiles_at(self, levels: Sequence[float]) -> Sequence[Tensor]:
        """See `RealPredictive.quantiles_at`; those of an accelerator are sought together, and it is waited for once."""
        checked = [check_fraction(level, "level") for level in levels]
        if not checked:
            return []
        of = type(self)._quantiles if self._means.device.type == "cpu" else type(self)._quantiles_together
        return torch.cat([of(part, checked) for part, _ in self._parts()], dim=1).unbind()

    def _quantiles(self, levels: Sequence[float]) -> Tensor:
        """At each level, (L, N, D)."""
        scales, shape = self._density_variances().sqrt(), self._means.shape
        if scales[0].numel() > 1:
            scales = scales.expand(len(scales), *shape[1:])
        laws = (self._means.detach().double().flatten(1), scales.detach().flatten(1), self.weights)
        points = [point.view(shape[1:]) for point in normal_mixture_quantiles(*laws, levels)]
        if scales.requires_grad or (self._means.requires_grad and torch.is_grad_enabled()):
            pairs = zip(points, levels, strict=True)
            points = [moving_root(point, self._cdf_and_density, level) for point, level in pairs]
        return torch.stack(points)

    def _quantiles_together(self, levels: Sequence[float]) -> Tensor:
        """At each level, (L, N, D), without a look at which are done."""
        chosen = torch.tensor(levels, dtype=torch.float64)
        standard, chosen = (
            each.to(self._means.device)[:, None, None] for each in (torch.special.ndtri(chosen), chosen)
        )
        scales = self._density_variances().sqrt()
        # A mixture's quantile lies among its components'.
        ends = [(self._means.double() + scales * each).aminmax(dim=0) for each in standard]
        lower, upper = (torch.stack(each) for each in zip(*ends, strict=True))
        return continuous_quantile(lower, upper, self._of_each, chosen)

    def _of_each(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The cdf and the density at several points of each target, (L, N, D)."""
        cdfs, densities = zip(*map(self._cdf_and_density, points), strict=True)
        return torch.stack(cdfs), torch.stack(densities)

    def _cdf_and_density(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Of the mixture at (N, D), column by column."""
        scales = self._density_variances().sqrt()
        standardised = (point - self._means.double()) / scales
        density = self.average(torch.exp(-standardised.square() / 2) / scales) / math.sqrt(2 * math.pi)
        return self.average(_normal_cdf(standardised)), density

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Targets, (num_samples, N, D), float64; each sample takes one component for all points."""
        check_count(num_samples, "num_samples")
        device = self._means.device
        noise = generator(resolve_seed(seed), device=device)
        chosen = torch.randint(self.num_samples, (num_samples,), generator=noise, device=device)
        shape = (num_samples, *self._means.shape[1:])
        standard = torch.randn(shape, generator=noise, device=device, dtype=torch.float64)
        return self._taken(self._law_of(chosen))._moved(standard)

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """Targets, one from each component, (S, N, D), float64; a component's own f is independent between points."""
        device = self._means.device
        noise = generator(resolve_seed(seed), device=device)
        return self._moved(torch.randn(self.shape, generator=noise, device=device, dtype=torch.float64))

    def _moved(self, standard: Tensor) -> Tensor:
        """One target a component, from standard normal noise, (S, N, D)."""
        if self._function_covariances is None:
            return self.component_means + self.component_variances.sqrt() * standard
        return self.component_means + correlated(standard, self.by_draw(self._covariances()))

    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive at some of its points."""
        chosen = chosen_points(points, self.shape[1], self.device)
        covariance = self._function_covariances
        noise, function = (core[:, chosen] if core.shape[1] > 1 else core for core in (self._noise, self._function))
        some = None if covariance is None else covariance[:, chosen]
        return self._of(self._means[:, chosen], noise, function, some, self._counts)

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        covariance = self._function_covariances
        moved = None if covariance is None else covariance.to(device)
        return self._of(self._means.to(device), self._noise.to(device), self._function.to(device), moved, self._counts)

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*; `loc` and `scale` are () or (D,), in the new unit.

        Its means are float64.

        Raises:
            ValueError: Another number of columns.
        """
        self.check_columns(loc, scale)
        loc, scale = (each.to(self._means.device, torch.float64) for each in (loc, scale))
        covariance = self._function_covariances
        if covariance is not None:
            each = scale.expand(self.shape[2:])
            covariance = each.unsqueeze(-1) * each * covariance
        noise, function = scale**2 * self._noise, scale**2 * self._function
        return self._of(loc + scale * self._means.double(), noise, function, covariance, self._counts)

    def with_noise(self, variance: float) -> Self:
        """The predictive of y* and further independent noise of this variance, in units of y squared."""
        noise, covariance = self._noise + variance, self._function_covariances
        return self._of(self._means, noise, self._function, covariance, self._counts)

    @classmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        """See `RealPredictive.joined`; what is one number for all points stays one."""
        counts = _joined_counts([(len(part._means), part._counts) for part in parts]) if dim == 0 else parts[0]._counts
        if dim == 1 and not all(_are_same(part._counts, counts) for part in parts):
            parts, counts = [part._taken(part._law_of(torch.arange(part.num_samples))) for part in parts], None
        sizes = [part._means.shape[dim] for part in parts]
        correlated_columns = any(part._function_covariances is not None for part in parts)
        return cls._of(
            torch.cat([part._means for part in parts], dim),
            broadcasts.joined([part._noise for part in parts], sizes, dim),
            broadcasts.joined([part._function for part in parts], sizes, dim),
            torch.cat([part._function_covariance() for part in parts], dim) if correlated_columns else None,
            counts,
        )

    def components_at(self, chosen: Tensor) -> Self:
        """The mixture of the components of these numbers."""
        if self._counts is None:
            return self._taken(chosen)
        # Draws of one Gaussian that follow one another stay together, in their order.
        laws, counts = self._law_of(chosen).unique_consecutive(return_counts=True)
        return self._taken(laws, counts.cpu())

    def _law_of(self, draws: Tensor) -> Tensor:
        """Which of the Gaussians that are held these draws have."""
        if self._counts is None:
            return draws
        return torch.searchsorted(self._counts.cumsum(dim=0).to(draws.device), draws, right=True)

    def _taken(self, laws: Tensor, counts: Tensor | None = None) -> Self:
        """Some of the Gaussians that are held, by their numbers, each so often."""
        laws = laws.to(self.device)
        noise, function = (core[laws] if len(core) > 1 else core for core in (self._noise, self._function))
        covariance = self._function_covariances
        some = None if covariance is None else covariance[laws]
        return self._of(self._means[laws], noise, function, some, counts)

    def _parts(self) -> Iterator[tuple[Self, slice]]:
        """The predictive in blocks of rows whose float64 numbers stay in a processor's cache, and where each stands."""
        together = block_size(BLOCK_NUMBERS, self._means[:, :1])
        for start in range(0, self._means.shape[1], together):
            rows = slice(start, start + together)
            yield self.at(rows), rows

    def _by_rows(self, of: Callable[[Self], Tensor]) -> Tensor:
        """A quantity of each point, (N, ...), computed of some points at a time."""
        return torch.cat([of(part) for part, _ in self._parts()])

    def _function_covariance(self) -> Tensor:
        """Of a point's columns within each Gaussian, (K, N, D, D), also where they are independent."""
        covariance = self._function_covariances
        return torch.diag_embed(self._function.expand(self._means.shape)) if covariance is None else covariance

    def _covariances(self) -> Tensor:
        """Of a point's targets within each Gaussian, noise and function together, (K, N, D, D)."""
        return self._function_covariance() + torch.diag_embed(self._noise.expand(self._means.shape))

    @cached_property
    def _has_density(self) -> Tensor:
        """Whether no component has zero variance, 0-d; found once."""
        return (self._noise + self._function != 0).all()

    def _density_variances(self) -> Tensor:
        """The core of `component_variances`, none of them 0."""
        variances = self._noise + self._function
        check(self._has_density, lambda: ValueError(WITHOUT_DENSITY))
        return variances


def _joined_counts(held: Sequence[tuple[int, Tensor | None]]) -> Tensor | None:
    """Of the Gaussians of all parts, each with the number that it holds and their counts."""
    if all(counts is None for _, counts in held):
        return None
    return torch.cat([torch.ones(number, dtype=torch.int64) if counts is None else counts for number, counts in held])


def _are_same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _normal_cdf(standardised: Tensor) -> Tensor:
    # `torch.special.ndtr` is (1 + erf) / 2, which below -8 holds nothing but the rounding of 1.
    return torch.erfc(-math.sqrt(0.5) * standardised) / 2


def _variance_like(means: Tensor, variance: ArrayLike | float, name: str) -> Tensor:
    """The core of a variance that broadcasts to the means, float64."""
    if isinstance(variance, int | float):
        value = torch.tensor(variance, dtype=torch.float64)  # float32 would turn 1e-50 into 0
    else:
        value = to_floating(variance, name)
    try:
        value.expand(means.shape)
    except RuntimeError as error:
        raise ValueError(
            f"`{name}` must broadcast to `mean`, {tuple(means.shape)}; got {tuple(value.shape)}."
        ) from error
    value = broadcasts.core(value, means.ndim).to(torch.float64)
    check(
        (value.isfinite() & (value >= 0)).all(),  # where it is: a number of the host's is not waited for
        lambda: ValueError(f"`{name}` must be finite and at least 0; got a minimum of {float(value.min())}."),
    )
    return value.to(means.device)


def _diagonal(covariance: Tensor) -> Tensor:
    """Variances of covariances, which rounding may leave a little below 0."""
    return covariance.diagonal(dim1=-2, dim2=-1).clamp(min=0)
