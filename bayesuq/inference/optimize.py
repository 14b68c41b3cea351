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
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bayesuq.arrays import check_count, check_positive
from bayesuq.inference.history import History
from bayesuq.inference.minibatches import Batch, Data, NetworkReader, Reader, Source
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import derive_seed, generator, isolated, resolve_seed

Schedule = Literal["cosine", "constant"]
LONGEST_MEMORY = 0.999  # Adam's own decay of squared gradients
SHUFFLE, NOISE, VALIDATION, GLOBAL, QUALITY = range(5)  # what a fit's seed is split into


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
        if callable(self.callbacks) or not all(callable(callback) for callback in self.callbacks):
            raise TypeError(f"`callbacks` must be a list of functions of a Progress; got {self.callbacks!r}.")
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
    with sources(NetworkReader(model), data, training) as (source, validation):
        yield model, source, validation


@contextmanager
def sources(reader: Reader, data: Data, training: Training) -> Iterator[tuple[Source, Source | None]]:
    """As `session`, for whatever reads rows."""
    with isolated(training.key(GLOBAL), device=reader.device):
        source = Source(reader, data, training.batch_size)
        watched = training.validation
        yield source, None if watched is None else Source(reader, watched, training.batch_size)


def minimise(objective: Objective, data: Source, validation: Source | None, training: Training) -> History:
    """Move the objective's leaves to a minimum of its loss; with validation, leave them at the best epoch.

    Raises:
        FloatingPointError: The loss stopped being finite; names the step and the sites.
    """
    optimizer = adam(objective, training.learning_rate)
    shuffle, noise = generator(training.key(SHUFFLE)), generator(training.key(NOISE), device=data.device)
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
    wait = data.device.type != "cpu"  # reading a loss would stop an accelerator: look at the epoch's end instead
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
    noise = generator(training.key(VALIDATION), device=validation.device)  # the same draws every epoch
    # A loader may draw from the global generators, which training goes on drawing from.
    with torch.no_grad(), isolated(training.key(VALIDATION), device=validation.device):
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
