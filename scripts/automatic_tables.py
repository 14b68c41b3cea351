"""Tables of `docs/results.md` of `regress`, of splits with a gap, of defaults, and of chains' targets."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median

from scripts.recording import Record
from scripts.tables import Mean, row

SETS = ("yacht", "boston", "energy", "concrete", "power-plant", "protein")
ELSEWHERE = {  # log density of test rows: bde 1.0.2 on splits 0 to 2 by us, DUN's ensembles from its notebook
    "yacht": "0.59 (bde)",
    "boston": "-2.17 (bde)",
    "energy": "-0.50 (bde)",
    "concrete": "-2.45 (bde)",
    "power-plant": "-2.66",
    "protein": "-2.56",
}
GAPS_ELSEWHERE = {  # the best column of six, means over splits (Antoran et al. 2020, the notebook of their repository)
    "yacht": -2.11,
    "boston": -2.70,
    "energy": -5.42,
    "concrete": -3.46,
    "power-plant": -2.90,
    "protein": -3.07,
}
SHOWN = (
    "default",
    "before fits ended with their time",
    "in nine seconds",
    "in five seconds",
    "in five seconds, before fits ended with their time",
    "in five seconds, before spare time",
    "in five seconds, before levels",
    "unwatched",
    "before large networks",
    "before levels",
    "one kernel",
    "before",
)
COVERED = (0.80, 0.97)  # by intervals that are meant to hold 90 %


def of_automatic(records: Iterable[Record]) -> list[str]:
    """`regress` on test rows, and on the same splits by settings of before: a row for each set and setting shown."""
    lines = [line for line in records if line["part"] == "test" and line["setting"] in SHOWN]
    titles = ["set", "what", "splits", "log-likelihood", "measured elsewhere", "RMSE", "CRPS", "coverage of 90 %"]
    found = [row([*titles, "weight of chains", "of the process", "CPU seconds"]), "|---" * (len(titles) + 3) + "|"]
    for data, own in by_set(lines):
        splits = {line["split"] for line in own if line["setting"] == "default"}
        for setting in SHOWN:
            some = [line for line in own if line["setting"] == setting and line["split"] in splits]
            if not some:
                continue
            weights = [f"{fmean(weight_of(line, name) for line in some):.2f}" for name in ("microcanonical", "gp")]
            cells = [_mean(some, name, digits) for name, digits in (("rmse", 2), ("crps", 3), ("coverage", 3))]
            density, seconds = _mean(some, "log_likelihood", 3), f"{fmean(line['cpu_seconds'] for line in some):.0f}"
            what = "`regress`" if setting == "default" else f"`regress`, {setting}"
            found.append(row([data, what, str(len(some)), density, ELSEWHERE[data], *cells, *weights, seconds]))
    return [*found, ""]


def of_bde(records: Iterable[Record], ours: Iterable[Record]) -> list[str]:
    """bde's chains beside `regress` on the splits that both have: a row for each set, differences by split."""
    titles = ["set", "splits", "log-likelihood of `regress`", "of bde", "difference", "RMSE of `regress`", "of bde"]
    found = [row([*titles, "CPU seconds of `regress`", "of bde"]), "|---" * (len(titles) + 2) + "|"]
    fitted = {
        (line["data"], line["split"]): line for line in ours if (line["part"], line["setting"]) == ("test", "default")
    }
    for data, own in by_set(list(records)):
        pairs = [(fitted[key], line) for line in own if (key := (data, line["split"])) in fitted]
        if not pairs:
            continue
        both = [list(side) for side in zip(*pairs, strict=True)]
        more = Mean.of([one["log_likelihood"] - other["log_likelihood"] for one, other in pairs]).rounded(3)
        cells = [*(_mean(side, "log_likelihood", 3) for side in both), more, *(_mean(side, "rmse", 2) for side in both)]
        cells += [f"{fmean(line['cpu_seconds'] for line in side):.0f}" for side in both]
        found.append(row([data, str(len(pairs)), *cells]))
    return [*found, ""]


