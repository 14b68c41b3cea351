"""The tables of `docs/results.md`, made from the lines of JSON that the other scripts have written.

A value is the mean over splits with its standard error; published standard deviations are divided by the root of the
number of splits first. Ours is below a published value where the difference, on the worse side, is more than 1.645
standard errors of both in quadrature (one-sided, 95 %); else it is not below.
"""

import argparse
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from math import hypot, isnan, nan, sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from bayesuq.writing import write_text
from scripts import mnist_methods as images
from scripts.automatic_tables import of_automatic, of_bde, of_defaults, of_gaps, of_targets, of_two_commands
from scripts.choosing_tables import of_labels, of_regrets
from scripts.further_tables import of_distances, of_failures, of_maps, of_other_inputs, of_processes, of_words
from scripts.recording import Record, Records, digest
from scripts.tables import Mean, row
from scripts.uci_methods import Setting, read_settings

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"
ONE_SIDED = 1.645  # the normal quantile of 95 %
NUM_SPLITS = {"protein": 5}  # published; 20 for the others
SETS = ("boston", "concrete", "energy", "yacht", "power-plant", "protein")
IMAGE_MEASURES = {  # of MNIST, and what they are multiplied by
    "error": ("error, %", 100.0),
    "negative_log_likelihood": ("NLL, nats", 1.0),
    "expected_calibration_error": ("ECE", 1.0),
    "median_scale": ("median posterior scale", 1.0),
    "auroc_total": ("AUROC against Fashion-MNIST, entropy", 1.0),
    "auroc_epistemic": ("mutual information", 1.0),
}
MEASURES = {"rmse": ("RMSE", 1), "log_likelihood": ("log-likelihood", -1)}  # and the sign of what is worse
FURTHER = {  # by file and mark
    "hmc-distance": of_distances,
    "failure": of_failures,
    "ood": of_other_inputs,
    "segmentation": of_maps,
    "every-word": of_words,
    "uci-automatic": of_automatic,
    "uci-gap": of_gaps,
    "two-commands": of_two_commands,
    "microcanonical-target": of_targets,
    "optimising": of_regrets,
    "active-learning": of_labels,
}


def select(
    records: Iterable[Record], settings: Mapping[str, Setting], part: str
) -> dict[tuple[str, str], list[Record]]:
    """Records of these very settings, by set and method; of a repeated split the last."""
    chosen: dict[tuple[str, str], dict[tuple[int, int], Record]] = {}
    digests = {name: digest(setting) for name, setting in settings.items()}
    for record in records:
        if record["part"] == part and digests.get(record["setting"]) == record["settings"]:
            splits = chosen.setdefault((record["data"], record["method"]), {})
            splits[record["split"], record["division"]] = record
    return {key: list(splits.values()) for key, splits in chosen.items()}


def mean(records: Sequence[Record], name: str) -> Mean:
    """Of one measure over splits."""
    return Mean.of([record[name] for record in records])


def published(source: Mapping[str, Any], data: str, measure: str) -> Mean | None:
    """What a source says of a set, with its standard error."""
    pair = source.get(data, {}).get(measure)
    if pair is None:
        return None
    value, error = [*pair, nan][:2]
    return Mean(value, error / sqrt(NUM_SPLITS.get(data, 20)) if source["error"] == "deviation" else error)


def beside_published(source: Mapping[str, Any], found: Mapping[tuple[str, str], Sequence[Record]]) -> list[str]:
    """One source's table: ours, theirs, and in what ours is below."""
    titles = [cell for title, _ in MEASURES.values() for cell in (title, "published")]
    lines = [row(["set", "splits", *titles, "below in"]), "|---" * 7 + "|"]
    for data in SETS:
        records = found.get((data, source["method"]))
        if records:
            pairs = {measure: (mean(records, measure), published(source, data, measure)) for measure in MEASURES}
            cells = [str(cell) if cell else "" for pair in pairs.values() for cell in pair]
            verdict = below(pairs) if source.get("verdict", True) else ""
            lines.append(row([data, str(len(records)), *cells, verdict]))
    return [f"`{source['method']}` beside {source['label']}:", "", *lines, ""] if len(lines) > 2 else []


def is_below(ours: Mean, theirs: Mean, worse: int) -> bool:
    """Whether ours is worse, one-sided at 95 %; `worse` is 1 where large is worse, and -1 where small is."""
    return worse * (ours.value - theirs.value) > ONE_SIDED * hypot(ours.error, theirs.error)


