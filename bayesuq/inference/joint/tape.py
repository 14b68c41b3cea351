"""A function of one vector recorded as the operators that it runs, and played again without Python's way around them.

A Pyro program of a dozen sites spends its time in handlers, distributions and autograd's graph, and little in
arithmetic. What it computes, its gradient included, is recorded once, at the level of torch's own operators; what does
not depend on the vector is left as it was found, equal steps are made once, and the rest becomes one straight function
over NumPy arrays, whose calls cost a fifth of torch's for small arrays. Operators that NumPy does not have are torch's.

Each step is held against torch's own result when it is recorded, and the whole against the function at other vectors.
A function that branches on values, draws, or writes into what it made cannot be recorded: it is then called as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bayesuq.inference.joint.numpy_operators import (
    ELEMENTWISE,
    EXPANSIONS,
    NAMES,
    NEUTRAL,
    VIEWS,
    expression,
    pieces,
)

Function = Callable[[Tensor], tuple[Tensor, Tensor]]
SHAPES = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "empty_like", "new_empty")
READS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim")
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4}


class UnrecordableError(Exception):
    """What a function computes is another sequence of operators from one vector to the next."""


@dataclass(frozen=True)
class Place:
    """A value that changes with the vector, by its number."""

    number: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operator: what goes in, with `Place` for what changes, and what came out when it was recorded."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    places: tuple[int, ...]
    outputs: tuple[Tensor, ...]
    is_tuple: bool


class Recorder(TorchDispatchMode):
    """While it is on, operators that depend on the vector are written down."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.places = {id(vector): 0}
        self.kept: list[Any] = [vector]  # what is let go of could lend its name to another
        self.sharing: dict[int, set[int]] = {}  # tensors made here, by their memory
        self.count = 1

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to wrap the mode."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = {} if kwargs is None else kwargs
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise UnrecordableError(f"{func} draws")
        marked = self._marked((tuple(args), dict(kwargs)))
        found = func(*args, **kwargs)
        self.kept.append(found)
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, Tensor):
                self.sharing.setdefault(one.untyped_storage().data_ptr(), set()).add(id(one))
        if func.overloadpacket.__name__ in SHAPES:  # of which the values are no part
            return found
        if _places(marked):
            self._note(func, marked, found)
        return found

    def _note(self, func: Any, marked: tuple[Any, Any], found: Any) -> None:
        if func.overloadpacket.__name__ in READS:
            raise UnrecordableError(f"{func} reads a value")
        outputs = () if found is None else tuple(found) if isinstance(found, tuple | list) else (found,)
        if func._schema.is_mutable:
            func = self._out_of_place(func, outputs)
            self.steps.append(Step(func, *marked, (self.count,), (found.detach().clone(),), is_tuple=False))
            self.places[id(found)] = self.count
            self.count += 1
            return
        if not all(isinstance(one, Tensor) for one in outputs):
            raise UnrecordableError(f"{func} gives no tensor")
        constants = [leaf for leaf in tree_leaves(marked) if isinstance(leaf, Tensor)]
        if any(one.dtype == torch.bfloat16 for one in (*outputs, *constants)):
            raise UnrecordableError(f"{func} computes in bfloat16, which NumPy does not have")
        places = tuple(range(self.count, self.count + len(outputs)))
        self.count += len(outputs)
        for place, one in zip(places, outputs, strict=True):
            self.places[id(one)] = place
        copies = tuple(one.detach().clone() for one in outputs)  # what is written into later is another value then
        self.steps.append(Step(func, *marked, places, copies, isinstance(found, tuple | list)))

    def _out_of_place(self, func: Any, outputs: tuple[Any, ...]) -> Any:
        """The operator that gives as a new value what this one writes into a tensor that nothing else looks at."""
        name = func.overloadpacket.__name__
        alone = len(outputs) == 1 and self.sharing.get(outputs[0].untyped_storage().data_ptr()) == {id(outputs[0])}
        packet = getattr(torch.ops.aten, name[:-1], None) if name.endswith("_") and alone else None
        if packet is None or func._overloadname not in packet.overloads():
            raise UnrecordableError(f"{func} writes into a value")
        return getattr(packet, func._overloadname)

    def _marked(self, value: Any) -> Any:
        """With places for tensors that change."""
        return tree_map(lambda one: Place(self.places[id(one)]) if id(one) in self.places else one, value)


def _places(value: Any) -> list[int]:
    """The numbers of all places within."""
    return [leaf.number for leaf in tree_leaves(value) if isinstance(leaf, Place)]


