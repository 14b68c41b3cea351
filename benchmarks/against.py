"""What steps and predictions cost beside those of another checkout: `python benchmarks/against.py OTHER [name ...]`.

Each checkout runs in a process of its own, and the two have turns of some tenths of a second: CPU time, one thread,
medians over turns of the ratio of neighbours, with quartiles. Steps are what a long fit costs beyond a short one.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import torch

from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, hmc, ivon, map_estimate, sgmcmc, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

torch.set_num_threads(1)

ROOT = Path(__file__).parents[1]
SHORT, LONG = 5, 45
TARGET = 0.15  # CPU seconds of a turn, at least

Work = Callable[[], object]


def model_and_data(
    *, rate: float = 0.0, likelihood: Any = None, large: bool = False
) -> tuple[BayesianNetwork, Dataset]:
    """A small network, where overhead shows, and 1,024 rows; or one of images' size, where memory does, and 256."""
    torch.manual_seed(0)
    if large:
        net = networks.mlp(784, (400, 400), 10)
        data = Dataset(torch.rand(256, 784), torch.randint(10, (256,)))
        return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical()), data
    likelihood = likelihoods.Categorical() if likelihood is None else likelihood
    labels = isinstance(likelihood, likelihoods.Categorical)
    net = networks.mlp(16, (64, 64), 5 if labels else 1, dropout=rate)
    x = torch.randn(1024, 16)
    y = (x[:, :5] + 0.5 * torch.randn(1024, 5)).argmax(1) if labels else x[:, 0].sin() + 0.1 * torch.randn(1024)
    return BayesianNetwork(net, priors.Normal(), likelihood), Dataset(x, y)


def case(name: str) -> tuple[Work, Work | None]:
    """What to time, and what to take off it."""
    if name.startswith("predict"):
        return prediction(name), None
    model, data = model_and_data(rate=0.1 if name == "dropout" else 0.0, large=name.startswith("large, "))
    if name in ("sgmcmc", "leapfrog"):
        return chains(name, model, data)
    steps: dict[str, Callable[..., Any]] = {
        "map": map_estimate.fit,
        "dropout": dropout.fit,
        "mean field": variational.fit,
        "local": partial(variational.fit, estimator="local"),
        "ivon": ivon.fit,
        "low rank": partial(variational.fit, guide=variational.low_rank(8)),
        "ensemble": ensemble.fit,
        "ensemble, one by one": partial(ensemble.fit, num_members=2, vectorised=False),
    }
    run = partial(steps[name.removeprefix("large, ")], model, data, seed=0, progress=False, batch_size=128)
    return partial(run, num_epochs=LONG), partial(run, num_epochs=SHORT)


def chains(name: str, model: BayesianNetwork, data: Dataset) -> tuple[Work, Work]:
    """Draws of one chain: ten steps of stochastic gradients each, or twenty leapfrogs."""
    run = partial(hmc.fit, kernel="hmc", num_steps=20, step_size=1e-4, num_warmup=0)
    if name == "sgmcmc":
        run = partial(sgmcmc.fit, thinning=10, step_size=1e-3, num_warmup=50)
    run = partial(run, model, data, num_chains=1, seed=0, progress=False, start="prior")
    return partial(run, num_samples=LONG), partial(run, num_samples=SHORT)


def prediction(name: str) -> Work:
    """A prediction by a fit of a few epochs, of the rows that stand at the end of its name."""
    _, method, rows = name.split(", ")
    likelihood = likelihoods.Normal(scale=0.1) if "real" in method else None
    model, data = model_and_data(rate=0.1 if method == "dropout" else 0.0, likelihood=likelihood)
    methods: dict[str, Callable[..., Any]] = {
        "map": map_estimate.fit,
        "dropout": dropout.fit,
        "mean field": variational.fit,
        "real mean field": variational.fit,
        "ensemble": ensemble.fit,
        "real ensemble": ensemble.fit,
    }
    posterior = methods[method](model, data, num_epochs=1, seed=0, progress=False)
    return partial(posterior.predict, torch.randn(int(rows), 16), seed=0)


CASES = (
    "predict, ensemble, 100",
    "predict, ensemble, 1000",
    "predict, ensemble, 10000",
    "predict, real ensemble, 100",
    "predict, real ensemble, 1000",
    "predict, map, 100",
    "predict, mean field, 1000",
    "predict, real mean field, 1000",
    "predict, dropout, 100",
    "predict, dropout, 1000",
    "predict, dropout, 10000",
    "map",
    "dropout",
    "mean field",
    "ivon",
    "large, map",
    "large, mean field",
    "large, local",
    "large, ivon",
    "low rank",
    "ensemble",
    "ensemble, one by one",
    "sgmcmc",
    "leapfrog",
)


def work(name: str) -> None:
    """Answer each line with the CPU seconds of a turn, after one that says how many repetitions a turn has."""
    long, short = case(name)
    long()
    begin = process_time()
    long()
    print(process_time() - begin, flush=True)
    repeats = int(sys.stdin.readline())
    for _ in sys.stdin:
        begin = process_time()
        for _ in range(repeats):
            long()
        middle = process_time()
        for _ in range(repeats if short else 0):
            short()
        print((middle - begin) - (process_time() - middle if short else 0.0), flush=True)


def compare(name: str, roots: Sequence[Path], rounds: int) -> None:
    """Print the ratio of this checkout to the other."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, "--work", name],
            env={"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for root in roots
    ]

    def ask(worker: Any, line: object) -> float:
        worker.stdin.write(f"{line}\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    once = [float(worker.stdout.readline()) for worker in workers]
    for worker in workers:
        worker.stdin.write(f"{max(1, round(TARGET / max(once)))}\n")
    pairs = []
    for turn in range(rounds):
        order = (0, 1) if turn % 2 else (1, 0)
        seconds = {which: ask(workers[which], "") for which in order}
        pairs.append((seconds[0], seconds[1]))
    for worker in workers:
        worker.communicate()
    ratios = [one / other for one, other in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = statistics.median(one for one, _ in pairs) / statistics.median(other for _, other in pairs)
    least = min(one for one, _ in pairs) / min(other for _, other in pairs)
    print(f"{name:32s} {middle:.3f} ({low:.3f} to {high:.3f}); medians {medians:.3f}, least {least:.3f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("names", nargs="*", default=CASES)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--work")
    chosen = parser.parse_args()
    if chosen.work:
        work(chosen.work)
    else:
        for each in chosen.names or CASES:
            compare(each, (ROOT, chosen.other.resolve()), chosen.rounds)
