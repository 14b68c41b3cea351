"""Levels of fitted rows, each as all the others predict it: they calibrate without rows that are held out for it.

Of an exact process they are in closed form. Draws theta_s of a posterior given all rows become those given all but row
n by weights, since p(theta | D without n) is proportional to p(theta | D) / p(y_n | theta):

    u_n = sum_s w_s F_s(y_n) / sum_s w_s,    w_s = min(r_s, sqrt(S) mean_s r_s),    r_s = 1 / p(y_n | theta_s),

where the cut keeps one draw from having all the weight of most rows.

Letters: S draws, N rows.

References:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. (5.12); Gelfand, Dey & Chang 1992, Model
    Determination Using Predictive Distributions; Ionides 2008, Truncated Importance Sampling.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.gaussian import GaussianPredictive

FEWEST_DRAWS = 25  # fewer are modes and not draws, and weighting them says nothing


@runtime_checkable
class LeavesOneOut(Protocol):
    """A posterior that predicts each row of its fit from all the others in closed form."""

    y: Tensor  # targets, (C, N)

    def leave_one_out(self) -> GaussianPredictive:
        """At the rows of the fit, in their order."""


def left_out_levels(posterior: Posterior, data: Dataset, *, num_samples: int | None, seed: int) -> Tensor:
    """P(y* <= y_n | x_n, all rows but n) of one real target, (N,), float64.

    Args:
        posterior: Fitted to these rows: an exact process, or draws from a posterior over weights.
        data: The rows, for a process all of them in their order.
        num_samples: S, as for `predict`.
        seed: Of the draws.

    Raises:
        TypeError: Another noise than a normal one.
        ValueError: Other rows than those of the fit, several target columns, or fewer than 25 draws.
    """
    if isinstance(posterior, LeavesOneOut):
        fitted = posterior.y.mT
        if fitted.shape != data.y.shape or not torch.equal(fitted.to(data.y), data.y):
            raise ValueError(
                f"`data` must be the {len(fitted)} rows that the process was fitted to, in their order; got others."
            )
        return one_column(posterior.leave_one_out()).cdf(fitted).flatten()
    asked = posterior.predict(data.x, num_samples=num_samples, seed=seed, keep_samples=True)
    return reweighted_levels(one_column(asked), data.y)


def reweighted_levels(predictive: GaussianPredictive, y: Tensor) -> Tensor:
    """The levels of fitted rows, (N,), from the draws that predict them, (S, N, 1).

    Raises:
        ValueError: Fewer than 25 draws.
    """
    if predictive.num_samples < FEWEST_DRAWS:
        raise ValueError(
            f"A row is left out by weighting at least {FEWEST_DRAWS} draws of a posterior; got "
            f"{predictive.num_samples}. Calibrate by rows that are held out instead."
        )
    log_ratios = -predictive.component_log_prob(y)
    ratios = (log_ratios - log_ratios.amax(dim=0)).exp()
    weights = ratios.minimum(len(ratios) ** 0.5 * ratios.mean(dim=0))
    spread = predictive.component_variances[..., 0].sqrt()
    levels = torch.special.ndtr((predictive.targets(y)[:, 0] - predictive.component_means[..., 0]) / spread)
    return (weights * levels).sum(dim=0) / weights.sum(dim=0)


def one_column(predictive: PredictiveDistribution) -> GaussianPredictive:
    """The predictive, where its quantiles can be calibrated.

    Raises:
        TypeError: No Gaussian mixture.
        ValueError: Several target columns.
    """
    if not isinstance(predictive, GaussianPredictive):
        raise TypeError(
            f"Quantiles of a posterior are calibrated of Gaussian mixtures; got {type(predictive).__name__}. For "
            "labels take `temperature.fit`; of any continuous target pass the predictive, "
            "`quantile_calibration.fit(predictive, y)`, and `bayesuq.conformal` gives intervals of all."
        )
    if predictive.mean.shape[1] != 1:
        raise ValueError(f"Quantiles are calibrated for one target column; got {predictive.mean.shape[1]}.")
    return predictive
