"""Fresh initial weights for a network, each layer by its own rule: what the members of an ensemble start from."""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from bayesuq.models.rules import trainable_parameters
from bayesuq.randomness import isolated


def reinitialised(net: nn.Module, seed: int) -> nn.Module:
    """A copy of a network, on the CPU, its layers initialised anew by their own `reset_parameters`.

    Where building draws no other random numbers, these are the weights that building the network under the seed gives.
    Frozen parameters, and layers that have nothing to train, stay as they are with their buffers.

    Raises:
        ValueError: A trainable parameter that no layer's `reset_parameters` reaches.
    """
    fresh = copy.deepcopy(net).cpu()  # on the CPU, so that a seed means the same weights on every device
    frozen = [(parameter, parameter.clone()) for parameter in fresh.parameters() if not parameter.requires_grad]
    with isolated(seed):
        reached = _reset(fresh)
    left = [name for name, parameter in trainable_parameters(fresh).items() if id(parameter) not in reached]
    if left:
        raise ValueError(
            f"Members need an initialisation of their own, but no layer resets {', '.join(left)}. Define "
            "`reset_parameters(self)` in the module that owns it."
        )
    with torch.no_grad():
        for parameter, value in frozen:
            parameter.copy_(value)
    return fresh


def _reset(net: nn.Module) -> set[int]:
    """Initialise every layer that can be and is to be trained; the ids of the parameters reached."""
    reached: set[int] = set()
    for module in _parts_first(net, set()):
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset) and any(parameter.requires_grad for parameter in module.parameters()):
            reset()
            reached |= {id(parameter) for parameter in module.parameters()}
    return reached


def _parts_first(module: nn.Module, seen: set[int]) -> Iterator[nn.Module]:
    """Each module once, after its parts, as modules are built: attention then overrides its linear layers."""
    seen.add(id(module))
    for child in module.children():
        if id(child) not in seen:
            yield from _parts_first(child, seen)
    yield module
