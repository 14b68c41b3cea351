"""Which score finds what it should? Several side by side, each with its standard errors."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.evaluation import standard_errors
from bayesuq.evaluation.detection import aurc
from bayesuq.evaluation.measure import Measure
from bayesuq.evaluation.report import evaluate_detection
from bayesuq.evaluation.tables import aligned, in_line


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
        head = f"{self.num_points} points, {self.positives} (value ± standard error)"
        return "\n".join([head, *aligned(rows)])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON; undefined values are None."""
        plain = {
            name: [{**asdict(m), "value": m.value if math.isfinite(m.value) else None} for m in measures]
            for name, measures in self.measures.items()
        }
        return {"measures": plain, "num_points": self.num_points, "positives": self.positives}


def score_table(scores: Mapping[str, ArrayLike], positives: ArrayLike, *, what: str, seed: int = 0) -> ScoreTable:
    """How well each of several scores picks out the positives, and what keeping the points of low score risks.

    Args:
        scores: Of N points, larger where a positive is expected, (N, ...), by name.
        positives: Whether each point is one, (N, ...).
        what: The positives are, such as "errors".
        seed: Of the bootstrap of the false positive rates; every score has the same counts.

    Raises:
        TypeError: See `detection.auroc`.
        ValueError: No score; see `detection.auroc`.

    Example:
        >>> print(score_table({"entropy": [0.1, 0.2, 0.3, 0.9]}, [0, 0, 1, 1], what="errors"))
        4 points, 2 of 4 values are errors (value ± standard error)
                 auroc  average_precision  false_positive_rate  aurc
        entropy  1 ± 0  1 ± 0              0 ± 0                0.21 ± 0.23
    """
    if not scores:
        raise ValueError("There is nothing to show: pass at least one score.")
    flags = to_tensor(positives, "positives").bool()
    told = f"{int(flags.sum())} of {flags.numel()} values are {what}"
    measures = {name: _measures(values, flags, seed) for name, values in scores.items()}
    return ScoreTable(measures, len(flags), told)


def _measures(scores: ArrayLike, positives: Tensor, seed: int) -> tuple[Measure, ...]:
    found = evaluate_detection(scores, positives, name="", seed=seed)
    named = tuple(Measure(m.name[1:], m.value, m.standard_error, m.unit, m.remark) for m in found)
    error = float(standard_errors.of_aurc(scores, positives))
    risk = Measure("aurc", float(aurc(scores, positives)), None if math.isnan(error) else error, "fraction")
    return (*named, risk)
