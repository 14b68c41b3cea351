"""Gaussian posteriors whose weights are correlated: a low-rank or a full covariance, by the fast route of mean field.

With scales s and noise eps ~ N(0, I),

    low rank:   theta = loc + s * (eps_1 + A eps_2),   A (R, rank)                   Cov = S (I + A A^T) S
    full rank:  theta = loc + s * (eps + U eps),       U (R, R) strictly lower       Cov = S (I + U)(I + U)^T S

so that A = 0 and U = 0 are mean field, and what is learned in them has no unit. Entropies and the divergence from
normal priors are in closed form; only the likelihood's part is drawn.

Reference:
    Ong et al. 2018, Gaussian Variational Approximation With a Factor Covariance Structure, section 2; Kucukelbir et al.
    2017, Automatic Differentiation Variational Inference, section 2.4 (full rank).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.data import Batch
from bayesuq.inference.joint.energy import FlatJoint
from bayesuq.inference.joint.fresh_draws import FreshDraws
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.network import FlatVector, point_vectors
from bayesuq.inference.posteriors.importance import log_joints
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.inference.training.history import History
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.variational.factorised import FORGETTING
from bayesuq.inference.variational.guides import CorrelatedGuide, FullRankGuide, LowRankGuide
from bayesuq.inference.variational.tempering import Tempering
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import derive_seed, generator, resolve_seed

GUIDES: dict[str, type[CorrelatedGuide]] = {"low_rank": LowRankGuide, "full_rank": FullRankGuide}


class CorrelatedObjective:
    """Minus the ELBO as a function of a correlated guide's parameters, and of the point values."""

    def __init__(
        self,
        model: BayesianNetwork,
        guide: CorrelatedGuide,
        num_data: int,
        num_draws: int,
        scale_rate: float,
        tempering: Tempering | None = None,
    ) -> None:
        self.model, self.guide, self.num_data = model, guide, num_data
        self.num_draws, self.scale_rate = num_draws, scale_rate
        self.tempering = Tempering(1.0, 1) if tempering is None else tempering
        self.weights = FlatVector(guide.layout, guide.loc.detach())
        self.points = point_vectors(model, list(model.points))
        self.joint = FlatJoint(model, {"random": self.weights, **self.points}, with_volume=True)
        self.network, self.prior = self.joint.network, self.joint.priors["random"]

    def objective(self) -> Objective:
        """What the loop needs."""
        points = {kind: vector.values for kind, vector in self.points.items()}
        drawn = FreshDraws(self.network, self._draw)
        guide = self.guide
        return Objective(
            leaves={"loc": guide.loc, "log_scale": guide.log_scale, "factor": guide.factor, **points},
            rates={"log_scale": self.scale_rate, "unknowns": self.scale_rate},
            buffers={**self.network.buffers, "step": self.tempering.step},
            loss_and_grads=self.loss_and_grads,
            log_predictive=drawn.log_predictive,
            log_constant=lambda batch: self.network.log_constant(self.network.theta(), *batch),
            culprits=drawn.culprits,
            forgetting=FORGETTING,
            identity=f"{type(guide).__name__} of {self.model}, {self.num_draws} draws a step, scale rate "
            f"{self.scale_rate}, KL weight {self.tempering.final}",
            model=self.model,
            from_network=("loc", "weights"),
            options={"num_draws": self.num_draws, "kl_weight": self.tempering.course},
            fixed_length=self.tempering.fixed_length,
            varies=self.tempering.varies,
            shared=lambda batch: self.network.statistics(batch.x),
        )

    def divergence(self) -> Tensor:
        """KL(q || p), less what the sites that are not normal add at a draw, in nats."""
        energy = self.prior.normal_energy(self.guide.loc, self.guide.marginal_scale())
        return energy - self.prior.log_normaliser - self.guide.entropy()

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the ELBO, estimated from a minibatch and `num_draws` draws, in nats."""
        for parameter in self.guide.parameters():
            parameter.grad = None
        for vector in self.points.values():
            vector.grad.zero_()
        weight = self.tempering.advance()
        total = weight * self.divergence()
        value = total.detach()
        for _ in range(self.num_draws):
            flat = self._draw(noise)
            self.weights.grad.zero_()
            loss = self._loss_at_draw(batch, weight)
            loss.backward()
            value = value + loss.detach()
            total = total + flat.dot(self.weights.grad.clone())  # the gradient at the draw, carried on to the guide
        total.backward()
        return value

    def slope(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Mean over weights of the gradient along the log scales, at a fresh draw, in nats a weight and nat."""
        self.loss_and_grads(batch, noise)
        gradient = self.guide.log_scale.grad
        return torch.zeros(()) if gradient is None else gradient.double().mean()

    def log_scales(self) -> Tensor:
        """Logarithms of the marginal standard deviations, as they stand, (R,)."""
        with torch.no_grad():
            return self.guide.marginal_scale().log()

    def posterior(self, history: History, scale_movement: float) -> "CorrelatedPosterior":
        """The fitted posterior, as it stands."""
        layout = Layout.of(self.model, self.model.points)
        guide = self.guide
        return CorrelatedPosterior(
            model=self.model,
            structure=next(name for name, kind in GUIDES.items() if isinstance(guide, kind)),
            loc=guide.loc.detach().clone(),
            log_scale=guide.log_scale.detach().clone(),
            factor=guide.factor.detach().clone(),
            points=layout.join(self.network.theta()).detach() if layout.size else guide.loc.new_empty(0),
            buffers={name: buffer.clone() for name, buffer in self.network.buffers.items()},
            history=history,
            scale_movement=scale_movement,
            kl_weight=self.tempering.reached(),
        )

    def _draw(self, noise: torch.Generator) -> Tensor:
        """Move the network to a fresh draw."""
        loc = self.guide.loc
        eps = torch.randn(self.guide.num_noise, generator=noise, device=loc.device, dtype=loc.dtype)
        flat = self.guide.transform(eps)
        self.weights.values.copy_(flat.detach())
        return flat

    def _loss_at_draw(self, batch: Batch, weight: float) -> Tensor:
        """One draw's part of the loss: likelihood, and the priors that are not normal."""
        theta = self.network.theta()
        loss = self.network.total_log_prob(theta, batch) * (-self.num_data / len(batch.x))
        for term in self.joint.irregular(theta):
            loss = loss - weight * term
        return loss / self.num_draws


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CorrelatedPosterior(WeightPosterior):
    """q = N(loc, Cov) over the flat vector of the random sites; the other sites are point values.

    Attributes:
        model: The joint density.
        structure: "low_rank" or "full_rank": what `factor` is.
        loc: Means, (R,).
        log_scale: Logarithms of s, (R,).
        factor: A, (R, rank), or U, (R, R).
        points: The flat vector of the point values, (K,).
        buffers: The network's buffers as trained.
        history: How the fit went.
        scale_movement: How far the median log marginal scale moved in it, in nats.
        kl_weight: What the divergence was weighed with at the end of the epoch that was kept: 1 for Bayes; else the
            posterior is tempered.
    """

    model: BayesianNetwork
    structure: str
    loc: Tensor
    log_scale: Tensor
    factor: Tensor
    points: Tensor
    buffers: Mapping[str, Tensor]
    history: History
    scale_movement: float
    kl_weight: float
    num_members: ClassVar[None] = None  # draws are without end

    def guide(self) -> CorrelatedGuide:
        """The posterior as a Pyro guide."""
        return GUIDES[self.structure](self.model, self.loc.clone(), self.log_scale.clone(), self.factor.clone())

    def draw(self, index: int, seed: int) -> Tensor:
        """A draw of q, and the point values."""
        noise = torch.empty(self._guide.num_noise, device=self.device, dtype=self.loc.dtype)
        noise.normal_(generator=generator(derive_seed(seed, index), device=self.device))
        with torch.no_grad():
            flat = self._guide.transform(noise)
        return torch.cat([flat, self.points]) if len(self.points) else flat

    def log_importance_ratios(self, data: Data, *, num_samples: int = 500, seed: int | None = None) -> Tensor:
        """log p(theta, y | x) - log q(theta) at S draws of q: see `VariationalPosterior.log_importance_ratios`."""
        key = resolve_seed(seed)
        flat = self._draws(range(check_count(num_samples, "num_samples")), key)
        joints = log_joints(self.model, flat, data, self.buffers)
        random = flat[:, : len(self.loc)]
        with torch.no_grad():
            densities = self._guide.law().log_prob(random).double()
        return joints + self._guide.layout.log_abs_det_jacobian(random.double()) - densities

    @cached_property
    def _guide(self) -> CorrelatedGuide:
        return self.guide()
