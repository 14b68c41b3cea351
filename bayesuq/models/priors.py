"""Prior densities p(theta): of network weights, and of positive scales.

A prior is a law for each entry of a parameter, independent over entries. `BayesianNetwork(prior=...)` takes one for all
parameters, or a mapping from rules (`bayesuq.models.rules`) to priors, the first rule that matches a parameter
deciding:

    prior={"*.bias": Normal(scale=1.0), nn.Conv2d: Laplace(scale=0.1), "*": FanIn(Normal(scale=1.4))}
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from bayesuq.arrays import check_finite_number, check_positive

EMPTY = torch.Size()


class Prior(ABC):
    """A law for each entry of a parameter."""

    @abstractmethod
    def entry(self, like: Tensor) -> Any:
        """The law of one entry, a Pyro distribution of empty batch and event shape, with `like`'s dtype and device."""

    def distribution(self, like: Tensor) -> Any:
        """The law of a whole parameter: a Pyro distribution whose event has `like`'s shape, dtype and device."""
        return self.entry(like).expand(like.shape).to_event(like.ndim)


class WeightPrior(Prior):
    """A prior on the real line that knows how to be narrowed, so that `FanIn` can scale it."""

    @abstractmethod
    def narrowed(self, factor: float) -> Self:
        """The same law with its spread around the centre multiplied by `factor`."""


@dataclass(frozen=True)
class Normal(WeightPrior):
    """N(loc, scale^2)."""

    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_finite_number(self.loc, "loc")
        check_positive(self.scale, "scale")

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return dist.Normal(*_constants(like, self.loc, self.scale))

    def narrowed(self, factor: float) -> Self:
        """The same law with its scale multiplied by `factor`."""
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True)
class Laplace(WeightPrior):
    """The double exponential law, density exp(-abs(w - loc) / scale) / (2 scale)."""

    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_finite_number(self.loc, "loc")
        check_positive(self.scale, "scale")

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return dist.Laplace(*_constants(like, self.loc, self.scale))

    def narrowed(self, factor: float) -> Self:
        """The same law with its scale multiplied by `factor`."""
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True)
class StudentT(WeightPrior):
    """Student's t with `df` degrees of freedom; heavy tails for few."""

    df: float = 3.0
    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.df, "df")
        check_finite_number(self.loc, "loc")
        check_positive(self.scale, "scale")

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return dist.StudentT(*_constants(like, self.df, self.loc, self.scale))

    def narrowed(self, factor: float) -> Self:
        """The same law with its scale multiplied by `factor`."""
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True)
class ScaleMixture(WeightPrior):
    """A mixture of centred normals, sum_k weights_k N(0, scales_k^2).

    The default is a wide and a narrow component with equal shares, within the ranges of the paper's search.

    Reference:
        Blundell et al. 2015, Weight Uncertainty in Neural Networks, eq. (7).
    """

    scales: tuple[float, ...] = (1.0, math.exp(-6))
    weights: tuple[float, ...] = (0.5, 0.5)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", tuple(check_positive(scale, "scales") for scale in self.scales))
        object.__setattr__(self, "weights", tuple(check_positive(weight, "weights") for weight in self.weights))
        if len(self.scales) != len(self.weights) or abs(sum(self.weights) - 1) > 1e-6:
            raise ValueError(
                f"`weights` must be as many as `scales` and sum to 1; got {len(self.scales)} scales and weights "
                f"{self.weights}."
            )

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return NormalScaleMixture(like.new_tensor(self.scales), like.new_tensor(self.weights))

    def narrowed(self, factor: float) -> Self:
        """The same law with every scale multiplied by `factor`."""
        return replace(self, scales=tuple(scale * factor for scale in self.scales))


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
        log_heights = self.weights.log() - self.scales.log() - 0.5 * math.log(2 * math.pi)
        squares = -0.5 * value.square()
        terms = [height + squares / scale**2 for height, scale in zip(log_heights, self.scales, strict=True)]
        return torch.stack(terms).logsumexp(dim=0)

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


@dataclass(frozen=True)
class FanIn(Prior):
    """A prior narrowed by 1 / sqrt(fan-in), which keeps a layer's outputs of the same size whatever its width.

    The fan-in is the number of inputs to one output, prod(shape[1:]) of a weight. Parameters of fewer than two
    dimensions (biases, normalisation) keep the base prior.

    Reference:
        Neal 1996, Bayesian Learning for Neural Networks, section 2.1.
    """

    base: WeightPrior

    def __post_init__(self) -> None:
        if not isinstance(self.base, WeightPrior):
            raise TypeError(f"`base` must be a prior over weights, such as Normal; got {self.base!r}.")

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        fan_in = math.prod(like.shape[1:])  # the product of nothing, 1, for a bias
        return self.base.narrowed(fan_in**-0.5).entry(like)


@dataclass(frozen=True)
class HalfNormal(Prior):
    """abs(N(0, scale^2)), for a noise scale."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.scale, "scale")

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return dist.HalfNormal(*_constants(like, self.scale))


@dataclass(frozen=True)
class HalfCauchy(Prior):
    """abs(Cauchy(0, scale)), for a noise scale of unknown order of magnitude."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.scale, "scale")

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return dist.HalfCauchy(*_constants(like, self.scale))


@dataclass(frozen=True)
class LogNormal(Prior):
    """exp(N(loc, scale^2)), for a noise scale."""

    loc: float = 0.0
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_finite_number(self.loc, "loc")
        check_positive(self.scale, "scale")

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return dist.LogNormal(*_constants(like, self.loc, self.scale))


@dataclass(frozen=True)
class Gamma(Prior):
    """Gamma with density proportional to s^(concentration - 1) exp(-rate s), for a noise scale."""

    concentration: float = 2.0
    rate: float = 2.0

    def __post_init__(self) -> None:
        check_positive(self.concentration, "concentration")
        check_positive(self.rate, "rate")

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return dist.Gamma(*_constants(like, self.concentration, self.rate))


def _constants(like: Tensor, *values: float) -> list[Tensor]:
    return [like.new_tensor(value) for value in values]
