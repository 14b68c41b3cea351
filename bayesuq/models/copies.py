"""Deep copies of module trees, two to five times faster than those of `copy.deepcopy`."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

CONTAINERS = (dict, OrderedDict, list, set)
CONSTANTS = (bool, int, float, str, type(None))
OWN = frozenset(
    {"__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__", "__getnewargs_ex__", "__slots__"}
)
Tree = TypeVar("Tree", bound=nn.Module)


def deep_copy(tree: Tree, known: Mapping[int, Any] | None = None) -> Tree:
    """As `copy.deepcopy`, in which objects have the copies that are known by their `id`.

    The states of modules whose classes say nothing of their own about copies are copied here, and empty containers, of
    which a layer has ten, of hooks: `copy.deepcopy` takes long over each.

    Raises:
        TypeError: A module that holds what cannot be copied, such as a lock or an open file.
    """
    copies = dict(known or {})
    plain = [module for module in tree.modules() if id(module) not in copies and is_plain(type(module))]
    copies |= {id(module): type(module).__new__(type(module)) for module in plain}
    for module in reversed(plain):  # children before their parents
        state = module.__getstate__()
        for name, value in state.items():
            if type(value) not in CONSTANTS:
                state[name] = _attribute(value, copies)
        copies[id(module)].__setstate__(state)
    for module in tree.modules():
        if not is_plain(type(module)):
            _copy_empty(module, copies)
    return copy.deepcopy(tree, copies)


def _copy_empty(module: nn.Module, copies: dict[int, Any]) -> None:
    for value in vars(module).values():
        if type(value) in CONTAINERS and not value:
            copies.setdefault(id(value), type(value)())


def _attribute(value: Any, copies: dict[int, Any]) -> Any:
    """The copy of one, which is noted down where it is made here."""
    if id(value) in copies or type(value) not in CONTAINERS:
        return copy.deepcopy(value, copies)
    if not value:
        return copies.setdefault(id(value), type(value)())
    if type(value) is not dict:
        return copy.deepcopy(value, copies)
    made = copies[id(value)] = {}
    for key, item in value.items():
        made[copy.deepcopy(key, copies)] = copy.deepcopy(item, copies)
    return made


def is_plain(kind: type) -> bool:
    """Whether a module is its state: its class says no more of how it is copied than `torch.nn.Module` does."""
    return all(OWN.isdisjoint(vars(base)) for base in kind.__mro__ if base not in (nn.Module, object))
