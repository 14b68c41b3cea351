"""How far a variational fit can be trusted, as measures for a report.

Did its ELBO stop rising, did it learn its scales, and does its posterior reach where the model's does?

    ratios = posterior.log_importance_ratios(split.train)
    report = report.extended(evaluate_fit(losses=posterior.history.loss, log_ratios=ratios))
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from bayesuq.evaluation.diagnostics.pareto import pareto_k
from bayesuq.evaluation.report.measure import Measure

__all__ = ["evaluate_fit"]
__dir__ = __all__.copy

FEWEST_EPOCHS = 20
WINDOW = 0.1  # of the epochs
NEXT_TO_NOTHING = 0.01  # nats a data point
GOOD_K, BAD_K = 0.7, 1.0


def evaluate_fit(
    *,
    losses: Sequence[float] | None = None,
    scale_movement: float | None = None,
    log_ratios: ArrayLike | None = None,
    kl_weight: float = 1.0,
) -> tuple[Measure, ...]:
    r"""Measures of a fit, for `Report.extended`: those whose arguments are given.

    Args:
        losses: Loss of each epoch in nats a data point, minus the ELBO.
        scale_movement: How far the median log scale of the posterior moved in the fit, in nats.
        log_ratios: log p(theta, y) - log q(theta) at draws of the posterior, (S,), in nats.
        kl_weight: What the divergence was weighed with.

    Returns:
        `elbo_rise`: what the ELBO gained over the last tenth of the epochs beyond the tenth before them. Near 0, it had
        stopped rising; but a learning rate that falls to 0 makes any ELBO stop. It is called flat only where the
        scatter leaves room for less than 0.01 nats a data point.
        `scale_movement`: below about 1 nat, the posterior's scales are still those it started from.
        `pareto_k`: see `pareto.pareto_k`.
        `kl_weight`: where it is not 1, so that nobody takes a tempered posterior for the Bayesian one.

    Raises:
        ValueError: See `pareto.pareto_k`.

    Example:
        >>> print(*evaluate_fit(losses=[1.0] * 20, scale_movement=0.1), sep="\n")
        elbo_rise 0 ± 0 nats a point, over the last 2 of 20 epochs; flat
        scale_movement 0.1 nats, the scales were hardly learned
    """
    measures = []
    if losses is not None:
        measures.append(_elbo_rise(np.asarray(losses, dtype=np.float64)))
    if scale_movement is not None:
        remark = "the scales were hardly learned" if scale_movement < 1 else "of the median log scale"
        measures.append(Measure("scale_movement", float(scale_movement), None, "nats", remark))
    if log_ratios is not None:
        measures.append(_reach(log_ratios))
    if kl_weight != 1:
        remark = "a tempered posterior: " + (
            "the data count more than once" if kl_weight < 1 else "the data count less"
        )
        measures.append(Measure("kl_weight", float(kl_weight), None, "", remark))
    return tuple(measures)


def _elbo_rise(losses: np.ndarray) -> Measure:
    """Difference of the means of two windows, its standard error from the scatter within them."""
    name, unit = "elbo_rise", "nats a point"
    if len(losses) < FEWEST_EPOCHS:
        return Measure(name, math.nan, None, unit, f"needs {FEWEST_EPOCHS} epochs; there were {len(losses)}")
    width = max(2, round(WINDOW * len(losses)))
    last, before = losses[-width:], losses[-2 * width : -width]
    rise = float(before.mean() - last.mean())
    error = float(np.sqrt((last.var(ddof=1) + before.var(ddof=1)) / width))
    at_most = rise + 2 * error
    rises = rise > 2 * error and rise > 0
    verdict = "still rising" if rises else "flat" if at_most < NEXT_TO_NOTHING else f"unclear: it may be {at_most:.2g}"
    return Measure(name, rise, error, unit, f"over the last {width} of {len(losses)} epochs; {verdict}")


def _reach(log_ratios: ArrayLike) -> Measure:
    k = pareto_k(log_ratios)
    verdict = "reaches the posterior" if k < GOOD_K else "misses parts of the posterior" if k > BAD_K else "doubtful"
    return Measure("pareto_k", k, None, f"shape, from S = {len(np.asarray(log_ratios))} draws", verdict)
