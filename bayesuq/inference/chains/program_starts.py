"""Where chains of a Pyro program begin: evenly on the real line, at draws of its prior, or of a posterior."""

import math
from typing import Literal

import torch
from pyro import poutine
from torch import Tensor

from bayesuq.inference.chains.starts import MOST_TRIES
from bayesuq.inference.joint.program_joint import running
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.joint.programs import is_subsample
from bayesuq.inference.posteriors.program import LatentPosterior
from bayesuq.randomness import derive_seed, generator, globally_isolated

ProgramStart = Literal["uniform", "prior"] | LatentPosterior
RADIUS = 2.0  # of uniform starts, as Stan's
EXTREME = 1e10  # nats: a recursion that runs off, from where a chain takes a thousand transitions to come back
TRIES_IF_EXTREME = 20  # of which the lowest is taken


def program_starts(potential: ProgramPotential, start: ProgramStart, num_chains: int, seed: int) -> Tensor:
    """A vector for each chain, (C, P); each depends on the seed and its chain alone.

    Raises:
        TypeError: Neither a name nor a posterior over a program.
        ValueError: A name that is none; a posterior of other latents; nowhere that was tried is the density finite.
    """
    if isinstance(start, str) and start not in ("uniform", "prior"):
        raise ValueError(f"`start` must be 'uniform', 'prior' or a posterior over the program; got {start!r}.")
    if not isinstance(start, str | LatentPosterior):
        raise TypeError(
            f"`start` must be 'uniform', 'prior' or a posterior over the program; got {type(start).__name__}."
        )
    return torch.stack([_first_finite(potential, start, chain, num_chains, seed) for chain in range(num_chains)])


def _first_finite(potential: ProgramPotential, start: ProgramStart, chain: int, num_chains: int, seed: int) -> Tensor:
    """The first draw at which the density is finite, or another where it is out of all bounds there."""
    first: tuple[float, Tensor] | None = None
    for attempt in range(MOST_TRIES):
        position = _drawn(potential, start, chain, num_chains, derive_seed(seed, chain, attempt))
        value, gradient = potential.at(position)
        if not abs(value) < math.inf or not gradient.isfinite().all():
            continue
        if start != "uniform" or value < EXTREME:
            return position
        first = (value, position) if first is None or value < first[0] else first
        if attempt >= TRIES_IF_EXTREME:
            break
    if first is not None:
        return first[1]
    raise ValueError(
        f"The program's density is not finite at any of {MOST_TRIES} starting points. Look whether its laws can give "
        "these targets, standardise the data, or pass a fitted posterior as `start`."
    )


def _drawn(potential: ProgramPotential, start: ProgramStart, chain: int, num_chains: int, key: int) -> Tensor:
    joint = potential.joint
    like = joint.probe(0.0)
    if isinstance(start, LatentPosterior):
        members = start.num_members
        index = chain if members is None else (chain * members) // num_chains
        return joint.flat(start.latents(index, key), potential.rows).to(like)
    if start == "uniform":
        share = torch.rand(len(like), dtype=like.dtype, generator=generator(key)).to(like.device)
        return RADIUS * (2 * share - 1)
    with running(), torch.no_grad(), globally_isolated(key, device=joint.device), poutine.trace() as tracer:
        joint.call.run(potential.rows, None)
    nodes = tracer.trace.nodes.items()
    theta = {name: site["value"] for name, site in nodes if site["type"] == "sample" and not is_subsample(site)}
    return joint.flat({name: theta[name] for name in joint.layout.shapes}, potential.rows).to(like)
