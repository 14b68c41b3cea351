"""Tables of `docs/results.md` of what is chosen by a model: places to measure at, and rows to label."""

from collections.abc import Iterable
from statistics import median

from scripts.recording import Record
from scripts.tables import Mean, row

THEIRS, OURS, NETWORKS = "SingleTaskGP", "process", "ensemble"
SCORES = {"bald": "BALD", "random": "random"}
SHOWN = (100, 300, 500)  # labels


def of_regrets(records: Iterable[Record]) -> list[str]:
    """Medians of what the best of all values lacks, a row a function, and how many seeds they are of."""
    lines = list(records)
    titles = ["function", "`SingleTaskGP`", "`gp`, Matern's kernel", "its regret is smaller in"]
    found = [row([*titles, "ensemble of 10 networks"]), "|---" * 5 + "|"]
    for function in dict.fromkeys(line["function"] for line in lines):
        last = {
            model: {
                line["seed"]: line["regret"][-1]
                for line in lines
                if (line["function"], line["model"]) == (function, model)
            }
            for model in (THEIRS, OURS, NETWORKS)
        }
        both = sorted(last[THEIRS].keys() & last[OURS].keys())
        theirs, ours = (median(last[model][seed] for seed in both) for model in (THEIRS, OURS))
        cells = [f"**{one:.3g}**" if one < other else f"{one:.3g}" for one, other in ((theirs, ours), (ours, theirs))]
        won = sum(last[OURS][seed] < last[THEIRS][seed] for seed in both)
        networks = last[NETWORKS].values()
        seeds = f"{len(networks)} seed{'s' if len(networks) > 1 else ''}"
        told = f"{median(networks):.3g} ({seeds})" if networks else ""
        found.append(row([function, *cells, f"{won} of {len(both)}", told]))
    return [*found, ""]


def of_labels(records: Iterable[Record]) -> list[str]:
    """Labels that each score needs, seed by seed, and how right its fits are on the way."""
    lines = list(records)
    levels = list(lines[0]["labels_for"])
    titles = [f"labels for {float(level):.0%}".replace("%", " %") for level in levels]
    shown = [number for number in SHOWN if number in lines[0]["num_labels"]]
    at = [f"accuracy with {number}" for number in shown]
    found = [row(["score", "seeds", *titles, *at, "CPU seconds"]), "|---" * (3 + len(titles) + len(at)) + "|"]
    for score, name in SCORES.items():
        own = sorted((line for line in lines if line["score"] == score), key=lambda line: int(line["seed"]))
        if not own:
            continue
        needed = [", ".join(_needed(line, level) for line in own) for level in levels]
        right = [
            Mean.of([line["accuracy"][line["num_labels"].index(number)] for line in own]).rounded(3) for number in shown
        ]
        seconds = Mean.of([line["cpu_seconds"] for line in own]).rounded(0)
        found.append(row([name, str(len(own)), *needed, *right, seconds]))
    return [*found, ""]


def _needed(line: Record, level: str) -> str:
    number = line["labels_for"][level]
    return f"more than {line['num_labels'][-1]}" if number is None else str(number)
