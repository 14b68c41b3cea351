"""Tables of `docs/results.md` beyond UCI and MNIST.

Distance from HMC, processes, failures, other inputs, maps, and the README's example by every word.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from scripts import ood_methods, segmentation_methods
from scripts.recording import Record
from scripts.tables import Cell, Mean, field, row, table

REFERENCE = "NUTS"
OTHER = {"mnist": "Fashion-MNIST", "fashion_mnist": "MNIST", "digits-0to8": "nines"}
BESIDE = ("ensemble", "dropout", "variational")  # networks beside a Gaussian process
CORBIERE = {  # et al. 2019, table 1, MLP on MNIST: FPR95, AUPR-error, AUPR-success, AUROC
    "maximum probability": (14.87, 37.70, 99.94, 97.13),
    "MC dropout": (15.15, 38.22, 99.94, 97.15),
    "ConfidNet": (11.79, 57.37, 99.95, 97.83),
}
R_HAT, WORST_R_HAT, SHARE = 1.01, 1.05, 0.95  # of predictions: what the chains should reach


def of_distances(records: Iterable[Record]) -> list[str]:
    """The chains first, and whether they have converged; then each method beside them."""
    lines = list(records)
    order = list(dict.fromkeys(line["data"] for line in lines))
    chains = [line for line in lines if line["method"] == _reference(line)]
    chains.sort(key=lambda line: (order.index(line["data"]), line["method"] != REFERENCE, line["split"]))
    titles = ["share below 1.01", "largest R-hat", "least ESS", "between halves", "steps", "minutes", "converged"]
    found = [row(["set", "split", "chains", *titles]), "|---" * 10 + "|"]
    for line in chains:
        told = [f"{line['share_converged']:.2f}", f"{line['worst_r_hat']:.3f}", f"{line['least_ess']:.0f}"]
        halves = f"{line['total_variation_between_halves']:.3f}" if "total_variation_between_halves" in line else ""
        cost = [f"{line['num_steps']:.0f}", f"{line['seconds'] / 60:.0f}"]
        name = [line["data"], str(line["split"]), line["method"]]
        found.append(row([*name, *told, halves, *cost, "yes" if converged(line) else "**no**"]))
    columns = {
        "total variation": (field("total_variation"), 3),
        "Wasserstein-1, sd of y": (field("wasserstein"), 3),
        "agreement": (field("agreement"), 3),
        "log score lost, nats": (field("log_score_lost"), 3),
        "seconds": (field("seconds"), 0),
    }
    for data, reference in dict.fromkeys((line["data"], line["method"]) for line in chains):
        own = [line for line in lines if (line["data"], _reference(line)) == (data, reference)]
        own = [line for line in own if line["method"] != reference]
        shown = {t: c for t, c in columns.items() if any(c[0](line) is not None for line in own)}
        beside = data if reference == REFERENCE else f"{data}, beside {reference}"
        found += ["", f"{beside}:", "", *table(own, ["method"], shown)[:-1]]
    return [*found, ""]


def _reference(line: Record) -> str:
    """The chains that a line of `scripts/hmc_distance.py` holds true."""
    return line.get("reference") or REFERENCE


def of_words(records: Iterable[Record]) -> list[str]:
    """The README's example, a row a method: what its test rows say, what it costs, and what its fit warned of."""
    found = [row(["word", "accuracy", "NLL, nats", "ECE", "CPU seconds", "told"]), "|---" * 6 + "|"]
    for line in records:
        measures = ("accuracy", "negative_log_likelihood", "expected_calibration_error")
        numbers = [f"{line[name]:.3f}" if name in line else "" for name in measures]
        told = [line["not_waited_for"]] if "not_waited_for" in line else line["told"]
        cost = "" if "not_waited_for" in line else f"{line['cpu_seconds']:.0f}"
        told = list(dict.fromkeys(re.split(r"[,:;]|\. ", one)[0].rstrip(".") for one in told))
        found.append(row([f"`{line['word']}`", *numbers, cost, "; ".join(told)]))
    return [*found, ""]


def of_maps(records: Iterable[Record]) -> list[str]:
    """Segmentation, a table a data set and setting: how right, how calibrated, whether the map lies on the errors."""
    lines = list(records)
    columns = {
        "Dice": (_measure("dice"), 3),
        "IoU": (_measure("intersection_over_union"), 3),
        "NLL, nats": (_measure("negative_log_likelihood"), 3),
        "ECE": (_measure("expected_calibration_error"), 4),
        "overlap: entropy": (_measure("predictive_entropy_overlap"), 3),
        "shuffled": (_measure("predictive_entropy_overlap_shuffled"), 3),
        "mutual information": (_measure("mutual_information_overlap", only_drawn=True), 3),
        "maximum probability": (_measure("maximum_probability_overlap"), 3),
        "floor": (_measure("overlap_floor"), 3),
        "minutes": (field("seconds", 1 / 60), 1),
    }
    found = []
    order = list(dict.fromkeys(line["data"] for line in lines))
    tables = dict.fromkeys((line["data"], line["settings"]) for line in lines)
    for data, setting in sorted(tables, key=lambda one: order.index(one[0])):
        own = [line for line in lines if (line["data"], line["settings"]) == (data, setting)]
        own.sort(key=lambda line: segmentation_methods.METHODS.index(line["method"]))
        seeds = len({line["seed"] for line in own})
        told = f"{data}, {own[0]['num_images']} test images, {seeds} seed{'s' if seeds > 1 else ''}:"
        found += [told, "", *table(own, ["method"], columns)]
    return found


