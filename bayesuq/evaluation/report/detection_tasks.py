"""Two questions that an uncertainty is asked, each by one call: where is the model wrong, what is unlike its data?

    print(evaluate_misclassification(predictive, y))
    print(evaluate_ood(posterior.predict(test.x), posterior.predict(ood.x)))

Every score of the predictive, or those that are named, and any of the caller's own, are held against the same
positives; the result prints as a table, joins a report, and is what `plots.detection` draws.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.evaluation.detection import RiskCoverage, risk_coverage
from bayesuq.evaluation.kinds import check_categorical, check_known
from bayesuq.evaluation.observed import counting_points, observe
from bayesuq.evaluation.ranks import check_scores
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.score_table import ScoreTable, score_differences, score_table
from bayesuq.evaluation.report.tables import counted
from bayesuq.evaluation.scores import FOR_LABELS, top_label
from bayesuq.evaluation.uncertainty import (
    aleatoric_variance,
    epistemic_variance,
    expected_entropy,
    margin,
    maximum_probability,
    mutual_information,
    predictive_entropy,
    predictive_variance,
    variation_ratio,
)
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.thinned import at_all_points, held_of, num_draws_of

Score = Callable[[Any], Tensor]
OF_LABELS = (
    maximum_probability,
    margin,
    predictive_entropy,
    expected_entropy,
    mutual_information,
    variation_ratio,
    predictive_variance,
    epistemic_variance,
)
OF_REAL = (predictive_variance, aleatoric_variance, epistemic_variance)
STANDARD = {*OF_LABELS, *OF_REAL}
FROM_DRAWS = {"mutual_information", "variation_ratio", "epistemic_variance"}  # 0 everywhere for one draw


@dataclass(frozen=True, eq=False)
class Detection:
    """How well scores find what they should.

    Attributes:
        table: AUROC, average precision, false positive rate at 95 % true positives and AURC of each score.
        scores: Of each point, larger where a positive is expected, (N, ...), float64, by name; where points have
            weights, (n,) of those above 0.
        positives: What is to be found, of the same shape, boolean.
        num_draws: S, of the predictive.
        weight: Of the points, of the same shape, above 0; None is 1 everywhere.
    """

    table: ScoreTable
    scores: Mapping[str, Tensor]
    positives: Tensor
    num_draws: int
    weight: Tensor | None = None

    def __str__(self) -> str:
        return f"{self.table}\n{self._basis}"

    def _repr_html_(self) -> str:
        return f"{self.table._repr_html_()}<p>{self._basis}</p>"

    @property
    def _basis(self) -> str:
        needy = [name for name in self.scores if name in FROM_DRAWS]
        if not needy or self.num_draws == 1:  # a Gaussian process has an epistemic variance without draws
            return f"from S = {counted(self.num_draws, 'draw')}"
        return f"{', '.join(needy)}: from S = {self.num_draws} draws, too small by about 1 / S on average"

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The table's numbers under names of their own, to extend a report by: `entropy_auroc`, ..."""
        return tuple(
            replace(m, name=f"{name}_{m.name}", remark=self._remark(name, m.remark))
            for name, measures in self.table.measures.items()
            for m in measures
        )

    def score(self, name: str) -> Tensor:
        """One of the scores.

        Raises:
            KeyError: No such score.
        """
        if name not in self.scores:
            raise KeyError(f"no score {name!r}; there are {', '.join(self.scores)}")
        return self.scores[name]

    def risk_coverage(self, name: str) -> RiskCoverage:
        """Share of positives among the points kept, as those of highest score are refused: the error rate, of errors.

        Raises:
            KeyError: No such score.
        """
        return risk_coverage(self.score(name), self.positives, weight=self.weight)

    def roc(self, name: str) -> tuple[Tensor, Tensor]:
        """False and true positive rates at every threshold, from (0, 0) to (1, 1), (T,) each, float64.

        Raises:
            KeyError: No such score.
        """
        return roc_curve(self.score(name), self.positives, weight=self.weight)

    def differences(self, reference: str, *, seed: int = 0) -> ScoreTable:
        """How far each other score is from one of them, in every measure, with errors of the same points, paired.

        Points that are hard for one score are hard for others, so that a difference is known far better than the
        errors of the two would let one think.

        Args:
            reference: The name of the score that is subtracted.
            seed: Of the bootstrap of the false positive rates.

        Raises:
            KeyError: No such score.

        Example:
            >>> predictive = CategoricalPredictive.from_probs([[[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]]])
            >>> other = {"other": [0.1, 0.4, 0.2, 0.3]}
            >>> found = evaluate_misclassification(predictive, [0, 0, 1, 1], scores=other)
            >>> round(found.differences("margin").measures["other"][0].value, 6)  # AUROC .5 - 1
            -0.5
        """
        return score_differences(
            self.scores, self.positives, reference, what=self.table.positives, weight=self.weight, seed=seed
        )

    def _remark(self, name: str, remark: str) -> str:
        draws = f"S = {self.num_draws} draws" if name in FROM_DRAWS else ""
        return ", ".join(filter(None, [remark, draws]))


