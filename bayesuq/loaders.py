"""Loaders: what the items of a `torch.utils.data.DataLoader` hold, and which rows its passes show.

An item is (x, y), or something with the names x, y and weight: a mapping, a named tuple, a dataclass. Everything else
is read by a function that the user gives, since a third element may be a weight, an index, or a second input.

A loader is passed in two ways. Training takes its batches as they come. Whatever needs every row (validation, a
curvature, the energy of a chain, the evidence of a process) takes a complete pass: each row of the data set once and in
order, none dropped. Both count the same N rows, by the loader's sampler:

- all of the data set, where they come in order, shuffled, or drawn at random with or without replacement;
- the rows named, of a subset, of a shard, and of a sampler or a batch sampler of the user's own, where these are the
  same in every pass; else all;
- of rows drawn by weights w with replacement, all of the data set, row n counting N w_n / sum(w): that is what training
  on such draws maximises, and a complete pass weights its rows so.
"""

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, zip_longest
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from bayesuq.arrays import ArrayLike, SupportsArray
from bayesuq.data import Batch, Dataset, Split
from bayesuq.randomness import isolated

__all__ = ["Loader"]
__dir__ = __all__.copy

SHUFFLES = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)
MOST_PASSES = 100  # a sampler that gives so many times the data set's rows is taken to have no end
HOW_TO_READ = "Say what it holds: bayesuq.Loader(loader, batch=lambda item: bayesuq.Batch(x={}, y={}))"


