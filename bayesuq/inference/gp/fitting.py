"""Gaussian processes: exact, sparse variational, and with a posterior over their hyperparameters.

A prior over functions f ~ GP(m, k) meets normal noise in closed form; any other likelihood, and many rows, meet it in a
normal law over the values at M inducing points. GPyTorch has the kernels.

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning; Hensman, Matthews & Ghahramani 2015, Scalable
    Variational Gaussian Process Classification; Milios et al. 2018, Dirichlet-based Gaussian Processes for Large-scale
    Calibrated Classification.
"""

from typing import Any, Literal, Unpack, cast, get_args

import gpytorch
import torch
from torch.distributed import ProcessGroup

from bayesuq.arrays import ArrayLike, check_count, check_device, check_positive, check_probability, to_floating
from bayesuq.data import Dataset
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.gp.algebra import jitter_told_once
from bayesuq.inference.gp.collapsed import fit_collapsed
from bayesuq.inference.gp.data import ProcessReader
from bayesuq.inference.gp.dirichlet import dirichlet_observations
from bayesuq.inference.gp.exact import ExactGpPosterior, fit_exact
from bayesuq.inference.gp.foreign import GpytorchPosterior, adopt_process, is_process, process_of
from bayesuq.inference.gp.foreign_fitting import fit_outside
from bayesuq.inference.gp.hyperparameters import counts_in_units
from bayesuq.inference.gp.marginal_likelihood import Observations
from bayesuq.inference.gp.sampled import SampledGpPosterior
from bayesuq.inference.gp.sampling import Sampling, fit_sampled
from bayesuq.inference.gp.search import Search
from bayesuq.inference.gp.sparse import NUM_INDUCING, fit_sparse
from bayesuq.inference.gp.sparse_posterior import SparseGpPosterior
from bayesuq.inference.training.captured import warn_of_no_capture
from bayesuq.inference.training.checkpoint import Checkpoint, claimed_seed
from bayesuq.inference.training.identity import ADDRESS
from bayesuq.inference.training.minibatches import all_rows, count_batches
from bayesuq.inference.training.options import (
    QUALITY,
    Training,
    TrainingOptions,
    default_epochs,
    sources,
    training_options,
)
from bayesuq.inference.training.shares import check_same_rows
from bayesuq.inference.training.workers import ALONE, Workers
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.likelihoods.counts import Poisson
from bayesuq.models.likelihoods.labels import Bernoulli, Categorical
from bayesuq.models.likelihoods.real import Normal

__all__ = ["ExactGpPosterior", "SampledGpPosterior", "SparseGpPosterior", "fit"]

Approximation = Literal["exact", "collapsed", "sparse", "dirichlet"]
Inference = Literal["optimise", "sample"]
EXACT_LIMIT = 4_000  # rows up to which None means exact: minutes of one core
BATCH_SIZE = 1024
LARGEST_RATE, STEPS_AT_LARGEST = 0.05, 500


