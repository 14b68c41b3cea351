"""Estimators of the expected log-likelihood that give every row a draw of the weights of its own.

A draw that all rows of a minibatch share makes their gradients noisy in the same way, so that more rows help little.
Here the noise enters a layer's outputs instead. The layer computes with the means m, a twin of it with what replaces
the scales s:

    local     f_n = m x_n + sqrt(s^2 x_n^2) * eps_n,   eps_n ~ N(0, I)
    flipout   f_n = m x_n + b_n * ((s * eps)(a_n * x_n)),   a_n, b_n random signs

The first is the law of a linear layer's outputs exactly, and draws no weights at all; but a row that meets a weight
twice, at two positions or in two uses of a layer, would meet two draws of it. The second is one draw eps for all rows,
turned into another, (s * eps) * b_n a_n^T, by a row's own signs: the same at all positions and in all uses of a layer,
and uncorrelated between rows. Both are for training only; what has no such layer (norms, a noise scale) is drawn for
all rows at once.

References:
    Kingma, Salimans and Welling 2015, Variational Dropout and the Local Reparameterization Trick, eq. (6).
    Wen et al. 2018, Flipout: Efficient Pseudo-Independent Weight Perturbations on Mini-Batches, eq. (4).
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bayesuq.arrays import check_one_of
from bayesuq.inference.joint.network import FlatVector, TrainingNetwork
from bayesuq.models.bnn import LIKELIHOOD
from bayesuq.models.layers import is_changed, learns_statistics

Estimator = Literal["weights", "local", "flipout"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ActivationNoise(ABC):
    """Noise in the outputs of some layers of a training network, by twins of them; it lives in hooks on its modules.

    Attributes:
        layers: The layers with noise, by path.
        twin: The numbers of their twins, laid out as the guide.
        shared: 1 for the entries drawn for all rows at once, else 0, (R,); None where there are none.
    """

    option: ClassVar[str]
    kinds: ClassVar[tuple[type[nn.Module], ...]]

    def __init__(self, network: TrainingNetwork) -> None:
        """Take over the layers.

        Raises:
            ValueError: A network whose rows would not be independent, or would meet a weight twice.
        """
        self.network, vector = network, network.vectors["random"]
        self.layers = {
            path: module
            for path, module in network.training.named_modules()
            if self._takes(module) and _own(vector, module)
        }
        _check_modules(network, self.option)
        own = {name for module in self.layers.values() for name in _own(vector, module)}
        self.check_others([n for n in vector.leaves if n not in own and not n.startswith(LIKELIHOOD)])
        self.twin = FlatVector(vector.layout, torch.zeros_like(vector.values))
        mask = torch.ones_like(vector.values)
        for name in own:
            mask[vector.layout.slices()[name]] = 0.0
        self.shared = mask if bool(mask.any()) else None
        self.memory: dict[str, Any] = {}  # what the pass has seen, by layer
        self.num_rows, self.is_checked = 0, False

    @abstractmethod
    def check_others(self, names: list[str]) -> None:
        """Refuse random parameters outside of the layers, or not."""

    @abstractmethod
    def fill(self, scale: Tensor, eps: Tensor, noise: torch.Generator) -> None:
        """Put a new draw into the twins."""

    @abstractmethod
    def see(self, path: str, x: Tensor) -> None:
        """Refuse a use of a layer, or not."""

    @abstractmethod
    def perturb(self, path: str, twin: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """A layer's output with noise."""

    @abstractmethod
    def add_scale_gradient(self, total: Tensor) -> None:
        """Add what the twins' gradients are along the log scales, (R,), in place."""

    def draw(self, x: Tensor, loc: Tensor, scale: Tensor, eps: Tensor, noise: torch.Generator) -> None:
        """Prepare a pass over the rows of `x`: eps is the noise of the entries drawn for all rows, 0 at the others.

        Raises:
            ValueError: The first pass shows a weight that acts outside of its layer, or meets a row twice.
        """
        self.num_rows, self.noise = len(x), noise
        values = self.network.vectors["random"].values
        if not self.is_checked:
            self.network.prepare_once(x)  # which runs the network on a few rows: before its layers are watched
            for path, module in self.layers.items():
                module.register_forward_hook(self._hook(path, self._twin_of(module)), with_kwargs=True)
            self._check_uses(x, values)
        self.memory.clear()
        if self.shared is None:
            values.copy_(loc)
        else:
            torch.addcmul(loc, scale, eps.normal_(generator=noise).mul_(self.shared), out=values)
        self.fill(scale, eps, noise)

    def add_gradient(self, gradient: Tensor, eps: Tensor, scale: Tensor, total: Tensor) -> None:
        """Add the gradient along the log scales to `total`, in place; `gradient` is that along the draw."""
        self.add_scale_gradient(total)
        if self.shared is not None:
            total.addcmul_(gradient.mul(eps), scale * self.shared)

    def _takes(self, module: nn.Module) -> bool:
        if module._modules or is_changed(module):  # which compute its weights from others, or its output from more
            return False
        return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in self.kinds)

    def _twin_of(self, module: nn.Module) -> nn.Module:
        """The layer on the twin's numbers, with zeros for what is not random in it."""
        twin = copy.deepcopy(module)
        vector, parameters = self.network.vectors["random"], dict(module.named_parameters(recurse=False))
        names = {id(leaf): name for name, leaf in vector.leaves.items()}
        for attribute, parameter in parameters.items():
            if id(parameter) in names:
                setattr(twin, attribute, self.twin.leaves[names[id(parameter)]])
            else:
                setattr(twin, attribute, nn.Parameter(torch.zeros_like(parameter), requires_grad=False))
        return twin

    def _hook(self, path: str, twin: nn.Module) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor) -> Tensor:
            x = args[0] if args else kwargs["input"]
            if len(x) != self.num_rows:
                raise ValueError(
                    f"{self.option} needs the batch's rows as the first dimension of every layer's input; the layer "
                    f"`{path}` got {len(x)} for {self.num_rows} rows. Use estimator='weights'."
                )
            self.see(path, x)
            return self.perturb(path, twin, x, output) if self.is_checked else torch.zeros_like(output)

        return hook

    def _check_uses(self, x: Tensor, values: Tensor) -> None:
        """Run once with the layers' weights unknown and their outputs known: nothing unknown may come out."""
        values.fill_(math.nan)
        if self.shared is not None:
            values.masked_fill_(self.shared == 1, 0.0)
        self.memory.clear()
        with torch.no_grad():
            unknown = bool(self.network.run(x).isnan().any())
        if unknown:
            raise ValueError(
                f"{self.option} needs weights that act through their own layer alone; some act elsewhere, too. Use "
                "estimator='weights'."
            )
        self.is_checked = True


