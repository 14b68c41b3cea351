"""Bayes by Backprop: a factorised Gaussian over the weights, fitted by stochastic variational inference.

It maximises the ELBO of `bayesuq.inference.elbo` over the means and the log scales of q = N(loc, diag scale^2), one
draw of the weights a minibatch by default. Any other Pyro guide, and any Pyro program in the place of a network, take
Pyro's ordinary route (`bayesuq.inference.guided_program`).

Reference:
    Blundell et al. 2015, Weight Uncertainty in Neural Networks, section 3.2 (with the KL in closed form).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesuq.arrays import check_count, check_positive
from bayesuq.data import Dataset
from bayesuq.inference.checkpoint import Checkpoint
from bayesuq.inference.convergence import scale_slope, warn_unless_learned
from bayesuq.inference.correlated import (
    CorrelatedGuide,
    CorrelatedObjective,
    CorrelatedPosterior,
    full_rank,
    low_rank,
)
from bayesuq.inference.elbo import Divergence
from bayesuq.inference.guide_posterior import GuidePosterior, fit_guide
from bayesuq.inference.guides import MeanFieldGuide, autoguide, mean_field
from bayesuq.inference.history import History
from bayesuq.inference.importance import log_joints
from bayesuq.inference.minibatches import Batch, Data, count_batches
from bayesuq.inference.optimize import Objective, minimise
from bayesuq.inference.program_posterior import ProgramPosterior, fit_program, takes_num_data
from bayesuq.inference.programs import GuideBuilder, Program, factorised
from bayesuq.inference.training import QUALITY, Callback, Schedule, Training, session
from bayesuq.inference.training_network import FlatVector, TrainingNetwork, point_vectors
from bayesuq.inference.weights import Layout, WeightPosterior
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.options import suggests_names
from bayesuq.randomness import generator, resolve_seed

__all__ = ["VariationalPosterior", "autoguide", "fit", "full_rank", "low_rank", "mean_field"]

VALIDATION_DRAWS = 8
BATCH_SIZE = 128
LARGEST_RATE, STEPS_AT_LARGEST = 0.05, 500
FORGETTING = 0.6  # means far from their place make the scales' gradients huge at first: forget that soon


@suggests_names
def fit(
    model: BayesianNetwork | Program,
    data: Data,
    *,
    guide: GuideBuilder = mean_field,
    num_draws: int = 1,
    scale_rate: float = 1.0,
    num_epochs: int = 100,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    schedule: Schedule = "cosine",
    max_grad_norm: float | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    device: torch.device | str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: Checkpoint | str | PathLike[str] | None = None,
) -> "VariationalPosterior | CorrelatedPosterior | GuidePosterior | ProgramPosterior":
    """Fit an approximate posterior, by default a factorised Gaussian, by stochastic variational inference.

    Args:
        model: The joint density: a network, or a Pyro program of yours with global latents and an observed site `y`
            (see `bayesuq.inference.program_posterior`).
        data: Rows to fit, or a DataLoader of them.
        guide: From the model to a new guide at its start. `functools.partial(mean_field, initial_scale=...)` sets the
            initial posterior scale; `low_rank(rank)` and `full_rank` let weights correlate.
            `autoguide(AutoLowRankMultivariateNormal, rank=5)`, or any function that builds a Pyro guide, takes Pyro's
            ordinary, slower route; a guide that is a function itself is passed as `guide=lambda model: my_guide`.
        num_draws: Draws of the weights a step; more make the gradient less noisy at as many times the cost.
        scale_rate: Learning rate of the log scales (mean field's and the likelihood's) over that of the means.
        num_epochs: This and the following: see `bayesuq.inference.training.Training`.
        batch_size: See there. None takes 128; or all rows, for a program that does not take `num_data`.
        learning_rate: See there; of the means. None takes 0.05 for up to 500 steps, and less in proportion to
            1 / sqrt(steps) beyond: in a short fit at a small rate the scales, which have several nats to go, would stay
            where they start; at a large one, noise grows in a wide network before the means have found the signal.
        schedule: See there.
        max_grad_norm: See there.
        validation: See there; each epoch takes the same eight draws.
        patience: See there.
        device: See there.
        seed: See there.
        progress: See there.
        callbacks: See there.
        checkpoint: See there.

    Returns:
        A posterior without end of draws: a `VariationalPosterior` for mean field, a `CorrelatedPosterior` for low and
        full rank, a `GuidePosterior` for another guide, a `ProgramPosterior` for a program.

    Raises:
        TypeError: Arguments of the wrong kind, unknown options; a program whose `y` is of a family without predictive.
        ValueError: Data that the network or the likelihood does not take; options out of range; a guide whose sites are
            not the model's; a program without `y`, or with latents of single rows.
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
    is_program = _check_model_and_guide(model, guide)
    if batch_size is None:
        batch_size = len(data) if is_program and isinstance(data, Dataset) and not takes_num_data(model) else BATCH_SIZE
    if learning_rate is None:
        learning_rate = default_learning_rate(data, num_epochs, batch_size)
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
        callbacks=callbacks,
        checkpoint=checkpoint,
    )
    if not isinstance(model, BayesianNetwork):
        build = factorised if guide is mean_field else guide
        return fit_program(model, data, training, build, num_draws=num_draws)
    if not isinstance(guide(model), MeanFieldGuide | CorrelatedGuide):
        return fit_guide(model, data, training, guide, num_draws=num_draws, scale_rate=scale_rate)
    with session(model, data, training) as (model, source, validation_source):
        own: Any = guide(model)
        kind = EvidenceObjective if isinstance(own, MeanFieldGuide) else CorrelatedObjective
        evidence = kind(model, own, source.num_data, num_draws, scale_rate)
        start = evidence.log_scales()
        history = minimise(evidence.objective(), source, validation_source, training)
        movement = float((evidence.log_scales() - start).abs().median())
        fitted = evidence.posterior(history, movement)  # before further minibatches move BatchNorm's statistics
        slope = scale_slope(evidence.slope, evidence.guide.layout.size, source, training.key(QUALITY))
    warn_unless_learned(slope, movement, len(history.loss))
    return fitted


