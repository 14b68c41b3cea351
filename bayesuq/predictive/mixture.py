"""The predictive of targets that are neither labels nor normal: the equal mixture of S laws of one family.

A likelihood that is not Categorical, Bernoulli or normal gives one of these, over its torch distribution: Student's t
for real targets with outliers, Poisson for counts.

Letters: S draws, N points, D target columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import scipy.special
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Poisson, StudentT

from bayesuq.arrays import ArrayLike, check_count, check_finite, check_fraction
from bayesuq.predictive import broadcasts
from bayesuq.predictive.base import RealPredictive, over_columns
from bayesuq.predictive.quantiles import continuous_quantile, count_quantile
from bayesuq.randomness import isolated, resolve_seed


@dataclass(frozen=True, eq=False, init=False, repr=False)
class MixturePredictive(RealPredictive):
    """The equal mixture of S laws of one family, one a draw, independent over target columns given the draw.

    Its variance is split by the law of total variance. A law without variance (Student's t with at most two degrees of
    freedom) makes the aleatoric and total variance infinite, and one without mean makes them and the mean NaN; the
    density, the cdf, the quantiles and the draws are as good as ever.

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
            TypeError: Not a distribution, or one made by transforming another.
            ValueError: Another shape, an empty dimension, or parameters that are not finite.
        """
        while isinstance(components, Independent):
            components = components.base_dist
        if not isinstance(components, Distribution) or not _parameters(components):
            raise TypeError(
                "`components` must be a torch distribution with parameters of its own, such as StudentT; got "
                f"{type(components).__name__}."
            )
        shape = components.batch_shape
        if len(shape) != 3 or components.event_shape or 0 in shape:
            raise ValueError(
                "`components` must have batch shape (S, N, D) with no empty dimension, and no event shape; got "
                f"{tuple(shape)} and {tuple(components.event_shape)}. Give one draw a leading dimension of 1."
            )
        given = {name: broadcasts.core(value.detach(), 3) for name, value in _parameters(components).items()}
        parameters = {name: value.double() for name, value in given.items()}
        for name, value in parameters.items():
            check_finite(value, name)
        expanded = {name: value.expand(shape) for name, value in parameters.items()}
        kind: Any = type(components)
        object.__setattr__(self, "components", kind(**expanded))

    @property
    def is_discrete(self) -> bool:
        """Whether targets are counts."""
        return bool(self.components.support.is_discrete)

    @property
    def shape(self) -> torch.Size:
        """(S, N, D): laws, points and target columns."""
        return torch.Size(self.components.batch_shape)

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return next(iter(_parameters(self.components).values())).device

    @property
    def component_means(self) -> Tensor:
        """Mean of each component, (S, N, D)."""
        return self.components.mean

    @property
    def component_variances(self) -> Tensor:
        """Variance of each component, (S, N, D)."""
        return self.components.variance

    @property
    def mean(self) -> Tensor:
        """E[y*], (N, D), in units of y."""
        return self.component_means.mean(dim=0)

    @property
    def aleatoric(self) -> Tensor:
        """Mean of the components' variances, (N, D), in units of y squared."""
        return self.component_variances.mean(dim=0)

    @property
    def epistemic(self) -> Tensor:
        """Variance of the components' means (ddof 0, as the identity needs), (N, D), in units of y squared."""
        return self.component_means.var(dim=0, correction=0)

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density or log probability of the mixture, jointly over columns, (N,), in nats.

        Args:
            y: Targets, (N, D), or (N,) for D = 1.
            observed: Which of them are known, boolean, (N, D); see `GaussianPredictive.log_prob`. What stands in place
                of the others must lie in the support too.

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Another shape than (N, D), or (N,) for D = 1; NaN; a value outside the family's support.
        """
        # Columns first: they share the draw, so they are independent only within a component.
        return self.component_log_prob(y, observed=observed).logsumexp(dim=0) - math.log(self.num_samples)

    def component_log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density of each component, jointly over columns, (S, N), in nats; see `log_prob` for the rest."""
        target = self.targets(y)
        if not self.components.support.check(target).all():
            raise ValueError(
                f"`y` must lie in the support of {type(self.components).__name__}, {self.components.support}; got "
                f"values from {float(target.min()):g} to {float(target.max()):g}."
            )
        return over_columns(self.components.log_prob(target), observed)

    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y) column by column, (N, D).

        Raises:
            NotImplementedError: A family whose cdf neither torch nor this file knows.
        """
        return component_cdf(self.components, self.targets(y)).mean(dim=0)

    def quantile(self, level: float) -> Tensor:
        """The smallest value that y* does not exceed with probability at least `level`, column by column, (N, D).

        Raises:
            ValueError: `level` outside (0, 1).
            NotImplementedError: A family whose quantiles are not known.
        """
        level = check_fraction(level, "level")
        if self.is_discrete:
            return count_quantile(self.mean, self.cdf, level)
        quantiles = component_quantile(self.components, level)

        def cdf_and_density(point: Tensor) -> tuple[Tensor, Tensor]:
            return self.cdf(point), self.components.log_prob(point).exp().mean(dim=0)

        # A mixture's quantile lies among its components'.
        return continuous_quantile(quantiles.amin(dim=0), quantiles.amax(dim=0), cdf_and_density, level)

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Targets, (num_samples, N, D), float64; each sample takes one component for all points."""
        check_count(num_samples, "num_samples")
        device = self.device
        with isolated(resolve_seed(seed)):  # torch's distributions know the global generator only
            chosen = torch.randint(self.num_samples, (num_samples,), device=device)
            return self._of({name: value[chosen] for name, value in _parameters(self.components).items()}).sample()

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """Targets, one from each component, (S, N, D), float64."""
        with isolated(resolve_seed(seed)):
            return self.components.sample()

    def at(self, points: slice) -> Self:
        """The predictive at some of its points."""
        return self._rebuilt(lambda _, value: value[:, points])

    def components_at(self, chosen: Tensor) -> Self:
        """The mixture of the components of these numbers."""
        return self._rebuilt(lambda _, value: value[chosen])

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        return self._rebuilt(lambda _, value: value.to(device))

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*; `loc` and `scale` are () or (D,), in the new unit.

        Raises:
            ValueError: A family without location and scale, such as counts, which have no unit; another number of
                columns.
        """
        parameters = _parameters(self.components)
        if not {"loc", "scale"} <= parameters.keys():
            raise ValueError(
                f"Targets of {type(self.components).__name__} cannot be rescaled: counts have no unit. Fit them as "
                "they are, and standardise the inputs alone."
            )
        self.check_columns(loc, scale)
        loc, scale = loc.to(parameters["loc"]), scale.to(parameters["loc"])
        moved = {"loc": loc + scale * parameters["loc"], "scale": scale * parameters["scale"]}
        return type(self)(self._of(parameters | moved))

    def _of(self, parameters: dict[str, Tensor]) -> Any:
        return type(self.components)(**parameters)

    def _rebuilt(self, change: Any) -> Self:
        return type(self)(self._of({name: change(name, value) for name, value in _parameters(self.components).items()}))

    @classmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        """See `RealPredictive.joined`; the parts must be of one family."""
        kinds = {type(part.components).__name__ for part in parts}
        if len(kinds) != 1:
            raise ValueError(f"Only predictives of one family join; got {', '.join(sorted(kinds))}.")
        first, sizes = parts[0], [part.components.batch_shape[dim] for part in parts]
        shape = [*first.components.batch_shape]
        shape[dim] = sum(sizes)

        def together(name: str, _: Tensor) -> Tensor:
            """What is one number for all points, such as the degrees of freedom, stays one."""
            cores = [broadcasts.core(_parameters(part.components)[name], 3) for part in parts]
            return broadcasts.joined(cores, sizes, dim).expand(shape)

        return first._rebuilt(together)


def component_cdf(law: Any, y: Tensor) -> Tensor:
    """P(y* <= y) under each component, of the law's batch shape."""
    if isinstance(law, StudentT):
        return _by_scipy(scipy.special.stdtr, law.df, (y - law.loc) / law.scale)
    if isinstance(law, Poisson):
        count = y.floor()
        inside = torch.special.gammaincc(count.clamp(min=0) + 1, law.rate)
        return torch.where(count < 0, 0.0, inside)
    try:
        return law.cdf(y)
    except NotImplementedError as error:
        raise NotImplementedError(_unknown(law, "cdf")) from error


