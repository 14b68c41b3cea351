"""Prior densities p(theta): of network weights, and of positive scales.

A prior is a law for each entry of a parameter, independent over entries. `BayesianNetwork(prior=...)` takes one for all
parameters, or a mapping from rules (`bayesuq.models.rules`) to priors, the first rule that matches a parameter
deciding:

    prior={"*.bias": Normal(scale=1.0), nn.Conv2d: Laplace(scale=0.1), "*": FanIn(Normal(scale=1.4))}
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import pyro.distributions as dist
from torch import Tensor, nn

from bayesuq.arrays import check_each, check_finite_number, check_positive
from bayesuq.models.horseshoe import HorseshoeLaw
from bayesuq.models.rules import trainable_parameters
from bayesuq.models.scale_mixture import NormalScaleMixture

__all__ = [
    "FanIn",
    "Gamma",
    "HalfCauchy",
    "HalfNormal",
    "Horseshoe",
    "Laplace",
    "LogNormal",
    "Normal",
    "Prior",
    "ScaleMixture",
    "StudentT",
    "centred",
]
__dir__ = __all__.copy


class Prior(ABC):
    """A law for each entry of a parameter."""

    @abstractmethod
    def entry(self, like: Tensor) -> Any:
        """The law of one entry, a Pyro distribution of empty batch and event shape, with `like`'s dtype and device.

        Of `like`'s batch shape where the entries' laws differ.
        """

    def distribution(self, like: Tensor) -> Any:
        """The law of a whole parameter: a Pyro distribution whose event has `like`'s shape, dtype and device."""
        return self.entry(like).expand(like.shape).to_event(like.ndim)


class WeightPrior(Prior):
    """A prior on the real line that knows how to be narrowed, so that `FanIn` can scale it."""

    @abstractmethod
    def narrowed(self, factor: float) -> Self:
        """The same law with its spread around the centre multiplied by `factor`."""


class PlainPrior(Prior):
    """A law of Pyro's kind, whose parameters are the fields, in its order: `loc` any number, the others positive."""

    law: ClassVar[type]

    def __post_init__(self) -> None:
        for item in fields(self):  # type: ignore[arg-type]
            check = check_finite_number if item.name == "loc" else check_positive
            check(getattr(self, item.name), item.name)

    def entry(self, like: Tensor) -> Any:
        """The law of one entry."""
        return self.law(*(like.new_tensor(getattr(self, item.name)) for item in fields(self)))  # type: ignore[arg-type]


class PlainWeightPrior(PlainPrior, WeightPrior):
    """One of them on the real line, with a scale."""

    def narrowed(self, factor: float) -> Self:
        """The same law with its scale multiplied by `factor`."""
        return replace(self, scale=self.scale * factor)  # type: ignore[attr-defined, type-var]


@dataclass(frozen=True)
class Normal(PlainWeightPrior):
    """N(loc, scale^2)."""

    loc: float = 0.0
    scale: float = 1.0
    law: ClassVar[type] = dist.Normal


@dataclass(frozen=True)
class Laplace(PlainWeightPrior):
    """The double exponential law, density exp(-abs(w - loc) / scale) / (2 scale)."""

    loc: float = 0.0
    scale: float = 1.0
    law: ClassVar[type] = dist.Laplace


@dataclass(frozen=True)
class StudentT(PlainWeightPrior):
    """Student's t with `df` degrees of freedom; heavy tails for few."""

    df: float = 3.0
    loc: float = 0.0
    scale: float = 1.0
    law: ClassVar[type] = dist.StudentT


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
        for name in ("scales", "weights"):
            object.__setattr__(self, name, check_each(getattr(self, name), name, check_positive))
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


@dataclass(frozen=True)
class Horseshoe(PlainWeightPrior):
    """N(0, lambda^2 scale^2) with a half-Cauchy lambda for each entry: most are nearly 0, the others left alone.

    Attributes:
        scale: The global scale, below which entries are taken for nothing; about the share of entries that matter.

    Reference:
        Carvalho, Polson and Scott 2010, The horseshoe estimator for sparse signals.
    """

    scale: float = 1.0
    law: ClassVar[type] = HorseshoeLaw


