"""The public door for arrays: what users pass in becomes a dense, finite tensor, or an error that says what to do.

Every check stands here once; the code behind the door trusts its tensors.
"""

import warnings
from collections.abc import Callable, Iterable
from numbers import Real
from typing import Any, Protocol, TypeAlias, TypeVar, get_args, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.gradients import detached
from bayesuq.waiting import are_noted, check, note

T = TypeVar("T")


@runtime_checkable
class SupportsArray(Protocol):
    """Anything that numpy can turn into an array, such as a pandas object."""

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray[Any, Any]:
        """The numpy array."""
        ...


ArrayLike: TypeAlias = Tensor | np.ndarray[Any, Any] | SupportsArray | list[Any] | tuple[Any, ...]


def to_tensor(value: ArrayLike, name: str) -> Tensor:
    """A dense real tensor of the same values; shares memory with `value` where it can.

    Args:
        value: Tensor, numpy array, pandas object, or nested sequence of numbers.
        name: What the caller calls it, for the error.

    Returns:
        A boolean, integer or floating tensor, out of any graph, unless gradients are kept.

    Raises:
        TypeError: Sparse, masked, complex, text, date or object arrays.
        ValueError: Unsigned integers of 2^63 or more.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise TypeError(f"`{name}` must be dense; got a tensor of layout {value.layout}. Call `.to_dense()` first.")
        tensor = detached(value)
        if type(tensor) is not Tensor:  # images with metadata and the like, whose kind would spread to all results
            tensor = tensor.as_subclass(Tensor)
    else:
        tensor = _from_numpy(value, name)
    if tensor.is_complex():
        raise TypeError(f"`{name}` must be real; got {tensor.dtype}. Pass real and imaginary parts as columns.")
    return tensor


def _from_numpy(value: Any, name: str) -> Tensor:
    if np.ma.isMaskedArray(value):
        raise TypeError(f"`{name}` must not be a masked array. Drop or fill the masked entries first.")
    if hasattr(value, "toarray"):
        raise TypeError(f"`{name}` must be dense; got {type(value).__name__}. Call `.toarray()` first.")
    try:
        array = np.asarray(value)
    except (ValueError, RuntimeError) as error:  # ragged; a list of tensors that require gradients
        raise TypeError(f"`{name}` must be a rectangular array of numbers; {error}") from error
    array = _nullable(value) if array.dtype == object and _holds_numbers(value) else array
    if array.dtype == object and array.ndim == 0:
        inner = f" Pass its `.{name}`." if hasattr(value, name) else ""
        raise TypeError(f"`{name}` must be numbers, in an array or a sequence; got a {type(value).__name__}.{inner}")
    if array.dtype == object and array.size and all(isinstance(one, Real) for one in array.flat):
        raise TypeError(f"`{name}` must hold numbers as such; got them as objects. Pass `{name}.astype(float)`.")
    if array.dtype.kind not in "biufc":
        raise TypeError(
            f"`{name}` must hold numbers; got {_without_numbers(value, array)}. Encode categories, dates and text as "
            "numbers, as `bayesuq.read_table` does."
        )
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"`{name}` must fit int64; got {array.max()}. Use `{name}.astype(float)`.")
        array = array.astype(np.int64)  # torch has few operations on wide unsigned integers
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if any(stride < 0 for stride in array.strides) or not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    array = np.ascontiguousarray(array).reshape(array.shape)
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_ReadOnly(array)))


def _holds_numbers(value: Any) -> bool:
    """Whether all of a pandas object is of dtypes that are numbers; those that know missing values become objects."""
    kinds = {getattr(dtype, "kind", "O") for dtype in _dtypes(value)}
    return bool(kinds) and kinds <= set("biuf")


def _nullable(value: Any) -> "np.ndarray[Any, Any]":
    """The numbers of a pandas object, what is missing being NaN."""
    dtype = np.result_type(*(getattr(dtype, "numpy_dtype", dtype) for dtype in _dtypes(value)))
    if not np.asarray(value.isna()).any():
        return np.asarray(value.to_numpy(dtype=dtype))
    return np.asarray(value.to_numpy(dtype=dtype if dtype.kind == "f" else np.float64, na_value=np.nan))


def _dtypes(value: Any) -> list[Any]:
    """Those of a pandas object's columns, or its own; none of anything else."""
    if not (hasattr(value, "isna") and hasattr(value, "to_numpy")):
        return []
    return list(value.dtypes) if column_names(value) is not None else [value.dtype]