class LocalReparameterisation(ActivationNoise):
    """A normal draw of every output of a linear layer, exact where a row meets it once; twins hold the variances."""

    option = "estimator='local'"
    kinds = (nn.Linear,)

    def check_others(self, names: list[str]) -> None:
        """Refuse all.

        Raises:
            ValueError: There are some.
        """
        if names:
            raise ValueError(
                f"{self.option} is exact for linear layers alone; {names[0]} is not a parameter of one. Use "
                "estimator='flipout'."
            )

    def fill(self, scale: Tensor, eps: Tensor, noise: torch.Generator) -> None:  # noqa: ARG002
        """Their variances."""
        torch.mul(scale, scale, out=self.twin.values)

    def see(self, path: str, x: Tensor) -> None:
        """Refuse a second use, and positions.

        Raises:
            ValueError: A row meets the weights twice.
        """
        if path in self.memory or x.ndim != 2:
            what = "is used twice" if path in self.memory else f"got inputs of shape {tuple(x.shape)}"
            raise ValueError(
                f"{self.option} needs layers that a row meets once, on inputs (N, D); `{path}` {what}. Use "
                "estimator='flipout'."
            )
        self.memory[path] = True

    def perturb(self, path: str, twin: nn.Module, x: Tensor, output: Tensor) -> Tensor:  # noqa: ARG002
        """Output + sqrt(variance) eps."""
        # A row of zeros has no variance: the root's slope is infinite there, and what it belongs to is not.
        deviation = twin(x.square()).clamp_min(torch.finfo(output.dtype).tiny).sqrt()
        return torch.addcmul(output, deviation, torch.empty_like(output).normal_(generator=self.noise))

    def add_scale_gradient(self, total: Tensor) -> None:
        """d variance / d log scale = 2 variance."""
        total.addcmul_(self.twin.grad, self.twin.values, value=2.0)


