"""Scores in order: what the measures of `detection` count, found by sorting once."""

import warnings
from functools import partial
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.arrays import ArrayLike, check_finite_number, to_tensor
from bayesuq.evaluation.binning import counts_by_bin
from bayesuq.waiting import check, note, numbers

WHAT_POSITIVE = "It comes after `scores`: say what is positive, as by `y == 1`."


class Sides(NamedTuple):
    """The scores of the positives and of the negatives, each in rising order."""

    positives: Tensor
    negatives: Tensor

    @classmethod
    def of(cls, scores: ArrayLike, positives: ArrayLike) -> Self:
        """Sort both; the errors are those that `detection.auroc` lists."""
        values, positive = (each.flatten() for each in check_scores(scores, positives))
        chosen, others = picks(positive)
        return cls(rising(values[chosen]), rising(values[others]))

    def num_caught(self) -> Tensor:
        """Positives at or above the score of each positive."""
        return len(self.positives) - ties(self.positives)[0]

    def num_false_alarms(self) -> Tensor:
        """Negatives at or above the score of each positive."""
        return len(self.negatives) - torch.searchsorted(self.negatives, self.positives)

    @property
    def undefined(self) -> Tensor:
        """NaN, where there is nothing to count."""
        return torch.full((), torch.nan, dtype=torch.float64, device=self.positives.device)


class Places(NamedTuple):
    """Where the points with a loss stand in the rising order of all scores."""

    losses: Tensor  # above 0, float64
    below: Tensor  # points of lower score than each
    up_to: Tensor  # points of the same score or lower
    num_points: int

    @classmethod
    def of(cls, scores: ArrayLike, errors: ArrayLike) -> Self:
        """Sort once and look the losses up; the errors are those that `detection.risk_coverage` lists."""
        values, losses = (each.flatten() for each in check_losses(scores, errors))
        return cls.among(values, losses, picks(losses > 0))

    @classmethod
    def among(cls, values: Tensor, losses: Tensor, picked: tuple[Tensor, Tensor]) -> Self:
        """As `of`, for scores and losses, (n,), that are checked, and what picks those with a loss and the others."""
        lossy, lossless = picked
        asked, positive_losses = _sortable(values[lossy]), losses[lossy]
        on_host = values.device.type == "cpu"
        if on_host and bool((positive_losses == positive_losses[:1]).all()):  # right or wrong: which is which is alike
            asked = rising(asked)
        else:
            asked, order = asked.sort()
            positive_losses = positive_losses[order]
        among_lossless, among_lossy = places_in(rising(values[lossless]), asked), ties(asked)
        below, up_to = (one + other for one, other in zip(among_lossless, among_lossy, strict=True))
        return cls(positive_losses, below, up_to, len(values))

    def mean_risk(self) -> Tensor:
        """The area under risk against coverage, 0-d."""
        return (self.losses * self.mean_weight()).sum() / self.num_points

    def mean_weight(self) -> Tensor:
        """Mean of sum_(k >= j) 1/k over the places j = below + 1, ..., up_to of each point's tie."""
        # A loss at place j is in the selective risks of k = j, ..., n, in each with weight 1/k.
        below, up_to = self.below.double(), self.up_to.double()
        total = below.new_tensor(self.num_points)
        return (head_weight(up_to, total) - head_weight(below, total)) / (up_to - below)


def head_weight(place: Tensor, total: Tensor) -> Tensor:
    """sum_(i <= j) sum_(i <= k <= n) 1/k at place j of n: what errors in the first j places add to n AURC."""
    # It is j (H_n - H_j + 1), and H_x = digamma(x + 1) + a constant, for any weight x.
    return place * (torch.digamma(total + 1) - torch.digamma(place + 1) + 1)


