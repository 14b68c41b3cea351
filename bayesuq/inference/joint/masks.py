"""Random masks, and whatever else a network draws in training mode, from generators that depend on keys alone.

Dropout layers are replaced by layers that ask for their masks, at no cost. What draws inside of other operators
(attention, recurrent layers, `functional.dropout`, noise of one's own) is caught where torch calls its random
operators, at some microseconds an operator.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bayesuq.models.layers import is_plain_dropout
from bayesuq.models.training_mode import RandomCall, Running, TrainingMode
from bayesuq.randomness import RandomOperators, dropped, is_native_dropout, with_generator

BLOCK = 64  # rows whose masks come from one generator
ALPHA = -1.7580993408473766  # -scale * alpha of SELU (Klambauer et al. 2017): what AlphaDropout puts for a dropped unit
SHARED = 1  # in a key: draws of all rows, beside those of blocks of rows
FILLS = ("bernoulli_", "normal_", "uniform_", "exponential_", "random_", "geometric_", "log_normal_", "cauchy_")
OTHERS = ("randint", "randint_like", "bernoulli", "normal", "native_dropout")
REMEDIES = {
    "attention": "Fit and predict within torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH).",
    "cudnn_rnn": "Fit and predict within torch.backends.cudnn.flags(enabled=False).",
    "rrelu": "Take torch.nn.LeakyReLU.",
    "": "Draw by torch.nn.functional.dropout, torch.rand or torch.randn.",
}
FRESH = {"rand": "uniform_", "rand_like": "uniform_", "randn": "normal_", "randn_like": "normal_"}


class Keep(Protocol):
    """What masks come from."""

    @property
    def active(self) -> bool:
        """Whether masks are made."""

    def keep(self, like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """1 with probability 1 - p and 0 else, for each row of `like` and each place of `shape`; in `like`'s dtype."""