@dataclass(eq=False)
class _Writer:
    """The recorded steps as a function's source, each tried as it is written."""

    tolerance: float
    names: dict[str, Any] = field(default_factory=lambda: dict(NAMES))
    values: dict[str, Any] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)  # places whose value another place has
    sources: dict[int, int] = field(default_factory=dict)  # of expanded values
    known: dict[Any, tuple[int, ...]] = field(default_factory=dict)
    constants: dict[int, str] = field(default_factory=dict)
    lines: list[tuple[tuple[str, ...], str, list[str]]] = field(default_factory=list)

    def write(self, step: Step) -> None:
        key = (step.operator, self._key(step.args), self._key(step.kwargs))
        if key in self.known:
            self.same |= {place: self._of(known) for place, known in zip(step.places, self.known[key], strict=True)}
            return
        self.known[key] = step.places
        name = step.operator.overloadpacket.__name__
        if self._changes_nothing(name, step):
            self.same[step.places[0]] = self._of(step.args[0].number)
            return
        if name in EXPANSIONS and isinstance(step.args[0], Place):
            self.sources[step.places[0]] = self._of(step.args[0].number)
        targets = tuple(f"v{place}" for place in step.places)
        tries = []
        if len(targets) == 1:
            if name in ELEMENTWISE:
                tries.append(self._text(step, through=True))
            tries.append(self._text(step, through=False))
        for text in tries:
            if text is not None and self._agrees(text, targets, step.outputs):
                self._add(targets, text)
                return
        parts = pieces(name, self._written(step.args[0], through=False), step) if step.args else None
        if parts is not None and all(
            self._agrees(text, (target,), (found,))
            for text, target, found in zip(parts, targets, step.outputs, strict=True)
        ):
            for text, target in zip(parts, targets, strict=True):
                self._add((target,), text)
            return
        call = f"f{len(self.names)}"
        self.names[call] = _as_torch(step)
        arguments = [f"v{self._of(number)}" for number in dict.fromkeys(_places((step.args, step.kwargs)))]
        text = f"{call}({', '.join(arguments)})"
        if not self._agrees(text, targets, step.outputs, is_tuple=step.is_tuple or not targets):
            raise UnrecordableError(f"{step.operator} does not repeat itself")
        self._add(targets, f"{text}[0]" if step.is_tuple and len(targets) == 1 else text)

    def _changes_nothing(self, name: str, step: Step) -> bool:
        """Whether a value comes out as it went in: a view of its own shape, a product with 1, a sum with 0."""
        if not step.args or not isinstance(step.args[0], Place) or len(step.outputs) != 1:
            return False
        value = self.values[f"v{self._of(step.args[0].number)}"]
        same_kind = np.shape(value) == tuple(step.outputs[0].shape)
        same_kind = same_kind and np.asarray(value).dtype == step.outputs[0].detach().numpy().dtype
        return same_kind and (name in VIEWS or (name in NEUTRAL and _is_number(step.args[1], NEUTRAL[name])))

    def function(self, outputs: Sequence[Place]) -> Callable[[Any], tuple[Any, ...]]:
        """From the vector to the outputs, without the steps that they do not need."""
        results = [f"v{self._of(place.number)}" for place in outputs]
        wanted, body = set(results), []
        for targets, text, used in reversed(self.lines):
            if not targets or wanted & set(targets):
                wanted |= set(used)
                body.append(f"    {', '.join(targets)} = {text}" if targets else f"    {text}")
        source = "\n".join(["def played(v0):", *reversed(body), f"    return {', '.join(results)}"])
        exec(compile(source, "<recorded>", "exec"), self.names)
        return self.names["played"]

    def _add(self, targets: tuple[str, ...], text: str) -> None:
        code = compile(text, "<recorded>", "eval")
        self.lines.append((targets, text, [name for name in code.co_names if name in self.values]))

    def _agrees(
        self, text: str, targets: tuple[str, ...], outputs: Sequence[Tensor], *, is_tuple: bool = False
    ) -> bool:
        """Whether a step gives torch's own result; its values are then kept for the following ones."""
        try:
            found = eval(text, self.names, self.values)
        except (TypeError, ValueError, IndexError, AttributeError, FloatingPointError):
            return False
        found = found if is_tuple else (found,)
        for one, expected in zip(found, outputs, strict=True):
            wanted = expected.detach().numpy()
            if np.shape(one) != wanted.shape or np.asarray(one).dtype != wanted.dtype:
                return False
            if not np.allclose(one, wanted, rtol=self.tolerance, atol=self.tolerance, equal_nan=True):
                return False
        self.values.update(zip(targets, found, strict=True))
        return True

    def _text(self, step: Step, *, through: bool) -> str | None:
        """In NumPy's words; through expanded values to what they repeat."""
        written = [self._written(arg, through=through) for arg in step.args]
        return expression(step.operator, written, step, lambda value: self._written(value, through=False))

    def _written(self, value: Any, *, through: bool) -> str:
        if isinstance(value, Place):
            number = self._of(value.number)
            return f"v{self.sources.get(number, number) if through else number}"
        if isinstance(value, Tensor):
            if id(value) not in self.constants:
                name = f"c{len(self.names)}"
                array = value.detach().numpy()
                self.names[name] = array[()] if array.ndim == 0 else array
                self.constants[id(value)] = name
            return self.constants[id(value)]
        if isinstance(value, float) and not np.isfinite(value):
            return "nan" if value != value else "inf" if value > 0 else "(-inf)"
        if isinstance(value, tuple | list):
            inner = ", ".join(self._written(item, through=through) for item in value)
            return f"({inner}{',' if len(value) == 1 else ''})"
        return f"({value!r})" if isinstance(value, int | float) else repr(value)

    def _of(self, number: int) -> int:
        return self.same.get(number, number)

    def _key(self, value: Any) -> Any:
        if isinstance(value, Place):
            return ("place", self._of(value.number))
        if isinstance(value, Tensor):
            return ("constant", id(value))
        if isinstance(value, tuple | list):
            return tuple(self._key(item) for item in value)
        if isinstance(value, Mapping):
            return tuple((name, self._key(item)) for name, item in value.items())
        return (type(value).__name__, repr(value))


