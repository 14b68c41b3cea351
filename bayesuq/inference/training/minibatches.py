"""Checked data in minibatches: what a fit reads from a `Dataset` or a `DataLoader`."""

import math
from collections.abc import Iterator
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from bayesuq.arrays import OVERFLOW, as_real, check_finite
from bayesuq.data import Batch, Dataset
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.training.first_batches import UNREPEATABLE, loader_digest
from bayesuq.inference.training.identity import digest, fill
from bayesuq.inference.training.shares import Share
from bayesuq.inference.training.workers import ALONE, Workers
from bayesuq.inputs import Inputs, as_rows, joined, named_leaves, on_leaves, with_unit_scale
from bayesuq.loaders import Data, Loader, check_data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.heads import Traced, traced, warn_of_targets_out_of_reach
from bayesuq.models.network_inputs import cast_inputs, refusal, takes_whole_numbers
from bayesuq.models.training_mode import check_ends, check_has_no_others, check_reached, check_repeatable
from bayesuq.randomness import derive_seed, generator, seed_globally

MOST_PROBED = 128  # rows that tell fits of several processes apart
GATHERED_BATCHES = 32  # batches copied out of the data at once: one large gather costs less than many small ones


class Reader(Protocol):
    """What reads rows as a model takes them."""

    @property
    def device(self) -> torch.device:
        """Where the model computes."""

    @property
    def dtype(self) -> torch.dtype:
        """Of real numbers."""

    @property
    def weighs(self) -> bool:
        """Whether rows count by their weights."""

    def open(self, first: Dataset) -> Batch:
        """Read the first rows, and learn from them what the following ones must be.

        Raises:
            TypeError: See `read`.
            ValueError: See `read`; or shapes that the model does not take.
        """

    def read(self, data: Dataset) -> Batch:
        """Rows on the model's device, in its dtype, and in its idea of targets.

        Raises:
            TypeError: Targets of the wrong kind.
            ValueError: Values that the model does not take.
        """


class NetworkReader:
    """Reads rows for a Bayesian network, which count by their weights."""

    weighs = True

    def __init__(self, model: BayesianNetwork) -> None:
        self.model, self.device, self.dtype = model, model.device, model.dtype
        self.num_outputs: int | None = None
        self.whole = False

    def open(self, first: Dataset) -> Batch:
        """Run the network on one row or two, and hold its outputs against the targets."""
        self.whole = takes_whole_numbers(self.model, as_rows(first.x))
        x = cast_inputs(self.model, as_rows(first.x), whole=self.whole)
        seen = probe(self.model, x)
        check_reached(self.model, seen)
        check_has_no_others(self.model, seen)
        f = seen.f.detach()
        self.num_outputs = f.shape[1]
        rows = self._with_targets(first, x)
        self.model.likelihood.check_size(rows.y)
        warn_of_targets_out_of_reach(self.model, seen.f, rows.y)
        self.model.likelihood.align(f[:1].expand(len(first), *f.shape[1:]), rows.y)  # shapes only: no row is copied
        return rows

    def read(self, data: Dataset) -> Batch:
        """Rows on the model's device, in its dtype, and in the likelihood's idea of targets."""
        return self._with_targets(data, cast_inputs(self.model, as_rows(data.x), whole=self.whole))

    def _with_targets(self, data: Dataset, x: Inputs) -> Batch:
        y = self.model.likelihood.targets(data.y, num_outputs=self.num_outputs)
        return cast_rows(data, y, self.device, self.model.dtype, x=x)


def cast_rows(data: Dataset, y: Tensor, device: torch.device, dtype: torch.dtype, *, x: Inputs | None = None) -> Batch:
    """Rows and their targets `y` on a device, real numbers in that dtype.

    Args:
        data: The rows.
        y: Their targets, as the model has them.
        device: Where they go.
        dtype: Of real numbers.
        x: The inputs as the model takes them; None casts them, too.

    Raises:
        ValueError: Values that are not finite in that dtype.
    """
    x = as_real(data.x, device, dtype) if x is None else x
    y = y.to(device, dtype) if y.is_floating_point() else y.to(device)
    check_finite(y, f"y in {dtype}", OVERFLOW)
    weight = None if data.weight is None else data.weight.to(device, dtype)
    if weight is not None:
        check_finite(weight, f"weight in {dtype}", OVERFLOW)
    return Batch(x, y, weight)