def warn_of_other_order(x: Any, y: Any) -> None:
    """Warn where two pandas objects have the same labels of rows in another order: rows are paired by their place.

    Warns:
        UserWarning: It names the first row whose labels differ.
    """
    one: Any = getattr(x, "index", None)
    other: Any = getattr(y, "index", None)
    if not all(hasattr(index, "equals") for index in (one, other)) or len(one) != len(other) or one.equals(other):
        return
    if not one.is_unique or not one.isin(other).all():
        return  # of one that was numbered anew, places are all that there is
    place = int((np.asarray(one) != np.asarray(other)).argmax())
    warn_of_fit(
        f"The rows of `x` and `y` have the same labels in another order: row {place} is {one[place]} in `x` and "
        f"{other[place]} in `y`. They are paired by their places. If labels are to pair them, pass "
        "`y.loc[x.index]`; if places are right, `y.to_numpy()`.",
        UserWarning,
    )


def column_names(value: Any) -> tuple[str, ...] | None:
    """The names of a data frame's columns; None of anything else."""
    columns = getattr(value, "columns", None)
    if columns is None or isinstance(columns, str) or not hasattr(value, "dtypes"):
        return None
    return tuple(map(str, columns))


def _without_numbers(value: Any, array: "np.ndarray[Any, Any]") -> str:
    """What is no number, in words: of a data frame, its columns that hold none."""
    names = column_names(value)
    if names is None:
        return f"dtype {array.dtype}"
    kinds = {name: kind for name, kind in zip(names, value.dtypes, strict=True) if kind.kind not in "biufc"}
    shown = ", ".join(f"{name!r} is {kind}" for name, kind in [*kinds.items()][:NAMED])
    more = ", ..." if len(kinds) > NAMED else ""
    return f"dtype {array.dtype}, for {len(kinds)} of {len(names)} columns: {shown}{more}"


class _ReadOnly:
    """A read-only array, such as a memory map, as torch takes it without a copy or a warning: nothing here writes."""

    def __init__(self, array: "np.ndarray[Any, Any]") -> None:
        self._array = array  # which owns the memory
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = {**array.__array_interface__, "data": (address, False)}


def to_floating(value: ArrayLike, name: str) -> Tensor:
    """As `to_tensor`, in floating point: float64 stays float64, all else becomes float32 with its scale unchanged.

    Whole numbers that float32 does not hold, beyond 2^24, become float64; of those on an accelerator, which would be
    waited for, all that may be so large.
    """
    tensor = to_tensor(value, name)
    return tensor.to(torch.float64 if tensor.dtype == torch.float64 or _may_lose_digits(tensor) else torch.float32)


def _may_lose_digits(tensor: Tensor) -> bool:
    """Whether whole numbers may change in float32."""
    if tensor.dtype not in (torch.int32, torch.int64) or tensor.numel() == 0:
        return False
    if tensor.device.type != "cpu" or are_noted(tensor):
        return True
    low, high = tensor.aminmax()
    return bool(low < -LARGEST_WHOLE) or bool(high > LARGEST_WHOLE)


LARGEST_WHOLE = 2**24  # up to which float32 holds every whole number
LONGEST_REASON = 120  # characters of torch's own words
NAMED = 3  # columns that an error shows
VOID = "name a void label as `ignore_index`"
FRACTIONS = (
    "`y` must hold whole-number labels; got fractions. Is this a regression target? Then give the model "
    "likelihoods.Normal(). Of labels that were made fractions, pass `y.long()`."
)
OVERFLOW = "They overflow: give them in a larger unit, as bayesuq.Standardizer does."


def check_finite(tensor: Tensor, name: str, remedy: str = "Drop or impute them.") -> None:
    """Raise a ValueError that counts and locates the rows of `tensor` with NaN or infinite entries."""
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    # NaN spreads to both; `isfinite` would take twice the tensor's memory.
    low, high = tensor.detach().aminmax()
    check(low.isfinite() & high.isfinite(), lambda: _not_finite(tensor, name, remedy))


def _not_finite(tensor: Tensor, name: str, remedy: str) -> ValueError:
    rows = (~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1) if tensor.ndim else (~tensor.isfinite())[None]
    first = int(rows.nonzero()[0])
    return ValueError(
        f"`{name}` must be finite; {int(rows.sum())} of {len(rows)} rows hold NaN or infinite values, the first is row "
        f"{first}. {remedy}"
    )


