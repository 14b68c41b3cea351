"""Measures over batches: a state takes one batch after another, and states of several machines are merged.

    state = states.of(scores.brier_score)
    for x, y in loader:
        state = state.update(posterior.predict(x), y)
    state.result

A state is a value: `update` and `merge` give new ones. What it holds is of fixed size, counts in int64 and sums in
float64, so that its result is that of all points at once for any batches and any order. Measures of ranks keep scores
up to a limit, and beyond it a histogram; see `ranking`.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, distributed

from bayesuq.arrays import ArrayLike, check_count, check_fraction
from bayesuq.evaluation import calibration, decomposition, scores
from bayesuq.evaluation.binning import Reliability
from bayesuq.evaluation.decomposition import BrierBins
from bayesuq.evaluation.observed import Observed, has_weight, observe
from bayesuq.evaluation.standard_errors.sums import Sums
from bayesuq.evaluation.streaming.ranking import DEFAULT_LIMIT, Ranking
from bayesuq.evaluation.uncertainty import predictive_entropy
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive, same_names

__all__ = [
    "mean_of",
    "misclassification",
    "of",
]
__dir__ = __all__.copy


class Summary(Protocol):
    """What is kept of the points seen: a frozen dataclass of tensors that merges."""

    def merge(self, other: Self) -> Self:
        """Of the points of both."""
        ...


T = TypeVar("T", bound=Summary)


@dataclass(frozen=True, eq=False)
class State(Generic[T]):
    """A measure of the points seen so far.

    Attributes:
        name: Of the measure; only states of one name merge.
        summary: What is kept of the points.
        summarise: A batch's summary, of its predictive, truth and weight.
        read: The measure of a summary.
        is_classwise: Whether the summary holds each class by its number, which must then be the same class throughout.
        names: Of the classes seen so far; None where none are told, or the summary does not hold them one by one.
    """

    name: str
    summary: T
    summarise: Callable[..., T]
    read: Callable[[T], Tensor]
    is_classwise: bool = False
    names: tuple[str, ...] | None = None

    @torch.no_grad()  # a state holds numbers, and no graph of what it has seen
    def update(self, predictive: PredictiveDistribution, y: ArrayLike, *, weight: ArrayLike | None = None) -> Self:
        """The state of the points so far and these; the errors are those of the measure.

        A batch of which no target is known changes nothing. A measure of each class by itself refuses classes that are
        called otherwise, or come in another order, than before.

        Args:
            predictive: At N points.
            y: Their truth; anything at weight 0.
            weight: How much each row, (N,), or each target, of y's shape, counts; None counts all alike.
        """
        if weight is not None and not has_weight(weight):
            return self
        summary = _joined(self.summary, self.summarise(predictive, y, weight))
        if not (self.is_classwise and isinstance(predictive, CategoricalPredictive)):
            return replace(self, summary=summary)
        return replace(self, summary=summary, names=same_names(self.names, predictive.names))

    def merge(self, other: Self) -> Self:
        """The state of the points of both.

        Raises:
            ValueError: Another measure; of each class by itself, other classes.
        """
        if self.name != other.name:
            raise ValueError(f"Only states of one measure merge; got {self.name} and {other.name}.")
        names = same_names(self.names, other.names)
        return replace(self, summary=_joined(self.summary, other.summary), names=names)

    @property
    def result(self) -> Tensor:
        """The measure of the points seen, 0-d float64; NaN of none."""
        return self.read(self.summary)

    def all_reduce(self, group: distributed.ProcessGroup | None = None) -> Self:
        """The state of the points of all processes, on each of them. Every process must call it, also one of no points.

        Args:
            group: Of `torch.distributed`, which must have been initialised; None is all processes.
        """
        kept: Any = self.summary
        reduce: Any = {Ranking: _reduced_ranking, Sums: _reduced_sums}.get(type(kept), _reduced)
        return replace(self, summary=reduce(kept, group))

    def to(self, device: torch.device | str) -> Self:
        """The same state on another device, such as one that a process group can reach."""
        return replace(self, summary=_moved(self.summary, device))


def of(measure: Callable[..., Any], **options: Any) -> State[Any]:
    """The state of a measure, whose result is the measure of all points at once.

    Args:
        measure: Of `scores` (`state.summary.standard_error` is then its error, but for a root's);
            `calibration.interval_coverage`; `calibration.expected_calibration_error`, whose summary is the
            `Reliability`; `calibration.classwise_calibration_error`, likewise; or `decomposition.brier_decomposition`,
            which is `state.summary.decomposition`, while the result is its reliability.
        **options: Those of the measure, by name; `num_classes` too where it is classwise or a decomposition.

    Raises:
        ValueError: A measure without a state of fixed size. Ranks of errors have `misclassification`.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25]]]))
        >>> of(scores.brier_score).update(predictive, [0]).update(predictive, [1]).result
        tensor(0.6250, dtype=torch.float64)
    """
    if measure in STATES:
        return STATES[measure](**options)
    if measure in scores.POINTWISE:
        return mean_of(scores.pointwise(measure), **options)
    known = ", ".join(one.__name__ for one in [*scores.POINTWISE, *STATES])
    raise ValueError(f"`measure` must be one of {known}; got {_name_of(measure)}. Take `mean_of` for one of your own.")


def mean_of(pointwise: Callable[..., Tensor], *, skip_undefined: bool = False, **options: Any) -> State[Sums]:
    """The mean of a pointwise measure, such as one of your own; `state.summary.standard_error` is its error.

    Args:
        pointwise: Predictive and truth of N rows -> (N, ...).
        skip_undefined: Whether NaN is left out, as of an image without a labelled pixel.
        **options: Passed on to the measure, such as `level`.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25]]]))
        >>> mean_of(lambda predictive, y: predictive.total).update(predictive, [0]).result  # the entropy of the mean
        tensor(0.5623, dtype=torch.float64)
    """
    return _of_sums(pointwise, lambda sums: sums.mean, options, skips_undefined=skip_undefined)


def mean_of_defined(pointwise: Callable[..., Tensor], **options: Any) -> State[Sums]:
    """`mean_of` with `skip_undefined=True`, which is what to write: this name goes with version 0.3."""
    warnings.warn("Write `mean_of(..., skip_undefined=True)`.", DeprecationWarning, stacklevel=2)
    return mean_of(pointwise, skip_undefined=True, **options)


def root_mean_of(pointwise: Callable[..., Tensor], **options: Any) -> State[Sums]:
    """The root of the mean of squares, such as `scores.pointwise_squared_error`; see `mean_of`."""
    return _of_sums(pointwise, lambda sums: sums.mean.sqrt(), options)


def interval_coverage(level: float) -> State[Sums]:
    """As `calibration.interval_coverage`."""
    return mean_of(calibration.pointwise_coverage, level=check_fraction(level, "level"))


def top_label_reliability(num_bins: int = 15) -> State[Reliability]:
    """As `calibration.reliability`, which `state.summary` is; the result is the ECE."""
    return State(
        name=f"expected_calibration_error in {num_bins} bins",
        summary=Reliability.empty(num_bins),
        summarise=lambda predictive, y, weight: calibration.reliability(predictive, y, num_bins, weight=weight),
        read=lambda summary: summary.expected_calibration_error,
    )


def classwise_reliability(num_classes: int, num_bins: int = 15, *, threshold: float = 0.0) -> State[Reliability]:
    """As `calibration.reliability` of each class, which `state.summary` is; the result is the classwise ECE."""
    empty = _empty_bins(num_classes, num_bins)
    return State(
        name=f"classwise_calibration_error in {num_bins} bins, threshold {threshold}",
        summary=Reliability(count=empty, num_correct=empty, confidence_sum=empty.double()),
        summarise=lambda predictive, y, weight: calibration.reliability(
            predictive, y, num_bins, classwise=True, threshold=threshold, weight=weight
        ),
        read=lambda summary: summary.expected_calibration_error.nanmean(),
        is_classwise=True,
    )


def brier_bins(num_classes: int, num_bins: int = 15) -> State[BrierBins]:
    """As `decomposition.brier_decomposition`, which `state.summary.decomposition` is; the result is its reliability."""
    empty = _empty_bins(num_classes, num_bins)
    sums = empty.double()
    return State(
        name=f"brier_decomposition in {num_bins} bins",
        summary=BrierBins(count=empty, num_true=empty, prob_sum=sums, square_sum=sums, true_sum=sums),
        summarise=lambda predictive, y, weight: decomposition.brier_bins(predictive, y, num_bins, weight=weight),
        read=lambda summary: summary.decomposition.reliability,
        is_classwise=True,
    )


def misclassification(
    score: Callable[[CategoricalPredictive], Tensor] = predictive_entropy, *, limit: int = DEFAULT_LIMIT
) -> State[Ranking]:
    """How well an uncertainty picks out the model's own errors; the result is the AUROC.

    `state.summary` has the other measures of ranks, with bounds where more than `limit` scores were seen.

    Args:
        score: From `uncertainty`.
        limit: Most scores that are kept and ranked exactly.
    """

    def summarise(predictive: CategoricalPredictive, y: ArrayLike, weight: ArrayLike | None) -> Ranking:
        seen = observe(predictive, y, weight)
        values, wrong = score(predictive), ~scores.top_label(predictive, seen.y)[1]
        if seen.weight is not None:
            if bool((seen.weight != 1)[seen.weight > 0].any()):
                raise ValueError("Ranks that stream take weights of 0 and 1 only: call `detection.auroc(weight=...)`.")
            values, wrong = values[seen.known], wrong[seen.known]
        return Ranking.of(values, wrong, limit=limit)

    return State(
        name=f"misclassification_auroc of {_name_of(score)}",
        summary=Ranking.empty(limit=limit),
        summarise=summarise,
        read=lambda summary: summary.auroc().value,
    )


STATES: dict[Callable[..., Any], Callable[..., State[Any]]] = {
    scores.root_mean_squared_error: partial(root_mean_of, scores.pointwise_squared_error),
    calibration.interval_coverage: interval_coverage,
    calibration.expected_calibration_error: top_label_reliability,
    calibration.classwise_calibration_error: classwise_reliability,
    decomposition.brier_decomposition: brier_bins,
}


def _of_sums(
    pointwise: Callable[..., Tensor],
    read: Callable[[Sums], Tensor],
    options: dict[str, Any],
    *,
    skips_undefined: bool = False,
) -> State[Sums]:
    told = "".join(f", {name} {value}" for name, value in options.items())

    def summarise(predictive: PredictiveDistribution, y: ArrayLike, weight: ArrayLike | None) -> Sums:
        seen = observe(predictive, y, weight)
        if pointwise is scores.pointwise_negative_log_likelihood:
            values = scores.observed_log_loss(predictive, seen)
        else:
            values = pointwise(predictive, seen.y, **options)
            _check_whole_rows(seen, values)
        heavy = seen.weight_of(values)
        if skips_undefined:
            there = (~values.isnan()).double()
            heavy = there if heavy is None else heavy * there
        return Sums.of(values, heavy)

    return State(f"{_name_of(pointwise)}{told}", Sums.of(torch.zeros(0)), summarise, read)


def _check_whole_rows(seen: Observed, values: Tensor) -> None:
    """A measure of whole rows would count what was filled in for missing targets."""
    if seen.weight is None or values.shape == seen.weight.shape:
        return
    flat = seen.weight.reshape(len(seen.weight), -1) > 0
    if bool((flat.any(dim=1) & ~flat.all(dim=1)).any()):
        raise ValueError(
            "A measure of whole rows needs rows that are known or missing as a whole; `weight` is 0 for some targets "
            "of a row. Take a measure of single targets, or give the rows weights, (N,)."
        )


def _name_of(function: Callable[..., Tensor]) -> str:
    return getattr(function, "__name__", repr(function))


def _empty_bins(num_classes: int, num_bins: int) -> Tensor:
    check_count(num_classes, "num_classes", minimum=2)
    return torch.zeros(num_classes, check_count(num_bins, "num_bins"), dtype=torch.int64)


def _joined(one: T, other: T) -> T:
    """Merged on the device of the second, since an empty state begins on the CPU."""
    return _moved(one, _tensors(other)[-1].device).merge(other)


def _moved(summary: T, device: torch.device | str) -> T:
    kept: Any = summary
    if isinstance(kept, Ranking):
        return kept.to(device)  # type: ignore[return-value]
    return _with(summary, [tensor.to(device) for tensor in _tensors(summary)])


def _reduced(summary: T, group: distributed.ProcessGroup | None) -> T:
    tensors = _tensors(summary)
    sums = [tensor.double() for tensor in tensors]  # one type everywhere: counts are floats where points have weights
    for tensor in sums:
        if tensor.numel() > 0:  # a histogram keeps no scores
            distributed.all_reduce(tensor, group=group)
    kept = [
        new.to(old.dtype) if bool((new == new.round()).all()) else new for new, old in zip(sums, tensors, strict=True)
    ]
    return _with(summary, kept)


def _reduced_sums(sums: Sums, group: distributed.ProcessGroup | None) -> Sums:
    """Merged in the order of the ranks, since each keeps its sums about its own mean."""
    parts = [torch.cat([tensor.double().flatten() for tensor in _tensors(sums)])]
    gathered = [torch.empty_like(parts[0]) for _ in range(distributed.get_world_size(group))]
    distributed.all_gather(gathered, parts[0], group=group)
    shapes = _tensors(sums)
    merged: Sums | None = None
    for flat in gathered:
        split = flat.split([tensor.numel() for tensor in shapes])
        part = _with(sums, [new.reshape(old.shape).to(old.dtype) for new, old in zip(split, shapes, strict=True)])
        merged = part if merged is None else merged.merge(part)
    return sums if merged is None else merged


def _reduced_ranking(ranking: Ranking, group: distributed.ProcessGroup | None) -> Ranking:
    """Scores are gathered where all together are within the limit; else every process counts its own first."""
    world = distributed.get_world_size(group)
    mine = torch.tensor([ranking.num_points, int(ranking.is_exact)], device=ranking.counts.device)
    theirs = [torch.empty_like(mine) for _ in range(world)]
    distributed.all_gather(theirs, mine, group=group)
    sizes = [int(size) for size, _ in theirs]
    if not all(exact for _, exact in theirs) or sum(sizes) > ranking.limit:
        return _reduced(ranking.counted(), group)
    kept = [
        torch.cat([part[:size] for part, size in zip(_gathered(values, max(sizes), world, group), sizes, strict=True)])
        for values in (ranking.scores, ranking.positives.to(torch.uint8))
    ]
    return replace(ranking, blocks=((kept[0], kept[1].bool()),))


def _gathered(values: Tensor, size: int, world: int, group: distributed.ProcessGroup | None) -> list[Tensor]:
    padded = torch.nn.functional.pad(values, (0, size - len(values)))
    parts = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(parts, padded, group=group)
    return parts


def _tensors(summary: Any) -> list[Tensor]:
    return [value for field in fields(summary) if isinstance(value := getattr(summary, field.name), Tensor)]


def _with(summary: T, tensors: list[Tensor]) -> T:
    names = [field.name for field in fields(summary) if isinstance(getattr(summary, field.name), Tensor)]  # type: ignore[arg-type]
    return replace(summary, **dict(zip(names, tensors, strict=True)))  # type: ignore[type-var]
