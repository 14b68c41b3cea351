"""`bayesuq.regress` on UCI sets by its one automatic setting: a line of JSON for each split.

The clock is this process's CPU time, so that what a fit gets does not depend on what else the machine does. Splits come
one after another, and of each all sets, so that a run that is stopped has as many splits of each. Lines that are there
are skipped: call the same command again to go on.

`--part val` fits the training rows of a split and measures on its validation rows: to choose a setting by. `--part gap`
takes the splits that leave out the middle third of an input (Foong et al. 2019): what does a fit know between its data?
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

import bayesuq as bq
from bayesuq.evaluation.calibration import interval_coverage
from bayesuq.evaluation.scores import crps, root_mean_squared_error
from scripts.recording import Record, Records, versions

FOLDER = Path(__file__).parents[1] / "docs" / "results"
SETS = ("yacht", "boston", "energy", "concrete")
LEVEL = 0.9
Rows = tuple[bq.Dataset, bq.Dataset]


def gap_rows(data: str) -> Any:
    """The file of a set's gap splits.

    Raises:
        FileNotFoundError: `BAYESUQ_DATA` names no folder with it.
    """
    path = Path(os.environ.get("BAYESUQ_DATA", "")) / "uci_gap" / f"{data}.npz"
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: gap splits are read from the folder that BAYESUQ_DATA names.")
    return np.load(path)


def rows_of(data: str, split: int, part: str) -> Rows:
    """Which rows are fitted, and by which the fit is judged, in raw units."""
    if part == "gap":
        file = gap_rows(data)
        is_test = file["is_test"][split]
        parts = [bq.Dataset(file["x"][chosen], file["y"][chosen]) for chosen in (~is_test, is_test)]
        return parts[0], parts[1]
    rows = bq.datasets.load(f"uci/{data}", split=split)
    return (rows.refit, rows.test) if part == "test" else (rows.train, rows.val)


def judge(data: str, split: int, part: str, budget: float, seed: int) -> Record:
    """Fit a split, and measure on the rows that it did not see, in y's own units."""
    train, judged = rows_of(data, split, part)
    begin = process_time()
    posterior = bq.regress(train.x, train.y, budget=budget, seed=seed, clock=process_time)
    fitted = process_time()
    predictive = posterior.predict(judged.x, seed=seed)
    return {
        "log_likelihood": float(predictive.log_prob(judged.y).mean()),
        "rmse": float(root_mean_squared_error(predictive, judged.y)),
        "coverage": float(interval_coverage(predictive, judged.y, LEVEL)),
        "crps": float(crps(predictive, judged.y)),
        "cpu_seconds": fitted - begin,
        "prediction_seconds": process_time() - fitted,
        "candidates": [list(candidate) for candidate in posterior.candidates],
        "remarks": list(posterior.remarks),
        "num_train": len(train),
        "num_test": len(judged),
    }


def tasks(names: list[str], part: str, count: int | None) -> Iterator[tuple[str, int]]:
    """Sets and splits, all sets of a split together."""
    number = {data: number_of_splits(data, part) for data in names}
    for split in range(max(number.values()) if count is None else count):
        yield from ((data, split) for data in names if split < number[data])


def number_of_splits(data: str, part: str) -> int:
    """Of a set: published ones, or those with a gap."""
    return len(gap_rows(data)["is_test"]) if part == "gap" else bq.datasets.num_splits(f"uci/{data}")


def main(names: list[str], options: argparse.Namespace) -> None:
    """Each split that has no line yet."""
    records = Records(options.out or FOLDER / ("uci-gap.jsonl" if options.part == "gap" else "uci-automatic.jsonl"))
    setting = {name: getattr(options, name) for name in ("part", "budget", "seed", "setting")} | {"method": "automatic"}
    for data, split in tasks(names, options.part, options.count):
        if records.has(data=data, split=split, **setting):
            continue
        found = judge(data, split, options.part, options.budget, options.seed)
        records.append({"data": data, "split": split, **setting, **found, "versions": versions()})
        measures = ", ".join(
            f"{name} {found[name]:.3f}" for name in ("log_likelihood", "rmse", "coverage", "cpu_seconds")
        )
        print(f"{data}, split {split}: {measures}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="comma-separated, such as energy,yacht")
    parser.add_argument("--part", choices=("test", "val", "gap"), default="test", help="rows to judge by")
    parser.add_argument("--count", type=int, help="so many splits; default: all")
    parser.add_argument("--budget", type=float, default=45.0, help="CPU seconds of a fit")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", default="default", help="a name for lines of another state of the package")
    parser.add_argument("--out", type=Path, help="file of JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.data.split(","), arguments)
