"""Conformal intervals by MAPIE around our estimators and around scikit-learn's `MLPRegressor`: coverage and width.

    python -m benchmarks.intervals [--num-splits 5]

Of each published training part of five UCI sets a fifth is held out for the intervals, the same for all estimators; the
published test rows judge. A line of JSON for each set, split and estimator; what is there is skipped.
"""

import argparse
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from mapie.regression import SplitConformalRegressor
from sklearn.compose import TransformedTargetRegressor
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import bayesuq as bq
from bayesuq.estimators import BayesianRegressor
from scripts.recording import Record, Records, versions

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "intervals.jsonl"
SETS = ("boston", "concrete", "energy", "yacht", "power-plant")
LEVEL = 0.9
PERCEPTRON = "MLPRegressor"
INDUCING = {"approximation": "collapsed", "num_inducing": 200, "max_iterations": 100}


def perceptron(seed: int) -> Any:
    """Scikit-learn's, as wide as ours, in standard units, until its loss stops falling."""
    network = MLPRegressor(hidden_layer_sizes=(50,), max_iter=2000, random_state=seed)
    return TransformedTargetRegressor(make_pipeline(StandardScaler(), network), transformer=StandardScaler())


ESTIMATORS: dict[str, Callable[[int], Any]] = {
    PERCEPTRON: perceptron,
    "ensemble": lambda seed: BayesianRegressor(random_state=seed),
    "gp": lambda seed: BayesianRegressor("gp", options=INDUCING, random_state=seed),
}


def measure(name: str, number: int, estimator: Any) -> Record:
    """Rows inside, rows, and the mean width in units of y."""
    split = bq.datasets.load(f"uci/{name}", split=number)
    X, y = split.refit.x.numpy(), split.refit.y[:, 0].numpy()
    fitted, held_out, y_fitted, y_held_out = train_test_split(X, y, test_size=0.2, random_state=number)
    begin = process_time()
    around = SplitConformalRegressor(estimator.fit(fitted, y_fitted), confidence_level=LEVEL, prefit=True)
    seconds = process_time() - begin
    around.conformalize(held_out, y_held_out)
    _, ends = around.predict_interval(split.test.x.numpy())
    truth = split.test.y[:, 0].numpy()
    inside = (ends[:, 0, 0] <= truth) & (truth <= ends[:, 1, 0])
    return {
        "inside": int(inside.sum()),
        "num_test": len(truth),
        "num_held_out": len(held_out),
        "width": float(np.diff(ends[:, :, 0], axis=1).mean()),
        "cpu_seconds": round(seconds, 2),
    }


def run(records: Records, num_splits: int, kinds: Sequence[str]) -> None:
    """Every split, set and estimator that has no line yet."""
    for number in range(num_splits):
        for name in SETS:
            for kind in kinds:
                key = {"data": name, "split": number, "estimator": kind}
                if not records.has(**key):
                    found = measure(name, number, ESTIMATORS[kind](number))
                    records.append({**key, **found, "versions": versions()})


def tell(records: Records) -> None:
    """A row for each set: coverage with its distance from .9 in standard errors, and width over the perceptron's."""
    lines = records.read()
    print("| data | splits |" + "".join(f" {kind}: coverage | width |" for kind in ESTIMATORS))
    print("|---|---|" + "---|---|" * len(ESTIMATORS))
    for name in SETS:
        own = {kind: [r for r in lines if (r["data"], r["estimator"]) == (name, kind)] for kind in ESTIMATORS}
        base = {r["split"]: r["width"] for r in own[PERCEPTRON]}
        cells = []
        for found in own.values():
            if not found:
                cells.append(" | |")
                continue
            tests, held_out = (sum(r[key] for r in found) for key in ("num_test", "num_held_out"))
            coverage = sum(r["inside"] for r in found) / tests
            error = math.sqrt(LEVEL * (1 - LEVEL) * (1 / tests + 1 / held_out))
            width, of_base = (
                np.mean(each) for each in zip(*((r["width"], base[r["split"]]) for r in found), strict=True)
            )
            cells.append(
                f" {coverage:.3f} ({(coverage - LEVEL) / error:+.1f} s.e.) | {width:.3g} ({width / of_base:.2f}) |"
            )
        print(f"| {name} | {len(own[PERCEPTRON])} |" + "".join(cells))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-splits", type=int, default=5)
    parser.add_argument("--estimators", default=",".join(ESTIMATORS), help="comma-separated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = Records(arguments.out)
    run(lines, arguments.num_splits, arguments.estimators.split(","))
    tell(lines)
