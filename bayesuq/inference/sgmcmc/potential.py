"""The potential energy of stochastic gradient Markov chains: minus the log joint, estimated from a minibatch.

    U(u) = -log p(theta) - (N / B) sum_b w_b log p(y_b | f(x_b; theta)) - log |d theta / d u|,   theta = theta(u)

Over uniformly drawn minibatches its mean is that over all rows, and so is its gradient's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.joint.energy import FlatJoint, JointFunction
from bayesuq.inference.joint.program_joint import ProgramJoint, running
from bayesuq.models.bnn import BayesianNetwork


class MinibatchPotential:
    """The potential of a Bayesian network on the minibatches that it is given.

    Attributes:
        model: The joint density.
        layout: Of the random sites, which alone move.
        num_data: N.
    """

    def __init__(
        self, model: BayesianNetwork, num_data: int, fixed: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> None:
        """Lay out the sites.

        Args:
            model: The joint density.
            num_data: N.
            fixed: Values on their own support for all sites that are learned as point values.
            buffers: Values for the network's buffers.
        """
        self.model, self.num_data = model, num_data
        self._joint = FlatJoint.of_random(model, fixed, buffers)
        self._function = JointFunction.of_random(model, fixed, buffers)
        self._vector = self._joint.vectors["random"]
        self.layout = self._vector.layout

    def energy(self, flat: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """U at one vector (P,), a 0-d tensor in nats, as a function that can be differentiated and vectorised."""
        return self._function.energy({"random": flat}, x, y, weight, scale=self.num_data / len(y))

    def at(self, positions: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """U (C,) and dU/du (C, P) at C vectors (C, P), each on a minibatch of its own, one after another."""
        values, gradients = torch.empty_like(positions[:, 0]), torch.empty_like(positions)
        for chain, batch in enumerate(batches):
            self._vector.values.copy_(positions[chain])
            values[chain] = self._joint.value_and_grad(batch, self.num_data / len(batch.x))
            gradients[chain] = self._vector.grad
        return values, gradients

    def at_rows(self, positions: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """As `at`, in one vectorised pass, for minibatches of one size: the same numbers to rounding."""
        flats = positions.detach().requires_grad_()
        with torch.enable_grad():
            values = self.energies(flats, batches)
            (gradients,) = torch.autograd.grad(values.sum(), flats)  # a vector moves its own term alone
        return values.detach(), gradients

    def energies(self, positions: Tensor, batches: Sequence[Batch]) -> Tensor:
        """U (C,) at C vectors (C, P), each on a minibatch of its own, all of one size, in one vectorised pass."""
        parts = [torch.stack(column) for column in zip(*(batch[:2] for batch in batches), strict=True)]
        weights = [batch.weight for batch in batches if batch.weight is not None]
        if weights:
            parts.append(torch.stack(weights))
        return self._function.energies(positions, tuple(parts), self.num_data / len(batches[0].y))

    def can_vectorise(self, batch: Batch) -> bool:
        """Whether vmap can follow the network: not where it branches on values."""
        if not isinstance(batch.x, Tensor):  # several parts do not stack
            return False
        start = self._vector.values
        try:
            self.at_rows(torch.stack([start, start]), [batch, batch])
        except (RuntimeError, IndexError):
            return False
        return True


class ProgramMinibatchPotential:
    """The potential of a Pyro program on the minibatches that it is given, which scales its plate to `num_data`.

    Attributes:
        model: The joint density.
        layout: Of its latents.
        num_data: N.
    """

    def __init__(self, joint: ProgramJoint, num_data: int) -> None:
        self.model, self.layout, self.num_data = joint, joint.layout, num_data
        self._told = num_data if joint.call.takes_num_data else None

    def energy(self, flat: Tensor, x: Any, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """U at one vector (P,), a 0-d tensor in nats, as a function that can be differentiated."""
        with running():
            return self.model.energy(flat, Batch(x, y, weight), self._told)

    def at(self, positions: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """U (C,) and dU/du (C, P) at C vectors (C, P), each on a minibatch of its own, one after another."""
        with running():
            pairs = zip(positions, batches, strict=True)
            found = [self.model.value_and_grad(position, batch, self._told) for position, batch in pairs]
        values, gradients = zip(*found, strict=True)
        return torch.stack(values).to(positions), torch.stack(gradients)

    def at_rows(self, positions: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """As `at`: programs run one after another."""
        return self.at(positions, batches)

    def energies(self, positions: Tensor, batches: Sequence[Batch]) -> Tensor:
        """U (C,) at C vectors (C, P), each on a minibatch of its own, one after another."""
        return torch.stack([self.energy(row, *batch) for row, batch in zip(positions, batches, strict=True)])
