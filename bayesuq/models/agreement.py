"""Whether two models are one, but for the weights that their fits start from: then one of them can stand for both."""

import copyreg
from collections.abc import Mapping, Sequence
from inspect import isroutine
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesuq.models.bnn import BayesianNetwork


def differ_in_start_only(one: BayesianNetwork, other: BayesianNetwork) -> bool:
    """Whether two models read any weights alike: the same modules, constants, laws and likelihood.

    Values that cannot be compared count as different, so that True is certain and False is not.
    """
    if one is other:
        return True
    try:
        return have_same_laws(one, other) and _are_alike_modules(one.net, other.net)
    except RecursionError:  # something that holds itself
        return False


def have_same_laws(one: BayesianNetwork, other: BayesianNetwork) -> bool:
    """Whether two models have the same likelihood, the same random sites, and the same priors of them."""
    return (
        _are_alike(one.likelihood, other.likelihood)
        and (one.dtype, one.device) == (other.dtype, other.device)
        and list(one.points) == list(other.points)
        and list(one.laws) == list(other.laws)
        and all(_are_alike(law, other.laws[name]) for name, law in one.laws.items())
    )


def _are_alike_modules(one: nn.Module, other: nn.Module) -> bool:
    """Whether two module trees differ in the values of their trainable parameters only."""
    mine, theirs = (list(net.named_modules(remove_duplicate=False)) for net in (one, other))
    if [(path, type(module)) for path, module in mine] != [(path, type(module)) for path, module in theirs]:
        return False
    return _sharing(one) == _sharing(other) and all(
        _are_alike(_constants(module), _constants(twin)) for (_, module), (_, twin) in zip(mine, theirs, strict=True)
    )


def _sharing(net: nn.Module) -> list[int]:
    """For each place of a parameter, the first place that holds the same one."""
    places: dict[int, int] = {}
    found = net.named_parameters(remove_duplicate=False)
    return [places.setdefault(id(parameter), number) for number, (_, parameter) in enumerate(found)]


def _constants(module: nn.Module) -> dict[str, Any]:
    """What a module has besides its parts and the values of its trainable parameters."""
    held = {name: value for name, value in vars(module).items() if name not in ("_parameters", "_modules")}
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.requires_grad:
            held[f"parameter {name}"] = tuple(parameter.shape)
        else:
            held[f"parameter {name}"] = parameter
    return held


def _are_alike(one: Any, other: Any) -> bool:
    """Whether two values are equal, by content; what has no content to compare must be the same object."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_are_alike(value, other[name]) for name, value in one.items())
    if isinstance(one, Sequence) and not isinstance(one, str | bytes):
        return len(one) == len(other) and all(_are_alike(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, nn.Module):
        return _are_alike_modules(one, other)
    try:
        state = _state(one)
        return bool(one == other) if state is None else _are_alike(state, _state(other))
    except (TypeError, ValueError, RuntimeError):
        return False


def _state(value: object) -> Any | None:
    """All that an object of a class written in Python holds, as pickle finds it; None of other objects."""
    if isroutine(value) or isinstance(value, type):
        return None
    recipe = value.__reduce_ex__(2)
    plain = isinstance(recipe, tuple) and recipe[:2] == (copyreg.__newobj__, (type(value),))  # type: ignore[attr-defined]
    return recipe[2] if plain and len(recipe) > 2 and recipe[3:] in ((), (None, None)) else None
