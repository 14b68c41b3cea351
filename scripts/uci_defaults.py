"""A method by all of its defaults on UCI splits: a layer of 50 units, priors N(0, 1), one noise scale that is learned.

A line of JSON for each split; splits come one after another, and of each all sets. Lines that are there are skipped.
"""

import argparse
from pathlib import Path
from time import process_time
from typing import Any

import torch

import bayesuq as bq
from bayesuq import inference
from bayesuq.evaluation.calibration import interval_coverage
from bayesuq.evaluation.scores import crps, root_mean_squared_error
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from scripts.recording import Record, Records, versions
from scripts.uci_automatic import LEVEL, SETS, rows_of, tasks

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "uci-defaults.jsonl"
HIDDEN, NUM_SAMPLES = (50,), 1000


def judge(method: str, data: str, split: int, part: str, seed: int) -> Record:
    """Fit a split, and measure on the rows that it did not see, in y's own units."""
    train, judged = rows_of(data, split, part)
    units = bq.Standardizer.fit(train)
    net = networks.mlp(train.x.shape[1], HIDDEN, 1, seed=seed)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale="learned"))
    begin = process_time()
    posterior: Any = getattr(inference, method).fit(model, units.transform(train), seed=seed, progress=False)
    seconds = process_time() - begin
    found = posterior.predict(units.transform(judged).x, num_samples=NUM_SAMPLES, seed=seed)
    predictive = units.inverse(found)
    return {
        "log_likelihood": float(predictive.log_prob(judged.y).mean()),
        "rmse": float(root_mean_squared_error(predictive, judged.y)),
        "coverage": float(interval_coverage(predictive, judged.y, LEVEL)),
        "crps": float(crps(predictive, judged.y)),
        "cpu_seconds": seconds,
    }


def main(options: argparse.Namespace) -> None:
    """Each split that has no line yet."""
    records = Records(options.out)
    setting = {name: getattr(options, name) for name in ("method", "part", "seed")}
    for data, split in tasks(options.data.split(","), options.part, options.count):
        if not records.has(data=data, split=split, **setting):
            found = judge(options.method, data, split, options.part, options.seed)
            records.append({"data": data, "split": split, **setting, **found, "versions": versions()})
            print(f"{data}, split {split}: {found}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="variational", help="a module of bayesuq.inference")
    parser.add_argument("--data", default=",".join(SETS), help="comma-separated, such as energy,yacht")
    parser.add_argument("--part", choices=("test", "val", "gap"), default="test", help="rows to judge by")
    parser.add_argument("--count", type=int, help="so many splits; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of JSON lines")
    torch.set_num_threads(1)
    main(parser.parse_args())
