"""The Gaussian process: a prior over functions times a likelihood, and the GPyTorch modules that it is built into."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gpytorch
import torch
from torch import Tensor, nn

from bayesuq.arrays import check_count
from bayesuq.models.gp.combined import INPUT_UNITS, Coregionalised, CoregionalisedKernel, Deep, DeepKernel, Scale
from bayesuq.models.gp.hyperparameters import Hyperparameter, tell
from bayesuq.models.gp.kernels import Kernel, Matern
from bayesuq.models.gp.means import ConstantMean, FixedMean, Mean, ZeroMean
from bayesuq.models.gp.units import Counted, Units, channel_moments
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal, Normal

CONSTRAINT = "_constraint."  # in the names of GPyTorch's bounds, which are no state of ours


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """f_c ~ GP(mean, kernel) for each output c, and y ~ p(y | f(x)); without data.

    Attributes:
        kernel: One of `bayesuq.models.gp`, or a gpytorch.kernels.Kernel of your own, whose hyperparameters start where
            they are; None is `Scale(Matern(2.5))` with a lengthscale for each input.
        mean: One of `bayesuq.models.gp`'s, or a gpytorch.means.Mean of your own; None is `ConstantMean` for real
            targets and `ZeroMean` for others.
        likelihood: None is `Normal` with a learned noise scale.
        num_outputs: C, for labels of which the data may not show all; None takes it from the targets.
        shares_kernel: Whether outputs share their hyperparameters, which is as many times faster; None does so for
            classes.

    Example:
        >>> from bayesuq.models import gp
        >>> gp.GaussianProcess(gp.Scale(gp.RBF()) + gp.Linear())
        GaussianProcess(Sum(kernels=(Scale(kernel=RBF(...), ...), Linear(...))), ConstantMean(), Normal(...))
    """

    kernel: Any = None
    mean: Any = None
    likelihood: Any = None
    num_outputs: int | None = None
    shares_kernel: bool | None = None

    def __post_init__(self) -> None:
        """Fill in the defaults, and refuse parts of another kind.

        Raises:
            TypeError: Parts of another kind.
            ValueError: A number of outputs below 1; scales of the noise that the inputs should bring; a fixed mean
                beside a deep kernel.
        """
        likelihood = Normal() if self.likelihood is None else self.likelihood
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"`likelihood` must be one of bayesuq.models.likelihoods; got {_kind(likelihood)}.")
        likelihood.check_density()
        if likelihood.takes_scale:
            raise ValueError(
                "The inputs of a process bring no scales of the noise. Give it likelihoods.Normal(), and the scales to "
                "the fit: gp.fit(model, data, noise_scale=scale)."
            )
        if likelihood == HeteroscedasticNormal(getattr(likelihood, "minimum_scale", 0.0)):
            likelihood = replace(likelihood, maximum_scale=None)  # by default: a process' log variance is no line
        kernel = Scale(Matern()) if self.kernel is None else self.kernel
        if not isinstance(kernel, Kernel | gpytorch.kernels.Kernel):
            raise TypeError(f"`kernel` must be one of bayesuq.models.gp or of gpytorch.kernels; got {_kind(kernel)}.")
        mean = self.mean if self.mean is not None else ConstantMean() if likelihood.has_units else ZeroMean()
        if not isinstance(mean, Mean | gpytorch.means.Mean):
            raise TypeError(f"`mean` must be one of bayesuq.models.gp's means or of gpytorch.means; got {_kind(mean)}.")
        if isinstance(mean, FixedMean) and isinstance(kernel, Deep):
            raise ValueError(
                "A FixedMean is of the inputs, and beside a deep kernel a mean sees features of its network. Fit the "
                "process to `y - mean(x)`, or to features that are taken once: see `features.take`."
            )
        if self.num_outputs is not None:
            check_count(self.num_outputs, "num_outputs")
        for name, value in {"kernel": kernel, "mean": mean, "likelihood": likelihood}.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        return f"GaussianProcess({self.kernel!r}, {self.mean!r}, {self.likelihood!r})"

    def outputs_for(self, y: Tensor) -> int:
        """C for these targets, (N, D) or (N,).

        Raises:
            ValueError: Targets of a single class.
        """
        if self.num_outputs is not None:
            return self.num_outputs
        number: int = self.likelihood.num_outputs(y)
        return number

    @property
    def shares(self) -> bool:
        """Whether outputs share their hyperparameters, the likelihood asked where nothing else was said."""
        return isinstance(self.likelihood, Categorical) if self.shares_kernel is None else self.shares_kernel

    def with_likelihood(self, likelihood: Likelihood) -> "GaussianProcess":
        """The same prior over functions under another likelihood."""
        return replace(self, likelihood=likelihood, shares_kernel=self.shares)

    def build(self, x: Tensor, num_outputs: int) -> "FunctionPrior":
        """The modules for inputs like these, in float64, where x is.

        Args:
            x: Some inputs, (N, D), for a deep kernel (N, ...).
            num_outputs: C.

        Raises:
            ValueError: Inputs that the kernel does not take.
        """
        return FunctionPrior(self, x, num_outputs).double().to(x.device)


class FunctionPrior(nn.Module):
    """f ~ GP(mean, kernel) for C outputs, with the likelihood's unknowns beside it; all of float64.

    Leading dimensions are those of outputs: C where each has a kernel of its own, 1 where one serves all.

    Attributes:
        num_outputs: C.
    """

    def __init__(self, process: GaussianProcess, x: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        width = _num_inputs(process.kernel, x)
        outputs, one = torch.Size([num_outputs]), torch.Size([1])
        if isinstance(process.kernel, Kernel):
            needs_all = not process.shares or isinstance(process.kernel, Coregionalised)
            self.kernel = process.kernel.build(width, outputs if needs_all else one)
        else:
            self.kernel = copy.deepcopy(process.kernel)
        if isinstance(self.kernel, DeepKernel):
            shape = [1, *x.shape[1:2], *[1] * (x.ndim - 2)]
            self.kernel.take(torch.zeros(shape), torch.ones(shape))
        own = isinstance(process.mean, Mean)
        self.mean = process.mean.build(width, outputs) if own else copy.deepcopy(process.mean)
        self.log_unknowns = nn.ParameterDict()
        self._register(process.likelihood.for_outputs(num_outputs))

    def _register(self, likelihood: Likelihood) -> None:
        """The likelihood's unknown parameters, as logarithms."""
        for name, unknown in likelihood.unknowns.items():
            self.log_unknowns[name] = nn.Parameter(torch.tensor(unknown.initial, dtype=torch.float64).log())
            tell(self.log_unknowns, name, Hyperparameter(unknown.prior, "noise" if name == "scale" else "none"))

    def standardise(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Let a deep kernel's network see its inputs in units of these rows, (N, ...); see `channel_moments`."""
        if isinstance(self.kernel, DeepKernel) and self.kernel.standardises:
            self.kernel.take(*channel_moments(x, weight))

    def input_units(self) -> dict[str, Tensor]:
        """What a deep kernel's network sees its inputs in, by the names that a state has them by."""
        if not isinstance(self.kernel, DeepKernel):
            return {}
        return {f"kernel.{name}": self.kernel.get_buffer(name) for name in INPUT_UNITS}

    def count(self, units: Units) -> None:
        """Hold the parameters that are no logarithms in these units from now on."""
        for _, part in self._counted():
            part.count(units)

    def natural(self, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters in units of x and y, of how they are stored now, by name, of any leading shape."""
        found = dict(stored)
        for path, part in self._counted():
            own = {name.removeprefix(path): value for name, value in stored.items() if name.startswith(path)}
            found |= {f"{path}{name}": value for name, value in part.natural(own).items()}
        return found

    def _counted(self) -> Iterator[tuple[str, Counted]]:
        """The parts that count in units, with what their parameters' names begin with."""
        for path, part in self.named_modules():
            if isinstance(part, Counted):
                yield f"{path}.", part

    def features(self, x: Tensor) -> Tensor:
        """What the kernel looks at, (N, K): the inputs themselves, but for a deep kernel."""
        return self.kernel.features(x) if isinstance(self.kernel, DeepKernel) else x

    def lazy(self, x1: Tensor, x2: Tensor | None = None) -> Any:
        """Covariances of f between features, GPyTorch's lazy (C or 1, N1, N2), in units of f squared."""
        return self._of_features(x1) if x2 is None else self._of_features(x1, x2)

    @property
    def _of_features(self) -> Any:
        """The kernel of one function at features."""
        return self.kernel.kernel if isinstance(self.kernel, DeepKernel | CoregionalisedKernel) else self.kernel

    def covariance(self, x1: Tensor, x2: Tensor | None = None) -> Tensor:
        """The same as one tensor; of coregionalised outputs, rows of all outputs together, (1, C N1, C N2)."""
        dense = self.lazy(x1, x2).to_dense()
        dense = dense if dense.ndim == 3 else dense.unsqueeze(0)
        if isinstance(self.kernel, CoregionalisedKernel):
            return torch.kron(self.kernel.output_covariance(), dense[0]).unsqueeze(0)
        return dense

    def variance(self, x: Tensor) -> Tensor:
        """Prior variances of f at features, (C or 1, N); of coregionalised outputs (1, C N)."""
        diagonal = torch.atleast_2d(self._of_features(x, diag=True))
        if isinstance(self.kernel, CoregionalisedKernel):
            return torch.kron(self.kernel.output_covariance().diagonal(), diagonal[0]).unsqueeze(0)
        return diagonal

    def mean_at(self, x: Tensor) -> Tensor:
        """Prior means of f at features, (C, N)."""
        return self.mean(x).expand(self.num_outputs, len(x))

    def check(self, x: Tensor) -> None:
        """Hold mean and kernel, which may be GPyTorch's own, against some rows (N, ...).

        Raises:
            ValueError: They do not take such rows, or give numbers of another shape.
        """
        for name, part, of_rows in (("mean", self.mean, self.mean), ("kernel", self.kernel, self.lazy)):
            try:
                with torch.no_grad():
                    shape = tuple(of_rows(self.features(x)).shape)
            except (RuntimeError, IndexError) as error:
                raise ValueError(f"The {name} does not take `x` of shape {tuple(x.shape)}: {error}") from error
            wanted = (self.num_outputs, *[len(x)] * (1 if name == "mean" else 2))
            if shape not in (wanted, (1, *wanted[1:]), wanted[1:]):
                raise ValueError(
                    f"The {name} {type(part).__name__} must give numbers of shape {wanted} at {len(x)} rows, or the "
                    f"same to all of {self.num_outputs} outputs; got {shape}. Outputs that depend on each other are "
                    "of bayesuq.models.gp.Coregionalised."
                )

    def unknowns(self) -> dict[str, Tensor]:
        """The likelihood's unknowns on their own support, () or (C,)."""
        return {name: value.exp() for name, value in self.log_unknowns.items()}

    def state(self) -> dict[str, Tensor]:
        """Copies of all parameters, in units of x and y, and of a network's buffers, by name."""
        kept = {name: v.detach().clone() for name, v in self.state_dict().items() if CONSTRAINT not in name}
        return self.natural(kept)

    def load(self, state: dict[str, Tensor]) -> "FunctionPrior":
        """Take over what `state` gave, strictly; a deep kernel of an earlier version saw its inputs as they are.

        Raises:
            ValueError: Other names or shapes than this process has.
        """
        for _, part in self._counted():
            part.settle()
        own = self.state()
        state = self.input_units() | state
        differing = sorted(
            name for name in own.keys() | state.keys()
            if name not in own or name not in state or own[name].shape != state[name].shape
        )  # fmt: skip
        if differing:
            raise ValueError(
                f"The model is not the file's: {len(differing)} hyperparameters differ, the first is {differing[0]!r}."
            )
        self.load_state_dict(state, strict=False)
        return self


def _num_inputs(kernel: Any, x: Tensor) -> int:
    """What the kernel looks at has this many columns."""
    if isinstance(kernel, Deep):
        return kernel.num_features(x)
    if x.ndim != 2:
        raise ValueError(
            f"The kernel does not take `x` of shape {tuple(x.shape)}: rows must be vectors. Flatten them, or put a "
            "network before the kernel: Deep(net, kernel)."
        )
    return x.shape[1]


def _kind(value: Any) -> str:
    return type(value).__name__
