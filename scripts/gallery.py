"""Pictures with which pages of the gallery open: an adopted network, a program, a table, intervals that are mended.

    python -m scripts.gallery

Each is drawn from what its page explains, on few rows; all of them take a minute.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from botorch.acquisition import LogExpectedImprovement
from botorch.optim import optimize_acqf
from matplotlib.figure import Figure
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.evaluation import plots
from bayesuq.evaluation.calibration import probability_integral_transform
from bayesuq.inference import gp, hmc, laplace, map_estimate, quantile_calibration
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.models.gp import GaussianProcess
from bayesuq.randomness import generator

FIGURES = Path(__file__).parents[1] / "docs" / "figures"


def waves(num_rows: int, seed: int) -> bq.Dataset:
    """y = sin 2x + noise of scale .2, x in (-3, -1) or (1, 3)."""
    noise = generator(seed)
    x = (1 + 2 * torch.rand(num_rows, 1, generator=noise)) * torch.randn(num_rows, 1, generator=noise).sign()
    return bq.Dataset(x, (2 * x).sin() + 0.2 * torch.randn(num_rows, 1, generator=noise))


def adopted() -> Figure:
    """A network that was trained by torch alone, as it is and with its last layer made uncertain."""
    data, line = waves(100, 0), torch.linspace(-4, 4, 200).unsqueeze(1)
    with bq.randomness.isolated(0):
        net = nn.Sequential(nn.Linear(1, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 1))
        optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(1000):
            optimiser.zero_grad()
            nn.functional.mse_loss(net(data.x), data.y).backward()
            optimiser.step()
    posterior = bq.adopt(net, likelihoods.Normal(scale=0.2))
    around = laplace.fit(posterior, data, subset="last_layer", structure="full", seed=0)
    predictives = {"your network": posterior.predict(line), "adopted, with Laplace": around.predict(line)}
    return plots.regression_bands(predictives, line, data=(data.x, data.y), truth=(2 * line).sin())


def program() -> Figure:
    """A line with outliers, as a program with normal noise and with Student's."""
    noise = generator(0)
    x = torch.linspace(-1, 1, 40).unsqueeze(1)
    y = 2 * x[:, 0] + 0.1 * torch.randn(40, generator=noise)
    y[::8] += 3
    line = torch.linspace(-1.5, 1.5, 100).unsqueeze(1)

    def straight(law: Callable[[Tensor, Tensor], dist.TorchDistribution]) -> Callable[..., None]:
        def run(x: Tensor, y: Tensor | None = None) -> None:
            slope, level = (pyro.sample(name, dist.Normal(0.0, 3.0)) for name in ("slope", "level"))
            scale = pyro.sample("scale", dist.HalfNormal(1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", law(level + slope * x[:, 0], scale), obs=y)

        return run

    laws = {
        "normal noise": lambda mean, scale: dist.Normal(mean, scale),
        "Student's noise": lambda mean, scale: dist.StudentT(3.0, mean, scale),
    }
    chains = {"num_samples": 200, "num_warmup": 200, "num_chains": 2, "seed": 0, "progress": False}
    data = bq.Dataset(x, y)
    fits = {name: hmc.fit(straight(law), data, **chains) for name, law in laws.items()}
    predictives = {name: posterior.predict(line, seed=0) for name, posterior in fits.items()}
    return plots.regression_bands(predictives, line, data=(x, y), truth=2 * line)


def table() -> Figure:
    """Prices of houses: how often intervals of each level hold the price of a new house."""
    split = bq.datasets.load("uci/boston")
    transforms = {}
    for method in ("gp", "ensemble"):
        estimator = bq.estimators.BayesianRegressor(method, random_state=0).fit(split.refit.x, split.refit.y)
        transforms[method] = probability_integral_transform(estimator.predictive(split.test.x), split.test.y)
    return plots.interval_calibration(transforms)


def mended() -> Figure:
    """A fit that is too sure of itself, before and after quantile calibration on held-out rows."""
    data, held_out = waves(40, 0), waves(200, 1)
    net = networks.mlp(1, (50, 50), 1, activation="tanh", seed=0)
    model = BayesianNetwork(net, priors.Normal(scale=10.0), likelihoods.Normal(scale=0.05))
    posterior = map_estimate.fit(model, data, num_epochs=1000, seed=0, progress=False)
    calibrated = quantile_calibration.fit(posterior, held_out)
    new = waves(500, 2)
    fits = {"as fitted": posterior, "on held-out rows": calibrated}
    return plots.interval_calibration(
        {name: probability_integral_transform(fit.predict(new.x), new.y) for name, fit in fits.items()}
    )


def optimised() -> Figure:
    """Where BoTorch's expected improvement has measured next, by a Gaussian process of ours."""
    x = torch.tensor([[0.05], [0.22], [0.6], [0.95]], dtype=torch.float64)
    line, bounds = torch.linspace(0, 1, 200).double().unsqueeze(1), torch.tensor([[0.0], [1.0]]).double()
    predictives, seen = {}, x
    for _ in range(3):
        y = hills(seen)
        posterior = gp.fit(GaussianProcess(likelihood=likelihoods.Normal(scale=0.02)), bq.Dataset(seen, y), seed=0)
        predictives[f"{len(seen)} values, best {y.max():.2f}"] = posterior.predict(line)
        improvement = LogExpectedImprovement(bq.bridges.as_botorch(posterior), best_f=y.max())
        for _ in range(4):
            chosen, _ = optimize_acqf(improvement, bounds, q=1, num_restarts=4, raw_samples=64)
            seen = torch.cat([seen, chosen])
            refit = posterior.condition(chosen, hills(chosen))
            improvement = LogExpectedImprovement(bq.bridges.as_botorch(refit), best_f=hills(seen).max())
    return plots.regression_bands(predictives, line, data=(x, hills(x)), truth=hills(line))


def hills(x: Tensor) -> Tensor:
    """Two of them, the higher one, of 1, at .3, (N, 1) to (N,)."""
    return (torch.exp(-(((x - 0.3) / 0.08) ** 2)) + 0.6 * torch.exp(-(((x - 0.75) / 0.15) ** 2)))[:, 0]


PICTURES: dict[str, Callable[[], Figure]] = {
    "adopted": adopted,
    "program": program,
    "table": table,
    "mended": mended,
    "optimised": optimised,
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=tuple(PICTURES), help="one of them")
    parser.add_argument("--out", type=Path, default=FIGURES, help="folder for the pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, draw in PICTURES.items():
        if arguments.only in (None, name):
            draw().savefig(arguments.out / f"gallery-{name}.png", dpi=110)
            print(f"Picture: {arguments.out / f'gallery-{name}.png'}", flush=True)
