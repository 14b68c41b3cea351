"""Maximum a posteriori: the one network that maximises the joint density; the softmax baseline.

    theta* = argmax log p(theta) + sum_n log p(y_n | f(x_n; theta))

by Adam on minibatches. The density is that of the sites on their own support (no Jacobian for a noise scale). Dropout
layers act while it trains, as a regulariser, and are the identity afterwards.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Unpack, cast

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.joint.energy import FlatJoint
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import point_vectors
from bayesuq.inference.joint.program_call import Observed, check_unnamed
from bayesuq.inference.joint.programs import Program, is_program
from bayesuq.inference.posteriors.heads import on_features
from bayesuq.inference.posteriors.program_mode import ProgramMode, fit_program_mode
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.history import History
from bayesuq.inference.training.loop import Objective, minimise
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.options import Training, TrainingOptions, session, training_options
from bayesuq.inference.training.workers import Group, check_alone
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork

__all__ = ["fit"]
__dir__ = __all__.copy

LEARNING_RATE = 3e-3
ADVERSARIAL_SHARE = 0.01  # of each input's range
SCALE_RATE = 10.0  # positive scales move on the log scale, over larger distances than weights do


@training_options(learning_rate=LEARNING_RATE)
@on_features(drops=True)
def fit(
    model: BayesianNetwork | Program,
    data: Data,
    *,
    observed: Observed = None,
    adversarial: bool = False,
    data_parallel: bool | Group = False,
    **options: Unpack[TrainingOptions],
) -> "MapPosterior | ProgramMode":
    """Find the mode of the posterior, from the network's own weights.

    Args:
        model: The joint density: a network, or a Pyro program, whose mode is sought from numbers between -2 and 2 on
            the real line, by Adam and then, where all rows are in memory, by L-BFGS.
        data: Rows to fit, or a DataLoader of them.
        observed: Of a program, the names of its observed sites: see `hmc.fit`.
        adversarial: Whether half of the likelihood is that of inputs moved by 1 % of their range, each in the direction
            that makes its target least likely (Goodfellow et al. 2015; Lakshminarayanan et al. 2017, section 2.3).
        data_parallel: Whether the processes that `torchrun` has started, or those of a `torch.distributed` group, fit
            one posterior together: each reads its part of `data`, or rows of its own, in minibatches of `batch_size`.
        learning_rate: Adam's step size at the start; scales of the likelihood move ten times as fast.

    Returns:
        A posterior of one member: a `MapPosterior`, or the `ProgramMode` of a program.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range.
        FloatingPointError: The loss stopped being finite.

    Warns:
        ConvergenceWarning: The loss was still falling; or the mode predicts its own rows no better than a constant.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_epochs=3, seed=0).predict(data.x).mean.shape
        torch.Size([3, 1])
    """
    if is_program(model):
        if adversarial:
            raise ValueError("`adversarial` moves the inputs of a network; leave it out for a program.")
        check_alone(data_parallel, "the mode of a program")
        return fit_program_mode(model, data, Training.of(options), observed)
    check_unnamed(observed)
    training = Training.of(options, data_parallel=data_parallel)
    return fit_mode(cast(BayesianNetwork, model), data, training, adversarial=adversarial)


def fit_mode(
    model: BayesianNetwork, data: Data, training: Training, *, adversarial: bool = False, fixed_start: bool = False
) -> "MapPosterior":
    """As `fit`, its options packed; with a fixed start, a checkpoint that began at other weights is another fit's."""
    with session(model, data, training, takes_losses=True) as (model, source, validation):
        step = adversarial_step(source) if adversarial else None
        mode = ModeObjective(model, source.num_data, adversarial_step=step)
        objective = replace(mode.objective(), from_network=()) if fixed_start else mode.objective()
        return mode.posterior(minimise(objective, source, validation, training))


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

    def posterior(self, history: History) -> "MapPosterior":
        """The fitted posterior, as it stands."""
        return MapPosterior(
            model=self.model,
            values=Layout.of(self.model).join(self.network.theta()).detach(),
            buffers={name: buffer.clone() for name, buffer in self.network.buffers.items()},
            history=history,
        )

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the log joint, estimated from a minibatch, in nats."""
        return self.joint.value_and_grad(batch, self.num_data / len(batch.x), noise)

    def row_losses(self, batch: Batch, noise: torch.Generator) -> Tensor | None:
        """Minus the log joint by each row alone, per data point, (B,), in nats; None where nothing is drawn."""
        return self.joint.by_rows(batch, self.num_data, noise) if self.network.is_random else None

    def _log_likelihood(self, theta: Mapping[str, Tensor], batch: Batch, noise: torch.Generator | None) -> Tensor:
        if self.adversarial_step is None:
            return self.network.total_log_prob(theta, *batch, noise)
        x = batch.x.detach().requires_grad_()
        clean = self.network.total_log_prob(theta, x, batch.y, batch.weight, noise)
        (direction,) = torch.autograd.grad(clean, [x], retain_graph=True, allow_unused=True)
        check_moves(direction)
        moved = batch.x - self.adversarial_step * direction.sign()
        return 0.5 * (clean + self.network.total_log_prob(theta, moved, batch.y, batch.weight, noise))

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

    @property
    def num_members(self) -> int:
        """One."""
        return 1

    def draw(self, index: int, seed: int) -> Tensor:  # noqa: ARG002 - there is one member
        """The one member."""
        return self.values
