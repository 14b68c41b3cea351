"""How cost grows with weights, rows, draws, members, classes and pixels, with the exponent: `make bench`.

CPU time of a call on one thread, the least of several, at sizes that double; the exponent is the slope between the two
largest on log-log axes, where what does not grow counts least. Steps are what a longer fit costs beyond a shorter one,
in the median. Writes lines of JSON, and a figure of them.
"""

import argparse
import json
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import process_time

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import NullFormatter
from torch import nn

from bayesuq.data import Dataset
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.inference import ensemble, ivon, laplace, map_estimate, microcanonical, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.predictive.categorical import CategoricalPredictive

torch.set_num_threads(1)

Work = Callable[[], object]
CALLS = 3
TURN = 0.05  # CPU seconds of a call that is timed, at least


@dataclass(frozen=True)
class Curve:
    """Cost against one size.

    Attributes:
        name: What is done.
        size: What grows.
        sizes: Its values.
        seconds: CPU seconds at each.
    """

    name: str
    size: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """Of the size, between its two largest values."""
        (first, second), (early, late) = self.sizes[-2:], self.seconds[-2:]
        return math.log(late / early) / math.log(second / first)


def seconds_of(work: Work, less: Work | None = None) -> float:
    """CPU seconds of a call beyond those of another, the least of several."""
    work()
    begin = process_time()
    work()
    repeats = max(1, math.ceil(TURN / max(process_time() - begin, 1e-6)))

    def timed(call: Work) -> float:
        begin = process_time()
        for _ in range(repeats):
            call()
        return (process_time() - begin) / repeats

    if less is None:
        return min(timed(work) for _ in range(CALLS))
    return statistics.median(timed(work) - timed(less) for _ in range(CALLS))


def problem(rows: int, width: int = 64, classes: int = 5) -> tuple[BayesianNetwork, Dataset]:
    """An MLP with one hidden layer, or labels of rows that it may learn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 16, generator=generator)
    net = networks.mlp(16, (width, width), classes, seed=0)
    y = torch.randint(classes, (rows,), generator=generator)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical()), Dataset(x, y)


def by_weights(name: str, fit: Callable[..., object]) -> Iterator[tuple[str, str, int, Work, Work | None]]:
    """Twenty steps, in networks of more and more weights."""
    for width in (512, 1024, 2048):
        model, data = problem(128, width)
        number = sum(parameter.numel() for parameter in model.net.parameters())
        run = partial(fit, model, data, batch_size=128, learning_rate=1e-3, seed=0, progress=False)
        yield name, "weights", number, partial(run, num_epochs=23), partial(run, num_epochs=3)


def by_rows(name: str, fit: Callable[..., object]) -> Iterator[tuple[str, str, int, Work, Work | None]]:
    """Two epochs over more and more rows."""
    for rows in (4_096, 8_192, 16_384):
        model, data = problem(rows)
        run = partial(fit, model, data, batch_size=128, learning_rate=1e-3, seed=0, progress=False)
        yield name, "rows", rows, partial(run, num_epochs=3), partial(run, num_epochs=1)


def whole() -> Iterator[tuple[str, str, int, Work, Work | None]]:
    """What has no steps, predictions, and measures."""
    for rows in (4_096, 8_192, 16_384, 32_768):
        model, data = problem(rows)
        mode = map_estimate.fit(model, data, num_epochs=1, seed=0, progress=False)
        yield (
            "laplace, Kronecker",
            "rows",
            rows,
            partial(laplace.fit, model, data, subset="all", mode=mode, progress=False),
            None,
        )
    for width in (64, 128, 256, 512):
        model, data = problem(512, width)
        mode = map_estimate.fit(model, data, num_epochs=1, seed=0, progress=False)
        number = sum(parameter.numel() for parameter in model.net.parameters())
        yield (
            "laplace, Kronecker",
            "weights",
            number,
            partial(laplace.fit, model, data, subset="all", mode=mode, progress=False),
            None,
        )
    model, data = problem(512)
    posterior = variational.fit(model, data, num_epochs=1, seed=0, progress=False)
    for rows in (10_000, 20_000, 40_000, 80_000):
        x = torch.randn(rows, 16)
        yield "predict, 20 draws", "rows", rows, partial(posterior.predict, x, num_samples=20, seed=0), None
    for draws in (25, 50, 100, 200):
        x = torch.randn(2_000, 16)
        yield "predict, 2,000 rows", "draws", draws, partial(posterior.predict, x, num_samples=draws, seed=0), None
    for classes in (50, 100, 200, 400):
        probs = torch.rand(20_000, classes, dtype=torch.float64).softmax(dim=1)
        y = torch.randint(classes, (len(probs),))
        predictive = CategoricalPredictive.from_probs(probs[None])
        yield "report of labels", "classes", classes, partial(evaluate, predictive, y), None
    for rows in (50_000, 100_000, 200_000, 400_000):
        probs = torch.randn(rows, 10).double().softmax(dim=1)
        predictive = CategoricalPredictive.from_probs(probs[None])
        yield "report of labels", "rows", rows, partial(evaluate, predictive, torch.randint(10, (rows,))), None
    for members in (2, 4, 8, 16):
        model, data = problem(512)
        run = partial(ensemble.fit, model, data, num_members=members, batch_size=128, seed=0, progress=False)
        yield "ensemble", "members", members, partial(run, num_epochs=12), partial(run, num_epochs=2)
    for chains in (2, 4, 8, 16):
        model, data = problem(512)
        mode = map_estimate.fit(model, data, num_epochs=1, seed=0, progress=False)
        run = partial(microcanonical.fit, model, data, start=mode, num_members=chains, num_warmup=10, thinning=1)
        run = partial(run, seed=0, progress=False)
        yield "microcanonical", "chains", chains, partial(run, num_samples=30), partial(run, num_samples=10)
    for pixels in (32, 64, 128):
        yield from maps(pixels)


def maps(pixels: int) -> Iterator[tuple[str, str, int, Work, Work | None]]:
    """The last layer's Laplace of images of labels, and its prediction."""
    x = torch.randn(4, 1, pixels, pixels)
    y = (x[:, 0] > 0).long()
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    model, data = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical()), Dataset(x, y)
    mode = map_estimate.fit(model, data, num_epochs=1, seed=0, progress=False)
    fit = partial(laplace.fit, model, data, mode=mode, subset="last_layer", progress=False)
    posterior = fit()
    yield "laplace, last layer, maps", "pixels", pixels**2, fit, None
    yield "predict, maps, 20 draws", "pixels", pixels**2, partial(posterior.predict, x, num_samples=20, seed=0), None


