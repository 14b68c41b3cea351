"""Every method on one-dimensional data with a gap, beside Hamiltonian Monte Carlo by stock Pyro.

The same network, prior and likelihood for all. Where there are data, all should agree; in the gap, a good posterior
says how little it knows. HMC is the reference as far as its chains agree, which R-hat in the middle of the gap tells.
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import split_gelman_rubin
from torch import Tensor

import bayesuq as bq
from bayesuq.evaluation import plots, report
from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

NUM_CHAINS = 4


def build(seed: int, *, with_dropout: bool = False) -> BayesianNetwork:
    """A 1-20-1 network whose weights and noise scale are all unknown."""
    torch.manual_seed(seed)
    net = networks.mlp(1, (20,), 1, dropout=0.05 if with_dropout else 0.0, activation="tanh")
    noise = likelihoods.Normal(scale=priors.HalfNormal(scale=1.0), initial_scale=0.3)
    return BayesianNetwork(net, prior=priors.FanIn(priors.Normal(scale=3.0)), likelihood=noise)


def fit_from_the_mode(model: BayesianNetwork, data: bq.Dataset, **options: Any) -> bq.Posterior:
    """Variational inference that starts where MAP ends; from random weights it stops at a lower ELBO on these data."""
    mode = map_estimate.fit(model, data, **options)
    net = copy.deepcopy(model.net)
    net.load_state_dict({name: draws[0] for name, draws in mode.sample_weights().items()}, strict=False)
    return variational.fit(BayesianNetwork(net, model.prior, model.likelihood), data, **options)


METHODS = {"MAP": map_estimate.fit, "variational": fit_from_the_mode, "dropout": dropout.fit, "ensemble": ensemble.fit}


def run_hmc(
    model: BayesianNetwork, data: bq.Dataset, num_draws: int, seed: int
) -> Callable[[Tensor], bq.GaussianPredictive]:
    """The model is a Pyro program, so Pyro's NUTS samples it as it stands; the draws go through the same likelihood."""
    chains = []
    for chain in range(NUM_CHAINS):
        torch.manual_seed(NUM_CHAINS * seed + chain)
        sampler = MCMC(NUTS(model, max_tree_depth=5), num_draws, warmup_steps=num_draws, disable_progbar=True)
        sampler.run(data.x, data.y)
        chains.append(sampler.get_samples())
    theta = {name: torch.cat([draws[name] for draws in chains]) for name in chains[0]}

    forward = torch.vmap(model.forward, in_dims=(0, None))
    agreement = split_gelman_rubin(forward(theta, torch.zeros(1, 1)).reshape(NUM_CHAINS, num_draws))
    print(f"HMC: split R-hat of f(0) over {NUM_CHAINS} chains of {num_draws} draws is {agreement:.2f}; 1 is agreement")
    return lambda x: model.likelihood_given(theta).predictive(forward(theta, x))


def main(out: Path, num_epochs: int, num_draws: int, seed: int) -> None:
    """Load, build, fit, predict, evaluate, write."""
    split = bq.datasets.load("toy/sine-gap")
    units = bq.Standardizer.fit(split.train)
    data, options = units.transform(split.train), {"num_epochs": num_epochs, "learning_rate": 0.02, "seed": seed}
    print(f"seed {seed}, {num_epochs} epochs")
    predicts = {}
    for name, fit in METHODS.items():
        posterior = fit(build(seed, with_dropout=fit is dropout.fit), data, batch_size=len(data), **options)
        predicts[name] = lambda x, posterior=posterior: posterior.predict(x, num_samples=200, seed=seed)
    predicts["HMC by Pyro"] = run_hmc(build(seed), data, num_draws, seed)

    def predict(name: str, x: Tensor) -> bq.GaussianPredictive:
        return units.inverse(predicts[name](((x - units.x_loc) / units.x_scale).float()))

    for where, part in {"where there are data": split.test, "in the gap": split.ood}.items():
        reports = {name: report.evaluate(predict(name, part.x), part.y) for name in predicts}
        print(f"\n{where}, {len(part)} points\n{report.side_by_side(reports)}")
    x = torch.linspace(-4, 4, 400)[:, None]
    bands = {name: predict(name, x) for name in predicts}
    figure = plots.regression_bands(bands, x, data=(split.train.x, split.train.y), truth=split.truth.mean(x))
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "toy.png", dpi=150)
    print(f"\nPicture: {(out / 'toy.png').resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/toy"), help="folder for the picture")
    parser.add_argument("--epochs", type=int, default=3000, help="passes over the 200 training points")
    parser.add_argument("--draws", type=int, default=100, help="of each HMC chain, after as many warm-up steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    main(options.out, options.epochs, options.draws, options.seed)
