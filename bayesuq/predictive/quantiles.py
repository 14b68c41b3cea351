"""Quantiles of mixtures: the mixture's cdf is inverted, never the components' quantiles averaged."""

from collections.abc import Callable

import torch
from torch import Tensor

from bayesuq.waiting import numbers

MOST_DOUBLINGS = 1000  # of a width, from the smallest number to the largest
QUANTILE_STEPS = 240  # at most: 60 halvings reach float64 resolution, and Newton's steps between them halve too
BETWEEN_LOOKS = 16  # steps, on an accelerator, at whether all are done: it would be waited for


def continuous_quantile(
    lower: Tensor, upper: Tensor, cdf_and_density: Callable[[Tensor], tuple[Tensor, Tensor]], level: float | Tensor
) -> Tensor:
    """The root of cdf = level between `lower` and `upper`, entry by entry, by Newton's steps within a bracket.

    Args:
        lower: Below the quantile, such as the smallest of the components' quantiles.
        upper: Above it.
        cdf_and_density: Of the mixture at a point.
        level: The cdf's value, in (0, 1), for all entries or for each.
    """
    if lower.requires_grad or upper.requires_grad:
        with torch.no_grad():
            point = continuous_quantile(lower.detach(), upper.detach(), cdf_and_density, level)
        cdf, density = cdf_and_density(point)
        excess = cdf - level
        return point - (excess - excess.detach()) / density.detach()  # the root moves as a step of Newton's does
    point, move = (lower + upper) / 2, upper - lower
    done = torch.zeros_like(lower, dtype=torch.bool)
    between_looks = 1 if point.device.type == "cpu" else BETWEEN_LOOKS
    for step in range(1, QUANTILE_STEPS + 1):
        cdf, density = cdf_and_density(point)
        excess = cdf - level
        lower, upper = torch.where(excess < 0, point, lower), torch.where(excess < 0, upper, point)
        newton, middle = point - excess / density, (lower + upper) / 2
        # Between two modes the density is nearly 0: Newton's step leads far out, or creeps. Then halve the bracket.
        usable = (newton >= lower) & (newton <= upper) & ((newton - point).abs() <= move / 2)
        following = torch.where(usable, newton, middle)
        done |= (excess.abs() <= 1e-15 * level) | ((following - point).abs() <= 1e-15 * point.abs())  # rounding
        move = (following - point).abs()
        point = torch.where(done, point, following)
        if step % between_looks == 0 and numbers(done.all())[0]:
            break
    return point


def bracket(lower: Tensor, upper: Tensor, cdf: Callable[[Tensor], Tensor], level: float) -> tuple[Tensor, Tensor]:
    """Ends between which cdf = level is crossed, entry by entry, by moving those that are short of it out and out.

    Args:
        lower: Where to begin, finite; the end of the support, where there is one.
        upper: Likewise, at least `lower`.
        cdf: At points.
        level: In (0, 1).
    """
    width = (upper - lower).clamp(min=1e-3 * (1 + lower.abs()))
    for _ in range(MOST_DOUBLINGS):
        above, below = cdf(lower) > level, cdf(upper) < level
        if not bool((above | below).any()):
            return lower, upper
        lower, upper = torch.where(above, lower - width, lower), torch.where(below, upper + width, upper)
        width = 2 * width
    return lower, upper


def count_quantile(mean: Tensor, cdf: Callable[[Tensor], Tensor], level: float) -> Tensor:
    """The smallest count whose cdf reaches `level`, entry by entry: by doubling, then by halving the bracket.

    Args:
        mean: Where to begin, at least 0.
        cdf: Of the mixture, at counts.
        level: In (0, 1).
    """
    lower, upper = torch.full_like(mean, -1.0), mean.ceil()
    short = cdf(upper) < level
    while short.any():
        lower, upper = torch.where(short, upper, lower), torch.where(short, 2 * upper + 1, upper)
        short = cdf(upper) < level
    while bool((upper - lower > 1).any()):
        middle = ((lower + upper) / 2).floor()
        reached = cdf(middle) >= level
        lower, upper = torch.where(reached, lower, middle), torch.where(reached, middle, upper)
    return upper
