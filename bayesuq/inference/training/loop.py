"""The one minibatch loop that every optimising method uses.

A method hands over an `Objective` (`bayesuq.inference.training.objective`): the leaf tensors to move, the loss of a
minibatch, and what validation needs. The loop moves them in place, by Adam (Kingma & Ba 2015, in its fused form) unless
the method brings an optimiser of its own, and returns the `History`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from bayesuq.data import Batch
from bayesuq.deadline import Pace
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.training.bars import bar
from bayesuq.inference.training.captured import CapturedStep, captured_step
from bayesuq.inference.training.checkpoint import (
    Checkpoint,
    State,
    put_back,
    random_states,
    set_random_states,
)
from bayesuq.inference.training.convergence import warn_if_falling, warn_if_uninformed
from bayesuq.inference.training.history import History
from bayesuq.inference.training.identity import ADDRESS, Identity, digest, tolerance_of
from bayesuq.inference.training.looks import Looks
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.model_contents import model_contents, probed, running_in, sites_of
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.optimizers import Adam, Optimizer, falling_rate
from bayesuq.inference.training.options import LOOKS, NOISE, QUALITY, SHUFFLE, VALIDATION, Progress, Training
from bayesuq.inference.training.resumable import Resumable
from bayesuq.inference.training.trend import USUAL_POINTS, trend
from bayesuq.inference.training.watching import validation_loss
from bayesuq.models.precision import lost_steps
from bayesuq.once import is_first
from bayesuq.randomness import derive_seed, generator, globally_isolated
from bayesuq.storage import below, named
from bayesuq.subnormals import flushed, without_subnormals

LONGEST_MEMORY = 0.999  # Adam's own decay of squared gradients
BETWEEN_MARKS = 50  # steps of an accelerator, until it hears of what went wrong in another process
LOST = "lost steps"
BUFFER, MEMORY = "buffer ", "memory "
GLOBAL_STATE = "now.cpu"
TOLD = ("learning_rate", "schedule", "max_grad_norm", "patience")  # options that tell fits apart
UNWATCHED = (
    "The validation loss was not finite after any epoch, so that it chose none: the weights are those of the last. "
    "Some validation row has no density, as where its inputs are far from those of training. Look for it by "
    "`posterior.predict(x).log_prob(y)`, and standardise or leave out what it shows."
)
FALLING = "its learning rate falls to 0 over all of them (a fit with schedule='constant' can be made longer)"


def minimise(objective: Objective, data: Source, validation: Source | None, training: Training) -> History:
    """Move the objective's leaves to a minimum of its loss; with validation, leave them at the best epoch.

    Raises:
        FloatingPointError: The loss stopped being finite; names the step and the sites.
        ValueError: The checkpoint is of another fit.

    Warns:
        ConvergenceWarning: The loss was still falling, or what was fitted predicts no better than a constant; weights
            whose precision loses small steps.
    """
    lost = lost_steps(leaf.dtype for leaf in objective.leaves.values())
    if lost and is_first(LOST):
        warn_of_fit(f"The fit may stand still where it seems to have converged: {lost}.")
    run = _Run(objective, data, validation, training)
    history = run.finish()
    run.judge()
    return history


class _Run:
    """One fit on its way: the loop, and all that a checkpoint of it must hold.

    Attributes:
        epoch: Number of the epoch under way.
        batch: Steps made in it.
        num_epochs: To make, where there is time.
        pace: How far it has come in what was planned, which a deadline shortens.
        losses: Mean loss per data point of each epoch that is over.
        course: The same of equal parts of each, so that a fit of few epochs has a course too.
        watched: Validation loss of each.
        steps: Losses of the steps made in this epoch.
        started: Random states that this epoch began from, which a DataLoader draws its order from.
        seconds: That earlier runs of this fit took.
        looks: At the loss under the same masks, where there are any.
        captured: The objective's step as a graph, where that is asked for and can be.
        together: What the processes tell each other at each step, where there are several.
    """

    def __init__(self, objective: Objective, data: Source, validation: Source | None, training: Training) -> None:
        self.objective, self.data, self.validation, self.training = objective, data, validation, training
        self.workers = data.workers
        self.optimizer = (objective.optimizer or adam)(objective, training.learning_rate)
        self.noise = generator(training.key(NOISE), device=data.device)
        self.order = self.workers.key(training.key(SHUFFLE))
        groups = self.optimizer.param_groups
        self.rates: list[float] = [group["initial_lr" if "initial_lr" in group else "lr"] for group in groups]
        self.best = _Best(objective, self.optimizer)
        self.epoch, self.batch = 0, 0
        self.num_epochs = training.epochs(data.num_batches)
        self.pace = Pace(self.num_epochs * data.num_batches, unit=data.num_batches)
        self.losses: list[float] = []
        self.course: list[float] = []
        self.watched: list[float] = []
        self.steps: list[Tensor] = []
        self.started: dict[str, Tensor] = {}
        self.seconds, self.began = 0.0, perf_counter()
        self.looks = self._looks()
        self.captured: CapturedStep | None = captured_step(objective, data) if training.captured else None
        self.together = _Together(self) if self.workers.are_together else None
        self.log = _Log(self)

    def finish(self) -> History:
        """Make the steps that are left."""
        with self.log.resumable.alone():
            self.log.resume()
            with flushed():
                self._run_epochs()
            self.pace.end()
            self.log.resumable.write(self.epoch, self.batch)
        if self.validation is not None:
            self.best.restore()
        if self.captured is not None:
            self.captured.tell()
        return History(
            tuple(self.losses), tuple(self.watched), self.best.epoch if self.watched else len(self.losses) - 1
        )

    def _run_epochs(self) -> None:
        """The epochs that are left."""
        with bar(self.training.progress, total=self.num_epochs, done=self.epoch, unit="epoch") as shown:
            while self.epoch < self.num_epochs and not self._has_to_end():
                self._run_epoch()
                self._end_epoch()
                seen = self.watched[-1] if self.watched else None
                shown.set_postfix(
                    {"loss": self.losses[-1]} | ({} if seen is None else {"validation": seen}), refresh=False
                )
                shown.update()

    def _has_to_end(self) -> bool:
        """Whether time or patience has run out; an epoch of which a file has all the steps is still to be ended."""
        return (self.pace.is_over and not self.batch) or self._is_out_of_patience()

    def judge(self) -> None:
        """Warn where the fit looks unfinished; weights that validation chose may well be those before the end."""
        objective, training = self.objective, self.training
        if not self.workers.is_first:
            return
        if self.watched and not math.isfinite(self.best.loss):
            warn_of_fit(UNWATCHED)
        is_whole = len(self.losses) == self.num_epochs
        if objective.comes_to_rest and is_whole and (self.validation is None or self.best.epoch == self.num_epochs - 1):
            course = trend([loss / objective.num_fits for loss in self.course], training.schedule)
            looks = None if self.looks is None else self.looks.trend(training.schedule)
            warn_if_falling((looks, course), self.num_epochs, objective.rate_option)
        if objective.log_constant is not None:
            warn_if_uninformed(objective.log_predictive, objective.log_constant, self.data, training.key(QUALITY))

    def _looks(self) -> Looks | None:
        """Looks to take, where the objective has masks to take them under."""
        objective, data = self.objective, self.data
        if objective.row_losses is None or not objective.comes_to_rest or not self.workers.is_first:
            return None
        num_steps, key = self.num_epochs * data.num_batches, self.training.key(LOOKS)
        return Looks(objective.row_losses, objective.leaves, objective.buffers, data, num_steps, key)

    def _is_out_of_patience(self) -> bool:
        patience = self.training.patience
        return patience is not None and bool(self.losses) and len(self.losses) - 1 - self.best.epoch >= patience

    def _run_epoch(self) -> None:
        """The steps of this epoch that are left."""
        batches = self._batches()
        for batch in batches if self.together is None else self.together.kept(batches):
            self._step(batch)
            self.log.note()

    def _batches(self) -> Iterator[Batch]:
        """The minibatches of this epoch that are left."""
        device, loader = self.data.device, self.data.loader
        batches = self.data.shuffled_epoch(self.order, self.epoch)
        if self.together is not None:
            self.data.seed_loader(self.order, self.epoch)
            yield from islice(batches, self.batch, None)
            return
        if self.batch == 0:
            self.started = random_states(device, loader)
            yield from batches
            return
        now = random_states(device, loader)
        set_random_states(self.started, device, loader)
        for _ in range(self.batch):
            next(batches)
        set_random_states(now, device, loader)
        yield from batches

    def _step(self, batch: Batch) -> None:
        """Move the leaves once."""
        number = self.epoch * self.data.num_batches + self.batch
        leaves = list(self.objective.leaves.values())
        self._schedule(number)
        loss = self.loss(number, batch) if self.together is None else self.together.loss(number, batch)
        if self.training.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(leaves, self.training.max_grad_norm * self.data.num_data)
        self.optimizer.step()
        if self.objective.after_step is not None:
            self.objective.after_step()
        if self.looks is not None:
            self.looks.after(number + 1)
        self.steps.append(loss)
        self.batch += 1
        self.pace.advance(number + 1)
        if self.batch == self.data.num_batches:
            self._check_epoch(number, batch)

    def loss(self, number: int, batch: Batch) -> Tensor:
        """The loss of the minibatch of a step; its gradients are left in the leaves."""
        try:
            loss = (self.captured or self.objective.loss_and_grads)(batch, self.noise)
        except ValueError as error:
            if _all_finite(self.objective.leaves.values()):
                raise
            # A distribution refuses parameters that are NaN.
            raise self._not_finite(number, batch) from error
        # Reading a loss would stop an accelerator: there, look at the epoch's end instead.
        if self.data.device.type == "cpu" and not math.isfinite(loss.item()):
            raise self._not_finite(number, batch)
        return loss

    def _schedule(self, step: int) -> None:
        """Set what changes over the steps: learning rates, and how fast Adam forgets."""
        forgetting, falls = self.objective.forgetting, self.training.schedule == "cosine"
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            if falls:
                group["lr"] = falling_rate(rate, self.pace.place, self.pace.planned)
            if forgetting is not None:
                group["betas"] = (group["betas"][0], min(1 - (step + 1) ** -forgetting, LONGEST_MEMORY))

    def _check_epoch(self, number: int, batch: Batch) -> None:
        """Refuse losses that were not looked at, and what the last step has made, which no loss after it would tell."""
        if self.data.device.type != "cpu":  # which is read once
            leaves = [leaf.isfinite().all().reshape(1) for leaf in self.objective.leaves.values()]
            finite = torch.cat([torch.stack(self.steps).isfinite(), *leaves]).tolist()
            if not all(finite):
                raise self._not_finite(number + 1 - self.batch + min(finite.index(False), self.batch - 1), batch)
        elif not _all_finite(self.objective.leaves.values()):
            raise self._not_finite(number, batch)

    def _end_epoch(self) -> None:
        """Note its losses down, and go on to the next."""
        training, data = self.training, self.data
        steps = torch.stack(self.steps).double().cpu()
        self.losses.append(float(steps.mean()) / data.num_data)
        parts = min(data.num_batches, -(-USUAL_POINTS // self.num_epochs))
        means = [float(part.mean()) / data.num_data for part in steps.tensor_split(parts)] if parts > 1 else []
        self.course += means or [self.losses[-1]]
        without_subnormals(self.objective.leaves.values())
        if self.validation is not None:
            self.watched.append(_watched(self.objective, self.validation, training))
            self.best.offer(self.watched[-1], self.epoch)
        self.epoch, self.batch, self.steps = self.epoch + 1, 0, []
        self._tell()

    def _tell(self) -> None:
        """Call the callbacks; one that ends the fit, by whatever it raises, ends it at a place that is written."""
        seen = self.watched[-1] if self.watched else None
        seconds = self.seconds + perf_counter() - self.began
        number = self.epoch * self.data.num_batches
        told = Progress(self.epoch - 1, number, self.losses[-1], seen, seconds)
        try:
            self.workers.agreed(lambda: self._call(told))
        except BaseException:
            self.log.resumable.write(self.epoch, self.batch)
            raise

    def _call(self, told: Progress) -> None:
        for callback in self.training.callbacks if self.workers.is_first else ():
            callback(told)

    def _not_finite(self, step: int, batch: Batch) -> FloatingPointError:
        culprits = self.objective.culprits(batch, self.noise)
        where = f"The terms of {', '.join(culprits)} are not finite. " if culprits else ""
        return FloatingPointError(
            f"The loss stopped being finite at step {step} (epoch {step // self.data.num_batches}). {where}Lower "
            f"`{self.objective.rate_option}`, set `max_grad_norm`, or standardise the data."
        )


class _Together:
    """What the processes of one fit tell each other at each step of a run.

    Attributes:
        failure: What went wrong in this process, until all have heard of it.
        asked: The signal that has come to any of them.
    """

    def __init__(self, run: _Run) -> None:
        """Begin where the first one does.

        Raises:
            ValueError: The processes are to do different things.
        """
        self.run, self.workers = run, run.workers
        self.failure: Exception | None = None
        self.asked: int | None = None
        objective = run.objective
        self.workers.agree(_told_to_all(run))
        with torch.no_grad():
            for tensor in (*objective.leaves.values(), *objective.buffers.values()):
                tensor.copy_(self.workers.of_first(tensor))

    def kept(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The minibatches that are left, as many as in the other processes whatever goes wrong here."""
        run = self.run
        batch = run.data.first(1)
        for _ in range(run.batch, run.data.num_batches):
            try:
                batch = batch if self.failure is not None else next(batches)
            except StopIteration:
                self.failure = ValueError("A pass over the DataLoader gave fewer minibatches than its length says.")
            except Exception as error:  # of a data set or a sampler: all processes raise it
                self.failure = error
            yield batch

    def loss(self, number: int, batch: Batch) -> Tensor:
        """As `_Run.loss`, of the minibatches of all processes; noise depends on step and process alone."""
        run, workers = self.run, self.workers
        run.noise.manual_seed(derive_seed(workers.key(run.training.key(NOISE)), number))
        leaves, count = list(run.objective.leaves.values()), run.data.count(run.batch, batch)
        loss = torch.zeros((), dtype=leaves[0].dtype, device=leaves[0].device)
        if self.failure is None:
            try:
                loss = run.loss(number, batch).clone()
            except Exception as error:  # all processes raise it
                self.failure = error
        gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        for leaf, gradient in zip(leaves, gradients, strict=True):
            leaf.grad = gradient
        self.asked = workers.mean(
            [loss, *gradients, *run.objective.shared(batch)],
            count,
            failure=self.failure,
            asked=run.log.resumable.interruptions.asked,
            looks=self._looks(number),
        )
        return loss

    def _looks(self, number: int) -> bool:
        """Whether marks are read at this step, for which an accelerator must come to the end of it."""
        run = self.run
        return run.data.device.type == "cpu" or number % BETWEEN_MARKS == 0 or run.batch + 1 == run.data.num_batches