def check_inputs(value: ArrayLike) -> Tensor:
    """Network inputs: finite, (N, ...) with at least one row and at least two dimensions.

    Whole numbers become int64 and stay whole, since no float holds all of them: a network may take them for places in a
    table. Bytes and booleans, which are pixels and flags, become float32, their scale unchanged.

    Raises:
        TypeError: See `to_tensor`.
        ValueError: One-dimensional, empty or not finite.
    """
    x = to_tensor(value, "x")
    x = to_floating(x, "x") if x.is_floating_point() or x.dtype in (torch.bool, torch.uint8) else x.long()
    if x.ndim < 2:
        raise ValueError(
            f"`x` must have shape (N, D) or (N, channels, ...); got {tuple(x.shape)}. Use `x.reshape(-1, 1)` for N "
            "inputs of one feature, `x.reshape(1, -1)` for one input."
        )
    if len(x) == 0 or x.numel() == 0:
        raise ValueError(f"`x` must not be empty; got shape {tuple(x.shape)}.")
    check_finite(x, "x" if x.ndim > 2 else _first_missing(x, value))
    return x


def _first_missing(x: Tensor, value: Any) -> str:
    """What inputs are called that are not finite: with their first such column, where columns have names."""
    names = column_names(value)
    if names is None or not x.is_floating_point() or x.isfinite().all():
        return "x"
    return f"x[{names[int((~x.isfinite()).any(dim=0).nonzero()[0])]!r}]"


def as_real(x: Tensor, device: torch.device, dtype: torch.dtype, name: str = "x") -> Tensor:
    """Checked inputs as real numbers of a dtype, on a device.

    Raises:
        ValueError: Values that are not finite in that dtype.

    Warns:
        UserWarning: Whole numbers that the dtype does not hold.
    """
    real = x.to(device, dtype)
    if x.is_floating_point():
        check_finite(real, f"{name} in {dtype}", OVERFLOW)
        return real
    largest = int(2 / torch.finfo(dtype).eps)  # up to which every whole number is held
    low, high = x.aminmax()

    def tell(is_beyond: float) -> None:
        changed = int((real.to(x.device, torch.int64) != x).reshape(len(x), -1).any(dim=1).sum()) if is_beyond else 0
        if changed:
            warnings.warn(
                f"{changed} of {len(x)} rows of whole-number `{name}` change in {dtype}, which holds whole numbers up "
                f"to {largest}. Subtract what is common to all, or make the network float64 by `net.double()`.",
                UserWarning,
                stacklevel=4,
            )

    note((low < -largest) | (high > largest), tell)
    return real


def as_labels(y: ArrayLike, *, num_classes: int | None = None, void: str = VOID) -> Tensor:
    """`y` as int64 labels of the shape they came in.

    Args:
        y: Whole numbers of any type.
        num_classes: C, where it is known.
        void: What an error says of labels that are to count nowhere.

    Raises:
        TypeError: Not numbers, or numbers that are not whole.
        ValueError: NaN, or a label outside {0, ..., num_classes - 1}.
    """
    labels = to_tensor(y, "y")
    if labels.is_floating_point():
        check_finite(labels, "y")
        check((labels == labels.round()).all(), lambda: TypeError(FRACTIONS))
    labels = labels.long()
    if num_classes is not None and labels.numel():
        lowest, highest = labels.aminmax()
        check((lowest >= 0) & (highest < num_classes), lambda: _outside(lowest, highest, num_classes, void))
        if are_noted(labels):  # a kernel that looks them up must not meet others before they are refused
            return labels.clamp(0, num_classes - 1)
    return labels


def _outside(lowest: Tensor, highest: Tensor, num_classes: int, void: str) -> ValueError:
    return ValueError(
        f"`y` must hold labels from 0 to {num_classes - 1}; got {int(lowest)} to {int(highest)}. Renumber the labels, "
        f"give the network an output for each class, or {void}."
    )


def as_targets(y: ArrayLike, *, maps: bool = False) -> Tensor:
    """`y` as finite real targets (N, D), (N,) being taken as D = 1; of maps also (N, C, ...).

    Raises:
        TypeError: See `to_tensor`.
        ValueError: NaN, infinite values, or another number of dimensions.
    """
    targets = to_floating(y, "y")
    if targets.ndim == 1:
        targets = targets.unsqueeze(-1)
    if targets.ndim != 2 and not (maps and targets.ndim > 2):
        raise ValueError(f"`y` must have shape (N, D) or (N,); got {tuple(targets.shape)}.")
    check_finite(targets, "y", "Leave these rows out; to fit with missing targets, give them weight 0 in a Dataset.")
    return targets


