"""Arrays from .npz files that are not trusted: plain numbers of the form asked for, never a pickle."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from torch import Tensor

from bayesuq.arrays import check_finite, to_tensor


@dataclass(frozen=True)
class Form:
    """What an array must be: numbers of one of these types, in one of these numbers of dimensions."""

    types: tuple[type[np.generic], ...]
    ndims: tuple[int, ...]


def pixels(*ndims: int) -> Form:
    """Bytes, 0 to 255."""
    return Form((np.uint8,), ndims)


def whole_numbers(*ndims: int) -> Form:
    """Labels, or rows."""
    return Form((np.integer,), ndims)


def real_numbers(*ndims: int) -> Form:
    """Any real numbers; none may be NaN or infinite."""
    return Form((np.floating, np.integer, np.bool_), ndims)


@contextmanager
def read_arrays(path: Path, forms: Mapping[str, Form]) -> Iterator[dict[str, Tensor]]:
    """The named arrays of an .npz file as tensors; only these are read.

    A context, so that a ValueError raised while they are used is told of the file too.

    Args:
        path: Of the file.
        forms: The form of each array by its name.

    Raises:
        ValueError: Names file and array: no .npz, a missing array, objects or text, another form, NaN.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "rows.npz")
        >>> np.savez(path, train_index=[3, 1])
        >>> with read_arrays(path, {"train_index": whole_numbers(1)}) as arrays:
        ...     arrays["train_index"]
        tensor([3, 1])
    """
    try:
        yield {name: _read_array(path, name, form) for name, form in forms.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_array(path: Path, name: str, form: Form) -> Tensor:
    array = _read_member(path, name)
    if not any(np.issubdtype(array.dtype, kind) for kind in form.types) or array.ndim not in form.ndims:
        kinds = " or ".join(kind.__name__ for kind in form.types)
        ndims = " or ".join(map(str, form.ndims))
        raise ValueError(f"`{name}` must be {kinds} with {ndims} dimensions; got {array.dtype} of shape {array.shape}.")
    tensor = to_tensor(array, name)
    check_finite(tensor, name)
    return tensor


def _read_member(path: Path, name: str) -> np.ndarray[Any, Any]:
    try:
        with path.open("rb") as file:  # numpy leaves a broken file open that it has opened itself
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, NpzFile):
                raise ValueError("It holds one bare array.")
            names = archive.files
            array = archive[name] if name in names else None
    except (ValueError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"`{name}` cannot be read: the file must be an .npz of plain numbers. {error}") from error
    if array is None:
        raise ValueError(f"`{name}` is missing; the file holds {', '.join(names) or 'nothing'}.")
    if not isinstance(array, np.ndarray):  # numpy hands on the bytes of a member that is no array
        raise ValueError(f"`{name}` is not an array.")
    return array
