"""A second device made of torch's own modes: it computes on the CPU, and tells what an accelerator would not forgive.

A tensor on it is an ordinary one whose storage is marked. Its `device` is `SECOND`; an operator that is given tensors
of both devices raises, as CUDA's do, but for single numbers and indices from the host. All that an accelerator has to
be waited for is counted: numbers read by Python or NumPy, copies to the host, and operators whose results have a size
that depends on values. So whatever asks for `x.device` takes the way of an accelerator, on a machine that has none.

What it cannot show: the order of kernels in a stream, memory, speed, and kernels that a real device lacks.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar
from unittest import mock
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SECOND = torch.device("privateuseone", 0)  # torch's name for a device of somebody's own; nothing else has it
HOST = torch.device("cpu")
MOST_MARKS = 4096  # storages that are remembered before those that are gone are forgotten
READS = {"aten::_local_scalar_dense", "aten::equal", "aten::_linalg_check_errors"}
SIZED_BY_VALUES = {
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::repeat_interleave",
}
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
CHECKED_ON_HOSTS = {
    torch.quantile,
    Tensor.quantile,
    torch.nn.functional.one_hot,
}  # whose values torch reads there alone
Generator = torch.Generator
ARRAY, REPR, DEEPCOPY = Tensor.__array__, Tensor.__repr__, Tensor.__deepcopy__


class DeviceGenerator(Generator):
    """A generator of the second device, which torch hands on to modes without its class."""

    known: ClassVar[WeakValueDictionary[int, "DeviceGenerator"]] = WeakValueDictionary()

    def __init__(self) -> None:
        super().__init__()
        self.known[self._cdata] = self  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The second one."""
        return SECOND


class Marks:
    """The storages that are on the second device."""

    def __init__(self) -> None:
        self._held: dict[int, StorageWeakRef] = {}  # which keep an address from being given to another storage

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is there."""
        return _storage(tensor)._cdata in self._held

    def put(self, value: Any, *, on: bool = True) -> Any:
        """Mark all tensors in a value as there, or as on the host."""
        for tensor in tree_leaves(value):
            if isinstance(tensor, Tensor):
                storage = _storage(tensor)
                if not on:
                    self._held.pop(storage._cdata, None)
                elif storage._cdata not in self._held:
                    self._held[storage._cdata] = StorageWeakRef(storage)
        if len(self._held) > MOST_MARKS:
            self._held = {key: kept for key, kept in self._held.items() if not kept.expired()}
        return value


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.untyped_storage()


class Transfers:
    """What the host had to wait for.

    Attributes:
        counts: By what it was.
        places: By the line of bayesuq's that asked, as "module:line what".
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.is_counting = True

    def add(self, name: str) -> None:
        """One more."""
        if self.is_counting:
            self.counts[name] += 1
            frame = sys._getframe(1)
            while frame.f_back is not None and not frame.f_globals.get("__name__", "").startswith("bayesuq."):
                frame = frame.f_back
            self.places[f"{frame.f_globals.get('__name__')}:{frame.f_lineno} {name}"] += 1

    @property
    def total(self) -> int:
        """All of them."""
        return self.counts.total()

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What happens in the block is the test's own, or would not happen on an accelerator."""
        before, self.is_counting = self.is_counting, False
        try:
            yield
        finally:
            self.is_counting = before


class _Operators(TorchDispatchMode):
    """Refuses mixed devices, counts, and marks results."""

    def __init__(self, marks: Marks, transfers: Transfers) -> None:
        super().__init__()
        self.marks, self.transfers = marks, transfers

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler to wrap the mode

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = [self.marks.has(tensor) for tensor in tensors]
        if not any(here):
            return function(*args, **kwargs)
        name = function._schema.name
        if name == "aten::copy_":
            if not here[0]:
                self.transfers.add(name)
            return function(*args, **kwargs)
        self._check(name, tensors, here, kwargs)
        if name == "aten::equal" and _are_told_by_shape(*args):
            return function(*args, **kwargs)
        reads_mask = name in INDEXED and any(tensor.dtype in (torch.bool, torch.uint8) for tensor in _indices(args))
        if name in READS | SIZED_BY_VALUES or reads_mask:
            self.transfers.add(name)
        return self.marks.put(function(*args, **kwargs))

    def _check(self, name: str, tensors: list[Tensor], here: list[bool], kwargs: Any) -> None:
        strangers = [tensor for tensor, on in zip(tensors, here, strict=True) if not on]
        if name in INDEXED and here[0]:
            strangers = [tensor for tensor in strangers if tensor.dtype.is_floating_point]
        whole = name in ("aten::cat", "aten::stack") or name.endswith("_")  # where a single number has no privilege
        if any(tensor.dim() > 0 or (whole and not here[0]) or name == "aten::cat" for tensor in strangers):
            raise RuntimeError(f"{name} is given tensors on {SECOND} and on the host.")
        noise = kwargs.get("generator")
        if noise is not None and noise._cdata not in DeviceGenerator.known:
            raise RuntimeError(f"{name} is given a tensor on {SECOND} and a generator of the host.")


def _are_told_by_shape(one: Tensor, other: Tensor) -> bool:
    """Whether torch compares without a look at values: ATen's `cuda_equal`, as `cpu_equal`, of shapes and aliases."""
    return one.shape != other.shape or (one.data_ptr() == other.data_ptr() and one.stride() == other.stride())