@training_options(batch_size=BATCH_SIZE, learning_rate=None)
@jitter_told_once()
def fit(
    model: "GaussianProcess | gpytorch.models.ExactGP | gpytorch.models.ApproximateGP | GpytorchPosterior",
    data: Data,
    *,
    approximation: Approximation | None = None,
    hyperparameters: Inference = "optimise",
    noise_scale: ArrayLike | None = None,
    num_restarts: int = 3,
    max_iterations: int = 200,
    num_samples: int = 100,
    num_warmup: int = 200,
    num_chains: int = 4,
    num_inducing: int | None = None,
    natural_rate: float | None = None,
    num_draws: int = 8,
    data_parallel: bool | ProcessGroup = False,
    **options: Unpack[TrainingOptions],
) -> ExactGpPosterior | SparseGpPosterior | SampledGpPosterior | GpytorchPosterior:
    """Fit a Gaussian process.

    Epochs, minibatches, rates, validation and callbacks are of sparse fits; others make no steps over minibatches.

    Args:
        model: The prior over functions, and the likelihood; or an `ExactGP` of GPyTorch's with a `GaussianLikelihood`,
            which stays as it is, and whose hyperparameters start where they are. An `ApproximateGP` that has its
            `likelihood`, or what `bayesuq.adopt(model, likelihood)` made of it, is trained by its own ELBO likewise.
        data: Rows to fit, or a DataLoader of them, which exact inference reads once. All is computed in float64. A
            target of weight 0 is missing, also where other targets of its row are there.
        approximation: "exact", for normal noise; "collapsed", inducing points for normal noise, from all rows at once
            by L-BFGS; "sparse", inducing points for any likelihood and number of rows, by minibatches; "dirichlet",
            for classes, by exact regression on transformed labels. None is exact for normal noise and up to 4,000 rows
            in memory, else sparse; the posterior's `approximation` tells. Exact inference has a Cholesky factor up to
            10,000 rows, and conjugate gradients beyond, whose marginal likelihood is an estimate.
        hyperparameters: "optimise" finds the point of the largest marginal likelihood (times the density of what has a
            prior); "sample", with exact inference, draws them by NUTS, those without a prior under a weak one in the
            data's units.
        noise_scale: Exact and collapsed: known standard deviations of the targets' noise in units of y, (N,) or
            (N, D), such as errors of measurement, in the rows' order. The likelihood's noise comes on top (variances
            add), and is all that `predict` knows at new rows; a small number, `Normal(scale=1e-6)`, leaves none.
        num_restarts: Exact: runs of L-BFGS from different lengthscales and noises, of which the best one is kept.
            Collapsed: these on 1,000 rows, to start from.
        max_iterations: Exact and collapsed: of L-BFGS, for each run.
        num_samples: Sampled hyperparameters: kept draws of each chain.
        num_warmup: Sampled hyperparameters: transitions of each chain before.
        num_chains: Sampled hyperparameters: chains, one after another; each starts at a draw from the prior.
        num_inducing: Sparse and collapsed: M, at most; fewer where fewer rows differ. They start at k-means' centres.
            None is 512; of sparse fits of C functions, such as C classes, 512 / sqrt(C), which cost as much together,
            and 128 at least.
        natural_rate: Sparse: step size of the natural gradients that move q, at the start; it falls as the learning
            rate does. 0 moves q by Adam. None is 0.1 for all of bayesuq's likelihoods but the heteroscedastic
            one of classes, else 0.
        num_draws: Sparse: draws of f for E log p(y | f) where no quadrature is at hand, as for classes.
        data_parallel: Sparse: whether the processes of `torch.distributed` (or those of a group) fit one posterior
            together. Each calls this with rows of its own in `data` and `validation`, or with all rows, of which it
            takes its part, and all get the same posterior. Inducing points and units come from the first process:
            divide the rows at random. The `batch_size` is that of each process. Exact: whether they share out the
            restarts; each passes all rows, and the result has the bits of one process.
        num_epochs: Sparse: passes over the data. None makes 100, and as many as make 2,000 steps where that is more.
        learning_rate: Sparse: Adam's step size at the start. None takes 0.05 for up to 500 steps, and less in
            proportion to 1 / sqrt(steps) beyond.
        device: Where to compute; None is the CPU.
        seed: Makes the fit repeatable; None draws one from torch's generator.
        checkpoint: A path, or a `Checkpoint` of one, that the fit writes to as it goes; fits by L-BFGS write down what
            it was told, an evaluation being a step, and chains have a file each beside it. The same fit called again
            goes on from there and ends with the same bits. Where the file is there and `seed` is None, its seed is
            taken.

    Returns:
        An `ExactGpPosterior`, a `SparseGpPosterior`, a `SampledGpPosterior` of sampled hyperparameters, or the
        `GpytorchPosterior` of an `ApproximateGP`.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the kernel or the likelihood does not take; options out of range, or that the chosen
            approximation does not have.
        FloatingPointError: A covariance without Cholesky factor, with what is at fault: data, kernel or noise; a loss
            that stopped being finite.

    Warns:
        UserWarning: The fit has more than ten minutes to go, by what one evaluation takes.
        ConvergenceWarning: The hyperparameters had not converged; the targets teach no noise, or no two rows are alike
            under the fitted kernel; trajectories diverged.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import gp
        >>> data = Dataset([[0.0], [1.0], [2.0], [3.0]], [0.0, 0.5, 0.9, 1.0])
        >>> posterior = fit(gp.GaussianProcess(gp.Scale(gp.RBF())), data, seed=0)
        >>> posterior, posterior.predict(data.x).mean.shape
        (ExactGpPosterior(exact, Cholesky, 4 rows, on cpu), torch.Size([4, 1]))
    """
    if isinstance(model, gpytorch.models.ApproximateGP):
        model = cast(GpytorchPosterior, adopt_process(model))
    if isinstance(model, GpytorchPosterior):
        is_own = approximation in (None, "sparse") and hyperparameters == "optimise"
        if not is_own or noise_scale is not None or num_inducing is not None or data_parallel is not False:
            raise ValueError(
                "A model of GPyTorch's has inducing points and a likelihood of its own: leave `approximation`, "
                "`hyperparameters`, `noise_scale`, `num_inducing` and `data_parallel` out."
            )
        return _fit_outside(model, data, options)
    if is_process(model):
        model = process_of(model)
    if not isinstance(model, GaussianProcess):
        raise TypeError(
            f"`model` must be a bayesuq.models.gp.GaussianProcess; got {type(model).__name__}.{_remedy(model)}"
        )
    counts = {"num_restarts": num_restarts, "max_iterations": max_iterations, "num_samples": num_samples}
    counts |= {"num_chains": num_chains, "num_draws": num_draws}
    counts |= {} if num_inducing is None else {"num_inducing": num_inducing}
    for name, value in counts.items():
        check_count(value, name)
    check_count(num_warmup, "num_warmup", minimum=0)
    if natural_rate is not None and natural_rate != 1:
        check_probability(natural_rate, "natural_rate")
    place = torch.device("cpu") if options["device"] is None else check_device(options["device"])
    kind = _approximation(model, data, approximation, hyperparameters)
    _check_has(kind, hyperparameters, noise_scale, data_parallel)
    file = Checkpoint.of(options["checkpoint"])
    if hyperparameters == "sample" and file is not None:
        options["seed"] = file.claim(options["seed"])  # each chain has a file of its own
    if options["learning_rate"] is None:
        options["learning_rate"] = _default_rate(data, options, Workers.of(data_parallel))
    workers = ALONE
    if kind != "sparse" and data_parallel is not False:
        workers, data_parallel = _of_restarts(data_parallel, data, options), False
        file = file if workers.is_first else None
    training = Training.of(options, device=place, checkpoint=file, data_parallel=data_parallel)
    if kind == "sparse":
        sizes: dict[str, Any] = {"num_inducing": num_inducing, "num_draws": num_draws, "natural_rate": natural_rate}
        return fit_sparse(model, data, training, place, **sizes)
    observed = _observations(model, data, training, kind, noise_scale)
    key = training.key(QUALITY)
    if hyperparameters == "sample":
        sampling = Sampling(num_samples, num_warmup, num_chains)
        posterior = fit_sampled(model, observed, sampling, seed=key, progress=training.progress, checkpoint=file)
        _warn_of_divergences(posterior)
        return posterior
    num_inducing = NUM_INDUCING if num_inducing is None else num_inducing
    told = {"seed": training.seed, "model": ADDRESS.sub("", repr(model)), "approximation": kind}
    told |= {"num_inducing": num_inducing} if kind == "collapsed" else {}
    search = Search(num_restarts, max_iterations, key, file, told, counts=counts_in_units(file), workers=workers)
    if kind == "collapsed":
        return fit_collapsed(model, observed, search, num_inducing=num_inducing)
    return fit_exact(model, observed, search, kind=kind)


