"""Whether a loss was still falling when its fit ended, read from its own course.

With a rate that falls to 0 every loss comes to rest, converged or not. So the course is read against the path made,

    tau(t) = sum of the rates until t, over their sum in the whole fit,

along which a loss that has far to go falls on as ever. The noise of minibatches and draws also dies away with the rate,
which looks like a fall and is none: it is told apart as a part in proportion to the rate,

    loss(t) = level + slope * (1 - tau(t)) + floor * rate(t),   floor >= 0,

by least squares that discount outliers (Huber 1964), once over the last three fifths of the steps and once over the
last two. Where the second slope is the smaller, the curve bends, and its slope at the end is as much smaller again.

Of losses on the same rows at a few times (`bayesuq.inference.training.looks`) the slopes also differ from row to row
and from mask to mask: with R of N rows, M masks each, and s_rm the slope of row r under mask m,

    error^2 = (1 - R / N) var_r(mean_m s_rm) / R + mean_r(var_m s_rm) / (M N)

(Cochran 1977, section 10.3), which is added to that of the scatter.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesuq.inference.training.options import Schedule

EARLY, LATE = 0.4, 0.6  # shares of the steps, from where on the course is looked at
FEWEST_POINTS, USUAL_POINTS = 20, 60  # of a course
MOST_BLOCKS = 20  # whose means are looked at
ROUNDED = 0.02  # share of the steps that a time may be before its own, being that of a whole step
ROBUST = 1.5  # robust standard deviations, beyond which a residual counts less
ROUNDS = 20  # of reweighting
HORIZON = 0.1  # of a fit, that the fall is projected to
EARLY_ERRORS, LATE_ERRORS = 3.0, 1.0  # standard errors, by which both slopes must exceed 0


@dataclass(frozen=True)
class Trend:
    """How a loss was falling at the end.

    Attributes:
        fall: What it would fall by in another tenth of the fit at its mean rate, in nats a data point.
        is_certain: Whether it does fall, beyond what the scatter of the course explains.
    """

    fall: float
    is_certain: bool

    def exceeds(self, tolerance: float) -> bool:
        """Whether it surely falls, and by more than the tolerance."""
        return self.is_certain and self.fall > tolerance


def trend(losses: Sequence[float], schedule: Schedule) -> Trend | None:
    """The trend at the end of a course that ran through its whole schedule; None where it has too few points.

    Args:
        losses: Mean losses of equal parts of the fit, from first to last, in nats a data point.
        schedule: Of the learning rate.
    """
    course = np.asarray(losses, dtype=np.float64)
    if len(course) < FEWEST_POINTS or not np.isfinite(course).all():
        return None
    t = (np.arange(len(course)) + 0.5) / len(course)

    def slope(share: float) -> tuple[float, float]:
        chosen = np.flatnonzero(t >= share)
        blocks = np.array_split(chosen, min(MOST_BLOCKS, len(chosen)))  # whose means are nearly independent
        value, error, _ = _line(_terms(t, schedule, blocks), _means(course, blocks))
        return value, error

    return _projected(slope(EARLY), slope(LATE))


def paired_trend(losses: np.ndarray, times: np.ndarray, num_data: int, schedule: Schedule) -> Trend | None:
    """The trend of losses of the same rows under the same masks; None where they are not finite.

    Args:
        losses: At T times, under M masks, of R rows, (T, M, R), in nats a data point.
        times: Shares of the steps made, (T,), from `EARLY` to 1.
        num_data: N, of which the R rows are some.
        schedule: Of the learning rate.
    """
    if not np.isfinite(losses).all():
        return None

    def slope(share: float) -> tuple[float, float]:
        blocks = [np.array([number]) for number in np.flatnonzero(times >= share - ROUNDED)]
        seen = np.stack([losses[block[0]] for block in blocks])
        value, scatter, terms = _line(_terms(times, schedule, blocks), seen.mean(axis=(1, 2)))
        return value, math.hypot(scatter, _error_of_rows(terms, seen, num_data))

    return _projected(slope(EARLY), slope(LATE))


def _projected(early: tuple[float, float], late: tuple[float, float]) -> Trend:
    """The trend of two slopes, each with its standard error."""
    if early[0] <= 0 or late[0] <= 0:
        return Trend(0.0, is_certain=False)
    certain = early[0] > EARLY_ERRORS * early[1] and late[0] > LATE_ERRORS * late[1]
    return Trend(float(HORIZON * min(early[0], late[0] ** 2 / early[0])), is_certain=bool(certain))


def _terms(t: np.ndarray, schedule: Schedule, blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Level, what is left of the path and, where it falls, the rate, in columns: their means over blocks of times."""
    level, rate, left = np.ones_like(t), 0.5 * (1 + np.cos(math.pi * t)), 1 - (t + np.sin(math.pi * t) / math.pi)
    columns = (level, 1 - t) if schedule == "constant" else (level, left, rate)
    return np.stack([_means(column, blocks) for column in columns], axis=1)


def _means(values: np.ndarray, blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([values[block].mean() for block in blocks])


def _line(terms: np.ndarray, y: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The slope along the path, its standard error by the scatter, and the terms: a floor below 0 is left out."""
    terms = terms[:, : len(y)]  # two times tell of no floor
    values, errors = _robust(terms, y)
    if terms.shape[1] == 3 and values[2] < 0:
        terms = terms[:, :2]
        values, errors = _robust(terms, y)
    return float(values[1]), float(errors[1]), terms


def _error_of_rows(terms: np.ndarray, losses: np.ndarray, num_data: int) -> float:
    """The standard error of the slope by rows and masks, as the module's docstring has it."""
    slopes = np.tensordot(np.linalg.pinv(terms)[1], losses, axes=1)
    num_masks, num_rows = slopes.shape
    rows = (1 - num_rows / num_data) * slopes.mean(axis=0).var(ddof=1) / num_rows
    masks = slopes.var(axis=0, ddof=1).mean() / (num_masks * num_data)
    return math.sqrt(rows + masks)


def _robust(design: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients and their standard errors, outliers discounted."""
    weight = np.ones_like(y)
    for _ in range(ROUNDS):
        root = np.sqrt(weight)[:, None]
        values = np.linalg.lstsq(design * root, y * root[:, 0], rcond=None)[0]
        residual = y - design @ values
        spread = 1.4826 * np.median(np.abs(residual)) + np.finfo(np.float64).tiny
        weight = 1 / np.maximum(1.0, np.abs(residual) / (ROBUST * spread))
    freedom = max(len(y) - design.shape[1], 1)
    inverse = np.linalg.pinv(design.T @ (design * weight[:, None]))
    # The weighted residuals' variance, by as many of them as there are: outliers make an estimate less certain.
    variance = float((weight * residual**2).sum()) / freedom
    return values, np.sqrt(variance * np.diag(inverse))
