"""Deep copies of module trees, two to five times faster than those of `copy.deepcopy`."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

CONTAINERS = frozenset({dict, OrderedDict, list, set})
CONSTANTS = frozenset({bool, int, float, str, type(None)})
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
    modules = list(tree.modules())
    plain_kinds = {kind for kind in set(map(type, modules)) if is_plain(kind)}
    plain = [module for module in modules if id(module) not in copies and type(module) in plain_kinds]
    copies |= {id(module): type(module).__new__(type(module)) for module in plain}
    for module in reversed(plain):  # children before their parents
        state = module.__getstate__()
        for name, value in state.items():
            kind = type(value)
            if kind in CONSTANTS:
                continue
            if kind in CONTAINERS and not value:
                state[name] = copies.setdefault(id(value), kind())
            else:
                state[name] = _attribute(value, copies)
        copies[id(module)].__setstate__(state)
    for module in modules:
        if type(module) not in plain_kinds:
            _copy_empty(module, copies)
    return copy.deepcopy(tree, copies)


def _copy_empty(module: nn.Module, copies: dict[int, Any]) -> None:
    for value in vars(module).values():
        if type(value) in CONTAINERS and not value:
            copies.setdefault(id(value), type(value)())


def _attribute(value: Any, copies: dict[int, Any]) -> Any:
    """The copy of one that is neither a constant nor empty, which is noted down where it is made here."""
    if id(value) in copies or type(value) is not dict:
        return copy.deepcopy(value, copies)
    made = copies[id(value)] = {}
    for key, item in value.items():
        own = key if type(key) is str else copy.deepcopy(key, copies)
        made[own] = copies[id(item)] if id(item) in copies else copy.deepcopy(item, copies)
    return made


def is_plain(kind: type) -> bool:
    """Whether a module is its state: its class says no more of how it is copied than `torch.nn.Module` does."""
    return all(OWN.isdisjoint(vars(base)) for base in kind.__mro__ if base not in (nn.Module, object))
