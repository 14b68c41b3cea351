"""Where chains begin: at draws from the prior, or from a posterior that was fitted before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors.network import check_same_sites
from bayesuq.inference.posteriors.prediction import draw_indices
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.precision import lost_steps
from bayesuq.randomness import derive_seed, isolated

Start = Literal["prior"] | WeightPosterior
MOST_TRIES = 100


@dataclass(frozen=True, eq=False)
class Constants:
    """What chains do not move.

    Attributes:
        fixed: Sites learned as point values, on their own support, by name.
        buffers: The network's buffers.
    """

    fixed: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: BayesianNetwork, start: Start) -> "Constants":
        """Those of a posterior; at the prior there are only the network's own buffers.

        Raises:
            TypeError: Neither "prior" nor a posterior over weights.
            ValueError: A posterior of another model; sites learned as point values, and no posterior to take them from;
                weights of low precision.
        """
        check_precision(model)
        if isinstance(start, WeightPosterior):
            theta = _theta(model, start, 0, 0)
            fixed = {name: theta[name] for name in model.points}
            return cls(fixed, {name: value.to(model.device) for name, value in start.buffers.items()})
        if not isinstance(start, str):
            raise TypeError(f"`start` must be 'prior' or a posterior over weights; got {type(start).__name__}.")
        if start != "prior":
            raise ValueError(f"`start` must be 'prior' or a posterior over weights; got {start!r}.")
        if model.points:
            raise ValueError(
                f"A sampler cannot learn point values; the model has {', '.join(model.points)}. Give them a prior, as "
                "in likelihoods.Normal(scale=priors.HalfNormal()), or pass a fitted posterior as `start`: they stay at "
                "its values."
            )
        return cls({}, dict(model.net.named_buffers()))

    def behind(self, model: BayesianNetwork, draws: Tensor) -> Tensor:
        """Draws of the random sites (C, D, P) with the point values behind them, as flat vectors of all sites are."""
        if not model.points:
            return draws
        points = Layout.of(model, model.points).join(self.fixed)
        return torch.cat([draws, points.expand(*draws.shape[:2], -1)], dim=2)

    def kept_buffers(self) -> dict[str, Tensor]:
        """A posterior's own copies of the buffers."""
        return {name: value.clone() for name, value in self.buffers.items()}


def check_precision(model: BayesianNetwork) -> None:
    """Refuse weights of low precision, of which steps and differences of energies are rounding.

    Raises:
        ValueError: Such weights.
    """
    lost = lost_steps([model.dtype])
    if lost:
        raise ValueError(f"Chains would stand still: {lost}.")


def starting_points(potential: NetworkPotential, start: Start, num_chains: int, seed: int) -> Tensor:
    """A vector of the random sites for each chain, (C, P); each depends on the seed and its chain alone.

    Raises:
        ValueError: Nowhere that was tried has the posterior a density.
    """
    rows = [_first_finite(potential, start, chain, num_chains, seed) for chain in range(num_chains)]
    return torch.stack(rows)


def _first_finite(potential: NetworkPotential, start: Start, chain: int, num_chains: int, seed: int) -> Tensor:
    for attempt in range(MOST_TRIES):
        key = derive_seed(seed, chain, attempt)
        if isinstance(start, WeightPosterior):
            theta = _theta(potential.model, start, _member(start, chain, num_chains), key)
        else:
            theta = _prior_draw(potential.model, key)
        position = potential.layout.join(theta)
        value, gradient = potential.at(position)
        if abs(value) < torch.inf and gradient.isfinite().all():
            return position
    raise ValueError(
        f"The log joint is not finite at any of {MOST_TRIES} starting points. Standardise the data, or choose a prior "
        "that is less wide."
    )


def _prior_draw(model: BayesianNetwork, key: int) -> dict[str, Tensor]:
    """Every random site, on its own support."""
    with isolated(key):
        return {name: law.sample() for name, law in model.laws.items()}


def _member(start: WeightPosterior, chain: int, num_chains: int) -> int:
    """Which draw a chain begins at: stored members evenly, again and again where they are fewer than the chains."""
    if start.num_members is None:
        return chain
    members = draw_indices(min(num_chains, start.num_members), start.num_members)
    return members[chain % len(members)]


def _theta(model: BayesianNetwork, start: WeightPosterior, index: int, seed: int) -> dict[str, Tensor]:
    """A draw of all sites, on their own support.

    Raises:
        ValueError: A posterior of another model.
    """
    check_same_sites(start, model, "start")
    theta = Layout.of(start.model).split(start.draw(index, seed))
    return {name: value.to(model.device, model.dtype) for name, value in theta.items()}