def _is_number(value: Any, number: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == number


def _as_torch(step: Step) -> Callable[..., Any]:
    """The operator itself, from and to arrays."""
    numbers = list(dict.fromkeys(_places((step.args, step.kwargs))))

    def call(*arrays: Any) -> Any:
        found = {number: _tensor(array) for number, array in zip(numbers, arrays, strict=True)}

        def put(leaf: Any) -> Any:
            if isinstance(leaf, Place):
                return found[leaf.number]
            return leaf.detach() if isinstance(leaf, Tensor) else leaf

        result = step.operator(*tree_map(put, step.args), **tree_map(put, step.kwargs))
        if not step.places:
            return ()
        if step.is_tuple:
            return tuple(one.numpy() for one in result)
        return result.numpy()

    return call


def _tensor(array: Any) -> Tensor:
    """An array as torch sees it; one that was repeated by a view is copied."""
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@dataclass(frozen=True, eq=False)
class Played:
    """A function from a vector to a value, or several, and its gradient, as it was recorded."""

    steps: Callable[[Any], tuple[Any, ...]]

    def __call__(self, vector: Tensor) -> tuple[Any, Tensor]:
        """The value, an array, and the gradient, which is the caller's to keep."""
        with np.errstate(all="ignore"):
            value, gradient = self.steps(vector.numpy())
        return value, torch.from_numpy(np.array(gradient))


def recorded(function: Function, vectors: Sequence[Tensor]) -> Played | None:
    """The function as it was recorded at the first vector (P,), and agrees at the others; None where it cannot be.

    Args:
        function: From a vector to a value and its gradient, without a grad_fn.
        vectors: On the CPU, at which the function is finite.
    """
    try:
        played = _played(function, vectors[0].detach().clone())
    except UnrecordableError:
        return None
    tolerance = 10 * TOLERANCES.get(vectors[0].dtype, 0.0)
    for vector in vectors:
        value, gradient = function(vector)
        again, slope = played(vector)
        pairs = (value, torch.as_tensor(again)), (gradient, slope)
        if not all(_are_close(one.detach(), other, tolerance) for one, other in pairs):
            return None
    return played


def _are_close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Beside the largest number of the first."""
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * one.abs().max().clamp(min=1.0))


def _played(function: Function, vector: Tensor) -> Played:
    recorder = Recorder(vector)
    with recorder:
        outputs = function(vector)
    places = [recorder.places.get(id(one)) for one in outputs]
    if None in places:
        raise UnrecordableError("an output does not depend on the vector")
    writer = _Writer(TOLERANCES.get(vector.dtype, 0.0), values={"v0": vector.numpy()})
    with np.errstate(all="ignore"):
        for step in recorder.steps:
            writer.write(step)
    return Played(writer.function([Place(place) for place in places if place is not None]))
