"""Units and origins of x and y, and the Gaussian processes whose answers must not depend on them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.models import gp, likelihoods, networks, priors
from tests.inference.examples import built, noise


@dataclass(frozen=True)
class Scaling:
    """The same data in other units: y -> of_y y + shift_y, x -> of_x x + shift_x."""

    of_y: float = 1.0
    shift_y: float = 0.0
    of_x: float = 1.0
    shift_x: float = 0.0

    def x(self, values: Tensor) -> Tensor:
        """Inputs in these units."""
        return self.of_x * values + self.shift_x

    def y(self, values: Tensor) -> Tensor:
        """Real targets in these units."""
        return self.of_y * values + self.shift_y


# Shifts are moderate in units of the scale: a shift of 1e6 scales leaves float64 with ten digits of the data.
SCALINGS = {
    "tiny y, huge x": Scaling(1e-9, 3e-9, 1e9, -2e9),
    "huge y, tiny x": Scaling(1e9, -1e12, 1e-9, 5e-9),
}


@dataclass(frozen=True)
class ProcessCase:
    """A process and how it is fitted.

    Attributes:
        model: Builds it.
        options: Of `gp.fit`.
        labels: Whether its targets are labels, from `classes`.
        columns: Of real targets.
        has_origin: Whether it says something about the origin of y, so that only the scale is free.
    """

    model: Callable[[], gp.GaussianProcess]
    options: dict[str, Any] = field(default_factory=dict)
    classes: int = 0
    columns: int = 1
    has_origin: bool = False

    def data(self, num_points: int = 16) -> Dataset:
        """Rows of two inputs, in units of about 1."""
        x = noise(0, num_points, 2)
        f = torch.sin(2 * x.sum(dim=1)) + 0.5 * x[:, 0] + 0.1 * noise(2, num_points)
        if self.classes:
            return Dataset(x, (f > 0).long() + (f > 0.7).long() * (self.classes > 2))
        return Dataset(x, torch.stack([f, 0.5 * f + 0.2 * noise(3, num_points)], dim=1)[:, : self.columns])

    @property
    def counted(self) -> int:
        """Numbers that the history's loss is a mean over: rows by minibatches, else targets."""
        is_by_rows = bool(self.classes) or self.options.get("approximation") == "sparse"
        return len(self.data()) if is_by_rows else self.data().y.numel()

    def scaled(self, scaling: Scaling) -> Scaling:
        """The part of a scaling that this process is free of."""
        of_y, shift_y = (1.0, 0.0) if self.classes else (scaling.of_y, scaling.shift_y)
        return Scaling(of_y, 0.0 if self.has_origin else shift_y, scaling.of_x, scaling.shift_x)


def _network() -> torch.nn.Module:
    return built(lambda: networks.mlp(2, (5,), 2, activation="tanh"))


KERNEL = gp.Scale(gp.RBF())
MEANS: dict[str, gp.Mean] = {"zero": gp.ZeroMean(), "constant": gp.ConstantMean(), "linear": gp.LinearMean()}
SHORT = {"num_inducing": 6, "num_epochs": 3, "batch_size": 8, "learning_rate": 0.05, "progress": False}
APPROXIMATIONS: dict[str, dict[str, Any]] = {
    "exact": {"num_restarts": 2, "max_iterations": 8},
    "collapsed": {"approximation": "collapsed", "num_inducing": 6, "num_restarts": 1, "max_iterations": 8},
    "sparse": {"approximation": "sparse", **SHORT},
    "sampled": {"hyperparameters": "sample", "num_samples": 3, "num_warmup": 3, "num_chains": 1, "progress": False},
}


def _of_real(kernel: Callable[[], Any], mean: gp.Mean) -> Callable[[], gp.GaussianProcess]:
    return lambda: gp.GaussianProcess(kernel(), mean)


def _of(**parts: Any) -> Callable[[], gp.GaussianProcess]:
    return lambda: gp.GaussianProcess(**{"kernel": KERNEL, **parts})


PROCESSES = {
    f"{approximation}, {mean} mean": ProcessCase(
        _of_real(lambda: KERNEL, MEANS[mean]), options, has_origin=mean == "zero"
    )
    for approximation, options in APPROXIMATIONS.items()
    for mean in MEANS
}
PROCESSES |= {
    f"deep {approximation}": ProcessCase(
        _of_real(lambda: gp.Deep(_network(), KERNEL), gp.ConstantMean()),
        {**APPROXIMATIONS[approximation], **options},
    )
    for approximation, options in {"exact": {"num_restarts": 1, "max_iterations": 10}, "sparse": {}}.items()
}
PROCESSES |= {
    "deep, linear mean": ProcessCase(
        _of_real(lambda: gp.Deep(_network(), KERNEL), gp.LinearMean()), APPROXIMATIONS["sparse"]
    ),
    "coregionalised": ProcessCase(
        _of(kernel=gp.Coregionalised(gp.RBF())), {"num_restarts": 2, "max_iterations": 15}, columns=2
    ),
    "coregionalised, sampled": ProcessCase(
        _of(kernel=gp.Coregionalised(gp.Matern())), APPROXIMATIONS["sampled"], columns=2
    ),
    "two outputs": ProcessCase(_of(), APPROXIMATIONS["collapsed"], columns=2),
    "a sum of kernels": ProcessCase(
        _of(kernel=gp.Scale(gp.RationalQuadratic()) + gp.Scale(gp.Periodic() * gp.RBF())),
        {"num_restarts": 1, "max_iterations": 15},
    ),
    "a spectral mixture": ProcessCase(_of(kernel=gp.SpectralMixture(2)), {"num_restarts": 1, "max_iterations": 15}),
    "noise with a second function": ProcessCase(
        _of(likelihood=likelihoods.HeteroscedasticNormal()), APPROXIMATIONS["sparse"]
    ),
    "Student's noise": ProcessCase(_of(likelihood=likelihoods.StudentT()), APPROXIMATIONS["sparse"]),
    "signs": ProcessCase(_of(likelihood=likelihoods.Bernoulli(), mean=gp.LinearMean()), SHORT, classes=2),
    "classes": ProcessCase(_of(likelihood=likelihoods.Categorical()), SHORT, classes=3),
    "deep classes": ProcessCase(
        lambda: gp.GaussianProcess(gp.Deep(_network(), KERNEL), likelihood=likelihoods.Categorical()), SHORT, classes=3
    ),
    "Dirichlet": ProcessCase(
        _of(likelihood=likelihoods.Categorical()), {"approximation": "dirichlet", "num_restarts": 1}, classes=3
    ),
    "a prior on what has no unit": ProcessCase(
        _of(kernel=gp.Scale(gp.RationalQuadratic(alpha=priors.LogNormal(0.0, 0.5)))), {"num_restarts": 1}
    ),
}
