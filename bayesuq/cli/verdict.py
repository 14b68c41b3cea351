"""What the table of a report comes to, in three sentences: who predicts well, is calibrated, and notices errors."""

from collections.abc import Mapping, Sequence

from bayesuq.cli.glossary import ERRORS, OOD, PREDICTIONS, explain
from bayesuq.cli.paired import Standing
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report
from bayesuq.evaluation.report.standard_measures import CALIBRATION_ERROR, COVERAGE_LEVEL

Reports = Mapping[str, Report]
COVERAGE = "interval_coverage"
SHOWN = ("accuracy", "dice", "root_mean_squared_error", "negative_log_likelihood")


def verdict(reports: Reports, standings: Mapping[str, Standing]) -> list[str]:
    """Three sentences, of what the reports have.

    Args:
        reports: By method, of the same test rows.
        standings: By measure, who is clearly apart; see `paired.find_standings`.
    """
    told = [_predictions(reports, standings), _calibration(reports, standings), _noticed(reports, standings)]
    return [f"{sentence[0].upper()}{sentence[1:]}." for sentence in told if sentence]


def _predictions(reports: Reports, standings: Mapping[str, Standing]) -> str:
    if len(reports) > 1:
        return _apart(reports, standings)
    (name, report), *_ = reports.items()
    values = [f"{_title(m.name)} {_said(m)}" for m in report.measures if m.name in SHOWN]
    return f"{name} predicts with {_listed(values)}" if values else ""


def _calibration(reports: Reports, standings: Mapping[str, Standing]) -> str:
    coverages = _values(reports, COVERAGE)
    if coverages:
        return _coverages(coverages)
    gaps = {name: measure for name, measure in _values(reports, CALIBRATION_ERROR).items() if measure.value >= 0}
    return _gaps(gaps, standings.get(CALIBRATION_ERROR, Standing())) if gaps else ""


def _coverages(coverages: Mapping[str, Measure]) -> str:
    groups: dict[str, list[str]] = {"are too narrow": [], "are too wide": [], "hold what they promise": []}
    for name, measure in coverages.items():
        so = (
            "hold what they promise" if measure.off is None else "are too wide" if measure.off > 0 else "are too narrow"
        )
        groups[so].append(f"{name} ({_said(measure)})")
    (so, first), *others = [(so, _listed(names)) for so, names in groups.items() if names]
    promise = f"the {COVERAGE_LEVEL * 100:.0f} % intervals of {first} {so}"
    return _listed([promise, *(f"those of {names} {also}" for also, names in others)])


def _gaps(gaps: Mapping[str, Measure], standing: Standing) -> str:
    if len(gaps) == 1:
        ((name, gap),) = gaps.items()
        return f"the confidence of {name} is {_said(gap)} from its accuracy on average"
    best, worst = (end(gaps, key=lambda name: gaps[name].value) for end in (min, max))
    ends = ["clearly " * (standing.best == best) + "closest", "clearly " * (standing.worst == worst) + "farthest"]
    return (
        f"confidence comes {ends[0]} to accuracy with {best} ({_said(gaps[best])} on average) and is {ends[1]} from it "
        f"with {worst} ({_said(gaps[worst])})"
    )


def _noticed(reports: Reports, standings: Mapping[str, Standing]) -> str:
    for section, what in ((OOD, "data of another kind is"), (ERRORS, "errors are")):
        found = {
            (name, measure.name): measure
            for name, report in reports.items()
            for measure in report.measures
            if measure.name.endswith("_auroc") and explain(measure.name).section == section and measure.value >= 0
        }
        if not found:
            continue
        name, by = max(found, key=lambda key: found[key].value)
        clearly = "clearly " * (standings.get(by, Standing()).best == name)
        score = _title(by).removesuffix(", AUROC")
        return f"{what} noticed {clearly}best by the {score} of {name} (AUROC {_said(found[name, by])})"
    return _epistemic_shares(reports)


def _epistemic_shares(reports: Reports) -> str:
    parts = [_values(reports, measure) for measure in ("epistemic_variance", "aleatoric_variance")]
    known = [name for name in reports if all(name in part for part in parts)]
    shares = {name: parts[0][name].value / (parts[0][name].value + parts[1][name].value) for name in known}
    shares = {name: share for name, share in shares.items() if share >= 0}
    if not shares:
        return ""
    ends = dict.fromkeys(end(shares, key=lambda name: shares[name]) for end in (min, max))
    told = " to ".join(f"{100 * shares[name]:.0f} % ({name})" for name in ends)
    return f"of the predicted variance {told} is epistemic, which more training rows would take away"


def _apart(reports: Reports, standings: Mapping[str, Standing]) -> str:
    """Who predicts clearly best and worst, and in which measures."""
    mine = {measure: each for measure, each in standings.items() if explain(measure).section == PREDICTIONS}
    parts = []
    for side in ("best", "worst"):
        names = [name for name in reports if any(getattr(each, side) == name for each in mine.values())]
        for name in names:
            titles = [_title(measure) for measure, each in mine.items() if getattr(each, side) == name]
            parts.append(f"{name} predicts clearly {side} ({_listed(titles)})")
    return _listed(parts) if parts else "no method predicts clearly better than every other, or clearly worse"


def _values(reports: Reports, measure: str) -> dict[str, Measure]:
    return {name: m for name, report in reports.items() for m in report.measures if m.name == measure}


def _title(measure: str) -> str:
    """In the midst of a sentence."""
    title = explain(measure).title
    return title if title.isupper() else f"{title[0].lower()}{title[1:]}"


def _said(measure: Measure) -> str:
    value, error, _ = measure.cells
    return f"{value} {error}".rstrip()


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
