"""Likelihoods of real targets: Normal, HeteroscedasticNormal, and StudentT for targets with outliers.

Letters: see `bayesuq.models.likelihoods.base`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.arrays import ArrayLike, as_targets, check_finite_number, check_positive
from bayesuq.mixture import MixturePredictive
from bayesuq.models.likelihoods.base import (
    Likelihood,
    Unknown,
    aligned,
    check_parameter,
    parameter_value,
    unknown_parameters,
)
from bayesuq.models.priors import Prior
from bayesuq.predictive import GaussianPredictive

LOG_TWO_PI = math.log(2 * math.pi)


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
        check_parameter(self.scale, "scale")

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """The scale, where it is not fixed."""
        return unknown_parameters({"scale": (self.scale, self.initial_scale)})

    def given(self, values: Mapping[str, Tensor]) -> Self:
        """The likelihood at this noise scale."""
        return replace(self, scale=values["scale"]) if "scale" in values else self

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Real targets, (N, D)."""
        return as_targets(y)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets of f's shape and dtype."""
        return aligned(f, y, channels=f.shape[1:2]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """log N(y; f, scale^2), (N, D)."""
        scale = parameter_value(self.scale, "scale")
        if isinstance(scale, Tensor):
            return -0.5 * (((y - f) / scale) ** 2 + LOG_TWO_PI) - scale.log()
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
        return torch.as_tensor(parameter_value(self.scale, "scale"), dtype=f.dtype, device=f.device)


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
        df: Degrees of freedom: a number; "learned", a point value found with the weights; or a prior over positive
            numbers. (Inside a method: a tensor, () or (S,).)
        scale: The spread in units of y, in the same three ways; not the standard deviation, which is
            scale sqrt(df / (df - 2)).
        initial_df: Where a fit starts a `df` that is learned or inferred.
        initial_scale: Where a fit starts a scale that is learned or inferred.

    Reference:
        Lange, Little and Taylor 1989, Robust Statistical Modeling Using the t Distribution.
    """

    df: float | Literal["learned"] | Prior | Tensor = 4.0
    scale: float | Literal["learned"] | Prior | Tensor = "learned"
    initial_df: float = 4.0
    initial_scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive(self.initial_df, "initial_df")
        check_positive(self.initial_scale, "initial_scale")
        check_parameter(self.df, "df")
        check_parameter(self.scale, "scale")

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """The degrees of freedom and the scale, where they are not fixed."""
        return unknown_parameters({"df": (self.df, self.initial_df), "scale": (self.scale, self.initial_scale)})

    def given(self, values: Mapping[str, Tensor]) -> Self:
        """The likelihood at these values."""
        known: Any = {name: values[name] for name in ("df", "scale") if name in values}
        return replace(self, **known) if known else self

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
        df, scale = (value.reshape(-1, 1, 1) for value in self._parameters(f))  # () or (S,)
        return MixturePredictive(dist.StudentT(df, f, scale))

    def _parameters(self, f: Tensor) -> tuple[Tensor, Tensor]:
        values = (parameter_value(self.df, "df"), parameter_value(self.scale, "scale"))
        df, scale = (torch.as_tensor(value, dtype=f.dtype, device=f.device) for value in values)
        return df, scale
