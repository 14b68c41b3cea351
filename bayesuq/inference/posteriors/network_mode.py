"""The mode of a network's joint density, by Adam on minibatches: what other methods start from, or are made of.

theta* = argmax log p(theta, y | x)      of the sites on their own support (no Jacobian for a noise scale)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.joint.energy import FlatJoint
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import point_vectors
from bayesuq.inference.posteriors.memorised import warn_if_memorised
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.history import UNTRAINED, History
from bayesuq.inference.training.loop import minimise
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.options import Training, session
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork

LEARNING_RATE = 3e-3
ADVERSARIAL_SHARE = 0.01  # of each input's range
SCALE_RATE = 10.0  # positive scales move on the log scale, over larger distances than weights do


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class MapPosterior(WeightPosterior):
    """All mass on one network.

    Attributes:
        model: The joint density.
        values: The flat vector (P,) of every site.
        buffers: The network's buffers as trained.
        history: How the fit went.
    """

    model: BayesianNetwork
    values: Tensor
    buffers: Mapping[str, Tensor]
    history: History
    is_mode: ClassVar[bool] = True

    @classmethod
    def of(cls, model: BayesianNetwork) -> Self:
        """The network as it is, which somebody else has trained."""
        return cls(
            model=model,
            values=Layout.of(model).join(model.initial()),
            buffers={name: buffer.clone() for name, buffer in model.net.named_buffers()},
            history=UNTRAINED,
        )

    @property
    def num_members(self) -> int:
        """One."""
        return 1

    def draw(self, index: int, seed: int) -> Tensor:  # noqa: ARG002 - there is one member
        """The one member."""
        return self.values


def fit_mode(
    model: BayesianNetwork, data: Data, training: Training, *, adversarial: bool = False, fixed_start: bool = False
) -> MapPosterior:
    """The mode; see `bayesuq.inference.map_estimate.fit`, whose options are packed here.

    With a fixed start, a checkpoint that began at other weights is another fit's.
    """
    with session(model, data, training, takes_losses=True) as (model, source, validation):
        step = adversarial_step(source) if adversarial else None
        mode = ModeObjective(model, source.num_data, adversarial_step=step)
        objective = replace(mode.objective(), from_network=()) if fixed_start else mode.objective()
        posterior = mode.posterior(minimise(objective, source, validation, training))
        if validation is None and not adversarial and not source.workers.are_together:
            warn_if_memorised(posterior, source)
    return posterior


def adversarial_step(source: Source) -> Tensor:
    """How far inputs are moved, as one row of x.

    Raises:
        ValueError: Whole-number inputs, which nothing lies between, or several parts.
    """
    x = source.rows.x
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(
            "`adversarial` moves inputs a little; that needs one tensor of real numbers. Pass adversarial=False."
        )
    return ADVERSARIAL_SHARE * source.input_range()


class ModeObjective:
    """Minus the log joint as a function of the weights, and of the likelihood's unknowns on the log scale.

    With an adversarial step, (...) as one row of x, the likelihood is the mean of that of x and of
    x - step * sign(d log p(y | f(x)) / dx): the mean, not the paper's sum, so that the prior keeps its weight.
    """

    def __init__(self, model: BayesianNetwork, num_data: int, *, adversarial_step: Tensor | None = None) -> None:
        self.model, self.num_data, self.adversarial_step = model, num_data, adversarial_step
        self.layout = Layout.of(model)
        self.vectors = point_vectors(model, [*model.laws, *model.points])
        self.joint = FlatJoint(model, self.vectors, dropout=True, log_likelihood=self._log_likelihood)
        self.network = self.joint.network

    def objective(self) -> Objective:
        """What the loop needs."""
        return Objective(
            leaves={kind: vector.values for kind, vector in self.vectors.items()},
            rates={"unknowns": SCALE_RATE},
            buffers=self.network.buffers,
            loss_and_grads=self.loss_and_grads,
            log_predictive=self.log_predictive,
            culprits=self.culprits,
            identity=f"{'mode' if self.adversarial_step is None else 'adversarial mode'} of {self.model}",
            log_constant=lambda batch: self.network.log_constant(self.network.theta(), *batch),
            model=self.model,
            from_network=("weights",),
            row_losses=self.row_losses if self.adversarial_step is None else None,
            varies=lambda: None,
            shared=lambda batch: self.network.statistics(batch.x),
        )

    def posterior(self, history: History) -> MapPosterior:
        """The fitted posterior, as it stands."""
        return MapPosterior(
            model=self.model,
            values=self.layout.join(self.network.theta()).detach(),
            buffers={name: buffer.clone() for name, buffer in self.network.buffers.items()},
            history=history,
        )

    def flat(self) -> Tensor:
        """The unconstrained vector (P,) of all sites, as it stands."""
        leaves = {name: leaf for vector in self.vectors.values() for name, leaf in vector.leaves.items()}
        return torch.cat([leaves[name].detach().reshape(-1) for name in self.layout.shapes])

    @torch.no_grad()
    def move_to(self, flat: Tensor) -> None:
        """Put such a vector, of any device, into the network."""
        leaves = {name: leaf for vector in self.vectors.values() for name, leaf in vector.leaves.items()}
        for name, where in self.layout.slices().items():
            leaves[name].copy_(flat[where].view(self.layout.shapes[name]))

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the log joint, estimated from a minibatch, in nats."""
        return self.joint.value_and_grad(batch, self.num_data / len(batch.x), noise)

    def row_losses(self, batch: Batch, noise: torch.Generator) -> Tensor | None:
        """Minus the log joint by each row alone, per data point, (B,), in nats; None where nothing is drawn."""
        return self.joint.by_rows(batch, self.num_data, noise) if self.network.is_random else None

    def _log_likelihood(self, theta: Mapping[str, Tensor], batch: Batch, noise: torch.Generator | None) -> Tensor:
        if self.adversarial_step is None:
            return self.network.total_log_prob(theta, batch, noise)
        x = batch.x.detach().requires_grad_()
        clean = self.network.total_log_prob(theta, batch._replace(x=x), noise)
        (direction,) = torch.autograd.grad(clean, [x], retain_graph=True, allow_unused=True)
        check_moves(direction)
        moved = batch.x - self.adversarial_step * direction.sign()
        return 0.5 * (clean + self.network.total_log_prob(theta, batch._replace(x=moved), noise))

    def log_predictive(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """log p(y | x, theta) of each row."""
        return self.network.log_prob(self.network.theta(), *batch)

    def culprits(self, batch: Batch, _noise: torch.Generator) -> list[str]:
        """Sites whose values or log densities are not finite, then `y`."""
        return self.network.culprits(self.network.theta(), *batch)


def check_moves(direction: Tensor | None) -> None:
    """Refuse adversarial inputs for a network whose outputs have no derivative in them.

    Raises:
        ValueError: The gradient is None.
    """
    if direction is None:
        raise ValueError(
            "`adversarial=True` moves inputs along the gradient in `x`; this network has none, as embeddings of whole "
            "numbers have none. Leave it out."
        )