def below(pairs: Mapping[str, tuple[Mean, Mean | None]]) -> str:
    """Names of the measures in which ours is below; empty where an error is not known."""
    names = []
    for measure, (ours, theirs) in pairs.items():
        if theirs is None or isnan(theirs.error) or isnan(ours.error):
            return ""
        title, worse = MEASURES[measure]
        names += [title] if is_below(ours, theirs, worse) else []
    return ", ".join(names) or "nothing"


def ablation(found: Mapping[tuple[str, str], Sequence[Record]]) -> list[str]:
    """What each part of an ensemble adds: differences in log-likelihood, split by split, in nats a point."""
    pairs = (("ensemble:1", "spread"), ("ensemble", "ensemble:1"))
    lines = [row(["set", *(f"`{one}` less `{other}`" for one, other in pairs)]), "|---" * 3 + "|"]
    sets = [data for data in SETS if all((data, method) in found for pair in pairs for method in pair)]
    lines += [
        row([data, *(str(difference(found[data, one], found[data, other])) for one, other in pairs)]) for data in sets
    ]
    return ["Log-likelihoods, paired over the splits:", "", *lines, ""] if len(lines) > 2 else []


def difference(ones: Sequence[Record], others: Sequence[Record]) -> Mean:
    """Of the log-likelihoods of two methods, over the splits that both have."""
    second = {record["split"]: record["log_likelihood"] for record in others}
    return Mean.of([one["log_likelihood"] - second[one["split"]] for one in ones if one["split"] in second])


def reruns(records: Iterable[Record], found: Mapping[tuple[str, str], Sequence[Record]]) -> list[str]:
    """Lines beside those of before on the splits that both have, whose setting is named `METHOD, what was so`."""
    of_before: dict[tuple[str, str, str], dict[int, Record]] = {}
    for record in records:
        _, comma, what = record["setting"].partition(", ")
        if comma and record["part"] == "test":
            of_before.setdefault((record["data"], record["method"], what), {})[record["split"]] = record
    sides = [f"{title} {when}" for title, _ in MEASURES.values() for when in ("now", "then")]
    titles = ["set", "method", "before", "splits", *sides]
    lines = [row([*titles, "less RMSE", "more log-likelihood", "worse by two s.e. in"]), "|---" * 11 + "|"]
    for (data, method, what), then in sorted(of_before.items(), key=lambda one: (SETS.index(one[0][0]), one[0][1:])):
        now = [record for record in found.get((data, method), []) if record["split"] in then]
        if now:
            cells = [str(mean(side, name)) for name in MEASURES for side in (now, [then[one["split"]] for one in now])]
            gains = {name: gain(now, then, name) for name in MEASURES}
            verdict = ", ".join(MEASURES[name][0] for name, one in gains.items() if one.value < -2 * one.error)
            told = [one.rounded(3) for one in gains.values()]
            lines.append(row([data, f"`{method}`", what, str(len(now)), *cells, *told, verdict or "nothing"]))
    return [*lines, ""]


def gain(now: Sequence[Record], then: Mapping[int, Record], name: str) -> Mean:
    """By how much a measure is better than then, split by split."""
    _, worse = MEASURES[name]
    return Mean.of([worse * (then[one["split"]][name] - one[name]) for one in now])


def further(found: Mapping[tuple[str, str], Sequence[Record]]) -> list[str]:
    """What the papers do not tell: coverage, CRPS, and what a fit costs."""
    lines = [row(["set", "method", "coverage of 90 %", "CRPS", "seconds a split"]), "|---" * 5 + "|"]
    for data in SETS:
        for method in sorted(method for one, method in found if one == data):
            records = found[data, method]
            measures = [str(mean(records, measure)) for measure in ("coverage", "crps")]
            lines.append(row([data, f"`{method}`", *measures, seconds(records)]))
    return [*lines, ""]


def seconds(records: Sequence[Record]) -> str:
    """Mean wall time of the fits that were not stopped in between."""
    known = [record["seconds"] for record in records if record["seconds"] is not None]
    return f"{fmean(known):.1f}" if known else ""


def of_images(
    records: Iterable[Record], settings: Mapping[str, images.Setting], part: images.Part = "test"
) -> list[str]:
    """The MNIST table: means over seeds; what was not measured stays empty."""
    titles = ["method", "seeds", *(title for title, _ in IMAGE_MEASURES.values()), "hours a seed"]
    lines = [row(titles), "|---" * len(titles) + "|"]
    for name, setting in settings.items():
        key = {"method": name, "settings": digest(setting), "part": part}
        own = [record for record in records if key.items() <= record.items()]
        if own:
            cells = [_image_cell(own, measure, factor) for measure, (_, factor) in IMAGE_MEASURES.items()]
            hours = seconds(own) and f"{float(seconds(own)) / 3600:.2f}"
            lines.append(row([f"`{name}`", str(len(own)), *cells, hours]))
    return [*lines, ""]


