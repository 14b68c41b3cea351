"""What a file says of a model's laws and layers, whoever wrote them, so that a model passed again is held against it.

A record (`bayesuq.models.records`) rebuilds a part, and knows bayesuq's own alone. What is told here rebuilds nothing:
it names the class of a prior, a likelihood, a kernel or a layer, and the numbers and words that it was made of.
"""

import hashlib
import math
import platform
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from inspect import isroutine, signature
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.models.records import BEFORE
from bayesuq.options import shortened

PYTHON = ".".join(platform.python_version_tuple()[:2])
LONGEST = 64  # words and numbers of a constant that a file tells
WITHOUT_EFFECT = ("training", "inplace", "momentum")  # on what a network gives in evaluation mode
SCALED = "ScaledLogits"  # a fitted temperature around the likelihood that the user's model has


def told_of(value: Any) -> Any:
    """A part of a model as JSON data: its class and what it was made of."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple | list):
        return [told_of(item) for item in value]
    if isinstance(value, Mapping):
        return [[_rule(rule), told_of(part)] for rule, part in value.items()]
    told = {"part": type(value).__name__}
    if isinstance(value, Tensor | np.ndarray):
        return told | {"shape": list(value.shape)}
    return told | {name: told_of(item) for name, item in _made_of(value).items()}


def check_told(told: Mapping[str, Any], model: object) -> None:
    """Refuse a model whose laws are not those that a file tells of.

    Args:
        told: What `told_of`, or a record, says of some of the model's attributes, by their names.
        model: The one that was passed.

    Raises:
        ValueError: A part of another class, or made of other values.
    """
    for name, expected in told.items():
        own = told_of(getattr(model, name))
        differences = [_difference(one, own, name) for one in _as_passed(expected)]
        if all(differences):
            raise ValueError(f"The model is not the file's: {differences[-1]}. Pass the model that was fitted.")


def layers_of(net: nn.Module) -> dict[str, Any]:
    """What a network's layers are besides their tensors, by their places: class and constants, as JSON data."""
    return {
        place: {"class": f"{type(layer).__module__}.{type(layer).__qualname__}", "constants": _constants(layer)}
        for place, layer in net.named_modules()
    }


def check_layers(told: Mapping[str, Any], net: nn.Module) -> None:
    """Refuse a network whose layers are torch's, and others than those that a file tells of; of own ones warn.

    A class of the user's may have another name by now, and constants that change from call to call.

    Args:
        told: What `layers_of` says of the network that was fitted.
        net: The one that was passed, with tensors of the same names and shapes.

    Raises:
        ValueError: Another layer of torch's in the place of one, or one with other options.

    Warns:
        UserWarning: Constants of the user's own layers that differ, or places where only one of the two has a layer.
    """
    own = layers_of(net)
    for place in told.keys() & own.keys():
        if difference := _layer_difference(told[place], own[place]):
            where = f"its layer {place!r}" if place else "the network"
            message = f"The model is not the file's: {where} {difference}."
            if not _is_torchs(told[place]) and not _is_torchs(own[place]):
                warn_of_fit(f"{message} What it predicts may differ from what the fitted one did.", UserWarning)
                continue
            raise ValueError(f"{message} Pass the model that was fitted.")
    if lone := sorted(told.keys() ^ own.keys()):
        warn_of_fit(
            f"The model may not be the file's: only one of the two has a layer at "
            f"{shortened([repr(place) for place in lone])}. What it predicts may differ from what the fitted one did.",
            UserWarning,
        )


def _layer_difference(told: Mapping[str, Any], own: Mapping[str, Any]) -> str | None:
    """How a layer differs from the file's, in words."""
    one, other = told["class"], own["class"]
    if one != other and (_is_torchs(told) or _is_torchs(own)):
        return f"is {other.rpartition('.')[2]}, the file's is {one.rpartition('.')[2]}"
    before, now = told["constants"], own["constants"]
    name = next((name for name in before if name in now and before[name] != now[name]), None)
    return None if name is None else f"has {name} = {now[name]!r}, the file's {before[name]!r}"


def _is_torchs(told: Mapping[str, Any]) -> bool:
    return str(told["class"]).startswith("torch.")


