"""A trained network, adopted: memory of a last-layer Laplace, ten rows of 1,000 classes, fits that run the body once.

    python benchmarks/adopting.py [--weights 100_000_000] [--features 1024 5000] [--rows 200]

Prints the peak of memory beside the user's own weights, in units of these, and CPU seconds.
"""

import argparse
import gc
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import bayesuq as bq
from bayesuq.inference import hmc, laplace, variational
from bayesuq.inference.posteriors import heads
from bayesuq.models.likelihoods import Categorical

PAGE = 4096  # bytes


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Peak:
    """The largest `resident` while it is open, seen every millisecond."""

    def __enter__(self) -> "Peak":
        self.bytes, self._open = resident(), True
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._watch.join()

    def _look(self) -> None:
        while self._open:
            self.bytes = max(self.bytes, resident())
            time.sleep(1e-3)


def memory(num_weights: int, num_features: int, num_rows: int) -> None:
    """Adopt a network of five layers, fit a last-layer Laplace, predict."""
    width = int((num_weights / 4) ** 0.5) - num_features // 8
    layers = [part for _ in range(4) for part in (nn.Linear(width, width), nn.ReLU())]
    net = nn.Sequential(*layers, nn.Linear(width, num_features), nn.ReLU(), nn.Linear(num_features, 10))
    x, y = torch.randn(num_rows, width), torch.arange(num_rows) % 10
    own = sum(4 * parameter.numel() for parameter in net.parameters())
    with torch.no_grad():
        net(x)  # what a pass of the user's takes is not ours
    gc.collect()
    features = 4 * num_features * num_rows
    before = resident()
    with Peak() as peak:
        posterior = laplace.fit(bq.adopt(net, Categorical()), bq.Dataset(x, y))
        posterior.predict(x[:10], num_samples=20, seed=0)
    taken = peak.bytes - before
    parts = [
        *posterior.curvature.values(),
        *(axes.vectors for pair in posterior.law._decompositions.values() for axes in pair),
    ]
    state = sum(part.numel() * part.element_size() for part in parts)
    print(f"{own / 4e6:.0f} million weights, {num_features} features, {num_rows} rows: peak beside the user's own")
    print(f"  {taken / (own + features):.2f} of weights and features, {taken / (own + features + state):.2f} of these,")
    print(f"  the curvature and its axes; the user's own included {(taken + own) / (own + features):.2f}")


def seconds(work: Callable[[], object], rounds: int = 5) -> float:
    """Median CPU seconds of some calls, after one that is not counted."""
    work()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def classes() -> None:
    """A last layer of 1,000 classes on 200 rows."""
    net = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 1000))
    x, y = torch.randn(200, 64), torch.randint(1000, (200,))
    adopted, data = bq.adopt(net, Categorical()), bq.Dataset(x, y)
    posterior = laplace.fit(adopted, data)
    print(f"1,000 classes: fit {seconds(lambda: laplace.fit(adopted, data)):.3f} s")
    print(f"  ten rows, 100 draws {seconds(lambda: posterior.predict(x[:10], seed=0)):.3f} s")


def fits() -> None:
    """A body of a million weights before a last layer of 510, on digits."""
    net = nn.Sequential(
        *(nn.Linear(64, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 50), nn.ReLU()),
        nn.Linear(50, 10),
    )
    model, data = bq.adopt(net, Categorical()).model, bq.datasets.load("digits").train
    chains = {"num_samples": 2, "num_warmup": 2, "num_chains": 1}
    work: dict[str, Callable[[], object]] = {
        "variational, 20 epochs": lambda: variational.fit(model, data, num_epochs=20, seed=0),
        "hmc, four transitions": lambda: hmc.fit(model, data, **chains, seed=0),
    }
    least = heads.FEWEST_CONSTANTS
    for name, fit in work.items():
        once = seconds(fit, 1)
        heads.FEWEST_CONSTANTS = 10**12  # the body is run each time
        print(f"{name}: {once:.2f} s, {seconds(fit, 1):.2f} s by the whole network")
        heads.FEWEST_CONSTANTS = least


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=int, default=100_000_000, help="Of the network whose memory is measured.")
    parser.add_argument("--features", type=int, nargs="+", default=[1024, 5000], help="Before its last layer.")
    parser.add_argument("--rows", type=int, default=200, help="That it is fitted to.")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    arguments = parser.parse_args()
    memory(10**6, 256, 100)  # what is loaded at the first call is not counted
    for num_features in arguments.features:
        memory(arguments.weights, num_features, arguments.rows)
    classes()
    fits()
