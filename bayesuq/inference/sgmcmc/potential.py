"""The potential energy of stochastic gradient Markov chains: minus the log joint, estimated from a minibatch.

    U(u) = -log p(theta) - (N / B) sum_b w_b log p(y_b | f(x_b; theta)) - log |d theta / d u|,   theta = theta(u)

Over uniformly drawn minibatches its mean is that over all rows, and so is its gradient's.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.joint.layout import FlatPrior, Layout
from bayesuq.inference.joint.network import FlatVector, TrainingNetwork
from bayesuq.inputs import apply
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, share_tensors
from bayesuq.models.precision import raised
from bayesuq.models.spectral import with_exact_norms


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
        self.model, self.num_data, self.fixed, self.buffers = model, num_data, fixed, buffers
        self.layout = Layout.of(model, model.laws)
        self._prior = FlatPrior.of(model, self.layout)
        self._tree = with_exact_norms(share_tensors(model.net))
        self._vector = FlatVector(self.layout, self.layout.join(model.initial()))
        self._network = TrainingNetwork(model, {"random": self._vector}, dropout=False)
        with_exact_norms(self._network.evaluation)
        self._unknowns = {name: value for name, value in fixed.items() if name.startswith(LIKELIHOOD)}
        with torch.no_grad():
            for name, value in buffers.items():
                self._network.buffers[name].copy_(value)
            for name, parameter in self._network.training.named_parameters():
                if name in fixed:
                    parameter.requires_grad_(False).copy_(fixed[name])

    def energy(self, flat: Tensor, x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
        """U at one vector (P,), a 0-d tensor in nats, as a function that can be differentiated and vectorised."""
        theta = self.layout.split(flat)
        everything = {**theta, **self.fixed}
        f = self.model.forward(everything, x, net=self._tree, buffers=self.buffers)
        log_likelihood = self.model.likelihood_given(everything).log_prob(f, y, weight).sum()
        log_prior = self._prior.log_prob(flat, theta) + self.layout.log_abs_det_jacobian(flat)
        return -log_prior - self.num_data / len(y) * log_likelihood

    def at(self, positions: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """U (C,) and dU/du (C, P) at C vectors (C, P), each on a minibatch of its own, one after another."""
        values, gradients = torch.empty_like(positions[:, 0]), torch.empty_like(positions)
        for chain, batch in enumerate(batches):
            values[chain] = self._at_one(positions[chain], batch)
            gradients[chain] = self._vector.grad
        return values, gradients

    def at_rows(self, positions: Tensor, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """As `at`, in one vectorised pass, for minibatches of one size: the same numbers to rounding."""
        parts = [torch.stack(column) for column in zip(*(batch[:2] for batch in batches), strict=True)]
        weights = [batch.weight for batch in batches if batch.weight is not None]
        if weights:
            parts.append(torch.stack(weights))
        flat = positions.detach().requires_grad_()
        with torch.enable_grad():
            values = torch.func.vmap(self.energy)(flat, *parts)
            (gradients,) = torch.autograd.grad(values.sum(), flat)  # a chain moves its own term alone
        return values.detach(), gradients

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

    def _at_one(self, position: Tensor, batch: Batch) -> Tensor:
        """U; its gradient is left in the vector."""
        vector = self._vector
        vector.values.copy_(position)
        vector.grad.zero_()
        theta = vector.theta()
        likelihood = self.model.likelihood_given({**theta, **self._unknowns})
        f = raised(apply(self._network.evaluation, batch.x), position.dtype)
        terms = likelihood.log_prob(f, batch.y, batch.weight)
        loss = terms.sum() * (-self.num_data / len(batch.x))
        for name, law in self._prior.others.items():
            loss = loss - law.log_prob(theta[name])
        for name, transform in self.layout.transforms.items():
            loss = loss - transform.log_abs_det_jacobian(vector.leaves[name], theta[name]).sum()
        loss.backward()
        self._prior.add_normal_gradient(vector.values, vector.grad)
        return loss.detach() + self._prior.normal_energy(vector.values) - self._prior.log_normaliser
