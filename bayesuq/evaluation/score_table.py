"""Which uncertainty finds what it should? All scores of a predictive side by side, each with its standard error.

print(misclassification_table(predictive, y))
print(out_of_distribution_table(inside, outside))
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.evaluation import standard_errors
from bayesuq.evaluation.detection import aurc
from bayesuq.evaluation.measure import Measure
from bayesuq.evaluation.report import evaluate_detection
from bayesuq.evaluation.scores import top_label
from bayesuq.evaluation.tables import aligned, in_line
from bayesuq.evaluation.uncertainty import (
    expected_entropy,
    margin,
    maximum_probability,
    mutual_information,
    predictive_entropy,
    variation_ratio,
)
from bayesuq.predictive import CategoricalPredictive

SCORES = (
    maximum_probability,
    margin,
    predictive_entropy,
    expected_entropy,
    mutual_information,
    variation_ratio,
)
DISAGREEMENTS = {mutual_information, variation_ratio}  # 0 everywhere for one draw


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


def misclassification_table(predictive: CategoricalPredictive, y: ArrayLike, *, seed: int = 0) -> ScoreTable:
    """How well each uncertainty picks out the model's own errors; see `score_table`.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        seed: Of the bootstrap.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes.
    """
    return score_table(uncertainty_scores(predictive), ~top_label(predictive, y)[1], what="errors", seed=seed)


def out_of_distribution_table(
    inside: CategoricalPredictive, outside: CategoricalPredictive, *, seed: int = 0
) -> ScoreTable:
    """How well each uncertainty tells inputs of another kind from those like the training data; see `score_table`.

    Args:
        inside: At inputs like the training data.
        outside: At inputs of another kind, the positives, with as many draws.
        seed: Of the bootstrap.

    Raises:
        TypeError: Not a CategoricalPredictive.
        ValueError: Another number of draws or classes.
    """
    both = uncertainty_scores(type(inside).concatenate([inside, outside]))
    is_outside = torch.zeros_like(both["predictive_entropy"], dtype=torch.bool)
    is_outside[len(inside.total) :] = True
    return score_table(both, is_outside, what="out of distribution", seed=seed)


def uncertainty_scores(predictive: CategoricalPredictive) -> dict[str, Tensor]:
    """Each score of `uncertainty` by its name, (N, ...); of one draw those alone that need no second."""
    return {
        score.__name__: score(predictive)
        for score in SCORES
        if predictive.num_samples > 1 or score not in DISAGREEMENTS
    }


def _measures(scores: ArrayLike, positives: Tensor, seed: int) -> tuple[Measure, ...]:
    found = evaluate_detection(scores, positives, name="", seed=seed)
    named = tuple(Measure(m.name[1:], m.value, m.standard_error, m.unit, m.remark) for m in found)
    error = float(standard_errors.of_aurc(scores, positives))
    risk = Measure("aurc", float(aurc(scores, positives)), None if math.isnan(error) else error, "fraction")
    return (*named, risk)
