"""Whether chains agree in what they predict, as the fit itself looks at it; by what R-hat is, in a few lines.

    R-hat^2 = ((D - 1) W / D + B) / W

for the means' variance B between, and the mean variance W within, the halves of the chains (D draws each). Weights of
networks may disagree where functions do not, so it is taken of E[y* | x, draw] at some of the rows that were fitted.
A disagreement that is small beside what the predictive says of y* anyway, as between probabilities that are all next to
0, is none.

Reference:
    Gelman et al. 2013, Bayesian Data Analysis, section 11.4 (split R-hat).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.posteriors.chains import ChainPosterior
from bayesuq.inputs import structure
from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive

MOST_ROWS, MOST_DRAWS = 32, 100  # rows that are looked at, and draws of each chain
FEWEST_DRAWS = 8  # of a chain, without which halves say nothing
LARGEST_R_HAT, MOST_TOLD = 1.2, 100
LARGEST_LATENT_R_HAT, MOST_NAMED = 1.05, 5
VISIBLE = 0.05  # standard deviations of y*, or a probability of so much: less matters to no prediction


def warn_unless_agreed(posterior: ChainPosterior, rows: Batch) -> None:
    """Warn where the predictions of the chains, or of their halves, disagree.

    Args:
        posterior: The chains.
        rows: That were fitted, of which some are looked at.
    """
    warn_of_few_draws(posterior.draws.shape[1])
    warn_of_disagreement(*disagreement(posterior, rows))


def warn_of_few_draws(number: int) -> None:
    """Say that so many draws of each chain are too few to see in them whether chains have arrived."""
    if number < FEWEST_DRAWS:
        told = "is one draw" if number == 1 else f"are {number} draws"
        warn_of_fit(
            f"There {told} of each chain: whether chains agree is not to be seen in fewer than {FEWEST_DRAWS}, nor "
            "whether they have arrived at the posterior. Raise `num_samples`."
        )


def warn_of_disagreement(worst: float, share: float) -> None:
    """Warn where the largest R-hat of predictions is too large; `share` of them lie above the bound."""
    if worst > LARGEST_R_HAT:
        told = f"{worst:.3g}" if worst < MOST_TOLD else f"above {MOST_TOLD}"
        warn_of_fit(
            f"The chains disagree in what they predict: the largest R-hat of E[y* | x, draw] at some rows of the data "
            f"is {told}, where 1 is agreement, and {share:.0%} of them lie above {LARGEST_R_HAT}. They are no "
            "draws of one posterior yet. Raise `num_warmup` and `num_samples`, or `start` from a fitted posterior; a "
            "network too large for chains has `laplace`, `variational` and `ensemble`."
        )


def warn_unless_latents_agree(draws: Tensor, slices: Mapping[str, slice]) -> None:
    """Warn where chains of a program, or their halves, disagree in a latent.

    Args:
        draws: On the real line, (C, D, P).
        slices: Where each latent stands.
    """
    warn_of_few_draws(draws.shape[1])
    if draws.shape[1] < FEWEST_DRAWS:
        return
    r_hat, _ = split_r_hat(draws.double())
    worst = {name: float(r_hat[where].max()) for name, where in slices.items() if r_hat[where].numel()}
    bad = sorted((name for name in worst if worst[name] > LARGEST_LATENT_R_HAT), key=lambda name: -worst[name])
    if bad:
        told = ", ".join(f"{name} ({worst[name]:.3g})" for name in bad[:MOST_NAMED])
        warn_of_fit(
            f"The chains disagree: R-hat, where 1 is agreement, is above {LARGEST_LATENT_R_HAT} for {told}"
            f"{f' and {len(bad) - MOST_NAMED} more' if len(bad) > MOST_NAMED else ''}. They are no draws of one "
            "posterior yet. Raise `num_warmup` and `num_samples`; or write the program so that its latents are nearly "
            "independent: centre inputs, draw what a scale multiplies from Normal(0, 1), order what could be swapped."
        )


def warn_unless_draws_agree(draws: Mapping[str, Tensor]) -> None:
    """As `warn_unless_latents_agree`, of draws on the latents' own support, (C, D, ...) by name."""
    flat = {name: value.flatten(2) if value.ndim > 2 else value.unsqueeze(2) for name, value in draws.items()}
    edges = pairwise(accumulate((value.shape[2] for value in flat.values()), initial=0))
    slices = {name: slice(*edge) for name, edge in zip(flat, edges, strict=True)}
    warn_unless_latents_agree(torch.cat(list(flat.values()), dim=2), slices)


def disagreement(posterior: ChainPosterior, rows: Batch) -> tuple[float, float]:
    """The largest R-hat of predictions, and the share of them that lies above the bound; 1 and 0 for few draws."""
    chains, draws = posterior.draws.shape[:2]
    if draws < FEWEST_DRAWS:
        return 1.0, 0.0
    kept = torch.linspace(0, draws - 1, min(draws, MOST_DRAWS)).round().long().to(posterior.draws.device)
    some = torch.linspace(0, len(rows.y) - 1, min(len(rows.y), MOST_ROWS)).round().long().to(rows.y.device)
    thinned = replace(posterior, draws=posterior.draws[:, kept])
    predictive = thinned.predict(structure(rows.x[some]), seed=0, keep_samples=True)
    if isinstance(predictive, CategoricalPredictive):
        means, scale = predictive.samples, torch.ones_like(predictive.mean)
    elif isinstance(predictive, RealPredictive):
        means, scale = predictive.component_means, predictive.total.sqrt()
    else:
        return 1.0, 0.0
    r_hat, between = split_r_hat(means.double().reshape(chains, len(kept), -1))
    r_hat = torch.where(between > VISIBLE * scale.double().reshape(-1), r_hat, 1.0)
    return float(r_hat.max()), float((r_hat > LARGEST_R_HAT).double().mean())


def split_r_hat(values: Tensor) -> tuple[Tensor, Tensor]:
    """R-hat of each entry of (C, D, M) by the halves of the chains, (M,), and the deviation of their means, (M,)."""
    half = values.shape[1] // 2
    halves = torch.cat([values[:, :half], values[:, -half:]])
    within = halves.var(dim=1).mean(dim=0)
    between = halves.mean(dim=1).var(dim=0)
    ratio = ((half - 1) / half * within + between) / within
    same = (within == 0) & (between == 0)
    return torch.where(same, 1.0, ratio.nan_to_num(math.inf).sqrt()), between.sqrt()
