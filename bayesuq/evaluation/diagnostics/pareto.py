"""Pareto k of importance ratios as a diagnostic; free of torch, and the same whatever ArviZ is installed."""

import numpy as np
from numpy.typing import ArrayLike

from bayesuq.pareto import tail_shape

FEWEST_DRAWS = 25  # fewer have no tail to fit
ALL_EQUAL = 1e-6  # nats; float32 densities of a million weights differ by less


def pareto_k(log_ratios: ArrayLike) -> float:
    r"""Shape k of the generalised Pareto tail of importance ratios p(theta, y) / q(theta) at draws of q (PSIS k-hat).

    It says how well q stands in for the posterior. Below 0.5 the ratios have a finite variance; up to about 0.7,
    weighting q's draws by them still works; above 1 the mean of the ratios does not even exist: q lacks a part of the
    posterior that matters. In many dimensions, nearly every approximation lies above 1.

    Args:
        log_ratios: log p(theta, y) - log q(theta) at S draws, (S,), in nats, up to a constant.

    Returns:
        k; 0 where all ratios are the same, as they are for an exact q; infinite where nearly all weight is that of
        fewer than five draws.

    Raises:
        ValueError: Another shape; fewer than 25 draws; values that are not numbers, or +inf.

    Reference:
        Yao et al. 2018, Yes, but Did It Work?: Evaluating Variational Inference, algorithm 1; Vehtari et al. 2024,
        Pareto Smoothed Importance Sampling.

    Example:
        >>> pareto_k(np.random.default_rng(0).standard_normal(1000)) < 0.7
        True
    """
    ratios = np.asarray(log_ratios, dtype=np.float64)
    if ratios.ndim != 1 or len(ratios) < FEWEST_DRAWS:
        raise ValueError(f"`log_ratios` must have shape (S,) with S of at least {FEWEST_DRAWS}; got {ratios.shape}.")
    if np.isnan(ratios).any() or np.isposinf(ratios).any():
        raise ValueError("`log_ratios` must not hold NaN or +inf.")
    if np.ptp(ratios) < ALL_EQUAL:
        return 0.0
    return tail_shape(ratios)
