"""Rules that name some of a network's parameters: by name, by type of the layer that owns them, or by a function."""

from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Final, TypeAlias, TypeVar

from torch import nn

from bayesuq.options import shortened

__all__ = ["assign", "matching_names", "trainable_parameters"]
__dir__ = __all__.copy

Rule: TypeAlias = str | type[nn.Module] | Callable[[str, nn.Parameter], bool]
T = TypeVar("T")

ALL: Final = "all"
LAST_LAYER: Final = "last_layer"


def trainable_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that are not frozen, by name; one that several layers share has its first name."""
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def matching_names(net: nn.Module, rule: Rule) -> list[str]:
    """Names of the trainable parameters that a rule means, in the network's order.

    Args:
        net: The network.
        rule: "all"; "last_layer" (the parameters of the last layer that has any); a shell pattern for parameter
            names such as "*.bias"; a module type, for the parameters that modules of this type own themselves; or a
            function of name and parameter.

    Raises:
        TypeError: A rule of another kind.
        ValueError: A rule that matches no parameter.
    """
    parameters = trainable_parameters(net)
    if isinstance(rule, str):
        names = _by_name(net, parameters, rule)
    elif isinstance(rule, type) and issubclass(rule, nn.Module):
        owners = [module for module in net.modules() if isinstance(module, rule)]
        owned = {id(parameter) for module in owners for parameter in module.parameters(recurse=False)}
        names = [name for name, parameter in parameters.items() if id(parameter) in owned]
    elif not isinstance(rule, type) and callable(rule):
        names = [name for name, parameter in parameters.items() if rule(name, parameter)]
    else:
        raise TypeError(
            f"A rule must be a name pattern, a module type or a function of (name, parameter); got {rule!r}."
        )
    if not parameters:
        raise ValueError(
            "The network has no trainable parameter, so that nothing can be random. Of a quantised one keep the last "
            "layer as a torch.nn.Linear in float."
        )
    if not names:
        raise ValueError(
            f"The rule {rule!r} matches no trainable parameter. The names are: {shortened([*parameters])}."
        )
    return names


def assign(net: nn.Module, names: list[str], values: Mapping[Rule, T]) -> dict[str, T]:
    """The value that each of `names` gets from the first rule that matches it.

    Raises:
        ValueError: A rule that matches none of `names`, or a name that no rule matches.
    """
    assigned: dict[str, T] = {}
    for rule, value in values.items():
        matched = [name for name in matching_names(net, rule) if name in names]
        if not matched:
            raise ValueError(f"The rule {rule!r} matches no random parameter. Those are: {shortened(names)}.")
        assigned = {**dict.fromkeys(matched, value), **assigned}  # what an earlier rule assigned stays
    missing = [name for name in names if name not in assigned]
    if missing:
        raise ValueError(f"No rule matches {shortened(missing)}. End the rules with '*' for all the rest.")
    return {name: assigned[name] for name in names}


def _by_name(net: nn.Module, parameters: Mapping[str, nn.Parameter], rule: str) -> list[str]:
    if rule == ALL:
        return list(parameters)
    if rule == LAST_LAYER:
        every = [module for _, module in net.named_modules(remove_duplicate=False)]  # one in two places is last by both
        layers = [module for module in every if any(p.requires_grad for p in module.parameters(recurse=False))]
        last = {id(parameter) for parameter in layers[-1].parameters(recurse=False)} if layers else set()
        return [name for name, parameter in parameters.items() if id(parameter) in last]
    return [name for name in parameters if fnmatchcase(name, rule)]
