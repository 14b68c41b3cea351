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
from dataclasses import replace

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
VISIBLE = 0.05  # standard deviations of y*, or a probability of so much: less matters to no prediction


def warn_unless_agreed(posterior: ChainPosterior, rows: Batch) -> None:
    """Warn where the predictions of the chains, or of their halves, disagree.

    Args:
        posterior: The chains.
        rows: That were fitted, of which some are looked at.
    """
    worst, share = disagreement(posterior, rows)
    if worst > LARGEST_R_HAT:
        told = f"{worst:.3g}" if worst < MOST_TOLD else f"above {MOST_TOLD}"
        warn_of_fit(
            f"The chains disagree in what they predict: the largest R-hat of E[y* | x, draw] at some rows of the data "
            f"is {told}, where 1 is agreement, and {share:.0%} of them lie above {LARGEST_R_HAT}. They are no "
            "draws of one posterior yet. Raise `num_warmup` and `num_samples`, or `start` from a fitted posterior; a "
            "network too large for chains has `laplace`, `variational` and `ensemble`."
        )


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
