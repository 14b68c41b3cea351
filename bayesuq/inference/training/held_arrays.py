"""The numbers that a data set of the user's own holds, all of which count where fits are told apart.

A data set of torch's kind is code that gives rows. To read all of them takes as long as an epoch; to digest the arrays
that it reads them from takes a second a GiB, and leaves no row out. Whatever else an object may hold (file names,
options, functions) is not looked at: it may be another elsewhere though no row differs.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset as Rows

from bayesuq.arrays import column_names
from bayesuq.data import Dataset
from bayesuq.inference.training.identity import pieces

MOST_BYTES = 2**34  # of one data set, read in about 16 s
CHUNK = 2**22  # bytes
NUMBERS = "biufcmM"  # the kinds of numpy's dtypes that are nothing but their bits
DEEPEST = 8  # containers within each other, some of which may hold themselves

Numbers = Tensor | np.ndarray[Any, Any]


def held_digests(dataset: Any) -> dict[str, str]:
    """A short name for the numbers in each attribute of a data set that holds some; none where they are above 16 GiB.

    An attribute may be a tensor, an array, a memory map, a data frame, another data set, and a list, a tuple or a
    mapping by name of these or of numbers. A cache that is filled row by row is none of them while it has gaps, or row
    numbers as its names.
    """
    held = dict(_held(dataset, DEEPEST))
    if sum(each.nbytes for numbers in held.values() for each in numbers) > MOST_BYTES:
        return {}
    return {name: _digest(numbers) for name, numbers in held.items()}


def _held(dataset: Any, depth: int) -> Iterator[tuple[str, list[Numbers]]]:
    for name, value in sorted(getattr(dataset, "__dict__", {}).items()):
        numbers = _numbers(value, depth)
        if numbers:
            yield name, numbers


def _numbers(value: Any, depth: int) -> list[Numbers]:
    """All tensors and arrays in a value that consists of them; none where there is something else in it."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, np.ndarray):
        return [value] if value.dtype.kind in NUMBERS else []
    if not depth:
        return []
    if isinstance(value, Rows | Dataset):
        return [each for _, numbers in _held(value, depth - 1) for each in numbers]
    if column_names(value) is not None:
        columns = (np.asarray(value.iloc[:, place]) for place in range(value.shape[1]))
        return [column for column in columns if column.dtype.kind in NUMBERS]
    if isinstance(value, Mapping):
        named = all(isinstance(name, str) and name.isidentifier() for name in value)
        return _all_numbers([value[name] for name in sorted(value)], depth) if named else []
    if isinstance(value, list | tuple):
        plain = bool(value) and all(isinstance(each, int | float | complex) for each in value)
        return [np.asarray(value)] if plain else _all_numbers(value, depth)
    return []


def _all_numbers(values: Any, depth: int) -> list[Numbers]:
    parts = [_numbers(value, depth - 1) for value in values]
    return [each for part in parts for each in part] if all(parts) else []


def _digest(numbers: list[Numbers]) -> str:
    state = hashlib.sha256()
    for each in numbers:
        state.update(f"{each.dtype} {tuple(each.shape)}".encode())
        for part in pieces(each) if isinstance(each, Tensor) else _pieces_of_array(each):
            state.update(part)
    return state.hexdigest()[:16]


def _pieces_of_array(array: "np.ndarray[Any, Any]") -> Iterator[memoryview]:
    """An array's bytes in order, some at a time; only rows that do not lie in order are copied."""
    rows = np.atleast_1d(array)
    step = max(1, CHUNK // max(1, rows[:1].nbytes))
    for first in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[first : first + step]).reshape(-1).view(np.uint8).data
