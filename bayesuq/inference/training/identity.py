"""What tells a fit from others: what it computes, and not what its parts are called.

Two fits are the same where their options are, their data and constants have the same bits, and their losses have the
same values and slopes at fixed weights. Names do not tell that: a function, a frozen backbone or the body of a Pyro
program can be another one under the same name. The weights that a network happens to have when a fit begins are no part
of it: a stopped fit goes on from its own.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # which is another in each process
WORD = re.compile(r"\w+=[^,()]*|[^\s,()]+")
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}  # of sums that other machines make in another order
COARSE = 2e-2  # of the other dtypes
ELABORATED = ("data", "validation")  # by more than files of before have
LATER = ("precision", "compiler")  # options that files of before do not have
AMPLITUDE = 0.3
CHUNK = 2**20  # numbers that are digested at once
NUM_PROBES = 2


@dataclass(frozen=True)
class Identity:
    """All that must be as it was for a stopped fit to go on.

    Attributes:
        options: Whole numbers, fractions and texts by name, the seed among them; as JSON has them.
        lengths: How long the fit is, which may be longer than in the file.
        fixed_length: Why it may not; None where it may.
        contents: Digests by name.
        numbers: What the fit computes at fixed weights, by name.
        tolerance: To which share of themselves numbers agree on other machines.
        text: How the fit's parts describe themselves.
        start: Digest of the network's weights as they were passed; the file's own are used in their stead.
        before: What files of format 1 have instead of all this, by name.
    """

    options: Mapping[str, Any]
    lengths: Mapping[str, int] = field(default_factory=dict)
    fixed_length: str | None = None
    contents: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tolerance: float = TOLERANCES[torch.float64]
    text: str = ""
    start: str | None = None
    before: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As a file has it, plain JSON data."""
        return {
            **self.options,
            "lengths": dict(self.lengths),
            "contents": dict(self.contents),
            "numbers": {name: list(values) for name, values in self.numbers.items()},
            "text": ADDRESS.sub("", self.text),
            "start": self.start,
            "versions": dict(versions()),
        }

    def difference(self, there: Mapping[str, Any]) -> str | None:
        """What is another in the fit that a file records, in words; None where they are the same.

        Warns:
            UserWarning: The file was written by another version; it began at other weights than the network's.
        """
        here = json.loads(json.dumps(self.record()))
        for name in self.options:
            if name in LATER and name not in there:
                continue
            one, other = there.get(name), here[name]
            if one != other and not (name in ELABORATED and is_elaboration(str(one), str(other))):
                return f"its {name} is {one!r}, this one's {other!r}"
        return (
            self._difference_of_lengths(there["lengths"])
            or _difference_of_contents(there["contents"], here["contents"])
            or self._difference_of_numbers(there["numbers"])
            or _difference_of_texts(there, here)
        )

    def difference_before(self, there: Mapping[str, Any]) -> str | None:
        """The same of a file of format 1, which tells fits apart by names alone."""
        for name, value in self.before.items():
            if there.get(name) != value and not (name == "model" and is_elaboration(str(there.get(name)), str(value))):
                return f"its {name} is {there.get(name)!r}, this one's {value!r}"
        return None

    def _difference_of_lengths(self, there: Mapping[str, int]) -> str | None:
        for name, length in self.lengths.items():
            told = f"its {name} is {there.get(name)!r}, this one's {length}"
            if there.get(name, math.inf) > length:
                return told
            if there[name] < length and self.fixed_length is not None:
                return f"{told}, and a longer fit is another one from its first step on, since {self.fixed_length}"
        return None

    def _difference_of_numbers(self, there: Mapping[str, Sequence[float]]) -> str | None:
        for name in sorted(self.numbers.keys() | there.keys()):
            one, other = list(there.get(name, ())), list(self.numbers.get(name, ()))
            if len(one) != len(other) or not all(map(self._agree, one, other)):
                return f"its {name} is {one}, this one's {other}"
        return None

    def _agree(self, one: float, other: float) -> bool:
        if not (math.isfinite(one) and math.isfinite(other)):
            return one == other or (math.isnan(one) and math.isnan(other))
        return abs(one - other) <= self.tolerance * max(abs(one), abs(other))


