"""Tables of `docs/results.md` that stand beside no paper's: distance from HMC, maps, and inputs of another kind."""

from collections.abc import Iterable

from scripts.recording import Record
from scripts.tables import field, row, table

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


def converged(line: Record) -> bool:
    """Whether the chains agree about predictions as far as they should."""
    return bool(line["share_converged"] >= SHARE and line["worst_r_hat"] < WORST_R_HAT)