class Flipout(ActivationNoise):
    """One draw of the weights' deviations for all rows, which a row's own signs turn; twins hold the deviations."""

    option = "estimator='flipout'"
    kinds = (nn.Linear, *CONVOLUTIONS)

    def check_others(self, names: list[str]) -> None:
        """All are welcome: they are drawn for all rows at once."""

    def fill(self, scale: Tensor, eps: Tensor, noise: torch.Generator) -> None:  # noqa: ARG002
        """scale * eps, with eps of its own."""
        torch.mul(scale, self.twin.values.normal_(generator=noise), out=self.twin.values)

    def see(self, path: str, x: Tensor) -> None:
        """All uses are welcome: a row has one pair of signs for a layer."""

    def perturb(self, path: str, twin: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """Output + b * twin(a * x), with signs a, b of the rows that stay for the whole pass."""
        dim = -1 if isinstance(twin, nn.Linear) else 1  # of the channels
        if path not in self.memory:
            self.memory[path] = self._signs(x, dim), self._signs(output, dim)
        at_input, at_output = (
            _spread(signs, like, dim) for signs, like in zip(self.memory[path], (x, output), strict=True)
        )
        return torch.addcmul(output, at_output, twin(at_input * x))

    def add_scale_gradient(self, total: Tensor) -> None:
        """d deviation / d log scale is the deviation."""
        total.addcmul_(self.twin.grad, self.twin.values)

    def _signs(self, like: Tensor, dim: int) -> Tensor:
        size = (len(like), like.shape[dim])
        return torch.empty(size, dtype=like.dtype, device=like.device).bernoulli_(0.5, generator=self.noise) * 2 - 1


def activation_noise(estimator: Estimator, network: TrainingNetwork) -> ActivationNoise | None:
    """What an estimator needs beside the draws of the weights: nothing for "weights".

    Raises:
        ValueError: Another estimator, or one that the network does not allow.
    """
    check_one_of(estimator, "estimator", Estimator)
    kinds = {"local": LocalReparameterisation, "flipout": Flipout}
    return None if estimator == "weights" else kinds[estimator](network)


def _own(vector: FlatVector, module: nn.Module) -> list[str]:
    """The random sites that a layer owns itself."""
    owned = {id(parameter) for parameter in module.parameters(recurse=False)}
    return [name for name, leaf in vector.leaves.items() if id(leaf) in owned]


def _spread(signs: Tensor, like: Tensor, dim: int) -> Tensor:
    """Signs (N, C) so that they multiply a tensor (N, ..., C, ...)."""
    middle = [1] * (like.ndim - 2)
    return signs.view(len(signs), *middle, -1) if dim == -1 else signs.view(*signs.shape, *middle)


def _check_modules(network: TrainingNetwork, option: str) -> None:
    """Refuse rows that are not independent given the weights, and weights with two places."""
    leaves = network.vectors["random"].leaves
    owners = dict.fromkeys(leaves, 0)
    for path, module in network.training.named_modules():
        if learns_statistics(module):
            raise ValueError(
                f"{option} needs rows that do not mix, and `{path}` takes statistics of its batch. Freeze its "
                "parameters, or use estimator='weights'."
            )
        places = [id(parameter) for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False)]
        for name, leaf in leaves.items():
            owners[name] += places.count(id(leaf))
    tied = [name for name, count in owners.items() if count > 1]
    if tied:
        raise ValueError(
            f"{option} cannot give tied weights one draw in two places: {tied[0]}. Use estimator='weights'."
        )