def _constants(layer: nn.Module) -> dict[str, Any]:
    """The numbers, words and functions that stand as attributes in a layer; of what has no name, its code too."""
    held = {name: value for name, value in vars(layer).items() if name[0] != "_" and name not in WITHOUT_EFFECT}
    for name in {parameter.rpartition("_")[0] for parameter in layer._parameters}:
        held.pop(name, None)  # computed of `weight_g`, or of `weight_orig`, at each call
    plain = {name: _plain(value) for name, value in held.items()}
    codes = {f"{name} (code in Python {PYTHON})": _digest(value) for name, value in held.items()}
    return {name: value for name, value in (plain | codes).items() if value is not NotImplemented}


def _digest(value: Any) -> Any:
    """A short sum of the code of a lambda, or of those in a list; NotImplemented where there is none.

    It is that of one version of Python alone: others translate the same line to another code.
    """
    lambdas = [one for one in (value if isinstance(value, tuple | list) else [value]) if _is_lambda(one)]
    text = "\0".join(part for one in lambdas for part in _parts_of(one))
    return hashlib.sha256(text.encode()).hexdigest()[:8] if lambdas else NotImplemented


def _is_lambda(value: Any) -> bool:
    return isinstance(value, FunctionType) and value.__name__ == "<lambda>"


def _parts_of(function: FunctionType) -> Iterator[str]:
    """What a function computes: its code, and the plain values that it was made with."""
    yield from _parts_of_code(function.__code__)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    yield from (repr(_plain(value)) for value in (*cells, *(function.__defaults__ or ())))


def _parts_of_code(code: CodeType) -> Iterator[str]:
    yield from (code.co_code.hex(), repr(code.co_names))
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts_of_code(constant)
        else:
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)


def _plain(value: Any) -> Any:
    """A constant as JSON data, a function by its name; NotImplemented where it is neither."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else NotImplemented
    if isinstance(value, str):
        return value if len(value) <= LONGEST else NotImplemented
    if isinstance(value, Tensor | np.ndarray):
        return _plain(value.tolist()) if math.prod(value.shape) <= LONGEST else NotImplemented
    if isinstance(value, tuple | list) and len(value) <= LONGEST:
        parts = [_plain(part) for part in value]
        return NotImplemented if any(part is NotImplemented for part in parts) else parts
    return f"function {value.__name__}" if isroutine(value) else NotImplemented


def _made_of(value: Any) -> dict[str, Any]:
    """A dataclass' fields; of other classes what was kept of their arguments, and of modules what stands within."""
    if is_dataclass(value):
        return {item.name: getattr(value, item.name) for item in fields(value)}
    kept = getattr(value, "__dict__", {})
    arguments = {name: kept[name] for name in signature(type(value)).parameters if name in kept}
    return arguments | (dict(value.named_children()) if isinstance(value, nn.Module) else {})


def _rule(rule: Any) -> dict[str, str]:
    """A rule of which parameters a prior is for, in the form that records have."""
    if isinstance(rule, str):
        return {"name": rule}
    return {"layer": rule.__name__} if isinstance(rule, type) else {"function": type(rule).__name__}


def _as_passed(told: Any) -> list[Any]:
    """The part itself, and what stands within a scaling of its logits, which posteriors put around it again."""
    forms = [told]
    while isinstance(told, Mapping) and _class(told) == SCALED:
        told = told["base"]
        forms.append(told)
    return forms


def _difference(told: Any, own: Any, place: str) -> str | None:
    """Where two parts first differ in class or values, in words; where a fit starts from is no difference."""
    if isinstance(told, Mapping) and isinstance(own, Mapping):
        if _class(told) != _class(own):
            return f"its {place} is {_class(own)}, the file's is {_class(told)}"
        told = BEFORE.get(str(told.get("part")), {}) | dict(told)
        names = [name for name in told if name in own and name != "part" and not name.startswith("initial")]
        pairs = [(told[name], own[name], f"{place}.{name}") for name in names]
    elif isinstance(told, list) and isinstance(own, list) and len(told) == len(own):
        pairs = [(*pair, f"{place}[{number}]") for number, pair in enumerate(zip(told, own, strict=True))]
    else:
        return None if told == own else f"its {place} is {_in_words(own)}, the file's is {_in_words(told)}"
    return next((found for pair in pairs if (found := _difference(*pair))), None)


def _class(told: Mapping[str, Any]) -> str:
    """The name of its class; records have the module's before it."""
    return str(told.get("part", "")).rpartition(".")[2]


def _in_words(told: Any) -> str:
    return _class(told) if isinstance(told, Mapping) else repr(told)
