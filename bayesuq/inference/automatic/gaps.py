"""Where a table has no rows: new rows that crowd there are no rows like those that judged the fit.

New rows of the same kind are as likely to fall between any two neighbouring values of a column as between any others:
m and more of n fall between two given ones, of N rows that were fitted, with probability

    prod_{j<m} (n - j) / (N + n - j)

(a negative hypergeometric law; the values of a column are exchangeable). Where that is next to nothing for some gap, as
where the middle third of a column was left out (Foong et al. 2019), held-out rows have not said how wide intervals
there must be.

Reference:
    Foong, Li, Hernandez-Lobato & Turner 2019, 'In-Between' Uncertainty in Bayesian Neural Networks, section 5.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

MOST_GAPS = 64  # of a column, the widest
NEAR = 0.125  # standard deviations: what lies nearer to a fitted value than this is much like it
RARE = 1e-6  # probability that is next to nothing


class Crowd(NamedTuple):
    """New rows in one gap of a column.

    Attributes:
        column: Its number.
        low: The fitted value below them, in standard units; minus infinity where there is none.
        high: The one above them.
        number: Of the rows.
    """

    column: int
    low: float
    high: float
    number: int


def widest_gaps(x: Tensor) -> Tensor:
    """The widest intervals without a row in each column, and all beyond the ends.

    Args:
        x: Fitted rows in standard units, (N, F).

    Returns:
        (F, K, 2), lower and upper ends in float64, in rising order; a column of few values has some of no width.

    Example:
        >>> widest_gaps(torch.tensor([[0.0], [1.0], [3.0]])).tolist()
        [[[-inf, 0.0], [0.0, 1.0], [1.0, 3.0], [3.0, inf]]]
    """
    ordered = x.double().mT.sort(dim=1).values  # (F, N)
    low, high = ordered[:, :-1], ordered[:, 1:]
    widest = (high - low).topk(min(MOST_GAPS, low.shape[1]), dim=1).indices.sort(dim=1).values
    inner = torch.stack([low.gather(1, widest), high.gather(1, widest)], dim=2)
    ends = torch.full((len(ordered), 1), torch.inf, dtype=torch.float64, device=x.device)
    first, last = (torch.stack(pair, dim=2) for pair in ((-ends, ordered[:, :1]), (ordered[:, -1:], ends)))
    return torch.cat([first, inner, last], dim=1)


def crowds(gaps: Tensor, num_rows: int, x: Tensor) -> list[Crowd]:
    """Gaps that hold more new rows, none of them near an end, than rows of the same kind ever would; the fullest first.

    Args:
        gaps: Of `widest_gaps`, (F, K, 2).
        num_rows: N, that were fitted.
        x: New rows in standard units, (n, F).
    """
    found = []
    for column, (ends, values) in enumerate(zip(gaps, x.to(gaps).mT.contiguous(), strict=True)):
        low, high = ends.unbind(dim=1)
        place = (torch.searchsorted(low.contiguous(), values) - 1).clamp(min=0)
        is_far = torch.minimum(values - low[place], high[place] - values) > NEAR
        counts = torch.bincount(place[is_far], minlength=len(ends))
        fullest = int(counts.argmax())
        count = int(counts[fullest])
        if count and _log_probability(count, len(x), num_rows) + math.log(x.shape[1]) < math.log(RARE):
            found.append(Crowd(column, float(low[fullest]), float(high[fullest]), count))
    return sorted(found, key=lambda crowd: -crowd.number)


def _log_probability(count: int, number: int, num_rows: int) -> float:
    """A bound on that of so many of the new rows in any one of the N + 1 gaps."""
    inside = math.lgamma(number + 1) - math.lgamma(number - count + 1)
    anywhere = math.lgamma(num_rows + number + 1) - math.lgamma(num_rows + number - count + 1)
    return math.log(num_rows + 1) + inside - anywhere
