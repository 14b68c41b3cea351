"""How far is each method from Hamiltonian Monte Carlo? Predictives beside those of long chains of NUTS.

UCI regression, one split and set at a time: one network, prior and likelihood for all, and as reference NUTS from draws
of the prior, at a fixed budget. Its own convergence is told first, in function space; where it fails, the row says so.
A line of JSON for each set, split and method; lines that are there are skipped, and stopped chains go on.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import bayesuq as bq
from bayesuq.evaluation.convergence import convergence
from bayesuq.evaluation.distance import total_variation, wasserstein
from bayesuq.evaluation.scores import negative_log_likelihood, root_mean_squared_error
from bayesuq.inference import ensemble, hmc, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.predictive import GaussianPredictive
from bayesuq.randomness import derive_seed, isolated
from scripts.recording import Records, versions

OUT = Path(__file__).parents[1] / "docs" / "results" / "hmc-distance.jsonl"
SETS = ("boston", "yacht", "concrete", "energy")
REFERENCE = "NUTS"
NUM_DRAWS = 1000  # of every predictive
TRAINED: dict[str, Any] = {"num_epochs": 1000, "batch_size": 128, "progress": False}
VARIATIONAL: dict[str, Any] = {**TRAINED, "num_epochs": 2000}
CHAINS: dict[str, Any] = {"num_chains": 4, "num_warmup": 250, "num_samples": 250, "progress": False}
Fit = Callable[..., bq.Posterior]
METHODS: dict[str, Fit] = {
    "MAP": partial(map_estimate.fit, **TRAINED),
    "ensemble of 10": partial(ensemble.fit, num_members=10, **TRAINED),
    "mean field": partial(variational.fit, **VARIATIONAL),
    "low rank, 20": partial(variational.fit, guide=variational.low_rank(20), **VARIATIONAL),
    "full rank": partial(variational.fit, guide=variational.full_rank, **VARIATIONAL),
    "Laplace, Kronecker": partial(laplace.fit, **TRAINED),
    "Laplace, full": partial(laplace.fit, structure="full", **TRAINED),
    "SWAG": partial(swag.fit, **TRAINED),
    "multi-SWAG of 10": partial(ensemble.fit, num_members=10, member_fit=swag.fit, **TRAINED),
    "SGHMC": partial(sgmcmc.fit, num_warmup=10_000, num_samples=250, thinning=40, progress=False),
    "HMC, 8 chains together": partial(hmc.fit, kernel="hmc", num_steps=64, **{**CHAINS, "num_chains": 8}),
}


class Problem:
    """One split, standardised, and the model that all methods share."""

    def __init__(self, data: str, split: int) -> None:
        rows = bq.datasets.load(f"uci/{data}", split=split)
        self.units = bq.Standardizer.fit(rows.refit)
        self.train, self.y = self.units.transform(rows.refit), rows.test.y
        self.x = self.units.transform(rows.test).x
        with isolated(derive_seed(0, split)):
            net = networks.mlp(self.x.shape[1], (50,), 1, activation="tanh")  # smooth, as leapfrog steps want it
        noise = likelihoods.Normal(scale=priors.LogNormal(loc=-1.5, scale=0.5), initial_scale=0.3)
        self.model = BayesianNetwork(net, priors.FanIn(priors.Normal()), noise)

    def predict(self, posterior: bq.Posterior) -> GaussianPredictive:
        """Of the test rows, in standard deviations of y."""
        predictive = posterior.predict(self.x, num_samples=NUM_DRAWS, seed=0)
        if not isinstance(predictive, GaussianPredictive):
            raise TypeError("the likelihood is normal")
        return predictive

    def scores(self, predictive: GaussianPredictive) -> dict[str, float]:
        """In y's own units."""
        raw = self.units.inverse(predictive)
        rmse = float(root_mean_squared_error(raw, self.y))
        return {"negative_log_likelihood": float(negative_log_likelihood(raw, self.y)), "rmse": rmse}


def agreement_of(chains: hmc.HmcPosterior, x: torch.Tensor) -> dict[str, float]:
    """R-hat and effective draws of the function at new inputs, and what the sampler tells."""
    found = convergence(chains.to_arviz(new_x=x, include_weights=False, num_prior_samples=0))
    of_function = next(quantity for quantity in found.quantities if quantity.is_function)
    return {
        "share_converged": of_function.share_converged,
        "worst_r_hat": of_function.worst_r_hat,
        "least_ess": of_function.least_ess,
        "num_divergences": float(chains.num_divergences),
        "num_steps": float(chains.statistics["n_steps"].double().mean()),
    }


def reference(problem: Problem, file: Path) -> hmc.HmcPosterior:
    """The chains: from the file, or run, and then kept there."""
    if file.exists():
        found = bq.load(file)
    else:
        found = hmc.fit(problem.model, problem.train, seed=0, checkpoint=file.with_suffix(".run"), **CHAINS)
        found.save(file)
    if not isinstance(found, hmc.HmcPosterior):
        raise TypeError(f"{file} holds no chains")
    return found


def run(data: str, split: int, options: argparse.Namespace) -> None:
    """The reference and every method on one split."""
    records, key = Records(options.out), {"data": data, "split": split}
    problem, begin = Problem(data, split), perf_counter()
    chains = reference(problem, options.work / f"{data}-{split}.safetensors")
    target = problem.predict(chains)
    own = problem.scores(target)
    if not records.has(method=REFERENCE, **key):
        told = agreement_of(chains, problem.x)
        records.append({**key, "method": REFERENCE, **own, **told, "seconds": perf_counter() - begin, **CHAINS})
        print(data, split, REFERENCE, own, told, flush=True)
    for name, fit in METHODS.items():
        if records.has(method=name, **key):
            continue
        begin = perf_counter()
        predictive = problem.predict(fit(problem.model, problem.train, seed=1))
        line: dict[str, Any] = {**key, "method": name, "seconds": perf_counter() - begin}
        line |= problem.scores(predictive)
        line["total_variation"] = float(total_variation(predictive, target))
        line["wasserstein"] = float(wasserstein(predictive, target))
        line["log_score_lost"] = line["negative_log_likelihood"] - own["negative_log_likelihood"]
        records.append({**line, "versions": versions()})
        print(data, split, name, f"{line['total_variation']:.3f}, {line['log_score_lost']:+.3f} nats", flush=True)


def main(data: Sequence[str], options: argparse.Namespace) -> None:
    """Every set and split in turn."""
    options.work.mkdir(parents=True, exist_ok=True)
    for split in range(options.count):
        for one in data:
            run(one, split, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="comma-separated UCI sets")
    parser.add_argument("--count", type=int, default=1, help="so many splits of each")
    parser.add_argument("--out", type=Path, default=OUT, help="file of JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/hmc-distance"), help="folder for chains")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.data.split(","), arguments)
