"""Bayes by Backprop: a factorised Gaussian over the weights, fitted by stochastic variational inference.

It maximises the ELBO of `bayesuq.inference.variational.elbo` over the means and the log scales of q = N(loc, diag
scale^2), one draw of the weights a minibatch by default. Any other Pyro guide takes Pyro's ordinary route
(`bayesuq.inference.variational.guided_program`); of programs, the guides named here have a faster one
(`bayesuq.inference.variational.normal_program`).

Reference:
    Blundell et al. 2015, Weight Uncertainty in Neural Networks, section 3.2 (with the KL in closed form).
"""

from os import PathLike
from typing import Any, Unpack

from torch import nn

from bayesuq.arrays import check_count, check_positive
from bayesuq.data import Dataset
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.programs import GuideBuilder, correlated, factorised
from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.convergence import (
    MOST_RATIOS,
    is_cheap,
    scale_slope,
    warn_unless_learned,
    warn_unless_reaching,
)
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.options import (
    BATCH_SIZE,
    QUALITY,
    Training,
    TrainingOptions,
    session,
    training_options,
)
from bayesuq.inference.training.workers import Group, check_alone
from bayesuq.inference.variational.activation_noise import Estimator
from bayesuq.inference.variational.correlated import CorrelatedObjective, CorrelatedPosterior
from bayesuq.inference.variational.defaults import (
    default_estimator,
    default_learning_rate,
    default_weight,
    learns_noise,
)
from bayesuq.inference.variational.factorised import EvidenceObjective, VariationalPosterior
from bayesuq.inference.variational.guide_posterior import GuidePosterior, fit_guide
from bayesuq.inference.variational.guides import (
    CorrelatedGuide,
    MeanFieldGuide,
    autoguide,
    full_rank,
    low_rank,
    mean_field,
)
from bayesuq.inference.variational.program_posterior import ProgramPosterior, fit_program
from bayesuq.inference.variational.pruning import warn_if_pruned
from bayesuq.inference.variational.tempering import Tempering, Weight, annealed
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.program import Observed, Program, check_program, check_unnamed

__all__ = ["VariationalPosterior", "annealed", "autoguide", "fit", "full_rank", "low_rank", "mean_field"]

OF_PROGRAMS: dict[Any, GuideBuilder] = {mean_field: factorised, full_rank: correlated}  # Pyro's own of these names
PROGRAM_NORM = 10.0  # a program's latents may start far off: Adam would remember their gradients for the whole fit


