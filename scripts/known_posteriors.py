"""Every method on posteriors that are known: errors of mean, covariance, predictive variance and evidence.

Two linear models in float64, whose posteriors N(m, P^-1) stand in closed form: a regression on correlated inputs, and a
Gaussian target of ten dimensions whose precisions run from 1 to 1,000 in rotated directions. Neither is a network, so
that every error is the method's own.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from xarray import DataArray

import bayesuq as bq
from bayesuq.evaluation.diagnostics.quantities import measured
from bayesuq.inference import ensemble, hmc, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.randomness import generator
from bayesuq.writing import write_text

OUT = Path(__file__).parents[1] / "docs" / "results" / "known-posteriors.jsonl"
NUM_DRAWS = 20_000  # of posteriors without end of draws
QUIET: dict[str, Any] = {"progress": False}
GRADIENTS: dict[str, Any] = {**QUIET, "num_epochs": 4000, "learning_rate": 0.05, "batch_size": 1000}
METHODS: dict[str, Callable[..., bq.Posterior]] = {
    "MAP": partial(map_estimate.fit, **GRADIENTS),
    "ensemble of 20": partial(ensemble.fit, num_members=20, **{**GRADIENTS, "num_epochs": 200, "learning_rate": 0.01}),
    "mean field": partial(variational.fit, num_draws=8, **GRADIENTS),
    "low rank, 2": partial(variational.fit, guide=variational.low_rank(2), num_draws=8, **GRADIENTS),
    "full rank": partial(variational.fit, guide=variational.full_rank, num_draws=8, **GRADIENTS),
    "Laplace, diagonal": partial(laplace.fit, structure="diagonal", **GRADIENTS),
    "Laplace, Kronecker": partial(laplace.fit, structure="kronecker", **GRADIENTS),
    "Laplace, full": partial(laplace.fit, structure="full", **GRADIENTS),
    "SWAG": partial(swag.fit, **{**GRADIENTS, "batch_size": 5}),
    "SGLD": partial(sgmcmc.fit, sampler="sgld", num_samples=5000, num_warmup=5000, batch_size=1000, **QUIET),
    "SGHMC": partial(sgmcmc.fit, num_samples=5000, num_warmup=5000, batch_size=1000, **QUIET),
    "HMC": partial(hmc.fit, kernel="hmc", num_chains=8, num_samples=1000, num_warmup=500, **QUIET),
    "NUTS": partial(hmc.fit, num_samples=1000, num_warmup=500, **QUIET),
}


@dataclass(frozen=True, eq=False)
class Known:
    """A linear model and its posterior; `x` are new inputs."""

    data: bq.Dataset
    x: Tensor
    noise: float

    def model(self) -> BayesianNetwork:
        """Weights from N(0, 1), the noise known."""
        net = nn.Linear(self.data.x.shape[1], 1, bias=False).double()
        return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=self.noise))

    @property
    def precision(self) -> Tensor:
        """P = X^T X / noise^2 + I."""
        return self.data.x.T @ self.data.x / self.noise**2 + torch.eye(self.data.x.shape[1], dtype=torch.float64)

    @property
    def mean(self) -> Tensor:
        """m = P^-1 X^T y / noise^2."""
        return torch.linalg.solve(self.precision, self.data.x.T @ self.data.y.flatten() / self.noise**2)

    @property
    def log_evidence(self) -> float:
        """log N(y; 0, X X^T + noise^2 I), in nats."""
        covariance = self.data.x @ self.data.x.T + self.noise**2 * torch.eye(len(self.data), dtype=torch.float64)
        law = torch.distributions.MultivariateNormal(torch.zeros(len(self.data), dtype=torch.float64), covariance)
        return float(law.log_prob(self.data.y.flatten()))


def regression() -> Known:
    """Sixty rows, four correlated inputs and a column of ones."""
    noise = generator(0)
    white = torch.randn(160, 4, generator=noise, dtype=torch.float64)
    x = torch.cat([white.cumsum(dim=1), torch.ones(160, 1, dtype=torch.float64)], dim=1)
    y = x[:60] @ torch.linspace(-1, 1, 5, dtype=torch.float64)
    return Known(bq.Dataset(x[:60], y + 0.5 * torch.randn(60, generator=noise, dtype=torch.float64)), x[60:], 0.5)


def gaussian() -> Known:
    """Precisions 1.1 to 1,000 along the columns of a random rotation."""
    noise = generator(1)
    rotation = torch.linalg.qr(torch.randn(10, 10, generator=noise, dtype=torch.float64))[0]
    x = (torch.logspace(0.05, 3, 10, dtype=torch.float64) - 1).sqrt().unsqueeze(1) * rotation.T
    y = x @ torch.randn(10, generator=noise, dtype=torch.float64)
    return Known(bq.Dataset(x, y), torch.randn(100, 10, generator=noise, dtype=torch.float64), 1.0)


def errors(known: Known, posterior: bq.Posterior) -> dict[str, float]:
    """Of the posterior's moments; covariance after whitening by the truth, so that all directions count alike."""
    draws = getattr(posterior, "sampled", posterior).sample_weights(NUM_DRAWS, seed=0)["weight"].flatten(1)
    root = torch.linalg.cholesky(known.precision)
    white = (draws - known.mean) @ root
    size = len(known.mean)
    covariance = white.T.cov(correction=0) if len(white) > 1 else torch.zeros(size, size, dtype=torch.float64)
    truth = (torch.linalg.solve_triangular(root, known.x.T, upper=False) ** 2).sum(dim=0)
    predicted = posterior.predict(known.x, num_samples=NUM_DRAWS, seed=0).epistemic.flatten()
    evidence = getattr(posterior, "log_marginal_likelihood", nan)
    return {
        "mean": float(white.mean(dim=0).square().mean().sqrt()),
        "covariance": float((covariance - torch.eye(size)).square().sum().div(size).sqrt()),
        "predictive_variance": float((predicted / truth - 1).abs().max()),
        "narrowest": float(torch.linalg.eigvalsh(covariance)[0].clamp(min=0)),
        "widest": float(torch.linalg.eigvalsh(covariance)[-1]),
        "evidence": abs(evidence - known.log_evidence),
        "effective_sample_size": effective_sample_size(posterior, white),
    }


def effective_sample_size(posterior: bq.Posterior, white: Tensor) -> float:
    """Smallest over the whitened directions: the mean's Monte Carlo error is its root's inverse."""
    chains = getattr(posterior, "num_chains", None)
    if chains is None:
        return float(len(white)) if len(white) > 20 else inf
    draws = DataArray(white.reshape(chains, -1, white.shape[1]).numpy(), dims=("chain", "draw", "direction"))
    return float(measured("white", draws, False, None, is_independent=False).ess_bulk.min())


def main(out: Path) -> None:
    """A line for each model and method."""
    lines = []
    for title, known in {"regression": regression(), "Gaussian": gaussian()}.items():
        for name, fit in METHODS.items():
            found = errors(known, fit(known.model(), known.data, seed=0))
            lines.append({"model": title, "method": name, **found})
            print(title, name, {key: f"{value:.2g}" for key, value in found.items()}, flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="file of JSON lines")
    torch.set_num_threads(1)
    main(parser.parse_args().out)
