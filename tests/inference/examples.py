"""Small data sets and models with known answers, for the tests of every method."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference.ivon.newton import Newton
from bayesuq.inference.training.optimizers import SGD, Adam, Optimizer
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import isolated

T = TypeVar("T")

# Fits that are short on purpose, in tests of something else.
NO_MODE = "ignore:The weights are no mode:UserWarning"  # of Laplace
SHORT_FIT = ("ignore::bayesuq.ConvergenceWarning", NO_MODE)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def built(builder: Callable[[], T], seed: int = 0) -> T:
    """What `builder` gives, its initial weights a function of the seed alone."""
    with isolated(seed):
        return builder()


def measured(num_points: int = 48, *, num_features: int = 3, seed: int = 0) -> Dataset:
    """Real targets of a curved function."""
    x = noise(seed, num_points, num_features)
    return Dataset(x, torch.sin(x.sum(dim=1)) + 0.1 * noise(seed + 1, num_points))


def labelled(num_points: int = 48, *, num_features: int = 3, seed: int = 0) -> Dataset:
    """Three classes, ordered along a line."""
    x = noise(seed, num_points, num_features)
    return Dataset(x, 1 + (x.sum(dim=1) > 1).long() - (x.sum(dim=1) < -1).long())


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    """Copies of its parameters and buffers."""
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


@dataclass(frozen=True)
class Conjugate:
    """Bayesian linear regression y = w x + b + noise with a N(0, prior_scale^2) prior: all of it is known exactly.

    The best mean-field posterior has the exact mean, and the scales diag(precision)^(-1/2) (Bishop 2006, eq. 10.12 to
    10.15).
    """

    num_points: int
    num_features: int
    noise_scale: float
    prior_scale: float = 1.0
    bias: bool = True
    seed: int = 0
    dtype: torch.dtype = torch.float32

    @cached_property
    def data(self) -> Dataset:
        x = noise(self.seed, self.num_points, self.num_features)
        truth = self.prior_scale * noise(self.seed + 1, self.num_features + self.bias)
        return Dataset(x, self._design(x) @ truth + self.noise_scale * noise(self.seed + 2, self.num_points))

    @cached_property
    def model(self) -> BayesianNetwork:
        net = built(lambda: nn.Linear(self.num_features, 1, bias=self.bias, dtype=self.dtype), self.seed)
        return BayesianNetwork(net, priors.Normal(scale=self.prior_scale), likelihoods.Normal(scale=self.noise_scale))

    @cached_property
    def precision(self) -> Tensor:
        design = self._design(self.data.x)
        eye = torch.eye(design.shape[1], dtype=torch.float64)
        return design.T @ design / self.noise_scale**2 + eye / self.prior_scale**2

    @cached_property
    def mean(self) -> Tensor:
        return torch.linalg.solve(self.precision, self._design(self.data.x).T @ self.data.y[:, 0] / self.noise_scale**2)

    @cached_property
    def scale(self) -> Tensor:
        """Of the best mean-field posterior."""
        return self.precision.diag() ** -0.5

    @cached_property
    def log_evidence(self) -> Tensor:
        design = self._design(self.data.x)
        eye = torch.eye(self.num_points, dtype=torch.float64)
        covariance = self.prior_scale**2 * design @ design.T + self.noise_scale**2 * eye
        zero = torch.zeros(self.num_points, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zero, covariance).log_prob(self.data.y[:, 0])

    def _design(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1) if self.bias else x


def expectation(function: Callable[[Tensor], Tensor], num_dimensions: int, num_nodes: int = 60) -> Tensor:
    """E[function(eps)] over eps ~ N(0, I) by Gauss-Hermite quadrature; `function` is from (M, D) to (M,)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(num_nodes)
    grid = torch.cartesian_prod(*[torch.tensor(nodes)] * num_dimensions).reshape(-1, num_dimensions)
    shares = torch.cartesian_prod(*[torch.tensor(weights)] * num_dimensions).reshape(-1, num_dimensions).prod(dim=1)
    return (shares * function(grid)).sum() / math.tau ** (num_dimensions / 2)


@contextmanager
def recorded_warnings() -> Iterator[list[warnings.WarningMessage]]:
    """All that is warned of, whatever the filters."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield record


@contextmanager
def recorded_steps() -> Iterator[list[dict[str, list]]]:
    """The learning rates, leaves and gradients that each step of a fit hands to its optimiser."""
    steps = []

    def record(optimizer: Optimizer) -> None:
        leaves = [leaf for group in optimizer.param_groups for leaf in group["params"]]
        steps.append(
            {
                "rates": [float(group["lr"]) for group in optimizer.param_groups for _ in group["params"]],
                "leaves": [leaf.detach().clone() for leaf in leaves],
                "gradients": [leaf.grad.detach().clone() for leaf in leaves],
            }
        )

    with before_each_step(record):
        yield steps


@contextmanager
def before_each_step(look: Callable[[Optimizer], None]) -> Iterator[None]:
    """Look at every optimiser of ours before each of its steps."""

    def looking(step: Callable[[Optimizer], None]) -> Callable[[Optimizer], None]:
        def looked_at(optimizer: Optimizer) -> None:
            look(optimizer)
            step(optimizer)

        return looked_at

    with pytest.MonkeyPatch.context() as patched:
        for kind in (Adam, SGD, Newton):
            patched.setattr(kind, "step", looking(kind.step))
        yield
