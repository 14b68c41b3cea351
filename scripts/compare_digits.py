"""Four posterior approximations side by side on handwritten digits.

All are trained without nines, so the nines are inputs of another kind. A good posterior classifies the other digits
well, says how sure it is, and is less sure of the nines.
"""

import argparse
from pathlib import Path
from time import perf_counter

import torch

import bayesuq as bq
from bayesuq.evaluation import calibration, plots, report, uncertainty
from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

METHODS = {
    "MAP": map_estimate.fit,
    "variational": variational.fit,
    "MC dropout": dropout.fit,
    "ensemble": ensemble.fit,
}


def build(*, with_dropout: bool) -> BayesianNetwork:
    """A 64-100-100-9 network with standard normal weights."""
    net = networks.mlp(64, (100, 100), 9, dropout=0.1 if with_dropout else 0.0)
    return BayesianNetwork(net, prior=priors.Normal(scale=1.0), likelihood=likelihoods.Categorical())


def evaluate(test: bq.CategoricalPredictive, nines: bq.CategoricalPredictive, y: torch.Tensor) -> report.Report:
    """Measures on the test digits, and how well three scores tell the nines from them."""
    is_nine = torch.cat([torch.zeros(len(test.total)), torch.ones(len(nines.total))]).bool()
    measures = report.evaluate(test, y)
    for score in (uncertainty.maximum_probability, uncertainty.predictive_entropy, uncertainty.mutual_information):
        scores = torch.cat([score(test), score(nines)])
        measures = measures.extended(report.evaluate_detection(scores, is_nine, name=f"nines_{score.__name__}"))
    return measures


def main(out: Path, num_epochs: int, seed: int) -> None:
    """Load, build, fit, predict, evaluate, write."""
    out.mkdir(parents=True, exist_ok=True)
    split = bq.datasets.load("digits-0to8")
    reports, tests, nines = {}, {}, {}
    for name, fit in METHODS.items():
        torch.manual_seed(seed)
        model = build(with_dropout=name == "MC dropout")
        begin = perf_counter()
        posterior = fit(model, split.train, num_epochs=num_epochs, seed=seed)
        tests[name] = posterior.predict(split.test.x, num_samples=100, seed=seed)
        nines[name] = posterior.predict(split.ood.x, num_samples=100, seed=seed)
        reports[name] = evaluate(tests[name], nines[name], split.test.y)
        print(f"{name}: fitted and judged in {perf_counter() - begin:.1f} s")

    print(
        f"\nseed {seed}, {num_epochs} epochs, {len(split.train)} training digits, {len(split.test)} test digits,",
        end=" ",
    )
    print(f"{len(split.ood)} nines\n\n{report.side_by_side(reports)}\n")

    reliabilities = {name: calibration.reliability(test, split.test.y) for name, test in tests.items()}
    entropies = [{name: p.total for name, p in part.items()} for part in (tests, nines)]
    figures = {
        "reliability.png": plots.reliability_diagram(reliabilities),
        "entropy.png": plots.entropy_histogram(
            *entropies, in_label="test digits 0 to 8", out_label="nines, never seen"
        ),
    }
    for file, figure in figures.items():
        figure.savefig(out / file, dpi=150)
    print("Pictures:", *(str((out / file).resolve()) for file in figures), sep="\n  ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder for the pictures")
    parser.add_argument("--epochs", type=int, default=200, help="passes over the training digits")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.out, options.epochs, options.seed)