@dataclass(frozen=True, eq=False)
class EntrywiseNormal(Prior):
    """A normal law of its own for each entry of one parameter: see `centred`, and `bayesuq.inference.sequential`.

    Attributes:
        loc: Means, of the parameter's shape.
        scale: Standard deviations, of the same shape, above 0.
    """

    loc: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        if self.loc.shape != self.scale.shape:
            raise ValueError(
                f"`scale` must have `loc`'s shape, {tuple(self.loc.shape)}; got {tuple(self.scale.shape)}."
            )
        if not (self.loc.isfinite().all() and self.scale.isfinite().all() and (self.scale > 0).all()):
            raise ValueError("`loc` and `scale` must be finite, and `scale` above 0.")

    def __repr__(self) -> str:
        return f"EntrywiseNormal({tuple(self.loc.shape)})"

    def entry(self, like: Tensor) -> Any:
        """The laws of all entries: they differ.

        Raises:
            ValueError: A parameter of another shape.
        """
        if like.shape != self.loc.shape:
            raise ValueError(
                f"The prior is of a parameter of shape {tuple(self.loc.shape)}; got one of {tuple(like.shape)}."
            )
        return dist.Normal(self.loc.to(like), self.scale.to(like))


def centred(at: nn.Module | Mapping[str, Tensor], base: Prior | None = None) -> dict[str, EntrywiseNormal]:
    """Rules for `BayesianNetwork(prior=...)`: a normal prior around the weights of a pretrained network.

    Args:
        at: The pretrained network, whose frozen parameters are left out, or some of its weights, tensors by name. Where
            only some parameters are to be random, name those alone.
        base: A normal prior whose scale it takes, such as `Normal(scale=0.1)` or `FanIn(Normal())`; a mean that it has
            is added. None is `Normal()`.

    Returns:
        A prior for each parameter, by name.

    Raises:
        TypeError: Neither a network nor tensors by name; a base of another family.

    Example:
        >>> net = nn.Linear(3, 1)
        >>> centred(net, Normal(scale=0.1))
        {'weight': EntrywiseNormal((1, 3)), 'bias': EntrywiseNormal((1,))}
    """
    weights = trainable_parameters(at) if isinstance(at, nn.Module) else at
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise TypeError(f"`at` must be a network, or a mapping from names to tensors; got {type(at).__name__}.")
    rules = {}
    for name, value in weights.items():
        start = value.detach()
        law = (Normal() if base is None else base).entry(start)
        if not isinstance(law, dist.Normal):
            raise TypeError(f"`base` must be a normal prior, such as Normal or FanIn(Normal()); got {base!r}.")
        rules[name] = EntrywiseNormal(start + law.loc, law.scale.expand(start.shape).clone())
    return rules


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
class HalfNormal(PlainPrior):
    """abs(N(0, scale^2)), for a noise scale."""

    scale: float = 1.0
    law: ClassVar[type] = dist.HalfNormal


@dataclass(frozen=True)
class HalfCauchy(PlainPrior):
    """abs(Cauchy(0, scale)), for a noise scale of unknown order of magnitude."""

    scale: float = 1.0
    law: ClassVar[type] = dist.HalfCauchy


@dataclass(frozen=True)
class LogNormal(PlainPrior):
    """exp(N(loc, scale^2)), for a noise scale."""

    loc: float = 0.0
    scale: float = 1.0
    law: ClassVar[type] = dist.LogNormal


@dataclass(frozen=True)
class Gamma(PlainPrior):
    """Gamma with density proportional to s^(concentration - 1) exp(-rate s), for a noise scale."""

    concentration: float = 2.0
    rate: float = 2.0
    law: ClassVar[type] = dist.Gamma
