"""Variational online Newton (IVON): the posterior of mean field, found by natural-gradient steps at about Adam's cost.

It minimises the same divergence from the posterior as Bayes by Backprop. The widths come from a running mean of the
curvature that the draws show, so that there is one learning rate, a share of a Newton step, and no scale to be learned
by gradients: see `bayesuq.inference.ivon.newton`.

Reference:
    Shen et al. 2024, Variational Learning is Effective for Large Deep Networks.
"""

from dataclasses import replace
from typing import Unpack

from bayesuq.arrays import check_count, check_positive
from bayesuq.data import Dataset
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.ivon.newton import NewtonObjective, Rule
from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.training.convergence import (
    MOST_RATIOS,
    is_cheap,
    scale_slope,
    warn_unless_learned,
    warn_unless_reaching,
)
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.options import NOISE, QUALITY, Training, TrainingOptions, session, training_options
from bayesuq.inference.training.workers import Group
from bayesuq.inference.variational.factorised import VariationalPosterior
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import derive_seed

__all__ = ["fit"]
__dir__ = __all__.copy

LARGEST_RATE = 0.2  # share of a Newton step that a step makes
RATE_OF_AN_EPOCH, RATE_OF_NARROW = 2.0, 12.0  # of all steps of an epoch: by the curvature itself, by one above it
LONGEST_MEMORY, LONG_MEMORY = 0.5, 0.25  # of the steps
FEWEST_STEPS = 300  # a rate that falls to 0 lets a mean come one and a half of its prior's scale in as many


@training_options(learning_rate=None)
@on_features()
def fit(
    model: BayesianNetwork,
    data: Data,
    *,
    num_draws: int = 1,
    memory: float | None = None,
    data_parallel: bool | Group = False,
    **options: Unpack[TrainingOptions],
) -> VariationalPosterior:
    """Fit a factorised Gaussian by variational online Newton.

    Args:
        model: The joint density.
        data: Rows to fit, or a DataLoader of them.
        num_draws: Draws of the weights a step, whose gradients and curvatures are averaged, at as many times the cost.
            They come in opposite pairs: with two, what a minibatch's gradients have in common, noise and all, cancels
            in the curvature.
        memory: Steps that the running mean of the curvature remembers, 1 / (1 - b2) in the paper, whose b2 = 0.99999
            remembers 100,000. None takes half of the fit's steps where the random weights lie in several layers: then
            widths, which begin at a fortieth of the prior's, fall as far as the data say, and rise to some fifteenth of
            it. That is narrower than the best factorised Gaussian under a wide prior, which prunes units of such
            networks and predicts worse. Of one layer, whose best Gaussian is a good one, and with schedule="constant",
            None is a memory that grows to a third of the steps made, and learns the widths.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, fit
            one posterior together: each reads its part of `data`, or rows of its own, in minibatches of `batch_size`.
        learning_rate: Share of a Newton step that the means make at the start, lr (h_0 + delta) in the paper. Where a
            minibatch is one of N / B, its noise moves them about by learning_rate * N / (2 B) posterior variances; so
            None is 2 B / N, or 12 B / N where a memory of a quarter of the steps or more keeps the precision above the
            curvature, and 0.2 at most.
        max_grad_norm: Clips the norm of the gradient of the loss per data point, and the curvature's sample with it.
            None does not.
        validation: Rows whose predictive log density is watched, by the same eight draws each epoch: means and widths
            of the best epoch are kept.

    Returns:
        A posterior without end of draws, of mean field's kind; its `at_mean` is the one network at the means.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range.
        FloatingPointError: The loss stopped being finite.

    Warns:
        ConvergenceWarning: A `memory` that is longer than half of the fit; fewer than 300 steps of several layers; of
            widths that are learned, that they were not, or that the ELBO was still rising along them; the fit predicts
            no better than a constant; the posterior misses parts of the model's, by Pareto k, where looking costs less
            than 2 % of the fit.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_epochs=500, seed=0).predict(data.x, num_samples=10).epistemic.shape
        torch.Size([3, 1])
    """
    check_count(num_draws, "num_draws")
    if memory is not None and check_positive(memory, "memory") < 1:
        raise ValueError(f"`memory` must be at least 1 step; got {memory}.")
    given = options["learning_rate"]
    training = Training.of(options, data_parallel=data_parallel, learning_rate=LARGEST_RATE if given is None else given)
    clipped = training.max_grad_norm
    training = replace(training, max_grad_norm=None)  # the curvature is to be clipped, too
    with session(model, data, training) as (model, source, validation_source):
        num_steps = training.epochs(source.num_batches) * source.num_batches
        _warn_of_memory(memory, num_steps)
        stays_narrow = memory is None and training.schedule == "cosine" and not _are_of_one_layer(model)
        if stays_narrow:
            memory = max(LONGEST_MEMORY * num_steps, 1.0)
            _warn_of_few_steps(num_steps)
        if given is None:
            training = replace(training, learning_rate=_default_rate(memory, num_steps, source.num_batches))
        newton = NewtonObjective(model, source.num_data, Rule(num_draws, memory, clipped), source.workers)
        newton.measure(source, derive_seed(training.key(NOISE), 1))
        history = minimise(newton.objective(), source, validation_source, training)
        fitted = newton.posterior(history)  # before further minibatches move BatchNorm's statistics
        slope = None if stays_narrow else scale_slope(newton.slope, len(newton.loc), source, training.key(QUALITY))
    if slope is not None:
        warn_unless_learned(slope, fitted.scale_movement, len(history.loss))
    if is_cheap(len(history.loss)) and isinstance(data, Dataset) and not training.workers.are_together:
        ratios = fitted.log_importance_ratios(data, num_samples=MOST_RATIOS, seed=training.key(QUALITY))
        warn_unless_reaching(ratios, "Take `variational` with guide=variational.full_rank, or chains: `hmc`.")
    return fitted


def _are_of_one_layer(model: BayesianNetwork) -> bool:
    """Whether the network is linear in its random weights, up to what comes after it."""
    return len({name.rpartition(".")[0] for name in model.random_weights}) <= 1


def _default_rate(memory: float | None, num_steps: int, num_batches: int) -> float:
    is_long = memory is not None and memory >= LONG_MEMORY * num_steps
    return min(LARGEST_RATE, (RATE_OF_NARROW if is_long else RATE_OF_AN_EPOCH) / num_batches)


def _warn_of_memory(memory: float | None, num_steps: int) -> None:
    if memory is not None and memory > LONGEST_MEMORY * num_steps:
        warn_of_fit(
            f"The curvature remembers {memory:g} steps of a fit of {num_steps}: the posterior scales will stay near "
            f"where they begin. Pass `memory` of at most {LONGEST_MEMORY * num_steps:g}, or None, or raise "
            "`num_epochs`."
        )


def _warn_of_few_steps(num_steps: int) -> None:
    if num_steps < FEWEST_STEPS:
        warn_of_fit(
            f"The fit has {num_steps} steps, and a step moves a mean by a hundredth of its prior's scale at most: they "
            f"come nowhere near what the data ask for. Raise `num_epochs`, or lower `batch_size`, to {FEWEST_STEPS} "
            "steps at least."
        )
