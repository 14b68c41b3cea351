"""Which score finds what it should? Several side by side, each with its standard errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.evaluation.observed import as_weight
from bayesuq.evaluation.ranks import WHAT_POSITIVE, as_flags, warn_undefined
from bayesuq.evaluation.report.error_ranks import Block, ErrorRanks
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import MOST_RESAMPLED, evaluate_detection
from bayesuq.evaluation.report.tables import aligned, in_line
from bayesuq.evaluation.standard_errors import bootstrap, weighted
from bayesuq.evaluation.standard_errors.closed_form import by_derivative
from bayesuq.evaluation.standard_errors.weighted import Weighted
from bayesuq.notebook import table

SMOOTH = {"auroc": weighted.auroc, "average_precision": weighted.average_precision, "aurc": weighted.aurc}


@dataclass(frozen=True)
class ScoreTable:
    """Measures of several scores against the same positives.

    Attributes:
        measures: AUROC, average precision, false positive rate at 95 % true positives and AURC, by name of the score.
        num_points: N, rows.
        positives: What is to be found, with its number.
    """

    measures: Mapping[str, tuple[Measure, ...]]
    num_points: int
    positives: str

    def __str__(self) -> str:
        columns = list(zip(*self.measures.values(), strict=True))
        heads = [column[0].name for column in columns]
        cells = [in_line(*zip(*(measure.cells[:2] for measure in column), strict=True)) for column in columns]
        rows = [
            ["", *heads],
            *([name, *row] for name, row in zip(self.measures, zip(*cells, strict=True), strict=True)),
        ]
        return "\n".join([self._head, *aligned(rows)])

    def _repr_html_(self) -> str:
        heads = [measure.name for measure in next(iter(self.measures.values()))]
        rows = [(name, *(" ".join(m.cells[:2]) for m in row)) for name, row in self.measures.items()]
        return table(self._head, ("score", *heads), rows)

    @property
    def _head(self) -> str:
        ends = ", or [95 % interval]" if any(m.is_skewed for row in self.measures.values() for m in row) else ""
        return f"{self.num_points} points, {self.positives} (value ± standard error{ends})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON; undefined values are None."""
        measures = {name: [measure.plain for measure in found] for name, found in self.measures.items()}
        return {**vars(self), "measures": measures}


def score_table(
    scores: Mapping[str, ArrayLike],
    positives: ArrayLike,
    *,
    what: str,
    weight: ArrayLike | None = None,
    seed: int = 0,
) -> ScoreTable:
    """How well each of several scores picks out the positives, and what keeping the points of low score risks.

    Args:
        scores: Of N points, larger where a positive is expected, (N, ...), by name.
        positives: Whether each point is one, (N, ...).
        what: The positives are, such as "errors".
        weight: How much each row counts, (N,), or each point, (N, ...); what has weight 0 is left out. None counts all
            alike.
        seed: Of the bootstrap of the false positive rates; every score has the same counts.

    Raises:
        TypeError: See `detection.auroc`.
        ValueError: No score; see `detection.auroc`.

    Example:
        >>> print(score_table({"entropy": [0.1, 0.2, 0.3, 0.9]}, [0, 0, 1, 1], what="errors"))
        4 points, 2 of 4 values are errors (value ± standard error, or [95 % interval])
                 auroc              average_           false_positive_
                                    precision          rate
        entropy  1.00 [0.34, 1.00]  1.00 [0.34, 1.00]  0.00 [0.00, 1.00]
        <BLANKLINE>
                 aurc
        entropy  0.21 [0.00, 0.83]
    """
    if not scores:
        raise ValueError("There is nothing to show: pass at least one score.")
    flags, heavy, known = _checked(positives, weight)
    told = f"{int((flags & known).sum())} of {int(known.sum())} values are {what}"
    held = {name: _known_of(values, known, name) for name, values in scores.items()}
    measures = {name: _measures(values, flags, heavy, seed) for name, values in held.items()}
    return ScoreTable(measures, _num_rows(known), told)


