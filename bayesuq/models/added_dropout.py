"""Dropout put into a network that was built without it, in front of modules that are named."""

import copy
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn import functional

from bayesuq.arrays import check_probability

__all__ = ["with_dropout"]


def with_dropout(net: nn.Module, rates: Mapping[str, float]) -> nn.Module:
    """A copy of a network that drops what goes into some of its modules, in training mode only.

    Parameters and buffers keep their names, and in evaluation mode the outputs are the same to the last bit.

    Args:
        net: The network, which stays as it is.
        rates: The probability of dropping, by a module's path or a shell pattern of paths, such as `{"fc": 0.1}`; the
            first pattern that matches a module counts.

    Raises:
        TypeError: Rates that are no mapping of numbers.
        ValueError: A pattern that matches no module; a rate outside [0, 1).

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 50), nn.Linear(50, 1))
        >>> dropping, x = with_dropout(net, {"1": 0.5}), torch.ones(1, 2)
        >>> bool(dropping.eval()(x) == net(x)), bool(dropping.train()(x) == net(x))
        (True, False)
    """
    if not isinstance(rates, Mapping) or not rates:
        raise TypeError(f"`rates` must be a mapping from paths of modules to probabilities; got {rates!r}.")
    own = copy.deepcopy(net)
    modules = {path: module for path, module in own.named_modules() if path}
    for pattern in rates:
        if not any(fnmatchcase(path, pattern) for path in modules):
            raise ValueError(f"{pattern!r} names no module of the network. There are {', '.join(modules)}.")
    for path, module in modules.items():
        rate = next((rate for pattern, rate in rates.items() if fnmatchcase(path, pattern)), None)
        if rate is not None:
            module.register_forward_pre_hook(_DropsInputs(check_probability(rate, f"rates[{path!r}]"), path))
    return own


class _DropsInputs:
    """A forward hook that drops units of the first input of a module in training mode."""

    def __init__(self, rate: float, path: str) -> None:
        self.rate, self.path = rate, path

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not module.training:
            return None
        if not args:
            raise ValueError(f"Dropout in front of {self.path!r} needs inputs by place; it gets them by name.")
        return functional.dropout(args[0], self.rate), *args[1:]
