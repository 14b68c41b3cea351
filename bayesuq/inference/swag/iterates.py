"""Iterates of stochastic gradient descent: their moments, the last of them, and at which rate they spread how far.

SGD with momentum and a constant rate does not come to rest. Near a mode it wanders as far as the noise of its
minibatches carries it, and where it has been is a sketch of the posterior (Mandt, Hoffman & Blei 2017).
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.posteriors.network_mode import ModeObjective
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.optimizers import SGD
from bayesuq.inference.training.stability import largest_curvature
from bayesuq.models.layers import NORMALISATION
from bayesuq.randomness import generator

STABLE_SHARE = 0.1  # of the largest stable rate
MOST_BATCHES = 64  # that the noise of a minibatch's gradient is measured on
TRIAL_STEPS = 256  # of a rate, before it is taken, at most
LOST = 0.1  # nats a label that SGD may lose in a trial, on average, and still be near the mode
MOST_HALVINGS = 40


class Moments:
    """Mean, squares and the last K of the vectors that were added, one after another (Welford 1962).

    Attributes:
        count: How many, a 0-d int64 tensor.
        mean: (P,), float64.
        squares: Sums of squared deviations from the mean, (P,), float64.
        last: The last K, (K, P), in no order; rows that were not written are 0.
    """

    def __init__(self, like: Tensor, rank: int) -> None:
        self.count = torch.zeros((), dtype=torch.int64)
        self.mean = torch.zeros_like(like, dtype=torch.float64)
        self.squares = torch.zeros_like(self.mean)
        self.last = like.new_zeros(rank, len(like))

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares, "last": self.last}

    def add(self, vector: Tensor) -> None:
        """One more (P,)."""
        if len(self.last):
            self.last[int(self.count) % len(self.last)] = vector
        self.count += 1
        deviation = vector.double() - self.mean
        self.mean += deviation / int(self.count)
        self.squares += deviation * (vector.double() - self.mean)

    @property
    def variance(self) -> Tensor:
        """Mean squared deviation from the mean, (P,), float64."""
        return self.squares / int(self.count)

    @property
    def deviations(self) -> Tensor:
        """Of the last min(K, count) from the mean of all, (.., P), float64."""
        return self.last[: min(len(self.last), int(self.count))].double() - self.mean


class SgdIterates:
    """SGD on a mode's objective, which collects an iterate every so many steps.

    Attributes:
        mode: Minus the log joint, where SGD is.
        moments: Of the flat vectors of every site, in the order of the mode's layout.
        steps: Steps made, a 0-d int64 tensor.
    """

    def __init__(self, mode: ModeObjective, *, every: int, rank: int, momentum: float) -> None:
        self.mode, self.every, self.momentum = mode, every, momentum
        self.moments = Moments(self.mode.flat(), rank)
        self.masks = generator(0, device=mode.model.device)  # of dropout layers, in passes that measure
        self.steps = torch.zeros((), dtype=torch.int64)

    def objective(self) -> Objective:
        """What the loop needs."""
        base = self.mode.objective()
        kept = {f"iterates.{name}": tensor for name, tensor in self.moments.tensors.items()}
        kept["iterates.steps"] = self.steps
        return replace(
            base,
            rates={},
            from_network=(),
            options={"momentum": self.momentum, "collect_every": self.every},
            buffers={**base.buffers, **kept},
            identity=f"iterates of SGD, momentum {self.momentum}, every {self.every} steps, on the {base.identity}",
            optimizer=self._sgd,
            after_step=self._collect,
            rate_option="swa_learning_rate",
            log_constant=None,
            comes_to_rest=False,
        )

    def relearn_statistics(self, source: Source) -> None:
        """Set the running statistics of normalisation layers to those at the present weights.

        One pass over the data: each is the mean over minibatches. The counters of minibatches stay as they were.
        """
        self.mode.network.prepare_once(source.rows.x)
        layers = [module for module in self.mode.network.training.modules() if isinstance(module, NORMALISATION)]
        layers = [layer for layer in layers if layer.training and layer.track_running_stats]
        if not layers:
            return
        before = [(layer.momentum, int(layer.num_batches_tracked or 0)) for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a plain mean
        with torch.no_grad(), self._dropout_off():
            for batch in source.epoch(None):
                self.mode.network.run(batch.x)
        if source.workers.are_together:
            source.workers.mean(self.mode.network.statistics(source.rows.x), len(source.rows.y))
        for layer, (momentum, count) in zip(layers, before, strict=True):
            layer.momentum = momentum
            if layer.num_batches_tracked is not None:
                layer.num_batches_tracked.fill_(count)

    def default_rate(self, source: Source, seed: int, num_steps: int | None = None) -> float:
        """The rate at which the iterates' spread is nearest to the posterior's, if that is small enough for the theory.

        Which supposes that no direction is crossed in less than some steps: it is at most a tenth of what is stable. It
        also supposes one curvature and one noise. Where labels are fitted with certainty both are next to nothing at
        the mode and large around it, so that a rate has a trial: it is halved until SGD stays near the mode, and once
        more, for the steps that the trial has not seen. A trial is no longer than what it is a trial for.

        Args:
            source: The data.
            seed: Of the order of the minibatches.
            num_steps: That SGD is to make; None is many.

        Raises:
            ValueError: A network that autograd cannot differentiate twice.
        """
        noise = torch.Generator(source.device).manual_seed(seed)
        stable = 2 * (1 + self.momentum) / max(self._largest_curvature(source, noise), 1e-300)
        rate = min(STABLE_SHARE * stable, (1 - self.momentum) * self._nearest_rate(source, seed))
        if not math.isfinite(rate):
            return rate
        with self._statistics_kept():
            length = TRIAL_STEPS if num_steps is None else min(num_steps, TRIAL_STEPS)
            at_mode = [self._loss(batch, source) for batch in _trial(source, seed, length)]
        if self._stays(rate, source, seed, at_mode):
            return rate
        halved = (rate * 0.5**number for number in range(1, MOST_HALVINGS))
        return next((0.5 * smaller for smaller in halved if self._stays(smaller, source, seed, at_mode)), rate)

    def _stays(self, rate: float, source: Source, seed: int, at_mode: Sequence[float]) -> bool:
        """Whether SGD at this rate stays near the mode, by its loss on minibatches beside the mode's on the same."""
        start, optimizer, lost = self.mode.flat(), self._sgd(self.mode.objective(), rate), 0.0
        with self._statistics_kept():
            for batch, before in zip(_trial(source, seed, len(at_mode)), at_mode, strict=True):
                lost += self._loss(batch, source) - before
                if not lost <= LOST * len(at_mode):  # or is not a number
                    break
                optimizer.step()
        self.mode.move_to(start)
        return lost <= LOST * len(at_mode)

    def _loss(self, batch: Batch, source: Source) -> float:
        """Nats a label, from one minibatch; its gradients stay."""
        return float(self.mode.loss_and_grads(batch, self.masks)) / (source.num_data * source.num_labels)

    def _nearest_rate(self, source: Source, seed: int) -> float:
        """2 P / (N E|g - E g|^2) for gradients g of the loss per data point on a minibatch (Mandt 2017, theorem 1).

        There the stationary law of SGD without momentum has the smallest Kullback-Leibler divergence to the posterior.
        """
        count, mean, squares = 0, torch.zeros_like(self.moments.mean), 0.0
        with self._statistics_kept():
            for batch in islice(source.shuffled_epoch(seed, 0), MOST_BATCHES):
                self._loss(batch, source)
                gradient = torch.cat([vector.grad.double() for vector in self.mode.vectors.values()]) / source.num_data
                count += 1
                deviation = gradient - mean
                mean += deviation / count
                squares += float(deviation.dot(gradient - mean))
        return 2 * len(mean) * (count - 1) / (source.num_data * squares) if squares > 0 else math.inf

    def _largest_curvature(self, source: Source, noise: torch.Generator) -> float:
        """Of the loss per data point, on one minibatch, in evaluation mode."""
        model, layout = self.mode.model, self.mode.layout
        batch = next(source.shuffled_epoch(noise.initial_seed(), 0))

        def energy(flat: Tensor) -> Tensor:
            theta = layout.split(flat)
            f = model.forward(theta, batch.x, net=self.mode.network.evaluation, buffers=self.mode.network.buffers)
            log_likelihood = model.likelihood_given(theta).log_prob(f, batch.y, batch.weight).mean()
            prior = sum((law.log_prob(theta[name]) for name, law in model.laws.items()), flat.new_zeros(()))
            return -log_likelihood - prior / source.num_data

        try:
            return largest_curvature(energy, self.mode.flat(), noise)
        except RuntimeError as error:
            raise ValueError(f"No rate of SGD can be measured ({error}). Pass `swa_learning_rate`.") from error

    def _sgd(self, objective: Objective, learning_rate: float) -> SGD:
        """Rates are for the loss per data point, as everywhere in the literature; the objective is its sum."""
        rate = learning_rate / self.mode.num_data
        return SGD(list(objective.leaves.values()), lr=rate, momentum=self.momentum)

    def _collect(self) -> None:
        self.steps += 1
        if int(self.steps) % self.every == 0:
            self.moments.add(self.mode.flat())

    @contextmanager
    def _statistics_kept(self) -> Iterator[None]:
        """Those of normalisation layers are afterwards as they were."""
        before = {name: value.clone() for name, value in self.mode.network.buffers.items()}
        yield
        for name, value in before.items():
            self.mode.network.buffers[name].copy_(value)

    @contextmanager
    def _dropout_off(self) -> Iterator[None]:
        """As it will be when predicting."""
        self.mode.network.set_drawing(False)
        try:
            yield
        finally:
            self.mode.network.set_drawing(True)


def _trial(source: Source, seed: int, length: int) -> Iterator[Batch]:
    """The minibatches of a trial: of one epoch after another."""
    epochs = (source.shuffled_epoch(seed, epoch) for epoch in range(length))  # of one minibatch at least
    return islice(chain.from_iterable(epochs), length)
