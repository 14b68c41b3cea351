"""Methods by name: `map`, `variational`, ...; and `ensemble`, `temperature` and the like, of `map` or `:METHOD`.

All of these but the ensemble are fitted to the posterior of the method that they stand on, which stays as it is.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from bayesuq import inference
from bayesuq.cli.launched import are_several, is_first
from bayesuq.cli.output import file_name
from bayesuq.cli.problem import Problem
from bayesuq.cli.settings import METHODS, ChainOptions, PredictionOptions, TrainingOptions, UsageError
from bayesuq.data import Dataset
from bayesuq.evaluation.diagnostics.fit_quality import evaluate_fit
from bayesuq.evaluation.report.measure import Measure
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference import dropout, map_estimate, quantile_calibration
from bayesuq.inference.catalogue import BY_COMMAND, commands
from bayesuq.inference.confidence import fitting as confidence
from bayesuq.inference.ensemble import fitting as ensemble
from bayesuq.inference.laplace import fitting as laplace
from bayesuq.inference.posteriors.leave_one_out import FEWEST_DRAWS, LeavesOneOut
from bayesuq.inference.quantile_calibration import QuantileCalibratedPosterior
from bayesuq.inference.temperature import fitting as temperature
from bayesuq.inference.training import options as training_options
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.variational import fitting as variational
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.options import nearest
from bayesuq.posterior import Posterior

NUM_RATIOS = 500  # draws that tell whether a Gaussian reaches the posterior: k-hat to about 0.1
CHECKPOINT_SECONDS = 60.0  # between two writes
MOST_FORWARD_ROWS = 5_000_000  # a matter of seconds; on larger data the reach is not looked at

MOST_OF_PROCESS = 1000  # rows of a process that nobody asked for; twice as many take eight times as long
FEWEST_PIECES, MOST_PIECES, ROWS_A_PIECE = 4, 20, 10  # of the map of levels: ends of 90 % intervals are knots of 20
MOST_LEFT_OUT = 10_000  # rows of the fit: their levels are known to half a percent

NETWORKS, CHAINS = commands("network"), commands("chains")
SHARED = ("map", "variational", "dropout", "ivon", "swag")  # whose steps several processes make together
WRAPPERS = commands("wrapper")  # of a posterior that is fitted already
CALIBRATION = "quantile_calibration"
REREAD = (temperature.TemperaturePosterior, QuantileCalibratedPosterior)


@dataclass(frozen=True)
class Method:
    """A method, and the one that it stands on.

    Attributes:
        name: As the user wrote it.
        kind: One of `METHODS`.
        base: The members of an ensemble, or what a wrapper is of; None for the others.
    """

    name: str
    kind: str
    base: "Method | None" = None

    @classmethod
    def of(cls, name: str) -> "Method":
        """Read a name.

        Raises:
            UsageError: No such method, or one that cannot stand on the other.
        """
        kind, colon, rest = name.partition(":")
        if kind not in METHODS:
            raise UsageError(f"There is no method {kind!r}; {nearest(kind, list(METHODS))}.")
        if BY_COMMAND[kind].kind in ("network", "chains", "process"):
            if colon:
                raise UsageError(f"{kind} stands on no other method; got {name!r}.")
            return cls(name, kind)
        base = cls.of(rest if colon else "map")
        if base.kind not in _bases(kind):
            raise UsageError(f"{kind} cannot stand on {base.name!r}; got {name!r}.")
        return cls(name, kind, base)

    @property
    def key(self) -> str:
        """The same for names that mean the same, `temperature` and `temperature:map`."""
        return self.kind if self.base is None else f"{self.kind}:{self.base.key}"

    @property
    def wraps(self) -> bool:
        """Whether it is fitted to the posterior of another method."""
        return self.kind in WRAPPERS

    @property
    def has_dropout(self) -> bool:
        """Whether its network needs dropout layers."""
        return self.kind == "dropout" or (self.base is not None and self.base.has_dropout)


def _bases(kind: str) -> tuple[str, ...]:
    """What a method of others can stand on."""
    if kind not in WRAPPERS:
        return NETWORKS
    return (*NETWORKS, *CHAINS, "ensemble", *(commands("process") if kind == CALIBRATION else ()))


def chosen_for(problem: Problem) -> str:
    """The method of a fit that names none: of numbers, intervals of it hold what they say."""
    x = problem.split.train.x
    is_small_table = problem.own is None and isinstance(x, Tensor) and x.ndim == 2 and len(x) <= MOST_OF_PROCESS
    name = "gp" if is_small_table and not problem.split.train.is_labelled else "variational"
    return f"{CALIBRATION}:{name}" if _has_one_number(problem) and problem.own is None else name


def _has_one_number(problem: Problem) -> bool:
    """Whether a row has one real target, whose noise is normal on the command line."""
    return not problem.split.train.is_labelled and problem.split.train.y.shape[1:] == (1,)


def read_methods(names: list[str], problem: Problem) -> list[Method]:
    """The methods of these names.

    Raises:
        UsageError: None, one twice, an unknown one, or one that does not go with the data.
    """
    methods = [Method.of(name) for name in names]
    keys = [method.key for method in methods]
    if not methods or len(set(keys)) < len(keys):
        raise UsageError(f"Name at least one method, and none twice; got {', '.join(names) or 'none'}.")
    kinds = {method.kind for method in methods}
    for kind, what in (("temperature", "Temperature scaling"), ("confidence", "A confidence")):
        if kind in kinds and not problem.split.train.is_labelled:
            raise UsageError(f"{what} is for labels; {problem.name} has real targets.")
    if CALIBRATION in kinds and not _has_one_number(problem):
        raise UsageError(f"Quantile calibration is for one real target a row; {problem.name} has others.")
    if problem.own is not None and "gp" in kinds:
        raise UsageError("A Gaussian process stands in a network's place, not around one of your own; leave out gp.")
    if problem.is_map and "gp" in kinds:
        raise UsageError(f"A Gaussian process has no function for every pixel, as {problem.name} needs; leave out gp.")
    if problem.is_map and "confidence" in kinds:
        raise UsageError(f"A confidence is of one label a row; {problem.name} has one for every pixel.")
    return methods


@dataclass(frozen=True, eq=False)
class Fitted:
    """A posterior, and how its fit went.

    Attributes:
        posterior: In the units that were fitted.
        seconds: Wall time, that of a method underneath included.
        warnings: What the fit warned of.
        quality: How far the fit can be trusted, for methods that can tell.
    """

    posterior: Posterior
    seconds: float
    warnings: tuple[str, ...]
    quality: tuple[Measure, ...] = ()

    @property
    def losses(self) -> tuple[tuple[float, ...], ...]:
        """The loss of each epoch, in nats a data point, of each network that was trained."""
        return _losses(self.posterior)

    @property
    def is_scaled(self) -> bool:
        """Whether it is another method's networks read otherwise, whose losses are those of that method."""
        return isinstance(self.posterior, REREAD)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the posterior."""
        return {"seconds": self.seconds, "warnings": self.warnings, "losses": self.losses}


@dataclass(frozen=True)
class FitOptions:
    """What the commands tell every fit.

    Attributes:
        training: How long.
        chains: How long, of chains.
        prediction: Seed, device, and draws of what a temperature or a confidence is of.
        checkpoints: A folder where each fit has a file, from which it goes on.
        alone: Whether each fit is one process's, however many there are.
    """

    training: TrainingOptions
    chains: ChainOptions
    prediction: PredictionOptions
    checkpoints: Path | None = None
    alone: bool = False

    @property
    def shares_steps(self) -> bool:
        """Whether several processes make each fit together."""
        return are_several() and not self.alone

    def checkpoint(self, method: Method) -> Checkpoint | None:
        """Where a method's fit writes."""
        if self.checkpoints is None:
            return None
        return Checkpoint(self.checkpoints / file_name(method.key), every_seconds=CHECKPOINT_SECONDS)

    def keywords(self, checkpoint: Checkpoint | None) -> training_options.TrainingOptions:
        """What a `fit` that optimises is called with."""
        return {
            "num_epochs": self.training.num_epochs,
            "batch_size": self.training.batch_size,
            "learning_rate": self.training.learning_rate,
            "device": self.prediction.device,
            "seed": self.prediction.seed,
            "checkpoint": None if self.shares_steps and not is_first() else checkpoint,
        }


