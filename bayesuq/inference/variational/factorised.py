"""The factorised Gaussian of Bayes by Backprop: its ELBO as the minibatch loop takes it, and its posterior.

Reference:
    Blundell et al. 2015, Weight Uncertainty in Neural Networks, section 3.2 (with the KL in closed form).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.data import Batch
from bayesuq.inference.joint.fresh_draws import FreshDraws
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import FlatVector, TrainingNetwork, point_vectors, write_gradients
from bayesuq.inference.posteriors.importance import log_joints
from bayesuq.inference.posteriors.network import NormalMarginals
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.history import History
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.variational.activation_noise import ActivationNoise, Estimator, activation_noise
from bayesuq.inference.variational.elbo import Divergence
from bayesuq.inference.variational.guides import MeanFieldGuide
from bayesuq.inference.variational.tempering import Tempering
from bayesuq.loaders import Data
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork
from bayesuq.randomness import generator, resolve_seed

FORGETTING = 0.6  # means far from their place make the scales' gradients huge at first: forget that soon


class EvidenceObjective:
    """Minus the ELBO as a function of the guide's means and log scales, and of the point values.

    The gradient is that of `bayesuq.inference.variational.elbo`, written into buffers: one backward pass through the
    plain network gives g at the draw, and a few kernels over the flat vectors do the rest. What a step of a large
    network costs is the memory that these go through: little is set to zero to be added to, and where there is one
    draw, the means' gradient gathers in g.
    """

    def __init__(
        self,
        model: BayesianNetwork,
        guide: MeanFieldGuide,
        num_data: int,
        num_draws: int,
        scale_rate: float,
        tempering: Tempering | None = None,
        estimator: Estimator = "weights",
    ) -> None:
        self.model, self.guide, self.num_data = model, guide, num_data
        self.num_draws, self.scale_rate = num_draws, scale_rate
        self.tempering = Tempering(1.0, 1) if tempering is None else tempering
        self.loc, self.log_scale = guide.loc.detach(), guide.log_scale.detach()
        self.divergence = Divergence.of(model, guide)
        self.weights = FlatVector(guide.layout, self.loc)
        self.points = point_vectors(model, list(model.points))
        self.network = TrainingNetwork(model, {"random": self.weights, **self.points}, dropout=False)
        self.noise, self.scale = torch.zeros_like(self.loc), self.log_scale.exp()
        self.estimator = estimator
        self.activations = activation_noise(estimator, self.network)
        _check_closed_form(self.divergence, self.activations)
        alone = num_draws == 1 and not self.divergence.has_graph
        self.grad_loc = self.weights.grad if alone else torch.zeros_like(self.loc)
        self.grad_log_scale = torch.zeros_like(self.loc)
        guide.loc.grad, guide.log_scale.grad = self.grad_loc, self.grad_log_scale

    def objective(self) -> Objective:
        """What the loop needs."""
        points = {kind: vector.values for kind, vector in self.points.items()}
        drawn = FreshDraws(self.network, self._draw_afresh)
        return Objective(
            leaves={"loc": self.guide.loc, "log_scale": self.guide.log_scale, **points},
            rates={"log_scale": self.scale_rate, "unknowns": self.scale_rate},
            buffers={**self.network.buffers, "step": self.tempering.step},
            loss_and_grads=self.loss_and_grads,
            log_predictive=drawn.log_predictive,
            log_constant=lambda batch: self.network.log_constant(self.network.theta(), *batch),
            culprits=drawn.culprits,
            identity=f"mean field of {self.model}, {self.num_draws} draws a step, scale rate {self.scale_rate}, "
            f"KL weight {self.tempering.final}, estimator {self.estimator}",
            model=self.model,
            from_network=("loc", "weights"),
            options={"num_draws": self.num_draws, "estimator": self.estimator, "kl_weight": self.tempering.course},
            fixed_length=self.tempering.fixed_length,
            varies=self.tempering.varies,
            shared=lambda batch: self.network.statistics(batch.x),
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
            kl_weight=self.tempering.reached(),
        )

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the ELBO, estimated from a minibatch and `num_draws` draws, in nats."""
        for vector in self.points.values():
            vector.grad.zero_()
        if self.grad_loc is not self.weights.grad:
            self.grad_loc.zero_()
        torch.exp(self.log_scale, out=self.scale)
        weight = self.tempering.advance()
        value = weight * self.divergence.value(self.loc, self.log_scale, self.scale)
        self.divergence.begin_scale_gradient(self.scale, self.grad_log_scale, weight)
        for _ in range(self.num_draws):
            value += self._add_draw(batch, noise, weight)
        self.divergence.prior.add_normal_gradient(self.loc, self.grad_loc, weight)
        return value

    def _add_draw(self, batch: Batch, noise: torch.Generator, weight: float) -> Tensor:
        """One draw's part of the loss, its gradient added."""
        if self.activations is None:
            self._draw(noise)
        else:
            self.activations.draw(batch.x, self.loc, self.scale, self.noise, noise)
        loss = self._loss_at_draw(batch, weight)
        twins = [] if self.activations is None else [self.activations.twin]
        write_gradients(loss, [self.weights, *twins])
        gradient = self.weights.grad
        mixtures = self.divergence.add_mixtures(self.noise, self.weights.values, gradient, weight / self.num_draws)
        if self.activations is None:
            self.grad_log_scale.addcmul_(self.noise.mul_(gradient), self.scale)  # the noise is of no use any more
        else:
            self.activations.add_gradient(gradient, self.noise, self.scale, self.grad_log_scale)
        if self.grad_loc is not gradient:
            self.grad_loc.add_(gradient)
        return loss.detach() + mixtures

    def slope(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Mean over weights of the gradient along the log scales, at a fresh draw, in nats a weight and nat."""
        self.loss_and_grads(batch, noise)
        return self.grad_log_scale.double().mean()

    def _draw_afresh(self, noise: torch.Generator) -> None:
        """A draw at the scales as they stand after a step."""
        torch.exp(self.log_scale, out=self.scale)
        self._draw(noise)

    def _draw(self, noise: torch.Generator) -> None:
        """Move the network to loc + scale * eps, with fresh eps."""
        torch.addcmul(self.loc, self.scale, self.noise.normal_(generator=noise), out=self.weights.values)

    def _loss_at_draw(self, batch: Batch, weight: float) -> Tensor:
        """One draw's part of the loss: all but the fused divergence."""
        theta = self.network.theta()
        loss = self.network.total_log_prob(theta, batch) * (-self.num_data / (len(batch.x) * self.num_draws))
        if self.divergence.has_graph:
            flat = torch.cat([leaf.reshape(-1) for leaf in self.weights.leaves.values()])
            others = self.divergence.others(self.guide, self.noise, theta, flat, mixtures=False)
            loss = loss + others * (weight / self.num_draws)
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
        kl_weight: What the divergence was weighed with at the end of the epoch that was kept: 1 for Bayes; else the
            posterior is tempered.
    """

    model: BayesianNetwork
    loc: Tensor
    log_scale: Tensor
    points: Tensor
    buffers: Mapping[str, Tensor]
    history: History
    scale_movement: float
    kl_weight: float
    num_members: ClassVar[None] = None  # draws are without end

    @cached_property
    def scale(self) -> Tensor:
        """Standard deviations on the unconstrained scale, (R,)."""
        return self.log_scale.exp()

    @property
    def at_mean(self) -> MapPosterior:
        """The one network at the means, without epistemic uncertainty."""
        values = torch.cat([self.loc, self.points]) if len(self.points) else self.loc
        return MapPosterior(model=self.model, values=values, buffers=self.buffers, history=self.history)

    def marginals(self) -> NormalMarginals:
        """The law itself."""
        return NormalMarginals.of(self.model, self.at_mean.values, self.scale)

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

        `bayesuq.evaluation.diagnostics.fit_quality.evaluate_fit` reads from them how far q can be trusted.

        Args:
            data: What was fitted.
            num_samples: S.
            seed: The same seed gives the same draws as in `predict`.
        """
        key = resolve_seed(seed)
        flat = self._draws(range(check_count(num_samples, "num_samples")), key)
        joints = log_joints(self.model, flat, data, self.buffers)
        random = flat[:, : len(self.loc)].double()
        jacobians = Layout.of(self.model, self.model.laws).log_abs_det_jacobian(random)
        law = torch.distributions.Normal(self.loc.double(), self.log_scale.double().exp())
        return joints + jacobians - law.log_prob(random).sum(dim=1)


def _check_closed_form(divergence: Divergence, activations: ActivationNoise | None) -> None:
    """Refuse priors whose divergence is taken at a draw, where weights have none."""
    if activations is None:
        return
    drawn = [name for name in divergence.prior.others if not name.startswith(LIKELIHOOD)]
    if drawn:
        raise ValueError(
            f"{activations.option} draws no weights, and the divergence from the prior of {drawn[0]} needs a draw. Use "
            "normal priors, or estimator='weights'."
        )
