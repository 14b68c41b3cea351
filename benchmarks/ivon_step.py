"""A step of variational online Newton beside deterministic steps of Adam: `python benchmarks/ivon_step.py`.

A network of 784, 400, 400 and 10 units, 128 rows a step, one thread; CPU time in milliseconds, in turns in one process.
Adam is torch's by its defaults, and its fused one, each in a loop as one writes it by hand. The least time of a step is
shown beside the median: it knows least of what else the machine does.
"""

import argparse
import statistics
from collections.abc import Callable
from time import process_time

import torch

from bayesuq.data import Batch
from bayesuq.inference.ivon.newton import Newton, NewtonObjective, Rule
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

NUM_ROWS, BATCH_SIZE, BLOCK = 60_000, 128, 10


def newton(batch: Batch) -> Callable[[], None]:
    """A step of ours, loss and all."""
    net = networks.mlp(784, (400, 400), 10, seed=0)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    objective = NewtonObjective(model, NUM_ROWS, Rule(num_draws=1, memory=None, max_grad_norm=None))
    optimizer, noise = Newton(objective, 0.2), torch.Generator().manual_seed(0)

    def step() -> None:
        objective.loss_and_grads(batch, noise)
        optimizer.step()

    return step


def adam(batch: Batch, *, fused: bool) -> Callable[[], None]:
    """A step of one network."""
    net = networks.mlp(784, (400, 400), 10, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=fused)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        torch.nn.functional.cross_entropy(net(batch.x), batch.y).backward()
        optimizer.step()

    return step


def main(rounds: int) -> None:
    """Times of each, and their ratios."""
    noise = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(BATCH_SIZE, 784, generator=noise), torch.randint(10, (BATCH_SIZE,), generator=noise), None)
    works = {"ivon": newton(batch), "Adam": adam(batch, fused=False), "fused Adam": adam(batch, fused=True)}
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, step in works.items():
            step()
            for _ in range(BLOCK):
                begin = process_time()
                step()
                times[name].append(1000 * (process_time() - begin))
    least = {name: min(found) for name, found in times.items()}
    middle = {name: statistics.median(found) for name, found in times.items()}
    for name in works:
        ratios = f"{least['ivon'] / least[name]:.2f} and {middle['ivon'] / middle[name]:.2f}"
        print(f"{name}: least {least[name]:.2f} ms, median {middle[name]:.2f} ms; ivon takes {ratios} of it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    torch.set_num_threads(1)
    main(parser.parse_args().rounds)
