"""One small posterior of every class, and one small fit of every kind of checkpoint, that files were written of.

These definitions must give the same fits in every version, so they use nothing but public names and data of their own.
A class or a kind that is new gets a new case here, and a file by `python -m tests.files_of_before.write NAME`; a file
that exists is never written again. Most come from the code of commit b017cac.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from bayesuq.data import Dataset, Standardizer
from bayesuq.inference import (
    automatic,
    confidence,
    dropout,
    ensemble,
    gp,
    hmc,
    laplace,
    local_temperature,
    map_estimate,
    microcanonical,
    quantile_calibration,
    sgmcmc,
    stacking,
    swag,
    temperature,
    variational,
)
from bayesuq.inference.automatic import outliers
from bayesuq.inference.posteriors.tables import of_table
from bayesuq.inference.posteriors.units import in_units
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.randomness import isolated
from bayesuq.tables.encoding import Columns, Target
from bayesuq.tables.kinds import Category, LeftOut, Number

FOLDER = Path(__file__).parent
NUMBERS = FOLDER / "numbers.json"

SHORT = {"num_epochs": 3, "batch_size": 12, "learning_rate": 0.01, "seed": 1, "progress": False}
CHAINS = {"num_samples": 6, "num_warmup": 8, "num_chains": 2, "seed": 1, "progress": False}
SEARCH = {"num_restarts": 2, "max_iterations": 6, "seed": 1, "progress": False}


@dataclass(frozen=True)
class Case:
    """A fit.

    Attributes:
        fit: Takes `checkpoint=` where it is one of `CHECKPOINTS`.
        x: Inputs that are predicted at.
        loads: What `load` must be given beside the file.
        writes: After how many writes of checkpoints the fit was stopped.
    """

    fit: Callable[..., Posterior]
    x: Tensor
    loads: Mapping[str, Any] = field(default_factory=dict)
    writes: int = 0


def inputs(num_points: int = 36, phase: float = 0.0) -> Tensor:
    """Numbers in [-1, 1] without any generator, (N, 3)."""
    place = torch.arange(num_points * 3, dtype=torch.float64).reshape(num_points, 3)
    return torch.sin(12.9898 * place + phase)


def measured(num_points: int = 36, phase: float = 0.0) -> Dataset:
    """Real targets of a curved function."""
    x = inputs(num_points, phase)
    return Dataset(x, torch.sin(3 * x.sum(dim=1)) + 0.2 * torch.cos(78.233 * x.prod(dim=1)))


def labelled(num_points: int = 36, phase: float = 0.0) -> Dataset:
    """Three classes along a curve."""
    x = inputs(num_points, phase)
    return Dataset(x, (torch.sin(3 * x.sum(dim=1)) * 1.5 + 1.5).long())


def pixels(num_images: int = 6) -> Dataset:
    """Two classes of pixels, (N, 6, 6), of images (N, 1, 6, 6)."""
    x = torch.sin(12.9898 * torch.arange(num_images * 36, dtype=torch.float64)).reshape(num_images, 1, 6, 6)
    return Dataset(x, (x[:, 0] > 0.2).long())


def regression(**options: Any) -> BayesianNetwork:
    with isolated(0):
        net = networks.mlp(3, (4,), 1, **options)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale="learned"))


def classification(bias: priors.Prior | None = None) -> BayesianNetwork:
    with isolated(0):
        net = networks.mlp(3, (4,), 3)
    return BayesianNetwork(net, {"*.bias": bias or priors.StudentT(), "*": priors.Normal()}, likelihoods.Categorical())


def normal_classification() -> BayesianNetwork:
    return classification(priors.Normal(scale=2.0))


def segmentation() -> BayesianNetwork:
    with isolated(0):
        net = networks.unet(1, 2, depth=1, width=2)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


def program(x: Tensor, y: Tensor | None = None, num_data: int | None = None) -> Tensor:
    """A straight line as a Pyro program."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.Normal(x @ slope, 0.2), obs=y)


def real_process() -> processes.GaussianProcess:
    return processes.GaussianProcess(
        processes.Scale(processes.RBF()), mean=processes.ZeroMean(), likelihood=likelihoods.Normal(scale="learned")
    )


def _of(fit: Callable[..., Any], model: Callable[[], Any], data: Dataset, **options: Any) -> Callable[..., Posterior]:
    return lambda **more: fit(model(), data, **options, **more)