class Source:
    """Minibatches of checked data, in a new order each epoch (a DataLoader keeps its own).

    Attributes:
        rows: All of a Dataset, the first minibatch of a DataLoader.
        num_data: N, of all processes that fit together.
        num_labels: Of a row: 1, or its target's columns or pixels.
        num_batches: In an epoch.
        workers: The processes, each of which reads rows of its own.
    """

    workers = ALONE
    _share: Share | None = None
    _told_of_sizes = False

    def __init__(self, reader: Reader, data: Data, batch_size: int) -> None:
        """Check the data, before any work.

        Raises:
            TypeError: Neither a Dataset nor a DataLoader; targets of the wrong kind.
            ValueError: Shapes or values that the network or the likelihood does not take.
        """
        check_data(data)
        self.reader, self.device = reader, reader.device
        self.batches = Loader.of(data)
        self.loader = None if self.batches is None else self.batches.loader
        first = self.batches.first() if self.batches is not None else cast(Dataset, data)
        self.rows = reader.open(first)
        self.num_data = len(first) if self.batches is None else self.batches.num_rows
        self.num_labels = self.rows.y[0].numel()
        self.num_batches = count_batches(data if self.batches is None else self.batches, batch_size)

    @classmethod
    def together(cls, reader: Reader, data: Data, batch_size: int, workers: Workers) -> "Source":
        """That of one of several processes, whose minibatches make up one of all: every process takes part in this.

        An epoch has as many minibatches as the process with the most rows needs; the others' are smaller.

        Raises:
            TypeError: See above, in any process.
            ValueError: See above, and `Share.of`; DataLoaders of different lengths.
        """
        if not workers.are_together:
            return cls(reader, data, batch_size)
        share = Share.of(data, workers)
        source = workers.agreed(lambda: cls(reader, share.data, batch_size))
        counts, lengths = workers.numbers(source.num_data), workers.numbers(source.num_batches)
        if source.loader is not None and len(set(lengths)) > 1:
            raise ValueError(
                f"The DataLoaders of all processes must have equally many minibatches; got {lengths}, by rank. Give "
                "the smaller shards a smaller batch size, or pass a bayesuq.Dataset, of whatever number of rows."
            )
        source.workers, source._share = workers, share
        source.num_data, source.num_batches = sum(counts), max(lengths)
        return source

    def shuffled_epoch(self, seed: int, number: int) -> Iterator[Batch]:
        """The minibatches of one epoch, in an order that depends on the seed and its number alone.

        A process with fewer rows than minibatches shows its first row in the last of them, where `count` has none.
        """
        yield from self.epoch(generator(seed, number))
        for _ in range(len(self.rows.y) if self.loader is None else self.num_batches, self.num_batches):
            yield self.first(1)

    def count(self, place: int, batch: Batch) -> int:
        """Rows of the minibatch at a place in an epoch."""
        return len(batch.x) if self.loader is not None or place < len(self.rows.y) else 0

    def seed_loader(self, key: int, number: int) -> None:
        """Let a loader's order depend on a key and the number of the epoch alone, wherever a fit was stopped.

        A sampler that asks for that number, as DistributedSampler does, is told it.
        """
        if self.loader is None:
            return
        seed_globally(derive_seed(key, number, 0), self.device)
        if self.loader.generator is not None:
            self.loader.generator.manual_seed(derive_seed(key, number, 1))
        samplers: tuple[Any, ...] = (self.loader.sampler, self.loader.batch_sampler)
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(number)

    def complete(self) -> Iterator[Batch]:
        """Every row once and in order, whatever a loader's sampler does in training."""
        if self.batches is None:
            return self.epoch(None)
        return map(self.reader.read, self.batches.complete())

    def identity(self) -> str:
        """What told these data from others in checkpoints of format 1: of a loader, its number of rows alone."""
        rows = {} if self.loader is not None else self._leaves()
        return f"{self.num_data} rows in {self.num_batches} batches, {digest(rows)}"

    def contents(self) -> tuple[str, Batch]:
        """A name for these data, and a minibatch of them that is the same each time.

        Of a loader whose rows are others each time, that is made up of numbers of their shape.
        """
        if self._share is not None:
            return self._contents_together(self._share)
        counts = f"{self.num_data} rows in {self.num_batches} batches"
        if self.batches is None:
            return f"{counts}, {digest(self._leaves())}", next(self.epoch(None))
        name, batches = loader_digest(self.batches, self.device)
        batch = self.reader.read(batches[0])
        return f"{counts}, {name}", _made_up(batch) if name.startswith(UNREPEATABLE) else batch

    def _contents_together(self, share: Share) -> tuple[str, Batch]:
        """The same for any number of processes: of shards their rows in all, and a minibatch that is made up."""
        if share.whole is None:
            return f"{self.num_data} rows in shards", _made_up(self.first(2))
        first = share.whole.rows(torch.arange(min(len(share.whole), MOST_PROBED)))
        return f"{self.num_data} rows, {share.name}", self.reader.read(first)

    def _leaves(self) -> dict[str, Tensor | None]:
        return {**named_leaves(self.rows.x), "y": self.rows.y, "weight": self.rows.weight}

    def epoch(self, noise: torch.Generator | None) -> Iterator[Batch]:
        """The minibatches of one epoch; in the order of the rows where `noise` is None, of a loader in its own."""
        if self.batches is not None:
            yield from map(self._evened, map(self.reader.read, self.batches))
            return
        number = len(self.rows.y)  # of this process, where several have rows
        order = torch.arange(number) if noise is None else torch.randperm(number, generator=noise)
        order = order.to(self.device)
        size, longer = divmod(number, self.num_batches)
        sizes = [size + 1] * longer + [size] * (self.num_batches - longer if size else 0)
        for first in range(0, len(sizes), GATHERED_BATCHES):
            group = sizes[first : first + GATHERED_BATCHES]
            chosen, order = order[: sum(group)], order[sum(group) :]
            x, y = self.rows.x[chosen].split(group), self.rows.y[chosen].split(group)
            weight = None if self.rows.weight is None else self.rows.weight[chosen].split(group)
            for number in range(len(group)):
                yield Batch(x[number], y[number], None if weight is None else weight[number])

    def _evened(self, batch: Batch) -> Batch:
        """A minibatch of b rows of a loader, each of weight b / (their mean), where b is no matter of chance.

        Rows stand for N / b: those of a last batch that is small would count more than others in every epoch.
        """
        mean = None if self.batches is None else self.batches.mean_size
        if mean is None or len(batch.y) == mean:
            return batch
        if not self.reader.weighs:
            self._tell_of_sizes(len(batch.y), mean)
            return batch
        y, factor = batch.y, len(batch.y) / mean
        weight = y.new_ones(len(y), dtype=self.reader.dtype) if batch.weight is None else batch.weight
        return batch._replace(weight=weight * factor)

    def _tell_of_sizes(self, size: int, mean: float) -> None:
        if self._told_of_sizes:
            return
        self._told_of_sizes = True
        warn_of_fit(
            f"The DataLoader shows rows in an order that stays, in minibatches of unequal size, one of {size} where "
            f"{mean:.3g} are the mean: rows of small ones count more, and nothing weighs them less. Pass shuffle=True, "
            "or a batch size that divides the number of rows; a program may take `weight`.",
            UserWarning,
        )

    def first(self, count: int) -> Batch:
        """The first rows, so many at most, of a DataLoader those of its first minibatch; no order is drawn."""
        return self.rows.at(slice(count))

    def input_range(self) -> Tensor:
        """Largest minus smallest value of each input over all rows, of the shape of one row."""
        rows = [self.rows.x] if self.loader is None else (batch.x for batch in self.complete())
        extremes = [(x.amin(dim=0), x.amax(dim=0)) for x in rows]
        lower, upper = (torch.stack(values) for values in zip(*extremes, strict=True))
        return self.workers.largest(upper.amax(dim=0)) + self.workers.largest(-lower.amin(dim=0))


