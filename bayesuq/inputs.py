"""Inputs of one part or several: a tensor, or a tuple, mapping or dataclass of tensors with N rows each.

Users write the structure as their network takes it. Inside, `Parts` holds it, and is cut, moved and joined by rows as
one tensor is, so that the code between the door and the network reads alike for both. `apply` hands the structure to
the network again.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from bayesuq.arrays import ArrayLike, as_real, check_finite, check_inputs, column_names, to_floating, to_tensor
from bayesuq.options import shortened

__all__ = ["Parts", "structure"]
__dir__ = __all__.copy


ONE = inspect.Parameter  # whose kinds say how an argument is passed


class Given(NamedTuple):
    """Inputs, and the known scale of each row's noise, which likelihoods of `scale="given"` take.

    The network sees `x` alone; the scales follow its outputs to the likelihood as further columns.
    """

    x: Any  # a tensor, (N, ...), or several parts, as the network takes it
    scale: Any  # in units of y and above 0: of each row (N,), or of each target (N, D)


class Parts:
    """Inputs of several parts, with the rows of a tensor.

    Attributes:
        value: The structure, with tensors for leaves.
    """

    def __init__(self, value: Any) -> None:
        self.value = value

    def __len__(self) -> int:
        return len(self.leaves()[0])

    def __repr__(self) -> str:
        return f"Parts({described(self.value)})"

    def __getitem__(self, rows: Any) -> "Parts":
        return self.map(lambda leaf: leaf[rows])

    @property
    def device(self) -> torch.device:
        """Of all parts."""
        return self.leaves()[0].device

    def leaves(self) -> list[Tensor]:
        """The tensors, in order."""
        return list(named_leaves(self.value).values())

    def numel(self) -> int:
        """Numbers in all of them."""
        return sum(leaf.numel() for leaf in self.leaves())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Parts":
        """The same structure of other tensors."""
        return Parts(mapped(function, self.value))

    def to(self, device: torch.device | str) -> "Parts":
        """On another device."""
        return self.map(lambda leaf: leaf.to(device))

    def clone(self) -> "Parts":
        """A copy."""
        return self.map(torch.clone)

    def split(self, sizes: int | Sequence[int]) -> list["Parts"]:
        """Runs of rows, of one size or of those given, as `torch.Tensor.split` has it."""
        if isinstance(sizes, int):
            sizes = [min(sizes, len(self) - start) for start in range(0, len(self), sizes)]
        return [self[start:stop] for start, stop in pairwise(accumulate(sizes, initial=0))]


Inputs: TypeAlias = Tensor | Parts


def is_structure(value: Any) -> bool:
    """Whether a value is inputs of several parts: a mapping, a dataclass, or a tuple of arrays, and no array itself."""
    if isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return True
    if not isinstance(value, tuple) or not any(hasattr(part, "__array__") or is_structure(part) for part in value):
        return False
    return all(part is None or hasattr(part, "__array__") or is_structure(part) for part in value)


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with other leaves; None, a part that is not there, stays."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: mapped(function, part) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = [mapped(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: mapped(function, getattr(value, name)) for name in fields})
    return function(value)


def named_leaves(value: Any, name: str = "x") -> dict[str, Any]:
    """The leaves by where they stand, such as `x.image` or `x[0]`; of an array, itself; scales by that name."""
    if value is None:
        return {}
    if isinstance(value, Parts):
        return named_leaves(value.value, name)
    if isinstance(value, Given):
        parts = {name: value.x, "scale": value.scale}
    elif isinstance(value, Mapping):
        parts = {f"{name}.{key}": part for key, part in value.items()}
    elif isinstance(value, tuple):
        parts = {f"{name}[{place}]": part for place, part in enumerate(value)}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {f"{name}.{field.name}": getattr(value, field.name) for field in dataclasses.fields(value)}
    else:
        return {name: value}
    return {place: leaf for inner, part in parts.items() for place, leaf in named_leaves(part, inner).items()}


def checked(x: Any) -> Inputs:
    """Inputs as a user passes them: see `bayesuq.arrays.check_inputs`; parts may be one-dimensional, and booleans stay.

    Raises:
        TypeError: Parts that are no arrays of numbers; batches whose rows differ in size.
        ValueError: Parts that are empty or not finite, or of different numbers of rows.
    """
    if isinstance(x, Parts):
        return x
    _refuse_ragged(x)
    if not is_structure(x):
        return check_inputs(x)
    found = {name: _checked_part(part, name) for name, part in named_leaves(x).items()}
    sizes = {name: len(part) for name, part in found.items()}
    if not found or len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(f"All parts of `x` must have the same N rows, at least one; got {sizes}.")
    leaves = iter(found.values())
    parts = Parts(mapped(lambda _: next(leaves), x))
    if isinstance(parts.value, Given):
        _check_scale(parts.value.scale)
    return parts


def in_columns(x: Any, names: tuple[str, ...] | None) -> Any:
    """Inputs with the columns of these names in their order, where `x` is a data frame (in a `Given`, too).

    Args:
        x: As a user passes it; of anything but a data frame, and of a frame with just these columns, it comes back.
        names: Of the fitted columns; None where they had none, and a frame is read by its places.

    Raises:
        ValueError: Columns that are missing, or that the fitted data did not have.
    """
    if isinstance(x, Given):
        return x._replace(x=in_columns(x.x, names))
    found = column_names(x)
    if found is None or names is None or found == names:
        return x
    return x[[x.columns[place] for place in places_of(names, found)]]


def places_of(names: tuple[str, ...], found: tuple[str, ...]) -> list[int]:
    """Where the columns that were fitted stand among those of other data.

    Raises:
        ValueError: Columns that are missing, that the fitted data did not have, or that are there twice.
    """
    if sorted(names) != sorted(found) or len(set(names)) < len(names):
        missing = [name for name in names if name not in found]
        further = [name for name in found if name not in names]
        told = [f"it lacks {shortened([*map(repr, missing)])}"] if missing else []
        told += [f"{shortened([*map(repr, further)])} was not fitted"] if further else []
        raise ValueError(
            f"`x` must have the columns {shortened([*map(repr, names)])} as the fitted data had; "
            f"{' and '.join(told) or 'one is there twice'}. If its columns are these in order under other names, pass "
            "`x.to_numpy()`."
        )
    return [found.index(name) for name in names]


def structure(x: Any) -> Any:
    """As the user has it."""
    return x.value if isinstance(x, Parts) else x


def without_scale(x: Any) -> Any:
    """What the network sees of inputs: all but the scales of their noise."""
    value = structure(x)
    return as_rows(value.x) if isinstance(value, Given) else x


def with_unit_scale(x: Inputs) -> Inputs:
    """The same inputs, every scale of their noise, where they bring such, being 1."""
    value = structure(x)
    return Parts(value._replace(scale=torch.ones_like(value.scale))) if isinstance(value, Given) else x


def as_rows(x: Any) -> Inputs:
    """As it is cut and joined; the reverse of `structure`."""
    return x if isinstance(x, Tensor | Parts) else Parts(x)


def require_tensor(x: Any, taker: str) -> None:
    """Raise a TypeError where inputs have several parts, and what takes them is made for one tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{taker} takes inputs that are one tensor; got {described(x)}. {_remedy(x)}")


