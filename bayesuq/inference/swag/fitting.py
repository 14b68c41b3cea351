"""SWAG: a normal law with the mean and the covariance of where stochastic gradient descent wanders around a mode.

    theta = mean + sqrt(scale) (sqrt(variance) * z1 / sqrt 2 + D^T z2 / sqrt(2 (K - 1))),   z1, z2 ~ N(0, I)

Mean and variance are those of all iterates collected, the rows of D the deviations of the last K from the mean. The
mode is found by Adam, as in `map_estimate`; from there SGD with momentum and a constant rate makes the iterates. A
mixture of such laws, multi-SWAG, is `ensemble.fit(model, data, member_fit=swag.fit)`.

Reference:
    Maddox et al. 2019, A Simple Baseline for Bayesian Uncertainty in Deep Learning, algorithm 1 and eq. (1); Wilson &
    Izmailov 2020, Bayesian Deep Learning and a Probabilistic Perspective of Generalization (multi-SWAG).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor

from bayesuq.arrays import check_count, check_fraction, check_positive, check_probability
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.posteriors.network import check_same_sites
from bayesuq.inference.posteriors.network_mode import LEARNING_RATE, MapPosterior, ModeObjective, fit_mode
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.swag.iterates import LOST, SgdIterates
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.options import (
    Callback,
    Progress,
    Training,
    TrainingOptions,
    session,
    training_options,
)
from bayesuq.inference.training.workers import Group
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import derive_seed, generator, resolve_seed

MODE, ITERATES, RATE = range(3)  # what a fit's seed is split into


@training_options(learning_rate=LEARNING_RATE)
@on_features(drops=True)
def fit(
    model: BayesianNetwork,
    data: Data,
    *,
    rank: int = 20,
    swa_share: float = 0.25,
    swa_learning_rate: float | None = None,
    momentum: float = 0.9,
    collect_every: int | None = None,
    scale: float = 1.0,
    mode: MapPosterior | None = None,
    data_parallel: bool | Group = False,
    **options: Unpack[TrainingOptions],
) -> "SwagPosterior":
    """Find the mode, and follow SGD around it.

    Args:
        model: The joint density.
        data: Rows to fit, or a DataLoader of them.
        rank: K, the iterates whose deviations are kept, O(K P) memory; 0 keeps variances alone (SWAG-Diagonal).
        swa_share: Share of the epochs, the last ones, that SGD makes; a fraction in (0, 1).
        swa_learning_rate: SGD's constant rate, for the loss per data point. The width of the law is proportional to it.
            None takes the rate at which SGD's stationary law is nearest to the posterior (Mandt et al. 2017, theorem
            1), measured at the mode, but at most a tenth of the largest stable one; it is halved until SGD stays near
            the mode in a trial, and once more.
        momentum: SGD's, in [0, 1).
        collect_every: Steps between two collected iterates; None is an epoch, or fewer where that would give less than
            `rank` of them.
        scale: Multiplies the covariance; 1 is the paper's law.
        mode: A fitted mode of the same model, on the same data, instead of training one; SGD's epochs are as many.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, fit
            one posterior together: each reads its part of `data`, or rows of its own, in minibatches of `batch_size`.
        learning_rate: Adam's step size at the start of the way to the mode; scales of the likelihood move ten times as
            fast.
        schedule: Of Adam's step size: "cosine" lets it fall to 0 over the steps (Loshchilov & Hutter 2017); "constant"
            does not.
        validation: Rows whose predictive log density is watched on the way to the mode, whose best epoch is where SGD
            starts.
        checkpoint: A path, or a `Checkpoint` of one, beside which the way to the mode and SGD write files of their own,
            `.mode` and `.iterates`, as they go; the same fit called again goes on from there and ends with the same
            bits. Where a file is there and `seed` is None, its seed is taken.

    Returns:
        A posterior without end of draws. Statistics of normalisation layers are those at the mean.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range, or that leave less than
            two iterates; a mode of another model.
        FloatingPointError: The loss stopped being finite.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (20,), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> posterior = fit(model, data, rank=5, num_epochs=40, batch_size=1, seed=0)
        >>> posterior.deviations.shape, posterior.predict(data.x, num_samples=10).num_samples
        (torch.Size([5, 61]), 10)
    """
    training = Training.of(options, data_parallel=data_parallel)
    _check_options(rank, swa_share, swa_learning_rate, momentum, collect_every, scale)
    if mode is not None and not isinstance(mode, MapPosterior):
        raise TypeError(f"`mode` must be a posterior of `map_estimate.fit`; got {type(mode).__name__}.")
    with session(model, data, training) as (model, source, _):
        training = replace(training, num_epochs=training.epochs(source.num_batches))
        num_iterating = max(1, round(swa_share * training.epochs(source.num_batches)))
        every = _interval(num_iterating * source.num_batches, source.num_batches, rank, collect_every)
        first, second = _parts(training, num_iterating, source.num_batches, fits_mode=mode is None)
        if mode is None and first is not None:
            mode = fit_mode(model, data, first)
        sgd = SgdIterates(_objective_at(model, mode, source), every=every, rank=rank, momentum=momentum)
        rate = swa_learning_rate
        if rate is None:
            num_steps = num_iterating * source.num_batches
            rate = source.workers.agreed(lambda: sgd.default_rate(source, training.key(RATE), num_steps))
            rate = float(source.workers.of_first(torch.tensor(rate, dtype=torch.float64)))
        history = minimise(sgd.objective(), source, None, replace(second, learning_rate=_checked_rate(rate)))
        if mode is not None and mode.history.loss:  # an adopted one has no loss of ours
            _warn_if_lost(mode.history.loss[-1], history.loss[-1], source.num_labels, rate)
        return _posterior(model, sgd, source, scale, history if mode is None else _joined(mode.history, history))


def _check_options(
    rank: int, swa_share: float, rate: float | None, momentum: float, collect_every: int | None, scale: float
) -> None:
    if check_count(rank, "rank", minimum=0) == 1:
        raise ValueError("`rank` must be 0 or at least 2: one deviation has no covariance; got 1.")
    check_fraction(swa_share, "swa_share")
    check_probability(momentum, "momentum")
    check_positive(scale, "scale")
    if rate is not None:
        check_positive(rate, "swa_learning_rate")
    if collect_every is not None:
        check_count(collect_every, "collect_every")


def _checked_rate(rate: float) -> float:
    if not math.isfinite(rate):
        raise ValueError("The loss is flat at the mode, so that no rate follows from it. Pass `swa_learning_rate`.")
    return rate


def _warn_if_lost(at_mode: float, loss: float, num_labels: int, rate: float) -> None:
    """Say that SGD has left the mode, by the mean loss of the last epoch of each, in nats a data point."""
    if loss > at_mode + LOST * num_labels:
        warn_of_fit(
            f"SGD has left the mode: its loss is {loss:.3g} nats a data point, the mode's {at_mode:.3g}. Pass a "
            f"`swa_learning_rate` below {rate:.2g}.",
            UserWarning,
        )


def _interval(num_steps: int, num_batches: int, rank: int, collect_every: int | None) -> int:
    """Steps between two collected iterates.

    Raises:
        ValueError: They leave less than two.
    """
    every = min(num_batches, max(1, num_steps // max(rank, 2))) if collect_every is None else collect_every
    if num_steps // every < 2:
        raise ValueError(
            f"SWAG needs at least two iterates; {num_steps} steps of SGD give {num_steps // every}, one every {every}. "
            "Raise `num_epochs` or `swa_share`, or lower `batch_size` or `collect_every`."
        )
    return every


def _parts(
    training: Training, num_iterating: int, num_batches: int, *, fits_mode: bool
) -> tuple[Training | None, Training]:
    """The options of the way to the mode, None where there is none to go, and of SGD."""
    file = Checkpoint.of(training.checkpoint)
    key = resolve_seed(training.seed) if file is None else file.claim(training.seed)
    num_before = training.epochs(num_batches) - num_iterating if fits_mode else 0
    second = replace(
        training,
        num_epochs=num_iterating,
        schedule="constant",
        validation=None,
        patience=None,
        seed=derive_seed(key, ITERATES),
        callbacks=[_later(callback, num_before, num_batches) for callback in training.callbacks],
        checkpoint=None if file is None else file.of_part("iterates"),
    )
    if num_before == 0:
        return None, second
    own = None if file is None else file.of_part("mode")
    return replace(training, num_epochs=num_before, seed=derive_seed(key, MODE), checkpoint=own), second


def _later(callback: Callback, num_epochs: int, num_batches: int) -> Callback:
    """The same, told of epochs and steps that follow on those of another fit."""

    def told(progress: Progress) -> None:
        step = progress.step + num_epochs * num_batches
        callback(replace(progress, epoch=progress.epoch + num_epochs, step=step))

    return told


def _objective_at(model: BayesianNetwork, mode: MapPosterior | None, source: Source) -> ModeObjective:
    """Minus the log joint, at a mode, or at the network's own weights.

    Raises:
        ValueError: A mode of another model.
    """
    objective = ModeObjective(model, source.num_data)
    if mode is None:
        return objective
    check_same_sites(mode, model, "mode")
    objective.move_to(mode.values)
    for name, value in mode.buffers.items():
        objective.network.buffers[name].copy_(value)
    return objective


def _posterior(
    model: BayesianNetwork, sgd: SgdIterates, source: Source, scale: float, history: History
) -> "SwagPosterior":
    """The law of what was collected; sites learned as point values stay at their mean."""
    moments = sgd.moments
    random = sum(sgd.mode.layout.shapes[name].numel() for name in model.laws)
    mean = moments.mean.to(model.dtype)
    sgd.mode.move_to(mean)
    sgd.relearn_statistics(source)
    return SwagPosterior(
        model=model,
        mean=mean,
        variance=moments.variance[:random].to(model.dtype),
        deviations=moments.deviations[:, :random].to(model.dtype),
        scale=scale,
        buffers={name: buffer.clone() for name, buffer in sgd.mode.network.buffers.items()},
        history=history,
    )


def _joined(first: History, second: History) -> History:
    loss = first.loss + second.loss
    return History(loss, first.validation_loss, len(loss) - 1)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SwagPosterior(WeightPosterior):
    """A normal law, half of whose covariance is diagonal and half of rank K - 1.

    Attributes:
        model: The joint density.
        mean: Of the collected iterates, (P,): the flat vector of every site, the random ones (R) first.
        variance: Of the random sites, (R,), in squared units of the flat vector.
        deviations: Of the last K iterates from the mean, (K, R).
        scale: Multiplies the covariance.
        buffers: The network's buffers; the statistics of normalisation layers are those at the mean.
        history: How the fit went: the way to the mode, then SGD.
    """

    model: BayesianNetwork
    mean: Tensor
    variance: Tensor
    deviations: Tensor
    scale: float
    buffers: Mapping[str, Tensor]
    history: History

    @property
    def num_members(self) -> None:
        """None: draws are without end."""
        return None

    @property
    def averaged(self) -> MapPosterior:
        """The mean alone: stochastic weight averaging (Izmailov et al. 2018), without epistemic uncertainty."""
        return MapPosterior(model=self.model, values=self.mean, buffers=self.buffers, history=self.history)

    def draw(self, index: int, seed: int) -> Tensor:
        """mean + noise of the random sites, and the point values."""
        source = generator(seed, index, device=self.device)
        diagonal = torch.empty_like(self.variance).normal_(generator=source) * self.variance.sqrt()
        rank = len(self.deviations)
        if rank:
            low_rank = torch.empty_like(self.deviations[:, 0]).normal_(generator=source) @ self.deviations
            diagonal = (diagonal + low_rank / math.sqrt(rank - 1)) / math.sqrt(2)
        flat = self.mean.clone()
        flat[: len(diagonal)] += math.sqrt(self.scale) * diagonal
        return flat