def _made_up(like: Batch) -> Batch:
    """Fixed numbers in the shapes of a minibatch."""
    y = fill(like.y, 1) if like.y.is_floating_point() else torch.zeros_like(like.y)
    return Batch(with_unit_scale(on_leaves(lambda leaf: fill(leaf, 0), like.x)), y, None)


def all_rows(source: Source) -> Batch:
    """All rows at once, in their order."""
    if source.loader is None:
        return source.rows
    batches = list(source.complete())
    weights = [batch.weight for batch in batches if batch.weight is not None]
    return Batch(
        joined([batch.x for batch in batches]),
        torch.cat([batch.y for batch in batches]),
        torch.cat(weights) if weights else None,
    )


def count_batches(data: Data, batch_size: int) -> int:
    """Minibatches in an epoch."""
    check_data(data)
    loader = Loader.of(data)
    return math.ceil(len(data) / batch_size) if loader is None else len(loader)


def probe(model: BayesianNetwork, x: Any) -> Traced:
    """What the network gives for the first rows, f (B, C, ...), at most two.

    Raises:
        ValueError: The network does not take rows of this shape, or gives something else than outputs for each row.
    """
    x = as_rows(x)
    few = cast_inputs(model, x[:2])
    try:
        check_repeatable(model, few)
        seen = traced(model, few)
        check_ends(model, few, seen)
    except (RuntimeError, IndexError, AssertionError) as error:
        raise refusal(x, error) from error
    f = seen.f
    if not isinstance(f, Tensor) or f.ndim < 2 or len(f) != len(few):
        shape = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(f"The network must map x (N, ...) to f (N, C, ...); for {len(few)} rows it gave {shape}.")
    return seen
