"""Hamiltonian Monte Carlo of one hidden layer and the noise, the last layer integrated out: a posterior less stiff.

Where the noise is normal, so is the posterior of the last layer's weights given all else. With white z for the hidden
layer's weights and log(noise), Phi (N, H + 1) the hidden units and a 1, each times its weight's prior scale, and
sigma^2 the noise's variance,

    U(z) = -log N(y; 0, sigma^2 I + Phi Phi^T) + z^T z / 2,   M = Phi^T Phi + sigma^2 I,   m = M^-1 Phi^T y

    dU/dPhi = Phi M^-1 - (y - Phi m) m^T / sigma^2

and a draw of the last layer is N(m, sigma^2 M^-1). It is the same posterior as that of all weights, whose stiffest
directions are those that are gone: at one network of `yacht` the largest curvature falls from 4.7 million to 21
thousand, in units of the prior, and leapfrog steps may be fifteen times as long.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.inference.chains.hamiltonian import Hmc, Info, Points
from bayesuq.inference.chains.mass import Mass
from bayesuq.inference.chains.potential import Potential
from bayesuq.inference.chains.run import Plan, Watch, run
from bayesuq.inference.hmc import HmcPosterior
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.identity import Identity
from bayesuq.models import BayesianNetwork
from bayesuq.randomness import derive_seed, generator

LENGTH, MOST_STEPS = 1.5, 256  # of trajectories, in prior deviations; of leapfrog steps
ACCEPTANCE = 0.8  # mean over chains
MOST_UNITS = 2**17  # of all rows at once
STARTS, CHAINS, LAST_LAYERS = range(3)  # what a fit's seed is split into


def fit(
    model: BayesianNetwork,
    data: bq.Dataset,
    *,
    num_chains: int = 8,
    num_warmup: int = 200,
    num_samples: int = 600,
    seed: int = 0,
    checkpoint: Path | None = None,
) -> HmcPosterior:
    """Draw from the posterior of a network as `scripts.hmc_problems` makes it for regression.

    Args:
        model: One hidden layer of tanh units, normal priors, one output with normal noise of a log-normal scale.
        data: All rows.
        num_chains: Chains, all in one pass, from draws of the prior.
        num_warmup: Transitions of each before.
        num_samples: Draws of each.
        seed: Makes the fit repeatable.
        checkpoint: A file that a stopped fit goes on from.

    Returns:
        Draws of all weights and the noise, the last layer drawn given the rest.
    """
    potential = CollapsedPotential(model, data)
    starts = torch.randn(
        num_chains, potential.size, dtype=torch.float64, generator=generator(derive_seed(seed, STARTS))
    )
    plan = Plan(num_samples, num_warmup, target_acceptance=ACCEPTANCE)
    told = Identity({"seed": seed, "chains": num_chains, "num_warmup": num_warmup}, {"num_samples": num_samples})
    watch = Watch(Checkpoint.of(checkpoint), told)
    chains = run(potential, _moved, starts, plan, derive_seed(seed, CHAINS), watch)
    noise = generator(derive_seed(seed, LAST_LAYERS))
    draws = torch.stack([potential.completed(chain, noise) for chain in chains.draws])
    tables = [
        {name: table for name, table in one.items() if name not in ("lp", "energy")}  # of the density that is left
        for one in (chains.statistics, chains.warmup_statistics)
    ]
    return HmcPosterior(
        model=model,
        draws=draws,
        buffers={},
        statistics=tables[0],
        warmup_statistics=tables[1],
        inverse_mass=chains.inverse_mass,
    )


def _moved(
    points: Points, potential: Potential, step_size: float, mass: Mass, noise: torch.Generator
) -> tuple[Points, Info]:
    """A transition whose acceptance is the mean over chains: a step for the slowest chain is too short for the rest."""
    kernel = Hmc(1, trajectory_length=LENGTH, most_steps=MOST_STEPS)
    after, info = kernel(points, potential, step_size, mass, noise)
    rate = info["acceptance_rate"]
    return after, {**info, "acceptance_rate": torch.full_like(rate, float(rate.mean()))}


@dataclass(frozen=True, eq=False)
class _LastLayer:
    """What is known of the last layer at C positions.

    Attributes:
        features: Phi, (C, N, H + 1).
        variances: sigma^2, (C,).
        factor: Lower Cholesky factor of M, (C, H + 1, H + 1).
        mean: m, (C, H + 1, 1).
        residuals: y - Phi m, (C, N, 1).
        failed: Where M has no such factor, (C,).
    """

    features: Tensor
    variances: Tensor
    factor: Tensor
    mean: Tensor
    residuals: Tensor
    failed: Tensor


class CollapsedPotential:
    """U and its gradient at white vectors: the hidden weights and biases, (D + 1, H), then the noise's scale.

    Attributes:
        size: Length of a vector.
        scale: Prior scale of the last layer's weights.
        last_bias_scale: Of its bias.
    """

    def __init__(self, model: BayesianNetwork, data: bq.Dataset) -> None:
        self.model, self.layout = model, Layout.of(model)
        weight, bias, last_weight, last_bias, noise = self.sites = list(self.layout.shapes)
        self.scales = {name: float(model.laws[name].stddev.flatten()[0]) for name in self.sites[:4]}
        self.log_noise = float(model.laws[noise].loc), float(model.laws[noise].scale)
        self.scale, self.last_bias_scale = self.scales[last_weight], self.scales[last_bias]
        self.num_units, num_inputs = self.layout.shapes[weight]
        self.size = (num_inputs + 1) * self.num_units + 1
        x, self.y = data.x.double(), data.y.double()
        self.inputs = torch.cat([x * self.scales[weight], torch.full_like(x[:, :1], self.scales[bias])], dim=1)

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        """See `Potential`, like the following."""
        values, gradients = self.at_rows(position.unsqueeze(0))
        return float(values[0]), gradients[0]

    def at_rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """As there; a few chains after another, whose units stay in a core's cache."""
        together = max(1, MOST_UNITS // (len(self.y) * self.num_units))
        parts = [self._together(part) for part in positions.split(together)]
        return torch.cat([values for values, _ in parts]), torch.cat([gradients for _, gradients in parts])

    def _together(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        last = self._last_layer(positions)
        inverse, variances = torch.cholesky_inverse(last.factor), last.variances
        spare = len(self.y) - self.num_units - 1
        squares = last.residuals.square().sum(dim=(1, 2))
        log_det = spare * variances.log() + 2 * last.factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        values = squares / variances + last.mean.square().sum(dim=(1, 2)) + log_det + positions.square().sum(dim=1)
        values = 0.5 * (values + len(self.y) * math.log(2 * math.pi))
        of_variance = spare / variances + inverse.diagonal(dim1=1, dim2=2).sum(dim=1) - squares / variances.square()
        of_noise = (of_variance * variances * self.log_noise[1]).unsqueeze(1)  # d sigma^2 / dz = 2 sigma^2 scale
        of_hidden = (self.inputs.T @ self._slopes(last, inverse)).flatten(1)
        gradients = torch.cat([of_hidden, of_noise], dim=1) + positions
        return values.masked_fill(last.failed | ~values.isfinite(), torch.inf), gradients

    def _slopes(self, last: _LastLayer, inverse: Tensor) -> Tensor:
        """dU/da where the units are tanh(a), (C, N, H)."""
        units = self.num_units
        slopes = (last.features @ inverse)[..., :units]
        weighted = last.residuals / last.variances[:, None, None]
        slopes.baddbmm_(weighted, last.mean[:, :units].transpose(1, 2), alpha=-1)
        return slopes * (self.scale - last.features[..., :units].square() / self.scale)

    def completed(self, positions: Tensor, noise: torch.Generator) -> Tensor:
        """Flat vectors of all sites, the last layer drawn given the rest."""
        last = self._last_layer(positions)
        white = torch.randn(last.mean.shape, dtype=torch.float64, generator=noise)
        spread = torch.linalg.solve_triangular(last.factor.transpose(1, 2), white, upper=True)
        drawn = (last.mean + last.variances.sqrt()[:, None, None] * spread)[..., 0]
        hidden = positions[:, :-1].view(len(positions), -1, self.num_units)
        values = [hidden[:, :-1].transpose(1, 2), hidden[:, -1], drawn[:, None, :-1], drawn[:, -1:]]
        theta = {name: self.scales[name] * value for name, value in zip(self.sites[:4], values, strict=True)}
        theta[self.sites[4]] = last.variances.sqrt()
        return self.layout.join(theta).to(self.model.dtype)

    def _last_layer(self, positions: Tensor) -> _LastLayer:
        loc, scale = self.log_noise
        variances = (2 * (loc + scale * positions[:, -1])).exp()
        units = (self.inputs @ positions[:, :-1].view(len(positions), -1, self.num_units)).tanh_()
        one = torch.full_like(units[..., :1], self.last_bias_scale)
        features = torch.cat([units * self.scale, one], dim=2)
        gram = features.transpose(1, 2) @ features
        gram.diagonal(dim1=1, dim2=2).add_(variances.unsqueeze(1))
        factor, failed = torch.linalg.cholesky_ex(gram)
        mean = torch.cholesky_solve(features.transpose(1, 2) @ self.y, factor)
        return _LastLayer(features, variances, factor, mean, self.y - features @ mean, failed > 0)