def _indices(args: Any) -> list[Tensor]:
    return [index for index in args[1] if index is not None]


class _Factories(TorchFunctionMode):
    """Makes tensors where they are asked for."""

    def __init__(self, marks: Marks, transfers: Transfers) -> None:
        super().__init__()
        self.marks, self.transfers = marks, transfers

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in CHECKED_ON_HOSTS:
            with self.transfers.uncounted():
                return function(*args, **kwargs)
        device = kwargs.get("device")
        if device is None:
            return function(*args, **kwargs)
        if function in (torch.tensor, torch.as_tensor) and isinstance(args[0], Tensor):
            found = args[0].to(device)
            return found if kwargs.get("dtype") is None else found.to(kwargs["dtype"])
        on, noise = _is_second(device), kwargs.get("generator")
        if noise is not None and (noise._cdata in DeviceGenerator.known) != on:
            raise RuntimeError(f"{function.__name__} is asked for numbers on {device} by another device's generator.")
        return self.marks.put(function(*args, **{**kwargs, "device": HOST if on else device}), on=on)


class _Methods:
    """What a tensor answers for itself in place of torch's own methods, whatever modes are on."""

    def __init__(self, marks: Marks, transfers: Transfers) -> None:
        self.marks, self.transfers = marks, transfers

    def all(self) -> dict[str, Any]:
        """By name."""
        own, marks = torch._C.TensorBase, self.marks
        return {
            "device": property(lambda x: SECOND if marks.has(x) else HOST),
            "is_cpu": property(lambda x: not marks.has(x)),
            "to": lambda x, *args, **options: self._to(x, *args, **options),
            "cpu": lambda x, **_: self._moved(x, on=False),
            "numpy": lambda x, **options: own.numpy(self._on_host(x), **options),
            "tolist": lambda x: own.tolist(self._read(x, "tolist")),
            "new_tensor": lambda x, data, **options: torch.tensor(
                data, **{"device": x.device, "dtype": x.dtype, **options}
            ),
            **{name: self._new(getattr(own, name)) for name in ("new_empty", "new_zeros", "new_ones", "new_full")},
            "__array__": lambda x, *dtype, **options: ARRAY(self._on_host(x), *dtype, **options),
            "__repr__": lambda x, **options: REPR(self._read(x, "repr"), **options),
            "__deepcopy__": lambda x, memo: marks.put(DEEPCOPY(x, memo), on=marks.has(x)),
        }

    def _to(self, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            device, dtype = args[0].device, args[0].dtype
        else:
            device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        there = x if device is None else self._moved(x, on=_is_second(device))
        if dtype is not None and dtype != x.dtype:
            return torch._C.TensorBase.to(there, dtype)
        return there.clone() if copy and there is x else there

    def _new(self, made: Any) -> Any:
        def new(x: Tensor, *args: Any, device: Any = None, **options: Any) -> Tensor:
            return self.marks.put(made(x, *args, **options), on=_is_second(x.device if device is None else device))

        return new

    def _moved(self, x: Tensor, *, on: bool) -> Tensor:
        if self.marks.has(x) == on:
            return x
        if not on:
            self.transfers.add("copy to the host")
        return self.marks.put(x.clone(), on=on)

    def _on_host(self, x: Tensor) -> Tensor:
        if self.marks.has(x):
            raise TypeError(f"A tensor on {SECOND} has no NumPy array; call `.cpu()` first.")  # as CUDA's do
        return x

    def _read(self, x: Tensor, how: str) -> Tensor:
        """A copy on the host, counted once."""
        if not self.marks.has(x):
            return x
        self.transfers.add(how)
        return self.marks.put(x.detach().clone(), on=False)


def _is_second(device: Any) -> bool:
    return torch.device(device).type == SECOND.type


class _ByDevice(type(Generator)):  # type: ignore[misc]
    """Torch's generators are instances of what stands in their place."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, Generator)


class _AnyGenerator(Generator, metaclass=_ByDevice):
    """Stands in place of `torch.Generator`, and makes one of the device that is named."""

    def __new__(cls, device: Any = "cpu") -> Generator:  # type: ignore[misc]
        return DeviceGenerator() if _is_second(device) else Generator(device)


@contextmanager
def _current(_: Any) -> Iterator[None]:
    yield


MODULE = SimpleNamespace(  # torch.cuda's part in random states; those of the host are taken
    is_available=lambda: True,
    device_count=lambda: 1,
    current_device=lambda: 0,
    device=_current,
    manual_seed=torch.default_generator.manual_seed,
    get_rng_state=lambda _=None: torch.default_generator.get_state(),
    set_rng_state=lambda state, device: torch.default_generator.set_state(state),  # noqa: ARG005
)


@contextmanager
def second_device() -> Iterator[Transfers]:
    """There is a second device in this thread while the block runs; see the module."""
    marks, transfers = Marks(), Transfers()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "Generator", _AnyGenerator))
        for name, method in _Methods(marks, transfers).all().items():
            stack.enter_context(mock.patch.object(Tensor, name, method, create=True))
        stack.enter_context(mock.patch.object(torch, SECOND.type, MODULE, create=True))
        stack.enter_context(_Operators(marks, transfers))
        stack.enter_context(_Factories(marks, transfers))
        yield transfers
