"""Quantiles of mixtures: the mixture's cdf is inverted, never the components' quantiles averaged.

Letters: S laws of a mixture, N mixtures, L levels.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayesuq.waiting import numbers

MOST_DOUBLINGS = 1000  # of a width, from the smallest number to the largest
QUANTILE_STEPS = 240  # at most: 60 halvings reach float64 resolution, and Newton's steps between them halve too
SURE_STEP = 4e-6  # of the narrowest law's scale: what a step of third order leaves is the cube of it, below rounding
MOST_BENT = 100.0  # times Newton's step that Halley's is shorter; beyond, neither is to be trusted
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
        return moving_root(point, cdf_and_density, level)
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


def moving_root(
    point: Tensor, cdf_and_density: Callable[[Tensor], tuple[Tensor, Tensor]], level: float | Tensor
) -> Tensor:
    """The root of cdf = level, whose value is known, with its derivatives: it moves as a step of Newton's does."""
    cdf, density = cdf_and_density(point)
    excess = cdf - level
    return point - (excess - excess.detach()) / density.detach()


@torch.no_grad()
def normal_mixture_quantiles(means: Tensor, scales: Tensor, weights: Tensor, levels: Sequence[float]) -> list[Tensor]:
    """The quantiles of mixtures of normal laws, each (N,), by steps of third order within a bracket.

    The probit of a mixture's cdf is nearly a straight line: of one law it is one. So z = Phi^-1(F(x)) is brought to the
    level's by Halley's steps, with

        z' = p(x) / phi(z),    z'' / z' = p'(x) / p(x) + z z',

    from the point where the normal law of the mixture's moments has the level; two or three steps reach rounding.
    Levels above one half are those below it of the mirrored mixture, so that both tails are as exact.

    Args:
        means: Of the laws, (S, N), float64.
        scales: Their standard deviations, above 0, (S, N), or one along either dimension.
        weights: Of the laws, (S,), summing to 1.
        levels: In (0, 1).
    """
    mean = weights @ means
    variance = weights @ (means - mean).square() + weights @ scales.square().expand_as(means)
    deviation = variance.sqrt()

    def of(level: float) -> Tensor:
        standard = float(torch.special.ndtri(torch.tensor(min(level, 1 - level), dtype=torch.float64)))
        if level <= 0.5:
            return _lower_quantile(means, scales, weights, level, standard, mean + deviation * standard)
        return -_lower_quantile(-means, scales, weights, 1 - level, standard, deviation * standard - mean)

    return [of(level) for level in levels]


def _lower_quantile(
    means: Tensor, scales: Tensor, weights: Tensor, level: float, standard: float, start: Tensor
) -> Tensor:
    """The quantile of a level up to one half, (N,); mixtures that are done are left out of further steps."""
    lower, upper = (means + scales * standard).aminmax(dim=0)
    point, move = start.clamp(lower, upper), upper - lower
    rates, near = math.sqrt(0.5) / scales, SURE_STEP * scales.amin(dim=0).expand_as(start)
    rounding = 1e-15 * (1 + standard**2) * level  # of the cdf, whose arguments are rounded, too
    quantile, rows = point.clone(), torch.arange(len(point), device=point.device)
    for _ in range(QUANTILE_STEPS):
        cdf, density, slope = _tail_density_slope(means, rates, weights, point)
        lower, upper = torch.where(cdf < level, point, lower), torch.where(cdf < level, upper, point)
        probit = torch.special.ndtri(cdf)
        probit_slope = density * math.sqrt(math.tau) * torch.exp(probit.square() / 2)
        newton = (standard - probit) / probit_slope
        halley = newton / (1 + newton * (slope / density + probit * probit_slope) / 2)
        # Between two modes the density is nearly 0: a step leads far out, or creeps. Then halve the bracket.
        following, creeps = point + halley, ~(halley.abs() >= newton.abs() / MOST_BENT)
        usable = (following >= lower) & (following <= upper) & (halley.abs() <= move / 2) & ~creeps
        following = torch.where(usable, following, (lower + upper) / 2)
        move = (following - point).abs()
        exact = (cdf - level).abs() <= rounding
        done = exact | (usable & (newton.abs() <= near)) | (move <= 1e-15 * point.abs())
        quantile[rows] = point = torch.where(exact, point, following)
        left = (~done).nonzero().squeeze(-1)
        if not len(left):
            break
        if len(left) < len(rows):
            means, rates = means[:, left], rates[:, left] if rates.shape[1] > 1 else rates
            rows, point, lower, upper, move, near = (each[left] for each in (rows, point, lower, upper, move, near))
    return quantile


def _tail_density_slope(means: Tensor, rates: Tensor, weights: Tensor, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """F, p and p' of each mixture at a point, (N,), with rates of 1 / (sqrt 2 scale)."""
    standardised = (means - point).mul_(rates)
    bells = standardised.square().neg_().exp_()
    density = _weighed(weights, bells, rates) / math.sqrt(math.pi)
    slope = 2 * _weighed(weights, bells.mul_(standardised), rates.square()) / math.sqrt(math.pi)
    return weights @ standardised.erfc_() / 2, density, slope


def _weighed(weights: Tensor, values: Tensor, factors: Tensor) -> Tensor:
    """The weighted sum over laws of values times factors, (N,), where these may be one along either dimension."""
    if factors.shape[1] == 1:
        return (weights * factors.squeeze(1)) @ values
    return (weights @ values) * factors.squeeze(0) if len(factors) == 1 else weights @ (values * factors)


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
