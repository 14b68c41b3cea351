"""Hyperparameters of kernels and means: what a user says of them, and what a built module tells of its parameters.

A positive hyperparameter is stored as its logarithm, in which both L-BFGS and NUTS see differences of the same size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from gpytorch.constraints import Positive
from torch import Tensor, nn

from bayesuq.arrays import check_positive
from bayesuq.models.priors import Prior

Value = float | tuple[float, ...] | Literal["learned"] | Prior
Unit = Literal["inputs", "rates", "targets", "factors", "slopes", "location", "gradients", "noise", "none"]
REGISTER = "told_of_parameters"  # the attribute of a built module that tells of its own parameters


@dataclass(frozen=True)
class Hyperparameter:
    """What is known of one parameter of a built module.

    Attributes:
        prior: Its density on its own support; None where it is "learned".
        unit: What its start, the built value, is measured by: "inputs" (their spread), "rates" (its inverse), "targets"
            (their variance), "factors" (the root of it, one for each input), "slopes" (variance of targets over mean
            square of inputs), "location" (the targets' standard deviation, from their mean), "gradients" (that
            deviation over the inputs' spread), "noise" (a share of the targets' variance), or "none".
    """

    prior: Prior | None
    unit: Unit


def log_positive() -> Positive:
    """The constraint that stores a logarithm."""
    return Positive(transform=torch.exp, inv_transform=torch.log)


def check_value(value: Value, name: str) -> None:
    """Raise unless `value` can be a positive hyperparameter: numbers, "learned", or a prior over positive numbers.

    Raises:
        TypeError: Something else.
        ValueError: Numbers that are not positive, another word, a prior over negative numbers too.
    """
    if isinstance(value, str):
        if value != "learned":
            raise ValueError(f"`{name}` must be a number, 'learned' or a prior; got {value!r}.")
    elif isinstance(value, Prior):
        if getattr(value.entry(torch.zeros(())).support, "lower_bound", -1.0) < 0:
            raise ValueError(f"`{name}` needs a prior over positive numbers, such as LogNormal; got {value!r}.")
    else:
        for number in value if isinstance(value, tuple) else (value,):
            check_positive(number, name)


def declare(module: nn.Module, name: str, value: Value, unit: Unit, *, start: float = 1.0) -> None:
    """Say of the parameter `raw_<name>` of a built module whether it is fixed, learned, or has a prior.

    Args:
        module: Of GPyTorch.
        name: Of the parameter.
        value: As the user gave it.
        unit: See `Hyperparameter`.
        start: The built value, in that unit, of one that is not fixed.

    Raises:
        ValueError: Several fixed numbers that the parameter's shape does not take.
    """
    module.double()  # before a number is stored: float32 would keep seven digits of it
    raw: nn.Parameter = getattr(module, f"raw_{name}")
    if isinstance(value, int | float | tuple):
        numbers = torch.as_tensor(value, dtype=raw.dtype)
        if numbers.ndim and numbers.shape != raw.shape[-1:]:
            raise ValueError(
                f"`{name}` must be one number, or one for each of the {raw.shape[-1]} inputs; got {len(numbers)}."
            )
        with torch.no_grad():
            raw.copy_(numbers.log().expand_as(raw))
        raw.requires_grad_(False)
        return
    with torch.no_grad():
        raw.fill_(math.log(start))
    tell(module, f"raw_{name}", Hyperparameter(value if isinstance(value, Prior) else None, unit))


def tell(module: nn.Module, name: str, told: Hyperparameter) -> None:
    """Put what is known of a parameter beside it."""
    setattr(module, REGISTER, {**getattr(module, REGISTER, {}), name: told})


def declared(module: nn.Module) -> Iterator[tuple[str, nn.Module, str, Hyperparameter | None]]:
    """All learnable parameters: name, the module that holds it, its name there, and what that tells of it."""
    for path, part in module.named_modules():
        register = getattr(part, REGISTER, {})
        for name, parameter in part.named_parameters(recurse=False):
            if parameter.requires_grad:
                yield f"{path}.{name}" if path else name, part, name, register.get(name)


def natural(module: nn.Module, name: str, raw: Tensor) -> Tensor:
    """A parameter's value on its own support, from how it is stored."""
    find = getattr(module, "constraint_for_parameter_name", None)
    constraint = None if find is None else find(name)
    return raw if constraint is None else constraint.transform(raw)
