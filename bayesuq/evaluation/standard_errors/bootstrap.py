"""How far any measure would move on other test points: each row counts a Poisson(1) number of times, again and again.

The counts of a replicate depend on the seed and its number alone, so that two measures, or two predictives, can be
given the same: their difference then has the standard error of a paired comparison, often far smaller than that of
either.

Reference: Hanley and MacGibbon, "Creating non-parametric bootstrap samples using Poisson frequencies", CMPB 2006.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.evaluation.standard_errors.weighted import Weighted
from bayesuq.randomness import generator

__all__ = ["paired_difference"]
__dir__ = __all__.copy

BLOCK_NUMBERS = 2**21  # weights of values held at a time: 16 MiB in float64


@dataclass(frozen=True)
class Estimate:
    """A number and how far it would move on other test points.

    Attributes:
        value: In the unit of the measure.
        standard_error: In the same unit; NaN where it is undefined.
    """

    value: float
    standard_error: float


def replicates(measure: Weighted, *, num_replicates: int = 200, seed: int = 0) -> Tensor:
    """The measure on R bootstrap samples of its rows.

    Args:
        measure: From `weighted`, with its N rows.
        num_replicates: R.
        seed: Of the counts; each replicate's depend on the seed and its number alone.

    Returns:
        (R,), float64; NaN for samples on which it is undefined.

    Raises:
        TypeError: `num_replicates` or `seed` is not a whole number.
        ValueError: Fewer than two replicates, or a negative seed.

    Example:
        >>> from bayesuq.evaluation.standard_errors.weighted import mean
        >>> replicates(mean(torch.tensor([3.0, 3.0, 3.0])), num_replicates=2)
        tensor([3., 3.], dtype=torch.float64)
    """
    check_count(num_replicates, "num_replicates", minimum=2)
    check_count(seed, "seed", minimum=0)
    block = max(1, BLOCK_NUMBERS // max(measure.num_values, 1))
    blocks = [range(num_replicates)[start : start + block] for start in range(0, num_replicates, block)]
    return torch.cat([measure(_counts(measure.num_rows, numbers, seed, measure.device)) for numbers in blocks])


def standard_error(measure: Weighted, *, num_replicates: int = 200, seed: int = 0) -> Tensor:
    """Standard deviation of the replicates; its own relative error is about 1 / sqrt(2 R). See `replicates`.

    Samples on which the measure is undefined are left out: few, unless the test set has very few rows of a kind.

    Returns:
        In the unit of the measure, 0-d float64; NaN for one row, which tells nothing of others, and where fewer than
        two samples are left.
    """
    values = replicates(measure, num_replicates=num_replicates, seed=seed)
    kept = values[values.isfinite()]
    is_known = measure.num_counting > 1 and len(kept) > 1
    return kept.std() if is_known else torch.full_like(values[0], torch.nan)


def paired_difference(one: Weighted, other: Weighted, *, num_replicates: int = 200, seed: int = 0) -> Estimate:
    """`one` - `other` of the same test points, resampled together.

    Args:
        one: From `bayesuq.evaluation.standard_errors.weighted`, with its N rows.
        other: The same of another predictive, or another measure.
        num_replicates: Bootstrap samples of the rows.
        seed: Of how often each row counts.

    Raises:
        TypeError: `num_replicates` or `seed` is not a whole number.
        ValueError: Another number of rows; fewer than two replicates, or a negative seed.
    """
    difference = one - other
    error = standard_error(difference, num_replicates=num_replicates, seed=seed)
    return Estimate(float(difference.value), float(error))


@lru_cache(maxsize=1)
def _counts(num_rows: int, numbers: range, seed: int, device: torch.device) -> Tensor:
    """How often each row counts in each replicate, (R, N); the measures of a report ask for the same, one by one."""
    rate = torch.ones(num_rows, dtype=torch.float64, device=device)
    return torch.stack([torch.poisson(rate, generator=generator(seed, number, device=device)) for number in numbers])
