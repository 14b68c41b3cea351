"""Methods side by side on a UCI regression set, in raw units, on one of its published splits.

Inputs and targets are standardised by the training rows; predictions are brought back to the targets' own units, the
log score with its Jacobian. So the numbers compare with published ones, whose mean log-likelihood is minus ours.
"""

import argparse
from pathlib import Path

import torch

import bayesuq as bq
from bayesuq.evaluation import report
from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.writing import write_text

METHODS = {
    "MAP": map_estimate.fit,
    "variational": variational.fit,
    "MC dropout": dropout.fit,
    "ensemble": ensemble.fit,
}
BATCH_SIZE = 32


def build(in_features: int, *, with_dropout: bool) -> BayesianNetwork:
    """One hidden layer of 50 units and a noise scale to be learned, as in the published protocol."""
    net = networks.mlp(in_features, (50,), 1, dropout=0.05 if with_dropout else 0.0)
    return BayesianNetwork(net, prior=priors.Normal(scale=1.0), likelihood=likelihoods.Normal(scale="learned"))


def main(name: str, split: int, num_epochs: int, seed: int, out: Path) -> None:
    """Load, build, fit, predict, evaluate, write."""
    here = bq.datasets.available()
    if name not in here:
        print(f"Skipped: there is no {name!r} among {', '.join(here)}.")
        print("UCI sets are read from the folder that the environment variable BAYESUQ_DATA names.")
        return
    data = bq.datasets.load(name, split=split)
    units = bq.Standardizer.fit(data.refit)
    train, test = units.transform(data.refit), units.transform(data.test)
    print(
        f"{name}, split {split} of {bq.datasets.num_splits(name)}: {len(train)} rows to train on, {len(test)} to test,"
    )
    print(f"{train.x.shape[1]} features; targets have a standard deviation of {float(units.y_scale):.4g}\n")
    reports = {}
    for method, fit in METHODS.items():
        torch.manual_seed(seed)
        model = build(train.x.shape[1], with_dropout=method == "MC dropout")
        posterior = fit(model, train, num_epochs=num_epochs, batch_size=BATCH_SIZE, seed=seed)
        predictive = units.inverse(posterior.predict(test.x, num_samples=200, seed=seed))
        reports[method] = report.evaluate(predictive, data.test.y)
    table = report.side_by_side(reports)
    print(f"seed {seed}, {num_epochs} epochs, batches of {BATCH_SIZE}, y in raw units\n\n{table}")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{name.rpartition('/')[2]}-{split}.txt"
    write_text(file, f"{name}, split {split}, seed {seed}, {num_epochs} epochs\n\n{table}\n")
    print(f"\nTable: {file.resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="uci/yacht", help="such as uci/boston")
    parser.add_argument("--split", type=int, default=0, help="which published split, from 0")
    parser.add_argument("--out", type=Path, default=Path("runs/uci"), help="folder for the table")
    parser.add_argument("--epochs", type=int, default=400, help="passes over the training rows")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.name, options.split, options.epochs, options.seed, options.out)
