"""Variational online Newton steps on a factorised Gaussian, with the curvature from the draws themselves.

    q = N(m, diag s^2),   s^-2 = c + p,   theta = m + s z,   z ~ N(0, I)

with p the prior's precision and c the curvature of minus the log likelihood of all rows. Of the gradient G of the
latter at a draw, E[G z / s] is its expected curvature (Stein's lemma), so that a step needs no second derivative:

    c + p <- (c + p) (1 + r + r^2 / 2),   r = gamma (G z / s - c) / (c + p)
    m <- m - alpha (momentum of G / (1 - b1^t) + p (m - m_0)) / (c + p)

The term in r^2 keeps c + p above 0, whatever r is (Lin et al. 2020). All is in nats of the whole data: alpha
is a share of a Newton step, and does not depend on the units of y. Shen et al. write c = N h, p = N delta, gamma =
1 - b2 and alpha = lr (h_0 + delta). Terms of priors that are not normal, and volumes, count with the likelihood.

Three things are beside the paper. In G z / s, G is taken from the mean gradient that the momentum has, or, of a second
draw at -z, from that of its opposite: neither changes the expectation, and both take away most of the noise. |r| is at
most a tenth, and a mean moves by at most a hundredth of its prior's scale in a step. Without a given memory gamma
falls as the steps go on, so that c is a mean over the last third of them and no longer knows where it began.

A step passes over vectors of all weights some twenty times, and what it costs beside the network is the memory that
these go through. So s is not kept, but z s is, of which G z / s = G (z s) (c + p) is made; and the passes go over one
stretch of the vectors after the other.

Reference:
    Shen et al. 2024, Variational Learning is Effective for Large Deep Networks, algorithm 1; Lin et al. 2020, Handling
    the Positive-Definite Constraint in the Bayesian Learning Rule.
"""

import math
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import add
from typing import Any

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.ivon.stretches import stretches
from bayesuq.inference.joint.energy import FlatJoint
from bayesuq.inference.joint.fresh_draws import FreshDraws
from bayesuq.inference.joint.layout import FlatPrior, Layout
from bayesuq.inference.joint.network import FlatVector, point_vectors
from bayesuq.inference.training.history import History
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.training.workers import ALONE, Workers
from bayesuq.inference.variational.factorised import VariationalPosterior
from bayesuq.inference.variational.guides import INITIAL_SCALE, mean_field
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator

LOG_TWO_PI = math.log(2 * math.pi)
MOMENTUM = 0.9  # b1
POINT_RATE = 0.03  # Adam's, of sites learned as point values
POINT_MEMORY, EPSILON = (0.9, 0.999), 1e-8
NUM_PROBES = 8  # minibatches at which the curvature is measured before the first step
SHARE = 0.5  # of mean field's first scales: noise does not hide the signal before the curvature is known
FIRST_MEMORY, GROWTH = 20.0, 3.0  # steps that the curvature remembers at first; then a third of those made
MOST_CHANGE = 0.1  # r of a step: samples of the curvature have long tails far from the mode
MOST_MOVE = 0.01  # of a prior's scale, that a mean moves in a step: a curvature that lags behind makes steps too long


@dataclass(frozen=True)
class Rule:
    """How far steps go, and what they remember.

    Attributes:
        num_draws: Draws of the weights a step.
        memory: Steps that the curvature remembers, 1 / (1 - b2); None lets it grow with the steps made.
        max_grad_norm: Bound on the norm of the gradient per data point; None has none.
    """

    num_draws: int
    memory: float | None
    max_grad_norm: float | None

    def share(self, step: int) -> float:
        """gamma of a step, from 0: the part of the curvature that is new."""
        return 1 / (FIRST_MEMORY + step / GROWTH if self.memory is None else self.memory)


