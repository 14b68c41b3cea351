"""Likelihoods of noise around f whose scale is known, learned, inferred, or given with each row."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.models.likelihoods.base import (
    MEANS,
    Parameter,
    RealTargets,
    Unknown,
    aligned,
    checked_parameter,
    parameter_value,
    unknown_parameters,
)


class ScaledNoise(RealTargets):
    """Real targets around f, (N, D), with one noise scale for all columns or one for each.

    Attributes:
        parameters: The names of its positive parameters, in order, each with an `initial_` one beside it.
        scale: See `Normal`.
        initial_scale: See `Normal`.
        per_column: See `Normal`.
    """

    output_kinds = (MEANS,)
    is_elementwise = True

    parameters: ClassVar[tuple[str, ...]]
    scale: Parameter
    initial_scale: float | Sequence[float]
    per_column: bool | int

    @property
    def takes_scale(self) -> bool:
        """Whether each row has its own known scale."""
        return _is_given(self.scale)

    @property
    def unknowns(self) -> dict[str, Unknown]:
        """The parameters that are not fixed."""
        return unknown_parameters({n: (getattr(self, n), getattr(self, f"initial_{n}")) for n in self.parameters})

    def given(self, values: Mapping[str, Tensor]) -> Self:
        """The likelihood at these values of its unknowns: tensors, which only methods may give."""
        known = {name: values[name] for name in self.parameters if name in values}
        if not known:
            return self
        found = copy.copy(self)
        for name, value in known.items():
            object.__setattr__(found, name, value)
        return found

    def for_outputs(self, num_outputs: int | None) -> Self:
        """The likelihood with a scale for each of the network's outputs, where columns have their own."""
        if self.per_column is not True:
            return self
        if num_outputs is None:
            raise ValueError(
                "How many columns the network gives cannot be told from its last layer. Write the number: "
                "per_column=2 for two."
            )
        return replace(self, per_column=num_outputs)  # type: ignore[type-var]

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Targets of the shape and dtype of f, without the scales that it may bring."""
        mean = halves(f, 1)[0] if self.takes_scale else f
        return aligned(mean, y, channels=mean.shape[1:2]).to(f.dtype)

    def _check_scales(self) -> None:
        """Put a user's `scale`, `initial_scale` and `per_column` into the form that the methods read.

        Raises:
            ValueError: What is neither of what they may be, or numbers of columns that differ.
        """
        scale = checked_parameter(self.scale, "scale", may_be_given=True)
        if _is_given(scale) and self.per_column is not False:
            raise ValueError(
                "Scales that are given come with the data, (N, D) where columns have their own; leave `per_column` out."
            )
        initial = checked_parameter(self.initial_scale, "initial_scale")
        if not isinstance(initial, float | tuple):
            raise ValueError(f"`initial_scale` must be a number, or a list of one for each column; got {initial!r}.")
        told = self.per_column
        number = told if isinstance(told, bool) else check_count(told, "per_column")
        sizes = {len(value) for value in (scale, initial) if isinstance(value, tuple)}
        sizes |= set() if isinstance(number, bool) else {number}
        if len(sizes) > 1:
            raise ValueError(
                f"`scale`, `initial_scale` and `per_column` must be of as many columns; got {sorted(sizes)}."
            )
        if number is True and isinstance(scale, float):
            raise ValueError("`per_column` asks for a scale for each column; got one. Write a list, scale=[0.1, 0.2].")
        if sizes:
            number = sizes.pop()
            initial = initial if isinstance(initial, tuple) else (initial,) * number
            scale = (scale,) * number if isinstance(scale, float) else scale
        for name, value in (("scale", scale), ("initial_scale", initial), ("per_column", number)):
            object.__setattr__(self, name, value)

    def _located(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Means (N, D), and scales that broadcast to them."""
        if self.takes_scale:
            return halves(f, 1)
        return f, over_columns(parameter_value(self.scale, "scale"), f, self.per_column)

    def _located_draws(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Means of draws (S, N, D), and scales that broadcast to them."""
        if self.takes_scale:
            mean, scale = halves(f, 2)
            return mean.contiguous(), scale
        return f, of_draws(parameter_value(self.scale, "scale"), f, self.per_column)

    def _diagonal_root(self, root: Tensor, f: Tensor) -> Tensor:
        """R of `fisher_root` for means that do not mix, (N, K, K); of scales behind them, which are known, it is 0."""
        if self.takes_scale:
            root = torch.cat([root, torch.zeros_like(root)], dim=1)
        return root.expand(f.shape).flatten(1).diag_embed()


def _is_given(scale: Any) -> bool:
    return isinstance(scale, str) and scale == "given"


def halves(f: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The network's own columns of f, and the scales behind them."""
    if f.shape[dim] % 2:
        raise ValueError(
            f"f must hold D means and then D given scales, (N, 2 D); got {tuple(f.shape)}. Call the model at "
            "bayesuq.Given(x, scale)."
        )
    mean, scale = f.chunk(2, dim=dim)
    return mean, scale


def over_columns(value: float | Sequence[float] | Tensor, f: Tensor, per_column: bool | int) -> Tensor:
    """A parameter as a tensor that broadcasts to f, (N, D, ...)."""
    tensor = torch.as_tensor(value, dtype=f.dtype, device=f.device)
    if not per_column:
        return tensor
    _check_columns(tensor, f.shape[1])
    return tensor.reshape(-1, *[1] * (f.ndim - 2))


def of_draws(value: float | Sequence[float] | Tensor, f: Tensor, per_column: bool | int) -> Tensor:
    """A parameter as a tensor that broadcasts to draws of f, (S, N, D); it may differ from draw to draw."""
    tensor = torch.as_tensor(value, dtype=f.dtype, device=f.device)
    if not per_column:
        return tensor.reshape(-1, 1, 1)
    _check_columns(tensor, f.shape[2])
    return tensor.reshape(-1, 1, f.shape[2])


def _check_columns(scales: Tensor, num_columns: int) -> None:
    if scales.shape[-1:] != (num_columns,):
        raise ValueError(
            f"The likelihood has scales for {scales.shape[-1]} columns; the network gives {num_columns}. Give as many, "
            f"or per_column={num_columns} for scales that are learned or inferred."
        )
