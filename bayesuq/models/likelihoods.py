"""Likelihoods p(y | f): what the network's outputs f say of the targets.

A likelihood knows neither the size of the data nor any error measure. Parameters that are not fixed are its `unknowns`,
learned as point values or inferred under a prior; `given` puts their current values in. Weights (of a row, a target or
a class) multiply log p(y | f) and act in training only: `distribution` and `predictive` are unweighted.

Letters: S draws, N points, C classes, D target columns, `...` further dimensions such as an image's height and width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.arrays import ArrayLike, as_labels, as_targets, check_count, check_finite_number, check_positive
from bayesuq.models.priors import Prior
from bayesuq.predictive import CategoricalPredictive, GaussianPredictive, PredictiveDistribution

LOG_TWO_PI = math.log(2 * math.pi)
ONE_CLASS = "Categorical needs a network of at least 2 outputs; got 1. Use Bernoulli for one."
NO_LABEL = torch.iinfo(torch.int64).min  # torch's own default, -100, would hide a wrong label


@dataclass(frozen=True)
class Unknown:
    """A positive parameter of a likelihood that is not fixed.

    Attributes:
        prior: Its law, which makes it one of the inferred sites; None where it is learned as a point value.
        initial: Where a fit starts it.
    """

    prior: Prior | None
    initial: float


class Likelihood(ABC):
    """p(y | f), independent over points and, given f, over the targets of a point."""

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """The parameters that are not fixed, by name."""
        return {}

    def given(self, values: Mapping[str, Tensor]) -> Self:  # noqa: ARG002 - most likelihoods have no parameters
        """The likelihood at these values of its unknowns, each () or (S,) for S draws."""
        return self

    @property
    def reweights_classes(self) -> bool:
        """Whether `log_prob` differs from `distribution(f).log_prob(y)` also where no weight is given."""
        return False

    @abstractmethod
    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:
        """Checked targets of the dtype that `log_prob` takes.

        Args:
            y: Targets as a user passes them.
            num_outputs: C, where it is known; labels must then be below it.

        Raises:
            TypeError: Labels where real numbers belong, or fractions where labels belong.
            ValueError: Values outside the likelihood's support.
        """

    @abstractmethod
    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """`y` in the shape that f asks for.

        Raises:
            ValueError: Shapes of f and y that do not belong together; nothing is ever broadcast.
        """

    @abstractmethod
    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log p of each target in nats, of y's shape, class weights inside; `y` is aligned."""

    @abstractmethod
    def distribution(self, f: Tensor) -> Any:
        """The law of y as a Pyro distribution of batch shape (N,)."""

    @abstractmethod
    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> PredictiveDistribution:
        """The equal mixture over S draws of f, (S, N, C, ...)."""

    def log_prob(self, f: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """log p(y | f) of each point, summed over its targets, weighted; (N,), in nats.

        Args:
            f: Network outputs, (N, C, ...).
            y: Targets, of f's shape less the channel where the likelihood says so.
            weight: (N,), or of y's shape.

        Raises:
            ValueError: Shapes that do not belong together.
        """
        terms = self._weighted_terms(f, y, weight)
        return terms.flatten(1).sum(dim=1) if terms.ndim > 1 else terms

    def total_log_prob(self, f: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """The sum of `log_prob` over points, a 0-d tensor, in nats."""
        return self._weighted_terms(f, y, weight).sum()

    def _weighted_terms(self, f: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        terms = self.elementwise_log_prob(f, self.align(f, y))
        return terms if weight is None else terms * _aligned_weight(weight, terms)


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Labels in {0, ..., C - 1} with probabilities softmax(f); f is (N, C, ...), y (N, ...).

    Attributes:
        class_weights: Multiplies log p(y | f) by the weight of the true class; None is 1 for all.
        ignore_index: A label that adds nothing, such as an image's void pixels.
    """

    class_weights: tuple[float, ...] | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", _check_class_weights(self.class_weights))
        if self.ignore_index is not None:
            object.__setattr__(self, "ignore_index", check_count(self.ignore_index, "ignore_index", minimum=NO_LABEL))

    @property
    def reweights_classes(self) -> bool:
        """Whether class weights or an ignored label are set."""
        return self.class_weights is not None or self.ignore_index is not None

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:
        """Labels, int64."""
        if num_outputs == 1:
            raise ValueError(ONE_CLASS)
        labels = as_labels(y)
        as_labels(labels[labels != self.ignore_index], num_classes=num_outputs)
        return labels

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Labels of shape (N, ...)."""
        if f.ndim > 1 and f.shape[1] == 1:
            raise ValueError(ONE_CLASS)
        return _aligned(f, y, channels=())

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """Weighted log softmax(f) at y, (N, ...)."""
        weights = None if self.class_weights is None else f.new_tensor(self.class_weights)
        if self.class_weights is not None and len(self.class_weights) != f.shape[1]:
            raise ValueError(
                f"`class_weights` must have one entry for each of {f.shape[1]} classes; got {len(self.class_weights)}."
            )
        ignored = NO_LABEL if self.ignore_index is None else self.ignore_index
        return -functional.cross_entropy(f, y, weight=weights, ignore_index=ignored, reduction="none")

    def distribution(self, f: Tensor) -> Any:
        """Categorical law with event shape (...)."""
        return dist.Categorical(logits=f.movedim(1, -1)).to_event(f.ndim - 2)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> CategoricalPredictive:
        """The mixture of S softmaxes."""
        return CategoricalPredictive.from_logits(f, keep_samples=keep_samples)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Labels in {0, 1} with P(y = 1) = sigmoid(f); f is (N, 1, ...), y (N, ...) or (N, 1, ...).

    log p(y | f) is minus the binary cross entropy. The predictive has two classes.

    Attributes:
        class_weights: Multiplies log p(y | f) by the weight of the true class, (of 0, of 1); None is 1 for both.
    """

    class_weights: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.class_weights is not None:
            weights = _check_class_weights(self.class_weights)
            if len(weights) != 2:
                raise ValueError(f"`class_weights` must have two entries, for 0 and 1; got {len(weights)}.")
            object.__setattr__(self, "class_weights", weights)

    @property
    def reweights_classes(self) -> bool:
        """Whether class weights are set."""
        return self.class_weights is not None

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Labels 0 and 1, int64."""
        return as_labels(y, num_classes=2)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Labels of shape (N, 1, ...), in f's dtype."""
        _check_one_output(f, dim=1)
        return _aligned(f, y, channels=(1,)).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """Weighted log p, (N, 1, ...)."""
        terms = -functional.binary_cross_entropy_with_logits(f, y, reduction="none")
        if self.class_weights is None:
            return terms
        of_zero, of_one = self.class_weights
        return terms * (of_zero + (of_one - of_zero) * y)

    def distribution(self, f: Tensor) -> Any:
        """Bernoulli law with event shape (1, ...)."""
        _check_one_output(f, dim=1)
        return dist.Bernoulli(logits=f).to_event(f.ndim - 1)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> CategoricalPredictive:
        """The mixture of S pairs (P(y = 0), P(y = 1)), (N, 2, ...)."""
        _check_one_output(f, dim=2)
        return CategoricalPredictive.from_logits(torch.cat([torch.zeros_like(f), f], dim=2), keep_samples=keep_samples)


@dataclass(frozen=True, eq=False)
class Normal(Likelihood):
    """Real targets y ~ N(f, scale^2), f and y being (N, D), with one noise scale for all columns.

    Attributes:
        scale: The noise scale in units of y: a number; "learned", a point value found with the weights; or a prior over
            positive numbers, which makes it one of the unknowns. (Inside a method: a tensor, () or (S,).)
        initial_scale: Where a fit starts a scale that is learned or inferred.
    """

    scale: float | Literal["learned"] | Prior | Tensor = "learned"
    initial_scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.initial_scale, "initial_scale")
        if isinstance(self.scale, str) and self.scale != "learned":
            raise ValueError(f"`scale` must be a number, 'learned' or a prior; got {self.scale!r}.")
        if isinstance(self.scale, Prior):
            _check_positive_support(self.scale)
        elif not isinstance(self.scale, str | Tensor):
            check_positive(self.scale, "scale")

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """The scale, where it is not fixed."""
        if isinstance(self.scale, Prior):
            return {"scale": Unknown(self.scale, self.initial_scale)}
        return {"scale": Unknown(None, self.initial_scale)} if isinstance(self.scale, str) else {}

    def given(self, values: Mapping[str, Tensor]) -> Self:
        """The likelihood at this noise scale."""
        return replace(self, scale=values["scale"]) if "scale" in values else self

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Real targets, (N, D)."""
        return as_targets(y)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets of f's shape and dtype."""
        return _aligned(f, y, channels=f.shape[1:2]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log N(y; f, scale^2), (N, D)."""
        if isinstance(self.scale, Tensor):
            return -0.5 * (((y - f) / self.scale) ** 2 + LOG_TWO_PI) - self.scale.log()
        scale = self._fixed_scale()
        squares = functional.mse_loss(f, y, reduction="none")  # one kernel, forward and backward
        return squares * (-0.5 / scale**2) - (math.log(scale) + 0.5 * LOG_TWO_PI)

    def distribution(self, f: Tensor) -> Any:
        """Normal law with event shape (D,)."""
        return dist.Normal(f, self._scale(f)).to_event(f.ndim - 1)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> GaussianPredictive:  # noqa: ARG002
        """The mixture of S Gaussians; its components are the single draws, which it always keeps."""
        scale = self._scale(f)
        return GaussianPredictive(mean=f, noise_variance=scale.double().reshape(-1, 1, 1) ** 2)

    def _scale(self, f: Tensor) -> Tensor:
        return self.scale if isinstance(self.scale, Tensor) else f.new_tensor(self._fixed_scale())

    def _fixed_scale(self) -> float:
        if isinstance(self.scale, str | Prior | Tensor):
            raise ValueError("The noise scale has no value yet. Call `given({'scale': value})` first.")
        return self.scale


@dataclass(frozen=True)
class HeteroscedasticNormal(Likelihood):
    """Real targets with a noise variance of their own at every input: y ~ N(f_mean, exp(f_log_variance)).

    f has 2 D columns, D means and then D log variances; y is (N, D).

    Attributes:
        minimum_scale: A floor under the noise, in units of y: variance = exp(f) + minimum_scale^2. Targets with
            repeated values let the density grow without bound at 0; 0.05 standard deviations of y keep it sane.

    Reference:
        Nix & Weigend 1994; Lakshminarayanan et al. 2017, eq. (1).
    """

    minimum_scale: float = 0.0

    def __post_init__(self) -> None:
        if check_finite_number(self.minimum_scale, "minimum_scale") < 0:
            raise ValueError(f"`minimum_scale` must be at least 0; got {self.minimum_scale}.")

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Real targets, (N, D)."""
        return as_targets(y)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets of shape (N, D), in f's dtype."""
        mean, _ = self._parts(f, dim=1)
        return _aligned(mean, y, channels=mean.shape[1:]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log N(y; mean, variance), (N, D)."""
        mean, log_variance = self._parts(f, dim=1)
        return -0.5 * ((y - mean) ** 2 * torch.exp(-log_variance) + log_variance + LOG_TWO_PI)

    def distribution(self, f: Tensor) -> Any:
        """Normal law with event shape (D,)."""
        mean, log_variance = self._parts(f, dim=1)
        return dist.Normal(mean, torch.exp(0.5 * log_variance)).to_event(1)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> GaussianPredictive:  # noqa: ARG002
        """The mixture of S Gaussians; its components are the single draws, which it always keeps."""
        mean, log_variance = self._parts(f.double(), dim=2)
        return GaussianPredictive(mean=mean, noise_variance=log_variance.exp())

    def _parts(self, f: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        if f.ndim != dim + 1 or f.shape[dim] % 2:
            raise ValueError(
                f"The network must give f of shape (N, 2 D), means and then log variances; got {tuple(f.shape)}. "
                "Double its outputs."
            )
        mean, log_variance = f.chunk(2, dim=dim)
        if self.minimum_scale > 0:
            floor = log_variance.new_tensor(2 * math.log(self.minimum_scale))
            log_variance = torch.logaddexp(log_variance, floor)
        return mean, log_variance


def _aligned(f: Tensor, y: Tensor, *, channels: tuple[int, ...]) -> Tensor:
    """`y` as (N, *channels, ...) for f of (N, C, ...), where the two agree but for the channel dimension."""
    if f.ndim < 2:
        raise ValueError(f"The network must give f of shape (N, C, ...); got {tuple(f.shape)}. Use f.unsqueeze(-1).")
    expected = (len(f), *channels, *f.shape[2:])
    if y.shape == expected:
        return y
    accepted = {expected}
    if channels in ((), (1,)):  # one column may come with its dimension or without; both hold the same numbers
        accepted |= {(len(f), *f.shape[2:]), (len(f), 1, *f.shape[2:])}
    if tuple(y.shape) not in accepted:
        raise ValueError(
            f"`y` must have shape {expected} for network outputs f of shape {tuple(f.shape)}; got {tuple(y.shape)}."
        )
    return y.reshape(expected)


def _aligned_weight(weight: Tensor, terms: Tensor) -> Tensor:
    """`weight` so that it multiplies the terms of log p."""
    if weight.shape == terms.shape[:1]:
        return weight.reshape(-1, *[1] * (terms.ndim - 1))
    if _without_column(weight.shape) != _without_column(terms.shape):
        raise ValueError(
            f"`weight` must have shape {tuple(terms.shape[:1])}, or {tuple(terms.shape)} as `y`; got "
            f"{tuple(weight.shape)}."
        )
    return weight.reshape(terms.shape)


def _without_column(shape: torch.Size) -> torch.Size:
    """The shape less its second dimension, where that is 1: a single column comes with its dimension or without."""
    return shape[:1] + shape[2:] if shape[1:2] == (1,) else shape


def _check_one_output(f: Tensor, dim: int) -> None:
    if f.ndim <= dim or f.shape[dim] != 1:
        raise ValueError(f"The network must give f of shape (N, 1, ...) for Bernoulli; got {tuple(f.shape)}.")


def _check_class_weights(weights: Any) -> tuple[float, ...]:
    values = tuple(float(weight) for weight in weights)
    if len(values) < 2 or any(not math.isfinite(value) or value < 0 for value in values) or sum(values) == 0:
        raise ValueError(f"`class_weights` must be finite, at least 0, not all 0, one for each class; got {values}.")
    return values


def _check_positive_support(prior: Prior) -> None:
    support = prior.entry(torch.zeros(())).support
    if getattr(support, "lower_bound", -math.inf) < 0:
        raise ValueError(f"`scale` needs a prior over positive numbers, such as HalfNormal; got {prior!r}.")
