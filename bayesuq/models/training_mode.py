"""What of a network acts in training mode only, seen by running it: what draws, and what moves its buffers.

`net.train()` turns on more than `torch.nn.Dropout` and BatchNorm: attention and recurrent layers drop inside of one
call, residual blocks are skipped at random, spectral norms follow the weights, statistics of all kinds move. None of
them needs a layer of a known type. They have two things in common: random operators, all of which torch knows, and
buffers that are others after a pass.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inputs import Inputs, apply, check_call, named_leaves, row_kind
from bayesuq.models.bnn import BayesianNetwork, contained
from bayesuq.models.copies import deep_copy
from bayesuq.models.heads import Traced, traced, warn_of_bounded_outputs
from bayesuq.models.precision import raised
from bayesuq.models.running import running_of
from bayesuq.options import shortened
from bayesuq.randomness import OwnGenerators, RandomOperators, generator, is_native_dropout, with_generator

FEW, MORE = 2, 3  # rows of two passes, whose shapes tell which dimension is that of the rows
SAME = 1e-3  # relative, of outputs of two passes: rounding of float16, and of sums in another order
MIXED = 0.05  # of the largest output: more than rounding, that of an 8-bit layer included
ATTEMPTS = 32  # passes that look for what a pass may skip at random

Key = tuple[str, int]  # the module that draws, and how many draws it made before in the same pass


@dataclass(frozen=True)
class RandomCall:
    """One use of a random operator in a forward pass.

    Attributes:
        operator: torch's.
        shape: Of what it drew for two rows.
        axis: The dimension that the rows are in; None where all rows share the draw.
        places: Entries along that dimension for each row, such as the heads of attention.
    """

    operator: Any
    shape: tuple[int, ...]
    axis: int | None
    places: int

    @property
    def name(self) -> str:
        """As torch calls it."""
        return str(self.operator.overloadpacket.__name__)


@dataclass(frozen=True)
class TrainingMode:
    """What a pass in training mode does that one in evaluation mode does not.

    Attributes:
        calls: Its random calls, in order, by the innermost module that runs and their number in it.
        moving: Paths of the modules whose own buffers move.
        assigned: Of these, the ones that put another tensor in a buffer's place.
        shape: Of the outputs of one row; None where they are no tensor (N, C, ...).
    """

    calls: Mapping[Key, RandomCall]
    moving: tuple[str, ...]
    assigned: tuple[str, ...]
    shape: tuple[int, ...] | None

    @property
    def drawing(self) -> tuple[str, ...]:
        """Paths of the modules that draw."""
        return tuple(dict.fromkeys(path for path, _ in self.calls))

    @property
    def skips(self) -> bool:
        """Whether a pass may leave some calls out, because all rows share a draw."""
        return any(call.axis is None for call in self.calls.values())


_KNOWN: WeakKeyDictionary[BayesianNetwork, dict[Any, Any]] = WeakKeyDictionary()


def training_mode(model: BayesianNetwork, x: Inputs) -> TrainingMode:
    """What the network of a model does in training mode, by passes over a few rows, once for rows of a shape.

    Raises:
        ValueError: See `check_repeatable`; a network that gives outputs of another kind in training mode; that draws
            from other generators than torch's; whose draws are not rows.
    """
    check_repeatable(model, x)

    def find() -> TrainingMode:
        mode = observe(with_own_buffers(model.net).train(), x)
        with torch.no_grad():
            expected = apply(with_own_buffers(model.net), some_rows(x, FEW))
        if isinstance(expected, Tensor) and mode.shape != tuple(expected.shape[1:]):
            raise ValueError(
                "The network must give the same kind of outputs in training mode as in evaluation mode, f (N, C, ...); "
                f"got {mode.shape or 'no tensor'} for {tuple(expected.shape[1:])} a row. Build it without auxiliary "
                "outputs."
            )
        return mode

    return once_of(model, ("training", row_kind(x)), find)


def check_repeatable(model: BayesianNetwork, x: Inputs) -> None:
    """Refuse a network whose outputs are no function of rows and weights, by passes over a few rows, once for a shape.

    Raises:
        ValueError: It draws in evaluation mode too, changes inputs or weights in place, or computes with weights that
            are not those it is given.
    """

    def check() -> None:
        tree = with_own_buffers(model.net)
        _check_repeatable(tree, x)
        _check_takes_weights(model, tree, x)

    once_of(model, ("evaluation", row_kind(x)), check)


def check_ends(model: BayesianNetwork, x: Inputs, seen: Traced | None = None) -> None:
    """Tell of outputs that are bounded where they may not be, once for rows of a shape.

    Args:
        model: The joint density.
        x: A row or two.
        seen: What the network gives for them, where that is there.
    """

    def check() -> None:
        warn_of_bounded_outputs(model, (traced(model, x) if seen is None else seen).f)

    once_of(model, ("ends", row_kind(x)), check)


def check_reached(model: BayesianNetwork, seen: Traced) -> None:
    """Refuse a network whose outputs at some rows have no derivative by any random weight.

    Args:
        model: The joint density.
        seen: What the network gives for them.

    Raises:
        ValueError: No pass runs the layers that are to be random, or `forward` runs without gradients.
    """
    random = model.random_weights
    if random and not seen.moves_with(random):
        raise ValueError(
            f"The outputs do not move with the weights that are to be random, {shortened(random)}: no pass runs their "
            "layer, or `forward` runs under torch.no_grad() or detaches what it gives. Say by `random` which weights "
            "of the layers that run are random, or let gradients through."
        )


def check_has_no_others(model: BayesianNetwork, seen: Traced) -> None:
    """Refuse a network that computes with trainable weights of another one.

    A function that was made for a module, and put into it or around its pass, goes on referring to that module, and not
    to the copies that fits are made on.

    Args:
        model: The joint density.
        seen: What the network gives for some rows.

    Raises:
        ValueError: The outputs have a derivative by parameters that are neither sites nor held beside the modules. What
            a pass makes for itself, such as inputs that it takes a derivative by, is no parameter.
    """
    running = running_of(model.net)
    if running is not None and running.backend is not None:
        return
    values = [value for module in model.tree().modules() for value in vars(module).values()]
    known = {id(one) for one in (*seen.theta.values(), *(one for value in values for one in contained(value)))}
    others = [leaf for leaf in seen.leaves() if isinstance(leaf, nn.Parameter) and id(leaf) not in known]
    if others:
        raise ValueError(
            f"The network computes with {sum(leaf.numel() for leaf in others):,} trainable numbers that are no weights "
            f"of the copy that is fitted, the first of shape {tuple(others[0].shape)}: a function that was made for a "
            "module, put in the place of its `forward`, into an attribute or a hook, refers to the module that it was "
            "made for. Write it as a method of a class, which finds its weights in `self`; what is to stay as it is, "
            "call `requires_grad_(False)` on."
        )


def observe(tree: nn.Module, x: Inputs) -> TrainingMode:
    """What passes over a few rows do, in the modes that the modules of a tree are in; the tree is used up.

    Raises:
        ValueError: Draws from other generators than torch's; draws that are not rows.
    """
    observer = _Observer(tree)
    few, more = some_rows(x, FEW), some_rows(x, MORE)
    shapes: dict[Key, list[tuple[Any, tuple[int, ...]]]] = {}
    for attempt in range(ATTEMPTS):
        one, other = observer.run(few, attempt), observer.run(more, attempt)
        for key in one.keys() & other.keys():
            shapes.setdefault(key, [one[key], other[key]])
        calls = {key: _call(key, *pair) for key, pair in shapes.items()}
        if all(call.axis is not None for call in calls.values()):
            break  # no draw that a pass could branch on
    order = sorted(calls, key=list(observer.order).index)
    return TrainingMode({key: calls[key] for key in order}, *observer.moved(), observer.shape)


def some_rows(x: Any, number: int) -> Any:
    """The first rows, again and again where there are fewer than asked for."""
    return x[torch.arange(number) % len(x)]


def with_own_buffers(net: nn.Module) -> nn.Module:
    """A module tree over the same parameters, with buffers of its own."""
    return deep_copy(net, {id(parameter): parameter for parameter in net.parameters()})


class Running:
    """Which module of a tree is running, and what it has drawn in this pass; it lives in hooks on the tree."""

    def __init__(self, tree: nn.Module) -> None:
        self.paths: list[str] = []
        self.counts: dict[str, int] = {}
        for path, module in tree.named_modules():
            module.register_forward_pre_hook(partial(self._enter, path), prepend=True)
            module.register_forward_hook(self._leave, always_call=True)

    def begin(self) -> None:
        """A new pass."""
        self.paths.clear()
        self.counts.clear()

    def next_key(self) -> Key:
        """Of the draw that is about to be made."""
        path = self.paths[-1] if self.paths else ""
        number = self.counts.get(path, 0)
        self.counts[path] = number + 1
        return path, number

    def _enter(self, path: str, _module: nn.Module, _args: Any) -> None:
        self.paths.append(path)

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        self.paths.pop()


class _Observer(RandomOperators):
    """Runs a tree and notes what draws and what moves."""

    def __init__(self, tree: nn.Module) -> None:
        super().__init__()
        self.tree, self.running = tree, Running(tree)
        self.buffers: dict[tuple[str, str], tuple[Tensor, int, Tensor]] = {
            (path, name): (buffer, buffer._version, buffer.clone())
            for path, module in tree.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        }
        self.order: dict[Key, None] = {}
        self.shape: tuple[int, ...] | None = None
        self.others = 0

    def run(self, x: Tensor, attempt: int) -> dict[Key, tuple[Any, tuple[int, ...]]]:
        """The operator and the shape of each random call of a pass.

        Raises:
            ValueError: The pass draws from Python's or NumPy's generator.
        """
        self.found: dict[Key, tuple[Any, tuple[int, ...]]] = {}
        self.attempt = attempt
        self.running.begin()
        before = _other_states()
        with torch.no_grad(), self:
            f = apply(self.tree, x)
        self.others += before != _other_states()
        if self.others > 1:  # once may be another thread's doing
            raise ValueError(
                "The network draws from Python's or NumPy's random numbers, which no seed of a fit reaches. Draw by "
                "torch instead, such as torch.rand(())."
            )
        self.order |= dict.fromkeys(self.found)
        self.shape = tuple(f.shape[1:]) if isinstance(f, Tensor) and f.ndim > 1 and len(f) == len(x) else None
        return self.found

    def draw(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """As the operator; a draw that rows share is the same for any number of rows."""
        key = self.running.next_key()
        with OwnGenerators(generator(self.attempt, len(self.found))) as own:
            can_be_keyed = with_generator(operator) is not None or is_native_dropout(operator)
            drawn = own.draw(operator, args, kwargs) if can_be_keyed else operator(*args, **kwargs)
        whole = drawn if isinstance(drawn, Tensor) else drawn[0]
        self.found[key] = operator, tuple(whole.shape)
        return drawn

    def moved(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Paths of the modules with buffers that are others than before, and with other tensors in their places."""
        moving: dict[str, None] = {}
        assigned: dict[str, None] = {}
        for (path, name), (buffer, version, value) in self.buffers.items():
            if self.tree.get_submodule(path)._buffers.get(name) is not buffer:
                assigned[path] = moving[path] = None
            elif buffer._version != version or not torch.equal(buffer, value):
                moving[path] = None
        return tuple(moving), tuple(assigned)


