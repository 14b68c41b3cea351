"""Levels of a mixture, sharpened or blunted by one number: what a mixture needs beside its weights.

    R(u) = u^a / (u^a + (1 - u)^a),    so that   log-odds of R(u) = a log-odds of u

A mixture of laws that are calibrated each is wider than the truth (Ranjan and Gneiting, theorem 1), whatever its
weights: its levels u_n = F_n(y_n) at held-out rows crowd about 1/2, and an a above 1 spreads them evenly. With one
number a few dozen rows suffice, where a map through many knots takes hundreds. It is the most probable one given

    u_n ~ R^-1(uniform),    log a ~ N(0, t^2),

so that few rows leave the levels nearly as they are.

Reference:
    Ranjan & Gneiting 2010, Combining Probability Forecasts; Gneiting & Ranjan 2013, Combining Predictive Distributions,
    which has a beta distribution function in this place. Baron, Mellers, Tetlock, Stone & Ungar 2014, Two Reasons to
    Make Aggregated Probability Forecasts More Extreme, eq. (1), has this one, which is in closed form.
"""

import torch
from torch import Tensor

DEVIATION = 0.1  # t: some 70 rows say as much of a
MOST = 2.0  # a, and its inverse the least
NUM_PIECES = 20  # straight ones of the map, of equal probability: the outermost bound what a row far out can cost
FURTHEST, HALVINGS = 1e-12, 60


def log_odds_factor(transforms: Tensor, deviation: float = DEVIATION) -> float:
    """The most probable a from 1/2 to 2, given the levels of held-out rows.

    Args:
        transforms: u_n, (N,), in [0, 1].
        deviation: t, of log a.

    Example:
        >>> round(log_odds_factor(torch.full((200,), 0.5)), 2) > 1.5  # all in the middle: far too wide
        True
    """
    odds = torch.logit(transforms.double().clamp(FURTHEST, 1 - FURTHEST)).abs()
    high = torch.tensor(MOST).double().log()
    low = -high

    def slope(log_factor: Tensor) -> Tensor:
        # d/dt of sum_n log R'(u_n) - t^2 / (2 deviation^2), a = e^t: 1 - a |l| tanh(a |l| / 2) each
        scaled = log_factor.exp() * odds
        return (1 - scaled * (scaled / 2).tanh()).sum() - log_factor / deviation**2

    for _ in range(HALVINGS):  # it falls in t
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(middle.exp())


def log_odds_levels(factor: float, num_pieces: int = NUM_PIECES) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Knots and levels of R as a broken line, whose pieces have equal probability: see `RecalibratedPredictive`.

    Example:
        >>> log_odds_levels(2.0, 2)
        ((0.0, 0.5, 1.0), (0.0, 0.5, 1.0))
    """
    levels = torch.arange(1, num_pieces).double() / num_pieces
    knots = torch.sigmoid(torch.logit(levels) / factor)
    return (0.0, *knots.tolist(), 1.0), (0.0, *levels.tolist(), 1.0)
