"""Tables of `docs/results.md` that stand beside no paper's: distance from HMC, maps, and inputs of another kind."""

from collections.abc import Iterable

from scripts.recording import Record
from scripts.tables import Cell, field, row, table

REFERENCE = "NUTS"
R_HAT, WORST_R_HAT, SHARE = 1.01, 1.05, 0.95  # of predictions: what the chains should reach


def of_distances(records: Iterable[Record]) -> list[str]:
    """The chains first, and whether they have converged; then each method beside them."""
    lines = list(records)
    chains = [line for line in lines if line["method"] == REFERENCE]
    found = [row(["set", "split", "share below 1.01", "largest R-hat", "least ESS", "steps", "minutes", "converged"])]
    found += ["|---" * 8 + "|"]
    for line in chains:
        told = [f"{line['share_converged']:.2f}", f"{line['worst_r_hat']:.3f}", f"{line['least_ess']:.0f}"]
        cost = [f"{line['num_steps']:.0f}", f"{line['seconds'] / 60:.0f}"]
        found.append(row([line["data"], str(line["split"]), *told, *cost, "yes" if converged(line) else "**no**"]))
    others = [line for line in lines if line["method"] != REFERENCE]
    columns = {
        "total variation": (field("total_variation"), 3),
        "Wasserstein-1, sd of y": (field("wasserstein"), 3),
        "agreement": (field("agreement"), 3),
        "log score lost, nats": (field("log_score_lost"), 3),
        "seconds": (field("seconds"), 0),
    }
    for data in dict.fromkeys(line["data"] for line in chains):
        own = [line for line in others if line["data"] == data]
        shown = {t: c for t, c in columns.items() if any(c[0](line) is not None for line in own)}
        found += ["", f"{data}:", "", *table(own, ["method"], shown)[:-1]]
    return [*found, ""]


def of_maps(records: Iterable[Record]) -> list[str]:
    """Segmentation, a table a data set: how right, how calibrated, and whether the map lies on the errors."""
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
    for data in dict.fromkeys(line["data"] for line in lines):
        own = [line for line in lines if line["data"] == data]
        found += [f"{data}, {own[0]['num_images']} test images:", "", *table(own, ["method"], columns)]
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
    """Inputs of another kind: a row for each direction, network and method, means over seeds."""
    columns = {
        "error, %": (field("error", 100.0), 2),
        "maximum probability": (field("auroc.maximum_probability"), 3),
        "entropy": (field("auroc.predictive_entropy"), 3),
        "mutual information": (field("auroc.mutual_information"), 3),
        "posterior width": (field("width"), 4),
    }
    return table(records, ["data", "network", "method"], columns)


def converged(line: Record) -> bool:
    """Whether the chains agree about predictions as far as they should."""
    return bool(line["share_converged"] >= SHARE and line["worst_r_hat"] < WORST_R_HAT)
