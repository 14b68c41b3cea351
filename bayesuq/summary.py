"""What a posterior says of its parameters, as a table: mean, spread and quantiles of every number, under its name.

Few numbers of a site are told one by one; a layer of a network takes one line, in which the mean is that of the means,
the standard deviation the median one, and the quantiles are those of all draws of all its numbers together. Of chains
R-hat is told, split and of ranks, of the worst number of a line; it says nothing of independent draws.

Reference:
    Vehtari et al. 2021, Rank-Normalization, Folding, and Localization: An Improved R-hat, section 3.1.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

__all__ = ["Line", "Summary", "summarise"]
__dir__ = __all__.copy

ONE_BY_ONE = 12  # numbers of a site, beyond which they share a line
FEWEST_DRAWS = 4  # of a chain, for R-hat
LEVELS = (0.05, 0.95)


@dataclass(frozen=True)
class Line:
    """One number, or several of one site.

    Attributes:
        name: The site's, with the place of the number in it, as `w[0, 1]`.
        count: Numbers that it tells of.
        mean: Of the draws.
        sd: Standard deviation of the draws; 0 of a point value.
        lower: Quantile .05 of the draws.
        upper: Quantile .95.
        r_hat: Of chains; None of independent draws.
    """

    name: str
    count: int
    mean: float
    sd: float
    lower: float
    upper: float
    r_hat: float | None = None


@dataclass(frozen=True)
class Summary:
    """The parameters of a posterior.

    Attributes:
        lines: In the order of the sites.
        num_samples: S, draws that they are from.
        num_chains: C; None of independent draws.
    """

    lines: tuple[Line, ...]
    num_samples: int
    num_chains: int | None = None

    def __getitem__(self, name: str) -> Line:
        for line in self.lines:
            if line.name == name:
                return line
        raise KeyError(f"no parameter {name!r}; there are {', '.join(line.name for line in self.lines)}")

    def __str__(self) -> str:
        chains = "" if self.num_chains is None else f" in {self.num_chains} chains"
        draws = "point values" if self.num_samples == 1 else f"{self.num_samples} draws{chains}"
        titles = ["", "mean", "sd", "5 %", "95 %"] + ([] if self.num_chains is None else ["R-hat"])
        rows = [titles, *(self._cells(line) for line in self.lines)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        texts = [
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(pairs)
            )
            for pairs in ([*zip(row, widths, strict=True)] for row in rows)
        ]
        return "\n".join([draws, *(text.rstrip() for text in texts)])

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain data by name, for a data frame: `pandas.DataFrame.from_dict(summary.to_dict(), orient="index")`."""
        return {line.name: {key: value for key, value in asdict(line).items() if key != "name"} for line in self.lines}

    def _cells(self, line: Line) -> list[str]:
        name = line.name if line.count == 1 else f"{line.name} ({line.count:,} numbers)"
        numbers = [f"{value:.4g}" for value in (line.mean, line.sd, line.lower, line.upper)]
        worst = [] if self.num_chains is None else ["" if line.r_hat is None else f"{line.r_hat:.3f}"]
        return [name, *numbers, *worst]


def summarise(sites: Mapping[str, Tensor], num_chains: int | None = None) -> Summary:
    """The table of draws of sites.

    Args:
        sites: Draws by name, (S, ...), those of chains one chain after another.
        num_chains: C; None of independent draws.

    Raises:
        ValueError: No site.
    """
    if not sites:
        raise ValueError("This posterior has no parameters to tell of: its draws are no sets of weights.")
    lines = tuple(line for name, draws in sites.items() for line in _lines(name, draws.detach(), num_chains))
    return Summary(lines, len(next(iter(sites.values()))), num_chains)


def _lines(name: str, draws: Tensor, num_chains: int | None) -> Iterator[Line]:
    values = draws.double().cpu().reshape(len(draws), -1)
    worst = None if num_chains is None else rank_r_hat(values.reshape(num_chains, -1, values.shape[1]))
    if values.shape[1] > ONE_BY_ONE:
        r_hat = None if worst is None or worst.isnan().all() else float(worst[~worst.isnan()].max())
        spread = values.std(dim=0).median() if len(values) > 1 else values.new_zeros(())
        yield Line(name, values.shape[1], float(values.mean()), float(spread), *_quantiles(values.flatten()), r_hat)
        return
    places = list(product(*[range(size) for size in draws.shape[1:]]))
    for column, place in enumerate(places):
        one = values[:, column]
        spread = one.std() if len(one) > 1 else one.new_zeros(())
        r_hat = None if worst is None or bool(worst[column].isnan()) else float(worst[column])
        label = f"{name}[{', '.join(map(str, place))}]" if draws[0].numel() > 1 else name
        yield Line(label, 1, float(one.mean()), float(spread), *_quantiles(one), r_hat)


def _quantiles(values: Tensor) -> tuple[float, float]:
    ranked = values.sort().values  # torch.quantile refuses many numbers
    places = [level * (len(ranked) - 1) for level in LEVELS]
    ends = [torch.lerp(ranked[int(at)], ranked[min(int(at) + 1, len(ranked) - 1)], at - int(at)) for at in places]
    return float(ends[0]), float(ends[1])


def rank_r_hat(draws: Tensor) -> Tensor:
    """Split R-hat of normal scores of ranks, of each column of (C, D, M), (M,); NaN of few draws and of constants."""
    half = draws.shape[1] // 2
    if draws.shape[1] < FEWEST_DRAWS:
        return draws.new_full((draws.shape[2],), math.nan)
    halves = torch.cat([draws[:, :half], draws[:, -half:]])
    flat = halves.reshape(-1, halves.shape[2])
    ranks = torch.stack([_middle_ranks(column) for column in flat.unbind(dim=1)], dim=1)
    scores = torch.special.ndtri((ranks - 0.375) / (len(flat) + 0.25)).reshape(halves.shape)
    within = scores.var(dim=1).mean(dim=0)
    between = scores.mean(dim=1).var(dim=0)
    return torch.where(within > 0, (((half - 1) / half * within + between) / within).sqrt(), math.nan)


def _middle_ranks(values: Tensor) -> Tensor:
    """From 1 on, equal values at the mean of their ranks."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    upto = counts.cumsum(0).double()
    return (upto - (counts - 1) / 2)[place]