def places_in(ranked: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    """How many of `ranked` lie below each of `asked`, and how many at it or below; both stand in rising order."""
    below = torch.searchsorted(ranked, asked)
    if len(ranked) == 0:
        return below, below
    if ranked.device.type != "cpu":
        return below, torch.searchsorted(ranked, asked, right=True)
    # Only what has an equal needs a second search.
    tied = (ranked[below.clamp(max=len(ranked) - 1)] == asked).nonzero().squeeze(1)
    return below, below.index_copy(0, tied, torch.searchsorted(ranked, asked[tied], right=True))


def ties(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """As `places_in` of sorted values among themselves: where the tie of each begins and ends."""
    if ranked.device.type != "cpu" or bool((ranked[1:] == ranked[:-1]).any()):
        return torch.searchsorted(ranked, ranked), torch.searchsorted(ranked, ranked, right=True)
    place = torch.arange(len(ranked), device=ranked.device)
    return place, place + 1


def tie_groups(ranked: Tensor) -> tuple[Tensor, Tensor]:
    """Of sorted values, (n,), the number of each one's tie, (n,), and how many each tie has, followed by zeros."""
    if ranked.device.type == "cpu":
        group, sizes = ranked.unique_consecutive(return_inverse=True, return_counts=True)[1:]
        return group, sizes
    group = functional.pad((ranked[1:] != ranked[:-1]).long().cumsum(0), (1, 0))
    return group, counts_by_bin(group, len(ranked))


def picks(mask: Tensor) -> tuple[Tensor, Tensor]:
    """What picks the points where a mask, (n,), holds, and what the others.

    They are masks; of an accelerator, which is waited for once, places, since a mask would be waited for at each use.
    """
    if mask.device.type == "cpu":
        return mask, ~mask
    number = int(numbers(mask.sum())[0])
    sizes = ((mask, number), (~mask, len(mask) - number))
    chosen, others = (torch.nonzero_static(each, size=size).squeeze(1) for each, size in sizes)
    return chosen, others


def rising(values: Tensor) -> Tensor:
    """The values sorted, (n,). On the CPU by numpy: torch's sort carries indices along and takes twice as long."""
    values = _sortable(values.flatten())
    return torch.from_numpy(np.sort(values.numpy())) if values.device.type == "cpu" else values.sort().values


def _sortable(values: Tensor) -> Tensor:
    # numpy has no bfloat16, and torch cannot search booleans or half floats everywhere.
    if values.dtype in (torch.bool, torch.float16, torch.bfloat16):
        return values.float()
    return values


def warn_undefined(measure: str, **groups: Tensor) -> bool:
    """Whether a measure is undefined, with a warning, since one of the groups of points that it needs is empty."""
    missing = [kind for kind, group in groups.items() if len(group) == 0]
    if missing:
        _tell_undefined(measure, missing[0])
    return bool(missing)


def note_undefined(measure: str, **holders: Tensor) -> None:
    """The same warning of groups that are told by masks, (n,), when these are read."""
    for kind, holds in holders.items():
        note(holds.any(), partial(_tell_where_none, measure, kind))


def _tell_where_none(measure: str, kind: str, some: float) -> None:
    if not some:
        _tell_undefined(measure, kind)


def _tell_undefined(measure: str, kind: str) -> None:
    warnings.warn(f"`{measure}` is undefined, and NaN: no point is {kind}.", UserWarning, stacklevel=5)


def check_rate(true_positive_rate: float) -> None:
    """Raise a ValueError unless `true_positive_rate` is above 0 and at most 1."""
    if not 0 < check_finite_number(true_positive_rate, "true_positive_rate") <= 1:
        raise ValueError(f"`true_positive_rate` must be above 0 and at most 1; got {true_positive_rate!r}.")


def check_scores(scores: ArrayLike, positives: ArrayLike) -> tuple[Tensor, Tensor]:
    """`scores` as a tensor and `positives` as booleans on its device, or the errors that `detection.auroc` lists."""
    values, flags = _check_values(scores, positives, "positives")
    return values, as_flags(flags, "positives", WHAT_POSITIVE).to(values.device)


def as_flags(values: ArrayLike, name: str, remedy: str = "", *, known: Tensor | None = None) -> Tensor:
    """What is true, boolean, of booleans or 0 and 1.

    Args:
        values: Any shape.
        name: For the error.
        remedy: Its last sentence.
        known: Which of them are looked at, of that shape; the others are false, whatever they are. None is all.

    Raises:
        TypeError: Not numbers.
        ValueError: NaN, or other numbers, such as labels or probabilities.
    """
    flags = to_tensor(values, name)
    if known is not None:
        flags = torch.where(known.to(flags.device), flags, 0)
    are_flags = ((flags == 0) | (flags == 1)).all()
    check(are_flags, lambda: ValueError(f"`{name}` must be boolean, or 0 and 1. {remedy}".rstrip()))
    return flags.bool()


def check_losses(scores: ArrayLike, errors: ArrayLike) -> tuple[Tensor, Tensor]:
    """`scores` as a tensor, `errors` as float64 on its device, or the errors that `detection.risk_coverage` lists."""
    values, losses = _check_values(scores, errors, "errors")
    if values.numel() == 0:
        raise ValueError("`scores` must hold at least one point.")
    losses = losses.to(values.device, torch.float64)
    low, high = losses.aminmax()
    check(
        (low >= 0) & (high < torch.inf),
        lambda: ValueError(f"`errors` must be boolean, or finite losses of at least 0; got {low:.4g} to {high:.4g}."),
    )
    return values, losses


def _check_values(scores: ArrayLike, flags: ArrayLike, name: str) -> tuple[Tensor, Tensor]:
    values, others = to_tensor(scores, "scores"), to_tensor(flags, name)
    if values.shape != others.shape:
        raise ValueError(f"`{name}` must have the shape of `scores`, {tuple(values.shape)}; got {tuple(others.shape)}.")
    missing = values.isnan()
    check(~missing.any(), lambda: ValueError(f"`scores` must not hold NaN; got {int(missing.sum())}."))
    return values, others