def _call(key: Key, one: tuple[Any, tuple[int, ...]], other: tuple[Any, tuple[int, ...]]) -> RandomCall:
    """A call by its shapes for two rows and for three."""
    (operator, few), (_, more) = one, other
    differing = [axis for axis, sizes in enumerate(zip(few, more, strict=False)) if sizes[0] != sizes[1]]
    if len(few) == len(more) and not differing:
        return RandomCall(operator, few, None, 0)
    if len(few) == len(more) and len(differing) == 1:
        (axis,) = differing
        if few[axis] * MORE == more[axis] * FEW:
            return RandomCall(operator, few, axis, few[axis] // FEW)
    raise ValueError(
        f"Rows must have draws of their own; {_named(key[0])} draws {few} numbers for {FEW} rows and {more} for {MORE}."
    )


def _warn_of_mixed_rows(tree: nn.Module, x: Inputs, plain: Tensor) -> None:
    """Tell of a network whose outputs at a row depend on which other rows come with it."""
    with torch.no_grad():
        among_more = apply(tree, some_rows(x, MORE))[:FEW]
    difference = (among_more - plain).abs().max()
    if bool(difference > MIXED * plain.abs().max()):
        warn_of_fit(
            "What the network gives for a row depends on which other rows come with it, as where it takes means over "
            "a batch or a BatchNorm has track_running_stats=False. Predictions then depend on how many rows are "
            "passed, and of many on how memory cuts them; posteriors are of rows by themselves.",
            UserWarning,
        )


def _check_repeatable(tree: nn.Module, x: Inputs) -> None:
    """As `check_repeatable`."""
    check_call(tree, x)
    few, versions = some_rows(x, FEW), _versions(tree)
    with torch.no_grad():
        plain = apply(tree, few)
    changed = [name for name, version in _versions(tree).items() if version != versions[name]]
    if changed:
        raise ValueError(
            f"The network changes its weights in place as it runs, {shortened(changed)}: draws would be others than it "
            "predicts with. An embedding with `max_norm` does: set `module.max_norm = None`, which changes nothing of "
            "rows that are within it."
        )
    if not isinstance(plain, Tensor) or plain.ndim < 2 or len(plain) != len(few):
        shape = tuple(plain.shape) if isinstance(plain, Tensor) else type(plain).__name__
        raise ValueError(
            f"The network must map x (N, ...) to f (N, C, ...); for {len(few)} rows it gave {shape}. Of several "
            "outputs say which are f, as by `bayesuq.adopt(net, likelihood, output=lambda found: found[0])`."
        )
    kept = some_rows(x, FEW)
    if not all(torch.equal(leaf, named_leaves(kept)[name]) for name, leaf in named_leaves(few).items()):
        raise ValueError(
            "The network changes its inputs in place, and with them your data. Let its first operation make a new "
            "tensor: `x = 2 * x` instead of `x.mul_(2)`, `nn.ReLU()` instead of `nn.ReLU(inplace=True)`."
        )
    observer = _Observer(tree)
    found = observer.run(few, 0)
    with torch.no_grad():
        again = apply(tree, few)
    drawing = ", ".join(dict.fromkeys(_named(path) for path, _ in found))
    differs = not torch.allclose(plain, again, SAME, SAME, equal_nan=True)
    if found or differs:
        raise ValueError(
            f"The network must give the same outputs for the same inputs in evaluation mode; "
            f"{drawing or 'something in it'} draws random numbers there too. Draw where `self.training` only (then "
            "`dropout` makes it part of the uncertainty), or write the noise as a likelihood."
        )
    _warn_of_mixed_rows(tree, x, plain)


def _versions(tree: nn.Module) -> dict[str, int]:
    """How often each parameter has been changed in place, by name."""
    return {name: parameter._version for name, parameter in tree.named_parameters()}


def _check_takes_weights(model: BayesianNetwork, tree: nn.Module, x: Inputs) -> None:
    """Refuse a network that keeps what it made of weights, or refers to them beside its modules.

    Weights are put into a tree for the length of a pass. What an earlier pass has kept, or a list of parameters refers
    to, is of other weights; a copy that has these weights for its own, and has never run, shows it.

    Args:
        model: The joint density.
        tree: That has run at the network's own weights.
        x: Some rows.

    Raises:
        ValueError: The two do not give the same.
    """
    running = running_of(tree)
    if running is not None and running.backend is not None:
        return
    few, noise = some_rows(x, FEW), generator(0)
    theta = {name: _moved(value, noise) for name, value in model.initial().items()}
    own = model.at(theta)
    with torch.no_grad():
        try:
            given, expected = model.forward(theta, few, net=tree), raised(apply(own, few), model.dtype)
        except (RuntimeError, ValueError, ArithmeticError, AssertionError):
            return  # weights that no fit need come to
    if not torch.allclose(given, expected, SAME, SAME, equal_nan=True):
        raise ValueError(
            "The network does not compute with the weights that are put in the place of its own: it keeps from one "
            "pass to the next what it has made of them, or refers to them beside its modules, as in a list. Draws of "
            "weights would be other ones than it runs with. Compute from `self`'s parameters in each pass."
        )


def _moved(value: Tensor, noise: torch.Generator) -> Tensor:
    """Weights of the same signs, a tenth larger or smaller."""
    share = 0.9 + 0.2 * torch.rand(value.shape, generator=noise)
    return value * share.to(value)


def _named(path: str) -> str:
    return f"`net.{path}`" if path else "`net`"


def _other_states() -> tuple[Any, ...]:
    """Of the generators that are not torch's."""
    _, words, position, *rest = np.random.get_state()  # noqa: NPY002 - users' networks draw from it
    return random.getstate(), np.asarray(words).tobytes(), position, *rest


def once_of(model: BayesianNetwork, key: Any, find: Callable[[], Any]) -> Any:
    """What is known of a model by a key, found out the first time."""
    known = _KNOWN.setdefault(model, {})
    if key not in known:
        known[key] = find()
    return known[key]
