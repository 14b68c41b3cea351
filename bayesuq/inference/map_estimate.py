"""Maximum a posteriori: the one network that maximises the joint density; the softmax baseline.

    theta* = argmax log p(theta) + sum_n log p(y_n | f(x_n; theta))

by Adam on minibatches. The density is that of the sites on their own support (no Jacobian for a noise scale). Dropout
layers act while it trains, as a regulariser, and are the identity afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.inference.history import History
from bayesuq.inference.optimize import (
    Batch,
    Callback,
    Data,
    Objective,
    Schedule,
    Training,
    minimise,
    session,
    training_tree,
)
from bayesuq.inference.weights import FlatPrior, Layout, PointValues, WeightPosterior
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.options import suggests_names

SCALE_RATE = 10.0  # positive scales move on the log scale, over larger distances than weights do


@suggests_names
def fit(
    model: BayesianNetwork,
    data: Data,
    *,
    num_epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 3e-3,
    schedule: Schedule = "cosine",
    max_grad_norm: float | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> "MapPosterior":
    """Find the mode of the posterior, from the network's own weights.

    Args:
        model: The joint density.
        data: Rows to fit, or a DataLoader of them.
        num_epochs: This and the following: see `bayesuq.inference.optimize.Training`.
        batch_size: See there.
        learning_rate: See there; scales of the likelihood move ten times as fast.
        schedule: See there.
        max_grad_norm: See there.
        validation: See there.
        patience: See there.
        device: See there.
        seed: See there.
        progress: See there.
        callbacks: See there.

    Returns:
        A posterior of one member.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range.
        FloatingPointError: The loss stopped being finite.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_epochs=3, seed=0).predict(data.x).mean.shape
        torch.Size([3, 1])
    """
    training = Training(
        num_epochs=num_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule=schedule,
        max_grad_norm=max_grad_norm,
        validation=validation,
        patience=patience,
        device=device,
        seed=seed,
        progress=progress,
        callbacks=tuple(callbacks),
    )
    return fit_mode(model, data, training)


def fit_mode(model: BayesianNetwork, data: Data, training: Training) -> "MapPosterior":
    """As `fit`, its options packed."""
    with session(model, data, training) as (model, source, validation):
        mode = ModeObjective(model, source.num_data)
        history = minimise(mode.objective(), source, validation, training)
    return MapPosterior(model=model, values=mode.values(), buffers=mode.buffers, history=history)


class ModeObjective:
    """Minus the log joint as a function of two leaves: the weights, and the likelihood's unknowns on the log scale."""

    def __init__(self, model: BayesianNetwork, num_data: int) -> None:
        self.model, self.num_data = model, num_data
        self.points = PointValues(model, [*model.laws, *model.points])
        self.priors = {kind: FlatPrior.of(model, layout) for kind, layout in self.points.layouts.items()}
        self.buffers = {name: buffer.detach().clone() for name, buffer in model.net.named_buffers()}
        self.training_tree = training_tree(model.net, dropout=True)
        self.evaluation_tree = share_tensors(model.net)

    def objective(self) -> Objective:
        """What the loop needs."""
        return Objective(
            leaves=self.points.leaves,
            rates={"unknowns": SCALE_RATE},
            buffers=self.buffers,
            loss=self.loss,
            log_predictive=self.log_predictive,
            culprits=self.culprits,
        )

    def values(self) -> Tensor:
        """The flat vector of all sites, as it stands."""
        return Layout.of(self.model).join(self.points.theta()).detach()

    def log_prior(self, theta: Mapping[str, Tensor]) -> Tensor:
        """log p(theta) in nats."""
        return torch.stack([self.priors[kind].log_prob(leaf, theta) for kind, leaf in self.points.leaves.items()]).sum()

    def loss(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """Minus the log joint, estimated from a minibatch, in nats."""
        theta = self.points.theta()
        terms = self._log_likelihood(theta, batch, training=True)
        return -(self.log_prior(theta) + self.num_data / len(batch.x) * terms.sum())

    def log_predictive(self, batch: Batch, _noise: torch.Generator) -> Tensor:
        """log p(y | x, theta) of each row."""
        return self._log_likelihood(self.points.theta(), batch, training=False)

    def culprits(self, batch: Batch, _noise: torch.Generator) -> list[str]:
        """Sites whose values or log densities are not finite, then `y`."""
        with torch.no_grad():
            theta = self.points.theta()
            names = [
                name
                for name, value in theta.items()
                if not value.isfinite().all()
                or (name in self.model.laws and not self.model.laws[name].log_prob(value).isfinite())
            ]
            finite = self._log_likelihood(theta, batch, training=False).isfinite().all()
        return names if finite else [*names, "y"]

    def _log_likelihood(self, theta: Mapping[str, Tensor], batch: Batch, *, training: bool) -> Tensor:
        tree = self.training_tree if training else self.evaluation_tree
        f = self.model.forward(theta, batch.x, net=tree, buffers=self.buffers)
        return self.model.likelihood_given(theta).log_prob(f, batch.y, batch.weight)


@dataclass(frozen=True, eq=False, kw_only=True)
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

    @property
    def num_members(self) -> int:
        """One."""
        return 1

    def draw(self, index: int, seed: int) -> Tensor:  # noqa: ARG002 - there is one member
        """The one member."""
        return self.values