@dataclass(frozen=True, eq=False)
class Stretch:
    """Views of one part, (L,), of all vectors that a step passes over; they are `NewtonObjective`'s, part by part.

    Attributes:
        where: The part.
        prior: Of its entries, where it is normal.
        prior_precision: p, (L,) or 0-d.
        minus_one: -1, 0-d.
        weights: What the network runs on: theta, after a draw.
        summed: The products, where they are sums; None where a step has one draw, of which they are made.
        bounds: Of what the means move by in a step: two numbers, or two of (L,).
    """

    where: slice
    prior: FlatPrior
    prior_precision: Tensor
    minus_one: Tensor
    loc: Tensor
    precision: Tensor
    offset: Tensor
    mean_offset: Tensor
    weights: Tensor
    gradient: Tensor
    summed: Tensor | None
    bounds: tuple[Any, Any]

    def scale(self) -> Tensor:
        """s, in the place of the weights, which a draw overwrites."""
        return torch.rsqrt(self.precision, out=self.weights)

    def divergence(self, scale: Tensor) -> Tensor:
        """The normal priors' part of E_q[-log p] - H[q], in nats, up to constants; it takes the offset's place."""
        return self.prior.normal_energy(self.loc, scale) + 0.5 * torch.log(self.precision, out=self.offset).sum()

    def draw(self, scale: Tensor, noise: torch.Generator) -> None:
        """Move the network to m + s z, with fresh z."""
        torch.add(self.loc, self.offset.normal_(generator=noise).mul_(scale), out=self.weights)

    def products_less_one(self, out: Tensor) -> None:
        """Mean over the step's draws of G s z, less 1, put into `out`."""
        if self.summed is None:
            torch.addcmul(self.minus_one, self.gradient, self.offset, out=out)
        else:
            torch.add(self.summed, self.minus_one, out=out)

    def learn_precision(self, change: Tensor, share: float) -> None:
        """By r = gamma (G s z + p s^2 - 1).

        Args:
            change: G s z - 1, (L,), which is overwritten.
            share: gamma.
        """
        change.addcdiv_(self.prior_precision, self.precision)
        change.clamp_(-MOST_CHANGE / share, MOST_CHANGE / share)
        change.addcmul_(change, change, value=0.5 * share)
        self.precision.addcmul_(self.precision, change, value=share)

    def move(self, momentum: Tensor, rate: float, weight: float, out: Tensor) -> None:
        """Take rate (momentum / weight + p (m - m_0)) / (c + p) from the means, within bounds."""
        self.prior.add_normal_gradient(self.loc, momentum, weight, out=out)
        least, most = self.bounds
        torch.clamp(out.div_(self.precision), least * (weight / rate), most * (weight / rate), out=out)
        self.loc.sub_(out, alpha=rate / weight)