def score_differences(
    scores: Mapping[str, ArrayLike],
    positives: ArrayLike,
    reference: str,
    *,
    what: str,
    weight: ArrayLike | None = None,
    seed: int = 0,
) -> ScoreTable:
    """The measures of each other score minus those of one, point by point, so that what both share drops out.

    Args:
        scores: See `score_table`.
        positives: See `score_table`.
        reference: The name of the score that is subtracted.
        what: What the positives are, with their number.
        weight: See `score_table`.
        seed: Of the bootstrap of the false positive rates, which have no derivative.

    Raises:
        KeyError: No such score.
        ValueError: No other score; see `detection.auroc`.
    """
    if reference not in scores:
        raise KeyError(f"There is no score {reference!r}; there are {', '.join(scores)}.")
    flags, heavy, known = _checked(positives, weight)
    others = {name: values for name, values in scores.items() if name != reference}
    if not others:
        raise ValueError(f"There is no score beside {reference!r} to compare.")
    warn_undefined("auroc", positive=flags[flags & known], negative=flags[~flags & known])
    held = {name: _known_of(values, known, name) for name, values in scores.items()}
    measures = {name: _differences(held[name], held[reference], flags, heavy, seed) for name in others}
    return ScoreTable(measures, _num_rows(known), f"{what}; minus {reference}, same points, paired")


def _checked(positives: ArrayLike, weight: ArrayLike | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """Which points are positives, boolean, their weights, and which of them count, boolean, (N, ...) each."""
    shape = to_tensor(positives, "positives").shape
    heavy = None if weight is None else as_weight(weight, shape)
    flags = as_flags(positives, "positives", WHAT_POSITIVE, known=None if heavy is None else heavy > 0)
    heavy = None if heavy is None else heavy.to(flags.device)
    return flags, heavy, torch.ones_like(flags) if heavy is None else heavy > 0


def _known_of(values: ArrayLike, known: Tensor, name: str) -> Tensor:
    """Scores with 0 where nothing counts.

    Raises:
        ValueError: Another shape than the positives'.
    """
    tensor = to_tensor(values, name)
    if tensor.shape != known.shape:
        raise ValueError(f"The score {name!r} must have shape {tuple(known.shape)}; got {tuple(tensor.shape)}.")
    return torch.where(known.to(tensor.device), tensor, 0)


def _num_rows(known: Tensor) -> int:
    return int(known.reshape(len(known), -1).any(dim=1).sum())


def _differences(
    one: Tensor, other: Tensor, positives: Tensor, weight: Tensor | None, seed: int
) -> tuple[Measure, ...]:
    def pair(measure: Callable[..., Weighted]) -> tuple[Weighted, Weighted]:
        return measure(one, positives, weight=weight), measure(other, positives, weight=weight)

    found = {}
    for name, measure in SMOOTH.items():
        first, second = pair(measure)
        difference = first - second
        found[name] = Measure.of(name, difference.value, by_derivative(difference), "fraction")
    first, second = pair(weighted.false_positive_rate_at)
    difference = first - second
    error = bootstrap.standard_error(difference, seed=seed) if difference.num_values <= MOST_RESAMPLED else None
    rate = Measure.of("false_positive_rate", difference.value, error, "fraction")
    return found["auroc"], found["average_precision"], rate, found["aurc"]


def _measures(scores: Tensor, positives: Tensor, weight: Tensor | None, seed: int) -> tuple[Measure, ...]:
    found = evaluate_detection(scores, positives, name="", weight=weight, seed=seed)
    named = tuple(replace(m, name=m.name[1:]) for m in found)
    ranks = ErrorRanks(limit=None)
    ranks.add(Block.of(scores, positives, weight))
    risk = ranks.aurc
    return (*named, Measure.of("aurc", risk.bounded.value, risk.standard_error, "fraction", interval=risk.interval))
