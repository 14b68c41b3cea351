"""Likelihoods of real targets: Normal, HeteroscedasticNormal, and StudentT for targets with outliers.

Letters: see `bayesuq.models.likelihoods.base`.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, TypeVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.arrays import ArrayLike, as_targets, check_count, check_finite_number, check_positive
from bayesuq.mixture import MixturePredictive
from bayesuq.models.likelihoods.base import (
    Likelihood,
    Unknown,
    aligned,
    checked_parameter,
    parameter_value,
    unknown_parameters,
)
from bayesuq.models.priors import Prior
from bayesuq.predictive import GaussianPredictive

LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True, eq=False)
class Normal(Likelihood):
    """Real targets y ~ N(f, scale^2), f and y being (N, D), with one noise scale for all columns or one for each.

    Attributes:
        scale: The noise scale in units of y: a number, or a list of one for each column; "learned", a point value found
            with the weights; or a prior over positive numbers, which makes it one of the unknowns. (Inside a method: a
            tensor.)
        initial_scale: Where a fit starts a scale that is learned or inferred, or a list of one for each column.
        per_column: Whether each target column has a scale of its own. A model takes their number from its network; for
            a network whose last layer does not tell it, give D itself.
    """

    scale: float | Sequence[float] | Literal["learned"] | Prior | Tensor = "learned"
    initial_scale: float | Sequence[float] = 1.0
    per_column: bool | int = False

    def __post_init__(self) -> None:
        _check_scales(self)

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """The scale, where it is not fixed."""
        return unknown_parameters({"scale": (self.scale, self.initial_scale)})

    def given(self, values: Mapping[str, Tensor]) -> Self:
        """The likelihood at this noise scale."""
        return _at(self, values, ("scale",))

    def for_outputs(self, num_outputs: int | None) -> Self:
        """The likelihood with a scale for each of the network's outputs, where columns have their own."""
        return _with_columns(self, num_outputs)

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Real targets, (N, D)."""
        return as_targets(y)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets of f's shape and dtype."""
        return aligned(f, y, channels=f.shape[1:2]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log N(y; f, scale^2), (N, D)."""
        scale = parameter_value(self.scale, "scale")
        if not isinstance(scale, float):
            scale = _over_columns(scale, f, self.per_column)
            return -0.5 * (((y - f) / scale) ** 2 + LOG_TWO_PI) - scale.log()
        squares = functional.mse_loss(f, y, reduction="none")  # one kernel, forward and backward
        return squares * (-0.5 / scale**2) - (math.log(scale) + 0.5 * LOG_TWO_PI)

    def distribution(self, f: Tensor) -> Any:
        """Normal law with event shape (D,)."""
        scale = _over_columns(parameter_value(self.scale, "scale"), f, self.per_column)
        return dist.Normal(f, scale).to_event(f.ndim - 1)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> GaussianPredictive:  # noqa: ARG002
        """The mixture of S Gaussians; its components are the single draws, which it always keeps."""
        scale = _of_draws(parameter_value(self.scale, "scale"), f, self.per_column)
        return GaussianPredictive(mean=f, noise_variance=scale.double() ** 2)


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
        return aligned(mean, y, channels=mean.shape[1:]).to(f.dtype)

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


@dataclass(frozen=True, eq=False)
class StudentT(Likelihood):
    """Real targets with outliers: y = f + scale * t, t of Student's law with `df` degrees of freedom; f, y are (N, D).

    A target far away pulls on f with a force that falls with its distance, where a normal one pulls the harder. With
    `df` at most 2 the predictive's variance is infinite, and with at most 1 its mean is undefined (NaN); log score,
    quantiles and coverage remain.

    Attributes:
        df: Degrees of freedom, the same for all columns: a number; "learned", a point value found with the weights; or
            a prior over positive numbers. (Inside a method: a tensor, () or (S,).)
        scale: The spread in units of y, in the same three ways or a list of one for each column; not the standard
            deviation, which is scale sqrt(df / (df - 2)).
        initial_df: Where a fit starts a `df` that is learned or inferred.
        initial_scale: Where a fit starts a scale that is learned or inferred, or a list of one for each column.
        per_column: Whether each target column has a scale of its own: see `Normal`.

    Reference:
        Lange, Little and Taylor 1989, Robust Statistical Modeling Using the t Distribution.
    """

    df: float | Literal["learned"] | Prior | Tensor = 4.0
    scale: float | Sequence[float] | Literal["learned"] | Prior | Tensor = "learned"
    initial_df: float = 4.0
    initial_scale: float | Sequence[float] = 1.0
    per_column: bool | int = False

    def __post_init__(self) -> None:
        check_positive(self.initial_df, "initial_df")
        df = checked_parameter(self.df, "df")
        if isinstance(df, tuple):
            raise ValueError(f"`df` must be one number for all columns; got {df}.")
        object.__setattr__(self, "df", df)
        _check_scales(self)

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """The degrees of freedom and the scale, where they are not fixed."""
        return unknown_parameters({"df": (self.df, self.initial_df), "scale": (self.scale, self.initial_scale)})

    def given(self, values: Mapping[str, Tensor]) -> Self:
        """The likelihood at these values."""
        return _at(self, values, ("df", "scale"))

    def for_outputs(self, num_outputs: int | None) -> Self:
        """The likelihood with a scale for each of the network's outputs, where columns have their own."""
        return _with_columns(self, num_outputs)

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Real targets, (N, D)."""
        return as_targets(y)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets of f's shape and dtype."""
        return aligned(f, y, channels=f.shape[1:2]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log t(y; df, f, scale), (N, D)."""
        df, scale = self._parameters(f)
        # log Gamma((df + 1) / 2) - log Gamma(df / 2) - log(pi df) / 2 - log scale: everything that f has no part in
        constant = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * (math.pi * df).log() - scale.log()
        return constant - 0.5 * (df + 1) * torch.log1p(((y - f) / scale).square() / df)

    def distribution(self, f: Tensor) -> Any:
        """Student's law with event shape (D,)."""
        df, scale = self._parameters(f)
        return dist.StudentT(df, f, scale).to_event(f.ndim - 1)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> MixturePredictive:  # noqa: ARG002
        """The mixture of S Student laws; its components are the single draws, which it always keeps."""
        f = f.double()
        df = _of_draws(parameter_value(self.df, "df"), f, per_column=False)
        scale = _of_draws(parameter_value(self.scale, "scale"), f, self.per_column)
        return MixturePredictive(dist.StudentT(df, f, scale))

    def _parameters(self, f: Tensor) -> tuple[Tensor, Tensor]:
        df = _over_columns(parameter_value(self.df, "df"), f, per_column=False)
        return df, _over_columns(parameter_value(self.scale, "scale"), f, self.per_column)


Scaled = TypeVar("Scaled", bound=Normal | StudentT)


def _check_scales(likelihood: Normal | StudentT) -> None:
    """Put a user's `scale`, `initial_scale` and `per_column` into the form that the methods read.

    Raises:
        ValueError: What is neither of what they may be, or numbers of columns that differ.
    """
    scale = checked_parameter(likelihood.scale, "scale")
    initial = checked_parameter(likelihood.initial_scale, "initial_scale")
    if not isinstance(initial, float | tuple):
        raise ValueError(f"`initial_scale` must be a number, or a list of one for each column; got {initial!r}.")
    told = likelihood.per_column
    number = told if isinstance(told, bool) else check_count(told, "per_column")
    sizes = {len(value) for value in (scale, initial) if isinstance(value, tuple)}
    sizes |= set() if isinstance(number, bool) else {number}
    if len(sizes) > 1:
        raise ValueError(f"`scale`, `initial_scale` and `per_column` must be of as many columns; got {sorted(sizes)}.")
    if number is True and isinstance(scale, float):
        raise ValueError("`per_column` asks for a scale for each column; got one. Write a list, scale=[0.1, 0.2].")
    if sizes:
        number = sizes.pop()
        initial = initial if isinstance(initial, tuple) else (initial,) * number
        scale = (scale,) * number if isinstance(scale, float) else scale
    for name, value in (("scale", scale), ("initial_scale", initial), ("per_column", number)):
        object.__setattr__(likelihood, name, value)


def _with_columns(likelihood: Scaled, num_outputs: int | None) -> Scaled:
    """The likelihood with as many scales as there are outputs."""
    number = likelihood.per_column
    if isinstance(number, bool):
        if not number:
            return likelihood
        if num_outputs is None:
            raise ValueError(
                "How many columns the network gives cannot be told from its last layer. Write the number: "
                "per_column=2 for two."
            )
        return replace(likelihood, per_column=num_outputs)
    return likelihood


def _at(likelihood: Scaled, values: Mapping[str, Tensor], names: Sequence[str]) -> Scaled:
    """The likelihood at values of its unknowns: tensors, which only methods may give."""
    known = {name: values[name] for name in names if name in values}
    if not known:
        return likelihood
    found = copy.copy(likelihood)
    for name, value in known.items():
        object.__setattr__(found, name, value)
    return found


def _over_columns(value: float | Sequence[float] | Tensor, f: Tensor, per_column: bool | int) -> Tensor:
    """A parameter as a tensor that broadcasts to f, (N, D, ...)."""
    tensor = torch.as_tensor(value, dtype=f.dtype, device=f.device)
    if not per_column:
        return tensor
    _check_columns(tensor, f.shape[1])
    return tensor.reshape(-1, *[1] * (f.ndim - 2))


def _of_draws(value: float | Sequence[float] | Tensor, f: Tensor, per_column: bool | int) -> Tensor:
    """A parameter as a tensor that broadcasts to draws of f, (S, N, D); it may differ from draw to draw."""
    tensor = torch.as_tensor(value, dtype=f.dtype, device=f.device)
    if not per_column:
        return tensor.reshape(-1, 1, 1)
    _check_columns(tensor, f.shape[2])
    return tensor.reshape(-1, 1, f.shape[2])


def _check_columns(scales: Tensor, num_columns: int) -> None:
    if scales.shape[-1:] != (num_columns,):
        raise ValueError(
            f"The likelihood has scales for {scales.shape[-1]} columns; the network gives {num_columns}. Give as many, "
            f"or per_column={num_columns} for scales that are learned or inferred."
        )
