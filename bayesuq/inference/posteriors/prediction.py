"""Which draws a prediction takes, and how its rows go through memory: in chunks whose size changes no result."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.data import Dataset
from bayesuq.gradients import keeping, unless_kept
from bayesuq.inference.posteriors.draw_budget import CHUNK_BUDGET, Rows, mixed_within
from bayesuq.inference.posteriors.one_pass import OtherBitsError, whole_passes
from bayesuq.inputs import Inputs, checked, device_of, named_leaves, row_kind
from bayesuq.loaders import Loader
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.far_rows import counted_far_rows
from bayesuq.models.network_inputs import cast_inputs, refusal
from bayesuq.models.training_mode import check_ends, check_repeatable, once_of
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.maps import RealMaps
from bayesuq.subnormals import flushed
from bayesuq.waiting import Notes
from bayesuq.windows import Windows

DEFAULT_NUM_SAMPLES = 100
# Numbers that a layer may take and give for a chunk of rows. On a CPU a tensor of 32 MiB comes from the system and goes
# back to it at every operator, page by page, which takes thrice the time of the operator.
ACTIVATION_BUDGET = 2**22
ACCELERATOR_BUDGET = 2**26

Parts = Callable[[Any, int, int], Iterable[PredictiveDistribution]]


def draw_indices(num_samples: int | None, num_members: int | None) -> Sequence[int]:
    """Which draws a prediction takes, as `Posterior.predict` says.

    Raises:
        TypeError: A number of draws that is not whole.
        ValueError: A number of draws below 1.
    """
    if num_samples is not None:
        check_count(num_samples, "num_samples")
    if num_members is None:
        return range(DEFAULT_NUM_SAMPLES if num_samples is None else num_samples)
    if num_samples is None or num_samples >= num_members:
        return range(num_members)
    return [(2 * s + 1) * num_members // (2 * num_samples) for s in range(num_samples)]


def predict_in_chunks(
    model: BayesianNetwork,
    x: "ArrayLike | DataLoader[Any]",
    tree: nn.Module,
    parts: Parts,
    *,
    num_draws: int,
    keep_samples: bool,
    windows: Windows | None = None,
) -> PredictiveDistribution:
    """Predict rows in chunks that fit memory, and join them.

    Args:
        model: Whose dtype, device and shapes count.
        x: Inputs or a loader of them.
        tree: The module tree to run, of this thread alone.
        parts: From a chunk's rows, the number of its first row, and the activations of one row to the predictives of
            single draws (or of several), which are mixed.
        num_draws: How many that are.
        keep_samples: See `Posterior.predict`.
        windows: In which the network sees rows; None is whole.

    Raises:
        TypeError: See `bayesuq.arrays.check_inputs`.
        ValueError: See `bayesuq.arrays.check_inputs`; or a shape that the network does not take.
    """
    start = 0

    def chunk(notes: Notes, rows: Inputs, width: int) -> PredictiveDistribution:
        with notes:
            part = mixed(parts(rows, start, width))
            far.end_chunk()
        notes.read()
        return part

    def chunks(batch: ArrayLike) -> Iterator[PredictiveDistribution]:
        nonlocal start
        with Notes() as notes:  # what is wrong with inputs is read with the first chunk
            inputs = cast_inputs(model, checked(batch))
            seen = inputs if windows is None else windows.first(inputs)
            width = max(activations_per_row(model, seen, tree), inputs[:1].numel())
        for rows in inputs.split(max(1, min(rows_at_a_time(model.device, width), CHUNK_BUDGET // num_draws))):
            try:
                part = chunk(notes, rows, width)
            except OtherBitsError:
                with whole_passes():
                    part = chunk(notes, rows, width)
            yield part
            start += len(rows)

    with counted_far_rows() as far:
        return predict_batches(x, chunks, keep_samples=keep_samples)


def predict_batches(
    x: "ArrayLike | DataLoader[Any]",
    predict: Callable[[ArrayLike], Iterable[PredictiveDistribution]],
    *,
    keep_samples: bool,
) -> PredictiveDistribution:
    """The predictives of inputs, or of the batches of a loader in their order, joined.

    Args:
        x: Inputs or a loader of them.
        predict: From inputs to the predictives of their rows, in order, in one piece or several.
        keep_samples: See `Posterior.predict`.

    Returns:
        The whole, on the device that x is on (for a loader: where `predict` left it).

    Raises:
        TypeError: A Dataset, whose targets would not be used.
        ValueError: A loader that shuffles, or gives no batch.
    """
    done = Rows(keep_samples=keep_samples)
    with unless_kept(), flushed():
        for inputs in batches_of(x):
            for part in predict(inputs):
                done.add(part)
    whole = done.whole()
    if whole is None:
        raise ValueError("`x` must not be empty; the loader gave no batch.")
    if Loader.of(x) is not None:
        return whole
    return whole.to(device_of(x))


def batches_of(x: "ArrayLike | DataLoader[Any] | Loader") -> Iterator[ArrayLike]:
    """The inputs of each batch of a loader, in order, or all at once.

    Raises:
        TypeError: A Dataset, whose targets would not be used; items that have to be read by a function.
        ValueError: A loader that shuffles.
    """
    if isinstance(x, Dataset):
        raise TypeError("`x` must be inputs, or a DataLoader of them; got a Dataset. Pass its `.x`.")
    loader = Loader.of(x)
    if loader is not None:
        yield from loader.inputs()
    else:
        yield cast(ArrayLike, x)


@contextmanager
def differentiated(x: Any, *, differentiable: bool) -> Iterator[None]:
    """What is predicted has gradients in x, where they are asked for; else nothing changes.

    Raises:
        TypeError: A loader.
        ValueError: Inputs of which no part asks for gradients.
    """
    if not differentiable:
        yield
        return
    if Loader.of(x) is not None:
        raise TypeError("`differentiable` needs inputs that are tensors; a loader makes its own. Pass its batches.")
    if not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in named_leaves(x).values()):
        raise ValueError(
            "`differentiable` gives gradients in `x`, and no part of `x` asks for them. Call `x.requires_grad_()`."
        )
    with keeping():
        yield


def mixed(draws: Iterable[PredictiveDistribution], *, keep_samples: bool = True) -> PredictiveDistribution:
    """The mixture of the predictives of draws, one after another; see `Posterior.predict` for `keep_samples`."""
    draws = iter(draws)
    first = next(draws)
    if isinstance(first, RealPredictive) and not keep_samples:
        return mixed_within(cast("Iterable[RealPredictive]", chain([first], draws)))
    if isinstance(first, RealMaps) and not keep_samples:
        maps = cast("Iterable[RealMaps]", chain([first], draws))
        return first.with_pixels(mixed_within(part.pixels for part in maps))
    kind, parts = type(first), chain([first], draws)
    del first  # held no longer than the mixture needs it
    return kind.mixture(parts)


def rows_at_a_time(device: torch.device, width: int) -> int:
    """How many rows a chunk has, of `width` activations each; at least one."""
    budget = ACTIVATION_BUDGET if device.type == "cpu" else ACCELERATOR_BUDGET
    return max(1, budget // width)


def activations_per_row(model: BayesianNetwork, x: Inputs, tree: nn.Module) -> int:
    """Numbers that one row's forward pass has in memory at a time: the most that a layer takes and gives.

    They are counted on the first row, once for rows of a shape.

    Raises:
        ValueError: The network does not take rows of this shape; it draws in evaluation mode.
    """
    key = ("activations", row_kind(x))
    return int(once_of(model, key, lambda: max(layer.taken + layer.given for layer in _layers(model, x, tree))))


def kept_activations_per_row(model: BayesianNetwork, x: Inputs, tree: nn.Module) -> int:
    """Numbers that one row's forward pass leaves for a backward pass: the inputs, and what all layers give.

    Raises:
        ValueError: See `activations_per_row`.
    """
    return sum(layer.given for layer in _layers(model, x, tree) if layer.is_single)


class _Layer(NamedTuple):
    """How many numbers of one row a module takes and gives, and whether it consists of no others."""

    taken: int
    given: int
    is_single: bool


@torch.no_grad()
def _layers(model: BayesianNetwork, x: Inputs, tree: nn.Module) -> list[_Layer]:
    """Every module's, in the order in which they end; first the row's own."""
    try:
        check_repeatable(model, x[:2])
        check_ends(model, x[:2])
    except (RuntimeError, IndexError, AssertionError) as error:
        raise refusal(x, error) from error
    found = [_Layer(0, x[:1].numel(), is_single=True)]

    def add(module: nn.Module, inputs: Any, output: Any) -> None:
        taken = sum(one.numel() for one in inputs if isinstance(one, Tensor))
        given = output.numel() if isinstance(output, Tensor) else 0
        found.append(_Layer(taken, given, is_single=not any(module.children())))

    handles = [module.register_forward_hook(add) for module in tree.modules()]
    try:
        model.forward(model.initial(), x[:1], net=tree)
    except (RuntimeError, IndexError) as error:
        raise refusal(x, error) from error
    finally:
        for handle in handles:
            handle.remove()
    return found