class Stream:
    """Masks one after another from one generator, as a training step draws them.

    Attributes:
        noise: The generator; None draws nothing.
    """

    def __init__(self) -> None:
        self.noise: torch.Generator | None = None

    @property
    def active(self) -> bool:
        """Whether masks are made."""
        return self.noise is not None

    def keep(self, like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """See `Keep.keep`."""
        whole = torch.empty_like(like) if shape == like.shape[1:] else like.new_empty(len(like), *shape)
        return whole.bernoulli_(1 - p, generator=self.noise)


class Masks:
    """Random masks for a run of rows, a function of seed, draw and block of rows, whatever the chunk.

    Before `begin` and after `end` it makes none.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.active = False
        self.count = 0
        self.common: torch.Generator | None = None
        self.are_shared = False
        self._states: dict[tuple[int, int], np.ndarray] = {}

    def begin(self, seed: int, draw: int, start: int | None, num_rows: int) -> None:
        """Get ready for the rows from `start` on; layers then ask in the order in which they run.

        Where `start` is None, all rows share one mask, that of the draw.
        """
        self.are_shared = start is None
        first, last = (start or 0) // BLOCK, ((start or 0) + num_rows - 1) // BLOCK
        seeds: Any = [] if start is None else self._states_of(seed, draw, last + 1)[first : last + 1]
        self.generators = [torch.Generator(self.device).manual_seed(int(block)) for block in seeds]
        self.rows = slice((start or 0) - first * BLOCK, (start or 0) - first * BLOCK + num_rows)
        self.key, self.common = (seed, draw), None
        self.active, self.count = True, 0

    def _states_of(self, seed: int, draw: int, number: int) -> np.ndarray:
        """The states of so many blocks at least, by one hash a draw: a block's is the same however many there are.

        They are kept, and twice as many made as are asked for where they do not suffice, so that the rows of a loader
        cost a time linear in their number.
        """
        states = self._states.get((seed, draw))
        if states is None or len(states) < number:
            size = number if states is None else 2 * number
            states = np.random.SeedSequence(seed, spawn_key=(draw, 0)).generate_state(size, np.uint64)
            self._states[seed, draw] = states
        return states

    def check_rows(self, x: Tensor) -> None:
        """Raise a ValueError unless the first dimension of `x` is that of the rows."""
        expected = self.rows.stop - self.rows.start
        if x.ndim < 2 or len(x) != expected:
            raise ValueError(
                f"A dropout layer got inputs of shape {tuple(x.shape)} for {expected} rows; rows must come first."
            )

    def end(self) -> None:
        """Make no more masks."""
        self.active = False

    def keep(self, like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """See `Keep.keep`."""
        self.check_rows(like)
        self.count += 1
        return self.of_rows(like, shape, lambda block, noise: block.bernoulli_(1 - p, generator=noise))

    def of_rows(self, like: Tensor, shape: tuple[int, ...], fill: Callable[[Tensor, torch.Generator], Any]) -> Tensor:
        """Draws for each row and each place of `shape`, in `like`'s dtype, (N, *shape)."""
        if self.are_shared:
            return self.of_all(like, shape, fill).repeat(self.rows.stop, *[1] * len(shape))
        with torch._C.DisableTorchFunction():  # what remembers operators must not take these for ones that repeat
            blocks = like.new_empty(len(self.generators), BLOCK, *shape, device=self.device)
            for block, noise in zip(blocks, self.generators, strict=True):
                fill(block, noise)
            return blocks.flatten(0, 1)[self.rows]

    def of_all(self, like: Tensor, shape: tuple[int, ...], fill: Callable[[Tensor, torch.Generator], Any]) -> Tensor:
        """Draws that all rows share, whatever the chunk, (*shape)."""
        if self.common is None:
            seed, draw = self.key
            state = np.random.SeedSequence(seed, spawn_key=(draw, SHARED)).generate_state(1, np.uint64)
            self.common = torch.Generator(self.device).manual_seed(int(state[0]))
        with torch._C.DisableTorchFunction():
            whole = like.new_empty(shape, device=self.device)
            fill(whole, self.common)
            return whole


class MaskedLayer(nn.Module):
    """A dropout layer whose masks come from elsewhere."""

    is_compilable = False

    def __init__(self, layer: nn.Module, masks: Keep) -> None:
        super().__init__()
        self.p: float = layer.p  # type: ignore[assignment]
        self.whole_channels = not isinstance(layer, nn.Dropout | nn.AlphaDropout)
        self.keeps_moments = isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout)
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) with units, or whole channels, dropped."""
        if not self.training or not self.masks.active:
            return x
        if self.p == 1:
            return torch.zeros_like(x)
        shape = (x.shape[1], *[1] * (x.ndim - 2)) if self.whole_channels else tuple(x.shape[1:])
        keep = self.masks.keep(x, shape, self.p)
        if not self.keeps_moments:
            return x * keep.div_(1 - self.p)
        # Klambauer et al. 2017, section 3: an affine map puts mean 0 and variance 1 back.
        a = ((1 - self.p) * (1 + self.p * ALPHA**2)) ** -0.5
        return a * (x * keep + ALPHA * (1 - keep) - ALPHA * self.p)


def with_masks(net: nn.Module, masks: Keep) -> nn.Module:
    """The network, its own to change, with a `MaskedLayer` in the place of each dropout layer."""
    if is_plain_dropout(net):
        return MaskedLayer(net, masks)
    replaced: dict[int, nn.Module] = {}
    for path, layer in list(net.named_modules(remove_duplicate=False)):  # one layer may stand in several places
        if is_plain_dropout(layer):
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, replaced.setdefault(id(layer), MaskedLayer(layer, masks)))
    return net


class MaskedOperators(RandomOperators):
    """While it is on, what a tree draws comes from masks, row by row as a dropout layer's does."""

    def __init__(self, tree: nn.Module, masks: Masks, mode: TrainingMode) -> None:
        super().__init__()
        self.masks, self.mode, self.running = masks, mode, Running(tree)

    def __enter__(self) -> "MaskedOperators":
        self.running.begin()
        super().__enter__()
        return self

    def draw(self, operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """As the operator, for the rows at hand.

        Raises:
            ValueError: A call that the passes at the door have not seen.
        """
        key = self.running.next_key()
        call = self.mode.calls.get(key)
        if call is None or call.operator is not operator:
            raise ValueError(
                f"`net.{key[0]}` drew by torch's {operator} where it had not been seen to. A network must draw in the "
                "same way in each pass; pass rows of one shape."
            )
        self.masks.count += 1
        names = [argument.name for argument in operator._schema.arguments]
        passed = {**dict(zip(names, args, strict=False)), **kwargs}
        given = {name: passed[name] for name in names if name in passed}
        if is_native_dropout(operator):
            return dropped(args, lambda keep, p: self._noise(call, keep, _fill("bernoulli_", 1 - p)))
        return self._drawn(call, given)

    def _drawn(self, call: RandomCall, given: Mapping[str, Any]) -> Tensor:
        name: str = call.name
        target: Any = given.get("self")
        rest = tuple(value for key, value in given.items() if key not in ("self", "generator"))
        if name in FILLS and not any(isinstance(value, Tensor) for value in rest):
            return target.copy_(self._noise(call, target, _fill(name, *rest)))
        like = _like(given)
        if name in FRESH:
            return self._noise(call, like, _fill(FRESH[name]))
        if name in ("randint", "randint_like"):
            return self._noise(call, like, _fill("random_", given.get("low", 0), given["high"]))
        uniform = self._noise(call, like, _fill("uniform_")) if name.startswith("bernoulli") else None
        if uniform is not None:
            drawn = (uniform < given.get("p", target)).to(like.dtype)
            return target.copy_(drawn) if name == "bernoulli_" else drawn
        return self._noise(call, like, _fill("normal_")) * given["std"] + given["mean"]

    def _noise(self, call: RandomCall, like: Tensor, fill: Callable[[Tensor, torch.Generator], Any]) -> Tensor:
        """Draws for the rows at hand in the shape of the call, on the device of `like`."""
        if call.axis is None:
            return self.masks.of_all(like, call.shape, fill).to(like.device)
        rest = [size for axis, size in enumerate(call.shape) if axis != call.axis]
        drawn = self.masks.of_rows(like, (call.places, *rest), fill)
        return drawn.flatten(0, 1).movedim(0, call.axis).to(like.device)


def _fill(name: str, *args: Any) -> Callable[[Tensor, torch.Generator], Any]:
    """What fills a tensor by one of torch's random methods."""
    return lambda tensor, noise: getattr(tensor, name)(*args, generator=noise)


def _like(given: Mapping[str, Any]) -> Tensor:
    """A tensor of the dtype and device of what an operator gives, by its arguments."""
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    whole = "high" in given and not tensors
    dtype = given.get("dtype") or (tensors[0].dtype if tensors else torch.int64 if whole else None)
    return torch.empty(0, dtype=dtype, device=given.get("device") or (tensors[0].device if tensors else None))


def check_masks(mode: TrainingMode) -> None:
    """Refuse a network that draws by an operator whose numbers cannot be given to single rows.

    Raises:
        ValueError: It does.
    """
    _check(mode, lambda call: call.name in (*FILLS, *FRESH, *OTHERS), "cannot be tied to rows")


def check_streams(mode: TrainingMode) -> None:
    """Refuse a network that draws by an operator whose numbers no generator can be given to.

    Raises:
        ValueError: It does.
    """
    _check(
        mode,
        lambda call: with_generator(call.operator) is not None or is_native_dropout(call.operator),
        "cannot be repeated",
    )


def _check(mode: TrainingMode, is_known: Callable[[RandomCall], bool], what: str) -> None:
    for (path, _), call in mode.calls.items():
        if not is_known(call):
            remedy = next((text for part, text in REMEDIES.items() if part in call.name), REMEDIES[""])
            raise ValueError(f"`net.{path}` draws by torch's {call.name}, whose numbers {what}. {remedy}")


def only_layers(tree: nn.Module, mode: TrainingMode) -> bool:
    """Whether torch's dropout layers are all that draws, and rows come first in all of them."""
    return all(
        is_plain_dropout(tree.get_submodule(path)) and call.axis == 0 and call.places == 1
        for (path, _), call in mode.calls.items()
    )