def _image_cell(records: Sequence[Record], measure: str, factor: float) -> str:
    values = [factor * record[measure] for record in records if record.get(measure) is not None]
    if not values:
        return ""
    return Mean.of(values).rounded(3)


def candidates(found: Mapping[tuple[str, str], Sequence[Record]], names: Iterable[str]) -> list[str]:
    """What was tried: RMSE and log-likelihood of the validation rows, side by side."""
    sets = [data for data in SETS if any(data == one for one, _ in found)]
    lines = [row(["setting", *sets]), "|---" * (1 + len(sets)) + "|"]
    for name in names:
        both = [
            f"{mean(found[data, name], 'rmse').value:.2f}, {mean(found[data, name], 'log_likelihood').value:.2f}"
            if (data, name) in found
            else ""
            for data in sets
        ]
        lines.append(row([name, *both]))
    return [*lines, ""]


def footnote(records: Iterable[Record]) -> str:
    """Seeds, versions and threads of the lines shown."""
    lines = list(records)
    seeds = sorted({record["seed"] for record in lines})
    versions = sorted(
        {", ".join(f"{name} {number}" for name, number in record["versions"].items()) for record in lines}
    )
    threads = sorted({record["threads"] for record in lines})
    return f"Seed {', '.join(map(str, seeds))}; {'; '.join(versions)}; threads: {', '.join(map(str, threads))}."


def replace(page: str, name: str, lines: Sequence[str]) -> str:
    """The page with new lines between the two marks of that name.

    Raises:
        ValueError: The page does not have the marks.
    """
    begin, end = f"<!-- {name}: made by scripts/results.py -->", f"<!-- {name}: end -->"
    head, mark, rest = page.partition(begin)
    _, tail_mark, tail = rest.partition(end)
    if not mark or not tail_mark:
        raise ValueError(f"The page must have the lines {begin!r} and {end!r}.")
    return "\n".join([head + begin, "", *lines, end]) + tail


def main(folder: Path, page: Path) -> None:
    """Read the lines, and write the tables into the page."""
    settings = read_settings(HERE / "settings" / "uci.toml")
    tried = read_settings(HERE / "settings" / "uci-candidates.toml")
    sources = tomllib.loads((HERE / "settings" / "published.toml").read_text(encoding="utf-8"))["source"]
    lines = Records(folder / "uci.jsonl").read()
    tests = select(lines, settings, "test")
    choices = select(Records(folder / "uci-val.jsonl").read(), tried, "val")
    shown = [record for records in tests.values() for record in records]
    tables = [line for source in sources for line in beside_published(source, tests)]
    text = replace(
        page.read_text(encoding="utf-8"), "uci", [*tables, *ablation(tests), *further(tests), footnote(shown), ""]
    )
    text = replace(text, "uci-reruns", reruns(lines, tests))
    text = replace(text, "uci-val", candidates(choices, tried))
    digits = Records(folder / "mnist.jsonl").read()
    if digits:
        of_digits = images.read_settings(HERE / "settings" / "mnist.toml")
        text = replace(text, "mnist", [*of_images(digits, of_digits), footnote(digits), ""])
        of_candidates = images.read_settings(HERE / "settings" / "mnist-candidates.toml")
        validated = Records(folder / "mnist-val.jsonl").read()
        text = replace(text, "mnist-val", of_images(validated, {**of_digits, **of_candidates}, "val"))
    processes = Records(folder / "uci-gp.jsonl").read()
    if processes:
        text = replace(text, "uci-gp", of_processes(processes, tests))
    defaults = Records(folder / "uci-defaults.jsonl").read()
    if defaults:
        text = replace(text, "uci-defaults", of_defaults(defaults, tests))
    peer = Records(folder / "uci-bde.jsonl").read()
    if peer:
        text = replace(text, "uci-bde", of_bde(peer, Records(folder / "uci-automatic.jsonl").read()))
    for name, make in FURTHER.items():
        records = Records(folder / f"{name}.jsonl").read()
        if records:
            text = replace(text, name, make(records))
    write_text(page, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=PAGE.parent / "results", help="folder of JSON lines")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    main(arguments.results, arguments.page)
