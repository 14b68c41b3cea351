"""Whether a loss was still falling when its fit ended, read from its own course.

With a rate that falls to 0 every loss comes to rest, converged or not. So the course is read against the path made,

    tau(t) = sum of the rates until t, over their sum in the whole fit,

along which a loss that has far to go falls on as ever. The noise of minibatches and draws also dies away with the rate,
which looks like a fall and is none: it is told apart as a part in proportion to the rate,

    loss(t) = level + slope * (1 - tau(t)) + floor * rate(t),   floor >= 0,

by least squares that discount outliers (Huber 1964), once over the last three fifths of the steps and once over the
last two. Where the second slope is the smaller, the curve bends, and its slope at the end is as much smaller again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bayesuq.inference.training.options import Schedule

EARLY, LATE = 0.4, 0.6  # shares of the steps, from where on the course is looked at
FEWEST_POINTS, USUAL_POINTS = 20, 60  # of a course
MOST_BLOCKS = 20  # whose means are looked at
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
    (early, early_error), (late, late_error) = (_slope(course, schedule, share) for share in (EARLY, LATE))
    if early <= 0 or late <= 0:
        return Trend(0.0, is_certain=False)
    certain = early > EARLY_ERRORS * early_error and late > LATE_ERRORS * late_error
    return Trend(HORIZON * min(early, late**2 / early), is_certain=certain)


def _slope(course: np.ndarray, schedule: Schedule, share: float) -> tuple[float, float]:
    """The slope along the path over what follows that share of the steps, and its standard error."""
    t = (np.arange(len(course)) + 0.5) / len(course)
    constant = schedule == "constant"
    rate = np.ones_like(t) if constant else 0.5 * (1 + np.cos(math.pi * t))
    left = 1 - (t if constant else t + np.sin(math.pi * t) / math.pi)
    chosen = np.flatnonzero(t >= share)
    blocks = np.array_split(chosen, min(MOST_BLOCKS, len(chosen)))  # whose means are nearly independent
    y, left, rate = (np.array([values[block].mean() for block in blocks]) for values in (course, left, rate))
    level = np.ones_like(left)
    if not constant:
        values, errors = _robust(np.stack([level, left, rate], axis=1), y)
        if values[2] >= 0:
            return values[1], errors[1]
    values, errors = _robust(np.stack([level, left], axis=1), y)
    return values[1], errors[1]


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
    inverse = np.linalg.inv(design.T @ (design * weight[:, None]))
    # The weighted residuals' variance, by as many of them as there are: outliers make an estimate less certain.
    variance = float((weight * residual**2).sum()) / freedom
    return values, np.sqrt(variance * np.diag(inverse))