def evaluate_misclassification(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    *,
    scores: Sequence[str | Score] | Mapping[str, ArrayLike | Score] | None = None,
    weight: ArrayLike | None = None,
    seed: int = 0,
) -> Detection:
    """How well each uncertainty picks out the model's own errors.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        weight: How much each row counts in the table, (N,), or each point, of y's shape; what has weight 0 is left out,
            whatever stands in y there. None counts all alike.
        scores: Those to judge, names of `standard_scores` or functions of the predictive; or, in a mapping, further
            ones beside all of them by name: values of the points, (N, ...), larger where an error is expected, or a
            function that gives them. A confidence is turned round: 1 - confidence.
        seed: Of the bootstrap of the false positive rates.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers; scores that are not.
        ValueError: `y` of another shape, or outside the classes; a score that is unknown, of another shape, or NaN,
            without a name, or with the name of one that is there.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.6, 0.4]]]))
        >>> found = evaluate_misclassification(predictive, [0, 0, 1], scores={"chance": [0.5, 0.5, 0.5]})
        >>> [float(found.table.measures[name][0].value) for name in ("predictive_entropy", "chance")]  # AUROC
        [1.0, 0.5]
    """
    check_categorical(predictive, FOR_LABELS)
    seen = observe(predictive, y, weight)
    wrong = ~top_label(predictive, seen.y)[1]
    all_scores, own = _asked(scores, standard_scores(predictive))
    for name, score in own.items():
        all_scores[name] = _values(name, score(predictive) if callable(score) else score, wrong, seen.known)
    table = score_table(all_scores, wrong, what="errors", weight=seen.weight, seed=seed)
    heavy = seen.weight
    if seen.known is not None:
        all_scores, wrong = {name: values[seen.known] for name, values in all_scores.items()}, wrong[seen.known]
        heavy = None if heavy is None else heavy[seen.known]
    return Detection(table, all_scores, wrong, predictive.num_samples, heavy)


def evaluate_ood(
    inside: PredictiveDistribution,
    outside: PredictiveDistribution,
    *,
    scores: Sequence[str | Score] | Mapping[str, tuple[ArrayLike, ArrayLike] | Score] | None = None,
    seed: int = 0,
) -> Detection:
    """How well each uncertainty tells inputs of another kind, the positives, from those like the training data.

    Args:
        inside: At inputs like the training data, of labels or real targets.
        outside: At inputs of another kind, of the same posterior, with as many draws.
        scores: Those to judge, names of `standard_scores` or functions of a predictive; or, in a mapping, further ones
            beside all of them by name: values inside and outside, larger where an input of another kind is expected,
            or a function that gives them.
        seed: Of the bootstrap of the false positive rates.

    Raises:
        TypeError: Predictives of different kinds; scores that are not numbers.
        ValueError: Another number of draws, classes or columns; a score that is unknown, of another shape, or NaN,
            without a name, or with the name of one that is there.

    Example:
        >>> inside = CategoricalPredictive.from_probs(torch.tensor([[[0.9, 0.1], [0.2, 0.8]]]))
        >>> outside = CategoricalPredictive.from_probs(torch.tensor([[[0.5, 0.5]]]))
        >>> float(evaluate_ood(inside, outside).table.measures["margin"][0].value)
        1.0
    """
    if type(_held(inside)) is not type(_held(outside)):
        raise TypeError(
            "`inside` and `outside` must be predictives of the same kind; got "
            f"{type(inside).__name__} and {type(outside).__name__}."
        )
    real = [part for part in (inside, outside) if isinstance(part, RealPredictive)]
    both = at_all_points(real) if real else type(inside).concatenate([inside, outside])  # draws, classes must agree
    known = standard_scores(both)
    is_outside = torch.zeros_like(next(iter(known.values())), dtype=torch.bool)
    is_outside[len(inside.mean) :] = True
    all_scores, own = _asked(scores, known)
    for name, score in own.items():
        values = (score(inside), score(outside)) if callable(score) else score
        sides = (_values(name, v, is_outside[rows]) for v, rows in zip(values, _halves(len(inside.mean)), strict=True))
        all_scores[name] = torch.cat(list(sides))
    table = score_table(all_scores, is_outside, what="out of distribution", seed=seed)
    num_draws = num_draws_of(inside) if isinstance(inside, RealPredictive) else inside.num_samples
    return Detection(table, all_scores, is_outside, num_draws)


