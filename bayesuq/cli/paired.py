"""Is one method better than the others, or was it the test set? Differences on the same points tell.

Errors of two methods on one test point go together: a hard digit is hard for both. The standard error of their
difference is therefore far below what the two standard errors in a table suggest, and is the one to compare by.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bayesuq.cli.glossary import LARGER, SMALLER, explain
from bayesuq.cli.judging import Judged, Sought
from bayesuq.evaluation.report.comparison import compare_predictives
from bayesuq.evaluation.standard_errors import bootstrap, weighted
from bayesuq.evaluation.standard_errors import closed_form as standard_errors

NUM_ERRORS = 2.0  # standard errors that a difference must exceed

Difference = tuple[float, float]  # and its standard error


@dataclass(frozen=True)
class Standing:
    """Who is clearly apart from all others in one measure.

    Attributes:
        best: Better than every other by more than two standard errors of the paired difference; None where none is.
        worst: Worse than every other, likewise; None of two methods, where the best says it.
    """

    best: str | None = None
    worst: str | None = None


def find_standings(judged: Mapping[str, Judged]) -> dict[str, Standing]:
    """By measure, the methods that are clearly better or worse than every other.

    Args:
        judged: Of the same points, by method.

    Returns:
        No entry for a measure in which no method stands so clearly apart, of which more is not better, or whose
        differences are not known.
    """
    names = list(judged)
    pairs = {(a, b): differences(judged[a], judged[b]) for i, a in enumerate(names) for b in names[i + 1 :]}
    measures = [name for name in next(iter(pairs.values()), {}) if all(name in gaps for gaps in pairs.values())]
    found = {measure: _standing(measure, judged, pairs) for measure in measures}
    return {measure: standing for measure, standing in found.items() if standing != Standing()}


def differences(one: Judged, other: Judged) -> dict[str, Difference]:
    """One minus the other, by measure: those of a report, and how well each finds errors and points of another kind."""
    if one.segmentation is not None and other.segmentation is not None:
        mine, theirs = one.segmentation.measures, other.segmentation.measures
        gaps = {name: bootstrap.paired_difference(mine[name][0], theirs[name][0]) for name in mine}
        return {name: (gap.value, gap.standard_error) for name, gap in gaps.items()}
    compared = compare_predictives(one.predictive, other.predictive, one.y)
    found = {
        difference.name: (difference.value, difference.standard_error)
        for difference in compared.differences
        if difference.standard_error is not None
    }
    return found | {
        f"{what}_{name}": gap
        for what, sought in one.sought.items()
        for name, gap in _differences_found(sought, other.sought[what]).items()
    }


def _differences_found(one: Sought, other: Sought) -> dict[str, Difference]:
    """In how well the scores that both have find what is sought."""
    found = {}
    for name in (name for name in one.scores if name in other.scores):
        for kind, measure in (("auroc", weighted.auroc), ("average_precision", weighted.average_precision)):
            gap = measure(one.scores[name], one.positives) - measure(other.scores[name], other.positives)
            found[f"{name}_{kind}"] = float(gap.value), float(standard_errors.by_derivative(gap))
    return found


def leader(values: Mapping[str, float], difference: Callable[[str, str], Difference | None]) -> str | None:
    """The name whose value is above every other's by more than two standard errors of their difference.

    Args:
        values: By name, larger being better.
        difference: Of the first name's value minus the second's; None where it is not known.

    Returns:
        None where there is no such name, or only one.

    Example:
        >>> leader({"a": 3.0, "b": 1.0}, lambda best, other: (2.0, 0.9))
        'a'
    """
    if len(values) < 2:
        return None
    best = max(values, key=lambda name: values[name])
    gaps = [difference(best, name) for name in values if name != best]
    # NaN, from infinite losses or a lone point, is above nothing: no name then leads.
    return best if all(gap is not None and gap[0] > NUM_ERRORS * gap[1] for gap in gaps) else None


def _standing(
    measure: str, judged: Mapping[str, Judged], pairs: Mapping[tuple[str, str], Mapping[str, Difference]]
) -> Standing:
    sign = {LARGER: 1.0, SMALLER: -1.0}.get(explain(measure).better)
    if sign is None:
        return Standing()

    def ahead(sign: float) -> str | None:
        def difference(first: str, other: str) -> Difference | None:
            straight = (first, other) in pairs
            found = pairs[(first, other) if straight else (other, first)].get(measure)
            return None if found is None else (sign * (found[0] if straight else -found[0]), found[1])

        return leader({name: sign * result.report[measure].value for name, result in judged.items()}, difference)

    return Standing(ahead(sign), ahead(-sign) if len(judged) > 2 else None)
