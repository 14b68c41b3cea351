"""Random numbers that depend on a key alone: never on a global state, the chunk size, or the thread.

A key is a seed followed by what the numbers are for, such as (seed, draw, block of rows). Each key has a generator of
its own, so that draws can be made in any order, in any grouping, and by several threads at once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bayesuq.arrays import check_count

# Of numpy's SeedSequence: words in its pool, the largest word, and the numbers that it mixes what it gives with.
POOL, WORD, INIT_B, MULT_B = 4, 2**32 - 1, 0x8B51F9DD, 0x58F38DED
SILENT = ("_fused_sdp_choice", "_nested_tensor_softmax_with_shape")  # tagged as random by torch, but draw nothing
SWITCHES = {"dropout_p": 0.0, "dropout": 0.0, "train": False, "training": False}  # arguments that turn drawing off


def resolve_seed(seed: int | None) -> int:
    """The seed itself, or 63 fresh bits from torch's global generator where it is None.

    That one draw is the only change that bayesuq ever makes to a global random state.

    Raises:
        TypeError: Not a whole number.
        ValueError: Negative.
    """
    if seed is None:
        return int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
    return check_count(seed, "seed", minimum=0)


def derive_seed(*key: int) -> int:
    """A 64-bit seed for the key; different keys give unrelated seeds (numpy's SeedSequence hash).

    Args:
        *key: Whole numbers from 0 to 2^64 - 1, at least one.

    Raises:
        TypeError: A part that is not a whole number.
        ValueError: A negative part.
    """
    # As one list, (5,) and (5, 0) would be the same; without two words for each, so would (5, 2^32) and (5, 0, 1).
    first, *rest = map(index, key)
    if first < 0 or (rest and min(rest) < 0):
        raise ValueError(f"A key is made of non-negative whole numbers; got {key}.")
    words = _words(first)
    if rest:
        words += [0] * (POOL - len(words))
        for part in rest:
            words += _words(part >> 32)
            words.append(part & WORD)
    return _state(np.random.SeedSequence(np.array(words, dtype=np.uint32)))  # which reads a `spawn_key` word by word


def _state(sequence: np.random.SeedSequence) -> int:
    """Its `generate_state(1, np.uint64)[0]`, in a third of the time: numpy sets its error state before that."""
    found, constant = 0, INIT_B
    for place, word in enumerate(sequence.pool[:2].tolist()):
        word ^= constant
        constant = constant * MULT_B & WORD
        word = word * constant & WORD
        found |= (word ^ word >> 16) << 32 * place
    return found


def _words(number: int) -> list[int]:
    """The 32-bit words of a number, lowest first."""
    words = [number & WORD]
    while number := number >> 32:
        words.append(number & WORD)
    return words


def generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A new generator on `device` whose numbers depend on `key` alone.

    torch's CPU generators keep 32 bits of a seed, so that two given keys share their numbers with probability 2^-32.
    """
    return torch.Generator(device).manual_seed(derive_seed(*key))


@contextmanager
def isolated(*key: int) -> Iterator[None]:
    """Run code that draws from torch's global generators as a function of `key` alone, whatever other threads do.

    The global generators are neither read nor written: this thread's draws come from generators of their own. On the
    CPU they are the numbers that `torch.manual_seed(derive_seed(*key))` would give. It costs some microseconds an
    operator.
    """
    with OwnGenerators(generator(*key)):
        yield


@contextmanager
def globally_isolated(*key: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """As `isolated`, by setting the global generators and then putting them back: for one thread, but at no cost."""
    device = torch.device(device)
    devices = [device] if device.type != "cpu" else []
    with torch.random.fork_rng(devices=devices, device_type=devices[0].type if devices else "cuda"):
        seed_globally(derive_seed(*key), device)
        yield


def seed_globally(seed: int, device: torch.device) -> None:
    """Set the global generators of the CPU and of a device; within `globally_isolated`, which puts them back."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        module = torch.get_device_module(device)
        with module.device(device):  # `manual_seed` seeds the current device
            module.manual_seed(seed)


@contextmanager
def lent(noise: torch.Generator) -> Iterator[None]:
    """Code that draws from torch's global generator of a device draws from `noise` instead, and moves it on.

    For one thread, as `globally_isolated`; the global generator is then as it was.
    """
    device = noise.device
    if device.type == "cpu":
        get, put = torch.get_rng_state, torch.set_rng_state
    else:
        module = torch.get_device_module(device)
        get, put = partial(module.get_rng_state, device), partial(module.set_rng_state, device=device)
    before = get()
    put(noise.get_state())
    try:
        yield
    finally:
        noise.set_state(get())
        put(before)


class RandomOperators(TorchDispatchMode):
    """While it is on, in this thread, every operator that draws goes through `draw`; the others run as ever."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to wrap the mode, 1.4 CPU seconds of a process's first fit."""
        return False

    def draw(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What such an operator gives."""
        raise NotImplementedError(f"{type(self).__name__} says nothing of what `draw` gives")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if not _may_draw(func) or not _draws(func, args, kwargs):
            return func(*args, **kwargs)
        if func._can_decompose() and not with_generator(func):
            with self:
                return func.decompose(*args, **kwargs)
        return self.draw(func, args, kwargs)


class OwnGenerators(RandomOperators):
    """Draws come from one generator; those on another device, from one there that begins at a number drawn from it.

    Raises:
        NotImplementedError: Within, of an operator that takes no generator.
    """

    def __init__(self, noise: torch.Generator) -> None:
        super().__init__()
        self.noise = noise
        self.generators = {noise.device: noise}

    def draw(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """As the operator, from the generator of its device."""
        place = _place_of_generator(operator)
        if kwargs.get("generator") is not None or (len(args) > place and args[place] is not None):
            return operator(*args, **kwargs)
        if is_native_dropout(operator):
            return dropped(args, lambda keep, p: keep.bernoulli_(1 - p, generator=self._on(keep.device)))
        keyed = with_generator(operator)
        if keyed is None:
            raise NotImplementedError(f"torch's {operator} takes no generator, so that its numbers cannot be repeated.")
        return keyed(*args[:place], **{**kwargs, "generator": self._on(device_of(args, kwargs))})

    def _on(self, device: torch.device) -> torch.Generator:
        if device not in self.generators:
            seed = torch.randint(2**63 - 1, (), generator=self.noise, device=self.noise.device)
            self.generators[device] = torch.Generator(device).manual_seed(int(seed))
        return self.generators[device]


def is_native_dropout(operator: Any) -> bool:
    """Whether it is dropout in one kernel, which takes no generator but can do without."""
    return operator is torch.ops.aten.native_dropout.default


def dropped(args: Sequence[Any], keep: Callable[[Tensor, float], Tensor]) -> tuple[Tensor, Tensor]:
    """What `native_dropout` gives: inputs with entries dropped and the others scaled up, and which were kept.

    Args:
        args: Its arguments: the input and p.
        keep: Fills a tensor like the input with 1 where an entry stays, with probability 1 - p, and 0 elsewhere.
    """
    x, p = args[0], float(args[1])
    kept = keep(torch.empty_like(x), p)
    return x * kept * (0.0 if p == 1 else 1 / (1 - p)), kept.bool()


def device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.device:
    """Where an operator computes."""
    tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
    device = kwargs.get("device") or (tensors[0].device if tensors else "cpu")
    return torch.device(device)


@cache
def with_generator(operator: Any) -> Any | None:
    """The overload of a random operator that takes a generator by that name; None where there is none."""
    names = [argument.name for argument in operator._schema.arguments]
    if "generator" in names:
        return operator
    for name in operator.overloadpacket.overloads():
        other = getattr(operator.overloadpacket, name)
        others = [argument.name for argument in other._schema.arguments]
        if "generator" in others and [one for one in others if one != "generator"] == names:
            return other
    return None


@cache
def _place_of_generator(operator: Any) -> int:
    """Among an operator's arguments; their number where it takes none. Nothing comes after it by place."""
    names = [argument.name for argument in operator._schema.arguments]
    return names.index("generator") if "generator" in names else len(names)


@cache
def _may_draw(operator: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in operator.tags and operator.overloadpacket.__name__ not in SILENT


def _draws(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call draws: not where an argument turns it off."""
    switches = _switches(operator)
    if not switches:
        return True
    given = {name: kwargs.get(name, args[place] if place < len(args) else default) for name, place, default in switches}
    return not any(given[name] == SWITCHES[name] for name in given)


@cache
def _switches(operator: Any) -> tuple[tuple[str, int, Any], ...]:
    """Of an operator's arguments, those that can turn its drawing off: name, place and default."""
    arguments = enumerate(operator._schema.arguments)
    return tuple((one.name, place, one.default_value) for place, one in arguments if one.name in SWITCHES)
