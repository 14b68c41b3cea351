"""Perceptrons of several chains in one pass: for each layer a batched matrix product, without vmap.

vmap follows any network, but a small one spends more time in its calls than in arithmetic.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayesuq.models.networks import Network

ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.SiLU, nn.GELU, nn.Identity, nn.Dropout)


def is_perceptron(net: nn.Module, x: Tensor) -> bool:
    """Whether a network is a plain sequence of linear layers and elementwise ones, with nothing shared or hooked.

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
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    return known and len(places) == len(list(net.parameters())) and not hooked


def forward_together(net: nn.Module, theta: Mapping[str, Tensor], x: Tensor, num_chains: int) -> Tensor:
    """f of each chain, (C, N, K), by a network that `is_perceptron`, in evaluation mode.

    Args:
        net: Its layers, and the parameters that `theta` does not name.
        theta: Parameters by name, (C, *shape), or of all chains, (*shape).
        x: Inputs, (N, D), or more dimensions where the network flattens them.
        num_chains: C.
    """
    inputs = x.flatten(1)
    hidden = inputs.expand(num_chains, *inputs.shape)
    for name, layer in _layers(net).items():
        if isinstance(layer, nn.Linear):
            bias = theta.get(f"{name}.bias", layer.bias)
            hidden = _linear(hidden, theta.get(f"{name}.weight", layer.weight), bias)
        elif not isinstance(layer, nn.Flatten):
            hidden = layer(hidden)
    return hidden


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    """By name; `children` would leave out the second place of a layer that stands in two."""
    return {name: layer for name, layer in net._modules.items() if layer is not None}


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(C, N, in) to (C, N, out)."""
    if weight.ndim == 3 and bias is not None and bias.ndim == 2:
        return torch.baddbmm(bias.unsqueeze(1), hidden, weight.mT)
    product = hidden @ weight.mT
    return product if bias is None else product + bias.unsqueeze(-2)
