"""Kernels k(x, x'): how alike a function's values at two inputs are.

Each is a frozen value that `build` turns into GPyTorch's module once the data's width is known. Kernels add and
multiply: `Scale(RBF()) + Scale(Periodic(period=1.0) * RBF())`. A hyperparameter is "learned" (a point value by a fit's
optimiser; drawn, under a weak prior in the data's own units, by its sampler), a number, which fixes it, or a prior,
which penalises the point value and is sampled under. Numbers and priors are in the units of x and y as a fit gets them.

Letters: N points, D inputs, C outputs of f, each with hyperparameters of its own unless the process shares them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch

from bayesuq.arrays import check_count
from bayesuq.models.gp.hyperparameters import Value, check_value, declare, log_positive

SLOWEST, FASTEST, SPECTRAL_WIDTH = 0.1, 10.0, 0.1  # of a spectral mixture's start, over the spread of the inputs
Built = Any  # a gpytorch.kernels.Kernel; GPyTorch is untyped here


class Kernel(ABC):
    """A covariance function, without data."""

    @abstractmethod
    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """GPyTorch's kernel.

        Args:
            num_inputs: D.
            batch: (C,) where each output has hyperparameters of its own, (1,) where they share them.

        Raises:
            ValueError: `active_inputs` beyond D; as many fixed numbers as there are not inputs.
        """

    def __add__(self, other: Any) -> "Kernel":
        return _combined("Sum", self, other)

    def __mul__(self, other: Any) -> "Kernel":
        return _combined("Product", self, other)


COMBINED: dict[str, Any] = {}  # filled by `combined`, whose classes are kernels themselves


def _combined(name: str, one: Kernel, other: Any) -> Kernel:
    if not isinstance(other, Kernel):
        return NotImplemented
    parts: list[Any] = [
        getattr(part, "kernels", ()) if type(part) is COMBINED[name] else (part,) for part in (one, other)
    ]
    return COMBINED[name](parts[0] + parts[1])


@dataclass(frozen=True)
class RBF(Kernel):
    """exp(-r^2 / 2), r the distance in units of the lengthscales: infinitely smooth functions.

    Attributes:
        lengthscale: In units of the inputs: over what distance the function changes.
        per_input: Whether each input has a lengthscale of its own (automatic relevance determination).
        active_inputs: The columns that it looks at; None is all.
    """

    lengthscale: Value = "learned"
    per_input: bool = True
    active_inputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self, "lengthscale")

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        return _stationary(gpytorch.kernels.RBFKernel, self, num_inputs, batch)


@dataclass(frozen=True)
class Matern(Kernel):
    """Matern's kernel: rougher functions than `RBF`, once (smoothness 1.5) or twice (2.5) differentiable, or not (0.5).

    Attributes:
        smoothness: 0.5, 1.5 or 2.5.
        lengthscale: In units of the inputs.
        per_input: See `RBF`.
        active_inputs: See `RBF`.

    Reference:
        Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. (4.14) to (4.17).
    """

    smoothness: float = 2.5
    lengthscale: Value = "learned"
    per_input: bool = True
    active_inputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.smoothness not in (0.5, 1.5, 2.5):
            raise ValueError(f"`smoothness` must be 0.5, 1.5 or 2.5; got {self.smoothness!r}.")
        _check(self, "lengthscale")

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        return _stationary(gpytorch.kernels.MaternKernel, self, num_inputs, batch, nu=self.smoothness)


@dataclass(frozen=True)
class RationalQuadratic(Kernel):
    """(1 + r^2 / (2 alpha))^(-alpha): a mixture of `RBF` over lengthscales, wider for a small alpha.

    Attributes:
        lengthscale: In units of the inputs.
        alpha: How little the lengthscales vary.
        per_input: See `RBF`.
        active_inputs: See `RBF`.
    """

    lengthscale: Value = "learned"
    alpha: Value = "learned"
    per_input: bool = True
    active_inputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self, "lengthscale", "alpha")

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        built = _stationary(gpytorch.kernels.RQKernel, self, num_inputs, batch, alpha_constraint=log_positive())
        declare(built, "alpha", self.alpha, "none")
        return built


@dataclass(frozen=True)
class Periodic(Kernel):
    """exp(-2 sum_d sin^2(pi (x_d - x'_d) / period_d) / lengthscale_d): functions that repeat.

    Attributes:
        period: In units of the inputs; best given, since the marginal likelihood has a peak at every multiple.
        lengthscale: Without a unit: how much happens within a period; small is much.
        per_input: Whether each input has a period and a lengthscale of its own.
        active_inputs: See `RBF`.
    """

    period: Value = "learned"
    lengthscale: Value = "learned"
    per_input: bool = False
    active_inputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self, "period", "lengthscale")

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        built = gpytorch.kernels.PeriodicKernel(
            lengthscale_constraint=log_positive(),
            period_length_constraint=log_positive(),
            **_shape(self, num_inputs, batch),
        )
        declare(built, "lengthscale", self.lengthscale, "none")
        declare(built, "period_length", self.period, "inputs")
        return built


@dataclass(frozen=True)
class Linear(Kernel):
    """sum_d variance_d x_d x'_d: straight lines through the origin; Bayesian linear regression.

    Attributes:
        variance: Of the slopes, in units of y squared over x squared.
        per_input: Whether each input has a variance of its own.
        active_inputs: See `RBF`.
    """

    variance: Value = "learned"
    per_input: bool = False
    active_inputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _check(self, "variance")

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        built = gpytorch.kernels.LinearKernel(
            variance_constraint=log_positive(), **_shape(self, num_inputs, batch)
        )  # fmt: skip
        declare(built, "variance", self.variance, "slopes")
        return built


@dataclass(frozen=True)
class SpectralMixture(Kernel):
    """A mixture of Gaussians as spectral density: finds periods and their decays by itself, from a good start.

    Of several inputs it is the product of one mixture in each, so that a weight has the unit of y^(2 / D).
    It has its own scale: do not wrap it in `Scale`. Its hyperparameters are always learned.

    Attributes:
        num_mixtures: Gaussians in the spectrum.
        active_inputs: See `RBF`.

    Reference:
        Wilson & Adams 2013, Gaussian Process Kernels for Pattern Discovery and Extrapolation, eq. (12).
    """

    num_mixtures: int = 4
    active_inputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_count(self.num_mixtures, "num_mixtures")
        _check(self)

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        built = gpytorch.kernels.SpectralMixtureKernel(
            num_mixtures=self.num_mixtures,
            mixture_means_constraint=log_positive(),
            mixture_scales_constraint=log_positive(),
            mixture_weights_constraint=log_positive(),
            **_shape(self, num_inputs, batch),
        )
        declare(built, "mixture_weights", "learned", "factors", start=1 / self.num_mixtures)
        declare(built, "mixture_means", "learned", "rates")
        declare(built, "mixture_scales", "learned", "rates", start=SPECTRAL_WIDTH)
        with torch.no_grad():  # frequencies from slow to fast: equal ones would stay equal
            steps = torch.linspace(math.log(SLOWEST), math.log(FASTEST), self.num_mixtures)
            built.raw_mixture_means.copy_(steps[:, None, None].expand_as(built.raw_mixture_means))
        return built


def _check(kernel: Any, *values: str) -> None:
    """Refuse hyperparameters, by name, and active inputs that are none."""
    for name in values:
        check_value(getattr(kernel, name), name)
    columns = kernel.active_inputs
    if columns is not None and (not isinstance(columns, tuple) or not columns or len(set(columns)) < len(columns)):
        raise ValueError(f"`active_inputs` must be a tuple of different column numbers; got {columns!r}.")
    for column in columns or ():
        check_count(column, "active_inputs", minimum=0)


def _width(kernel: Any, num_inputs: int) -> int:
    """The inputs that a kernel looks at."""
    active = kernel.active_inputs
    if active is not None and max(active) >= num_inputs:
        raise ValueError(f"`active_inputs` must be below {num_inputs}, the number of inputs; got {active}.")
    return num_inputs if active is None else len(active)


def _shape(kernel: Any, num_inputs: int, batch: torch.Size) -> dict[str, Any]:
    """The arguments that say how many hyperparameters there are, and of which inputs."""
    width = _width(kernel, num_inputs)
    per_input = getattr(kernel, "per_input", True)
    columns = {"ard_num_dims": width} if per_input else {}  # GPyTorch's periodic kernel takes no None
    return {**columns, "batch_shape": batch, "active_dims": kernel.active_inputs}


def _stationary(kind: Any, kernel: Any, num_inputs: int, batch: torch.Size, **options: Any) -> Built:
    """A kernel of distances in units of lengthscales, which start at the spread of the inputs.

    The distance of two rows grows as sqrt(D) with the number of inputs, and the start with it.
    """
    shape = _shape(kernel, num_inputs, batch)
    built = kind(lengthscale_constraint=log_positive(), **shape, **options)
    declare(built, "lengthscale", kernel.lengthscale, "inputs", start=_width(kernel, num_inputs) ** 0.5)
    return built
