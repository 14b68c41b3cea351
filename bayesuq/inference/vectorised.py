"""Several modes fitted at once: members stacked along a leading dimension, one vectorised pass for all of them.

Small networks spend their time in calls, not in arithmetic; M of them in one call cost little more than one. Each
member sees the minibatches that it would see alone, in the same order, so the numbers are those of `map_estimate.fit`
one after another, to rounding. The loss is the sum over members, never their mean: each member's gradient is its own.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.inference.history import History
from bayesuq.inference.map_estimate import SCALE_RATE, MapPosterior
from bayesuq.inference.minibatches import Batch, Data, NetworkReader, Source
from bayesuq.inference.optimize import Objective, minimise
from bayesuq.inference.training import SHUFFLE, Training, session
from bayesuq.inference.training_network import is_dropout, point_vectors
from bayesuq.inference.weights import FlatPrior, Layout
from bayesuq.models.bnn import BayesianNetwork, share_tensors

LARGEST_WORK = 2**19  # weights times rows of a minibatch, up to which one pass was measured to be faster on a CPU


def is_faster(model: BayesianNetwork, batch_size: int) -> bool:
    """Whether members of this size train faster together than one after another.

    On a CPU as benchmarks/ensembles.py has it; an accelerator, which waits for calls all the more, always.
    """
    return model.device.type != "cpu" or Layout.of(model).size * batch_size <= LARGEST_WORK


def is_possible(model: BayesianNetwork, data: Data, training: Training) -> bool:
    """Whether nothing that members do alone would be lost.

    Layers with random masks or with buffers, data that are loaded batch by batch, and what is watched or clipped member
    by member (validation, patience, callbacks, gradient norms) are left to one fit after another.
    """
    plain = not any(is_dropout(module) for module in model.net.modules()) and not list(model.net.buffers())
    watched = training.validation is not None or training.callbacks or training.max_grad_norm is not None
    return plain and not watched and isinstance(data, Dataset) and _follows(model, data)


def _follows(model: BayesianNetwork, data: Dataset) -> bool:
    """Whether vmap can follow the network: not where it branches on values, or cannot take the data at all."""
    x = data.x[:1].to(model.device, model.dtype)
    twice = {name: torch.stack([value, value]) for name, value in model.initial().items()}
    try:
        with torch.no_grad():
            torch.func.vmap(lambda theta: model.forward(theta, x, net=share_tensors(model.net)))(twice)
    except (RuntimeError, IndexError):
        return False
    return True


def fit_modes(
    models: Sequence[BayesianNetwork], data: Sequence[Data], trainings: Sequence[Training]
) -> list[MapPosterior]:
    """A mode for each model, on data sets of one size (each member's own bootstrap rows, or the same data).

    Raises:
        FloatingPointError: A member's loss stopped being finite.
    """
    first = trainings[0]
    with session(models[0], data[0], first) as (model, source, _):
        models = [model, *(other.to(model.device) for other in models[1:])]
        sources = [source, *(Source(NetworkReader(model), rows, first.batch_size) for rows in data[1:])]
        modes = StackedModes(models, source.num_data, num_steps=first.num_epochs * source.num_batches)
        minimise(modes.objective(), StackedSource(sources, trainings), None, first)  # type: ignore[arg-type]
        return modes.posteriors(source.num_batches)


class StackedSource:
    """The minibatches of M sources side by side: x (M, B, ...), each in the order of its own member's seed."""

    loader = None  # they come from memory

    def __init__(self, sources: Sequence[Source], trainings: Sequence[Training]) -> None:
        self.sources = sources
        self.keys = [training.key(SHUFFLE) for training in trainings]
        self.device, self.num_data = sources[0].device, sources[0].num_data
        self.num_batches = sources[0].num_batches

    def identity(self) -> str:
        """See `Source.identity`."""
        return "; ".join(source.identity() for source in self.sources)

    def shuffled_epoch(self, _seed: int, number: int) -> Iterator[Batch]:
        """The minibatches of one epoch, each member's in the order of its own seed."""
        epochs = (source.shuffled_epoch(key, number) for source, key in zip(self.sources, self.keys, strict=True))
        for batches in zip(*epochs, strict=True):
            weights = [batch.weight for batch in batches if batch.weight is not None]
            yield Batch(
                torch.stack([batch.x for batch in batches]),
                torch.stack([batch.y for batch in batches]),
                torch.stack(weights) if weights else None,
            )


class StackedModes:
    """Minus the log joints of M members as a function of their weights and unknowns, (M, P) and (M, U)."""

    def __init__(self, models: Sequence[BayesianNetwork], num_data: int, *, num_steps: int) -> None:
        self.model, self.num_data, self.num_members = models[0], num_data, len(models)
        names = [*self.model.laws, *self.model.points]
        starts = [point_vectors(model, names) for model in models]
        self.layouts = {kind: vector.layout for kind, vector in starts[0].items()}
        self.leaves = {kind: torch.stack([start[kind].values for start in starts]) for kind in self.layouts}
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        self.priors = {kind: FlatPrior.of(self.model, layout) for kind, layout in self.layouts.items()}
        self.tree = share_tensors(self.model.net)
        self.losses = next(iter(self.leaves.values())).new_zeros(num_steps, self.num_members, requires_grad=False)
        self.step = torch.zeros((), dtype=torch.int64)

    def objective(self) -> Objective:
        """What the loop needs."""
        return Objective(
            leaves=self.leaves,
            rates={"unknowns": SCALE_RATE},
            buffers={"losses": self.losses, "step": self.step},
            loss_and_grads=self.loss_and_grads,
            log_predictive=self._not_watched,
            culprits=self.culprits,
            identity=f"{self.num_members} modes of {self.model}",
        )

    def loss_and_grads(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """The sum of the members' losses, in nats."""
        for leaf in self.leaves.values():
            leaf.grad = None
        losses = torch.func.vmap(self._loss)(self.leaves, *batch[:2], *([] if batch.weight is None else [batch.weight]))
        losses.sum().backward()
        self.losses[int(self.step)] = losses.detach()
        self.step += 1
        return losses.detach().sum()

    def culprits(self, _batch: Batch, _noise: torch.Generator) -> list[str]:
        """The members whose loss is not finite."""
        return [
            f"member {number}" for number in (~self.losses[int(self.step) - 1].isfinite()).nonzero().flatten().tolist()
        ]

    def posteriors(self, num_batches: int) -> list[MapPosterior]:
        """The fitted members."""
        losses = self.losses.double().unflatten(0, (-1, num_batches)).mean(dim=1) / self.num_data
        layout = Layout.of(self.model)
        members = []
        for number in range(self.num_members):
            parts = [self.layouts[kind].split(leaf.detach()[number]) for kind, leaf in self.leaves.items()]
            values = layout.join({name: value for part in parts for name, value in part.items()})
            history = History(tuple(losses[:, number].tolist()), (), len(losses) - 1)
            members.append(MapPosterior(model=self.model, values=values, buffers={}, history=history))
        return members

    def _loss(self, leaves: dict[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """One member's, as `map_estimate` has it."""
        parts = {kind: self.layouts[kind].split(leaf) for kind, leaf in leaves.items()}
        theta = {name: value for part in parts.values() for name, value in part.items()}
        f = self.model.forward(theta, x, net=self.tree)
        log_likelihood = self.model.likelihood_given(theta).total_log_prob(f, y, weight)
        log_prior = torch.stack([self.priors[kind].log_prob(leaf, theta) for kind, leaf in leaves.items()]).sum()
        return -(log_prior + self.num_data / len(x) * log_likelihood)

    def _not_watched(self, _batch: Batch, _noise: torch.Generator) -> Tensor:
        raise RuntimeError("members with validation rows are fitted one after another")
