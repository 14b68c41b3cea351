"""A step of variational online Newton beside deterministic steps of Adam: `python benchmarks/ivon_step.py`.

A network of 784, 400, 400 and 10 units, 128 rows a step, one thread; CPU time, in turns in one process. Adam is torch's
by its defaults, and its fused one, each in a loop as one writes it by hand. A turn is one step that is not counted, so
that each finds its own vectors in the caches, and ten that are; the ratio of two turns is that of their medians.
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
    optimizer, noise = Newton(objective, 0.005), torch.Generator().manual_seed(0)

    def step() -> None:
        objective.loss_and_grads(batch, noise).item()
        optimizer.step()

    return step


def adam(batch: Batch, *, fused: bool) -> Callable[[], None]:
    """A step of one network."""
    net = networks.mlp(784, (400, 400), 10, seed=0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True) if fused else torch.optim.Adam(net.parameters())

    def step() -> None:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(batch.x), batch.y)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def turn(step: Callable[[], None]) -> list[float]:
    """Milliseconds of CPU time of each of its steps."""
    step()
    times = []
    for _ in range(BLOCK):
        begin = process_time()
        step()
        times.append(1000 * (process_time() - begin))
    return times


def main(rounds: int) -> None:
    """Times of each, and their ratios."""
    noise = torch.Generator().manual_seed(0)
    batch = Batch(torch.rand(BATCH_SIZE, 784, generator=noise), torch.randint(10, (BATCH_SIZE,), generator=noise), None)
    works = {"ivon": newton(batch), "Adam": adam(batch, fused=False), "fused Adam": adam(batch, fused=True)}
    turns: dict[str, list[list[float]]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, step in works.items():
            turns[name].append(turn(step))
    for name, found in turns.items():
        times = [time for one in found for time in one]
        ratios = [
            statistics.median(ours) / statistics.median(theirs)
            for ours, theirs in zip(turns["ivon"], found, strict=True)
        ]
        low, middle, high = statistics.quantiles(ratios, n=4)
        least = min(min(ours) for ours in turns["ivon"]) / min(times)
        print(
            f"{name}: median {statistics.median(times):.2f} ms, least {min(times):.2f}; "
            f"ivon takes {middle:.2f} ({low:.2f} to {high:.2f}), by the least {least:.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    torch.set_num_threads(1)
    main(parser.parse_args().rounds)