def _measure(name: str, *, only_drawn: bool = False) -> Cell:
    """The value of a measure; one that compares draws is left out where there is one."""

    def read(record: Record) -> float | None:
        if only_drawn and record["num_draws"] == 1:
            return None
        value: float | None = record["measures"][name][0]
        return value

    return read


def of_other_inputs(records: Iterable[Record]) -> list[str]:
    """Inputs of another kind, a table a direction: a row for each network and method, means over seeds."""
    lines = list(records)
    columns = {
        "error, %": (field("error", 100.0), 2),
        "NLL, nats": (field("negative_log_likelihood"), 3),
        "AUROC: maximum probability": (field("auroc.maximum_probability"), 3),
        "entropy": (field("auroc.predictive_entropy"), 3),
        "mutual information": (field("auroc.mutual_information"), 3),
        "posterior width": (field("width"), 4),
    }
    found = []
    for data in dict.fromkeys(line["data"] for line in lines):
        own = sorted((line for line in lines if line["data"] == data), key=_place)
        seeds = len({line["seed"] for line in own})
        told = f"Fitted to `{data}`, told from {OTHER[data]}; {seeds} seed{'s' if seeds > 1 else ''}:"
        found += [told, "", *table(own, ["network", "method"], columns)]
        for network in dict.fromkeys(line["network"] for line in own if line["method"] == "ensemble"):
            less = paired([line for line in own if line["network"] == network], "ensemble", "map")
            found += [f"Entropy of the ensemble less that of one {network}, AUROC by seed: {less.rounded(4)}.", ""]
    return found


def _place(line: Record) -> tuple[str, int]:
    """Of a line in its table: a network's together, methods in the order of their settings."""
    return line["network"], ood_methods.METHODS.index(line["method"])


def paired(lines: Iterable[Record], one: str, other: str) -> Mean:
    """The AUROC of entropy of one method less that of another one, over the seeds that both have."""
    of: dict[str, dict[int, float]] = {one: {}, other: {}}
    for line in lines:
        if line["method"] in of:
            of[line["method"]][line["seed"]] = line["auroc"]["predictive_entropy"]
    return Mean.of([of[one][seed] - of[other][seed] for seed in sorted(of[one].keys() & of[other].keys())])


def of_failures(records: Iterable[Record]) -> list[str]:
    """Failure prediction: each score over seeds, with the published numbers in the row below."""
    lines = list(records)
    shown = {"FPR95": "fpr95", "AUPR-error": "aupr_error", "AUPR-success": "aupr_success", "AUROC": "auroc"}
    found = [row(["score, %", "seeds", "error", *shown]), "|---" * (3 + len(shown)) + "|"]
    for score, published in CORBIERE.items():
        own = [line for line in lines if line["score"] == score]
        if own:
            means = [Mean.of([line[name] for line in own]) for name in ("error", *shown.values())]
            found.append(row([score, str(len(own)), *map(str, means)]))
            found.append(row(["published", "5", "", *(f"{value:.2f}" for value in published)]))
    return [*found, ""]


def of_processes(records: Iterable[Record], networks: Mapping[tuple[str, str], Sequence[Record]]) -> list[str]:
    """Gaussian processes on the UCI splits, beside networks: a table a set.

    Args:
        records: Lines of the processes.
        networks: Lines of the networks, by set and method.
    """
    columns = {
        "RMSE": (field("rmse"), 3),
        "log-likelihood": (field("log_likelihood"), 3),
        "CRPS": (field("crps"), 3),
        "coverage of 95 %": (field("coverage_of_95"), 3),
        "seconds a split": (field("cpu_seconds"), 0),
    }
    groups: dict[str, dict[str, list[Record]]] = {}
    for line in records:
        renamed = {**line, "log_likelihood": -line["nlpd"], "coverage_of_95": line["coverage"]}
        groups.setdefault(line["data"], {}).setdefault(line["method"], []).append(renamed)
    found = []
    for data, methods in sorted(groups.items()):
        for name in BESIDE:
            methods[name] = [{**line, "cpu_seconds": line["seconds"]} for line in networks.get((data, name), [])]
        shown = [{**line, "splits": len(own)} for own in methods.values() for line in own]
        found += [f"`{data}`:", "", *table(shown, ["method", "splits"], columns)]
    return found


def converged(line: Record) -> bool:
    """Whether the chains agree about predictions as far as they should."""
    return bool(line["share_converged"] >= SHARE and line["worst_r_hat"] < WORST_R_HAT)