def chosen_rows(index: ArrayLike | range, number: int, name: str = "index") -> Tensor:
    """Which of N rows are meant, as whole numbers or booleans, on the CPU or where they are.

    Raises:
        TypeError: Fractions.
        ValueError: More or less than one dimension, or booleans of another length.
    """
    chosen = to_tensor(list(index) if isinstance(index, range) else index, name)
    if chosen.is_floating_point() and chosen.numel():
        raise TypeError(f"`{name}` must hold whole numbers or booleans; got {chosen.dtype}.")
    is_mask = chosen.dtype == torch.bool
    if chosen.ndim != 1 or (is_mask and len(chosen) != number):
        raise ValueError(
            f"`{name}` must have one dimension, as [3] for row 3, and N = {number} entries if boolean; got "
            f"{tuple(chosen.shape)}."
        )
    return chosen if is_mask else chosen.long()  # torch takes bytes for a mask


def check_positive(value: float, name: str) -> float:
    """`value` as a finite float above zero, or a ValueError that names it."""
    number = _real(value, name)
    if not 0 < number < float("inf"):
        raise ValueError(f"`{name}` must be a finite number above 0; got {value!r}.")
    return number


def check_each(values: object, name: str, check_one: Callable[[Any, str], T]) -> tuple[T, ...]:
    """Several values, each as `check_one` has it, or a TypeError where one value or a text was passed."""
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be a list, such as [{values}]; got {values!r}.")
    return tuple(check_one(value, name) for value in values)


def check_finite_number(value: float, name: str) -> float:
    """`value` as a finite float, or a ValueError that names it."""
    number = _real(value, name)
    if not abs(number) < float("inf"):
        raise ValueError(f"`{name}` must be a finite number; got {value!r}.")
    return number


def check_fraction(value: float, name: str) -> float:
    """`value` as a float strictly between 0 and 1, or a ValueError that names it."""
    number = _real(value, name)
    if not 0 < number < 1:
        raise ValueError(f"`{name}` must lie strictly between 0 and 1; got {value!r}.")
    return number


def check_share(value: float, name: str) -> float:
    """`value` as a float in [0, 1], or a ValueError that names it."""
    number = check_finite_number(value, name)
    if not 0 <= number <= 1:
        raise ValueError(f"`{name}` must be in [0, 1]; got {value!r}.")
    return number


def check_probability(value: float, name: str) -> float:
    """`value` as a float in [0, 1), or a ValueError that names it."""
    number = _real(value, name)
    if not 0 <= number < 1:
        raise ValueError(f"`{name}` must lie in [0, 1); got {value!r}.")
    return number


def check_count(value: int, name: str, *, minimum: int = 1) -> int:
    """`value` as an int of at least `minimum`, or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be a whole number; got {value!r} of type {type(value).__name__}.")
    if value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}; got {value}.")
    return int(value)


def check_one_of(value: object, name: str, literal: Any) -> None:
    """Refuse a word that is not one of a `Literal`'s, with an error that names it and them.

    Example:
        >>> from typing import Literal
        >>> check_one_of("nut", "kernel", Literal["nuts", "hmc"])
        Traceback (most recent call last):
        ValueError: `kernel` must be one of 'nuts', 'hmc'; got 'nut'.
    """
    if value not in get_args(literal):
        known = ", ".join(repr(one) for one in get_args(literal))
        raise ValueError(f"`{name}` must be one of {known}; got {value!r}.")


def check_device(device: torch.device | str) -> torch.device:
    """The device, or a ValueError where this machine does not have it: nothing ever falls back to the CPU silently."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"`device` {str(device)!r} cannot be used here: {_told_of_device(str(error))}") from error


def _told_of_device(message: str) -> str:
    """What torch says of a device that is not here, without its list of all that it knows of."""
    first = message.splitlines()[0]
    if len(first) <= LONGEST_REASON:
        return first
    here = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    return f"this machine has {', '.join(here)}."


def _real(value: float, name: str) -> float:
    if isinstance(value, bool | str) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"`{name}` must be a number; got {value!r} of type {type(value).__name__}.")
    return float(value)
