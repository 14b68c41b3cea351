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

LARGEST_RATE, RATE_OF_AN_EPOCH = 0.2, 2.0  # shares of a Newton step: of one step, and of all that an epoch makes
LONGEST_MEMORY = 0.5  # of the steps


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
        memory: Steps that the running mean of the curvature remembers, 1 / (1 - b2) in the paper. None lets it grow, to
            a third of the steps made: it forgets its start, and is a mean over as many steps as there were. The paper's
            b2 = 0.99999 remembers 100,000; in a fit that is not much longer the widths stay where they began.
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, fit
            one posterior together: each reads its part of `data`, or rows of its own, in minibatches of `batch_size`.
        learning_rate: Share of a Newton step that the means make at the start, lr (h_0 + delta) in the paper. Where a
            minibatch is one of N / B, its noise moves them about by learning_rate * N / (2 B) posterior variances; so
            None is 2 B / N, and 0.2 at most.
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
        ConvergenceWarning: A `memory` that is longer than half of the fit; the posterior scales were not learned, or
            the ELBO was still rising; the fit predicts no better than a constant; the posterior misses parts of the
            model's, by Pareto k, where looking costs less than 2 % of the fit.

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
    rule = Rule(num_draws, memory, training.max_grad_norm)
    training = replace(training, max_grad_norm=None)  # the curvature is to be clipped, too
    with session(model, data, training) as (model, source, validation_source):
        if given is None:
            training = replace(training, learning_rate=min(LARGEST_RATE, RATE_OF_AN_EPOCH / source.num_batches))
        newton = NewtonObjective(model, source.num_data, rule, source.workers)
        newton.measure(source, derive_seed(training.key(NOISE), 1))
        _warn_of_memory(memory, training.epochs(source.num_batches) * source.num_batches)
        history = minimise(newton.objective(), source, validation_source, training)
        fitted = newton.posterior(history)  # before further minibatches move BatchNorm's statistics
        slope = scale_slope(newton.slope, len(newton.loc), source, training.key(QUALITY))
    warn_unless_learned(slope, fitted.scale_movement, len(history.loss))
    if is_cheap(len(history.loss)) and isinstance(data, Dataset) and not training.workers.are_together:
        ratios = fitted.log_importance_ratios(data, num_samples=MOST_RATIOS, seed=training.key(QUALITY))
        warn_unless_reaching(ratios, "Take `variational` with guide=variational.full_rank, or chains: `hmc`.")
    return fitted


def _warn_of_memory(memory: float | None, num_steps: int) -> None:
    if memory is not None and memory > LONGEST_MEMORY * num_steps:
        warn_of_fit(
            f"The curvature remembers {memory:g} steps of a fit of {num_steps}: the posterior scales will stay near "
            f"where they begin. Pass `memory` of at most {LONGEST_MEMORY * num_steps:g}, or None, or raise "
            "`num_epochs`."
        )