class NewtonObjective:
    """Minus the ELBO of q, and all that a step of `Newton` needs.

    Attributes:
        loc: Means, (R,).
        precision: c + p, (R,).
        offset: s z of the last draw, (R,).
        mean_offset: Its mean over the step's draws, (R,).
        stretches: Parts of these and of others, one after the other.
    """

    def __init__(self, model: BayesianNetwork, num_data: int, rule: Rule, workers: Workers = ALONE) -> None:
        self.model, self.num_data, self.rule, self.workers = model, num_data, rule, workers
        guide = mean_field(model)
        self.loc, self.start_scale = guide.loc.detach().clone(), guide.log_scale.detach().exp()
        self.weights = FlatVector(guide.layout, self.loc)
        self.points = point_vectors(model, list(model.points))
        self.joint = FlatJoint(model, {"random": self.weights, **self.points}, with_volume=True)
        self.network, self.prior = self.joint.network, self.joint.priors["random"]
        self.precision, self.first_precision = self.start_scale**-2, self.start_scale**-2
        self.offset = torch.zeros_like(self.loc)
        alone = rule.num_draws == 1  # then sums over draws are the draw's own
        self.mean_offset = self.offset if alone else torch.zeros_like(self.loc)
        self.gradient = self.weights.grad if alone else torch.zeros_like(self.loc)
        self.summed = None if alone and not workers.are_together else torch.zeros_like(self.loc)
        self.loc.grad = self.gradient
        self.stretches = [self._stretch(where) for where in stretches(len(self.loc), self.loc.device)]

    def _stretch(self, where: slice) -> Stretch:
        prior, most_move = self.prior.part(where), self.start_scale[where] * (MOST_MOVE / INITIAL_SCALE)
        least, most = most_move.aminmax()
        return Stretch(
            where=where,
            prior=prior,
            prior_precision=torch.as_tensor(prior.precision, dtype=self.loc.dtype, device=self.loc.device),
            minus_one=self.loc.new_full((), -1.0),
            loc=self.loc[where],
            precision=self.precision[where],
            offset=self.offset[where],
            mean_offset=self.mean_offset[where],
            weights=self.weights.values[where],
            gradient=self.gradient[where],
            summed=None if self.summed is None else self.summed[where],
            bounds=(-float(most), float(most)) if least == most else (-most_move, most_move),
        )

    @property
    def products(self) -> Tensor:
        """Mean over the step's draws of G s z, (R,)."""
        return self.gradient * self.offset if self.summed is None else self.summed

    def objective(self) -> Objective:
        """What the loop needs."""
        points = {kind: vector.values for kind, vector in self.points.items()}
        drawn = FreshDraws(self.network, self._draw)
        own = {"precision": self.precision, "first precision": self.first_precision}
        return Objective(
            leaves={"loc": self.loc, **points},
            buffers={**self.network.buffers, **own},
            loss_and_grads=self.loss_and_grads,
            log_predictive=drawn.log_predictive,
            log_constant=lambda batch: self.network.log_constant(self.network.theta(), *batch),
            culprits=drawn.culprits,
            identity=f"variational online Newton of {self.model}, {self.rule}",
            model=self.model,
            from_network=("loc", "weights"),
            options={"rule": repr(self.rule)},
            optimizer=lambda _, rate: Newton(self, rate),
            varies=lambda: None,
            shared=self._shared,
        )

    def _shared(self, batch: Batch) -> list[Tensor]:
        return [self.products, self.mean_offset, *self.network.statistics(batch.x)]

    def measure(self, source: Source, seed: int) -> None:
        """Start the curvature at what it is around the network's own weights, one number for each site.

        By the difference of the gradients at opposite draws, over some minibatches.
        """
        shuffle, noise = generator(seed, 0), generator(seed, 1, device=self.loc.device)
        buffers = {name: buffer.clone() for name, buffer in self.network.buffers.items()}
        batches = islice((batch for _ in range(NUM_PROBES) for batch in source.epoch(shuffle)), NUM_PROBES)
        total = torch.zeros_like(self.loc, dtype=torch.float64)
        for batch in batches:
            draw = self.offset.normal_(generator=noise)
            ahead, behind = (self._gradient_at(batch, sign * self.start_scale * draw) for sign in (1, -1))
            total += ((ahead - behind) * draw / (2 * NUM_PROBES * self.start_scale)).double()
        for name, buffer in buffers.items():
            self.network.buffers[name].copy_(buffer)
        self.workers.mean([total], len(source.rows.y))
        for where in self.weights.layout.slices().values():
            seen = float(total[where].mean())
            if math.isfinite(seen):
                self.precision[where] = seen
        self.precision.add_(self.prior.precision)
        torch.maximum(self.precision, (SHARE * self.start_scale) ** -2, out=self.precision)
        self.first_precision.copy_(self.precision)

    def loss_and_grads(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the ELBO, estimated from a minibatch and the step's draws, in nats."""
        for vector in self.points.values():
            vector.grad.zero_()
        value = self._first_draw(noise)
        value = value + (self._at_one(batch) if self.rule.num_draws == 1 else self._at_several(batch, noise))
        if not self.workers.are_together:
            self.clip()
        return value

    def slope(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """Mean over weights of the gradient along the log scales, at a fresh draw, in nats a weight and nat."""
        self.loss_and_grads(batch, noise)
        return (self.products + self.prior.precision / self.precision).double().mean() - 1

    def posterior(self, history: History) -> VariationalPosterior:
        """The fitted posterior, as it stands."""
        layout = Layout.of(self.model, self.model.points)
        return VariationalPosterior(
            model=self.model,
            loc=self.loc.clone(),
            log_scale=-0.5 * self.precision.log(),
            points=layout.join(self.network.theta()).detach() if layout.size else self.loc.new_empty(0),
            buffers={name: buffer.clone() for name, buffer in self.network.buffers.items()},
            history=history,
            scale_movement=float((0.5 * (self.precision / self.first_precision).log()).abs().median()),
            kl_weight=1.0,
        )

    def _at_one(self, batch: Batch) -> Tensor:
        """The likelihood's part of the loss at the first draw, with its gradient and product."""
        value = self._descend(batch)
        if self.summed is not None:
            torch.mul(self.gradient, self.offset, out=self.summed)
        return value

    def _at_several(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """The mean of that over draws in opposite pairs: what their gradients have in common cancels in products."""
        number, value = self.rule.num_draws, self.loc.new_zeros(())
        for tensor in (self.gradient, self.products, self.mean_offset):
            tensor.zero_()
        for draw in range(number):
            if draw % 2:
                torch.add(self.loc, self.offset.neg_(), out=self.weights.values)
            elif draw:
                self._draw(noise)
            value = value + self._descend(batch) / number
            self.gradient.add_(self.weights.grad, alpha=1 / number)
            self.products.addcmul_(self.weights.grad, self.offset, value=1 / number)
            self.mean_offset.add_(self.offset, alpha=1 / number)
        for vector in self.points.values():
            vector.grad.div_(number)
        return value

    def _draw(self, noise: torch.Generator) -> None:
        """Move the network to m + s z, with fresh z."""
        for part in self.stretches:
            part.draw(part.scale(), noise)

    def _first_draw(self, noise: torch.Generator) -> Tensor:
        """As `_draw`; the normal priors' part of E_q[-log p] - H[q], in nats."""
        divergences = []
        for part in self.stretches:
            scale = part.scale()
            divergences.append(part.divergence(scale))
            part.draw(scale, noise)
        return reduce(add, divergences) - self.prior.log_normaliser - 0.5 * len(self.loc) * (LOG_TWO_PI + 1)

    def _descend(self, batch: Batch) -> Tensor:
        """The likelihood's part of the loss where the weights stand, with its gradient."""
        return self.joint.descend(batch, self.num_data / len(batch.x), written=[self.weights])

    def _gradient_at(self, batch: Batch, offset: Tensor) -> Tensor:
        """Of minus the log likelihood of all rows, at the means and an offset, (R,)."""
        torch.add(self.loc, offset, out=self.weights.values)
        self._descend(batch)
        return self.weights.grad.clone()

    def clip(self) -> None:
        """Shorten the gradient, and the curvature's sample with it, which a gradient that explodes would blow up.

        Of processes that fit together it is the mean's, before the step.
        """
        if self.rule.max_grad_norm is None:
            return
        gradients = [self.gradient, *(vector.grad for vector in self.points.values())]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        factor = (self.rule.max_grad_norm * self.num_data / norm).clamp(max=1.0)
        for gradient in gradients if self.summed is None else (*gradients, self.summed):
            gradient.mul_(factor)


class Newton:
    """The step of the module's docstring; sites learned as point values move by Adam."""

    def __init__(self, newton: NewtonObjective, rate: float) -> None:
        self.newton = newton
        change = torch.empty_like(newton.stretches[-1].loc)  # the longest one
        self.changes = [(part, change[: len(part.loc)]) for part in newton.stretches]
        groups: list[dict[str, Any]] = [{"params": [newton.loc], "lr": rate}]
        groups += [{"params": [vector.values], "lr": POINT_RATE} for vector in newton.points.values()]
        self.param_groups = groups
        self.state: dict[Tensor, dict[str, Any]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move the curvature, the means and the point values once."""
        first, *others = self.param_groups
        if self.newton.workers.are_together:
            self.newton.clip()
        self._step_means(first["lr"])
        for group in others:
            for leaf in group["params"]:
                self._step_point(leaf, leaf.grad, group["lr"])

    def _step_means(self, rate: float) -> None:
        newton = self.newton
        state = self._state_of(newton.loc, ("momentum",))
        number = int(state["step"])
        share, past, now = newton.rule.share(number), 1 - MOMENTUM**number, 1 - MOMENTUM ** (number + 1)
        for part, change in self.changes:
            momentum = state["momentum"][part.where]
            part.products_less_one(out=change)
            if number:
                change.addcmul_(momentum, part.mean_offset, value=-1 / past)
            part.learn_precision(change, share)
            momentum.lerp_(part.gradient, 1 - MOMENTUM)
            part.move(momentum, rate, now, out=change)
        state["step"] += 1

    def _step_point(self, leaf: Tensor, gradient: Tensor | None, rate: float) -> None:
        if gradient is None:
            raise RuntimeError("a point value has no gradient; its vector's is zeroed in place")
        state = self._state_of(leaf, ("momentum", "squares"))
        state["step"] += 1
        number, (first, second) = int(state["step"]), POINT_MEMORY
        momentum = state["momentum"].lerp_(gradient, 1 - first) / (1 - first**number)
        squares = state["squares"].mul_(second).addcmul_(gradient, gradient, value=1 - second) / (1 - second**number)
        leaf.addcdiv_(momentum, squares.sqrt().add_(EPSILON), value=-rate)

    def _state_of(self, leaf: Tensor, names: tuple[str, ...]) -> dict[str, Any]:
        state = self.state.setdefault(leaf, {})
        if not state:
            state |= {name: torch.zeros_like(leaf) for name in names}
            state["step"] = torch.zeros((), dtype=torch.int64)
        return state
