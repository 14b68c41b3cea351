"""Kernels made of kernels: scaled, added, multiplied, behind a network, and over several correlated outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor, nn

from bayesuq.arrays import check_count
from bayesuq.models.bnn import check_network, copied
from bayesuq.models.gp.hyperparameters import Hyperparameter, Value, check_value, declare, log_positive, tell
from bayesuq.models.gp.kernels import COMBINED, Built, Kernel
from bayesuq.models.gp.units import Counted, Units, unit_buffer
from bayesuq.models.spectral import with_exact_norms


@dataclass(frozen=True)
class Scale(Kernel):
    """variance * k(x, x').

    Attributes:
        kernel: k.
        variance: In units of y squared.
    """

    kernel: Kernel
    variance: Value = "learned"

    def __post_init__(self) -> None:
        _check_kernels(self.kernel)
        check_value(self.variance, "variance")

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        inner = self.kernel.build(num_inputs, batch)
        built = gpytorch.kernels.ScaleKernel(inner, outputscale_constraint=log_positive(), batch_shape=batch)
        declare(built, "outputscale", self.variance, "targets")
        return built


@dataclass(frozen=True)
class Sum(Kernel):
    """k_1(x, x') + k_2(x, x') + ...: functions that are sums.

    Attributes:
        kernels: The parts, at least one.
    """

    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        _check_kernels(*self.kernels)

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        return gpytorch.kernels.AdditiveKernel(*(kernel.build(num_inputs, batch) for kernel in self.kernels))


@dataclass(frozen=True)
class Product(Kernel):
    """k_1(x, x') k_2(x, x') ...: alike only where all of them say so.

    Attributes:
        kernels: The factors, at least one.
    """

    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        _check_kernels(*self.kernels)

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`."""
        return gpytorch.kernels.ProductKernel(*(kernel.build(num_inputs, batch) for kernel in self.kernels))


COMBINED.update(Sum=Sum, Product=Product)


SAME = 1e-3  # relative, of features of two passes: rounding
INPUT_UNITS = ("input_location", "input_spread")  # buffers of a deep kernel, which earlier versions had not


@dataclass(frozen=True, eq=False)
class Deep(Kernel):
    """k(g(x), g(x')) with a network g: a kernel on features that are learned with its hyperparameters.

    The network's weights are point values; with many of them and few rows the marginal likelihood overfits as a
    likelihood does. Normalisation layers stay in evaluation mode, what drops is the identity, and a weight under a
    spectral norm is divided by its largest singular value at each step.

    Attributes:
        net: Maps inputs (N, ...) to features (N, K); it stays as it was.
        kernel: On the features.
        standardises: Whether the network sees each column, or channel of images, of its inputs less the mean of the
            rows fitted to, over their standard deviation: then neither their unit nor their origin matters. False
            hands the inputs on as they are, as a pretrained network expects them.

    Reference:
        Wilson et al. 2016, Deep Kernel Learning.
    """

    net: nn.Module
    kernel: Kernel
    standardises: bool = True

    def __post_init__(self) -> None:
        check_network(self.net)
        _check_kernels(self.kernel)

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`; `num_inputs` counts the features."""
        net = with_exact_norms(copied(self.net).double().eval())
        return DeepKernel(net, self.kernel.build(num_inputs, batch), standardises=self.standardises)

    def num_features(self, x: Tensor) -> int:
        """K at these inputs, (N, ...).

        Raises:
            ValueError: The network does not take them, gives something else than (N, K), or draws in evaluation mode.
        """
        with torch.no_grad():
            net = copied(self.net).to(x.device, x.dtype).eval()
            try:
                features, again = net(x[:2]), net(x[:2])
            except (RuntimeError, IndexError) as error:
                raise ValueError(f"The network does not take `x` of shape {tuple(x.shape)}: {error}") from error
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(x[:2]):
            raise ValueError("A deep kernel's network must map x (N, ...) to features (N, K).")
        if not torch.allclose(features, again, SAME, SAME, equal_nan=True):
            raise ValueError(
                "A deep kernel's network must give the same features for the same inputs in evaluation mode; it draws "
                "random numbers there too. Draw where `self.training` only."
            )
        return features.shape[1]


class DeepKernel(gpytorch.kernels.Kernel):
    """GPyTorch's kernel of features; whoever evaluates it passes the features, which it makes by `features`.

    Attributes:
        standardises: See `Deep`.
    """

    input_location: Tensor
    input_spread: Tensor

    def __init__(self, net: nn.Module, kernel: Built, *, standardises: bool) -> None:
        super().__init__(batch_shape=kernel.batch_shape)
        self.net, self.kernel, self.standardises = net, kernel, standardises
        self.take(torch.zeros(()), torch.ones(()))

    def take(self, location: Tensor, spread: Tensor) -> None:
        """Show the network (x - location) / spread from now on."""
        self.register_buffer(INPUT_UNITS[0], location)
        self.register_buffer(INPUT_UNITS[1], spread)

    def features(self, x: Tensor) -> Tensor:
        """g((x - location) / spread), (N, K)."""
        return self.net((x - self.input_location) / self.input_spread)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Any:
        """The kernel of features, as GPyTorch calls it."""
        return self.kernel(x1, x2, diag=diag, **params)


@dataclass(frozen=True)
class Coregionalised(Kernel):
    """cov(f_c(x), f_d(x')) = B_cd k(x, x'): outputs that are correlated, of one kernel.

    B = W W^T + diag v, learned, with W of `rank` columns. For exact inference: rows count C-fold, O((N C)^3) time.

    Attributes:
        kernel: k, without a scale of its own: B has it.
        rank: Columns of W.

    Reference:
        Bonilla, Chai & Williams 2008, Multi-task Gaussian Process Prediction.
    """

    kernel: Kernel
    rank: int = 1

    def __post_init__(self) -> None:
        _check_kernels(self.kernel)
        check_count(self.rank, "rank")

    def build(self, num_inputs: int, batch: torch.Size) -> Built:
        """See `Kernel.build`; here `batch` has all C outputs, which B needs to know."""
        return CoregionalisedKernel(self.kernel.build(num_inputs, torch.Size([1])), batch[0], self.rank)


class CoregionalisedKernel(gpytorch.kernels.Kernel, Counted):
    """The kernel of rows, beside the covariance of outputs.

    Each output's row of W is counted in its targets' standard deviation.
    """

    deviation: Tensor

    def __init__(self, kernel: Built, num_outputs: int, rank: int) -> None:
        super().__init__(batch_shape=torch.Size([1]))
        self.kernel = kernel
        self.outputs = gpytorch.kernels.IndexKernel(
            num_tasks=num_outputs, rank=rank, var_constraint=log_positive(), batch_shape=torch.Size([])
        )
        with torch.no_grad():  # no random start: a rise in each output alike, and as much of its own
            self.outputs.covar_factor.copy_(torch.linspace(0.5, 1.0, num_outputs)[:, None] ** torch.arange(1, rank + 1))
            self.outputs.raw_var.fill_(-0.7)
        unit_buffer(self, "deviation", num_outputs)

    def count(self, units: Units) -> None:
        """See `Counted.count`."""
        self.deviation = units.deviation
        tell(self.outputs, "raw_var", Hyperparameter(None, "targets"))

    def natural(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `Counted.natural`."""
        return {"outputs.covar_factor": self.deviation.unsqueeze(1) * stored["outputs.covar_factor"]}

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: Any) -> Any:
        """The kernel of rows, as GPyTorch calls it."""
        return self.kernel(x1, x2, diag=diag, **params)

    def output_covariance(self) -> Tensor:
        """B, (C, C), in units of y squared."""
        factor = self.deviation.unsqueeze(1) * self.outputs.covar_factor
        return factor @ factor.mT + torch.diag_embed(self.outputs.var)


def _check_kernels(*kernels: Any) -> None:
    for kernel in kernels:
        if isinstance(kernel, Deep | Coregionalised):
            name = type(kernel).__name__
            raise ValueError(f"{name} must stand outermost: {name}(..., Scale(RBF()) + ...), and not within a kernel.")
    if not kernels or not all(isinstance(kernel, Kernel) for kernel in kernels):
        kinds = ", ".join(type(kernel).__name__ for kernel in kernels) or "none"
        raise TypeError(f"A kernel is made of kernels of bayesuq.models.gp; got {kinds}.")