def _after(
    first: Callable[..., Posterior], fit: Callable[..., Any], data: Dataset, **options: Any
) -> Callable[..., Posterior]:
    """A fit that takes a fitted posterior."""
    return lambda **more: fit(first(), data, **options, **more)


UNITS = Standardizer(
    torch.full((1, 3), 50_000.0).double(),
    torch.full((1, 3), 20_000.0).double(),
    torch.tensor([300.0]).double(),
    torch.tensor([40.0]).double(),
    clip=0.8,
    columns=("rooms", "income", "age"),
)
COLUMNS = Columns(
    (LeftOut("owner", "every cell is empty"), Number("rooms"), Category("city", ("Bergen", "Oslo"), num_rare=3)),
    Target("price"),
    medians=(3.0,),
    can_be_missing=(False,),
)
MODE = _of(map_estimate.fit, regression, measured(), **SHORT)
CLASSIFIER = _of(map_estimate.fit, classification, labelled(), **SHORT)
MEAN_FIELD = _of(variational.fit, regression, measured(), **SHORT)
SEGMENTER = _of(map_estimate.fit, segmentation, pixels(), num_epochs=2, batch_size=3, learning_rate=0.01, seed=1)
CURVED = _of(laplace.fit, regression, measured(), structure="diagonal", **SHORT)
X = inputs(5, phase=1.0)
IMAGES = pixels(2).x

# A mode, and a process, mixed; and a table to which the first method is fitted for its least number of epochs.
PROCESS = _of(gp.fit, real_process, measured(), approximation="exact", **SEARCH)


def MIXED() -> Posterior:  # noqa: N802 - a fit as those above
    return stacking.StackedPosterior(members=(MODE(), PROCESS()), shares=(1, 3))


POSTERIORS = {
    "StackedPosterior": Case(MIXED, X),
    "AutomaticPosterior": Case(lambda: automatic.regress(measured().x, measured().y, budget=1e-9, seed=1), X),
    "OutlierPosterior": Case(lambda: outliers.OutlierPosterior(posterior=MIXED(), share=0.25, scale=2.0), X),
    "MapPosterior": Case(MODE, X),
    "UnitsPosterior": Case(lambda: in_units(MODE(), UNITS), 20_000 * X + 50_000),
    "TablePosterior": Case(
        lambda: of_table(
            in_units(MODE(), UNITS), COLUMNS, Dataset(20_000 * measured().x + 50_000, measured().y * 40 + 300)
        ),
        20_000 * X + 50_000,
    ),
    "FixedDraws": Case(lambda: MEAN_FIELD().fixed_draws(4, seed=2), X),
    "VariationalPosterior": Case(MEAN_FIELD, X),
    "CorrelatedPosterior": Case(
        _of(variational.fit, regression, measured(), guide=variational.low_rank(2), **SHORT), X
    ),
    "GuidePosterior": Case(
        _of(variational.fit, regression, measured(), guide=AutoNormal, **SHORT), X, {"guide": AutoNormal}
    ),
    "ProgramPosterior": Case(_of(variational.fit, lambda: program, measured(), **SHORT), X, {"model": program}),
    "ProgramMode": Case(_of(map_estimate.fit, lambda: program, measured(), **SHORT), X, {"model": program}),
    "ProgramLaplace": Case(
        _of(laplace.fit, lambda: program, measured(), structure="full", **SHORT), X, {"model": program}
    ),
    "ProgramEnsemble": Case(
        _of(ensemble.fit, lambda: program, measured(), num_members=2, **SHORT), X, {"model": program}
    ),
    "ProgramChains": Case(
        _of(hmc.fit, lambda: program, measured(), chain_method="sequential", **CHAINS), X, {"model": program}
    ),
    "DropoutPosterior": Case(_of(dropout.fit, lambda: regression(dropout=0.3), measured(), **SHORT), X),
    "EnsemblePosterior": Case(
        _of(ensemble.fit, lambda: regression(batch_norm=True), measured(), num_members=2, **SHORT), X
    ),
    "LaplacePosterior": Case(
        _of(laplace.fit, normal_classification, labelled(), structure="kronecker", subset="last_layer", **SHORT), X
    ),
    "SampledLaplacePosterior": Case(lambda: CURVED().sampled, X),
    "HmcPosterior": Case(_of(hmc.fit, classification, labelled(), chain_method="sequential", **CHAINS), X),
    "MicrocanonicalPosterior": Case(
        _of(
            microcanonical.fit,
            classification,
            labelled(),
            **SHORT,
            num_members=2,
            num_samples=3,
            num_warmup=8,
            thinning=2,
        ),
        X,
    ),
    "SgmcmcPosterior": Case(_of(sgmcmc.fit, classification, labelled(), batch_size=12, **CHAINS), X),
    "SwagPosterior": Case(
        _of(swag.fit, regression, measured(), rank=2, swa_share=0.7, swa_learning_rate=1e-4, **SHORT), X
    ),
    "TemperaturePosterior": Case(_after(CLASSIFIER, temperature.fit, labelled(24, 2.0), vector=True, seed=1), X),
    "LocalTemperaturePosterior": Case(
        _after(SEGMENTER, local_temperature.fit, pixels(4), hidden=2, num_epochs=2, seed=1), IMAGES
    ),
    "QuantileCalibratedPosterior": Case(
        _after(MODE, quantile_calibration.fit, measured(24, 2.0), num_pieces=3, seed=1), X
    ),
    "ConfidencePosterior": Case(
        _after(CLASSIFIER, confidence.fit, labelled(), hidden=(3,), loss="squared", num_fine_tuning_epochs=1, **SHORT),
        X,
    ),
    "ExactGpPosterior": Case(_of(gp.fit, real_process, measured(), approximation="exact", **SEARCH), X),
    "SparseGpPosterior": Case(
        _of(gp.fit, real_process, measured(), approximation="sparse", num_inducing=4, **SHORT), X
    ),
    "SampledGpPosterior": Case(_of(gp.fit, real_process, measured(12), hyperparameters="sample", **CHAINS), X),
}