def _of_restarts(data_parallel: bool | ProcessGroup, data: Data, options: TrainingOptions) -> Workers:
    """The processes that share out the restarts, each of which is of all rows, under one seed."""
    workers = Workers.of(data_parallel)
    check_same_rows(workers, data)
    options["seed"] = claimed_seed(workers, None, options["seed"])
    return workers


def _check_has(kind: str, hyperparameters: str, noise_scale: ArrayLike | None, data_parallel: Any) -> None:
    """Refuse what the chosen approximation does not have."""
    shares = kind == "sparse" or (kind in ("exact", "dirichlet") and hyperparameters != "sample")
    if not shares and data_parallel is not False:
        asked = "hyperparameters='sample'" if hyperparameters == "sample" else f"approximation {kind!r}"
        raise ValueError(
            f"`data_parallel` is for sparse fits, and for the restarts of exact ones; got {asked}. Leave it out."
        )
    if noise_scale is not None and (kind not in ("exact", "collapsed") or hyperparameters == "sample"):
        asked = "hyperparameters='sample'" if hyperparameters == "sample" else f"approximation {kind!r}"
        raise ValueError(
            f"`noise_scale` is for exact and collapsed fits at point values of the hyperparameters; got {asked}. Pass "
            "approximation='collapsed' for many rows."
        )