@dataclass(frozen=True, eq=False)
class Loader:
    """A DataLoader, and how its items are read; taken wherever a DataLoader is.

    Attributes:
        loader: Of any items.
        batch: From an item to its `bayesuq.Batch`, where the item does not name its parts; for prediction, y may be
            None.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> x, y, index = torch.rand(6, 2), torch.rand(6), torch.arange(6)
        >>> rows = DataLoader(TensorDataset(x, y, index), batch_size=2)
        >>> loader = Loader(rows, batch=lambda item: Batch(x=item[0], y=item[1]))
        >>> next(iter(loader))
        Dataset(x: (2, 2) float32, y: (2, 1) float32)
    """

    loader: DataLoader[Any]
    batch: Callable[[Any], Batch] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loader, DataLoader):
            raise TypeError(f"`loader` must be a torch DataLoader; got {type(self.loader).__name__}.")
        if self.batch is not None and not callable(self.batch):
            raise TypeError(f"`batch` must be a function from an item of the loader to a Batch; got {self.batch!r}.")

    @classmethod
    def of(cls, value: Any) -> "Loader | None":
        """From what a user passes as data or inputs; None of anything else."""
        if isinstance(value, DataLoader):
            return cls(value)
        return replace(value) if isinstance(value, Loader) else None  # whose data set may have grown since

    @cached_property
    def rows(self) -> "Rows":
        """Which rows it stands for: see `Rows.of`."""
        return Rows.of(self.loader)

    @cached_property
    def num_rows(self) -> int:
        """N, by reading all rows where nothing else tells."""
        count = self.rows.count
        return sum(len(batch) for batch in self.complete()) if count is None else count

    @cached_property
    def mean_size(self) -> float | None:
        """Rows of a batch of training on average, where batches may differ in size by more than chance.

        None where the loader shuffles rows, so that each is as likely in a small batch as any other, or where the
        number of rows that a pass shows is not known.
        """
        if _shuffles(self.loader):
            return None
        shown = self.num_rows if self.rows.loader is self.loader else self.rows.shown
        return None if shown is None else shown / len(self)

    def __len__(self) -> int:
        """Batches of a pass of training.

        Raises:
            TypeError: The sampler has no length, and shows others rows in each pass.
        """
        try:
            return len(self.loader)
        except TypeError as error:
            shown, size = self.rows.shown, getattr(self.loader.batch_sampler, "batch_size", None)
            if shown is None or size is None:
                raise TypeError("The DataLoader's sampler must have a length. Give it a `__len__`.") from error
            return -(-shown // size)

    def __iter__(self) -> Iterator[Dataset]:
        """The batches of one pass of training."""
        seen = 0
        for item in self.loader:
            batch = Dataset(*self._read(item))
            seen += len(batch)
            yield batch
        _tell_surprise(seen, self.rows.shown)

    def first(self) -> Dataset:
        """The first batch of a pass of training.

        Raises:
            ValueError: There is none.
        """
        for item in self.loader:
            return Dataset(*self._read(item))
        raise ValueError(
            "`data` must not be empty; the DataLoader gives no batch. With drop_last=True, its batches must not be "
            "larger than its data set."
        )

    def complete(self) -> Iterator[Dataset]:
        """The batches of a complete pass, rows weighted where the sampler draws them by weights."""
        weight, seen = self.rows.weight, 0
        for item in self.rows.loader:
            batch = Dataset(*self._read(item))
            yield batch if weight is None else batch.reweighted(weight[seen : seen + len(batch)])
            seen += len(batch)
        _tell_surprise(seen, self.rows.count)

    def inputs(self) -> Iterator[ArrayLike]:
        """The inputs of each batch in order, to predict at: a bare item is inputs, or a pair that begins with them.

        Raises:
            TypeError: Items that have to be read by a function.
            ValueError: A loader that shuffles.
        """
        yield from map(self.inputs_of, in_order(self.loader))

    def inputs_of(self, item: Any) -> ArrayLike:
        """The inputs of one item.

        Raises:
            TypeError: It has to be read by a function.
        """
        if self.batch is not None:
            return self._read(item).x
        named = _named(item)
        if named is not None:
            return _by_name(named, needed={"x"})["x"]
        if not isinstance(item, list | tuple):
            return item
        if len(item) > 2:
            raise TypeError(_unreadable(item))
        return _regrouped(item[0])

    def _read(self, item: Any) -> Batch:
        """The parts of an item, as they come."""
        if self.batch is not None:
            found = self.batch(item)
            if not isinstance(found, Batch):
                raise TypeError(f"`batch` must return a bayesuq.Batch(x, y, weight=None); got {type(found).__name__}.")
            return found
        named = _named(item)
        if named is not None:
            return Batch(**_by_name(named, needed={"x", "y"}))
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise TypeError(_unreadable(item))
        return Batch(_regrouped(item[0]), item[1])


@dataclass(frozen=True, eq=False)
class Rows:
    """Which rows of its data set a loader stands for.

    Attributes:
        loader: Of complete passes: every row once, in order, none dropped.
        count: N; None where only reading tells.
        shown: Rows that a pass of training shows; None where that is not known.
        weight: Of each row in a complete pass, (N,); None is 1.
    """

    loader: DataLoader[Any]
    count: int | None
    shown: int | None
    weight: Tensor | None = None

    @classmethod
    def of(cls, loader: DataLoader[Any]) -> "Rows":
        """What a loader's sampler says.

        Raises:
            TypeError: The loader's data set has no length.
            ValueError: Rows drawn by weights without replacement; a sampler without end.

        Warns:
            UserWarning: Rows that are shown more than once, or others in each pass.
        """
        if isinstance(loader.dataset, IterableDataset):
            return _of_stream(loader)
        if loader.batch_sampler is None:  # its items are whole batches, of whatever size
            return cls(loader, None, None)
        if type(loader.batch_sampler) is not BatchSampler:
            return _of_batches(loader)
        return _of_sampler(loader, loader.batch_sampler)


def in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """The loader for prediction: none of its rows dropped, and with a generator of its own for the workers' seeds.

    Raises:
        ValueError: It shuffles.
    """
    batches = loader.batch_sampler
    sampler = getattr(batches, "sampler", loader.sampler)
    if _shuffles(loader) or _varies(loader):
        raise ValueError(
            "`predict` needs a loader that keeps the order of its rows; this one shuffles. Pass shuffle=False."
        )
    if type(batches) is BatchSampler and batches.drop_last:
        places = {} if isinstance(loader.dataset, IterableDataset) else {"sampler": sampler}
        own = _another(loader, batch_size=batches.batch_size, **places)
    else:
        own = copy.copy(loader)
    own.generator = torch.Generator()
    return own


def _shuffles(loader: DataLoader[Any]) -> bool:
    """Whether torch draws the order of its rows."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    return isinstance(sampler, SHUFFLES) or (isinstance(sampler, DistributedSampler) and sampler.shuffle)


def _varies(loader: DataLoader[Any]) -> bool:
    """Whether a sampler of the user's own says that it shuffles, or gives other places in each pass."""
    batches = loader.batch_sampler
    own: Any = loader.sampler if batches is None or type(batches) is BatchSampler else batches
    if isinstance(loader.dataset, IterableDataset) or isinstance(own, SequentialSampler | DistributedSampler):
        return False
    if getattr(own, "shuffle", False) is True:
        return True
    one = iter(own)
    if one is own:  # it has one pass
        return False
    with isolated(0):
        return any(place != other for place, other in zip_longest(one, own))


Data = Dataset | DataLoader[Any] | Loader  # what a fit takes


def check_data(data: Any) -> None:
    """Raise a TypeError unless `data` are a Dataset or a loader; it says how to make one of what came."""
    if isinstance(data, Dataset | DataLoader | Loader):
        return
    remedy = ""
    if isinstance(data, list | tuple) and len(data) == 2:
        remedy = " Of inputs and targets, pass bayesuq.Dataset(x, y)."
    elif isinstance(data, torch.utils.data.Dataset):
        remedy = (
            " Of a torch data set, pass a torch.utils.data.DataLoader(data, batch_size=..., shuffle=True), or of its "
            "tensors bayesuq.Dataset(x, y)."
        )
    elif isinstance(data, Split):
        remedy = " Of a Split, pass one part, such as its `.train`."
    elif isinstance(data, SupportsArray | list | tuple):
        remedy = " Inputs alone cannot be fitted: pass bayesuq.Dataset(x, y), with their targets."
    raise TypeError(f"`data` must be a bayesuq.Dataset or a DataLoader; got {type(data).__name__}.{remedy}")


def in_memory(data: Data, seed: int) -> Dataset:
    """All rows of a Dataset or a loader, in its order; what a loader draws depends on the seed alone.

    Raises:
        TypeError: Neither of them.
        ValueError: An empty loader.
    """
    check_data(data)
    batches = Loader.of(data)
    if batches is None:
        return cast(Dataset, data)
    with isolated(seed):
        parts = list(batches.complete())
    if not parts:
        raise ValueError("`data` must not be empty; the loader gave no batch.")
    return parts[0].concatenate(*parts[1:])


def only_targets(data: Any) -> Any:
    """What a user passes beside a predictive, which brings no inputs.

    Raises:
        TypeError: Data with inputs.
    """
    if isinstance(data, Dataset | DataLoader | Loader):
        raise TypeError(
            f"Of a predictive only the targets at its points are needed, labels or numbers; got {type(data).__name__}. "
            "Pass `data.y`."
        )
    return data


def _named(item: Any) -> Mapping[str, Any] | None:
    """The parts of an item that names them."""
    if isinstance(item, Mapping):
        return item
    if isinstance(item, Dataset):
        return {name: getattr(item, name) for name in Batch._fields}
    if isinstance(item, tuple) and hasattr(item, "_fields"):
        return dict(zip(item._fields, item, strict=True))
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return None


def _by_name(named: Mapping[str, Any], *, needed: set[str]) -> dict[str, Any]:
    if needed - named.keys() or named.keys() - set(Batch._fields):
        raise TypeError(
            f"A loader's batch has the parts {', '.join(map(str, named))}; only x, y and weight are read by their "
            f"names. {HOW_TO_READ.format('item[...]', 'item[...]')}."
        )
    return dict(named)


def _regrouped(x: Any) -> Any:
    """Inputs of several parts, which torch's collation makes a list of tensors, as the tuple that they were."""
    is_parts = isinstance(x, list) and bool(x) and all(isinstance(part, Tensor) and part.ndim > 0 for part in x)
    return tuple(x) if is_parts else x


def _unreadable(item: Any) -> str:
    """What to say of a bare item that is no pair."""
    if not isinstance(item, list | tuple):
        return f"A DataLoader for `fit` must give batches (x, y); got {type(item).__name__}."
    if len(item) < 3:
        return f"A DataLoader for `fit` must give batches (x, y); got {len(item)} element, so there are no targets."
    third = item[2]
    looks = ""
    if isinstance(third, Tensor) and not third.is_floating_point():
        looks = f", which looks like an index ({third.dtype})"
    return (
        f"A DataLoader must give batches (x, y); got {len(item)} elements, and a bare third element{looks} is never "
        f"taken for a weight. {HOW_TO_READ.format('item[0]', 'item[1]')}, with weight=item[2] where it is one."
    )


def _tell_surprise(seen: int, expected: int | None) -> None:
    """Warn where a pass has shown another number of rows than its loader says."""
    if expected is not None and seen != expected:
        warnings.warn(
            f"A pass over the DataLoader gave {seen} rows, where its data set and sampler say {expected}, by which the "
            "likelihood is scaled. Let the data set's `__len__` be the number of rows that its batches hold.",
            UserWarning,
            stacklevel=3,
        )


def _of_stream(loader: DataLoader[Any]) -> Rows:
    """Of an IterableDataset, whose `__len__` is the number of its rows, or of its batches where it gives these."""
    try:
        length = len(loader.dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(
            "The DataLoader's dataset must have a length: the likelihood is scaled by it. Give your IterableDataset a "
            "`__len__` that returns the number of its rows."
        ) from error
    if loader.batch_size is None:
        return Rows(loader, None, None)
    if loader.drop_last:
        return Rows(_another(loader, batch_size=loader.batch_size), length, None)
    return Rows(loader, length, length)


def _of_batches(loader: DataLoader[Any]) -> Rows:
    """Of a batch sampler of the user's own."""
    batches, others = (_one_pass(loader.batch_sampler, loader) for _ in range(2))
    places = [place for batch in batches for place in batch]
    if sorted(places) == sorted(place for batch in others for place in batch):
        _tell_repeats("batch sampler", places)
        return Rows(loader, len(places), len(places))
    every = _every(loader)
    _tell_variety("batch sampler", places, every)
    return Rows(_another(loader, sampler=every, batch_size=max(map(len, batches))), len(every), None)


def _of_sampler(loader: DataLoader[Any], batches: BatchSampler) -> Rows:
    """Of the usual batches of single rows."""
    sampler: Any = batches.sampler

    def rows(places: Sequence[int], shown: int | None, weight: Tensor | None = None) -> Rows:
        if shown is not None and batches.drop_last:
            shown -= shown % batches.batch_size
        complete = _another(loader, sampler=places, batch_size=batches.batch_size)
        return Rows(complete, len(places), shown, weight)

    if isinstance(sampler, SequentialSampler) and not batches.drop_last:
        return Rows(loader, len(sampler), len(sampler))
    if isinstance(sampler, RandomSampler | SequentialSampler):
        return rows(range(len(sampler.data_source)), len(sampler))
    if isinstance(sampler, SubsetRandomSampler):
        return rows(list(sampler.indices), len(sampler))
    if isinstance(sampler, WeightedRandomSampler):
        return rows(range(len(sampler.weights)), len(sampler), _mean_counts(sampler))
    places = _one_pass(sampler, loader)
    if isinstance(sampler, DistributedSampler):
        _tell_padding(sampler)
        return rows(places, len(places))
    if sorted(places) == sorted(_one_pass(sampler, loader)):
        _tell_repeats("sampler", places)
        return rows(places, len(places))
    every = _every(loader)
    _tell_variety("sampler", places, every)
    return rows(every, None)


def _mean_counts(sampler: WeightedRandomSampler) -> Tensor | None:
    """How often each row comes on average in N draws, (N,)."""
    weights = torch.as_tensor(sampler.weights, dtype=torch.float64)
    if sampler.replacement:
        return weights * (len(weights) / weights.sum())
    if sampler.num_samples == len(weights):
        return None  # every row once
    raise ValueError(
        f"A WeightedRandomSampler that draws {sampler.num_samples} of {len(weights)} rows without replacement gives "
        "them counts that have no closed form. Pass replacement=True, or shuffle and give each Batch its `weight`."
    )


def _one_pass(sampler: Any, loader: DataLoader[Any]) -> list[Any]:
    """What a sampler gives in one pass; no row is read."""
    most = MOST_PASSES * max(1, len(_every(loader)))
    found = list(islice(sampler, most))
    if len(found) == most:
        raise ValueError("The DataLoader's sampler does not end. Let a pass end with the rows of one epoch.")
    return found


def _every(loader: DataLoader[Any]) -> range:
    return range(len(loader.dataset))  # type: ignore[arg-type]


def _another(loader: DataLoader[Any], **batches: Any) -> DataLoader[Any]:
    """A loader of the same data set with other batches."""
    names = ["collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn", "generator"]
    names += ["prefetch_factor", "multiprocessing_context"] if loader.num_workers else []
    return DataLoader(loader.dataset, **{name: getattr(loader, name) for name in names}, **batches)


def _tell_repeats(kind: str, places: Sequence[int]) -> None:
    distinct = len(set(places))
    if distinct < len(places):
        warnings.warn(
            f"The DataLoader's {kind} shows {distinct} rows {len(places)} times in a pass: the data count as "
            f"{len(places)} rows. Show each once, and give it a `weight`, where repeated rows are not further data.",
            UserWarning,
            stacklevel=6,
        )


def _tell_variety(kind: str, places: Sequence[int], every: Sequence[int]) -> None:
    warnings.warn(
        f"The DataLoader's {kind} shows {len(places)} rows in a pass, others in each, of {len(every)}: all "
        f"{len(every)} are counted, and what needs every row reads them all.",
        UserWarning,
        stacklevel=6,
    )


def _tell_padding(sampler: Any) -> None:
    size = len(sampler.dataset)
    if sampler.total_size != size:
        what = "repeats" if sampler.total_size > size else "leaves out"
        warnings.warn(
            f"The DistributedSampler {what} {abs(sampler.total_size - size)} of {size} rows, so that its processes "
            f"have equally many: the data count as {sampler.total_size} rows. Give it a multiple of "
            f"{sampler.num_replicas} rows to avoid that.",
            UserWarning,
            stacklevel=6,
        )