def component_quantile(law: Any, level: float) -> Tensor:
    """The value that y* does not exceed with probability `level` under each component of a continuous family."""
    levels = torch.full(law.batch_shape, level, dtype=torch.float64, device=law.mean.device)
    if isinstance(law, StudentT):
        return law.loc + law.scale * _by_scipy(scipy.special.stdtrit, law.df, levels)
    try:
        return law.icdf(levels)
    except NotImplementedError as error:
        raise NotImplementedError(_unknown(law, "icdf")) from error


def _unknown(law: Any, function: str) -> str:
    return (
        f"torch knows no `{function}` of {type(law).__name__}, so this predictive has no quantiles, intervals or "
        "probability integral transform. Its mean, variances, log_prob and sample are as good as ever: take quantiles "
        "of draws, `predictive.sample(10_000).quantile(level, dim=0)`, and `scores.sample_crps` of them."
    )


def _parameters(law: Any) -> dict[str, Tensor]:
    """The tensors that a distribution was built from, by argument."""
    held = {name: vars(law)[name] for name in law.arg_constraints if isinstance(vars(law).get(name), Tensor)}
    if {"probs", "logits"} <= held.keys():  # torch keeps the one that it works out from the other
        del held["logits" if law._param is held["probs"] else "probs"]
    return held


def _by_scipy(function: Any, *arguments: Tensor) -> Tensor:
    # torch has no incomplete beta function, which Student's t needs.
    arrays = [argument.detach().cpu().numpy() for argument in arguments]
    return torch.as_tensor(function(*arrays)).to(arguments[-1])
