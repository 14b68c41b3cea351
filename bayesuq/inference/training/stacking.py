"""The data of several fits at once: streams of random numbers and minibatches with a leading dimension of members."""

from collections.abc import Iterator, Sequence

import torch

from bayesuq.data import Batch
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.options import SHUFFLE, Training
from bayesuq.inference.training.workers import ALONE
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator


def check_stackable(model: BayesianNetwork, data: Sequence[Data]) -> None:
    """Raise a ValueError unless the network is without buffers and all data sets have as many rows."""
    buffers = [name for name, _ in model.net.named_buffers()]
    if buffers:
        raise ValueError(f"Networks with buffers train one after another; got {', '.join(buffers)}.")
    sizes = {len(rows) for rows in data}
    if len(sizes) > 1:
        raise ValueError(f"Members train together on data sets of one size; got {sorted(sizes)} rows.")


class Streams:
    """Random streams of M members, whose states are one tensor, so that a checkpoint can hold them.

    Attributes:
        members: A generator for each.
        states: Theirs as after the last `keep`, (M, bytes of a state).
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.members = [generator(seed, device=device) for seed in seeds]
        self.states = torch.stack([stream.get_state() for stream in self.members])
        self._seen = -1  # version of `states` that the streams have

    def begin(self) -> None:
        """Put the streams where `states` says, if something else than `keep` has set that, as a checkpoint may."""
        if self._seen != self.states._version:
            for stream, state in zip(self.members, self.states, strict=True):
                stream.set_state(state.clone())
            self._seen = self.states._version

    def keep(self) -> None:
        """Note down where the streams are."""
        for state, stream in zip(self.states, self.members, strict=True):
            state.copy_(stream.get_state())
        self._seen = self.states._version


class StackedSource:
    """The minibatches of M sources side by side: x (M, B, ...), each in the order of its own member's seed."""

    loader = None  # they come from memory
    workers = ALONE

    def __init__(self, sources: Sequence[Source], trainings: Sequence[Training]) -> None:
        self.sources = sources
        self.keys = [training.key(SHUFFLE) for training in trainings]
        self.device, self.num_data = sources[0].device, sources[0].num_data
        self.num_batches = sources[0].num_batches

    def identity(self) -> str:
        """See `Source.identity`."""
        return "; ".join(source.identity() for source in self.sources)

    def contents(self) -> tuple[str, Batch]:
        """See `Source.contents`."""
        found = [source.contents() for source in self.sources]
        return "; ".join(name for name, _ in found), _side_by_side([batch for _, batch in found])

    def shuffled_epoch(self, _seed: int, number: int) -> Iterator[Batch]:
        """The minibatches of one epoch, each member's in the order of its own seed."""
        epochs = (source.shuffled_epoch(key, number) for source, key in zip(self.sources, self.keys, strict=True))
        for batches in zip(*epochs, strict=True):
            yield _side_by_side(batches)


def _side_by_side(batches: Sequence[Batch]) -> Batch:
    """Minibatches of one size along a new first dimension."""
    weights = [batch.weight for batch in batches if batch.weight is not None]
    return Batch(
        torch.stack([batch.x for batch in batches]),
        torch.stack([batch.y for batch in batches]),
        torch.stack(weights) if weights else None,
    )