def standard_scores(predictive: PredictiveDistribution) -> dict[str, Tensor]:
    """Every score that a predictive has of its own, larger where it is less sure, by name.

    Of labels those of `uncertainty`, (N, ...), nats or fractions; of real targets variances, the mean over columns,
    (N,). What compares draws is left out where there is one draw, or where it was not kept.
    """
    known = check_known(predictive)
    if isinstance(known, CategoricalPredictive):
        absent = FROM_DRAWS if known.num_samples == 1 else set()
        if known.draws is None:
            absent = absent | {"epistemic_variance"}
        return {score.__name__: score(known) for score in OF_LABELS if score.__name__ not in absent}
    found = {score.__name__: score(known).mean(dim=1) for score in OF_REAL}
    return {name: values for name, values in found.items() if name not in FROM_DRAWS or bool((values > 0).any())}


def roc_curve(scores: ArrayLike, positives: ArrayLike, *, weight: ArrayLike | None = None) -> tuple[Tensor, Tensor]:
    """False and true positive rates as the threshold falls; ties are one step, joined by a straight line.

    Args:
        scores: Any real numbers, larger where a positive is more likely, any shape.
        positives: Whether each point is a positive, boolean or 0 and 1, of the same shape.
        weight: How much each point counts, or each row of points, (N,); see `detection.auroc`.

    Returns:
        Fractions from 0 to 1, (T,) each, float64, one more than there are thresholds; the area under the straight
        lines is `detection.auroc`. NaN where there is one class only.

    Raises:
        TypeError: Not numbers.
        ValueError: No point, NaN scores, positives that are not 0 or 1, shapes that differ; see `detection.auroc`.

    Example:
        >>> [rate.tolist() for rate in roc_curve([3.0, 2.0, 2.0, 1.0], [True, True, False, False])]
        [[0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0]]
    """
    heavy: Tensor | None = None
    if weight is not None:
        scores, positives, heavy = counting_points(scores, positives, weight)
    values, flags = (each.flatten() for each in check_scores(scores, positives))
    if values.numel() == 0:
        raise ValueError("`scores` must hold at least one point.")
    heavy = torch.ones_like(values, dtype=torch.float64) if heavy is None else heavy
    levels, group = values.unique(return_inverse=True)
    sides = (torch.where(side, heavy, 0.0) for side in (~flags, flags))
    alarms, hits = (heavy.new_zeros(len(levels)).index_add_(0, group, side).flip(0).cumsum(0) for side in sides)
    rates = (torch.nn.functional.pad(part / part[-1], (1, 0)) for part in (alarms, hits))
    false_rate, true_rate = rates
    return false_rate, true_rate


def _held(predictive: PredictiveDistribution) -> PredictiveDistribution:
    known = check_known(predictive)
    return held_of(known) if isinstance(known, RealPredictive) else known


def _halves(size: int) -> tuple[slice, slice]:
    return slice(size), slice(size, None)


def _asked(scores: Any, known: dict[str, Tensor]) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The predictive's own scores that are to be judged, and those that the caller brings."""
    if scores is None or isinstance(scores, Mapping):
        chosen, own = known, scores or {}
    else:
        listed = [scores] if isinstance(scores, str) or callable(scores) else scores
        functions = [score for score in listed if callable(score) and score not in STANDARD]
        own = {getattr(score, "__name__", "<lambda>"): score for score in functions}
        if len(own) < len(functions) or "<lambda>" in own:
            raise ValueError("Functions in `scores` must have names, each its own; give them some in a mapping.")
        names = [getattr(score, "__name__", score) for score in listed if score not in functions]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"`scores` must be among {', '.join(known)}, or functions; got {unknown[0]!r}.")
        chosen = {name: known[name] for name in names}
    if taken := [name for name in own if name in known]:
        raise ValueError(f"`scores` must have new names; {taken[0]!r} is there. There are {', '.join(known)}.")
    return chosen, own


def _values(name: str, values: ArrayLike, like: Tensor, known: Tensor | None = None) -> Tensor:
    tensor = to_tensor(values, name).to(like.device, torch.float64)
    if tensor.shape != like.shape:
        raise ValueError(f"The score {name!r} must have shape {tuple(like.shape)}; got {tuple(tensor.shape)}.")
    tensor = tensor if known is None else torch.where(known, tensor, 0.0)
    if tensor.isnan().any():
        raise ValueError(f"The score {name!r} must not hold NaN; got {int(tensor.isnan().sum())}.")
    return tensor
