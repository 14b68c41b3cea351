"""Chains of NUTS over the hyperparameters of a Gaussian process, its functions integrated out.

    U(h) = -log p(y | x, h) - log p(h)

A step of the integrator costs O(N^3) time; the chains move in a few dimensions.

Reference:
    Neal 1997, Monte Carlo Implementation of Gaussian Process Models.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayesuq.inference.chains.nuts import Nuts
from bayesuq.inference.chains.processes import one_thread
from bayesuq.inference.chains.run import Chains, Plan, Watch, run
from bayesuq.inference.gp.algebra import NotPositiveDefiniteError
from bayesuq.inference.gp.hyperparameters import COUNTED, HyperparameterVector, counts_in_units
from bayesuq.inference.gp.marginal_likelihood import MarginalLikelihood, Observations, hyperparameters_of
from bayesuq.inference.gp.sampled import SampledGpPosterior
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.identity import Identity, digest
from bayesuq.inference.training.model_contents import probed_energy
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.randomness import derive_seed

NUM_TRIES = 100  # draws from the prior, until one has a finite density


@dataclass(frozen=True)
class Sampling:
    """How the hyperparameters are drawn.

    Attributes:
        num_samples: Kept draws of each chain.
        num_warmup: Transitions of each chain before.
        num_chains: Number of chains, one after another.
        max_tree_depth: NUTS makes at most 2^max_tree_depth - 1 leapfrog steps a transition.
    """

    num_samples: int
    num_warmup: int
    num_chains: int
    max_tree_depth: int = 8


class HyperparameterPotential:
    """U(h) = -log p(y | x, h) - log p(h), of the hyperparameters as they are stored."""

    def __init__(self, evidence: MarginalLikelihood, vector: HyperparameterVector) -> None:
        self.evidence, self.vector = evidence, vector

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        """U in nats and its gradient at one vector (P,); infinite where the covariance has no Cholesky factor."""
        self.vector.put(position)
        try:
            value = -(self.evidence() + self.vector.log_prior())
        except NotPositiveDefiniteError:
            return torch.inf, torch.zeros_like(position)
        value.backward()
        return value.item(), self.vector.gradient()

    def at_rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """U (C,) and its gradients (C, P), one after another."""
        found = [self.at(position) for position in positions]
        values = torch.tensor([value for value, _ in found], dtype=torch.float64, device=positions.device)
        return values, torch.stack([gradient for _, gradient in found])


def fit_sampled(
    model: GaussianProcess,
    data: Observations,
    sampling: Sampling,
    *,
    seed: int,
    progress: bool | None,
    checkpoint: Checkpoint | None,
) -> "SampledGpPosterior":
    """Chains from draws of the prior over hyperparameters."""
    prior = model.build(data.x, len(data.y))
    counts = counts_in_units(None if checkpoint is None else checkpoint.of_part("chain-0"))
    if counts:
        prior.standardise(data.x, data.weight_of_rows)
    vector = hyperparameters_of(model, prior, data, counts=counts)
    if not vector.leaves:
        raise ValueError("All hyperparameters are fixed; pass hyperparameters='optimise', which has nothing to do.")
    potential = HyperparameterPotential(MarginalLikelihood(model, prior, data), vector)
    plan = Plan(sampling.num_samples, sampling.num_warmup)
    fit = Identity({}) if checkpoint is None else _identity(potential, model, sampling, seed)
    parts = []
    for chain in range(sampling.num_chains):
        start = _start(potential, derive_seed(seed, 0, chain))
        file = None if checkpoint is None else checkpoint.of_part(f"chain-{chain}")
        own = replace(
            fit,
            options={**fit.options, "part": chain},
            contents={**fit.contents, "start": digest({"position": start})},
            before={**fit.before, "part": chain},
        )
        watch = Watch(file, own, progress, f"chain-{chain}")
        with one_thread():
            kernel = Nuts(sampling.max_tree_depth)
            parts.append(run(potential, kernel, start, plan, derive_seed(seed, 1, chain), watch))
    return _posterior(model, data, vector, Chains.joined(parts))


def _identity(potential: HyperparameterPotential, model: GaussianProcess, sampling: Sampling, seed: int) -> Identity:
    """What tells this fit from others, for checkpoints; each chain adds where it starts."""
    data = potential.evidence.data
    rows = digest({"x": data.x, "y": data.y, "weight": data.weight})
    lengths = ("num_samples", "num_chains")
    counted = {COUNTED: True} if potential.vector.counts else {}
    numbers = probed_energy(potential.at, potential.vector.flat())
    return Identity(
        options={
            "seed": seed,
            **{name: value for name, value in vars(sampling).items() if name not in lengths},
            **counted,
            "data": rows,
            "device": data.x.device.type,
            "hyperparameters": [leaf.name for leaf in potential.vector.leaves],
        },
        lengths={"num_samples": sampling.num_samples, "num_chains": sampling.num_chains},
        contents={"centre of the hyperparameters' prior": digest(potential.vector.start)},
        numbers=numbers,
        text=repr(model),
        before={"seed": seed, "plan": repr(sampling), "model": repr(model), "data": rows},
    )


def _start(potential: HyperparameterPotential, seed: int) -> Tensor:
    """A draw from the prior, (1, P), at which the density is finite."""
    for number in range(NUM_TRIES):
        potential.vector.draw_prior(derive_seed(seed, number))
        position = potential.vector.flat()
        if torch.isfinite(torch.tensor(potential.at(position)[0])):
            return position.unsqueeze(0)
    raise ValueError(
        f"None of {NUM_TRIES} draws from the hyperparameters' prior has a finite density. Standardise the data, or "
        "give narrower priors."
    )


def _posterior(
    model: GaussianProcess, data: Observations, vector: HyperparameterVector, chains: Chains
) -> "SampledGpPosterior":
    sizes = [leaf.value.numel() for leaf in vector.leaves]
    draws = vector.process.natural(
        {
            leaf.name: part.reshape(*part.shape[:2], *leaf.value.shape)
            for leaf, part in zip(vector.leaves, chains.draws.split(sizes, dim=2), strict=True)
        }
    )
    for name, value in vector.process.input_units().items():
        draws[name] = value.expand(*chains.draws.shape[:2], *value.shape)
    draws = {name: value.clone(memory_format=torch.contiguous_format) for name, value in draws.items()}
    weight = torch.ones(len(data.x), dtype=torch.float64, device=data.x.device) if data.weight is None else data.weight
    return SampledGpPosterior(
        model=model,
        hyperparameters=draws,
        x=data.x,
        y=data.y,
        weight=weight,
        statistics=chains.statistics,
        warmup_statistics=chains.warmup_statistics,
    )
