"""The one minibatch loop that every optimising method uses.

A method hands over an `Objective`: the leaf tensors to move, the loss of a minibatch, and what validation needs.
The loop moves them in place by Adam (Kingma & Ba 2015, in its fused form) and returns the `History`.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from bayesuq.arrays import check_count, check_finite, check_positive
from bayesuq.data import Dataset
from bayesuq.inference.history import History
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import derive_seed, generator, isolated, resolve_seed

Schedule = Literal["cosine", "constant"]
Data = Dataset | DataLoader[Any]

LONGEST_MEMORY = 0.999  # Adam's own decay of squared gradients
GATHERED_BATCHES = 32  # batches copied out of the data at once: one large gather costs less than many small ones
SHUFFLE, NOISE, VALIDATION, GLOBAL, QUALITY = range(5)  # what a fit's seed is split into


class Batch(NamedTuple):
    """Some rows: inputs (B, ...), targets, and weights or None."""

    x: Tensor
    y: Tensor
    weight: Tensor | None


@dataclass(frozen=True)
class Progress:
    """What a callback is told after each epoch.

    Attributes:
        epoch: Number of the epoch, from 0.
        step: Steps made so far.
        loss: Mean over the epoch's steps of the loss per data point, in nats.
        validation_loss: Mean negative log predictive density of the validation points, in nats; None without them.
        seconds: Wall time since the fit began.
    """

    epoch: int
    step: int
    loss: float
    validation_loss: float | None
    seconds: float


Callback = Callable[[Progress], None]


@dataclass(frozen=True)
class Training:
    """The options that every optimising `fit` shares.

    Attributes:
        num_epochs: Passes over the data.
        batch_size: Rows in a minibatch, at most; an epoch is divided into batches of equal size, give or take one.
            A DataLoader has its own.
        learning_rate: Adam's step size at the start.
        schedule: "cosine" lets it fall to 0 over the steps (Loshchilov & Hutter 2017); "constant" does not.
        max_grad_norm: Clips the norm of the gradient of the loss per data point; None does not.
        validation: Rows whose predictive log density is watched: the weights of the best epoch are kept.
        patience: Stops after so many epochs without a better validation loss; None never does.
        device: Where to compute; None is where the model is.
        seed: Makes the fit repeatable; None draws one from torch's generator.
        progress: Whether to show a bar; None shows it on a terminal only.
        callbacks: Called with a `Progress` after each epoch.
    """

    num_epochs: int
    batch_size: int
    learning_rate: float
    schedule: Schedule = "cosine"
    max_grad_norm: float | None = None
    validation: Data | None = None
    patience: int | None = None
    device: torch.device | str | None = None
    seed: int | None = None
    progress: bool | None = None
    callbacks: Sequence[Callback] = ()

    def __post_init__(self) -> None:
        check_count(self.num_epochs, "num_epochs")
        check_count(self.batch_size, "batch_size")
        check_positive(self.learning_rate, "learning_rate")
        if not all(callable(callback) for callback in self.callbacks):
            raise TypeError(f"`callbacks` must be functions of a Progress; got {self.callbacks!r}.")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError(f"`schedule` must be 'cosine' or 'constant'; got {self.schedule!r}.")
        if self.max_grad_norm is not None:
            check_positive(self.max_grad_norm, "max_grad_norm")
        if self.patience is not None:
            check_count(self.patience, "patience")
            if self.validation is None:
                raise ValueError("`patience` needs `validation` rows to watch.")
        object.__setattr__(self, "seed", resolve_seed(self.seed))

    def key(self, purpose: int) -> int:
        """A seed for one purpose of this fit."""
        return derive_seed(resolve_seed(self.seed), purpose)


@dataclass(frozen=True)
class Objective:
    """What a method gives to the loop.

    Attributes:
        leaves: The tensors to move, in place.
        rates: Factors on the learning rate, for the leaves where it is not 1.
        buffers: State that the forward pass changes (BatchNorm's statistics), kept with the best weights.
        loss_and_grads: The loss of a minibatch, scaled to the whole data, in nats; it leaves its gradient in each
            leaf's `.grad`.
        log_predictive: Log predictive density of each row at the current state, (B,), in nats.
        culprits: Names of the sites whose terms in the loss are not finite.
        forgetting: An exponent c makes Adam's decay of squared gradients 1 - t^-c at step t, so that it soon
            forgets the large ones of the beginning (Shazeer & Stern 2018, section 7.2); None leaves it at 0.999.
    """

    leaves: Mapping[str, Tensor]
    rates: Mapping[str, float]
    buffers: Mapping[str, Tensor]
    loss_and_grads: Callable[[Batch, torch.Generator], Tensor]
    log_predictive: Callable[[Batch, torch.Generator], Tensor]
    culprits: Callable[[Batch, torch.Generator], list[str]]
    forgetting: float | None = None


class Source:
    """Minibatches of checked data, in a new order each epoch (a DataLoader keeps its own)."""

    def __init__(self, model: BayesianNetwork, data: Data, batch_size: int) -> None:
        """Check the data against the model, before any work.

        Raises:
            TypeError: Neither a Dataset nor a DataLoader; targets of the wrong kind.
            ValueError: Shapes or values that the network or the likelihood does not take.
        """
        if not isinstance(data, Dataset | DataLoader):
            raise TypeError(f"`data` must be a bayesuq.Dataset or a DataLoader; got {type(data).__name__}.")
        self.model, self.batch_size = model, batch_size
        self.loader = data if isinstance(data, DataLoader) else None
        first = data if isinstance(data, Dataset) else _as_dataset(next(iter(data)))
        self.num_outputs = probe(model, first.x).shape[1]
        self.rows = self._checked(first)
        model.likelihood.align(probe(model, first.x), self.rows.y[:2])
        self.num_data = len(data) if isinstance(data, Dataset) else _loader_size(data)
        self.num_batches = count_batches(data, batch_size)

    def epoch(self, noise: torch.Generator | None) -> Iterator[Batch]:
        """The minibatches of one epoch; in the order of the rows where `noise` is None."""
        if self.loader is not None:
            yield from (self._checked(_as_dataset(item)) for item in self.loader)
            return
        order = torch.arange(self.num_data) if noise is None else torch.randperm(self.num_data, generator=noise)
        order = order.to(self.model.device)
        sizes = [len(part) for part in order.tensor_split(self.num_batches)]
        for first in range(0, self.num_batches, GATHERED_BATCHES):
            group = sizes[first : first + GATHERED_BATCHES]
            chosen, order = order[: sum(group)], order[sum(group) :]
            x, y = self.rows.x[chosen].split(group), self.rows.y[chosen].split(group)
            weight = None if self.rows.weight is None else self.rows.weight[chosen].split(group)
            for number in range(len(group)):
                yield Batch(x[number], y[number], None if weight is None else weight[number])

    def _checked(self, data: Dataset) -> Batch:
        """Rows on the model's device, in its dtype, and in the likelihood's idea of targets."""
        model = self.model
        x = data.x.to(model.device, model.dtype)
        check_finite(x, f"x in {model.dtype}")
        y = model.likelihood.targets(data.y, num_outputs=self.num_outputs).to(model.device)
        y = y.to(model.dtype) if y.is_floating_point() else y
        check_finite(y, f"y in {model.dtype}")
        weight = None if data.weight is None else data.weight.to(model.device, model.dtype)
        if weight is not None:
            check_finite(weight, f"weight in {model.dtype}")
        return Batch(x, y, weight)


def count_batches(data: Data, batch_size: int) -> int:
    """Minibatches in an epoch."""
    return len(data) if isinstance(data, DataLoader) else math.ceil(len(data) / batch_size)


def probe(model: BayesianNetwork, x: Tensor) -> Tensor:
    """The outputs at the first rows, (B, C, ...), at most two.

    Raises:
        ValueError: The network does not take rows of this shape, or gives something else than outputs for each row.
    """
    few = x[:2].to(model.device, model.dtype)
    try:
        with torch.no_grad():
            f = model.forward(model.initial(), few)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"The network does not take `x` of shape {tuple(x.shape)}: {error}") from error
    if not isinstance(f, Tensor) or f.ndim < 2 or len(f) != len(few):
        shape = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(f"The network must map x (N, ...) to f (N, C, ...); for {len(few)} rows it gave {shape}.")
    return f


@contextmanager
def session(
    model: BayesianNetwork, data: Data, training: Training
) -> Iterator[tuple[BayesianNetwork, Source, Source | None]]:
    """The model on its device, checked data and checked validation rows, for the length of one fit.

    Whatever draws from torch's global generators within (dropout layers, a DataLoader that shuffles) depends on the
    fit's seed, and those generators are then put back as they were.
    """
    if not isinstance(model, BayesianNetwork):
        raise TypeError(f"`model` must be a bayesuq.models.BayesianNetwork; got {type(model).__name__}.")
    model = model if training.device is None else model.to(training.device)
    with isolated(training.key(GLOBAL), device=model.device):
        source = Source(model, data, training.batch_size)
        watched = training.validation
        yield model, source, None if watched is None else Source(model, watched, training.batch_size)


def minimise(objective: Objective, data: Source, validation: Source | None, training: Training) -> History:
    """Move the objective's leaves to a minimum of its loss; with validation, leave them at the best epoch.

    Raises:
        FloatingPointError: The loss stopped being finite; names the step and the sites.
    """
    optimizer = adam(objective, training.learning_rate)
    shuffle, noise = generator(training.key(SHUFFLE)), generator(training.key(NOISE), device=data.model.device)
    losses: list[float] = []
    watched: list[float] = []
    best = _Best(objective)
    began = perf_counter()
    with tqdm(total=training.num_epochs, disable=_hide_bar(training.progress), unit="epoch") as bar:
        for epoch in range(training.num_epochs):
            losses.append(_run_epoch(objective, optimizer, data, training, epoch, shuffle, noise))
            if validation is not None:
                watched.append(_validation_loss(objective, validation, training))
                best.offer(watched[-1], epoch)
            seen = watched[-1] if watched else None
            for callback in training.callbacks:
                callback(Progress(epoch, (epoch + 1) * data.num_batches, losses[-1], seen, perf_counter() - began))
            bar.set_postfix({"loss": losses[-1]} | ({} if seen is None else {"validation": seen}), refresh=False)
            bar.update()
            if training.patience is not None and epoch - best.epoch >= training.patience:
                break
    if validation is not None:
        best.restore()
    return History(tuple(losses), tuple(watched), best.epoch if validation is not None else len(losses) - 1)


def _run_epoch(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    data: Source,
    training: Training,
    epoch: int,
    shuffle: torch.Generator,
    noise: torch.Generator,
) -> float:
    """One pass over the data; the mean loss per data point."""
    leaves = list(objective.leaves.values())
    wait = data.model.device.type != "cpu"  # reading a loss would stop an accelerator: look at the epoch's end instead
    losses: list[Tensor] = []
    for number, batch in enumerate(data.epoch(shuffle)):
        step = epoch * data.num_batches + number
        _schedule(optimizer, objective, training, step, training.num_epochs * data.num_batches)
        try:
            loss = objective.loss_and_grads(batch, noise)
        except ValueError as error:
            if _all_finite(leaves):
                raise
            # A distribution refuses parameters that are NaN.
            raise _not_finite(step, epoch, objective.culprits(batch, noise)) from error
        if not wait and not math.isfinite(loss.item()):
            raise _not_finite(step, epoch, objective.culprits(batch, noise))
        if training.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(leaves, training.max_grad_norm * data.num_data)
        optimizer.step()
        losses.append(loss)
    values = torch.stack(losses).double()
    if wait and not values.isfinite().all():
        number = int((~values.isfinite()).nonzero()[0])
        raise _not_finite(epoch * data.num_batches + number, epoch, objective.culprits(batch, noise))
    if not _all_finite(leaves):  # the last step of all has no loss after it that would tell
        raise _not_finite(step, epoch, objective.culprits(batch, noise))
    return float(values.mean()) / data.num_data


def _all_finite(leaves: Iterable[Tensor]) -> bool:
    return all(bool(leaf.isfinite().all()) for leaf in leaves)


def _validation_loss(objective: Objective, validation: Source, training: Training) -> float:
    noise = generator(training.key(VALIDATION), device=validation.model.device)  # the same draws every epoch
    with torch.no_grad():
        total = sum(float(objective.log_predictive(batch, noise).double().sum()) for batch in validation.epoch(None))
    return -total / validation.num_data


class _Best:
    """The state of the best epoch so far."""

    def __init__(self, objective: Objective) -> None:
        self.current = {**objective.leaves, **{f"buffer {name}": value for name, value in objective.buffers.items()}}
        self.loss, self.epoch = math.inf, 0
        self.kept: dict[str, Tensor] = {}

    def offer(self, loss: float, epoch: int) -> None:
        """Keep the state where its loss is the smallest."""
        if loss < self.loss or not self.kept:
            self.loss, self.epoch = loss, epoch
            self.kept = {name: value.detach().clone() for name, value in self.current.items()}

    def restore(self) -> None:
        """Put the best state back in place."""
        with torch.no_grad():
            for name, value in self.kept.items():
                self.current[name].copy_(value)


def adam(objective: Objective, learning_rate: float) -> torch.optim.Optimizer:
    """Fused Adam over the objective's leaves, a group for each rate."""
    groups: dict[float, list[Tensor]] = {}
    for name, leaf in objective.leaves.items():
        groups.setdefault(learning_rate * objective.rates.get(name, 1.0), []).append(leaf)
    return torch.optim.Adam([{"params": p, "lr": rate, "initial_lr": rate} for rate, p in groups.items()], fused=True)


def _schedule(optimizer: torch.optim.Optimizer, objective: Objective, training: Training, step: int, last: int) -> None:
    """Set what changes over the steps: learning rates, and how fast Adam forgets."""
    for group in optimizer.param_groups:
        if training.schedule == "cosine":
            group["lr"] = group["initial_lr"] * 0.5 * (1 + math.cos(math.pi * step / last))
        if objective.forgetting is not None:
            group["betas"] = (group["betas"][0], min(1 - (step + 1) ** -objective.forgetting, LONGEST_MEMORY))


def _not_finite(step: int, epoch: int, culprits: list[str]) -> FloatingPointError:
    where = f"The terms of {', '.join(culprits)} are not finite. " if culprits else ""
    return FloatingPointError(
        f"The loss stopped being finite at step {step} (epoch {epoch}). {where}Lower `learning_rate`, set "
        "`max_grad_norm`, or standardise the data."
    )


def _hide_bar(progress: bool | None) -> bool:
    return not sys.stderr.isatty() if progress is None else not progress


def _as_dataset(item: Any) -> Dataset:
    if not isinstance(item, list | tuple) or not 2 <= len(item) <= 3:
        raise TypeError("A DataLoader for `fit` must give batches (x, y) or (x, y, weight).")
    return Dataset(*item)


def _loader_size(loader: DataLoader[Any]) -> int:
    try:
        return len(loader.dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError("The DataLoader's dataset must have a length: the likelihood is scaled by it.") from error
