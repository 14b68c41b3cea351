"""The shape k of a generalised Pareto tail of importance ratios: how far a law stands in for another one; torch-free.

The largest 3 sqrt(S) ratios (at most a fifth of S, rounded up as by the authors' packages loo and posterior) beyond a
cutoff are fitted by the profile posterior mean of Zhang & Stephens 2009, and the estimate is drawn towards 0.5 as ten
more ratios would.

Reference:
    Vehtari, Simpson, Gelman, Yao & Gabry 2024, Pareto Smoothed Importance Sampling, sections 2 and 3.
"""

import math
from typing import Any

import numpy as np

GOOD_K = 0.7  # up to which weighting the draws by their ratios still works
FEWEST_TAIL = 5  # different ratios
PRIOR_ROWS, PRIOR_K = 10, 0.5

Array = np.ndarray[Any, np.dtype[np.float64]]


def tail_shape(log_ratios: Array) -> float:
    """k of S log ratios, (S,), in nats, up to a constant; infinite where a tail cannot be fitted.

    Example:
        >>> ratios = np.random.default_rng(0).pareto(1 / 0.4, 10_000)  # whose k is 0.4
        >>> round(tail_shape(np.log(ratios)), 1)
        0.4
    """
    ordered = np.sort(np.asarray(log_ratios, dtype=np.float64))
    ordered = ordered - ordered[-1]
    size = math.ceil(min(0.2 * len(ordered), 3 * math.sqrt(len(ordered))))
    cutoff = max(ordered[-size - 1], math.log(np.finfo(np.float64).tiny))
    tail = ordered[ordered > cutoff]
    if len(np.unique(tail)) < FEWEST_TAIL:
        return math.inf
    return _shape(np.exp(tail) - math.exp(cutoff))


def _shape(exceedances: Array) -> float:
    """Of sorted exceedances of a cutoff."""
    count = len(exceedances)
    candidates = 30 + math.isqrt(count)
    steps = np.arange(1, candidates + 1) - 0.5
    quartile = exceedances[int(count / 4 + 0.5) - 1]
    theta = (1 - np.sqrt(candidates / steps)) / (3 * quartile) + 1 / exceedances[-1]
    shapes = np.log1p(-theta[:, None] * exceedances).mean(axis=1)
    profile = count * (np.log(-theta / shapes) - shapes - 1)
    weights = np.exp(profile - profile.max())
    weights /= weights.sum()
    found = float(np.log1p(-(theta * weights).sum() * exceedances).mean())
    return (count * found + PRIOR_ROWS * PRIOR_K) / (count + PRIOR_ROWS)