def on_leaves(function: Callable[[Tensor], Tensor], x: Inputs) -> Inputs:
    """The same rows with other tensors."""
    return function(x) if isinstance(x, Tensor) else x.map(function)


def row_kind(x: Inputs) -> tuple[Any, ...]:
    """What rows must share for a network to treat them alike: shapes and dtypes, part by part."""
    return tuple((name, leaf.shape[1:], leaf.dtype) for name, leaf in named_leaves(x).items())


def joined(batches: Sequence[Inputs]) -> Inputs:
    """The rows of all.

    Raises:
        ValueError: Structures that differ.
    """
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    columns = [named_leaves(batch) for batch in batches]
    if any(column.keys() != columns[0].keys() for column in columns):
        raise ValueError(f"Only inputs of the same parts join; got {[list(column) for column in columns]}.")
    leaves = iter([torch.cat(parts) for parts in zip(*(column.values() for column in columns), strict=True)])
    return first.map(lambda _: next(leaves))


def device_of(x: Any) -> torch.device:
    """Where the tensors of inputs as a user passes them are; the CPU for arrays, and for parts in several places."""
    devices = {leaf.device for leaf in named_leaves(x).values() if isinstance(leaf, Tensor)}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")


def described(x: Any) -> str:
    """The shapes, for an error."""
    if isinstance(x, Tensor):
        return f"`x` of shape {tuple(x.shape)}"
    return ", ".join(f"`{name}` of shape {tuple(leaf.shape)}" for name, leaf in named_leaves(x).items())


