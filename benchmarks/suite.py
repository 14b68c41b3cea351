"""What every method costs beside plain PyTorch: its step, a whole fit, its predictions; and the measures. `make bench`.

Each line is a ratio. Ours and the reference have turns in one process, one after the other, on one thread, by CPU time;
told are the median over turns of their ratio, and its quartiles. A step is what a long fit costs beyond a short one,
divided by the steps between them. Results are appended as lines of JSON, with versions and machine; lines that are
there already are not run again.

    python benchmarks/suite.py --out new.jsonl [name ...]
    python benchmarks/suite.py --out new.jsonl --page docs/performance.md   # and write the table into the page
    python benchmarks/suite.py --against old.jsonl --out new.jsonl

The last exits with 1 where a line has lost more than 10 %, and has so when it is timed twice more.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import measures
import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.nn import functional

from bayesuq.data import Dataset
from bayesuq.inference import (
    dropout,
    ensemble,
    hmc,
    ivon,
    laplace,
    map_estimate,
    microcanonical,
    sgmcmc,
    swag,
    temperature,
    variational,
)
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

torch.set_num_threads(1)

WIDTHS, NUM_ROWS, BATCH_SIZE = (16, 64, 64, 5), 1024, 128
SHORT, LONG = 5, 45  # epochs
NUM_STEPS = (LONG - SHORT) * NUM_ROWS // BATCH_SIZE
NUM_DRAWS = 100
PREDICTED = (100, 1_000, 10_000)  # rows
TURN = 0.15  # CPU seconds of a turn of either, at least
MOST_LOST = 1.10
FURTHER_TIMES = 2  # that a line which looks lost is timed
BEGIN, END = "<!-- bench: made by benchmarks/suite.py -->", "<!-- bench: end -->"
VERSIONS = ("bayesuq", "torch", "pyro-ppl")

Work = Callable[[], object]


@dataclass(frozen=True)
class Line:
    """Something that is timed beside a reference.

    Attributes:
        name: Of the method or the measure.
        what: "step", "fit", "predict, 100 rows", "measure".
        reference: What it is a ratio to.
        ours: The work.
        theirs: The reference's.
        less: What of ours does not count.
    """

    name: str
    what: str
    reference: str
    ours: Work
    theirs: Work
    less: Work | None = None

    @property
    def key(self) -> str:
        """As results are told from others."""
        return f"{self.name}, {self.what}"


@dataclass(frozen=True)
class Result:
    """A line of the file.

    Attributes:
        key: Of `Line`.
        reference: What it is a ratio to.
        ratio: Median over turns.
        low: First quartile.
        high: Third quartile.
        milliseconds: Of ours, the median of a call.
        turns: Of each.
        circumstances: Versions, threads, machine.
    """

    key: str
    reference: str
    ratio: float
    low: float
    high: float
    milliseconds: float
    turns: int
    circumstances: dict[str, str]


def problem(rate: float = 0.0) -> tuple[BayesianNetwork, Dataset]:
    """A small network, where what is not arithmetic shows, and 1,024 rows of five classes."""
    torch.manual_seed(0)
    net = networks.mlp(WIDTHS[0], WIDTHS[1:-1], WIDTHS[-1], dropout=rate)
    x = torch.randn(NUM_ROWS, WIDTHS[0])
    y = (x[:, :5] + 0.5 * torch.randn(NUM_ROWS, 5)).argmax(1)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical()), Dataset(x, y)


def plain_net() -> nn.Module:
    """The same in plain PyTorch."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(WIDTHS[0], WIDTHS[1]), nn.ReLU(), nn.Linear(WIDTHS[1], WIDTHS[2]), nn.ReLU(), nn.Linear(WIDTHS[2], 5)
    )


def plain_training(data: Dataset, num_epochs: int) -> None:
    """A training loop as a plain script has it: default Adam, minibatches of a permutation."""
    net, x = plain_net(), data.x
    assert isinstance(x, Tensor)
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(num_epochs):
        for rows in torch.randperm(len(x)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(x[rows]), data.y[rows])
            loss.backward()
            optimizer.step()
            loss.item()


def plain_gradients(data: Dataset, number: int) -> None:
    """Gradients of the loss over all rows."""
    net = plain_net()
    for _ in range(number):
        net.zero_grad()
        functional.cross_entropy(net(data.x), data.y).backward()


def plain_passes(x: Tensor, number: int) -> None:
    """Predictions of one network, time and again."""
    net = plain_net()
    with torch.no_grad():
        for _ in range(number):
            net(x).softmax(dim=1)


def stock_pyro(data: Dataset) -> Work:
    """Steps of Pyro's own SVI on the same model."""
    model, _ = problem()
    pyro.clear_param_store()
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    x, y = data.x[:BATCH_SIZE], data.y[:BATCH_SIZE]

    def steps() -> None:
        for _ in range(NUM_STEPS):
            svi.step(x, y, NUM_ROWS)

    return steps


