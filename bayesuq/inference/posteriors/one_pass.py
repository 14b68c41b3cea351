"""The beginning of a network that is the same for all draws of its weights, run once for all of them.

A pass is a sequence of torch's operators. One whose arguments all stay from draw to draw (the inputs, weights and
buffers that no draw changes, and what such operators have made of these) gives the same again, and in later passes its
result is taken from the first. All others run. So a draw of the last layer costs the last layer, in any network, with
the Python code of the whole; nothing must be known of its layers, nor where they end.

What an operator writes into could be read too late from the second pass on. That is looked for in two ways: by torch's
counts of writes, and by a second pass of the first draw, which must give the very bits of the first. Where either
fails, nothing is taken from before. Nor is it where what stays is less than what does not, in numbers that operators
put out: telling them apart costs some microseconds an operator, and small networks are no larger.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from bayesuq.waiting import are_noted, check

PLAIN: tuple[type, ...] = (int, float, bool, str, bytes, complex, type(None), type(Ellipsis))
PLAIN += (torch.dtype, torch.device, torch.layout, torch.memory_format)
FEWEST_FOR_ONE_PASS = 3  # draws, from which on it is worth while to look for what they share
_TRUSTED: ContextVar[bool] = ContextVar("beginnings are trusted", default=True)
UNKNOWN = object()  # the key of what cannot be told from others


class Beginning(TorchFunctionMode):
    """While it is entered, operators whose arguments stay give what they gave in the first pass.

    Attributes:
        num_kept: Numbers that the operators put out whose results stay.
        num_varying: Numbers that the operators which do run put out in a pass.
        is_of_use: Whether later passes take anything from the first.
    """

    def __init__(self, constants: Iterable[Tensor], num_drawn: Callable[[], int] | None = None) -> None:
        """Of no pass yet; see `of`."""
        super().__init__()
        self._num_drawn = num_drawn or int
        self.num_kept = self.num_varying = 0
        self.is_of_use = False
        self._known: dict[int, Tensor] = {id(one): one for one in constants}  # held, so that no other has their ids
        self._results: dict[tuple[Any, int], Any] = {}
        self._calls: dict[Any, int] = {}
        self._reads: list[tuple[Tensor, int]] = []
        self._is_recording = True
        self._is_safe = True

    @classmethod
    def of(
        cls, run: Callable[[], Tensor], constants: Iterable[Tensor], num_drawn: Callable[[], int] | None = None
    ) -> tuple[Self, Tensor]:
        """What stays of one pass, and its outputs, which are those of a pass without it.

        Args:
            run: The pass; it gives the same when it is run again.
            constants: The very tensors that every pass gets.
            num_drawn: How often the pass has drawn random numbers by now; None where it draws none.
        """
        beginning = cls(constants, num_drawn)
        with beginning:
            first = run()
        beginning._is_recording = False
        beginning._is_safe &= all(one._version == version for one, version in beginning._reads)
        beginning._reads = []
        if not beginning._is_safe or beginning.num_kept <= beginning.num_varying:
            beginning._forget()
            return beginning, first
        if not _TRUSTED.get():
            beginning._forget()
            return beginning, run()
        with beginning:
            again = run()
        beginning.is_of_use = beginning._is_safe and _are_same(first, again)
        if not beginning.is_of_use:
            beginning._forget()
            return beginning, run()  # the outputs may be what was written into
        return beginning, first

    def __enter__(self) -> Self:
        self._calls = {}
        if not self._is_recording:
            self.num_varying = 0
        super().__enter__()
        return self

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        arguments = self._key((args, named)) if self._is_safe else UNKNOWN
        if arguments is UNKNOWN:
            return self._run(function, args, named)
        key = function, arguments
        number = self._calls.get(key, 0)  # the same call again may make another tensor, to be written into
        self._calls[key] = number + 1
        if (key, number) in self._results:
            return self._results[key, number]
        if not self._is_recording:
            return self._run(function, args, named)
        drawn = self._num_drawn()
        result = function(*args, **named)
        leaves = _leaves(result)
        if leaves is not None and self._num_drawn() == drawn:
            self._results[key, number] = result
            self._known |= {id(one): one for one in leaves}
            self.num_kept += sum(one.numel() for one in leaves)
        else:
            self.num_varying += sum(one.numel() for one in leaves or [])
        return result

    def _run(self, function: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """An operator that has something new to compute with."""
        read = [(one, one._version) for one in self._stays_in((args, named))] if self._is_safe else []
        result = function(*args, **named)
        self._is_safe &= all(one._version == version for one, version in read)
        if self._is_recording:
            self._reads += read
        self.num_varying += sum(one.numel() for one in _leaves(result) or [])
        return result

    def _key(self, value: Any) -> Any:
        """What a call is known by; UNKNOWN where an argument may be another in the next pass."""
        if isinstance(value, Tensor):
            return id(value) if id(value) in self._known else UNKNOWN
        if isinstance(value, PLAIN):
            return type(value), value
        if isinstance(value, tuple | list):
            parts = []
            for one in value:
                part = self._key(one)
                if part is UNKNOWN:
                    return UNKNOWN
                parts.append(part)
            return type(value), tuple(parts)
        if isinstance(value, slice):
            return self._key((value.start, value.stop, value.step))
        if isinstance(value, dict):
            return self._key([part for pair in sorted(value.items()) for part in pair])
        return value if callable(value) and getattr(value, "__hash__", None) is not None else UNKNOWN

    def _stays_in(self, value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value] if id(value) in self._known else []
        if isinstance(value, dict):
            value = tuple(value.values())
        return [one for part in value for one in self._stays_in(part)] if isinstance(value, tuple | list) else []

    def _forget(self) -> None:
        self._results, self._known, self._is_safe = {}, {}, False


def _leaves(result: Any) -> list[Tensor] | None:
    """The tensors that an operator gave, in a tuple or as they are; None of anything else, such as a shape."""
    if result is None:  # it has written into an argument
        return []
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, tuple) and result and all(isinstance(one, Tensor) for one in result):
        return list(result)
    return None


class OtherBitsError(Exception):
    """A pass that took its beginning from another has given other outputs: what came of it must not be used."""


@contextmanager
def whole_passes() -> Iterator[None]:
    """Every pass is whole: for what an `OtherBitsError` has ended."""
    token = _TRUSTED.set(False)
    try:
        yield
    finally:
        _TRUSTED.reset(token)


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Whether outputs are the same bits; where that is read later, they are taken to be.

    Raises:
        OtherBitsError: When it is read, if they are not.
    """
    if one.dtype != other.dtype:
        return False
    one, other = one.nan_to_num(), other.nan_to_num()
    if not are_noted(one):
        return torch.equal(one, other)
    check((one == other).all(), OtherBitsError)
    return True