def _told_to_all(run: _Run) -> str:
    """What must be the same in all processes."""
    objective, training, model = run.objective, run.training, run.objective.model
    told = {name: getattr(training, name) for name in TOLD}
    options = {name: value for name, value in objective.options.items() if not callable(value)}
    constants = {} if model is None else model_contents(model)
    parts = (objective.identity, run.num_epochs, run.validation is None, told, options, constants)
    return ADDRESS.sub("", repr((*parts, _layout(objective.leaves), _optimizer_options(run.optimizer))))


class _Log:
    """The checkpoint of a run, if it has one: what it holds, read and written."""

    def __init__(self, run: _Run) -> None:
        checkpoint = Checkpoint.of(run.training.checkpoint)
        writes = checkpoint is not None and run.workers.is_first
        identity = run.workers.agreed(lambda: _identity(run) if writes else None)
        self.run, self.resumable = run, Resumable(checkpoint, identity, self._state, workers=run.workers)

    def resume(self) -> None:
        """Set the run to where the file says, if there is one.

        Raises:
            ValueError: Not a whole file, or one of another fit.
        """
        with self.resumable.reading() as found:
            if found is not None:
                self._put_back(*found)
                self.resumable.begin(self.run.epoch, self.run.batch)

    def _put_back(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        run, device = self.run, self.run.data.device
        run.epoch, run.batch, run.seconds = values["epoch"], values["batch"], values["seconds"]
        run.best.epoch = values["best_epoch"]
        self._divide_anew(values)
        run.pace.go_on(run.epoch * run.data.num_batches + run.batch)
        run.losses, run.watched = tensors["losses.epochs"].tolist(), tensors["losses.watched"].tolist()
        run.course = tensors.get("losses.course", tensors["losses.epochs"]).tolist()
        run.best.loss = float(tensors["losses.best"])
        if run.looks is not None:
            run.looks.resume(below("looks.", tensors), run.epoch * run.data.num_batches + run.batch)
        run.steps = list(tensors["steps"].to(device).unbind())
        run.best.kept = {name: tensor.to(device) for name, tensor in below("best.", tensors).items()}
        for name, tensor in below("current.", tensors).items():
            current = run.best.current[name]
            # A fit that is longer than the file's has more steps to tell of.
            is_longer = name.removeprefix(BUFFER) in run.objective.per_step
            is_leaf = name in run.objective.leaves
            put_back(current[: len(tensor)] if is_longer else current, tensor, name, must_be_finite=is_leaf)
        for name, leaf in run.objective.leaves.items():
            memory = below(f"memory.{name}.", tensors)
            is_known = f"current.{name}" in tensors
            if not is_known or any(value.shape not in ((), leaf.shape) for value in memory.values()):
                raise ValueError(f"it has no {name}, or remembers another shape of it")
            if memory:
                # Adam keeps its count of steps where it made it; fused, beside the weights.
                run.optimizer.state[leaf] = {key: value.to(device) for key, value in memory.items()}
        # Masks and Pyro's draws came from torch's global generator in files of format 1, which have it for all data.
        drew_globally = GLOBAL_STATE in tensors and run.data.loader is None
        unmoved = torch.equal(tensors["noise"], run.noise.get_state())
        run.noise.set_state(tensors[GLOBAL_STATE if drew_globally and unmoved else "noise"])
        run.started = below("started.", tensors)
        set_random_states(below("now.", tensors), device, run.data.loader)

    def _divide_anew(self, values: Mapping[str, Any]) -> None:
        """Find the place in an epoch of as many minibatches as the processes that go on make of it."""
        run = self.run
        before, now = values.get("processes", run.workers.size), run.workers.size
        if before != now:
            run.batch = run.batch * run.data.num_batches // values["num_batches"]
            warn_of_fit(
                f"{before} processes have made this fit so far, and {now} go on with it: minibatches and noise are "
                "others from here on, so that it ends elsewhere than it would have, by as much as another seed does. "
                "Only steps over all rows without noise are the same.",
                UserWarning,
            )

    def note(self) -> None:
        """Say that a step is made."""
        run = self.run
        asked = None if run.together is None else run.together.asked
        self.resumable.note(run.epoch * run.data.num_batches + run.batch, run.epoch, run.batch, asked=asked)

    def _state(self) -> State:
        """All that a checkpoint holds."""
        run = self.run
        values = {
            "epoch": run.epoch,
            "batch": run.batch,
            "seconds": run.seconds + perf_counter() - run.began,
            "best_epoch": run.best.epoch,
            "num_batches": run.data.num_batches,
            "processes": run.workers.size,
        }
        losses = {"epochs": run.losses, "watched": run.watched, "best": run.best.loss, "course": run.course}
        tensors = {f"losses.{name}": torch.tensor(loss, dtype=torch.float64) for name, loss in losses.items()}
        tensors["steps"] = torch.stack(run.steps) if run.steps else torch.empty(0)
        tensors["noise"] = run.noise.get_state()
        tensors |= {} if run.looks is None else named("looks.", run.looks.state())
        tensors |= named("best.", run.best.kept) | named("current.", run.best.current)
        tensors |= named("started.", run.started)
        tensors |= named("now.", random_states(run.data.device, run.data.loader))
        for name, leaf in run.objective.leaves.items():
            tensors |= named(f"memory.{name}.", run.optimizer.state.get(leaf, {}))
        return values, tensors


def _identity(run: _Run) -> Identity:
    """What tells a run from others."""
    training, objective, model = run.training, run.objective, run.objective.model
    told = {name: getattr(training, name) for name in ("seed", *TOLD)}
    data, batch = run.data.contents()
    given = {name: leaf for name, leaf in objective.leaves.items() if name in objective.from_network}
    own = {name: leaf for name, leaf in objective.leaves.items() if name not in given}
    return Identity(
        options={
            **told,
            "device": run.data.device.type,
            "data": data,
            "validation": None if run.validation is None else run.validation.contents()[0],
            **({} if model is None else {**sites_of(model), **running_in(model)}),
            "leaves": _layout(objective.leaves),
            "buffers": _layout({n: b for n, b in objective.buffers.items() if n not in objective.per_step}),
            "optimizer": _optimizer_options(run.optimizer),
            "forgetting": objective.forgetting,
            **{name: value() if callable(value) else value for name, value in objective.options.items()},
        },
        lengths={"num_epochs": run.num_epochs},
        fixed_length=FALLING if training.schedule == "cosine" else objective.fixed_length(),
        contents={
            **{f"start of {name}": digest({name: leaf}) for name, leaf in own.items()},
            **({} if model is None else model_contents(model)),
            **objective.contents,
        },
        numbers=probed(objective, batch, run.data.device),
        tolerance=tolerance_of(next(iter(objective.leaves.values())).dtype),
        text=objective.identity,
        start=digest(given),
        before={
            **told,
            "num_epochs": run.num_epochs,
            "data": run.data.identity(),
            "validation": None if run.validation is None else run.validation.identity(),
            "model": ADDRESS.sub("", objective.identity),
            **({} if given else {"start": digest(objective.leaves)}),
        },
    )


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Shape and dtype of each."""
    return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors.items()}


def _optimizer_options(optimizer: Optimizer) -> list[str]:
    """Its class, and the options of each group of its leaves."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return [type(optimizer).__name__, *(repr(sorted(group.items())) for group in groups)]


def _all_finite(leaves: Iterable[Tensor]) -> bool:
    return all(bool(leaf.isfinite().all()) for leaf in leaves)


def _watched(objective: Objective, validation: Source, training: Training) -> float:
    """The validation loss; a loader may draw from the global generators, which training goes on drawing from."""
    key = training.key(VALIDATION)
    apart = nullcontext() if validation.loader is None else globally_isolated(key, device=validation.device)
    with torch.no_grad(), apart:
        return validation_loss(objective.log_predictive, validation, key)


class _Best:
    """The state of the best epoch so far."""

    def __init__(self, objective: Objective, optimizer: Optimizer) -> None:
        self.objective, self.optimizer = objective, optimizer
        self.current = {**objective.leaves, **{f"{BUFFER}{name}": value for name, value in objective.buffers.items()}}
        self.loss, self.epoch = math.inf, 0
        self.kept: dict[str, Tensor] = {}

    def offer(self, loss: float, epoch: int) -> None:
        """Keep the state where its loss is the smallest, and the last one until any loss is finite."""
        if loss < self.loss or not math.isfinite(self.loss):
            self.loss, self.epoch = loss, epoch
            everything = {**self.current, **self._memory()}
            self.kept = {name: value.detach().clone() for name, value in everything.items()}

    def restore(self) -> None:
        """Put the best state back in place."""
        everything = {**self.current, **self._memory()}
        with torch.no_grad():
            for name, value in self.kept.items():
                everything[name].copy_(value)

    def _memory(self) -> dict[str, Tensor]:
        """What the optimiser remembers now and the posterior is made of; it makes it at its first step."""
        leaves, keys = self.objective.leaves.items(), self.objective.optimizer_state
        return {f"{MEMORY}{key} {name}": self.optimizer.state[leaf][key] for name, leaf in leaves for key in keys}


def adam(objective: Objective, learning_rate: float) -> Adam:
    """Adam over the objective's leaves, a group for each rate."""
    groups: dict[float, list[Tensor]] = {}
    for name, leaf in objective.leaves.items():
        groups.setdefault(learning_rate * objective.rates.get(name, 1.0), []).append(leaf)
    return Adam({"params": leaves, "lr": rate, "initial_lr": rate} for rate, leaves in groups.items())