TRAINED: dict[str, Callable[..., Any]] = {
    "map": map_estimate.fit,
    "variational, mean field": partial(variational.fit, estimator="weights"),
    "variational, local": partial(variational.fit, estimator="local"),
    "variational, flipout": partial(variational.fit, estimator="flipout"),
    "variational, low rank 8": partial(variational.fit, guide=variational.low_rank(8)),
    "dropout": dropout.fit,
    "ivon": ivon.fit,
    "swag": partial(swag.fit, swa_learning_rate=1e-3),
    "ensemble of 1": partial(ensemble.fit, num_members=1),
    "ensemble of 5": ensemble.fit,
}
MEMBERS = {"ensemble of 5": 5}


def trained(method: str) -> Iterator[Line]:
    """A step, and a whole fit."""
    model, data = problem(rate=0.1 if method == "dropout" else 0.0)
    run = partial(TRAINED[method], model, data, batch_size=BATCH_SIZE, learning_rate=1e-3, seed=0, progress=False)
    number = MEMBERS.get(method, 1)
    told = "plain steps" if number == 1 else f"plain steps of {number} networks"
    steps = partial(plain_training, data, number * (LONG - SHORT))
    yield Line(method, "step", told, partial(run, num_epochs=LONG), steps, partial(run, num_epochs=SHORT))
    whole = partial(plain_training, data, number * LONG)
    yield Line(method, "fit", told, partial(run, num_epochs=LONG), whole)


