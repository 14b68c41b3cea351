"""Diagnostics of one variable's draws, entry by entry: R-hat, effective sample sizes, Monte Carlo errors; torch-free.

The numbers are ArviZ's own, the same on 0.22, 0.23 and 1.x, but for what it gets wrong: a constant has no effective
sample size (ArviZ: as many as there are draws), and chains that stand still at places of their own do not agree.

Reference:
    Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, Rank-Normalization, Folding, and Localization.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesuq import optional

LARGEST_R_HAT = 1.01
FEWEST_DRAWS = 4  # a chain must have for R-hat and effective sample sizes

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Quantity:
    """One variable: its diagnostics entry by entry, (M,), NaN where they are undefined.

    Attributes:
        name: Of the variable.
        is_function: Whether it is a value of the function, and no set of weights.
        size: Entries that it has.
        num_constant: Of the M looked at, entries that never move, as those of a site learned as a point value.
        num_not_finite: Of the M looked at, entries with draws that are NaN or infinite.
        mean: Over all draws, in the variable's unit.
        sd: Over all draws, likewise.
        mcse_mean: Monte Carlo standard error of the mean.
        r_hat: Rank-normalised split R-hat; infinite where each chain stands still at a place of its own.
        ess_bulk: Effective draws for the centre.
        ess_tail: Effective draws for the 5 % and 95 % quantiles.
    """

    name: str
    is_function: bool
    size: int
    num_constant: int
    num_not_finite: int
    mean: Array
    sd: Array
    mcse_mean: Array
    r_hat: Array
    ess_bulk: Array
    ess_tail: Array

    @property
    def worst_r_hat(self) -> float:
        """The largest; NaN where none is defined."""
        return extreme(np.max, self.r_hat)

    @property
    def least_ess(self) -> float:
        """The smallest effective sample size of bulk and tail; NaN where none is defined."""
        return extreme(np.min, np.concatenate([self.ess_bulk, self.ess_tail]))

    @property
    def worst_relative_error(self) -> float:
        """The largest Monte Carlo error of a mean over its standard deviation; NaN where none is defined."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return extreme(np.max, self.mcse_mean / self.sd)

    @property
    def share_converged(self) -> float:
        """Of the entries that have an R-hat, the fraction at or below 1.01; NaN where none has one."""
        defined = self.r_hat[~np.isnan(self.r_hat)]
        return float((defined <= LARGEST_R_HAT).mean()) if len(defined) else math.nan


def entries(values: Any, most: int | None) -> tuple[Array, list[tuple[int, ...]]]:
    """Draws of single numbers, (C, D, M), and the place of each in the variable; at most `most`, evenly spread."""
    whole = values.transpose("chain", "draw", ...).values
    flat = whole.reshape(*whole.shape[:2], -1)
    size = flat.shape[2]
    chosen = range(size) if most is None or size <= most else [(2 * k + 1) * size // (2 * most) for k in range(most)]
    places = [tuple(int(i) for i in np.unravel_index(place, whole.shape[2:])) for place in chosen]
    return flat[:, :, list(chosen)].astype(np.float64), places


def measured(name: str, values: Any, is_function: bool, most: int | None, *, is_independent: bool) -> Quantity:
    """The diagnostics of a variable (chain, draw, ...), of at most so many of its entries."""
    draws, _ = entries(values, most)
    size = int(np.prod(values.shape[2:]))
    finite = np.isfinite(draws).all(axis=(0, 1))
    constant = finite & (draws.max(axis=(0, 1)) == draws.min(axis=(0, 1)))
    moving = draws[:, :, finite & ~constant]
    found = _by_hand(moving) if is_independent else _by_arviz(moving)
    undefined = np.full(draws.shape[2], math.nan)
    columns = {}
    for key, column in found.items():
        columns[key] = undefined.copy()
        columns[key][finite & ~constant] = column
    with np.errstate(invalid="ignore", over="ignore"):
        mean, sd = draws.mean(axis=(0, 1)), _deviation(draws)
    return Quantity(name, is_function, size, int(constant.sum()), int((~finite).sum()), mean, sd, **columns)


def _deviation(draws: Array) -> Array:
    count = draws.shape[0] * draws.shape[1]
    return draws.std(axis=(0, 1), ddof=1) if count > 1 else np.full(draws.shape[2], math.nan)


def _by_hand(draws: Array) -> dict[str, Array]:
    """Of independent draws: their mean is as sure as their number says, and the rest is undefined."""
    undefined = np.full(draws.shape[2], math.nan)
    error = _deviation(draws) / math.sqrt(draws.shape[0] * draws.shape[1])
    return {"mcse_mean": error, "r_hat": undefined, "ess_bulk": undefined, "ess_tail": undefined}


def _by_arviz(draws: Array) -> dict[str, Array]:
    undefined = np.full(draws.shape[2], math.nan)
    if draws.shape[1] < FEWEST_DRAWS or draws.shape[2] == 0:
        return dict.fromkeys(("mcse_mean", "r_hat", "ess_bulk", "ess_tail"), undefined)
    arviz = optional.arviz
    data = optional.xarray.Dataset({"v": (("chain", "draw", "entry"), draws)})
    with np.errstate(all="ignore"):  # chains that stand still divide 0 by 0
        found = {
            "mcse_mean": arviz.mcse(data, method="mean")["v"].values,
            "ess_bulk": arviz.ess(data, method="bulk")["v"].values,
            "ess_tail": arviz.ess(data, method="tail")["v"].values,
            "r_hat": undefined if draws.shape[0] < 2 else arviz.rhat(data)["v"].values,
        }
    if draws.shape[0] > 1:
        stuck = (draws.max(axis=1) == draws.min(axis=1)).all(axis=0)
        found["r_hat"] = np.where(stuck, math.inf, found["r_hat"])
    return {name: np.asarray(column, dtype=np.float64) for name, column in found.items()}


def extreme(choose: Any, values: Array) -> float:
    """The largest or smallest of the numbers that are defined; NaN where none is."""
    defined = values[~np.isnan(values)]
    return float(choose(defined)) if len(defined) else math.nan
