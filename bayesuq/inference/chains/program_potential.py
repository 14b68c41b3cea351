"""The potential energy of a Pyro program, and where its chains begin.

It is recorded once where the program runs the same way at every vector (`bayesuq.inference.joint.tape`); elsewhere the
program runs at each.
"""

import math
from typing import Literal

import torch
from pyro import poutine
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.chains.starts import MOST_TRIES
from bayesuq.inference.joint.program_joint import UNSUPPORTED, ProgramJoint, running
from bayesuq.inference.joint.programs import is_subsample
from bayesuq.inference.joint.tape import Played, recorded
from bayesuq.inference.posteriors.program import LatentPosterior
from bayesuq.inputs import named_leaves
from bayesuq.randomness import derive_seed, generator, globally_isolated

ProgramStart = Literal["uniform", "prior"] | LatentPosterior
RADIUS = 2.0  # of uniform starts, as Stan's
PROBES = (0.3, -0.2)  # vectors at which a recording is held against the program


class ProgramPotential:
    """The potential of a program on given rows.

    Attributes:
        joint: The joint density.
        rows: All data.
    """

    def __init__(self, joint: ProgramJoint, rows: Batch) -> None:
        """Record the potential where that is possible.

        Raises:
            ValueError: A density that is another each time it is asked for.
        """
        self.joint, self.rows = joint, rows
        probes = [joint.probe(value) for value in PROBES]
        with running():
            once, again = (self._run(probes[0])[0] for _ in range(2))
            if once != again and not (math.isnan(once) or math.isnan(again)):
                raise ValueError(
                    "The program draws numbers beside its sites: at the same latents its density was "
                    f"{-once:.6g}, and then {-again:.6g}. Draw them by pyro.sample, or put its networks into eval()."
                )
            self._played = self._record(probes) if joint.device.type == "cpu" else None

    def at(self, position: Tensor) -> tuple[float, Tensor]:
        """U in nats and dU/du (P,) at one vector (P,); infinite where a law does not take its numbers."""
        if self._played is None:
            with running():
                return self._run(position)
        try:
            found, gradient = self._played(position)
        except UNSUPPORTED:
            return math.inf, torch.zeros_like(position)
        value = float(found)
        return value if abs(value) < math.inf else math.inf, gradient

    def at_rows(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """U (C,) in float64 and dU/du (C, P) at C vectors (C, P), one after another."""
        values, gradients = zip(*(self.at(position) for position in positions), strict=True)
        return torch.tensor(values, dtype=torch.float64, device=positions.device), torch.stack(gradients)

    def work(self) -> int:
        """Numbers that one evaluation makes, at least."""
        return self.joint.layout.size + sum(leaf.numel() for leaf in named_leaves(self.rows.x).values())

    def can_vectorise(self) -> bool:
        """No: chains of a program run one after another."""
        return False

    def _run(self, position: Tensor) -> tuple[float, Tensor]:
        try:
            value, gradient = self.joint.value_and_grad(position, self.rows)
        except UNSUPPORTED as error:
            if isinstance(error, ValueError) and "sites must not change" in str(error):
                raise
            return math.inf, torch.zeros_like(position)
        number = float(value)
        return number if abs(number) < math.inf else math.inf, gradient

    def _record(self, probes: list[Tensor]) -> Played | None:
        try:
            return recorded(lambda flat: self.joint.value_and_grad(flat, self.rows), probes)
        except UNSUPPORTED:
            return None


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
    for attempt in range(MOST_TRIES):
        position = _drawn(potential, start, chain, num_chains, derive_seed(seed, chain, attempt))
        value, gradient = potential.at(position)
        if abs(value) < math.inf and gradient.isfinite().all():
            return position
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
