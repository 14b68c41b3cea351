"""How far is each method from Hamiltonian Monte Carlo? Predictives beside those of long chains of NUTS.

UCI regression and digits, one set and split at a time: one network, prior and likelihood for all, and as reference NUTS
from draws of the prior, at a fixed budget, or chains with the last layer integrated out (`--reference`, regression
alone). Its own convergence is told first, in function space; where it fails, the row says so. A line of JSON for each
set, split, reference and method; lines that are there are skipped, and stopped chains go on.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

import bayesuq as bq
from bayesuq.evaluation.diagnostics.convergence import convergence
from bayesuq.inference import ensemble, hmc, laplace, map_estimate, sgmcmc, swag, variational
from scripts import hmc_collapsed
from scripts.hmc_problems import Problem, problem
from scripts.recording import Records, versions

OUT = Path(__file__).parents[1] / "docs" / "results" / "hmc-distance.jsonl"
SETS = ("boston", "yacht", "concrete", "energy", "digits")
NUTS, COLLAPSED = "NUTS", "HMC, last layer integrated out"
TRAINED: dict[str, Any] = {"num_epochs": 1000, "batch_size": 128, "progress": False}
VARIATIONAL: dict[str, Any] = {**TRAINED, "num_epochs": 2000}
CHAINS: dict[str, Any] = {"num_chains": 4, "num_warmup": 250, "num_samples": 250, "progress": False}  # the budget
COLLAPSED_CHAINS: dict[str, Any] = {"num_chains": 8, "num_warmup": 200, "num_samples": 600}
LENGTHS = {  # of those chains, where fewer warm up, or where so many draws make them agree
    "boston": {"num_warmup": 120, "num_samples": 250},
    "concrete": {"num_warmup": 120},
    "energy": {"num_warmup": 120, "num_samples": 1000},
    "yacht": {"num_samples": 9000},
}
LEFT_OUT_DRAWS = {"yacht": 1000}  # the first of each of those chains, most of whose noise falls once among them
Fit = Callable[..., bq.Posterior]
REFERENCES: dict[str, Callable[..., hmc.HmcPosterior]] = {NUTS: hmc.fit, COLLAPSED: hmc_collapsed.fit}
METHODS: dict[str, Fit] = {
    "MAP": partial(map_estimate.fit, **TRAINED),
    "ensemble of 10": partial(ensemble.fit, num_members=10, **TRAINED),
    "mean field": partial(variational.fit, **VARIATIONAL),
    "low rank, 20": partial(variational.fit, guide=variational.low_rank(20), **VARIATIONAL),
    "full rank": partial(variational.fit, guide=variational.full_rank, **VARIATIONAL),
    "Laplace, Kronecker": partial(laplace.fit, subset="all", **TRAINED),
    "Laplace, full": partial(laplace.fit, structure="full", subset="all", **TRAINED),
    "SWAG": partial(swag.fit, **TRAINED),
    "multi-SWAG of 10": partial(ensemble.fit, num_members=10, member_fit=swag.fit, **TRAINED),
    "SGHMC": partial(sgmcmc.fit, num_warmup=10_000, num_samples=250, thinning=40, progress=False),
    "HMC, 8 chains together": partial(hmc.fit, kernel="hmc", num_steps=64, **{**CHAINS, "num_chains": 8}),
    COLLAPSED: partial(hmc_collapsed.fit, **COLLAPSED_CHAINS),
}
LEFT_OUT = {"digits": ("full rank", COLLAPSED)}  # seven million numbers a step, an hour; no integral in closed form


def convergence_of(chains: hmc.HmcPosterior, x: torch.Tensor) -> dict[str, float]:
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


def of_parts(task: Problem, chains: hmc.HmcPosterior) -> dict[str, float]:
    """Distances between the first and the other half of the chains, and between their first and their last draws."""
    half, late = chains.num_chains // 2, chains.draws.shape[1] // 2
    draws = {"halves": (chains.draws[:half], chains.draws[half:]), "times": chains.draws.split(late, dim=1)[:2]}
    found = {}
    for name, pair in draws.items():
        one, other = (task.predict(replace(chains, draws=part, statistics={})) for part in pair)
        found |= {f"{distance}_between_{name}": value for distance, value in task.distances(one, other).items()}
    return found


def reference(name: str, task: Problem, data: str, file: Path) -> hmc.HmcPosterior:
    """The chains: from the file, or run, and then kept there."""
    if file.exists():
        found = bq.load(file)
    else:
        checkpoint = file.with_suffix(".run")
        found = REFERENCES[name](task.model, task.train, seed=0, checkpoint=checkpoint, **budget(name, data))
        found = found if name == NUTS else without_first(found, LEFT_OUT_DRAWS.get(data, 0))
        found.save(file)
    if not isinstance(found, hmc.HmcPosterior):
        raise TypeError(f"{file} holds no chains")
    return found


def without_first(chains: hmc.HmcPosterior, number: int) -> hmc.HmcPosterior:
    """The chains without so many of their first draws."""
    late = {name: table[:, number:] for name, table in chains.statistics.items()}
    return replace(chains, draws=chains.draws[:, number:], statistics=late)


def budget(name: str, data: str) -> dict[str, Any]:
    """The options of the chains on a set."""
    return CHAINS if name == NUTS else COLLAPSED_CHAINS | LENGTHS.get(data, {})


def run(data: str, split: int, options: argparse.Namespace) -> None:
    """The reference and every method on one split."""
    name, records = options.reference, Records(options.out)
    key: dict[str, Any] = {"data": data, "split": split, "reference": None if name == NUTS else name}
    task, begin = problem(data, split), perf_counter()
    file = f"{data}-{split}.safetensors" if name == NUTS else f"{data}-{split}-collapsed.safetensors"
    chains = reference(name, task, data, options.work / file)
    target = task.predict(chains)
    own = task.scores(target)
    if not records.has(method=name, **key):
        seconds = perf_counter() - begin
        told = convergence_of(chains, task.x) | of_parts(task, chains)
        left_out = {"left_out": LEFT_OUT_DRAWS[data]} if name == COLLAPSED and data in LEFT_OUT_DRAWS else {}
        records.append({**key, "method": name, **own, **told, "seconds": seconds, **budget(name, data), **left_out})
        print(data, split, name, own, told, flush=True)
    for method, fit in METHODS.items():
        if records.has(method=method, **key) or method in LEFT_OUT.get(data, ()) or method not in options.methods:
            continue
        begin = perf_counter()
        predictive = task.predict(fit(task.model, task.train, seed=1))
        line: dict[str, Any] = {**key, "method": method, "seconds": perf_counter() - begin}
        line |= task.scores(predictive) | task.distances(predictive, target)
        line["log_score_lost"] = line["negative_log_likelihood"] - own["negative_log_likelihood"]
        records.append({**line, "versions": versions()})
        print(data, split, method, f"{line['total_variation']:.3f}, {line['log_score_lost']:+.3f} nats", flush=True)


def main(data: Sequence[str], options: argparse.Namespace) -> None:
    """Every set and split in turn."""
    options.work.mkdir(parents=True, exist_ok=True)
    for split in range(options.count):
        for one in data:
            run(one, split, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=",".join(SETS), help="comma-separated: UCI sets, digits")
    parser.add_argument("--count", type=int, default=1, help="so many splits of each")
    parser.add_argument("--reference", choices=list(REFERENCES), default=NUTS, help="which chains are held true")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="NAME", help="such as 'mean field'")
    parser.add_argument("--out", type=Path, default=OUT, help="file of JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/hmc-distance"), help="folder for chains")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.data.split(","), arguments)
