"""What is asked of one posterior's draws: convergence, reach, leave-one-out, predictive checks, and their figures."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bayesuq.cli.figures import Picture
from bayesuq.cli.methods import MOST_FORWARD_ROWS, NUM_RATIOS
from bayesuq.data import Dataset
from bayesuq.evaluation.diagnostics.convergence import Convergence, convergence
from bayesuq.evaluation.diagnostics.fit_quality import evaluate_fit
from bayesuq.evaluation.diagnostics.leave_one_out import LeaveOneOut, loo
from bayesuq.evaluation.diagnostics.predictive_checks import PredictiveChecks, predictive_checks
from bayesuq.evaluation.plots import draws, training
from bayesuq.evaluation.report.measure import Measure
from bayesuq.inference.posteriors.network import over_network
from bayesuq.posterior import Posterior
from bayesuq.to_arviz.container import Container, group

MOST_WEIGHTS = 20_000_000  # numbers in the draws of all sites: 80 MB
DEFAULT_NUM_SAMPLES = 400  # of a posterior whose draws have no end
MOST_ENTRIES = 300  # of a variable
FEWEST_FOR_PICTURES = 8  # draws


class Words(NamedTuple):
    """What a figure shows, and how to read it."""

    title: str
    caption: str


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """All that was found of one posterior.

    Attributes:
        data: Its draws, for ArviZ.
        convergence: Of the chains; of independent draws, what can be said.
        reach: Pareto k of the posterior and how the fit ended, for methods that can tell.
        loo: Leave-one-out; None where it cannot be had.
        why_no_loo: The reason, then.
        checks: Posterior predictive.
        prior_checks: Prior predictive.
        pictures: The figures.
        has_weights: Whether the draws of the weights are in `data`.
        warnings: What was warned of on the way.
    """

    data: Container
    convergence: Convergence
    reach: tuple[Measure, ...]
    loo: LeaveOneOut | None
    why_no_loo: str
    checks: PredictiveChecks
    prior_checks: PredictiveChecks
    pictures: list[Picture]
    has_weights: bool
    warnings: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences, each telling one thing that is wrong."""
        wrong = () if self.loo is None else self.loo.problems
        surprising = [each.name for each in self.checks.surprising]
        told = f"The observed {', '.join(surprising)} lie outside 90 % of the replicates: see the predictive check."
        return (*self.convergence.problems, *wrong, *([told] if surprising else []))

    def __str__(self) -> str:
        leave_one_out = f"no LOO: {self.why_no_loo}" if self.loo is None else str(self.loo)
        return "\n".join([str(self.convergence), *map(str, self.reach), leave_one_out, str(self.checks)])


def diagnose(
    posterior: Posterior,
    train: Dataset,
    rows: Dataset,
    new: Dataset,
    *,
    told: Posterior,
    losses: Sequence[Sequence[float]],
    num_samples: int | None,
    seed: int,
) -> Diagnosis:
    """Draw and ask.

    Args:
        posterior: Fitted to `train`.
        train: All rows that were fitted, in the posterior's units.
        rows: Those of them whose targets are looked at.
        new: Held-out rows, at whose inputs the function is looked at.
        told: The same posterior, with the names of its labels where it has some.
        losses: Of each epoch, of each network that was trained.
        num_samples: Draws; None takes all of a posterior that stores them.
        seed: Of them.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        number = num_samples or getattr(posterior, "num_members", None) or DEFAULT_NUM_SAMPLES
        has_weights = _num_weights(posterior) * number <= MOST_WEIGHTS
        data = told.to_arviz(rows.x, rows.y, new_x=new.x, num_samples=number, seed=seed, include_weights=has_weights)
        found = convergence(data, most_entries=MOST_ENTRIES)
        left_out, reason = _loo(data)
        return Diagnosis(
            data=data,
            convergence=found,
            reach=_reach(posterior, train, losses, seed),
            loo=left_out,
            why_no_loo=reason,
            checks=predictive_checks(data),
            prior_checks=_prior_checks(data),
            pictures=_pictures(data, found, left_out, losses),
            has_weights=has_weights,
            warnings=tuple(dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning)),
        )


def _num_weights(posterior: Posterior) -> int:
    network = over_network(posterior)
    return 0 if network is None else sum(value.numel() for value in network.model.initial().values())


def _loo(data: Container) -> tuple[LeaveOneOut | None, str]:
    try:
        return loo(data), ""
    except ValueError as error:
        return None, str(error)


def _reach(posterior: Any, train: Dataset, losses: Sequence[Sequence[float]], seed: int) -> tuple[Measure, ...]:
    """Did the ELBO come to rest, and does the posterior reach where the model's does?"""
    if not hasattr(posterior, "log_importance_ratios"):
        return ()
    ratios = None
    if len(train) * NUM_RATIOS <= MOST_FORWARD_ROWS:
        ratios = posterior.log_importance_ratios(train, num_samples=NUM_RATIOS, seed=seed).cpu()
    return evaluate_fit(losses=losses[0] if losses else None, log_ratios=ratios)


