"""What a leapfrog step costs: ours in NUTS beside stock Pyro's on the traced model, and eight chains beside one.

The targets: at most half of stock Pyro's, and at most four times one chain's. Both trees are made to grow to the same
31 steps, so that everything a transition does is in the time of a step.
"""

from collections.abc import Callable

import torch
from pyro.infer import NUTS
from timing import median_seconds, print_ratios

from bayesuq.inference.chains.hamiltonian import Points, leapfrog
from bayesuq.inference.chains.mass import Diagonal
from bayesuq.inference.chains.nuts import Nuts
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.training.minibatches import Batch
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

DEPTH = 5
NUM_STEPS = 2**DEPTH - 1
TINY = 1e-5  # so that no trajectory turns back
STOCK, ONE = "NUTS by stock Pyro", "one chain"


def stock(model: BayesianNetwork, rows: Batch, start: dict[str, torch.Tensor]) -> Callable[[], object]:
    """One transition of Pyro's NUTS on the traced model."""
    kernel = NUTS(model, step_size=TINY, adapt_step_size=False, adapt_mass_matrix=False, max_tree_depth=DEPTH)
    kernel.setup(0, rows.x, rows.y)
    kernel.clear_cache()
    params = start
    traced, calls = kernel.potential_fn, 0

    def counted(z: dict[str, torch.Tensor]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return traced(z)

    kernel.potential_fn = counted
    kernel.sample(params)
    kernel.potential_fn = traced
    if calls != NUM_STEPS + 1:
        raise RuntimeError(f"the stock trajectory had {calls - 1} steps")

    def transition() -> None:
        nonlocal params
        params = kernel.sample(params)

    return transition


def ours(potential: NetworkPotential, start: torch.Tensor) -> Callable[[], object]:
    """One transition of our NUTS."""
    noise = torch.Generator().manual_seed(0)
    points, mass = Points.at(start.unsqueeze(0), potential), Diagonal(torch.ones_like(start))

    def transition() -> None:
        _, info = Nuts(DEPTH)(points, potential, TINY, mass, noise)
        if int(info["n_steps"]) != NUM_STEPS:
            raise RuntimeError("the trajectory turned back")

    return transition


def together(potential: NetworkPotential, starts: torch.Tensor) -> Callable[[], object]:
    """As many steps of plain HMC, of all chains at once."""
    points, momenta, mass = Points.at(starts, potential), torch.randn_like(starts), Diagonal(torch.ones_like(starts[0]))

    def transition() -> None:
        moved, after = points, momenta
        for _ in range(NUM_STEPS):
            moved, after = leapfrog(moved, after, potential, TINY, mass)

    return transition


def compare(model: BayesianNetwork, rows: Batch, title: str, *, rounds: int) -> None:
    """Print the times of one step."""
    potential = NetworkPotential(model, rows)
    starts = 0.1 * torch.randn(32, potential.layout.size)
    chains = {f"{number} chains in one pass": together(potential, starts[:number]) for number in (2, 8, 32)}
    start = {name: value.clone() for name, value in potential.layout.split(starts[0]).items()}
    steps = {STOCK: stock(model, rows, start), "NUTS": ours(potential, starts[0]), ONE: together(potential, starts[:1])}
    seconds = median_seconds(steps | chains, rounds=rounds, repeats=1)
    of_a_step = {name: value / NUM_STEPS for name, value in seconds.items()}
    print_ratios(f"{title}: {potential.layout.size} weights, {len(rows.x)} rows", of_a_step, (STOCK, ONE))


if __name__ == "__main__":
    torch.manual_seed(0)
    for title, num_rows, num_features in (
        ("small", 100, 6),
        ("yacht", 277, 6),
        ("boston", 455, 13),
        ("concrete", 927, 8),
    ):
        net = networks.mlp(num_features, (50,), 1)
        regression = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
        data = Batch(torch.randn(num_rows, num_features), torch.randn(num_rows, 1), None)
        compare(regression, data, f"{title}, {num_features}-50-1", rounds=15)
    rows = Batch(torch.randn(100, 1), torch.randn(100, 1), None)
    for title, scale in (("known noise", 0.1), ("inferred noise", priors.HalfNormal())):
        small = BayesianNetwork(networks.mlp(1, (18,), 1), priors.Normal(), likelihoods.Normal(scale=scale))
        compare(small, rows, f"{title}, 1-18-1", rounds=15)
    net = networks.mlp(64, (50,), 10)
    digits = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    data = Batch(torch.rand(1293, 64), torch.randint(10, (1293,)), None)
    compare(digits, data, "digits, 64-50-10", rounds=5)
