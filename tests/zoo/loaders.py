"""Loaders of the kinds that people pass, and the data set that each stands for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

NUM_ROWS = 23
X = torch.linspace(-1.0, 1.0, NUM_ROWS).unsqueeze(1)
Y = 0.5 * X.flatten() + 0.3 * torch.sin(9 * X.flatten())
ROWS = TensorDataset(X, Y)
SKEWED = torch.arange(NUM_ROWS, dtype=torch.float64)  # the first row is never drawn


@dataclass(frozen=True)
class Case:
    """A loader with what it stands for.

    Attributes:
        loader: It shows rows of `ROWS`.
        counts: How often each row counts, (N,).
        warns: What the fit must say, where rows shown and rows counted differ.
    """

    loader: DataLoader[Any]
    counts: Tensor
    warns: str | None = None


class EvenPlaces(Sampler[int]):
    """Every other row, the same in each pass."""

    def __len__(self) -> int:
        return (NUM_ROWS + 1) // 2

    def __iter__(self) -> Iterator[int]:
        yield from range(0, NUM_ROWS, 2)


class Doubled(Sampler[int]):
    """The first five rows twice; a sampler need not have a length."""

    def __iter__(self) -> Iterator[int]:
        yield from [*range(5), *range(NUM_ROWS)]


class SomeOfAll(Sampler[int]):
    """Eight rows at random, others in each pass."""

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(NUM_ROWS)[:8].tolist()


class SomeBatches(Sampler[list[int]]):
    """Three batches of four rows at random."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[list[int]]:
        for chosen in torch.randperm(NUM_ROWS)[:12].split(4):
            yield chosen.tolist()


class Buckets(Sampler[list[int]]):
    """Batches of several sizes that hold every row once."""

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Iterator[list[int]]:
        yield from (list(range(10)), list(range(10, 20)), list(range(20, NUM_ROWS)))


class Stream(IterableDataset):
    """Rows one after another."""

    def __len__(self) -> int:
        return NUM_ROWS

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X, Y, strict=True)


class StreamOfBatches(IterableDataset):
    """Whole batches one after another."""

    def __len__(self) -> int:
        return 5

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(X.split(5), Y.split(5), strict=True)


def cases() -> dict[str, Case]:
    """By name; new loaders at each call, since some keep a state."""
    once = torch.ones(NUM_ROWS, dtype=torch.float64)
    even, some = torch.zeros_like(once), torch.zeros_like(once)
    even[::2], some[:9] = 1, 1
    twice = once.clone()
    twice[:5] = 2
    shard = torch.zeros_like(once)
    shard[1::2] = 1
    shard[0] = 1  # repeated, so that both shards have 12 rows

    def loader(**options: Any) -> DataLoader[Any]:
        return DataLoader(ROWS, batch_size=5, **options)

    return {
        "in order": Case(loader(), once),
        "shuffled": Case(loader(shuffle=True), once),
        "shuffled, last batch dropped": Case(loader(shuffle=True, drop_last=True), once),
        "in order, last batch dropped": Case(loader(drop_last=True), once),
        "drawn with replacement": Case(loader(sampler=RandomSampler(ROWS, replacement=True, num_samples=90)), once),
        "a part at a time": Case(loader(sampler=RandomSampler(ROWS, num_samples=10)), once),
        "named rows": Case(loader(sampler=SubsetRandomSampler(range(9))), some),
        "a subset": Case(DataLoader(Subset(ROWS, range(9)), batch_size=5, shuffle=True, drop_last=True), some),
        "drawn by weights": Case(
            loader(sampler=WeightedRandomSampler(SKEWED, num_samples=200)), SKEWED * (NUM_ROWS / SKEWED.sum())
        ),
        "weights without replacement": Case(
            loader(sampler=WeightedRandomSampler(SKEWED + 1, num_samples=NUM_ROWS, replacement=False)), once
        ),
        "a shard": Case(
            loader(sampler=DistributedSampler(ROWS, num_replicas=2, rank=1, shuffle=False)), shard, "repeats 1 of 23"
        ),
        "own sampler": Case(loader(sampler=EvenPlaces()), even),
        "own sampler that repeats": Case(loader(sampler=Doubled()), twice, "23 rows 28 times"),
        "own sampler of a part": Case(loader(sampler=SomeOfAll()), once, "8 rows in a pass"),
        "batch sampler": Case(
            DataLoader(ROWS, batch_sampler=BatchSampler(SequentialSampler(ROWS), 5, drop_last=True)), once
        ),
        "own batches": Case(DataLoader(ROWS, batch_sampler=Buckets()), once),
        "own batches of a part": Case(DataLoader(ROWS, batch_sampler=SomeBatches()), once, "12 rows in a pass"),
        "a stream": Case(DataLoader(Stream(), batch_size=5), once),
        "a stream, last batch dropped": Case(DataLoader(Stream(), batch_size=5, drop_last=True), once),
        "a stream of batches": Case(DataLoader(StreamOfBatches(), batch_size=None), once),
    }