def in_dtype(x: Inputs, device: torch.device, dtype: torch.dtype, *, whole: bool) -> Inputs:
    """Checked inputs on a device, real numbers in a dtype; whole numbers only where they are not to stay whole."""

    def cast(name: str, leaf: Tensor) -> Tensor:
        is_kept = leaf.dtype == torch.bool or (whole and not leaf.is_floating_point())
        return leaf.to(device) if is_kept else as_real(leaf, device, dtype, name)

    if isinstance(x, Tensor):
        return cast("x", x)
    leaves = iter([cast(name, leaf) for name, leaf in named_leaves(x).items()])
    return x.map(lambda _: next(leaves))


def arguments(net: nn.Module, x: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a network is called on inputs.

    A tensor, and in general any structure, is its one argument. A mapping whose keys are all names of parameters of
    `forward` is passed by these names, as Hugging Face's networks take it; so it is where `forward` takes any names and
    has some of the keys, or no argument but these. A tuple is passed as so many arguments where `forward` needs so
    many, or takes any number.
    """
    value = structure(x)
    if isinstance(value, Given):
        value = value.x
    if isinstance(value, Tensor):
        return (value,), {}
    signature = inspect.signature(net.forward)
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    placed = [name for name, kind in kinds.items() if kind in (ONE.POSITIONAL_ONLY, ONE.POSITIONAL_OR_KEYWORD)]
    if isinstance(value, Mapping):
        takes_others = ONE.VAR_KEYWORD in kinds.values() and (not placed or bool(value.keys() & kinds.keys()))
        if takes_others or value.keys() <= kinds.keys():
            return (), dict(value)
    if isinstance(value, tuple) and _binds(signature, value):
        takes_any = ONE.VAR_POSITIONAL in kinds.values() and not placed
        if takes_any or not _binds(signature, (value,)):
            return value, {}
    return (value,), {}


def check_call(net: nn.Module, x: Any) -> None:
    """Refuse inputs that do not fit the arguments of `forward`.

    Raises:
        ValueError: With the remedy.
    """
    args, named = arguments(net, x)
    signature = inspect.signature(net.forward)
    try:
        signature.bind(*args, **named)
    except TypeError as error:
        raise ValueError(
            f"The network is called as forward{signature}, to which {described(x)} does not fit: {error}. A mapping is "
            "passed by its keys where these are names of arguments, such as "
            f"{{{next(iter(signature.parameters))!r}: x}}, and a tuple one by one."
        ) from error


def output(found: Any) -> Any:
    """The outputs f of what a network returns: itself, or what it calls logits, as an attribute or a key."""
    if isinstance(found, Tensor):
        return found
    if isinstance(found, dict) and "logits" in found:
        return found["logits"]
    return getattr(found, "logits", found)


def apply(net: nn.Module, x: Any) -> Any:
    """The outputs of a network, called as `arguments` says."""
    if isinstance(x, Tensor):
        return output(net(x))
    args, named = arguments(net, x)
    return with_scales(output(net(*args, **named)), x)


def with_scales(f: Any, x: Any) -> Any:
    """Outputs f (N, D) followed by the scales of their rows' noise, (N, 2 D), where inputs bring them; else f.

    Raises:
        ValueError: Outputs or scales of other shapes.
    """
    if isinstance(x, Tensor) or not isinstance(structure(x), Given):
        return f
    scale = structure(x).scale
    scale = scale.unsqueeze(1) if scale.ndim == 1 else scale
    if f.ndim != 2 or scale.ndim != 2 or scale.shape[1] not in (1, f.shape[1]):
        raise ValueError(
            f"`scale` must have shape (N,) or (N, D) for network outputs f of shape (N, D); got {tuple(scale.shape)} "
            f"for f of shape {tuple(f.shape)}."
        )
    return torch.cat([f, scale.expand_as(f)], dim=1)


class OneArgument(nn.Module):
    """A network that takes inputs of several parts as one argument, so that others can follow it in a sequence."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Any) -> Any:
        """Its outputs."""
        return apply(self.net, x)


def _binds(signature: inspect.Signature, values: tuple[Any, ...]) -> bool:
    try:
        signature.bind(*values)
    except TypeError:
        return False
    return True


def _remedy(x: Any) -> str:
    """What to pass where one tensor is wanted."""
    if isinstance(structure(x), Given):
        return (
            "Leave the scales of the noise out: `gp.fit` takes them as `noise_scale`, and variational's own guides, "
            "such as `variational.full_rank`, with the data."
        )
    return "Join the parts, as by `torch.cat`, or give it the features that a network makes of them."


def _refuse_ragged(x: Any) -> None:
    """Raise a TypeError of batches that do not hold a row of one size for each target, with the way to make them so."""
    pad = 'pass {"tokens": padded, "lengths": lengths}, both with N rows'
    if isinstance(x, nn.utils.rnn.PackedSequence):
        what = "a PackedSequence"
        remedy = f"Call `torch.nn.utils.rnn.pad_packed_sequence(x, batch_first=True)`, {pad}, and pack in `forward`."
    elif isinstance(x, Tensor) and x.is_nested:
        what, remedy = "a nested tensor", f"Call `torch.nested.to_padded_tensor(x, 0)` and {pad}."
    elif hasattr(x, "edge_index"):
        what = f"a graph, {type(x).__name__}, whose rows are nodes"
        remedy = (
            "Pad its graphs, nodes as (N, nodes, features) and edges as (N, edges, 2), and take them apart in "
            '`forward`: see "Any network, any batch" in the guide.'
        )
    elif isinstance(x, list) and all(isinstance(part, Tensor) for part in x) and len({part.shape for part in x}) > 1:
        what = "a list of tensors of different sizes"
        remedy = (
            "Pass several inputs of a network as a tuple, each with N rows. Of N sequences of different lengths call "
            f"`torch.nn.utils.rnn.pad_sequence(x, batch_first=True)` and {pad}."
        )
    else:
        return
    raise TypeError(f"`x` must have a row of one size for each target; got {what}. {remedy}")


def _check_scale(scale: Tensor) -> None:
    if not bool((scale > 0).all()):
        rows = (scale <= 0).reshape(len(scale), -1).any(dim=1)
        raise ValueError(
            f"`scale` must be positive; {int(rows.sum())} of {len(scale)} rows hold 0 or below, the first is "
            f"row {int(rows.nonzero()[0])}. Targets known without noise need a small one."
        )


def _checked_part(part: ArrayLike, name: str) -> Tensor:
    try:
        tensor = to_tensor(part, name)
    except TypeError as error:
        raise TypeError(f"{error} Leave out parts of `x` that are not for the network.") from error
    if tensor.ndim == 0:
        raise ValueError(
            f"`{name}` must have N rows; got a single number. An option of `forward` belongs into the network: wrap it "
            "in a module that passes the option."
        )
    if tensor.is_floating_point() or tensor.dtype == torch.uint8:
        tensor = to_floating(tensor, name)
    elif tensor.dtype != torch.bool:
        tensor = tensor.long()
    check_finite(tensor, name)
    return tensor