def of_gaps(records: Iterable[Record]) -> list[str]:
    """Splits that leave out the middle of an input: mean, median and coverage, which is to be .80 to .97."""
    titles = ["set", "method", "splits", "log-likelihood: mean", "median", "best published mean", "coverage of 90 %"]
    found = [row([*titles, "least", "within 0.80 to 0.97"]), "|---" * (len(titles) + 2) + "|"]
    for data, own in by_set(list(records)):
        for method in dict.fromkeys(line["method"] for line in own):
            lines = [line for line in own if line["method"] == method]
            densities = [line.get("log_likelihood", -line.get("nlpd", 0.0)) for line in lines]
            covered = [line["coverage"] for line in lines]
            within = "yes" if COVERED[0] <= fmean(covered) <= COVERED[1] else "**no**"
            cells = [Mean.of(densities).rounded(2), f"{median(densities):.2f}", f"{GAPS_ELSEWHERE[data]:.2f}"]
            cells += [Mean.of(covered).rounded(2), f"{min(covered):.2f}", within]
            found.append(row([data, f"`{method}`", str(len(lines)), *cells]))
    return [*found, ""]


def of_defaults(records: Iterable[Record], above: Mapping[tuple[str, str], Sequence[Record]]) -> list[str]:
    """Methods by their defaults, beside the lines of the tables above on the same splits."""
    titles = ["set", "method", "splits", "RMSE", "log-likelihood", "coverage of 90 %", "CPU seconds"]
    found = [row([*titles, "RMSE above", "log-likelihood above"]), "|---" * (len(titles) + 2) + "|"]
    for data, own in by_set(list(records)):
        for method in dict.fromkeys(line["method"] for line in own):
            lines = [line for line in own if line["method"] == method]
            splits = {line["split"] for line in lines}
            beside = [line for line in above.get((data, method), []) if line["split"] in splits]
            cells = [_mean(lines, name, 2) for name in ("rmse", "log_likelihood", "coverage")]
            cells.append(f"{fmean(line['cpu_seconds'] for line in lines):.0f}")
            cells += [_mean(beside, name, 2) if beside else "" for name in ("rmse", "log_likelihood")]
            found.append(row([data, f"`{method}`", str(len(lines)), *cells]))
    return [*found, ""]


def of_two_commands(records: Iterable[Record]) -> list[str]:
    """What 90 % intervals of the two commands hold over all splits of a set, and of the same fits uncalibrated."""
    titles = ["set", "splits", "new rows", "held", "from 90 %, in s.e.", "width", "log-likelihood"]
    titles += [f"{name} as fitted" for name in ("held", "width", "log-likelihood")]
    found = [row(titles), "|---" * len(titles) + "|"]
    for data, own in by_set(list(records)):
        number = sum(line["held_out"] for line in own)
        share = sum(line["inside"] for line in own) / number
        off = (share - 0.9) / (0.09 / number) ** 0.5
        plain = [line["as_fitted"] for line in own]
        before = f"{sum(line['inside'] for line in plain) / number:.3f}"
        cells = [_mean(own, name, 2) for name in ("width", "log_likelihood")]
        cells += [before, *(_mean(plain, name, 2) for name in ("width", "log_likelihood"))]
        found.append(row([data, str(len(own)), f"{number:,}", f"{share:.3f}", f"{off:+.1f}", *cells]))
    return [*found, ""]


def of_targets(records: Iterable[Record]) -> list[str]:
    """Chains over networks by the energy variance that their steps are tuned to, on validation rows."""
    lines = list(records)
    targets = sorted({line["energy_variance"] for line in lines})
    titles = [f"{name} at {target:g}" for target in targets for name in ("log-likelihood, RMSE", "R-hat", "seconds")]
    found = [row(["set", "split", *titles]), "|---" * (2 + len(titles)) + "|"]
    for data, own in by_set(lines):
        for split in sorted({line["split"] for line in own}):
            cells = []
            for target in targets:
                for line in own:
                    if (line["split"], line["energy_variance"]) == (split, target):
                        cells.append(f"{line['log_likelihood']:.2f}, {line['rmse']:.2f}")
                        cells += [f"{line['prediction_r_hat']:.1f}", f"{line['cpu_seconds']:.0f}"]
            found.append(row([data, str(split), *cells]))
    return [*found, ""]


def by_set(lines: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """The lines of each set that has any, in the order of the tables."""
    groups = [(data, [line for line in lines if line["data"] == data]) for data in SETS]
    return [(data, own) for data, own in groups if own]


def weight_of(line: Record, name: str) -> float:
    """Of a candidate in the mixture of a line."""
    return next((float(one[2]) for one in line["candidates"] if one[0] == name), 0.0)


def _mean(lines: Sequence[Record], name: str, digits: int) -> str:
    return Mean.of([line[name] for line in lines]).rounded(digits)