def fit(method: Method, problem: Problem, options: FitOptions, fitted: Mapping[str, Fitted]) -> Fitted:
    """Fit one method.

    Args:
        method: Which.
        problem: To what.
        options: How.
        fitted: What these stand on, by `Method.key`; fitted first where it is not there.
    """
    if not method.wraps or method.base is None:
        alone = _timed(lambda: _fit_alone(method, problem, options))
        return replace(alone, quality=_quality(alone.posterior, problem, options.prediction.seed))
    base = fitted.get(method.base.key) or fit(method.base, problem, options, fitted)
    own = _timed(lambda: _wrap(base.posterior, method, problem, options))
    quality = base.quality if method.kind == CALIBRATION else ()  # its draws are the same
    return Fitted(own.posterior, base.seconds + own.seconds, base.warnings + own.warnings, quality)


def write_posterior(posterior: Posterior, path: Path, problem: Problem) -> None:
    """Save it; around a network of the user's own without a word, for the commands read it with `--network`."""
    with warnings.catch_warnings():
        if problem.own is not None:
            warnings.simplefilter("ignore", UserWarning)
        problem.for_file(posterior).save(path)


def _wrap(posterior: Posterior, method: Method, problem: Problem, options: FitOptions) -> Posterior:
    """A temperature is of held-out rows; a confidence learns from all rows that are not tested on."""
    number, seed, file = options.prediction.num_samples, options.prediction.seed, options.checkpoint(method)
    if method.kind == CALIBRATION:
        return _with_calibrated_quantiles(posterior, problem, options)
    if method.kind == "temperature":
        rows = problem.in_fitted_units(problem.split.val)
        return temperature.fit(posterior, rows, num_samples=number, seed=seed, checkpoint=file)
    return confidence.fit(
        posterior,
        problem.in_fitted_units(problem.split.refit),
        num_samples=number,
        num_epochs=options.training.num_epochs,
        batch_size=options.training.batch_size,
        seed=seed,
        checkpoint=file,
    )