CHECKPOINTS = {
    "map": Case(
        _of(map_estimate.fit, lambda: regression(batch_norm=True), measured(), validation=measured(12, 2.0), **SHORT),
        X,
        writes=5,
    ),
    "variational": Case(  # whose start was another one by default
        _of(variational.fit, regression, measured(), kl_weight=1.0, estimator="weights", **SHORT), X, writes=5
    ),
    "guide": Case(POSTERIORS["GuidePosterior"].fit, X, writes=5),
    "program": Case(POSTERIORS["ProgramPosterior"].fit, X, writes=5),
    "dropout": Case(POSTERIORS["DropoutPosterior"].fit, X, writes=5),
    "ensemble": Case(_of(ensemble.fit, regression, measured(), num_members=2, vectorised=False, **SHORT), X, writes=16),
    "ensemble, together": Case(
        _of(ensemble.fit, regression, measured(), num_members=2, vectorised=True, **SHORT), X, writes=5
    ),
    "swag": Case(POSTERIORS["SwagPosterior"].fit, X, writes=8),
    "sgmcmc": Case(POSTERIORS["SgmcmcPosterior"].fit, X, writes=10),
    "hmc": Case(POSTERIORS["HmcPosterior"].fit, X, writes=20),
    "hmc, together": Case(
        _of(hmc.fit, classification, labelled(), kernel="hmc", num_steps=3, chain_method="vectorised", **CHAINS),
        X,
        writes=10,
    ),
    "gp, exact": Case(POSTERIORS["ExactGpPosterior"].fit, X, writes=9),
    "gp, sparse": Case(POSTERIORS["SparseGpPosterior"].fit, X, writes=5),
    "gp, sampled": Case(POSTERIORS["SampledGpPosterior"].fit, X, writes=20),
    "temperature": Case(
        _after(
            _of(ensemble.fit, classification, labelled(), num_members=2, **SHORT),
            temperature.fit,
            labelled(24, 2.0),
            vector=True,
            seed=1,
        ),
        X,
        writes=4,
    ),
    "confidence": Case(POSTERIORS["ConfidencePosterior"].fit, X, writes=13),
}


def numbers(posterior: Posterior, x: Tensor) -> dict[str, list[float]]:
    """What is predicted: every number of the predictive's mean and of its total uncertainty."""
    predictive: PredictiveDistribution = posterior.predict(x, num_samples=4, seed=0)
    found = {"mean": predictive.mean, "total": predictive.total}
    return {name: value.double().flatten().tolist() for name, value in found.items()}


def posterior_file(name: str) -> Path:
    """Where a saved posterior lies."""
    return FOLDER / "posteriors" / f"{name}.safetensors"


def checkpoint_archive(name: str) -> Path:
    """Where the files of a stopped fit lie, zipped: states of generators are large and half of them is zeros."""
    return FOLDER / "checkpoints" / f"{name.replace(', ', '-')}.zip"