@training_options(batch_size=None, learning_rate=None)
@on_features()
def fit(
    model: BayesianNetwork | Program,
    data: Data,
    *,
    observed: Observed = None,
    guide: GuideBuilder = mean_field,
    num_draws: int = 1,
    scale_rate: float = 1.0,
    kl_weight: Weight | None = None,
    estimator: Estimator | None = None,
    data_parallel: bool | Group = False,
    **options: Unpack[TrainingOptions],
) -> "VariationalPosterior | CorrelatedPosterior | GuidePosterior | ProgramPosterior":
    """Fit an approximate posterior, by default a factorised Gaussian, by stochastic variational inference.

    Args:
        model: The joint density: a network, or a Pyro program of yours with global latents and an observed site `y`
            (see `bayesuq.inference.variational.program_posterior`).
        data: Rows to fit, or a DataLoader of them.
        observed: Of a program, the names of its observed sites: see `hmc.fit`.
        guide: From the model to a new guide at its start. `functools.partial(mean_field, initial_scale=...)` sets the
            initial posterior scale; `low_rank(rank)` and `full_rank` let weights correlate.
            `autoguide(AutoLowRankMultivariateNormal, rank=5)`, or any function that builds a Pyro guide, takes Pyro's
            ordinary, slower route; a guide that is a function itself is passed as `guide=lambda model: my_guide`.
        num_draws: Draws of the weights a step; more make the gradient less noisy at as many times the cost.
        scale_rate: Learning rate of the log scales (mean field's and the likelihood's) over that of the means.
        kl_weight: Factor on the divergence: 1 is Bayes, any other number a tempered posterior, which the report names.
            A function of the share of steps made, such as `annealed()`, changes it on the way. None takes `annealed()`
            where real targets have a noise that is learned, since the data would not pay for a unit before it has
            fallen; and 1 otherwise, where schedule="constant", or where the prior has a mean.
        estimator: For mean field under normal priors, where the noise of a step enters: "weights", one draw for all
            rows; "local", the outputs of linear layers, a draw for every row, exact where a row meets a layer once;
            "flipout", one draw that a row's own signs turn, for linear and convolution layers. They have the same
            expected gradient; the last two are less noisy where batches are large. Prediction draws weights always.
            None takes "local" where a noise is learned, for plain sequences of linear layers under normal priors.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, fit
            one posterior together: each reads its part of `data`, or rows of its own, in minibatches of `batch_size`.
        batch_size: Rows in a minibatch, at most; an epoch is divided into batches of equal size, give or take one. A
            DataLoader has its own. None takes 128; or all rows, for a program that does not take `num_data`.
        learning_rate: Adam's step size of the means at the start. None takes 0.05 for up to 500 steps, and less in
            proportion to 1 / sqrt(steps) beyond: in a short fit at a small rate the scales, which have several nats to
            go, would stay where they start; at a large one, noise grows in a wide network before the means have found
            the signal.
        max_grad_norm: Clips the norm of the gradient of the loss per data point. None clips at 10 for a program, and
            not at all for a network.
        validation: Rows whose predictive log density is watched, by the same eight draws each epoch: the weights of the
            best epoch are kept. Where that ended before `annealed()` had, the posterior's `kl_weight` is below 1.

    Returns:
        A posterior without end of draws: a `VariationalPosterior` for mean field, a `CorrelatedPosterior` for low and
        full rank, a `GuidePosterior` for another guide, a `ProgramPosterior` for a program.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range; a guide whose sites are
            not the model's; a program that observes nothing, or has latents of single rows in minibatches.
        FloatingPointError: The loss stopped being finite.

    Warns:
        ConvergenceWarning: The posterior scales were not learned, or the ELBO was still rising; the fit predicts no
            better than a constant; the noise has most of the targets' variance while few hidden units are alive; the
            posterior misses parts of the model's, by Pareto k: of programs on data in memory, and of networks where
            looking costs less than 2 % of the fit; a program's is narrower than the model's; modes of a program that
            are left out.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_epochs=500, seed=0).predict(data.x, num_samples=10).epistemic.shape
        torch.Size([3, 1])
    """
    check_count(num_draws, "num_draws")
    check_positive(scale_rate, "scale_rate")
    is_program = _check_model_and_guide(model, guide)
    if estimator not in (None, "weights") and (is_program or not isinstance(guide(model), MeanFieldGuide)):
        raise ValueError(f"`estimator` {estimator!r} is for networks and the mean-field guide; leave it at 'weights'.")
    batch_size, needs_all = options["batch_size"], is_program and not ProgramCall(model).takes_num_data
    if batch_size is None:
        batch_size = len(data) if needs_all and isinstance(data, Dataset) else BATCH_SIZE
    if options["learning_rate"] is None:
        options["learning_rate"] = default_learning_rate(data, options["num_epochs"], batch_size, data_parallel)
    if options["max_grad_norm"] is None and is_program and not _goes_on_unclipped(options["checkpoint"]):
        options["max_grad_norm"] = PROGRAM_NORM
    training = Training.of(options, batch_size=batch_size, data_parallel=data_parallel)
    if not isinstance(model, BayesianNetwork):
        _check_untempered(kl_weight)
        if needs_all:
            check_alone(data_parallel, "a program that does not take `num_data`, whose every step is over all rows")
        build = OF_PROGRAMS.get(guide, guide)
        return fit_program(model, data, training, build, num_draws=num_draws, observed=observed)
    check_unnamed(observed)
    if not isinstance(guide(model), MeanFieldGuide | CorrelatedGuide):
        _check_untempered(kl_weight)
        return fit_guide(model, data, training, guide, num_draws=num_draws, scale_rate=scale_rate)
    with session(model, data, training) as (model, source, validation_source):
        own: Any = guide(model)
        if kl_weight is None:
            kl_weight = default_weight(model, training)
        tempering = Tempering(kl_weight, training.epochs(source.num_batches) * source.num_batches)
        numbers = (source.num_data, num_draws, scale_rate, tempering)
        evidence: EvidenceObjective | CorrelatedObjective = (
            EvidenceObjective(
                model, own, *numbers, default_estimator(model, source) if estimator is None else estimator
            )
            if isinstance(own, MeanFieldGuide)
            else CorrelatedObjective(model, own, *numbers)
        )
        start = evidence.log_scales()
        history = minimise(evidence.objective(), source, validation_source, training)
        movement = float((evidence.log_scales() - start).abs().median())
        fitted = evidence.posterior(history, movement)  # before further minibatches move BatchNorm's statistics
        slope = scale_slope(evidence.slope, evidence.guide.layout.size, source, training.key(QUALITY))
        if isinstance(fitted, VariationalPosterior) and learns_noise(model):
            warn_if_pruned(fitted, source, training.key(QUALITY))
    warn_unless_learned(slope, movement, len(history.loss))
    shows_all = isinstance(data, Dataset) and not training.workers.are_together
    if is_cheap(len(history.loss)) and shows_all and fitted.kl_weight == 1:
        ratios = fitted.log_importance_ratios(data, num_samples=MOST_RATIOS, seed=training.key(QUALITY))
        warn_unless_reaching(ratios, "Take guide=variational.full_rank, or chains: `hmc`.")
    return fitted


def _goes_on_unclipped(checkpoint: Checkpoint | str | PathLike[str] | None) -> bool:
    """Whether the fit goes on from a file of the time when no program's gradients were clipped."""
    there = Checkpoint.of(checkpoint)
    return there is not None and there.told().get("max_grad_norm", PROGRAM_NORM) is None


def _check_untempered(kl_weight: Any) -> None:
    if kl_weight is not None and (callable(kl_weight) or kl_weight != 1):
        raise ValueError(
            "`kl_weight` other than 1 is for mean_field, low_rank and full_rank; scale the program instead."
        )


def _check_model_and_guide(model: Any, guide: Any) -> bool:
    """Whether the model is a program."""
    if not isinstance(model, BayesianNetwork):
        check_program(model)
    if isinstance(guide, nn.Module) or not callable(guide):
        raise TypeError(
            "`guide` must be a function from the model to a new guide, such as `autoguide(AutoNormal)`; got "
            f"{guide if isinstance(guide, str) else type(guide).__name__!r}."
        )
    return not isinstance(model, BayesianNetwork)
