"""Simulation-based calibration of a conjugate model: which ways of inferring its posterior give the right one.

Linear regression on three correlated inputs, with the noise known, so that the posterior is N(m, P^-1) in closed form.
Exact draws, NUTS and a full-rank Gaussian must pass; a mean-field Gaussian and the exact posterior made a third
narrower must not. The log-likelihood, ranked beside the weights, sees correlations that the weights' margins hide.
"""

import argparse
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.evaluation import plots, simulation
from bayesuq.inference import hmc, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.randomness import generator

NUM_DRAWS, NUM_ROWS, NOISE, WARMUP, THINNING, NUM_EPOCHS = 49, 12, 0.5, 200, 5, 500


def inputs() -> Tensor:
    """(N, 3), neighbouring columns correlated by .9."""
    noise = torch.randn(NUM_ROWS, 3, generator=generator(0), dtype=torch.float64)
    mix = torch.tensor([[1.0, 0.9, 0.8], [0.0, 0.44, 0.38], [0.0, 0.0, 0.46]], dtype=torch.float64)
    return noise @ mix


def build() -> BayesianNetwork:
    """Three weights and a bias, N(0, 1) each."""
    return BayesianNetwork(networks.mlp(3, (), 1).double(), priors.Normal(), likelihoods.Normal(scale=NOISE))


def exact(x: Tensor, y: Tensor, seed: int, *, factor: float = 1.0) -> dict[str, Tensor]:
    """Draws of the posterior itself, their deviations times a factor."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    precision = design.T @ design / NOISE**2 + torch.eye(4, dtype=x.dtype)
    mean = torch.linalg.solve(precision, design.T @ y / NOISE**2)
    noise = torch.randn(4, NUM_DRAWS, generator=generator(seed), dtype=x.dtype)
    deviations = torch.linalg.solve_triangular(torch.linalg.cholesky(precision).T, noise, upper=True)
    draws = (mean + factor * deviations).T
    return {"1.weight": draws[:, None, :3], "1.bias": draws[:, 3:]}


def sampled(model: BayesianNetwork, x: Tensor, y: Tensor, seed: int) -> bq.Posterior:
    """One chain of NUTS, thinned."""
    options: dict[str, Any] = {"num_warmup": WARMUP, "num_chains": 1, "chain_method": "sequential", "progress": False}
    return hmc.fit(model, bq.Dataset(x, y), num_samples=NUM_DRAWS, thinning=THINNING, seed=seed, **options)


def optimised(model: BayesianNetwork, guide: Any, x: Tensor, y: Tensor, seed: int) -> bq.Posterior:
    """A Gaussian by gradients of the ELBO, over as many draws a step as settle it."""
    options: dict[str, Any] = {"num_epochs": NUM_EPOCHS, "learning_rate": 0.05, "num_draws": 8, "progress": False}
    return variational.fit(model, bq.Dataset(x, y), guide=guide, seed=seed, **options)


def main(num_simulations: int, out: Path) -> None:
    """Fit every simulated data set by every method; print the tests, and draw the worst ranks of each."""
    model, x = build(), inputs()

    def quantities(theta: Mapping[str, Tensor], y: Tensor) -> dict[str, Tensor]:
        f = x @ theta["1.weight"].T + theta["1.bias"]
        return {"w": theta["1.weight"], "b": theta["1.bias"], "log-likelihood": -((y - f) ** 2).sum() / NOISE**2 / 2}

    fits: dict[str, Callable[[Tensor, int], Any]] = {
        "exact": partial(exact, x),
        "NUTS": partial(sampled, model, x),
        "full rank": partial(optimised, model, variational.full_rank, x),
        "mean field": partial(optimised, model, variational.mean_field, x),
        "a third narrower": partial(exact, x, factor=2 / 3),
    }
    ranks = {}
    for name, fit in fits.items():
        ranks[name] = simulation.calibrate(
            lambda seed: model.simulate(x, seed=seed),
            fit,
            num_simulations=num_simulations,
            num_draws=NUM_DRAWS,
            quantities=quantities,
        )
        print(f"{name}: {ranks[name]}\n", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.rank_histograms(ranks).savefig(out, dpi=110)
    print(f"Picture: {out.resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-simulations", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/simulation/ranks.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    main(arguments.num_simulations, arguments.out)
