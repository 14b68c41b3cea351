"""What a file says of a model's laws, whoever wrote them, so that a model that is passed again is held against it.

A record (`bayesuq.models.records`) rebuilds a part, and knows bayesuq's own alone. What is told here rebuilds nothing:
it names the class of a prior, a likelihood or a kernel, and the numbers and words that it was made of.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from inspect import signature
from typing import Any

import numpy as np
from torch import Tensor, nn

from bayesuq.models.records import BEFORE

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