def default_learning_rate(data: Data, num_epochs: int, batch_size: int) -> float:
    """The learning rate that `fit` takes for None."""
    steps = check_count(num_epochs, "num_epochs") * count_batches(data, check_count(batch_size, "batch_size"))
    return LARGEST_RATE * min(1.0, (STEPS_AT_LARGEST / max(steps, 1)) ** 0.5)


class EvidenceObjective:
    """Minus the ELBO as a function of the guide's means and log scales, and of the point values.

    The gradient is that of `bayesuq.inference.elbo`, written into buffers: one backward pass through the plain network
    gives g at the draw, and a few kernels over the flat vectors do the rest.
    """

    def __init__(
        self, model: BayesianNetwork, guide: MeanFieldGuide, num_data: int, num_draws: int, scale_rate: float
    ) -> None:
        self.model, self.guide, self.num_data = model, guide, num_data
        self.num_draws, self.scale_rate = num_draws, scale_rate
        self.loc, self.log_scale = guide.loc.detach(), guide.log_scale.detach()
        self.divergence = Divergence.of(model, guide)
        self.weights = FlatVector(guide.layout, self.loc)
        self.points = point_vectors(model, list(model.points))
        self.network = TrainingNetwork(model, {"random": self.weights, **self.points}, dropout=False)
        self.noise, self.scale = torch.empty_like(self.loc), self.log_scale.exp()
        self.grad_loc, self.grad_log_scale = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
        guide.loc.grad, guide.log_scale.grad = self.grad_loc, self.grad_log_scale

    def objective(self) -> Objective:
        """What the loop needs."""
        points = {kind: vector.values for kind, vector in self.points.items()}
        return Objective(
            leaves={"loc": self.guide.loc, "log_scale": self.guide.log_scale, **points},
            rates={"log_scale": self.scale_rate, "unknowns": self.scale_rate},
            buffers=self.network.buffers,
            loss_and_grads=self.loss_and_grads,
            log_predictive=self.log_predictive,
            culprits=self.culprits,
            identity=f"mean field of {self.model}, {self.num_draws} draws a step, scale rate {self.scale_rate}",
            forgetting=FORGETTING,
        )

    def log_scales(self) -> Tensor:
        """Logarithms of the standard deviations, as they stand, (R,)."""
        return self.log_scale.clone()

    def posterior(self, history: History, scale_movement: float) -> "VariationalPosterior":
        """The fitted posterior, as it stands."""
        layout = Layout.of(self.model, self.model.points)
        return VariationalPosterior(
            model=self.model,
            loc=self.loc.clone(),
            log_scale=self.log_scale.clone(),
            points=layout.join(self.network.theta()).detach() if layout.size else self.loc.new_empty(0),
            buffers={name: buffer.clone() for name, buffer in self.network.buffers.items()},
            history=history,
            scale_movement=scale_movement,
        )

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the ELBO, estimated from a minibatch and `num_draws` draws, in nats."""
        for gradient in (self.grad_loc, self.grad_log_scale, *(vector.grad for vector in self.points.values())):
            gradient.zero_()
        torch.exp(self.log_scale, out=self.scale)
        value = self.divergence.value(self.loc, self.log_scale, self.scale)
        self.divergence.add_gradient(self.loc, self.scale, self.grad_loc, self.grad_log_scale)
        for _ in range(self.num_draws):
            self._draw(noise)
            self.weights.grad.zero_()
            loss = self._loss_at_draw(batch)
            loss.backward()
            value = value + loss.detach()
            self.grad_loc.add_(self.weights.grad)
            self.grad_log_scale.addcmul_(self.weights.grad.mul_(self.noise), self.scale)
        return value

    def slope(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Mean over weights of the gradient along the log scales, at a fresh draw, in nats a weight and nat."""
        self.loss_and_grads(batch, noise)
        return self.grad_log_scale.double().mean()

    def log_predictive(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """log of the mean over draws of p(y | x, theta), row by row."""
        torch.exp(self.log_scale, out=self.scale)
        draws = []
        for _ in range(VALIDATION_DRAWS):
            self._draw(noise)
            draws.append(self.network.log_prob(self.network.theta(), *batch))
        return torch.stack(draws).logsumexp(dim=0) - math.log(VALIDATION_DRAWS)

    def culprits(self, batch: Batch, noise: torch.Generator) -> list[str]:
        """Sites whose draw or log prior density is not finite, then `y`."""
        torch.exp(self.log_scale, out=self.scale)
        self._draw(noise)
        return self.network.culprits(self.network.theta(), *batch)

    def _draw(self, noise: torch.Generator) -> None:
        """Move the network to loc + scale * eps, with fresh eps."""
        torch.addcmul(self.loc, self.scale, self.noise.normal_(generator=noise), out=self.weights.values)

    def _loss_at_draw(self, batch: Batch) -> Tensor:
        """One draw's part of the loss: all but the fused divergence."""
        theta = self.network.theta()
        loss = self.network.total_log_prob(theta, *batch) * (-self.num_data / (len(batch.x) * self.num_draws))
        if self.divergence.prior.others:
            flat = torch.cat([leaf.reshape(-1) for leaf in self.weights.leaves.values()])
            loss = loss + self.divergence.others(self.guide, self.noise, theta, flat) / self.num_draws
        return loss


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class VariationalPosterior(WeightPosterior):
    """q = N(loc, diag scale^2) over the flat vector of the random sites; the other sites are point values.

    Attributes:
        model: The joint density.
        loc: Means, (R,).
        log_scale: Logarithms of the standard deviations, (R,).
        points: The flat vector of the point values, (K,).
        buffers: The network's buffers as trained.
        history: How the fit went.
        scale_movement: How far the median log scale moved in it, in nats.
    """

    model: BayesianNetwork
    loc: Tensor
    log_scale: Tensor
    points: Tensor
    buffers: Mapping[str, Tensor]
    history: History
    scale_movement: float

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
        flat = torch.addcmul(self.loc, noise, self.scale, out=noise)
        return torch.cat([flat, self.points]) if len(self.points) else flat

    def log_importance_ratios(self, data: Data, *, num_samples: int = 500, seed: int | None = None) -> Tensor:
        """log p(theta, y | x) - log q(theta) at S draws of q, (S,), float64, in nats: the cost of S forward passes.

        `bayesuq.evaluation.fit_quality.evaluate_fit` reads from them how far q can be trusted.

        Args:
            data: What was fitted.
            num_samples: S.
            seed: The same seed gives the same draws as in `predict`.
        """
        key = resolve_seed(seed)
        flat = self._draws(range(check_count(num_samples, "num_samples")), key)
        joints = log_joints(self.model, Layout.of(self.model).split(flat), data, self.buffers)
        random = flat[:, : len(self.loc)].double()
        jacobians = Layout.of(self.model, self.model.laws).log_abs_det_jacobian(random)
        law = torch.distributions.Normal(self.loc.double(), self.log_scale.double().exp())
        return joints + jacobians - law.log_prob(random).sum(dim=1)


def _check_model_and_guide(model: Any, guide: Any) -> bool:
    """Whether the model is a program."""
    if not isinstance(model, BayesianNetwork) and (not callable(model) or _is_network(model)):
        raise TypeError(
            "`model` must be a bayesuq.models.BayesianNetwork, or a Pyro program with a site `y`; got "
            f"{type(model).__name__}."
        )
    if isinstance(guide, nn.Module) or not callable(guide):
        raise TypeError(
            "`guide` must be a function from the model to a new guide, such as `autoguide(AutoNormal)`; got "
            f"{guide if isinstance(guide, str) else type(guide).__name__!r}."
        )
    return not isinstance(model, BayesianNetwork)


def _is_network(model: Any) -> bool:
    """A plain module is a network that someone forgot to wrap, and no program."""
    return isinstance(model, nn.Module) and not isinstance(model, PyroModule)
