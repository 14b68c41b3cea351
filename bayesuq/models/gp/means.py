"""Means m(x) of a Gaussian process: what it falls back to far from data."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor, nn

from bayesuq.models.bnn import check_network, copied
from bayesuq.models.gp.hyperparameters import Hyperparameter, tell
from bayesuq.models.gp.units import Counted, Units, unit_buffer


class Mean(ABC):
    """A mean function, without data."""

    @abstractmethod
    def build(self, num_inputs: int, batch: torch.Size) -> Any:
        """A module from x (N, D) to (C, N): D inputs, and (C,) outputs, each with a mean of its own."""


@dataclass(frozen=True)
class ZeroMean(Mean):
    """m(x) = 0: a statement about the origin of y, so that targets of another origin are other data."""

    def build(self, num_inputs: int, batch: torch.Size) -> Any:  # noqa: ARG002
        """See `Mean.build`."""
        return gpytorch.means.ZeroMean(batch_shape=batch)


@dataclass(frozen=True)
class ConstantMean(Mean):
    """m(x) = c, learned, from the mean of the targets, in units of their standard deviation."""

    def build(self, num_inputs: int, batch: torch.Size) -> Any:  # noqa: ARG002
        """See `Mean.build`."""
        return BuiltConstant(batch)


@dataclass(frozen=True)
class LinearMean(Mean):
    """m(x) = w^T x + c, learned; rows must be vectors.

    A fit counts it in standard deviations of the targets and of the inputs about their mean, so that neither unit nor
    origin matters.
    """

    def build(self, num_inputs: int, batch: torch.Size) -> Any:
        """See `Mean.build`."""
        return BuiltLine(num_inputs, batch)


@dataclass(frozen=True, eq=False)
class FixedMean(Mean):
    """m(x) = net(x), a function that is known and stays as it is: the process is what the data say beside it.

    With a trained network, or with its last layer where x are its features, the mean prediction of f begins at the
    network's, and the process adds how unsure it is: small at the data, and the kernel's scale far from them.

    Attributes:
        net: From inputs (N, ...) to outputs (N, C), such as the logits of a likelihood of labels, or columns of y in
            its units; it stays as it was.

    Reference:
        Ortega, Rodriguez Santana & Hernandez-Lobato 2024, Variational Linearized Laplace Approximation for Bayesian
        Deep Learning, and Deng, Zhou & Zhu 2022, for processes around a trained network.

    Example:
        >>> from bayesuq.models.gp.kernels import RBF
        >>> from bayesuq.models.gp.process import GaussianProcess
        >>> GaussianProcess(kernel=RBF(), mean=FixedMean(nn.Linear(3, 1))).mean
        FixedMean(net=Linear(in_features=3, out_features=1, bias=True))
    """

    net: nn.Module

    def __post_init__(self) -> None:
        check_network(self.net)

    def build(self, num_inputs: int, batch: torch.Size) -> Any:  # noqa: ARG002
        """See `Mean.build`."""
        return BuiltFixed(self.net, batch[0])


class BuiltFixed(nn.Module):
    """A network's outputs; no parameter of the process, so that no fit moves it and no file holds it."""

    def __init__(self, net: nn.Module, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self._held = (copied(net).double().eval().requires_grad_(False),)  # in a tuple: not a part of this module

    def forward(self, x: Tensor) -> Tensor:
        """(C, N).

        Raises:
            ValueError: The network gives numbers of another shape than (N, C).
        """
        f: Tensor = self._held[0].to(x.device)(x.double())
        if f.numel() != len(x) * self.num_outputs or len(f) != len(x):
            raise ValueError(
                f"The network of a FixedMean must give ({len(x)}, {self.num_outputs}) numbers here, one for each "
                f"function of the process; got {tuple(f.shape)}."
            )
        return f.reshape(len(x), -1).T


class BuiltConstant(Counted):
    """m(x) = location + deviation c."""

    location: Tensor
    deviation: Tensor

    def __init__(self, batch: torch.Size) -> None:
        super().__init__()
        self.raw_constant = nn.Parameter(torch.zeros(batch))
        unit_buffer(self, "location", batch[0])
        unit_buffer(self, "deviation", batch[0])
        tell(self, "raw_constant", Hyperparameter(None, "location"))

    @property
    def constant(self) -> Tensor:
        """In units of y, (C,)."""
        return self.location + self.deviation * self.raw_constant

    def forward(self, x: Tensor) -> Tensor:
        """(C, N)."""
        return self.constant.unsqueeze(1).expand(-1, len(x))

    def count(self, units: Units) -> None:
        """See `Counted.count`."""
        self.location, self.deviation = units.location, units.deviation

    def natural(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Counted.natural`."""
        return {"raw_constant": self.location + self.deviation * stored["raw_constant"]}


class BuiltLine(Counted):
    """m(x) = location + deviation (w^T (x - centre) / inputs + c)."""

    location: Tensor
    deviation: Tensor
    centre: Tensor
    inputs: Tensor

    def __init__(self, num_inputs: int, batch: torch.Size) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(*batch, num_inputs, 1))
        self.bias = nn.Parameter(torch.zeros(*batch, 1))
        for name, size in (("location", batch[0]), ("deviation", batch[0]), ("centre", num_inputs)):
            unit_buffer(self, name, size)
        unit_buffer(self, "inputs", num_inputs)
        tell(self, "weights", Hyperparameter(None, "gradients"))
        tell(self, "bias", Hyperparameter(None, "location"))

    def forward(self, x: Tensor) -> Tensor:
        """(C, N)."""
        line = (((x - self.centre) / self.inputs) @ self.weights).squeeze(-1) + self.bias
        return self.location.unsqueeze(1) + self.deviation.unsqueeze(1) * line

    def count(self, units: Units) -> None:
        """See `Counted.count`."""
        self.location, self.deviation = units.location, units.deviation
        self.centre, self.inputs = units.centre, units.inputs

    def natural(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Counted.natural`: m(x) = weights^T x + bias."""
        weights = stored["weights"] * self.deviation[:, None, None] / self.inputs[:, None]
        level = self.location[:, None] + self.deviation[:, None] * stored["bias"]
        return {"weights": weights, "bias": level - (weights.squeeze(-1) @ self.centre).unsqueeze(-1)}
