"""A trained network of the user's own: the function that builds it, by its import path, and a file of its weights.

    bayesuq compare --network mypackage.models:build --weights trained.safetensors --methods map,laplace ...

Importing runs code. So the path counts only where whoever calls the command has written it there: one that stands in a
file of options, or in a folder of results, is not imported. The weights are safetensors, which hold no code.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from bayesuq.cli.settings import UsageError
from bayesuq.options import nearest, shortened
from bayesuq.randomness import isolated

OPTION = "--network"
WRAPPED = ("module.", "_orig_mod.")  # what DistributedDataParallel and torch.compile put before every name
MOST_TOLD = 3  # names in an error


def built(path: str, *, seed: int) -> nn.Module:
    """The network that the function at an import path returns when it is called without arguments.

    Args:
        path: `package.module:function`, in the current folder or where Python finds packages.
        seed: Of what the function draws, such as initial weights.

    Raises:
        UsageError: No such module or function, or one that returns no network.
    """
    build = _imported(path)
    with isolated(seed):
        net = build()
    if not isinstance(net, nn.Module):
        raise UsageError(f"{path} must return a torch.nn.Module; it returned {type(net).__name__}.")
    return net


def _imported(path: str) -> Any:
    """The function at an import path.

    Raises:
        UsageError: No such module, or no such function in it.
    """
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)  # last: a file of the folder takes the place of no installed package
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # of what the module itself needs
        raise UsageError(
            f"There is no module {error.name!r}, which {OPTION} {path} names; Python looks where packages are "
            f"installed, in PYTHONPATH and in {here}."
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"There is no function {name!r} in {module_name}; {nearest(name, functions)}.")
    return found


def give_weights(net: nn.Module, path: Path) -> None:
    """Put the weights and buffers of a safetensors file into a network.

    Raises:
        UsageError: No such file, another kind of file, or not the network's tensors: the first few by name.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {str(path)!r}, which --weights names.")
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UsageError(
            f"{str(path)!r} is no safetensors file ({error}). Write one by "
            "`safetensors.torch.save_model(net, 'weights.safetensors')`."
        ) from error
    put_into(net, state, str(path))


def put_into(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put named tensors into a network; one that several names share needs to be there once.

    Raises:
        UsageError: Names, shapes or dtypes that are not the network's.
    """
    own = net.state_dict(keep_vars=True)
    missing = [name for name, value in own.items() if name not in state and not _is_shared(value, own, state)]
    unknown = [name for name in state if name not in own]
    if missing or unknown:
        raise UsageError(
            f"The weights of {source!r} are not the network's. {_told('It lacks', missing)}"
            f"{_told('The network has no', unknown)}{_hint(unknown, own)}"
        )
    for name, value in state.items():
        _check_fits(name, own[name], value, source)
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)


def _is_shared(value: Tensor, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return any(other is value and name in state for name, other in own.items())


def _told(what: str, names: Sequence[str]) -> str:
    return f"{what} {shortened(names, MOST_TOLD)}. " if names else ""


def _hint(unknown: Sequence[str], own: Mapping[str, Tensor]) -> str:
    for prefix in WRAPPED:
        if unknown and all(name.removeprefix(prefix) in own for name in unknown):
            return f"Save those of the network inside the wrapper, whose names have no {prefix!r}."
    return "Build the network as it was when the weights were saved."


def _check_fits(name: str, own: Tensor, value: Tensor, source: str) -> None:
    if own.shape != value.shape:
        raise UsageError(
            f"{name} has shape {tuple(own.shape)} in the network and {tuple(value.shape)} in {source!r}. Build the "
            "network as it was when the weights were saved."
        )
    if torch.promote_types(own.dtype, value.dtype) != own.dtype:
        raise UsageError(
            f"{name} is {own.dtype} in the network and {value.dtype} in {source!r}, which does not fit in. Build the "
            f"network in {value.dtype}."
        )
