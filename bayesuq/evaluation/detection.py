"""Does a score pick out the points that it should: the model's own errors, or inputs from elsewhere?

A score is any real number that grows with uncertainty; the points to be found are the positives. Every measure is
exact: it depends on the order of the scores only, ties count as one threshold, and no score is squashed into [0, 1].

Where points may be refused, the k points of lowest score are kept. Coverage is k / n, the selective risk r_k the mean
error of those kept, ties at their mean (the expectation over their order), and

    AURC = 1/n sum_k r_k      AUGRC = area under k/n r_k over coverage = (1 - AUROC) a (1 - a) + (1 - a)^2 / 2,

the last for right or wrong predictions of accuracy a.

References:
    Hanley and McNeil, "The meaning and use of the area under a ROC curve", Radiology 1982.
    Davis and Goadrich, "The relationship between precision-recall and ROC curves", ICML 2006.
    Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers", ICLR 2019.
    Corbiere et al., "Addressing failure prediction by learning model confidence", NeurIPS 2019; code of ConfidNet.
    Traub et al., "Overcoming common flaws in the evaluation of selective classification systems", NeurIPS 2024.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.evaluation.binning import sums_by_bin
from bayesuq.evaluation.observed import known_points
from bayesuq.evaluation.ranks import (
    Places,
    Sides,
    check_losses,
    check_rate,
    check_scores,
    note_undefined,
    picks,
    places_in,
    tie_groups,
    warn_undefined,
)
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.evaluation.standard_errors.weighted import Weighted
from bayesuq.waiting import in_one_read

__all__ = [
    "augrc",
    "aurc",
    "auroc",
    "average_precision",
    "excess_aurc",
    "false_positive_rate_at",
    "risk_coverage",
]
__dir__ = __all__.copy


@dataclass(frozen=True, eq=False, kw_only=True)
class RiskCoverage:
    """Risk against coverage, at each of the n coverages 1/n, ..., 1.

    Attributes:
        coverage: Share of points kept, (n,), float64.
        risk: Mean error of the points kept, ties at their mean, (n,), float64.
        attainable: Whether a threshold on the score gives this coverage: not so inside a tie, (n,), boolean.
    """

    coverage: Tensor
    risk: Tensor
    attainable: Tensor

    @property
    def generalised_risk(self) -> Tensor:
        """Errors kept over all points, k/n r_k: the chance of an error that is not refused, (n,)."""
        return self.coverage * self.risk


@in_one_read()
def auroc(scores: ArrayLike, positives: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """P(a positive scores above a negative) + P(they tie) / 2: Mann-Whitney with mid-ranks, the area under the ROC.

    Args:
        scores: Any real numbers, larger where a positive is more likely, any shape.
        positives: Whether each point is a positive, boolean or 0 and 1, of the same shape.
        weight: How much each point counts, or each row of points, (N,); what has weight 0 is left out, whatever its
            score is. None counts all alike.

    Returns:
        Fraction, 0-d float64 on the scores' device; NaN, with a warning, where there is one class only.

    Raises:
        TypeError: Not numbers.
        ValueError: NaN scores, positives that are not 0 or 1, shapes that differ, weights that are negative or all 0.

    Example:
        >>> auroc([3.0, 40.0, 1.0, 3.0], [True, True, False, False])  # 3 1/2 of the 4 pairs are in order
        tensor(0.8750, dtype=torch.float64)
    """
    if weight is not None:
        return _weighted(weighted.auroc, "auroc", scores, positives, weight, needs=("positive", "negative"))
    sides = Sides.of(scores, positives)
    if warn_undefined("auroc", positive=sides.positives, negative=sides.negatives):
        return sides.undefined
    below, up_to = places_in(sides.negatives, sides.positives)
    twice = (below + up_to).sum()  # whole numbers, so exact
    return twice.double() / (2.0 * len(sides.positives) * len(sides.negatives))


@in_one_read()
def average_precision(scores: ArrayLike, positives: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """sum_k (recall_k - recall_(k-1)) precision_k over falling thresholds: the step-wise area under precision-recall.

    Nothing is interpolated: the straight lines of a trapezoid promise too much (Davis and Goadrich, 2006). A random
    score gets the share of positives. See `auroc` for the rest.

    Returns:
        Fraction, 0-d float64; NaN, with a warning, where there is no positive.

    Example:
        >>> average_precision([4.0, 3.0, 2.0, 1.0], [True, False, True, False])  # 1/2 x 1 + 1/2 x 2/3
        tensor(0.8333, dtype=torch.float64)
    """
    if weight is not None:
        return _weighted(
            weighted.average_precision, "average_precision", scores, positives, weight, needs=("positive",)
        )
    sides = Sides.of(scores, positives)
    if warn_undefined("average_precision", positive=sides.positives):
        return sides.undefined
    # Each positive's own score is the threshold at which recall rises.
    found = sides.num_caught().double()
    return (found / (found + sides.num_false_alarms())).mean()


@in_one_read()
def false_positive_rate_at(
    scores: ArrayLike, positives: ArrayLike, true_positive_rate: float = 0.95, *, weight: ArrayLike | None = None
) -> Tensor:
    """Share of negatives at or above the highest threshold that catches `true_positive_rate` of the positives (FPR95).

    Corbiere et al. (2019) take the right predictions as positives: `false_positive_rate_at(-uncertainty, ~wrong)`. See
    `auroc` for the rest.

    Args:
        scores: Any real numbers, larger where a positive is more likely, any shape.
        positives: Whether each point is a positive, boolean or 0 and 1, of the same shape.
        true_positive_rate: Share of positives to catch at least, above 0 and at most 1.
        weight: See `auroc`.

    Returns:
        Fraction, 0-d float64; NaN, with a warning, where there is one class only.

    Raises:
        ValueError: `true_positive_rate` outside (0, 1].

    Example:
        >>> false_positive_rate_at([4.0, 3.0, 2.0, 1.0], [True, False, True, False])  # both positives need 2.0
        tensor(0.5000, dtype=torch.float64)
    """
    check_rate(true_positive_rate)
    if weight is not None:
        measure = partial(weighted.false_positive_rate_at, true_positive_rate=true_positive_rate)
        name = "false_positive_rate_at"
        return _weighted(measure, name, scores, positives, weight, needs=("positive", "negative"))
    sides = Sides.of(scores, positives)
    if warn_undefined("false_positive_rate_at", positive=sides.positives, negative=sides.negatives):
        return sides.undefined
    # A quotient, since 0.07 x 100 > 7 in floating point while 7 / 100 is the same number as 0.07.
    suffices = sides.num_caught().double() / len(sides.positives) >= true_positive_rate
    highest = suffices.sum() - 1  # positives stand in rising order, so the thresholds that suffice come first
    return sides.num_false_alarms().take(highest).double() / len(sides.negatives)


@in_one_read()
def risk_coverage(scores: ArrayLike, errors: ArrayLike, *, weight: ArrayLike | None = None) -> RiskCoverage:
    """Risk against coverage as the points of highest score are refused.

    Args:
        scores: Uncertainties, any real numbers, larger where a point is refused first, any shape.
        errors: Whether each prediction is wrong, or any loss of at least 0, of the same shape.
        weight: How much each point counts, or each row of points; see `auroc`. Coverage is then the share of the
            weights that is kept, and n the number of points that have any.

    Raises:
        TypeError: Not numbers.
        ValueError: No point, NaN scores, losses below 0 or not finite, shapes that differ, weights that are negative or
            all 0.

    Example:
        >>> risk_coverage([0.1, 0.2, 0.3, 0.4], [False, True, False, True]).risk
        tensor([0.0000, 0.5000, 0.3333, 0.5000], dtype=torch.float64)
    """
    heavy: Tensor | None = None
    if weight is not None:
        scores, errors, heavy = known_points(scores, errors, weight)
    values, losses = (each.flatten() for each in check_losses(scores, errors))
    if heavy is not None:  # checked before, since an accelerator is waited for here
        there = picks(heavy > 0)[0]
        values, losses, heavy = values[there], losses[there], heavy[there]
    ranked, order = values.sort()
    group, _ = tie_groups(ranked)
    heavy = torch.ones_like(losses) if heavy is None else heavy[order]
    sizes, sums = (sums_by_bin(group, len(group), part) for part in (heavy, heavy * losses[order]))
    kept = heavy.cumsum(0)
    ends = torch.ones_like(group, dtype=torch.bool)
    ends[:-1] = group[1:] != group[:-1]
    risk = (heavy * (sums / sizes)[group]).cumsum(0) / kept
    return RiskCoverage(coverage=kept / kept[-1], risk=risk, attainable=ends)


@in_one_read()
def aurc(
    scores: ArrayLike,
    errors: ArrayLike,
    *,
    variant: Literal["mean", "corbiere"] = "mean",
    weight: ArrayLike | None = None,
) -> Tensor:
    """Area under risk against coverage: the mean selective risk over the n coverages, ties at their mean.

    See `risk_coverage` for the rest.

    Args:
        scores: Uncertainties, any real numbers, any shape.
        errors: Whether each prediction is wrong, or any loss of at least 0, of the same shape.
        variant: "mean" as defined above, as Geifman et al. (2019); "corbiere" the trapezoid over the
            coverages that thresholds give, without coverage 1, times 1000, as the tables of Corbiere et al. (2019).
        weight: How much each point counts, or each row of points; see `auroc`. There are as many coverages as points,
            which the scale of the weights does not change. Of the variant "mean" alone.

    Returns:
        In the unit of `errors`, 0-d float64 on the scores' device; smaller is better.

    Raises:
        ValueError: An unknown variant, or one that knows no weights.

    Example:
        >>> aurc([0.1, 0.2, 0.3, 0.4], [False, True, False, True])  # (0 + 1/2 + 1/3 + 1/2) / 4
        tensor(0.3333, dtype=torch.float64)
    """
    if weight is not None and variant == "mean":
        return _weighted(weighted.aurc, "aurc", scores, errors, weight)
    if weight is not None:
        raise ValueError(f'`weight` is known to the variant "mean" alone; got {variant!r}.')
    if variant == "corbiere":
        curve = risk_coverage(scores, errors)
        at = picks(curve.attainable)[0]
        return 1000 * torch.trapezoid(curve.risk[at][:-1], curve.coverage[at][:-1])
    if variant != "mean":
        raise ValueError(f'`variant` must be "mean" or "corbiere"; got {variant!r}.')
    return Places.of(scores, errors).mean_risk()


@in_one_read()
def excess_aurc(
    scores: ArrayLike,
    errors: ArrayLike,
    *,
    variant: Literal["mean", "geifman", "corbiere"] = "mean",
    weight: ArrayLike | None = None,
) -> Tensor:
    """AURC above that of an oracle, which refuses the largest errors first; 0 for a perfect order. See `aurc`.

    Args:
        scores: Uncertainties, any real numbers, any shape.
        errors: Whether each prediction is wrong, or any loss of at least 0, of the same shape.
        variant: "mean" subtracts the oracle's own AURC; "geifman" its limit r + (1 - r) log(1 - r) for many points and
            error rate r (Geifman et al., 2019); "corbiere" the same limit from the "corbiere" AURC, x 1000.
        weight: See `aurc`. Of the variant "mean" alone.

    Returns:
        In the unit of `errors`, 0-d float64.

    Raises:
        ValueError: An unknown variant, or one that knows no weights; errors that are not 0 or 1 for the latter two.
    """
    if weight is not None:
        if variant != "mean":
            raise ValueError(f'`weight` is known to the variant "mean" alone; got {variant!r}.')
        values, truths, weights = known_points(scores, errors, weight)
        return aurc(values, truths, weight=weights) - aurc(truths, truths, weight=weights)
    if variant == "mean":
        values, losses = (each.flatten() for each in check_losses(scores, errors))
        picked = picks(losses > 0)  # of both, so that an accelerator is waited for once
        return Places.among(values, losses, picked).mean_risk() - Places.among(losses, losses, picked).mean_risk()
    if variant not in ("geifman", "corbiere"):
        raise ValueError(f'`variant` must be "mean", "geifman" or "corbiere"; got {variant!r}.')
    _, wrong = check_scores(scores, errors)
    rate = wrong.double().mean()
    limit = rate + torch.special.xlog1py(1 - rate, -rate)
    return (
        aurc(scores, errors) - limit if variant == "geifman" else aurc(scores, errors, variant=variant) - 1000 * limit
    )


@in_one_read()
def augrc(scores: ArrayLike, errors: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """Area under the generalised risk over coverage from 0 to 1: the mean risk of an error that is not refused.

    Straight lines join the n + 1 points from coverage 0, so that it is exactly what AUROC and accuracy make it: Traub
    et al. (2024). Unlike AURC it does not weigh the first points most. See `aurc` for the rest.

    Returns:
        In the unit of `errors`, 0-d float64; for right or wrong predictions in [0, 1/2].

    Example:
        >>> augrc([0.1, 0.2, 0.3, 0.4], [False, True, False, True])  # accuracy 1/2, AUROC 3/4: 1/4 x 1/4 + 1/4 / 2
        tensor(0.1875, dtype=torch.float64)
    """
    if weight is not None:
        return _weighted(weighted.augrc, "augrc", scores, errors, weight)
    places = Places.of(scores, errors)
    points_after = places.num_points - (places.below + places.up_to).double() / 2  # half of its own kind among them
    return (places.losses * points_after).sum() / places.num_points**2


def _weighted(
    measure: Callable[..., Weighted],
    name: str,
    scores: ArrayLike,
    flags: ArrayLike,
    weight: ArrayLike,
    needs: tuple[str, ...] = (),
) -> Tensor:
    """A measure of the points of weight above 0, or NaN with a warning where one of the classes it needs is absent."""
    values, truths, weights = known_points(scores, flags, weight)
    if values.device.type != "cpu":
        counts = {"positive": (truths != 0) & (weights > 0), "negative": (truths == 0) & (weights > 0)}
        note_undefined(name, **{kind: counts[kind] for kind in needs})
        return measure(values, truths, weight=weights).value  # NaN where a class is absent
    groups = {"positive": truths[truths != 0], "negative": truths[truths == 0]}
    if warn_undefined(name, **{kind: groups[kind] for kind in needs}):
        return torch.full((), torch.nan, dtype=torch.float64, device=values.device)
    return measure(values, truths, weight=weights).value