def sampled() -> Iterator[Line]:
    """Chains, by their gradients."""
    model, data = problem()
    # From draws of the prior, classes' probabilities are subnormal numbers, on which processors are slow.
    begun = map_estimate.fit(model, data, num_epochs=5, seed=0, progress=False)
    run = partial(hmc.fit, model, data, kernel="hmc", num_steps=20, step_size=1e-4, num_warmup=0, num_chains=1)
    run = partial(run, seed=0, progress=False, start=begun)
    gradients = partial(plain_gradients, data, 800)
    yield Line("hmc", "step", "gradients", partial(run, num_samples=45), gradients, partial(run, num_samples=5))
    chain = partial(sgmcmc.fit, model, data, thinning=10, step_size=1e-3, num_warmup=50, num_chains=1)
    chain = partial(chain, seed=0, progress=False, start=begun, batch_size=BATCH_SIZE)
    steps = partial(plain_training, data, 400 * BATCH_SIZE // NUM_ROWS)
    yield Line("sgmcmc", "step", "plain steps", partial(chain, num_samples=45), steps, partial(chain, num_samples=5))
    rows = partial(microcanonical.fit, model, data, start=begun, num_members=4, thinning=1, num_warmup=20, seed=0)
    rows = partial(rows, progress=False)
    gradients = partial(plain_gradients, data, 2 * 4 * 40)
    yield Line(
        "microcanonical, 4 chains",
        "step",
        "gradients",
        partial(rows, num_samples=60),
        gradients,
        partial(rows, num_samples=20),
    )


def after_training() -> Iterator[Line]:
    """What stands on a trained network."""
    model, data = problem()
    mode = map_estimate.fit(model, data, num_epochs=20, seed=0, progress=False)
    epoch = partial(plain_training, data, 1)
    for subset, structure in (("all", "kronecker"), ("all", "diagonal"), ("last_layer", "full")):
        name = f"laplace, {subset}, {structure}"
        ours = partial(laplace.fit, model, data, mode=mode, subset=subset, structure=structure, progress=False)
        yield Line(name, "fit", "an epoch of plain steps", ours, epoch)
    yield Line("temperature", "fit", "an epoch of plain steps", partial(temperature.fit, mode, data, seed=0), epoch)


def predicted() -> Iterator[Line]:
    """100 draws beside as many passes; of methods that have fewer networks, those."""
    for method, fit in TRAINED.items():
        if method in ("variational, local", "variational, flipout", "ensemble of 1"):
            continue  # the same posterior as another's
        model, data = problem(rate=0.1 if method == "dropout" else 0.0)
        posterior = fit(model, data, num_epochs=2, seed=0, progress=False)
        passes = {"map": 1, "ensemble of 5": 5}.get(method, NUM_DRAWS)
        for number in PREDICTED:
            x = torch.randn(number, WIDTHS[0])
            ours = partial(posterior.predict, x, num_samples=NUM_DRAWS, seed=0)
            yield Line(method, f"predict, {number} rows", f"{passes} passes", ours, partial(plain_passes, x, passes))


def measured() -> Iterator[Line]:
    """Measures of a million predictions of ten classes."""
    for name, contest in measures.contests(1_000_000, 10).items():
        yield Line(name, "measure", "plain torch", contest[measures.OURS], contest[measures.PLAIN])


def peers() -> Iterator[Line]:
    """Stock Pyro on the same model."""
    _, data = problem()
    steps = partial(plain_training, data, LONG - SHORT)
    yield Line("stock Pyro, AutoNormal", "step", "plain steps", stock_pyro(data), steps)


def lines() -> Iterator[Line]:
    """All of them, each made when its turn comes."""
    for method in TRAINED:
        yield from trained(method)
    for group in (sampled, after_training, predicted, peers, measured):
        yield from group()


def seconds_of(work: Work, repeats: int) -> float:
    """CPU seconds of a call."""
    begin = process_time()
    for _ in range(repeats):
        work()
    return (process_time() - begin) / repeats


def timed(line: Line, turns: int) -> Result:
    """Ours and the reference, in turn."""
    repeats = []
    for work in (line.ours, line.theirs):
        work()
        repeats.append(max(1, round(TURN / max(seconds_of(work, 1), 1e-6))))
    ours, ratios = [], []
    for turn in range(turns):
        found: dict[bool, float] = {}
        for is_ours in (True, False) if turn % 2 else (False, True):
            work, number = (line.ours, repeats[0]) if is_ours else (line.theirs, repeats[1])
            found[is_ours] = seconds_of(work, number)
            if is_ours and line.less is not None:
                found[is_ours] -= seconds_of(line.less, number)
        ours.append(found[True])
        ratios.append(found[True] / found[False])
    low, middle, high = statistics.quantiles(ratios, n=4)
    milliseconds = 1e3 * statistics.median(ours)
    return Result(line.key, line.reference, middle, low, high, milliseconds, turns, circumstances())


def circumstances() -> dict[str, str]:
    """What the figures depend on."""
    processor = next(
        (row.split(":")[1].strip() for row in _rows("/proc/cpuinfo") if row.startswith("model name")),
        platform.processor(),
    )
    return {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "Python": platform.python_version(),
        **{name: version(name).partition("+")[0] for name in VERSIONS},
    }


def _rows(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def read(path: Path) -> dict[str, Result]:
    """The results of a file, by key."""
    return {(one := Result(**json.loads(row))).key: one for row in _rows(str(path))}


def lost(old: dict[str, Result], new: dict[str, Result]) -> list[str]:
    """Keys of lines that cost more than a tenth more than before, by more than their quartiles."""
    return [
        key
        for key, one in new.items()
        if key in old and one.ratio > MOST_LOST * old[key].ratio and one.low > old[key].high
    ]


def lost_each_time(old: dict[str, Result], new: dict[str, Result], again: Callable[[str], Result]) -> list[str]:
    """Keys of lines that are lost however often they are timed: on a busy machine a sound one may look so once.

    Args:
        old: Results of before.
        new: Results of now; of a line that is timed again the best is kept.
        again: From a line's key to a further result.
    """
    for _ in range(FURTHER_TIMES):
        for key in lost(old, new):
            new[key] = min(new[key], again(key), key=lambda result: result.ratio)
    return lost(old, new)


def table(results: Iterable[Result]) -> list[str]:
    """A row for each line, and where they were made."""
    results = list(results)
    rows = [
        f"| {one.key} | {one.ratio:.2f} ({one.low:.2f} to {one.high:.2f}) | {one.reference} | {one.milliseconds:,.1f} |"
        for one in results
    ]
    made = ", ".join(f"{name} {value}" for name, value in results[0].circumstances.items())
    return ["| what | ratio (quartiles) | to | CPU ms a call |", "|---|---|---|---|", *rows, "", f"{made}.", ""]


def write_table(results: Iterable[Result], page: Path) -> None:
    """Put it between its marks."""
    head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    page.write_text("\n".join([head + BEGIN, "", *table(results), END]) + rest.partition(END)[2], encoding="utf-8")


def main() -> int:
    """Run what is not in the file yet; 1 where something was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of the lines' names; all of them by default")
    parser.add_argument("--out", type=Path, default=Path("bench.jsonl"))
    parser.add_argument("--against", type=Path)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--turns", type=int, default=11)
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # short fits are unfinished
    found = read(chosen.out)
    for line in lines():
        if line.key in found or (chosen.names and not any(name in line.key for name in chosen.names)):
            continue
        found[line.key] = result = timed(line, chosen.turns)
        with chosen.out.open("a") as file:
            file.write(json.dumps(asdict(result)) + "\n")
        print(
            f"{result.key:44s} {result.ratio:8.2f} ({result.low:.2f} to {result.high:.2f}) of {result.reference}",
            flush=True,
        )
    if chosen.page:
        write_table(found.values(), chosen.page)
    if not chosen.against:
        return 0
    old = read(chosen.against)
    slower = lost_each_time(old, found, lambda key: timed(next(one for one in lines() if one.key == key), chosen.turns))
    for key in slower:
        print(f"LOST {key}: {old[key].ratio:.2f} -> {found[key].ratio:.2f} of {found[key].reference}")
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
