"""The UCI regression tables: methods on all published splits of a set, a line of JSON for each split and method.

Settings are fixed in a committed file, one a method for all sets. Lines that are there are skipped, and a fit that was
stopped goes on from its checkpoint: call the same command again. `torchrun --nproc-per-node R -m scripts.uci` shares
the splits out. `python scripts/results.py` makes the tables.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import bayesuq as bq
from scripts.recording import Records, digest, versions
from scripts.uci_methods import Part, Problem, Setting, checkpoint_name, judge, read_settings

SETTINGS = Path(__file__).parent / "settings" / "uci.toml"
RESULTS = Path(__file__).parents[1] / "docs" / "results" / "uci.jsonl"
SETS = ("boston", "concrete", "energy", "yacht", "power-plant", "protein")


def tasks(data: str, part: Part, count: int | None) -> list[dict[str, int]]:
    """Which rows: splits to test on; divisions of the first split's training rows to choose by."""
    if part == "val":
        return [{"split": 0, "division": division} for division in range(4 if count is None else count)]
    number = bq.datasets.num_splits(f"uci/{data}")
    return [{"split": split, "division": 0} for split in range(number if count is None else min(count, number))]


def run(data: str, name: str, setting: Setting, options: argparse.Namespace) -> None:
    """Fit one method to the splits of one set that have no line yet."""
    records = Records(options.out)
    common: dict[str, Any] = {"data": data, "part": options.part, "seed": options.seed, "settings": digest(setting)}
    rank, size = shared_out()
    pending = [
        task
        for task in tasks(data, options.part, options.count)[rank::size]
        if not records.has(setting=name, **common, **task)
    ]
    problems = [Problem.load(data, part=options.part, seed=options.seed, **task) for task in pending]
    if problems:
        file = options.work / checkpoint_name(name, setting, problems)
        lines = []
        for task, problem, judged in zip(pending, problems, judge(name, setting, problems, file), strict=True):
            size = {"num_train": len(problem.train), "num_judged": len(problem.y)}
            how = {"threads": torch.get_num_threads(), "versions": versions()}
            for method, measures in judged.items():
                lines.append({"method": method, "setting": name, **common, **task, **measures, **size, **how})
        records.append(*lines)
        file.unlink()
    print(f"{data}, {name}: {len(problems)} of {len(tasks(data, options.part, options.count))} fitted now", flush=True)


def shared_out() -> tuple[int, int]:
    """Of R processes that `torchrun` has started the number of this one, and R: each has every R-th split."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def main(data: Sequence[str], methods: Sequence[str] | None, options: argparse.Namespace) -> None:
    """Every set and method in turn."""
    settings = read_settings(options.settings)
    options.work.mkdir(parents=True, exist_ok=True)
    for one in data:
        for name in methods or settings:
            run(one, name, settings[name], options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="comma-separated, such as boston,yacht")
    parser.add_argument("--methods", help="comma-separated tables of the settings; default: all")
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="TOML file with a table a method")
    parser.add_argument("--part", choices=("test", "val"), default="test", help="rows to judge by; val is to choose")
    parser.add_argument("--count", type=int, help="so many splits (val: divisions of split 0); default: all (4)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/uci"), help="folder for checkpoints")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.data.split(","), arguments.methods and arguments.methods.split(","), arguments)
