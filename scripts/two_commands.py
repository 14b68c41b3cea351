"""What the intervals of `bayesuq fit` and `bayesuq predict`, by all their defaults, hold of rows that neither has seen.

Each UCI split is written out as two CSV files, that of its test rows without the target. A line of JSON a split also
says what the same fit holds without its map of levels. Splits that have a line are skipped.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import pandas as pd
import torch

import bayesuq as bq
from bayesuq.cli.main import main as bayesuq
from bayesuq.data import Dataset
from bayesuq.inference.quantile_calibration import QuantileCalibratedPosterior
from scripts.recording import Record, Records, versions
from scripts.uci_automatic import LEVEL, tasks

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "two-commands.jsonl"
SETS = ("yacht", "boston", "energy", "concrete", "power-plant")
TARGET = "y"


def judge(data: str, split: int) -> Record:
    """Both commands on a split, in a folder that is gone afterwards."""
    loaded = bq.datasets.load(f"uci/{data}", split=split)
    known, new = (frame(rows) for rows in (loaded.refit, loaded.test))
    with TemporaryDirectory() as name:
        folder = Path(name)
        run, out = folder / "run", folder / "out.csv"
        known.to_csv(folder / "known.csv", index=False)
        new.drop(columns=TARGET).to_csv(folder / "new.csv", index=False)
        begin = process_time()
        call("fit", "--data", folder / "known.csv", "--target", TARGET, "--out", run)
        call("predict", "--posterior", run, "--data", folder / "new.csv", "--out", out)
        seconds = process_time() - begin
        written = pd.read_csv(out)
        posterior: Any = bq.load(run / "posterior.safetensors")
    inside = written[f"{TARGET}_lower_90"].lt(new[TARGET]) & new[TARGET].lt(written[f"{TARGET}_upper_90"])
    return {
        "rows": len(known),
        "inside": int(inside.sum()),
        "held_out": len(new),
        "width": float((written[f"{TARGET}_upper_90"] - written[f"{TARGET}_lower_90"]).mean()),
        "log_likelihood": float(posterior.predict(new, seed=0).log_prob(loaded.test.y).mean()),
        "as_fitted": as_fitted(posterior, new, loaded.test.y),
        "cpu_seconds": seconds,
    }


def frame(rows: Dataset) -> pd.DataFrame:
    """Rows as a table, the target last."""
    return pd.DataFrame(rows.x.numpy()).add_prefix("x").assign(**{TARGET: rows.y[:, 0].numpy()})


def as_fitted(posterior: Any, new: pd.DataFrame, y: torch.Tensor) -> Record:
    """What the same posterior says of new rows without its map of levels."""
    units = posterior.posterior
    inner = units.posterior
    if isinstance(inner, QuantileCalibratedPosterior):
        inner = inner.posterior
    predictive = replace(posterior, posterior=replace(units, posterior=inner)).predict(new, seed=0)
    lower, upper = predictive.interval(LEVEL)
    return {
        "inside": int(((lower < y) & (y < upper)).sum()),
        "width": float((upper - lower).mean()),
        "log_likelihood": float(predictive.log_prob(y).mean()),
    }


def call(command: str, *arguments: object) -> None:
    """A command, that must end well."""
    code = bayesuq([command, *map(str, arguments), "--quiet"])
    if code != 0:
        raise RuntimeError(f"`bayesuq {command}` ended with {code}.")


def main(options: argparse.Namespace) -> None:
    """Each split that has no line yet."""
    records = Records(options.out)
    for data, split in tasks(options.data.split(","), "test", options.count):
        if not records.has(data=data, split=split):
            found = judge(data, split)
            records.append({"data": data, "split": split, **found, "versions": versions()})
            print(f"{data}, split {split}: {found['inside']} of {found['held_out']}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="comma-separated, such as energy,yacht")
    parser.add_argument("--count", type=int, help="so many splits; default: all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    torch.set_num_threads(1)
    main(parser.parse_args())
