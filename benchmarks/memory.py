"""Memory of a fit by method, in numbers a weight: `python benchmarks/memory.py [--weights 4]` (millions).

Each fit is made in a process of its own, forked after the imports, and its largest resident memory is held against that
of a process that only builds the network. One line of JSON a method.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import map_estimate, variational
from bayesuq.models import BayesianNetwork, likelihoods, priors

WIDTH, NUM_ROWS = 1000, 16
SHORT = {"num_epochs": 4, "batch_size": 8, "learning_rate": 1e-4, "seed": 0}
METHODS: dict[str, Callable[..., Any]] = {
    "map": partial(map_estimate.fit, **SHORT),
    "variational": partial(variational.fit, estimator="weights", **SHORT),
}


def model_of(millions: float) -> BayesianNetwork:
    """A network of so many weights."""
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(round(1e6 * millions / WIDTH**2))]
    net = nn.Sequential(*(part for layer in layers for part in (layer, nn.Tanh())), nn.Linear(WIDTH, 1))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=1.0))


def largest_memory(work: Callable[[], Any]) -> int:
    """Bytes that a forked process had at most while it worked."""
    pid = os.fork()
    if pid == 0:
        warnings.simplefilter("ignore")
        work()
        os._exit(0)
    _, status, used = os.wait4(pid, 0)
    if status:
        raise RuntimeError(f"The process ended with {status}.")
    return used.ru_maxrss * 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=float, default=4.0, help="in millions")
    millions = parser.parse_args().weights
    torch.set_num_threads(1)
    data = Dataset(torch.randn(NUM_ROWS, WIDTH), torch.randn(NUM_ROWS))
    tiny = BayesianNetwork(nn.Linear(2, 1), priors.Normal(), likelihoods.Normal(scale=1.0))
    map_estimate.fit(tiny, Dataset(torch.randn(4, 2), torch.randn(4)), num_epochs=1, seed=0)  # what fits import
    bare = largest_memory(lambda: model_of(millions))
    size = sum(parameter.numel() for parameter in model_of(millions).net.parameters())
    for name, fit in METHODS.items():
        used = largest_memory(lambda fit=fit: fit(model_of(millions), data))  # type: ignore[misc]
        told = {"method": name, "weights": size, "numbers_a_weight": round((used - bare) / 4 / size, 2)}
        print(json.dumps(told | {"bytes": used - bare, "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