def tasks() -> Iterator[tuple[str, str, int, Work, Work | None]]:
    """All of them."""
    fits: Sequence[tuple[str, Callable[..., object]]] = (
        ("map, step", map_estimate.fit),
        ("mean field, step", partial(variational.fit, estimator="weights")),
        ("ivon, step", ivon.fit),
    )
    for name, fit in fits:
        yield from by_weights(name, fit)
        yield from by_rows(name.replace("step", "epoch"), fit)
    yield from whole()


def draw(curves: Sequence[Curve], path: Path) -> None:
    """A panel for each size, log-log."""
    kinds = list(dict.fromkeys(curve.size for curve in curves))
    figure, axes = plt.subplots(2, math.ceil(len(kinds) / 2), figsize=(12, 8), layout="constrained")
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for curve in (one for one in curves if one.size == kind):
            axis.loglog(curve.sizes, curve.seconds, "o-", label=f"{curve.name}: {curve.exponent:.2f}")
        ends = sorted({size for curve in curves if curve.size == kind for size in curve.sizes})
        axis.set_xticks([ends[0], ends[-1]], [f"{size:,}" for size in (ends[0], ends[-1])])
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set(xlabel=kind, ylabel="CPU seconds")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize="small", frameon=False)
    for axis in axes.flat[len(kinds) :]:
        axis.remove()
    figure.savefig(path)


def main() -> None:
    """Time what is not in the file yet, and draw all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.jsonl"))
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # short fits are unfinished
    rows = chosen.out.read_text().splitlines() if chosen.out.exists() else []
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        told = json.loads(row)
        found.setdefault((told["name"], told["size"]), {})[told["value"]] = told["seconds"]
    for name, size, value, work, less in tasks():
        known = found.setdefault((name, size), {})
        if value in known:
            continue
        known[value] = seconds_of(work, less)
        with chosen.out.open("a") as file:
            file.write(json.dumps({"name": name, "size": size, "value": value, "seconds": known[value]}) + "\n")
        print(f"{name:28s} {value:10,d} {size:8s} {1e3 * known[value]:10.2f} ms", flush=True)
    curves = [Curve(name, size, tuple(known), tuple(known.values())) for (name, size), known in found.items()]
    for curve in curves:
        print(f"{curve.name:28s} {curve.size:8s} exponent {curve.exponent:.2f}")
    draw(curves, chosen.figure)


if __name__ == "__main__":
    sys.exit(main())
