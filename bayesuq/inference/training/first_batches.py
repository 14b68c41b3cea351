"""The first minibatches of a DataLoader, the same each time that they are asked for, to tell loaders apart by.

What is in memory counts whole, as tensors or in a data set of the user's own. Of rows that are read one by one some
more count, from the first to the last, for two data sets may begin alike.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torch.utils.data import Dataset as Rows

from bayesuq.data import Dataset
from bayesuq.inference.training.held_arrays import held_digests
from bayesuq.inference.training.identity import digest, digest_of
from bayesuq.loaders import Loader
from bayesuq.randomness import globally_isolated

NUM_BATCHES = 2
NUM_ROWS = 16  # that are read of a data set beside the first minibatches
UNREPEATABLE = "unrepeatable"


def first_batches(loader: Loader, device: torch.device) -> list[Dataset]:
    """The first two, in an order that no random state of the process has a part in."""
    with _fixed_order(loader.loader, device):
        return list(islice(iter(loader), NUM_BATCHES))


def loader_digest(loader: Loader, device: torch.device) -> tuple[str, list[Dataset]]:
    """A name for a loader's data, and its first minibatches.

    All rows of tensors in memory count, and of others the first minibatches, rows from all over the data set, and the
    arrays that it holds, unless reading changes them. Where rows are others each time, as those that are augmented by
    random numbers of their own are, the arrays alone count.

    What is named by words of the form a=b is not in files of before, which are known by the rest.
    """
    dataset = loader.loader.dataset
    held = {} if _is_in_memory(dataset) else held_digests(dataset)
    batches = first_batches(loader, device)
    name = _digest(batches)
    if _digest(first_batches(loader, device)) != name:
        return ", ".join([UNREPEATABLE, *_unchanged(held, dataset)]), batches
    with _fixed_order(loader.loader, device):
        read = "" if _is_in_memory(dataset) else _some_rows(dataset)
    rows = " ".join(filter(None, (name, _rows_in_memory(dataset), read)))
    return ", ".join([rows, *_unchanged(held, dataset)]), batches


def _unchanged(held: Mapping[str, str], dataset: Any) -> list[str]:
    """The names of arrays that are as they were before rows were read: others are a cache, or state of a generator."""
    now = held_digests(dataset) if held else {}
    return [f"{name}={value}" for name, value in held.items() if now.get(name) == value]


def loader_rows(loader: Loader) -> str:
    """As `loader_digest`, and where rows are others each time, which of its data set a loader shows."""
    name, _ = loader_digest(loader, torch.device("cpu"))
    return f"{name} {_rows_in_memory(loader.loader.dataset)} {_places(loader.loader)}"


def _places(loader: DataLoader[Any]) -> str:
    """The number of this process among those that a sampler divides rows among."""
    return str(getattr(loader.sampler, "rank", getattr(loader.batch_sampler, "rank", "")))


def _digest(batches: list[Dataset]) -> str:
    return digest_of([(batch.x, batch.y, batch.weight) for batch in batches])


def _rows_in_memory(dataset: Rows[Any]) -> str:
    if isinstance(dataset, Subset):
        return f"{_rows_in_memory(dataset.dataset)} {digest({'': torch.as_tensor(dataset.indices)})}"
    if isinstance(dataset, TensorDataset):
        return digest({str(number): tensor for number, tensor in enumerate(dataset.tensors)})
    return ""


def _is_in_memory(dataset: Rows[Any]) -> bool:
    return _is_in_memory(dataset.dataset) if isinstance(dataset, Subset) else isinstance(dataset, TensorDataset)


def _some_rows(dataset: Any) -> str:
    """A name for rows from the first to the last, where rows have numbers and are the same when they are read again."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return ""
    last = len(dataset) - 1
    places = sorted({round(place * last / (NUM_ROWS - 1)) for place in range(NUM_ROWS)})
    together = getattr(dataset, "__getitems__", None)  # as torch's loaders prefer to read
    try:
        items = (together(places) if together else [dataset[place] for place in places] for _ in range(2))
        once, again = map(digest_of, items)
    except (LookupError, TypeError, NotImplementedError):  # rows that are asked for by something else than numbers
        return ""
    return f"rows={once if once == again else UNREPEATABLE}"


@contextmanager
def _fixed_order(loader: DataLoader[Any], device: torch.device) -> Iterator[None]:
    """Every generator that a loader is known to draw from is at a fixed state, and then where it was."""
    samplers = [loader, loader.sampler, loader.batch_sampler, getattr(loader.batch_sampler, "sampler", None)]
    found = (getattr(one, "generator", None) for one in samplers)
    own = {id(one): one for one in found if isinstance(one, torch.Generator)}
    states = [(one, one.get_state()) for one in own.values()]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - a dataset may draw from it
    try:
        for one, _ in states:
            one.manual_seed(0)
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        with globally_isolated(0, device=device):
            yield
    finally:
        for one, state in states:
            one.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