def _prior_checks(data: Container) -> PredictiveChecks:
    if not group(data, "prior_predictive"):
        return PredictiveChecks()
    return predictive_checks(data, replicates="prior_predictive")


def _pictures(
    data: Container, found: Convergence, left_out: LeaveOneOut | None, losses: Sequence[Sequence[float]]
) -> list[Picture]:
    """All that the draws allow."""
    pictures = []
    if found.num_chains * found.num_draws >= FEWEST_FOR_PICTURES:
        if not found.is_independent:
            pictures += _of_chains(data)
        pictures += _of_draws(data)
        if left_out is not None and _is_real(data):
            pictures.append(_told(draws.loo_pit_plot, data, *LOO_PIT))
        pictures.append(_told(draws.predictive_check_plot, data, *POSTERIOR_CHECK))
    if losses:
        mean = np.mean(losses, axis=0)
        figure = training.loss_curves({"training": mean})
        pictures.append(
            Picture.of(figure, *LOSSES, f"Training loss over epochs, from {mean[0]:.3g} to {mean[-1]:.3g}.")
        )
    return pictures


def _of_chains(data: Container) -> list[Picture]:
    pictures = [_told(draws.trace_plot, data, *TRACE), _told(draws.rank_plot, data, *RANKS)]
    return [*pictures, _told(draws.energy_plot, data, *ENERGY)] if "energy" in group(data, "sample_stats") else pictures


def _of_draws(data: Container) -> list[Picture]:
    return [_told(draws.forest_plot, data, *FOREST), _told(draws.pair_plot, data, *PAIRS)]


def _told(plot: Callable[[Container], Any], data: Container, title: str, caption: str) -> Picture:
    return Picture.of(plot(data), title, caption, f"{title}: {caption}")


def _is_real(data: Container) -> bool:
    y = group(data, "observed_data")["y"]
    return np.issubdtype(y.dtype, np.floating) and y.ndim == 1


TRACE = Words(
    "Trace",
    "The four function values whose chains agree least. Left, the density of each chain: the lines should lie on each "
    "other. Right, the draws in their order: noise around one level, no trend and no long standstill.",
)
RANKS = Words(
    "Ranks",
    "Ranks of each chain's draws among those of all chains, for the same values. Each chain should be flat: one that "
    "leans to a side has not seen what the others have.",
)
ENERGY = Words(
    "Energy",
    "The law of the energy, and that of its steps from draw to draw. Where the steps are much narrower (BFMI below .3) "
    "the chain cannot reach the tails in reasonable time.",
)
FOREST = Words(
    "Forest",
    "Intervals of function values at test rows, of the chains that agree least, or of the largest spread where draws "
    "are independent; a line for each chain.",
)
PAIRS = Words(
    "Pairs",
    "Function values against each other, a dot for each draw. Divergent draws are marked where the sampler tells them.",
)
LOO_PIT = Words(
    "LOO-PIT",
    "Where each observed target falls in its prediction from all other rows. Uniform means calibrated; a hump in the "
    "middle means predictions that are too wide, a valley ones that are too narrow.",
)
POSTERIOR_CHECK = Words(
    "Posterior predictive check",
    "The observed targets of training rows among replicates of them, one from each of fifty draws.",
)
LOSSES = Words(
    "Loss",
    "What the fit minimised, over its passes through the data. It should have come to rest.",
)
