"""What `regress` and `classify` try: methods with settings that serve any table, each of a size that time decides.

Networks are small and see standardised rows. A size is a number of epochs, of steps of chains, or of iterations, so
that the seconds of a small fit tell those of a larger one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bayesuq.data import Dataset, rounding_scale
from bayesuq.inference import dropout, ensemble, gp, laplace, microcanonical
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp.combined import Scale
from bayesuq.models.gp.kernels import RBF
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
LEAST_NOISE, MOST_FLOOR = 0.01, 0.5  # standard deviations of y
DROPOUT, DROPOUT_PRIOR = 0.05, 3.0
MEMBERS, CHAINS = 5, 8
WARM_SHARE, WARM_SHARE_ONWARDS, THINNING = 0.6, 0.25, 10  # of the steps of chains, and of those that go on
TRAINING, FEWEST_STEPS, MOST_STEPS = 40, 500, 7000  # epochs of the networks that chains begin at, and steps of theirs
ENERGY_VARIANCE = 0.05  # short chains gain more by how far they come than they lose by the integrator's error
MOST_EXACT, INDUCING = 2000, 256
ORDERS = {  # by the most rows: a process is exact within seconds, chains are cheap, or neither
    500: ("gp", "microcanonical", "ensemble", "laplace", "dropout"),
    MOST_EXACT: ("microcanonical", "ensemble", "gp", "laplace", "dropout"),
    math.inf: ("ensemble", "laplace", "gp", "dropout", "microcanonical"),
}
PILOT_SHARE = 8  # of the least size worth its time: a pilot that tells what a step takes beside what any fit takes
CHAINS_SHARE = 2.0  # of the time, where another method has 1: what they gain by more of it is largest
Fit = Callable[[Dataset, int, int], Posterior]
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
        going_on: From more rows, a size, a seed and the fit to fewer rows to a posterior that begins where that one
            ended; None of a method that is fitted anew.
    """

    name: str
    fit: Fit
    wanted: int
    least: int
    share: float = 1.0
    going_on: Continue | None = None

    @property
    def pilots(self) -> tuple[int, int]:
        """Sizes of two small fits, whose difference tells the pace."""
        small = max(2, self.least // PILOT_SHARE)
        return small, 3 * small


def trials_for_numbers(rows: Dataset) -> list[Trial]:
    """Of regression, in the order in which there is to be time for them.

    Chains read all rows for each step, and predict best where that is cheap; where it is not, they come last.
    """
    columns, floor = rows.y.shape[1], noise_floor(rows)
    noisy, plain = HeteroscedasticNormal(minimum_scale=floor), Normal(scale="learned")
    trials = [_process(rows), *network_trials(rows, noisy, plain, 2 * columns, columns)]
    named = {trial.name: trial for trial in trials}
    return [named[name] for name in next(order for most, order in ORDERS.items() if len(rows) <= most)]


def trials_for_labels(rows: Dataset, num_classes: int) -> list[Trial]:
    """Of classification, the cheapest first."""
    return network_trials(rows, Categorical(), Categorical(), num_classes, num_classes)


def network_trials(
    rows: Dataset, own_noise: Likelihood, one_noise: Likelihood, own_outputs: int, one_outputs: int
) -> list[Trial]:
    """The methods over networks, with a noise of its own at each row, or with one for all."""

    def model(hidden: tuple[int, ...], likelihood: Likelihood, outputs: int, seed: int, **options: Any) -> Any:
        scale = options.pop("prior_scale", 1.0)
        net = mlp(rows.x.shape[1], hidden, outputs, seed=derive_seed(seed, 0), **options)
        return BayesianNetwork(net, NormalPrior(scale=scale), likelihood)

    shared: dict[str, Any] = {"batch_size": BATCH, "learning_rate": 0.01, "progress": False}

    def of_ensemble(data: Dataset, size: int, seed: int) -> Posterior:
        wide = model(WIDE, own_noise, own_outputs, seed)
        return ensemble.fit(wide, data, num_members=MEMBERS, num_epochs=size, seed=seed, **shared)

    def of_dropout(data: Dataset, size: int, seed: int) -> Posterior:
        dropping = model(WIDE, one_noise, one_outputs, seed, dropout=DROPOUT, prior_scale=DROPOUT_PRIOR)
        return dropout.fit(dropping, data, num_epochs=size, seed=seed, **shared)

    def of_laplace(data: Dataset, size: int, seed: int) -> Posterior:
        wide = model(WIDE, one_noise, one_outputs, seed)
        return laplace.fit(wide, data, structure="kronecker", num_epochs=size, seed=seed, **shared)

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

    steps = math.ceil(len(rows) / BATCH)  # an epoch
    return [
        Trial("ensemble", of_ensemble, max(40, 1000 // steps), 5),
        Trial("laplace", of_laplace, max(40, 2000 // steps), 10),
        Trial("dropout", of_dropout, max(100, 4000 // steps), 20),
        Trial("microcanonical", of_chains, MOST_STEPS, FEWEST_STEPS, CHAINS_SHARE, of_chains_onwards),
    ]


def _process(rows: Dataset) -> Trial:
    def of_process(data: Dataset, size: int, seed: int) -> Posterior:
        process = GaussianProcess(Scale(RBF()), likelihood=Normal(scale="learned"))
        options: dict[str, Any] = {"max_iterations": size, "seed": seed, "progress": False}
        if len(data) <= MOST_EXACT:
            return gp.fit(process, data, approximation="exact", **options)
        return gp.fit(process, data, approximation="collapsed", num_inducing=INDUCING, **options)

    return Trial("gp", of_process, 200 if len(rows) <= MOST_EXACT else 100, 10)


def noise_floor(rows: Dataset) -> float:
    """The least noise that is believed in, in units of y: a hundredth, or more where targets are rounded."""
    return min(max(LEAST_NOISE, rounding_scale(rows.y)), MOST_FLOOR)
