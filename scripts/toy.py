"""Every method on one-dimensional data with a gap, beside Hamiltonian Monte Carlo and a Gaussian process.

The same network, prior and likelihood for all but the Gaussian process, which has a prior over functions instead. Where
there are data, all should agree; in the gap, a good posterior says how little it knows. HMC is the reference of the
networks as far as its chains agree, which R-hat in the middle of the gap tells.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

import bayesuq as bq
from bayesuq.evaluation import plots, report
from bayesuq.inference import dropout, ensemble, gp, hmc, laplace, map_estimate, swag, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.models.gp import GaussianProcess

NUM_CHAINS = 4


def build(seed: int, *, with_dropout: bool = False) -> BayesianNetwork:
    """A 1-20-1 network whose weights and noise scale are all unknown."""
    torch.manual_seed(seed)
    net = networks.mlp(1, (20,), 1, dropout=0.05 if with_dropout else 0.0, activation="tanh")
    noise = likelihoods.Normal(scale=priors.HalfNormal(scale=1.0), initial_scale=0.3)
    return BayesianNetwork(net, prior=priors.FanIn(priors.Normal(scale=3.0)), likelihood=noise)


METHODS: dict[str, Callable[..., bq.Posterior]] = {
    "MAP": map_estimate.fit,
    "variational": variational.fit,
    "dropout": dropout.fit,
    "ensemble": ensemble.fit,
    "Laplace": partial(laplace.fit, structure="full"),
    "SWAG": swag.fit,
}


def run_hmc(model: BayesianNetwork, data: bq.Dataset, num_draws: int, seed: int) -> bq.Posterior:
    """Chains of NUTS from draws of the prior, and how far they agree where no data tell them to."""
    sizes = {"num_chains": NUM_CHAINS, "num_warmup": num_draws, "num_samples": num_draws, "max_tree_depth": 7}
    posterior = hmc.fit(model, data, seed=seed, progress=False, chain_method="sequential", **sizes)
    draws = torch.vmap(model.forward, in_dims=(0, None))(posterior.sample_weights(), torch.zeros(1, 1))
    agreement = split_gelman_rubin(draws.reshape(NUM_CHAINS, num_draws))
    print(f"HMC: split R-hat of f(0) over {NUM_CHAINS} chains of {num_draws} draws is {agreement:.2f}; 1 is agreement")
    return posterior


def main(out: Path, num_epochs: int, num_draws: int, seed: int) -> None:
    """Load, build, fit, predict, evaluate, write."""
    split = bq.datasets.load("toy/sine-gap")
    units = bq.Standardizer.fit(split.train)
    data, options = units.transform(split.train), {"num_epochs": num_epochs, "learning_rate": 0.02, "seed": seed}
    print(f"seed {seed}, {num_epochs} epochs")
    posteriors = {
        name: fit(build(seed, with_dropout=name == "dropout"), data, batch_size=len(data), **options)
        for name, fit in METHODS.items()
    }
    posteriors["Gaussian process"] = gp.fit(GaussianProcess(), data, seed=seed)
    posteriors["HMC"] = run_hmc(build(seed), data, num_draws, seed)

    def predict(name: str, x: Tensor) -> Any:
        inputs = ((x - units.x_loc) / units.x_scale).float()
        return units.inverse(posteriors[name].predict(inputs, num_samples=200, seed=seed))

    for where, part in {"where there are data": split.test, "in the gap": split.ood}.items():
        reports = {name: report.evaluate(predict(name, part.x), part.y) for name in posteriors}
        print(f"\n{where}, {len(part)} points\n{report.side_by_side(reports)}")
    x = torch.linspace(-4, 4, 400)[:, None]
    bands = {name: predict(name, x) for name in posteriors}
    figure = plots.regression_bands(bands, x, data=(split.train.x, split.train.y), truth=split.truth.mean(x))
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "toy.png", dpi=150)
    print(f"\nPicture: {(out / 'toy.png').resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder for the picture")
    parser.add_argument("--epochs", type=int, default=3000, help="passes over the 200 training points")
    parser.add_argument("--draws", type=int, default=250, help="of each HMC chain, after as many warm-up steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.out, options.epochs, options.draws, options.seed)
