"""Which rows each of several processes has: a part of those that all were given, or rows of its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader

from bayesuq.data import Dataset
from bayesuq.inference.training.first_batches import loader_rows
from bayesuq.inference.training.identity import digest
from bayesuq.inference.training.workers import Workers
from bayesuq.inputs import named_leaves
from bayesuq.loaders import Loader, check_data

SAME_ROWS = (
    "All processes read the same rows from their DataLoaders, which would count them once for each process. Give each "
    "loader a `sampler=torch.utils.data.DistributedSampler(dataset)`, or pass a bayesuq.Dataset, which is divided."
)


@dataclass(frozen=True, eq=False)
class Share:
    """The rows of this process.

    Attributes:
        data: Them.
        whole: The rows of all processes, where each was given all; else None.
        name: Digest of `whole`.
    """

    data: Dataset | DataLoader[Any] | Loader
    whole: Dataset | None = None
    name: str = ""

    @classmethod
    def of(cls, data: Dataset | DataLoader[Any] | Loader, workers: Workers) -> "Share":
        """Every process takes part in this.

        A Dataset that is the same in all processes is divided among them: the first takes rows 0, R, 2 R, ... of R
        processes. Others are shards, and stay as they are.

        Raises:
            TypeError: Neither a Dataset nor a DataLoader.
            ValueError: Fewer rows than processes; loaders that all read the same rows; Datasets of which only some are
                the same.
        """
        name = workers.agreed(lambda: _name(data))
        names = [workers.text(name, rank) for rank in range(workers.size)]
        if len(set(names)) == workers.size and workers.size > 1:
            return cls(data)
        if not isinstance(data, Dataset):
            if workers.size > 1:
                raise ValueError(SAME_ROWS)
            return cls(data)
        if len(set(names)) > 1:
            raise ValueError(
                "Some of the processes have the same rows, and others have not. Give each rows of its own, or all of "
                "them the same ones, which are then divided."
            )
        if len(data) < workers.size:
            raise ValueError(f"{len(data)} rows cannot be divided among {workers.size} processes.")
        return cls(data.rows(torch.arange(workers.rank, len(data), workers.size)), data, name)


def check_same_rows(workers: Workers, data: Any) -> None:
    """Refuse shards where each part of a fit is of all rows; every process takes part in this.

    Raises:
        ValueError: The processes have different rows.
    """
    name = workers.agreed(lambda: _name(data))
    if len({workers.text(name, rank) for rank in range(workers.size)}) > 1:
        raise ValueError("Each part of this fit is of all rows: pass the same rows in every process.")


def _name(data: Any) -> str:
    """The same for the same rows."""
    check_data(data)
    if isinstance(data, Dataset):
        return digest({**named_leaves(data.x), "y": data.y, "weight": data.weight})
    loader = Loader.of(data)
    return "" if loader is None else loader_rows(loader)
