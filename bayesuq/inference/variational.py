"""Bayes by Backprop: a factorised Gaussian over the weights, fitted by stochastic variational inference.

It maximises the ELBO of `bayesuq.inference.elbo` over the means and the log scales of q = N(loc, diag scale^2), one
draw of the weights a minibatch by default.

Reference:
    Blundell et al. 2015, Weight Uncertainty in Neural Networks, section 3.2 (with the KL in closed form).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bayesuq.arrays import check_count, check_positive
from bayesuq.inference.convergence import scale_slope, warn_unless_learned
from bayesuq.inference.elbo import Divergence
from bayesuq.inference.guides import MeanFieldGuide, mean_field
from bayesuq.inference.history import History
from bayesuq.inference.optimize import (
    QUALITY,
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
from bayesuq.inference.weights import Layout, PointValues, WeightPosterior
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.options import suggests_names
from bayesuq.randomness import generator

VALIDATION_DRAWS = 8
SCALE_RATE = 2.0  # faster scales drown the signal in noise before the means have found it


@suggests_names
def fit(
    model: BayesianNetwork,
    data: Data,
    *,
    guide: Callable[[BayesianNetwork], MeanFieldGuide] = mean_field,
    num_draws: int = 1,
    scale_rate: float = SCALE_RATE,
    num_epochs: int = 100,
    batch_size: int = 128,
    learning_rate: float = 1e-2,
    schedule: Schedule = "cosine",
    max_grad_norm: float | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> "VariationalPosterior":
    """Fit a factorised Gaussian posterior by stochastic variational inference.

    Args:
        model: The joint density.
        data: Rows to fit, or a DataLoader of them.
        guide: From the model to the guide at its start; `functools.partial(mean_field, initial_scale=...)` sets the
            initial posterior scale.
        num_draws: Draws of the weights a step; more make the gradient less noisy at as many times the cost.
        scale_rate: Learning rate of the log scales (the posterior's and the likelihood's) over that of the means.
        num_epochs: This and the following: see `bayesuq.inference.optimize.Training`.
        batch_size: See there.
        learning_rate: See there; of the means.
        schedule: See there.
        max_grad_norm: See there.
        validation: See there; each epoch takes the same eight draws.
        patience: See there.
        device: See there.
        seed: See there.
        progress: See there.
        callbacks: See there.

    Returns:
        A posterior without end of draws.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options.
        ValueError: Data that the network or the likelihood does not take; options out of range.
        FloatingPointError: The loss stopped being finite.

    Warns:
        UserWarning: The posterior scales were not learned, or the ELBO was still rising.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> data = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])
        >>> fit(model, data, num_epochs=500, seed=0).predict(data.x, num_samples=10).epistemic.shape
        torch.Size([3, 1])
    """
    check_count(num_draws, "num_draws")
    check_positive(scale_rate, "scale_rate")
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
    with session(model, data, training) as (model, source, validation_source):
        evidence = EvidenceObjective(model, guide(model), source.num_data, num_draws, scale_rate)
        start = evidence.guide.log_scale.detach().clone()
        history = minimise(evidence.objective(), source, validation_source, training)
        movement = (evidence.guide.log_scale.detach() - start).abs().median()
        slope = scale_slope(evidence.loss, evidence.guide.log_scale, source, training.key(QUALITY))
    warn_unless_learned(slope, float(movement), len(history.loss))
    return evidence.posterior(history)


class EvidenceObjective:
    """Minus the ELBO as a function of the guide's mean and log scale and of the point values."""

    def __init__(
        self, model: BayesianNetwork, guide: MeanFieldGuide, num_data: int, num_draws: int, scale_rate: float
    ) -> None:
        self.model, self.guide, self.num_data = model, guide, num_data
        self.num_draws, self.scale_rate = num_draws, scale_rate
        self.divergence = Divergence.of(model, guide)
        self.points = PointValues(model, model.points)
        self.buffers = {name: buffer.detach().clone() for name, buffer in model.net.named_buffers()}
        self.training_tree = training_tree(model.net, dropout=False)
        self.evaluation_tree = share_tensors(model.net)

    def objective(self) -> Objective:
        """What the loop needs."""
        return Objective(
            leaves={"loc": self.guide.loc, "log_scale": self.guide.log_scale, **self.points.leaves},
            rates={"log_scale": self.scale_rate, "unknowns": self.scale_rate},
            buffers=self.buffers,
            loss=self.loss,
            log_predictive=self.log_predictive,
            culprits=self.culprits,
        )

    def posterior(self, history: History) -> "VariationalPosterior":
        """The fitted posterior, as it stands."""
        return VariationalPosterior(
            model=self.model,
            loc=self.guide.loc.detach().clone(),
            log_scale=self.guide.log_scale.detach().clone(),
            points=_joined_points(self.model, self.points),
            buffers=self.buffers,
            history=history,
        )

    def loss(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the ELBO, estimated from a minibatch and `num_draws` draws, in nats."""
        losses = [self._loss_at(batch, self._normal(noise)) for _ in range(self.num_draws)]
        return losses[0] if self.num_draws == 1 else torch.stack(losses).mean()

    def log_predictive(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """log of the mean over draws of p(y | x, theta), row by row."""
        draws = []
        for _ in range(VALIDATION_DRAWS):
            _, theta, _ = self.divergence.draw(self.guide, self._normal(noise))
            draws.append(self._log_likelihood(theta, batch, self.evaluation_tree))
        return torch.stack(draws).logsumexp(dim=0) - math.log(VALIDATION_DRAWS)

    def culprits(self, batch: Batch, noise: torch.Generator) -> list[str]:
        """Sites whose guide or draw is not finite, then `y`."""
        with torch.no_grad():
            flat, theta, _ = self.divergence.draw(self.guide, self._normal(noise))
            finite = flat.isfinite() & self.guide.log_scale.isfinite()
            names = [name for name, where in self.guide.layout.slices().items() if not finite[where].all()]
            terms = self._log_likelihood(theta, batch, self.evaluation_tree)
        return names if terms.isfinite().all() else [*names, "y"]

    def _normal(self, noise: torch.Generator) -> Tensor:
        return torch.empty_like(self.guide.loc, requires_grad=False).normal_(generator=noise)

    def _loss_at(self, batch: Batch, noise: Tensor) -> Tensor:
        _, theta, nats = self.divergence.draw(self.guide, noise)
        terms = self._log_likelihood(theta, batch, self.training_tree)
        return nats - self.num_data / len(batch.x) * terms.sum()

    def _log_likelihood(self, theta: dict[str, Tensor], batch: Batch, tree: nn.Module) -> Tensor:
        theta = {**theta, **self.points.theta()} if self.points.leaves else theta
        f = self.model.forward(theta, batch.x, net=tree, buffers=self.buffers)
        return self.model.likelihood_given(theta).log_prob(f, batch.y, batch.weight)


@dataclass(frozen=True, eq=False, kw_only=True)
class VariationalPosterior(WeightPosterior):
    """q = N(loc, diag scale^2) over the flat vector of the random sites; the other sites are point values.

    Attributes:
        model: The joint density.
        loc: Means, (R,).
        log_scale: Logarithms of the standard deviations, (R,).
        points: The flat vector of the point values, (K,).
        buffers: The network's buffers as trained.
        history: How the fit went.
    """

    model: BayesianNetwork
    loc: Tensor
    log_scale: Tensor
    points: Tensor
    buffers: Mapping[str, Tensor]
    history: History

    @property
    def num_members(self) -> None:
        """None: draws are without end."""
        return

    @cached_property
    def scale(self) -> Tensor:
        """Standard deviations on the unconstrained scale, (R,)."""
        return self.log_scale.exp()

    def guide(self) -> MeanFieldGuide:
        """The posterior as a Pyro guide."""
        return MeanFieldGuide(self.model, self.loc.clone(), self.log_scale.clone())

    def draw(self, index: int, seed: int) -> Tensor:
        """loc + scale * eps, and the point values."""
        noise = torch.empty_like(self.loc).normal_(generator=generator(seed, index, device=self.device))
        flat = noise.mul_(self.scale).add_(self.loc)
        return torch.cat([flat, self.points]) if len(self.points) else flat


def _joined_points(model: BayesianNetwork, points: PointValues) -> Tensor:
    layout = Layout.of(model, model.points)
    return (
        layout.join(points.theta()).detach() if layout.size else torch.empty(0, dtype=model.dtype, device=model.device)
    )
