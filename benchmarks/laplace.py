"""What a Laplace prediction with 100 draws costs beside 100 deterministic passes of the same network.

The target: at most 0.1 for the last layer at 10,000 rows. Its features are computed once, and draws are of outputs.
"""

import torch
from timing import median_seconds, print_ratios

from bayesuq.data import Dataset
from bayesuq.inference import laplace, map_estimate
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

NUM_DRAWS = 100
PASSES = f"{NUM_DRAWS} deterministic passes"


def compare(widths: tuple[int, ...], num_rows: int, *, rounds: int, everything: bool = False) -> None:
    """Print each structure's `predict` beside plain passes for one architecture and number of rows."""
    torch.manual_seed(0)
    net = networks.mlp(widths[0], widths[1:-1], widths[-1]).eval()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    data = Dataset(torch.randn(2000, widths[0]), torch.randint(widths[-1], (2000,)))
    mode = map_estimate.fit(model, data, num_epochs=1, seed=0)
    x = torch.randn(num_rows, widths[0])

    def passes() -> None:
        with torch.no_grad():
            for _ in range(NUM_DRAWS):
                net(x)

    steps = {PASSES: passes}
    kinds = [("last_layer", structure) for structure in ("diagonal", "kronecker", "full")]
    for subset, structure in [*kinds, ("all", "diagonal"), ("all", "kronecker")] if everything else kinds:
        posterior = laplace.fit(model, data, structure=structure, subset=subset, mode=mode, seed=0)  # type: ignore[arg-type]
        steps[f"{subset}, {structure}"] = lambda one=posterior: one.predict(x, num_samples=NUM_DRAWS, seed=0)
        if subset == "last_layer":
            steps[f"{subset}, {structure}, probit"] = lambda one=posterior.probit: one.predict(x)
    print_ratios(
        f"{'-'.join(map(str, widths))}, {num_rows} rows", median_seconds(steps, rounds=rounds, repeats=1), (PASSES,)
    )


if __name__ == "__main__":
    compare((784, 400, 400, 10), 1_000, rounds=3, everything=True)
    compare((784, 400, 400, 10), 10_000, rounds=3)
