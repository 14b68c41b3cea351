"""The methods of the UCI tables: one setting each for all sets, and a fit of all splits of a set.

Splits of a set have the same number of rows, so all members of all splits train in one pass; the numbers are those of
one after another, to rounding (`bayesuq.inference.ensemble.together`, `bayesuq.inference.variational.together`).
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, Self

import torch

import bayesuq as bq
from bayesuq.arrays import check_count, check_positive, check_probability
from bayesuq.evaluation.calibration import interval_coverage
from bayesuq.evaluation.scores import crps, root_mean_squared_error
from bayesuq.inference.dropout import DropoutPosterior
from bayesuq.inference.ensemble.together import fit_modes
from bayesuq.inference.posteriors.ensemble import EnsemblePosterior
from bayesuq.inference.training.options import Training
from bayesuq.inference.variational.guides import mean_field
from bayesuq.inference.variational.together import fit_mean_fields
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.randomness import derive_seed, isolated
from scripts.recording import digest

Method = Literal["ensemble", "spread", "dropout", "variational"]
Part = Literal["val", "test"]
LEVEL = 0.9  # of the intervals whose coverage is counted


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one method is fitted to every set.

    Attributes:
        method: "ensemble" is the mixture of its members; "spread" drops their noise and leaves the variance between
            them alone, as an ensemble of mean-squared-error networks has it.
        noise: An output of the network, or one scale for all inputs that is learned.
        minimum_scale: Of noise that is an output, in standard deviations of y.
        prior_scale: Standard deviation of the Normal prior of every weight.
        fan_in: Whether that is divided by the root of the number of a unit's inputs.
        num_steps: Of the optimiser, rounded to whole epochs: small sets see their rows more often.
        num_epochs: Passes over the rows: small sets stop early. Of both, the longer counts.
        batch_size: Rows in a minibatch, at most.
        learning_rate: Of Adam at the start; it falls to 0 along a cosine.
        dropout: Probability of dropping a hidden unit.
        num_members: Of an ensemble.
        adversarial: See `bayesuq.inference.map_estimate.fit`.
        initial_scale: Of a mean-field posterior, as a share of the prior's.
        anneals: Whether a mean-field fit begins as `bayesuq.inference.variational.fit` does by default where a noise is
            learned, annealed and by local reparameterisation; else with the whole divergence and by drawn weights, as
            all fits did before.
        num_samples: Draws of a prediction, where there is no end of them.
    """

    method: Method
    noise: Literal["heteroscedastic", "learned"]
    prior_scale: float
    batch_size: int
    learning_rate: float
    num_steps: int | None = None
    num_epochs: int | None = None
    minimum_scale: float = 0.0
    dropout: float = 0.0
    num_members: int = 1
    adversarial: bool = False
    fan_in: bool = False
    initial_scale: float = 0.05
    anneals: bool = False
    num_samples: int = 1000

    def __post_init__(self) -> None:
        lengths = [name for name in ("num_steps", "num_epochs") if getattr(self, name) is not None]
        if not lengths:
            raise ValueError("A fit needs a length: give `num_steps`, `num_epochs`, or both.")
        for name in (*lengths, "batch_size", "num_members", "num_samples"):
            check_count(getattr(self, name), name)
        for name in ("prior_scale", "learning_rate", "initial_scale"):
            check_positive(getattr(self, name), name)
        check_probability(self.dropout, "dropout")
        if self.method not in ("ensemble", "spread", "dropout", "variational"):
            raise ValueError(f"`method` must be ensemble, spread, dropout or variational; got {self.method!r}.")
        if self.noise not in ("heteroscedastic", "learned"):
            raise ValueError(f"`noise` must be heteroscedastic or learned; got {self.noise!r}.")

    def training(self, num_rows: int, seed: int, checkpoint: Path | None = None) -> Training:
        """The options of one fit to so many rows."""
        steps_an_epoch = ceil(num_rows / self.batch_size)
        epochs = max(1, self.num_epochs or 1, round((self.num_steps or 0) / steps_an_epoch))
        return Training(epochs, self.batch_size, self.learning_rate, seed=seed, checkpoint=checkpoint, progress=False)


def read_settings(path: Path) -> dict[str, Setting]:
    """Settings by name, from a TOML file with a table for each.

    Raises:
        TypeError: Unknown or missing options.
    """
    return {name: Setting(**table) for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items()}


