"""Energies with known laws, and errors of means over chains, for the tests of samplers."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tests.inference.examples import noise

NUM_BATCHES = 20  # of consecutive draws of a chain, long enough to be nearly independent


class RowsOfOne:
    """`at_rows` by `at`, which a test target need not vectorise."""

    def at_rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        values, gradients = zip(*[self.at(position) for position in positions], strict=True)
        return torch.tensor(values, dtype=torch.float64), torch.stack(gradients)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """N(mean, covariance)."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def correlated(cls, num_dimensions: int = 4, seed: int = 0) -> "Gaussian":
        factor = noise(seed, num_dimensions, num_dimensions)
        covariance = factor @ factor.T + 0.3 * torch.eye(num_dimensions, dtype=torch.float64)
        return cls(noise(seed + 1, num_dimensions), covariance)

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        gradient = self.precision @ (position - self.mean)
        return float(0.5 * gradient.dot(position - self.mean)), gradient

    def at_rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        gradients = (positions - self.mean) @ self.precision
        return 0.5 * (gradients * (positions - self.mean)).sum(dim=1), gradients

    @cached_property
    def precision(self) -> Tensor:
        return torch.linalg.inv(self.covariance)

    def draws(self, count: int, seed: int) -> Tensor:
        return self.mean + noise(seed, count, len(self.mean)) @ torch.linalg.cholesky(self.covariance).T


class Banana(RowsOfOne):
    """u ~ N(0, 1), v given u ~ N(u^2, 0.5^2): curved, and easily drawn from exactly."""

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        u, v = position.tolist()
        gap = (v - u * u) / 0.25
        gradient = torch.tensor([u - 2 * u * gap, gap], dtype=torch.float64)
        return 0.5 * u * u + 0.125 * gap * gap, gradient

    def draws(self, count: int, seed: int) -> Tensor:
        white = noise(seed, count, 2)
        return torch.stack([white[:, 0], white[:, 0] ** 2 + 0.5 * white[:, 1]], dim=1)


class Quartic(RowsOfOne):
    """U = u^4: a leapfrog step of size 1 explodes far out."""

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        return float((position**4).sum()), 4 * position**3


def standard_errors(values: Tensor) -> Tensor:
    """Of the mean over chains and draws, by means of batches; `values` (C, D, ...) gives (...)."""
    batches = torch.stack([part.mean(dim=1) for part in values.tensor_split(NUM_BATCHES, dim=1)], dim=1).flatten(0, 1)
    return batches.std(dim=0) / math.sqrt(len(batches))


def distances(values: Tensor, truth: Tensor) -> Tensor:
    """How many standard errors the mean over chains and draws lies from the truth."""
    return (values.flatten(0, 1).mean(dim=0) - truth).abs() / standard_errors(values)


def worst_moment(draws: Tensor, mean: Tensor, covariance: Tensor) -> float:
    """The largest distance, in standard errors, of any first or second central moment of draws (C, D, P)."""
    centred = draws - mean
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    return max(float(distances(draws, mean).max()), float(distances(products, covariance).max()))
