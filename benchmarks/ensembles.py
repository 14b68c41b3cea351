"""Members trained in one vectorised pass beside members trained one after another.

What decides is the size: weights times rows of a minibatch, `bayesuq.inference.ensemble.together.LARGEST_WORK`.
"""

import math

import torch
from timing import median_seconds, print_ratios

from bayesuq.data import Dataset
from bayesuq.inference import ensemble
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

NUM_MEMBERS = 5
ONE_AFTER_ANOTHER = "one after another"


def compare(widths: tuple[int, ...], batch_size: int, *, num_steps: int, rounds: int = 5) -> None:
    """Print both ways for one architecture."""
    torch.manual_seed(0)
    net = networks.mlp(widths[0], widths[1:-1], widths[-1])
    x = torch.randn(10 * batch_size, widths[0])
    classifies = widths[-1] > 1
    y = torch.randint(widths[-1], (len(x),)) if classifies else torch.randn(len(x), 1)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical() if classifies else likelihoods.Normal())
    options = {"num_members": NUM_MEMBERS, "num_epochs": num_steps // 10, "batch_size": batch_size, "seed": 0}

    def fit(*, vectorised: bool) -> None:
        ensemble.fit(model, Dataset(x, y), vectorised=vectorised, **options)

    steps = {ONE_AFTER_ANOTHER: lambda: fit(vectorised=False), "together": lambda: fit(vectorised=True)}
    seconds = median_seconds(steps, rounds=rounds, repeats=1)
    work = math.log2(sum(parameter.numel() for parameter in net.parameters()) * batch_size)
    title = f"{NUM_MEMBERS} x {'-'.join(map(str, widths))}, batch {batch_size}, {num_steps} steps: work 2^{work:.1f}"
    print_ratios(title, seconds, (ONE_AFTER_ANOTHER,))


if __name__ == "__main__":
    compare((8, 50, 1), 32, num_steps=400)
    compare((8, 50, 1), 128, num_steps=400)
    compare((13, 50, 50, 1), 32, num_steps=400)
    compare((64, 100, 100, 9), 32, num_steps=200)
    compare((64, 100, 100, 9), 128, num_steps=100)
    compare((784, 400, 400, 10), 128, num_steps=20)