@dataclass(frozen=True, eq=False)
class Problem:
    """One split, in the units that are fitted.

    Attributes:
        name: Of the set, the split and its division.
        seed: What initial weights, orders and draws depend on.
        train: Rows to fit, standardised by themselves.
        x: Inputs of the rows to judge by, in the same units.
        y: Their targets, raw.
        units: The way back.
        hidden: Width of the network.
    """

    name: str
    seed: int
    train: bq.Dataset
    x: torch.Tensor
    y: torch.Tensor
    units: bq.Standardizer
    hidden: int

    @classmethod
    def load(cls, data: str, split: int, part: Part, *, division: int = 0, seed: int = 0) -> Self:
        """To test: fit all rows but the test rows. To choose: fit the training rows, judge by the validation rows.

        `division` decides which of the rows that are not for testing are for validation.
        """
        rows = bq.datasets.load(f"uci/{data}", split=split, seed=division)
        train, judged = (rows.refit, rows.test) if part == "test" else (rows.train, rows.val)
        units = bq.Standardizer.fit(train)
        hidden = 100 if data == "protein" else 50  # as all published tables have it
        own = derive_seed(seed, split, division)
        name = f"{data}-{part}-{split}-{division}-{seed}"
        return cls(name, own, units.transform(train), units.transform(judged).x, judged.y, units, hidden)

    def model(self, setting: Setting, seed: int) -> BayesianNetwork:
        """The network at initial weights that the seed decides."""
        is_output = setting.noise == "heteroscedastic"
        with isolated(seed):
            net = networks.mlp(self.train.x.shape[1], (self.hidden,), 2 if is_output else 1, setting.dropout)
        likelihood: likelihoods.Likelihood = likelihoods.Normal(scale="learned")
        if is_output:
            likelihood = likelihoods.HeteroscedasticNormal(minimum_scale=setting.minimum_scale)
        prior: priors.Prior = priors.Normal(scale=setting.prior_scale)
        return BayesianNetwork(net, priors.FanIn(prior) if setting.fan_in else prior, likelihood)

    def measures(self, predictive: GaussianPredictive) -> dict[str, float]:
        """In y's own units; the log-likelihood with the Jacobian of the standardisation."""
        raw = self.units.inverse(predictive)
        return {
            "rmse": float(root_mean_squared_error(raw, self.y)),
            "log_likelihood": float(raw.log_prob(self.y).mean()),
            "coverage": float(interval_coverage(raw, self.y, LEVEL)),
            "crps": float(crps(raw, self.y)),
        }


Judged = dict[str, dict[str, Any]]  # measures of what is judged, by its name


def judge(name: str, setting: Setting, problems: Sequence[Problem], file: Path) -> list[Judged]:
    """Fit the method to all problems in one pass, and judge it on each.

    Args:
        name: Of the setting. Of an ensemble, its first member is judged alone, too, as `name:1`.
        setting: Of the method.
        problems: Splits of one set.
        file: The checkpoint. Where it is there, the fit goes on from it, and its seconds are not known, and None.
    """
    resumed, begin = file.exists(), perf_counter()
    fits = fit(setting, problems, file)
    seconds = None if resumed else (perf_counter() - begin) / len(problems)
    found = []
    for problem, posteriors in zip(problems, fits, strict=True):
        seed = derive_seed(problem.seed, 2)
        if setting.method in ("dropout", "variational"):
            predictive = posteriors[0].predict(problem.x, num_samples=setting.num_samples, seed=seed)
        else:
            predictive = EnsemblePosterior.of(posteriors).predict(problem.x)
        judged = spread_alone(predictive) if setting.method == "spread" else predictive
        found.append({name: {**problem.measures(judged), "seconds": seconds}})
        if setting.method == "ensemble":
            alone = problem.measures(posteriors[0].predict(problem.x))
            found[-1][f"{name}:1"] = {**alone, "seconds": seconds and seconds / len(posteriors)}
    return found


def fit(setting: Setting, problems: Sequence[Problem], file: Path | None = None) -> list[list[bq.Posterior]]:
    """The members of each problem (one, but for ensembles), all trained in one pass."""
    models, data, trainings = [], [], []
    for problem in problems:
        for member in range(setting.num_members):
            models.append(problem.model(setting, derive_seed(problem.seed, 0, member)))
            data.append(problem.train)
            seed = derive_seed(problem.seed, 1, member)
            trainings.append(setting.training(len(problem.train), seed, None if trainings else file))
    fitted: Sequence[bq.Posterior]
    if setting.method == "variational":
        guide = partial(mean_field, initial_scale=setting.initial_scale)
        start: dict[str, Any] = {} if setting.anneals else {"kl_weight": 1.0, "estimator": "weights"}
        fitted = fit_mean_fields(models, data, trainings, guide=guide, **start)
    else:
        fitted = fit_modes(models, data, trainings, adversarial=setting.adversarial)
    if setting.method == "dropout":
        fitted = [DropoutPosterior(**vars(mode)) for mode in fitted]
    return [list(fitted[first : first + setting.num_members]) for first in range(0, len(fitted), setting.num_members)]


def checkpoint_name(name: str, setting: Setting, problems: Sequence[Problem]) -> str:
    """Of the file for one pass: any other setting or problem has another."""
    return f"{name}-{digest(setting)}-{digest({problem.name: problem.seed for problem in problems})}"


def spread_alone(predictive: GaussianPredictive) -> GaussianPredictive:
    """One Gaussian with the mean of the members and the variance between them: no noise, as for squared errors."""
    means = predictive.component_means
    variance = means.var(dim=0, correction=0, keepdim=True)
    return GaussianPredictive(mean=means.mean(dim=0, keepdim=True), noise_variance=0.0, function_variance=variance)
