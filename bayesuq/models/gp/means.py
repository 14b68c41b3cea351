"""Means m(x) of a Gaussian process: what it falls back to far from data."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch

from bayesuq.models.gp.hyperparameters import Hyperparameter, tell


class Mean(ABC):
    """A mean function, without data."""

    @abstractmethod
    def build(self, num_inputs: int, batch: torch.Size) -> Any:
        """GPyTorch's mean: D inputs, and (C,) outputs, each with a mean of its own."""


@dataclass(frozen=True)
class ZeroMean(Mean):
    """m(x) = 0."""

    def build(self, num_inputs: int, batch: torch.Size) -> Any:  # noqa: ARG002
        """See `Mean.build`."""
        return gpytorch.means.ZeroMean(batch_shape=batch)


@dataclass(frozen=True)
class ConstantMean(Mean):
    """m(x) = c, learned, from the mean of the targets."""

    def build(self, num_inputs: int, batch: torch.Size) -> Any:  # noqa: ARG002
        """See `Mean.build`."""
        built = gpytorch.means.ConstantMean(batch_shape=batch)
        tell(built, "raw_constant", Hyperparameter(None, "location"))
        return built


@dataclass(frozen=True)
class LinearMean(Mean):
    """m(x) = w^T x + c, learned; rows must be vectors."""

    def build(self, num_inputs: int, batch: torch.Size) -> Any:
        """See `Mean.build`."""
        built = gpytorch.means.LinearMean(num_inputs, batch_shape=batch)
        torch.nn.init.zeros_(built.weights)  # GPyTorch's start is random
        torch.nn.init.zeros_(built.bias)
        tell(built, "weights", Hyperparameter(None, "gradients"))
        tell(built, "bias", Hyperparameter(None, "location"))
        return built