def _with_calibrated_quantiles(
    posterior: Posterior, problem: Problem, options: FitOptions
) -> QuantileCalibratedPosterior:
    """By the rows of the fit, each left out, where the method can say what it would be without one; else by others."""
    is_process, is_drawn = isinstance(posterior, LeavesOneOut), isinstance(posterior, variational.VariationalPosterior)
    leaves_out, seed = is_process or is_drawn, options.prediction.seed
    number = max(options.prediction.num_samples, FEWEST_DRAWS) if is_drawn else options.prediction.num_samples
    rows = problem.in_fitted_units(problem.split.train if leaves_out else problem.split.val)
    if is_drawn and len(rows) > MOST_LEFT_OUT:
        rows = rows.rows(torch.linspace(0, len(rows) - 1, MOST_LEFT_OUT).long())
    pieces = min(MOST_PIECES, len(rows) // ROWS_A_PIECE)
    reason = f"{len(rows)} rows are too few to calibrate them by."
    if pieces >= FEWEST_PIECES:
        try:
            return quantile_calibration.fit(
                posterior, rows, num_pieces=pieces, leave_one_out=leaves_out, num_samples=number, seed=seed
            )
        except quantile_calibration.CoincidingLevelsError as error:
            reason = str(error)
    warn_of_fit(f"Quantiles are as they were fitted. {reason}")
    return QuantileCalibratedPosterior(posterior=posterior, knots=(0.0, 1.0), levels=(0.0, 1.0))


def _fit_alone(method: Method, problem: Problem, options: FitOptions) -> Posterior:
    """A method that stands on no other one, or an ensemble."""
    data, seed = problem.in_fitted_units(problem.split.train), options.prediction.seed
    keywords: dict[str, Any] = {**options.keywords(options.checkpoint(method))}
    if method.kind == "gp":  # in the network's place; of images, on the features of that network
        return inference.gp.fit(problem.process(seed=seed), data, **keywords)  # imported here, with GPyTorch
    if problem.own is not None and method.kind in AROUND:
        return AROUND[method.kind](problem, data, options)
    is_chain = method.kind in CHAINS
    model = problem.model(seed=seed, with_dropout=method.has_dropout, infers_noise=is_chain)
    if is_chain:
        return _fit_chains(method, model, data, options, problem)
    if method.kind == "laplace" and problem.is_map:
        keywords["subset"] = "last_layer"  # the curvature in all weights is of all pairs of pixels
    if method.kind in SHARED and options.shares_steps:
        keywords |= {"data_parallel": True, "checkpoint": options.checkpoint(method)}
    if method.base is not None:
        keywords |= {
            "num_members": options.training.num_members,
            "member_fit": _fit_of(method.base),
            **_starts(problem),
        }
    return _fit_of(method)(model, data, **keywords)


def _laplace_around(problem: Problem, data: Dataset, options: FitOptions) -> Posterior:
    where: training_options.TrainingOptions = {"device": options.prediction.device, "seed": options.prediction.seed}
    return laplace.fit(problem.adopted(), data, subset="last_layer" if problem.is_map else None, **where)


AROUND: dict[str, Callable[[Problem, Dataset, FitOptions], Posterior]] = {  # a network of the user's own, not training
    "map": lambda problem, _data, options: _placed(problem.adopted(), options),
    "dropout": lambda problem, _data, options: _placed(dropout.around(problem.adopted(with_dropout=True)), options),
    "laplace": _laplace_around,
}


def _placed(posterior: Posterior, options: FitOptions) -> Posterior:
    device = options.prediction.device
    return posterior if device is None else posterior.to(device)


def _starts(problem: Problem) -> dict[str, Any]:
    """What members start from: around a network of the user's own from that, told apart by the rows that they see."""
    return {} if problem.own is None else {"initialise": "keep", "bootstrap": True}


def _fit_chains(
    method: Method, model: BayesianNetwork, data: Dataset, options: FitOptions, problem: Problem
) -> Posterior:
    """HMC from the prior; methods that read minibatches from a mode, with a checkpoint of its own.

    A minibatch's gradient at a draw from the prior may throw a chain out of the posterior's reach.
    """
    file, chains = options.checkpoint(method), options.chains
    first = options.keywords(None if file is None else file.of_part("start"))
    if method.kind == "microcanonical":  # which trains the networks that it begins at
        given = {name: value for name, value in options.keywords(file).items() if value is not None}
        number = options.training.num_members
        if problem.own is not None:
            keywords = {**first, "num_members": number, **_starts(problem)}
            given["start"] = ensemble.fit(model, data, **keywords)
        return _fit_of(method)(
            model, data, num_members=number, num_warmup=chains.num_warmup, num_samples=chains.num_draws, **given
        )
    return _fit_of(method)(
        model,
        data,
        num_chains=chains.num_chains,
        num_warmup=chains.num_warmup,
        num_samples=chains.num_draws,
        start="prior" if method.kind == "hmc" else _mode(model, data, first, problem),
        device=options.prediction.device,
        seed=options.prediction.seed,
        checkpoint=file,
    )


def _mode(
    model: BayesianNetwork, data: Dataset, keywords: training_options.TrainingOptions, problem: Problem
) -> Posterior:
    """Where chains of minibatches begin: the user's own network, where there is one."""
    if problem.own is not None:
        return problem.adopted(infers_noise=True)
    return map_estimate.fit(model, data, **keywords)


def _fit_of(method: Method) -> Callable[..., Posterior]:
    fit: Callable[..., Posterior] = getattr(inference, BY_COMMAND[method.kind].name).fit
    return fit


def _quality(posterior: Posterior, problem: Problem, seed: int) -> tuple[Measure, ...]:
    if not isinstance(posterior, variational.VariationalPosterior):
        return ()
    data, ratios = problem.in_fitted_units(problem.split.train), None
    if len(data) * NUM_RATIOS <= MOST_FORWARD_ROWS:
        ratios = posterior.log_importance_ratios(data, num_samples=NUM_RATIOS, seed=seed).cpu()
    return evaluate_fit(
        losses=posterior.history.loss,
        scale_movement=posterior.scale_movement,
        log_ratios=ratios,
        kl_weight=posterior.kl_weight,
    )


def _timed(work: Callable[[], Posterior]) -> Fitted:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        begin = perf_counter()
        posterior = work()
        seconds = perf_counter() - begin
    return Fitted(posterior, seconds, tuple(dict.fromkeys(str(warning.message) for warning in caught)))


def _losses(posterior: Any) -> tuple[tuple[float, ...], ...]:
    if isinstance(posterior, ensemble.EnsemblePosterior):
        return tuple(loss for member in posterior.members for loss in _losses(member))
    if isinstance(posterior, REREAD):
        return _losses(posterior.posterior)
    loss = posterior.history.loss if hasattr(posterior, "history") else ()
    return (loss,) if loss else ()  # chains have none, nor has a network that was trained elsewhere
