"""What the energy variance of microcanonical chains over networks is worth, judged by validation rows.

    python benchmarks/microcanonical_target.py [--data SETS] [--out FILE]

A line of JSON for each set, split and target; lines that are there are skipped. Test rows take no part.
"""

import argparse
import warnings
from pathlib import Path
from time import process_time
from typing import Any

import torch

import bayesuq as bq
from bayesuq.evaluation.calibration import interval_coverage
from bayesuq.evaluation.scores import root_mean_squared_error
from bayesuq.inference import microcanonical
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from scripts.recording import Records

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "microcanonical-target.jsonl"
TARGETS = (5e-4, 0.05)
NUM_WARMUP, NUM_SAMPLES = 1200, 80


def measure(data: str, split: int, target: float) -> dict[str, Any]:
    """Eight networks of two layers of 16, fitted by the defaults but for the target and the length."""
    rows = bq.datasets.load(f"uci/{data}", split=split)
    units = bq.Standardizer.fit(rows.train)
    train, x = units.transform(rows.train), units.transform(rows.val).x
    net = networks.mlp(train.x.shape[1], (16, 16), 2, seed=split)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.HeteroscedasticNormal(minimum_scale=0.01))
    begin = process_time()
    posterior = microcanonical.fit(
        model,
        train,
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        energy_variance=target,
        seed=split,
        progress=False,
    )
    seconds = process_time() - begin
    predictive = units.inverse(posterior.predict(x))
    return {
        "log_likelihood": float(predictive.log_prob(rows.val.y).mean()),
        "rmse": float(root_mean_squared_error(predictive, rows.val.y)),
        "coverage": float(interval_coverage(predictive, rows.val.y, 0.9)),
        "reached": posterior.energy_variance,
        "prediction_r_hat": posterior.prediction_r_hat,
        "diverging_draws": posterior.num_divergences,
        "cpu_seconds": seconds,
    }


def main(options: argparse.Namespace) -> None:
    """Each set and split at both targets."""
    records = Records(options.out)
    for split in range(options.count):
        for data in options.data.split(","):
            for target in TARGETS:
                key = {"data": data, "split": split, "energy_variance": target, "num_warmup": NUM_WARMUP}
                if not records.has(**key):
                    records.append({**key, "num_samples": NUM_SAMPLES, **measure(data, split, target)})


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="yacht,boston,energy,concrete")
    parser.add_argument("--count", type=int, default=2, help="splits of each")
    parser.add_argument("--out", type=Path, default=RESULTS)
    torch.set_num_threads(1)
    main(parser.parse_args())
