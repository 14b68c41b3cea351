"""Perceptrons of several draws or chains in one pass: for each layer a batched matrix product, without vmap.

vmap follows any network, but a small one spends more time in its calls than in arithmetic. So does autograd: where
nothing but the weights moves, the way back is written out, with rows as the last dimension, which is the longest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesuq.models.layers import is_changed
from bayesuq.models.networks import Network

SLOPES: dict[type[nn.Module], Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {  # of layer, gradient, before, after
    nn.ReLU: lambda _, gradient, __, after: torch.ops.aten.threshold_backward(gradient, after, 0),
    nn.Tanh: lambda _, gradient, __, after: torch.ops.aten.tanh_backward(gradient, after),
    nn.SiLU: lambda _, gradient, before, __: torch.ops.aten.silu_backward(gradient, before),
    nn.GELU: lambda layer, gradient, before, __: torch.ops.aten.gelu_backward(
        gradient, before, approximate=layer.approximate
    ),
}
IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {  # the same, over what they were given
    nn.ReLU: torch.relu_,
    nn.Tanh: torch.tanh_,
    nn.SiLU: partial(functional.silu, inplace=True),
}
PASSING = (nn.Identity, nn.Dropout, nn.Flatten)  # in evaluation mode, of inputs that are flat
ELEMENTWISE = (*SLOPES, nn.Identity, nn.Dropout)


def is_perceptron(net: nn.Module, x: Tensor) -> bool:
    """Whether a network is a plain sequence of linear layers and elementwise ones, with nothing shared or changed.

    Inputs x that are not (N, D) must be flattened first.
    """
    if type(net) not in (nn.Sequential, Network):
        return False
    layers = list(_layers(net).values())
    first, *rest = layers or [net]
    flattens = isinstance(first, nn.Flatten) and (first.start_dim, first.end_dim) == (1, -1)
    if not flattens and x.ndim != 2:
        return False
    known = all(type(layer) in (nn.Linear, *ELEMENTWISE) for layer in (rest if flattens else layers))
    places = [name for name, _ in net.named_parameters(remove_duplicate=False)]
    return known and len(places) == len(list(net.parameters())) and not any(map(is_changed, net.modules()))


def num_outputs(net: nn.Module) -> int:
    """C of a network that `is_perceptron`."""
    return _widths(net)[-1]


def widest(net: nn.Module) -> int:
    """The most numbers that a layer of such a network takes and gives for a row."""
    widths = _widths(net)
    return max(one + other for one, other in pairwise(widths))


def forward_together(
    net: nn.Module, theta: Mapping[str, Tensor], x: Tensor, num_chains: int, memory: dict[str, Tensor] | None = None
) -> Tensor:
    """f of each chain, (C, N, K), by a network that `is_perceptron`, in evaluation mode.

    Without gradients a layer's outputs are written over: new memory takes longer to come than a number to be clamped.

    Args:
        net: Its layers, and the parameters that `theta` does not name.
        theta: Parameters by name, (C, *shape), or of all chains, (*shape).
        x: Inputs, (N, D), or more dimensions where the network flattens them.
        num_chains: C.
        memory: What linear layers have given, by name, which the next call without gradients writes over; that has as
            many rows and no more chains. f may stand in it. None keeps nothing.
    """
    inputs = x.flatten(1)
    hidden = inputs.expand(num_chains, *inputs.shape)
    can_overwrite = False
    memory = None if torch.is_grad_enabled() else memory
    for name, layer in _layers(net).items():
        if isinstance(layer, nn.Linear):
            bias = theta.get(f"{name}.bias", layer.bias)
            place = None if memory is None or name not in memory else memory[name][:num_chains]
            hidden = _linear(hidden, theta.get(f"{name}.weight", layer.weight), bias, place)
            if memory is not None:
                memory.setdefault(name, hidden)
            can_overwrite = not torch.is_grad_enabled()
        elif not isinstance(layer, nn.Flatten):
            run = IN_PLACE.get(type(layer), layer) if can_overwrite else layer
            hidden = run(hidden)
    return hidden


def forward_with_noise(
    net: nn.Module,
    theta: Mapping[str, Tensor],
    variances: Mapping[str, Tensor],
    x: Tensor,
    fill: Callable[[Tensor], Tensor],
) -> Tensor:
    """f of each chain at inputs of its own, (C, N, K), where layers' weights are normal and every row draws outputs.

    A linear layer gives m x + sqrt(s^2 x^2) eps: the local reparameterisation (Kingma, Salimans and Welling 2015, eq.
    6), by a network that `is_perceptron`, in evaluation mode.

    Args:
        net: Its layers, and the parameters that `theta` does not name.
        theta: Means of the parameters by name, (C, *shape).
        variances: Of those that have some, (C, *shape).
        x: Inputs, (C, N, D), or more dimensions where the network flattens them.
        fill: Puts standard normal numbers into a tensor (C, N, width), layer by layer, and returns it.
    """
    hidden = x.flatten(2)
    for name, layer in _layers(net).items():
        if isinstance(layer, PASSING):
            continue
        if not isinstance(layer, nn.Linear):
            hidden = layer(hidden)
            continue
        weight, bias = (f"{name}.{part}" for part in ("weight", "bias"))
        before, hidden = hidden, _linear(hidden, theta.get(weight, layer.weight), theta.get(bias, layer.bias))
        if weight in variances or bias in variances:
            variance = _variance(before, variances.get(weight), variances.get(bias))
            # A row of zeros has no variance: the root's slope is infinite there, and what it belongs to is not.
            deviation = variance.clamp_min(torch.finfo(hidden.dtype).tiny).sqrt()
            hidden = torch.addcmul(hidden, deviation, fill(torch.empty_like(hidden)))
    return hidden


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A pass of C perceptrons that can be gone through backwards; rows are the last dimension.

    Attributes:
        outputs: f, (C, K, N).
        layers: By name, with what went in, what came out, (C, ..., N), and the weights of a linear one.
        theta: The parameters that move.
    """

    outputs: Tensor
    layers: Mapping[str, tuple[nn.Module, Tensor, Tensor, Tensor | None]]
    theta: Mapping[str, Tensor]

    @classmethod
    def of(cls, net: nn.Module, theta: Mapping[str, Tensor], columns: Tensor, num_chains: int) -> "ForwardPass":
        """By a network that `is_perceptron`, in evaluation mode.

        Args:
            net: Its layers, and the parameters that `theta` does not name.
            theta: Parameters by name, (C, *shape).
            columns: Inputs, flattened, (D, N).
            num_chains: C.
        """
        hidden = columns.expand(num_chains, *columns.shape)
        passed: dict[str, tuple[nn.Module, Tensor, Tensor, Tensor | None]] = {}
        for name, layer in _layers(net).items():
            if isinstance(layer, PASSING):
                continue
            before, weight = hidden, None
            if isinstance(layer, nn.Linear):
                weight = theta.get(f"{name}.weight", layer.weight).expand(num_chains, -1, -1)
                hidden = _linear_of_columns(before, weight, theta.get(f"{name}.bias", layer.bias))
            else:
                hidden = layer(before)
            passed[name] = layer, before, hidden, weight
        return cls(hidden, passed, theta)

    def gradients(self, slopes: Tensor) -> dict[str, Tensor]:
        """Of the sum of a function of f, whose gradient is given, (C, K, N): (C, *shape) for each name in `theta`."""
        found = {}
        left = len(self.layers)
        for name, (layer, before, after, weight) in reversed(list(self.layers.items())):
            left -= 1
            if weight is None:
                slopes = SLOPES[type(layer)](layer, slopes, before, after)
                continue
            if f"{name}.weight" in self.theta:
                found[f"{name}.weight"] = torch.bmm(slopes, before.mT)
            if f"{name}.bias" in self.theta:
                found[f"{name}.bias"] = slopes.sum(dim=2)
            if left:
                slopes = torch.bmm(weight.mT, slopes)
        return found


def _widths(net: nn.Module) -> list[int]:
    """Numbers that go into the first linear layer, and out of each."""
    linear = [layer for layer in _layers(net).values() if isinstance(layer, nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    """By name; `children` would leave out the second place of a layer that stands in two."""
    return {name: layer for name, layer in net._modules.items() if layer is not None}


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    """(C, N, in) to (C, N, out), which `out` may have the place for."""
    if weight.ndim == 3 and bias is not None and bias.ndim == 2:
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT, out=out)
    product = hidden @ weight.mT
    return product if bias is None else product + bias.unsqueeze(-2)


def _variance(hidden: Tensor, of_weight: Tensor | None, of_bias: Tensor | None) -> Tensor:
    """Of a linear layer's outputs, (C, N, out), or of all rows alike, (C, 1, out)."""
    if of_weight is not None:
        return _linear(hidden.square(), of_weight, of_bias)
    if of_bias is None:
        raise ValueError("a layer without variances draws nothing")
    return of_bias.unsqueeze(-2)


def _linear_of_columns(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(C, in, N) to (C, out, N)."""
    return torch.bmm(weight, hidden) if bias is None else torch.baddbmm(bias.unsqueeze(-1), weight, hidden)
