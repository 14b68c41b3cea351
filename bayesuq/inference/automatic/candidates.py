"""What `regress` and `classify` try: methods with settings that serve any table, each of a size that time decides.

Networks are small and see standardised rows. A size is a number of epochs, of steps of chains, or of iterations, so
that the seconds of a small fit tell those of a larger one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from bayesuq.data import Dataset, rounding_scale
from bayesuq.inference import dropout, ensemble, gp, laplace, microcanonical
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp.combined import Scale
from bayesuq.models.gp.kernels import RBF, Matern
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.likelihoods.real import HeteroscedasticNormal, Normal
from bayesuq.models.networks import mlp
from bayesuq.models.priors import Normal as NormalPrior
from bayesuq.posterior import Posterior
from bayesuq.randomness import derive_seed

WIDE, DEEP = (50,), (16, 16)
BATCH = 64
MANY_ROWS, LARGE, LARGE_BATCH = 10_000, (100, 100, 100), 512  # from so many rows on, units and minibatches are more
LARGE_EPOCHS = 100  # of the ensemble and Laplace there
LEAST_NOISE, MOST_FLOOR = 0.001, 0.5  # standard deviations of y
DROPOUT, DROPOUT_PRIOR = 0.05, 3.0
MEMBERS, CHAINS = 5, 8
WARM_SHARE, WARM_SHARE_ONWARDS, THINNING = 0.6, 0.25, 10  # of the steps of chains, and of those that go on
TRAINING, FEWEST_STEPS, MOST_STEPS = 40, 500, 7000  # epochs of the networks that chains begin at, and steps of theirs
ENERGY_VARIANCE = 0.05  # short chains gain more by how far they come than they lose by the integrator's error
LEARNING_ROWS, MOST_CONDITIONED = 1000, 10_000  # rows from which a process learns, and on which it is conditioned
CONDITIONING = 0.2  # iterations of learning that take as long as conditioning on as many rows
CHEAP_FOR_CHAINS = 2000  # rows
PILOT_SHARE = 16  # of the least size worth its time: a pilot that tells what a step takes beside what any fit takes
CHAINS_SHARE = 2.0  # of the time, where another method has 1: what they gain by more of it is largest
Fit = Callable[[Dataset, int, int], Posterior]
Watched = Callable[[Dataset, Dataset, int, int], Posterior]
Continue = Callable[[Dataset, int, int, Posterior], Posterior]


@dataclass(frozen=True)
class Trial:
    """A method that is tried.

    Attributes:
        name: Of the method.
        fit: From rows in standard units, a size and a seed to the posterior.
        wanted: The size of a fit that has time enough.
        least: The smallest one that is worth its time.
        share: Of the time, beside those of other trials.
        going_on: From more rows, of which the first are those of the first fit, a size, a seed and that fit to a
            posterior that begins where it ended; None of a method that is fitted anew.
        wanted_onwards: The size by which it goes on that has time enough; None is the one that is wanted first.
        least_onwards: The smallest one that is worth its time; None is that of a first fit.
        most_anew: Rows up to which it is rather fitted anew than that it goes on, where no other waits for the time.
        keeps_time: Whether it goes on for as long as there is time, whatever size it is given.
        most_read: Rows that any fit reads at most; None is all.
        watched: Of tables so long that the judging rows are of more use to watch than to fit: from fitted rows, those,
            a size and a seed to the posterior of the epoch at which these are the most probable. It takes the place of
            a fit to all, and is as large as its part of the time allows.
    """

    name: str
    fit: Fit
    wanted: int
    least: int
    share: float = 1.0
    going_on: Continue | None = None
    wanted_onwards: int | None = None
    least_onwards: int | None = None
    most_anew: int = 0
    keeps_time: bool = False
    most_read: int | None = None
    watched: Watched | None = None

    @property
    def pilots(self) -> tuple[int, int]:
        """Sizes of two small fits, whose difference tells the pace."""
        small = max(2, self.least // PILOT_SHARE)
        return small, 3 * small


def trials_for_numbers(rows: Dataset) -> list[Trial]:
    """Of regression, in the order in which there is to be time for them.

    A process takes seconds. Chains read all rows for each step, and predict best where that is cheap; where it is not,
    they come last.
    """
    columns, floor = rows.y.shape[1], noise_floor(rows)
    noisy, plain = HeteroscedasticNormal(minimum_scale=floor), Normal(scale="learned")
    *others, chains = network_trials(rows, noisy, plain, 2 * columns, columns)
    return [_process(), *([chains, *others] if len(rows) <= CHEAP_FOR_CHAINS else [*others, chains])]


def trials_for_labels(rows: Dataset, num_classes: int) -> list[Trial]:
    """Of classification, the cheapest first."""
    return network_trials(rows, Categorical(), Categorical(), num_classes, num_classes)


def network_trials(
    rows: Dataset, own_noise: Likelihood, one_noise: Likelihood, own_outputs: int, one_outputs: int
) -> list[Trial]:
    """The methods over networks, with a noise of its own at each row, or with one for all; chains come last."""
    is_large = len(rows) >= MANY_ROWS
    wide, batch = (LARGE, LARGE_BATCH) if is_large else (WIDE, BATCH)

    def model(hidden: tuple[int, ...], likelihood: Likelihood, outputs: int, seed: int, **options: Any) -> Any:
        scale = options.pop("prior_scale", 1.0)
        net = mlp(rows.x.shape[1], hidden, outputs, seed=derive_seed(seed, 0), **options)
        return BayesianNetwork(net, NormalPrior(scale=scale), likelihood)

    shared: dict[str, Any] = {"batch_size": batch, "learning_rate": 0.01, "progress": False}

    def of_ensemble(data: Dataset, size: int, seed: int, **watched: Any) -> Posterior:
        net = model(wide, own_noise, own_outputs, seed)
        return ensemble.fit(net, data, num_members=MEMBERS, num_epochs=size, seed=seed, **shared, **watched)

    def of_dropout(data: Dataset, size: int, seed: int, **watched: Any) -> Posterior:
        dropping = model(wide, one_noise, one_outputs, seed, dropout=DROPOUT, prior_scale=DROPOUT_PRIOR)
        return dropout.fit(dropping, data, num_epochs=size, seed=seed, **shared, **watched)

    def of_laplace(data: Dataset, size: int, seed: int, **watched: Any) -> Posterior:
        net = model(wide, one_noise, one_outputs, seed)
        return laplace.fit(net, data, structure="kronecker", num_epochs=size, seed=seed, **shared, **watched)

    def watching(fit: Callable[..., Posterior]) -> Watched | None:
        if not is_large:
            return None
        return lambda data, judged, size, seed: fit(data, size, seed, validation=judged)

    def of_chains(data: Dataset, size: int, seed: int, start: Any = None) -> Posterior:
        warm = max(1, round((WARM_SHARE if start is None else WARM_SHARE_ONWARDS) * size))
        return microcanonical.fit(
            model(DEEP, own_noise, own_outputs, seed, activation="silu"),
            data,
            num_members=CHAINS,
            num_warmup=warm,
            num_samples=max(1, (size - warm) // THINNING),
            thinning=THINNING,
            energy_variance=ENERGY_VARIANCE,
            num_epochs=TRAINING if size >= FEWEST_STEPS else 1,  # a pilot is to tell what a step takes
            start=start,
            seed=seed,
            **shared,
        )

    def of_chains_onwards(data: Dataset, size: int, seed: int, before: Any) -> Posterior:
        return of_chains(data, size, derive_seed(seed, 1), replace(before, draws=before.draws[:, -1:]))

    steps = math.ceil(len(rows) / batch)  # an epoch
    least, share = (LARGE_EPOCHS, CHAINS_SHARE) if is_large else (40, 1.0)
    return [
        Trial("ensemble", of_ensemble, max(least, 1000 // steps), 5, share, watched=watching(of_ensemble)),
        Trial("laplace", of_laplace, max(least, 2000 // steps), 10, watched=watching(of_laplace)),
        Trial("dropout", of_dropout, max(100, 4000 // steps), 20, watched=watching(of_dropout)),
        Trial("microcanonical", of_chains, MOST_STEPS, FEWEST_STEPS, CHAINS_SHARE, of_chains_onwards, keeps_time=True),
    ]


def _process() -> Trial:
    """An exact one, whose hyperparameters are learned from some rows of a table that has many.

    Going on, it keeps them, and is conditioned on as many rows as the time of so many iterations allows, which grows by
    their cube. What it has not learned from, the rows that judged, may be those that tell of the noise: where
    nothing waits for the time it learns anew.
    """

    def of_process(data: Dataset, size: int, seed: int) -> Posterior:
        kernel = Scale(RBF()) + Scale(Matern(1.5)) + Scale(Matern(0.5))  # which part a table needs, it says itself
        process = GaussianProcess(kernel, likelihood=Normal(scale="learned"))
        some = data.rows(torch.arange(min(len(data), LEARNING_ROWS)))  # rows are in random order
        options: dict[str, Any] = {"num_restarts": 1, "max_iterations": size, "seed": seed, "progress": False}
        return gp.fit(process, some, approximation="exact", **options)

    def of_more_rows(data: Dataset, size: int, _: int, before: Any) -> Posterior:
        most = min(len(data), MOST_CONDITIONED, int(LEARNING_ROWS * (size / CONDITIONING) ** (1 / 3)))
        further = data.rows(torch.arange(len(before.x), max(most, len(before.x) + 1)))
        return before.condition(further.x, further.y)

    return Trial(
        *("gp", of_process, 100, 10),
        going_on=of_more_rows,
        wanted_onwards=5000,
        least_onwards=1,
        most_anew=LEARNING_ROWS,
        most_read=LEARNING_ROWS,
    )


def noise_floor(rows: Dataset) -> float:
    """The least noise that is believed in, in units of y: a thousandth, or more where targets are rounded."""
    return min(max(LEAST_NOISE, rounding_scale(rows.y)), MOST_FLOOR)
