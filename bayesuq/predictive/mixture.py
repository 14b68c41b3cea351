"""The predictive of targets that are neither labels nor normal: the equal mixture of S laws of one family.

A likelihood that is not Categorical, Bernoulli or normal gives one of these, over its torch distribution: Student's t
for real targets with outliers, Poisson for counts, and any other family of torch or Pyro for single numbers. Where the
family's distribution function has no closed form, the mixture's is that of draws, and where it has no moments theirs
are taken; a report says so.

Letters: S draws, N points, D target columns.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from inspect import getattr_static
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import AffineTransform, Distribution, TransformedDistribution, constraints

from bayesuq.arrays import ArrayLike, check_count, check_finite, check_fraction
from bayesuq.predictive import families
from bayesuq.predictive.base import over_columns
from bayesuq.predictive.components import DRAWS, ComponentsPredictive
from bayesuq.predictive.laws import take_apart, unwrapped
from bayesuq.predictive.quantiles import bracket, continuous_quantile, count_quantile
from bayesuq.randomness import isolated, resolve_seed

OUTER = 3  # dimensions: draws, points, columns
LOCATION_SCALE = ("Normal", "StudentT", "Laplace", "Cauchy", "Gumbel", "Logistic", "SoftLaplace", "AsymmetricLaplace")


@dataclass(frozen=True, eq=False, init=False, repr=False)
class MixturePredictive(ComponentsPredictive):
    """The equal mixture of S laws of one family, one a draw, independent over target columns given the draw.

    Its variance is split by the law of total variance. A law without variance (Student's t with at most two degrees of
    freedom) makes the aleatoric and total variance infinite, and one without mean makes them and the mean NaN; the
    density, the cdf, the quantiles and the draws are as good as ever. Angles (von Mises) are numbers in [-pi, pi).

    Attributes:
        components: The draws' laws, a torch distribution of batch shape (S, N, D), float64.

    Example:
        >>> rates = torch.tensor([[[1.0]], [[3.0]]])
        >>> predictive = MixturePredictive(torch.distributions.Poisson(rates))
        >>> predictive.mean, predictive.aleatoric, predictive.epistemic  # mean rate, and variance of the rates
        (tensor([[2.]], dtype=torch.float64), tensor([[2.]], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))
    """

    components: Any

    def __init__(self, components: Distribution) -> None:
        """Check the components and take them in float64.

        Args:
            components: A torch distribution of single numbers whose batch and event shape together are (S, N, D).

        Raises:
            TypeError: Not a distribution, or none with parameters and a density of its own; one of labels.
            ValueError: Another shape, an empty dimension, or parameters that are not finite.
        """
        if not isinstance(components, Distribution):
            raise TypeError(
                "`components` must be a torch distribution with parameters of its own, such as StudentT; got "
                f"{type(components).__name__}."
            )
        components = unwrapped(components)
        shape = components.batch_shape
        if len(shape) != OUTER or components.event_shape or 0 in shape:
            raise ValueError(
                f"`components` must have batch shape (S, N, D) with no empty dimension, and no event shape; got "
                f"{tuple(shape)} and {tuple(components.event_shape)} of {type(components).__name__}. Give one draw a "
                "leading dimension of 1; laws of vectors have no quantiles."
            )
        law = take_apart(components)
        for name, value in law.named_tensors().items():
            check_finite(value, name)
        self._hold(law)

    @property
    def without_density(self) -> str:
        """Why there is no log score: a few families can be drawn from, and no more."""
        return "" if self._has_density else f"{self._law.family} has no density that is known, so no log score"

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density or log probability of the mixture, jointly over columns, (N,), in nats.

        Args:
            y: Targets, (N, D), or (N,) for D = 1.
            observed: Which of them are known, boolean, (N, D); see `GaussianPredictive.log_prob`. What stands in place
                of the others must lie in the support too.

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Another shape than (N, D), or (N,) for D = 1; NaN; a value outside the family's support.
            NotImplementedError: A family that can be drawn from alone.
        """
        # Columns first: they share the draw, so they are independent only within a component.
        return self.component_log_prob(y, observed=observed).logsumexp(dim=0) - math.log(self.num_samples)

    def component_log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density of each component, jointly over columns, (S, N), in nats; see `log_prob` for the rest."""
        target = self.targets(y)
        self._check_support(target)
        if self.without_density:
            raise NotImplementedError(f"{self.without_density}.")
        return over_columns(families.log_prob(self.components, target), observed)

    def _check_support(self, target: Tensor) -> None:
        """Refuse what no law of the family can give; where parameters decide on the support it has probability 0."""
        support = self.components.support
        if not _has_support_of_its_own(self.components) and not support.check(target).all():
            raise ValueError(
                f"`y` must lie in the support of {self._law.family}, {support}; got "
                f"values from {float(target.min()):g} to {float(target.max()):g}."
            )

    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y) column by column, (N, D): of 4,000 draws of y where the family's is not known."""
        target = self.targets(y)
        each = families.cdf(self.components, target)
        return self._drawn.cdf(target) if each is None else each.mean(dim=0)

    def transform_ends(self, y: ArrayLike) -> tuple[Tensor, Tensor]:
        """See `RealPredictive.transform_ends`."""
        return super().transform_ends(y) if self._has_cdf else self._drawn.transform_ends(y)

    @property
    def has_steps(self) -> bool:
        """Whether the cdf jumps: of counts, and of draws."""
        return self.is_discrete or not self._has_cdf

    def interval_remark(self, level: float) -> str:  # noqa: ARG002 - of any level
        """Where the quantiles are from."""
        return "" if self._has_cdf else f"by {DRAWS} draws of y"

    def quantile(self, level: float) -> Tensor:
        """The smallest value that y* does not exceed with probability at least `level`, column by column, (N, D).

        By bisection and Newton's steps on the mixture's cdf; of 4,000 draws of y where that is not known.

        Raises:
            ValueError: `level` outside (0, 1).
        """
        level = check_fraction(level, "level")
        if not self._has_cdf:
            return self._drawn.quantile(level)
        if self.is_discrete:
            return count_quantile(self.mean, self.cdf, level)

        def cdf_and_density(point: Tensor) -> tuple[Tensor, Tensor]:
            return self.cdf(point), torch.nan_to_num(families.log_prob(self.components, point).exp()).mean(dim=0)

        lower, upper = self._bracket(level)
        return continuous_quantile(lower, upper, cdf_and_density, level)

    def _bracket(self, level: float) -> tuple[Tensor, Tensor]:
        """Between which the mixture's quantile lies: those of its components, or found by doubling."""
        each = families.quantile(self.components, level, self.device)
        if each is not None and bool(each.isfinite().all()):
            return each.amin(dim=0), each.amax(dim=0)
        lower, upper = (
            None if end is None else torch.as_tensor(end, dtype=torch.float64, device=self.device).expand(self.shape)
            for end in families.bounds(self.components)
        )
        start = self.component_sample(seed=0)
        return bracket(
            start.amin(dim=0) if lower is None else lower.amin(dim=0),
            start.amax(dim=0) if upper is None else upper.amax(dim=0),
            self.cdf,
            level,
        )

    def marginal_sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Targets, (num_samples, N, D), float64, of which each takes a component of its own: points are independent."""
        check_count(num_samples, "num_samples")
        with isolated(resolve_seed(seed)):
            chosen = torch.randint(self.num_samples, (num_samples, self.shape[1], 1), device=self.device)
            rows, columns = (torch.arange(size, device=self.device) for size in self.shape[1:])

            def pick(_: str, value: Tensor) -> Tensor:
                if len(value) == 1:
                    return value
                place = rows.unsqueeze(-1) if value.shape[1] > 1 else rows[:1].unsqueeze(-1)
                return value[chosen, place, columns if value.shape[2] > 1 else columns[:1]]

            return self._changed(pick, (num_samples, *self.shape[1:]))._sampled()

    def _sampled(self) -> Tensor:
        try:
            return families.sample(self.components)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{self._law.family} cannot be drawn from, so it has neither draws nor a CRPS."
            ) from error

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*; `loc` and `scale` are () or (D,), in the new unit.

        Raises:
            ValueError: Counts, which have no unit; another number of columns.
        """
        if self.is_discrete:
            raise ValueError(
                f"Targets of {self._law.family} cannot be rescaled: counts have no unit. Fit them as "
                "they are, and standardise the inputs alone."
            )
        self.check_columns(loc, scale)
        loc, scale = (each.to(self.device, torch.float64) for each in (loc, scale))
        if self._law.kind.__name__ in LOCATION_SCALE:
            held = self._law.tensors
            moved = {"loc": loc + scale * held["loc"], "scale": scale * held["scale"]}
            return self._changed(lambda name, value: moved.get(name, value), self.shape)
        columns: Any = [each.expand(self.shape[2:]) for each in (loc, scale)]
        return type(self)(TransformedDistribution(self.components, [AffineTransform(*columns)], validate_args=False))

    @cached_property
    def _has_density(self) -> bool:
        try:
            families.log_prob(self._first, torch.zeros((), dtype=torch.float64, device=self.device))
        except NotImplementedError:
            return False
        return True

    @cached_property
    def _has_cdf(self) -> bool:
        """Whether the family's distribution function is known."""
        return families.cdf(self._first, torch.zeros((), dtype=torch.float64, device=self.device)) is not None

    @property
    def _first(self) -> Any:
        """One law of one point."""
        return self.at(slice(0, 1)).components_at(torch.zeros(1, dtype=torch.int64, device=self.device)).components

    @cached_property
    def _closed_moments(self) -> tuple[Tensor, Tensor] | None:
        return families.moments(self.components)


def _has_support_of_its_own(law: Any) -> bool:
    """Whether a law's parameters decide on its support, so that a value may lie outside for some draws."""
    return isinstance(getattr_static(type(law), "support"), constraints.dependent_property)
