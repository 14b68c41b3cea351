"""Which uncertainty knows a nine that no network has ever seen: ten seeds on `digits-0to8`, paired.

The area under the ROC curve with which each score tells nines from the other test digits, for networks of one design:
the entropy of a single network (MAP) is the baseline; beside it the entropy and the mutual information of a variational
posterior and of an ensemble. Differences are taken seed by seed.
"""

import argparse
import json
from pathlib import Path

import torch

import bayesuq as bq
from bayesuq.evaluation.detection import auroc
from bayesuq.evaluation.scores import accuracy
from bayesuq.inference import ensemble, map_estimate, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

METHODS = {"MAP": map_estimate.fit, "variational": variational.fit, "ensemble": ensemble.fit}
SCORES = {"entropy": "total", "mutual information": "epistemic"}
BASELINE = "MAP entropy"


def run(seed: int, num_epochs: int) -> dict[str, float]:
    """One seed: the area of each score, and each method's accuracy."""
    split = bq.datasets.load("digits-0to8")
    torch.manual_seed(seed)
    net = networks.mlp(64, (100, 100), 9)
    model = BayesianNetwork(net, prior=priors.Normal(scale=1.0), likelihood=likelihoods.Categorical())
    x, is_nine = torch.cat([split.test.x, split.ood.x]), [0] * len(split.test) + [1] * len(split.ood)
    results = {}
    for name, fit in METHODS.items():
        predictive = fit(model, split.train, num_epochs=num_epochs, seed=seed).predict(x, num_samples=100, seed=seed)
        for score, kind in SCORES.items():
            if (name, score) != ("MAP", "mutual information"):  # which one network does not have
                results[f"{name} {score}"] = float(auroc(getattr(predictive, kind), is_nine))
        known = bq.CategoricalPredictive.from_probs(predictive.mean[None, : len(split.test)])
        results[f"{name} accuracy"] = float(accuracy(known, split.test.y))
    return results


def table(runs: list[dict[str, float]]) -> str:
    """Means over seeds, and mean differences from the baseline, each with its standard error."""
    values = {name: torch.tensor([run[name] for run in runs], dtype=torch.float64) for name in runs[0]}
    lines = [f"{'AUROC, nines against test digits':<34} {'mean':>14}   {'difference from ' + BASELINE:>32}"]
    for name, column in values.items():
        if not name.endswith("accuracy"):
            lines.append(f"{name:<34} {told(column):>14}   {told(column - values[BASELINE], signed=True):>32}")
    accuracies = [f"{name.split()[0]} {told(column)}" for name, column in values.items() if name.endswith("accuracy")]
    return "\n".join([*lines, f"accuracy: {', '.join(accuracies)}", f"{len(runs)} seeds, mean ± standard error"])


def told(values: torch.Tensor, *, signed: bool = False) -> str:
    """Mean and its standard error over seeds."""
    error = float(values.std()) / len(values) ** 0.5
    return f"{float(values.mean()):{'+' if signed else ''}.4f} ± {error:.4f}"


def main(out: Path, num_seeds: int, num_epochs: int) -> None:
    """Run all seeds; write each as a line of JSON, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    runs = []
    with (out / "digits.jsonl").open("w") as file:
        for seed in range(num_seeds):
            runs.append(run(seed, num_epochs))
            file.write(json.dumps({"seed": seed, "num_epochs": num_epochs, **runs[-1]}) + "\n")
            file.flush()
            print(f"seed {seed} done")
    print(table(runs))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits-seeds"))
    parser.add_argument("--num-seeds", type=int, default=10)
    parser.add_argument("--num-epochs", type=int, default=200)
    arguments = parser.parse_args()
    main(arguments.out, arguments.num_seeds, arguments.num_epochs)