def _difference_of_contents(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    if not names:
        return None
    more = f" (nor are {len(names) - 1} more, such as its {names[1]})" if len(names) > 1 else ""
    return f"its {names[0]} is not this one's{more}"


def _difference_of_texts(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Of two fits by the same versions: others may describe the same parts in other words."""
    if there["versions"] == here["versions"] and there["text"] != here["text"]:
        return f"it is the {there['text']}, this one the {here['text']}"
    return None


def is_elaboration(old: str, new: str) -> bool:
    """Whether a description says the same and, at most, names options in addition, which older versions did not have.

    Example:
        >>> is_elaboration("Normal(scale=1.0)", "Normal(scale=1.0, per_column=False)")
        True
        >>> is_elaboration("Normal(scale=1.0)", "Normal(scale=2.0)")
        False
    """
    left = iter(WORD.findall(old))
    wanted = next(left, None)
    for word in WORD.findall(new):
        if word == wanted:
            wanted = next(left, None)
        elif "=" not in word:
            return False
    return wanted is None


@cache
def versions() -> Mapping[str, str]:
    """Of what computes a fit, read once a process: it takes as long as writing a small checkpoint does."""
    return {"bayesuq": version("bayesuq"), "torch": str(torch.__version__)}


def warn_of_versions(path: str, there: Mapping[str, str]) -> None:
    """Tell where other versions wrote a file."""
    other = [f"{name} {there.get(name)} (now {now})" for name, now in versions().items() if there.get(name) != now]
    if other:
        warn_of_fit(
            f"The checkpoint {path!r} was written by {' and '.join(other)}: the fit goes on, but its last bits may "
            "differ from those of one that was never stopped.",
            UserWarning,
        )


def tolerance_of(dtype: torch.dtype) -> float:
    """To which share of itself a sum in this dtype agrees on other machines."""
    return TOLERANCES.get(dtype, COARSE)


def fill(like: Tensor, number: int) -> Tensor:
    """Fixed numbers between -0.3 and 0.3 in a tensor's shape and dtype: the weights of probe `number`."""
    place = torch.arange(like.numel(), dtype=torch.float64)
    return (AMPLITUDE * torch.sin(1.7 * place + number)).reshape(like.shape).to(like)


def summary(gradient: Tensor) -> list[float]:
    """A gradient's length, and its components along two fixed directions, beside which rounding is small."""
    flat = gradient.detach().reshape(-1).double()
    norm = float(flat.norm())
    directions = (fill(flat, number) for number in range(NUM_PROBES))
    return [norm, *(2 * norm + float(flat.dot(one) / one.norm()) for one in directions)]


def digest(tensors: Mapping[str, Tensor | None]) -> str:
    """A short name for the bits of some tensors, which are not copied."""
    state = hashlib.sha256()
    for name, tensor in tensors.items():
        if tensor is not None:
            state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for part in pieces(tensor):
                state.update(part)
    return state.hexdigest()[:16]


def pieces(tensor: Tensor) -> Iterator[memoryview]:
    """A tensor's bytes in order, some at a time; those of a contiguous one on the CPU as they lie."""
    tensor = tensor.detach()
    if tensor.is_contiguous():
        flat = tensor.reshape(-1)
        for first in range(0, flat.numel(), CHUNK):
            yield _bytes(flat[first : first + CHUNK])
        return
    rows = max(1, CHUNK // max(1, tensor[0].numel()))
    for first in range(0, len(tensor), rows):
        yield _bytes(tensor[first : first + rows].cpu().contiguous().reshape(-1))


def _bytes(flat: Tensor) -> memoryview:
    flat = flat.cpu()
    if flat.stride(0) != 1:  # a number that was expanded to an array of one
        flat = flat.clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data


def leaves_of(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors and arrays within nested containers, by where they stand; other values as the bytes of their text."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        yield name, torch.as_tensor(value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from leaves_of(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from leaves_of(item, f"{name}.{number}")
    elif is_dataclass(value) and not isinstance(value, type):
        yield from leaves_of(vars(value), name)
    else:
        text = ADDRESS.sub("", repr(value)).encode()
        yield name, torch.tensor(list(text), dtype=torch.uint8)


def digest_of(value: Any) -> str:
    """A short name for all that is in nested containers."""
    return digest(dict(leaves_of(value)))
