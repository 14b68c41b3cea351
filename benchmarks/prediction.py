"""What predicting with 100 draws of the weights costs beside 100 deterministic passes of the same network.

The target: at most 1.1 at 10,000 rows; for few rows, drawing the weights dominates, and draws that are kept are to cost
at most 1.5.
"""

import torch
from timing import median_seconds, print_ratios

from bayesuq.inference.training.history import History
from bayesuq.inference.variational.factorised import VariationalPosterior
from bayesuq.inference.variational.guides import mean_field
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

NUM_DRAWS = 100


def compare(widths: tuple[int, ...], num_rows: int, *, rounds: int, repeats: int = 1) -> None:
    """Print `predict` beside plain passes for one architecture and number of rows."""
    torch.manual_seed(0)
    net = networks.mlp(widths[0], widths[1:-1], widths[-1]).eval()
    likelihood = likelihoods.Categorical() if widths[-1] > 1 else likelihoods.Normal(scale=0.1)
    model = BayesianNetwork(net, priors.Normal(), likelihood)
    guide = mean_field(model)
    posterior = VariationalPosterior(
        model=model,
        loc=guide.loc.detach(),
        log_scale=guide.log_scale.detach(),
        points=torch.empty(0),
        buffers={},
        history=History((), (), 0),
        scale_movement=0.0,
        kl_weight=1.0,
    )
    x = torch.randn(num_rows, widths[0])
    kept = posterior.fixed_draws(NUM_DRAWS, seed=0)

    def passes() -> None:
        with torch.no_grad():
            for _ in range(NUM_DRAWS):
                net(x)

    steps = {
        f"{NUM_DRAWS} deterministic passes": passes,
        f"predict, {NUM_DRAWS} draws": lambda: posterior.predict(x, num_samples=NUM_DRAWS, seed=0),
        f"predict, {NUM_DRAWS} draws kept": lambda: kept.predict(x),
    }
    seconds = median_seconds(steps, rounds=rounds, repeats=repeats)
    print_ratios(f"{'-'.join(map(str, widths))}, {num_rows} rows", seconds, (f"{NUM_DRAWS} deterministic passes",))


if __name__ == "__main__":
    for rows, turns in ((10_000, 5), (1_000, 9), (100, 15)):
        compare((784, 400, 400, 10), rows, rounds=turns)
    for rows, turns in ((10_000, 9), (1_000, 15), (100, 25)):
        compare((16, 64, 64, 5), rows, rounds=turns)
        compare((8, 50, 1), rows, rounds=turns)
