"""The energy of a Pyro program on given rows, as chains move in it and modes are sought in it.

It is recorded once where the program runs the same way at every vector (`bayesuq.inference.joint.tape`); elsewhere the
program runs at each.
"""

import math

import torch
from torch import Tensor
from torch.distributions import biject_to

from bayesuq.data import Batch
from bayesuq.inference.joint.program_joint import UNSUPPORTED, ChangingSitesError, ProgramJoint, running
from bayesuq.inference.joint.programs import check_same_density
from bayesuq.inference.joint.tape import Played, recorded
from bayesuq.inputs import named_leaves

PROBES = (0.3, -0.2)  # vectors at which a recording is held against the program


class ProgramPotential:
    """The potential of a program on given rows.

    Attributes:
        joint: The joint density.
        rows: All data.
    """

    def __init__(self, joint: ProgramJoint, rows: Batch, *, with_volume: bool = True) -> None:
        """Record the potential where that is possible.

        Args:
            joint: The joint density.
            rows: All data.
            with_volume: Whether the density is that of the vector, or of the latents on their own support.

        Raises:
            ChangingDensityError: A density that is another each time it is asked for.
        """
        self.joint, self.rows, self.with_volume = joint, rows, with_volume
        probes = [joint.probe(value) for value in PROBES]
        with running():
            once, again = (self._run(probes[0])[0] for _ in range(2))
            check_same_density(-once, -again)
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

    def latents(self, positions: Tensor) -> dict[str, Tensor]:
        """The latents at vectors (S, P), each (S, ...), on the supports that they have at the real line's 0."""
        nodes = self.joint.call.trace(self.rows).nodes
        parts = self.joint.layout.split(positions)
        return {name: biject_to(nodes[name]["fn"].support)(part) for name, part in parts.items()}

    def work(self) -> int:
        """Numbers that one evaluation makes, at least."""
        return self.joint.layout.size + sum(leaf.numel() for leaf in named_leaves(self.rows.x).values())

    def can_vectorise(self) -> bool:
        """No: chains of a program run one after another."""
        return False

    def _run(self, position: Tensor) -> tuple[float, Tensor]:
        try:
            value, gradient = self.joint.value_and_grad(position, self.rows, with_volume=self.with_volume)
        except ChangingSitesError:
            raise
        except UNSUPPORTED:
            return math.inf, torch.zeros_like(position)
        number = float(value)
        return number if abs(number) < math.inf else math.inf, gradient

    def _record(self, probes: list[Tensor]) -> Played | None:
        try:
            return recorded(
                lambda flat: self.joint.value_and_grad(flat, self.rows, with_volume=self.with_volume), probes
            )
        except UNSUPPORTED:
            return None