def _fit_outside(model: GpytorchPosterior, data: Data, options: TrainingOptions) -> GpytorchPosterior:
    place = model.device if options["device"] is None else check_device(options["device"])
    if options["learning_rate"] is None:
        options["learning_rate"] = _default_rate(data, options)
    return fit_outside(model, data, Training.of(options, device=place), place)


def _remedy(model: Any) -> str:
    """How to make a process of the parts of a model of another kind."""
    if not isinstance(model, BayesianNetwork):
        return ""
    likelihood = model.likelihood if model.likelihood in (Categorical(), Bernoulli(), Poisson()) else None
    written = "" if likelihood is None else f"likelihood=bayesuq.models.likelihoods.{type(likelihood).__name__}()"
    return f" A process stands in the network's place:\n    model = bayesuq.models.gp.GaussianProcess({written})"


def _approximation(model: GaussianProcess, data: Any, wanted: str | None, hyperparameters: str) -> str:
    """The one that was asked for, or the one that fits likelihood and size."""
    if wanted is not None and wanted not in get_args(Approximation):
        known = ", ".join(repr(one) for one in get_args(Approximation))
        raise ValueError(f"`approximation` must be one of {known}, or None; got {wanted!r}.")
    if hyperparameters not in get_args(Inference):
        raise ValueError(f"`hyperparameters` must be 'optimise' or 'sample'; got {hyperparameters!r}.")
    is_normal = isinstance(model.likelihood, Normal)
    if hyperparameters == "sample" and (not is_normal or wanted not in (None, "exact")):
        raise ValueError("Hyperparameters are sampled with exact inference, which needs normal noise.")
    if hyperparameters == "sample":
        return "exact"
    if wanted == "dirichlet" and not isinstance(model.likelihood, Categorical):
        raise ValueError(f"Dirichlet classification needs a Categorical likelihood; got {model.likelihood!r}.")
    if wanted in ("exact", "collapsed") and not is_normal:
        raise ValueError(
            f"{wanted.capitalize()} inference needs normal noise, and the likelihood is {model.likelihood!r}. Pass "
            "approximation='sparse'" + (" or 'dirichlet'." if isinstance(model.likelihood, Categorical) else ".")
        )
    if wanted is not None:
        return wanted
    return "exact" if is_normal and isinstance(data, Dataset) and len(data) <= EXACT_LIMIT else "sparse"


def _observations(
    model: GaussianProcess, data: Data, training: Training, kind: str, noise_scale: ArrayLike | None
) -> Observations:
    """All rows at once; options that only a minibatch loop has are refused."""
    if training.validation is not None:
        raise ValueError("`validation` is for sparse fits; exact inference makes no steps over minibatches.")
    if training.callbacks:
        raise ValueError("`callbacks` are for sparse fits; exact inference makes no steps over minibatches.")
    if training.captured:
        warn_of_no_capture("exact inference makes no steps over minibatches")
    reader = ProcessReader(model, torch.device("cpu" if training.device is None else training.device))
    with sources(reader, data, training) as (source, _):
        rows = all_rows(source)
    if kind == "dirichlet":
        return dirichlet_observations(rows, reader.num_outputs)
    return Observations.of(rows, None if noise_scale is None else to_floating(noise_scale, "noise_scale"))


def _warn_of_divergences(posterior: SampledGpPosterior) -> None:
    if posterior.num_divergences:
        warn_of_fit(
            f"{posterior.num_divergences} of {posterior.num_members} draws follow a trajectory that diverged: the "
            "chains may have missed a part of the posterior. Give narrower priors, or more warm-up."
        )


def _default_rate(data: Any, options: TrainingOptions, workers: Workers = ALONE) -> float:
    """The learning rate for None, as the first process finds it; data of a wrong type are refused later."""
    num_epochs, batch_size = options["num_epochs"], cast(int, options["batch_size"])
    if num_epochs is not None:
        check_count(num_epochs, "num_epochs")
    check_count(batch_size, "batch_size")
    num_batches = workers.numbers(count_batches(data, batch_size) if hasattr(data, "__len__") else 1)[0]
    steps = num_batches * (default_epochs(num_batches) if num_epochs is None else num_epochs)
    return check_positive(LARGEST_RATE * min(1.0, (STEPS_AT_LARGEST / max(steps, 1)) ** 0.5), "learning_rate")
