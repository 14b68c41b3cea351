"""Normal guides of Pyro programs, fitted in units of the curvature at the mode, by gradients of the recorded joint.

    u = u* + F (m + A e),   e ~ N(0, 1),      q(u) = N(u* + F m, F A (F A)^T)

F is a root of the inverse Hessian at the mode u*, or of its diagonal, so that one learning rate serves coefficients
that are known to .001 and scales that are not known at all. m, A are learned; A is diagonal for mean field, lower
triangular for full rank. The gradient leaves out the score of q, whose mean is 0, so that its noise goes where q is
exact. What is fitted is put into Pyro's own guide, which the posterior holds.

Reference:
    Roeder, Wu & Duvenaud 2017, Sticking the Landing: Simple, Lower-Variance Gradient Estimators, eq. (8).
"""

import math
from collections.abc import Mapping

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import transform_to

from bayesuq.data import Batch
from bayesuq.inference.joint.fresh_draws import log_mean_over_draws
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.program_joint import UNSUPPORTED, ChangingSitesError, ProgramJoint
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.joint.programs import ChangingDensityError, GuideBuilder, correlated, factorised
from bayesuq.inference.posteriors.modes import Mode, find_modes
from bayesuq.inference.training.objective import Objective
from bayesuq.inference.variational.guided_program import GuidedProgram
from bayesuq.randomness import derive_seed, generator

MOST_LATENTS = 300  # whose Hessian is worth its time
FIRST_SCALE = 0.5  # of q, in units of the curvature's
MOST_REDRAWS = 20  # where a draw lies at density 0
NUM_WEIGHED = 1000  # draws that tell how far the law reaches
CLOSE = 1e-3  # of the two routes' densities, in nats, and relatively


class NormalObjective:
    """Minus the ELBO of a normal law of the flat vector, as a function of m and A.

    Attributes:
        pair: The program and Pyro's guide.
        potential: Minus the log joint of the flat vector.
        modes: Of it, the one that the law begins at first.
        root: F, (P, P), lower triangular; for mean field its diagonal, (P,).
    """

    def __init__(self, pair: GuidedProgram, potential: ProgramPotential, modes: list[Mode], *, full: bool) -> None:
        self.pair, self.potential, self.modes = pair, potential, modes
        precision, self.origin = modes[0].precision.head, modes[0].flat
        covariance = torch.linalg.inv(precision)
        root = torch.linalg.cholesky(covariance) if full else precision.diagonal().rsqrt()
        self.root = root.to(self.origin)
        size = len(self.origin)
        self.mean = self.origin.new_zeros(size)
        self.log_scale = self.origin.new_full((size,), math.log(FIRST_SCALE))
        self.lower = self.origin.new_zeros(size, size) if full else None
        scales = self.root.diagonal() if full else self.root
        self.num_draws, self.spread = 1, 0.5 * size * math.log(2 * math.pi) + float(scales.double().log().sum())

    def objective(self, num_draws: int) -> Objective:
        """What the loop needs, with so many draws a step."""
        self.num_draws = num_draws
        return Objective(
            leaves=self._leaves(),
            loss_and_grads=self.loss_and_grads,
            log_predictive=self.log_predictive,
            culprits=self.culprits,
            identity=f"normal law of {self.potential.joint!r}, {num_draws} draws a step",
            options={**self.potential.joint.sites(), "num_draws": num_draws, "route": "flat joint"},
        )

    def loss_and_grads(self, _batch: Batch, noise: torch.Generator) -> Tensor:
        """Minus the ELBO in nats, over all rows."""
        loss, slope = 0.0, self.mean.new_zeros(len(self.mean))
        cross = None if self.lower is None else torch.zeros_like(self.lower)
        along = torch.zeros_like(slope)
        for _ in range(self.num_draws):
            white, value, gradient = self._drawn(noise)
            loss += value - 0.5 * float(white.square().sum())
            inward = self._whitened(gradient) - self._score(white)
            slope += inward
            along += inward * white
            if cross is not None:
                cross += torch.outer(inward, white)
        number = self.num_draws
        self.mean.grad = slope / number
        self.log_scale.grad = along * self.log_scale.exp() / number
        if self.lower is not None and cross is not None:
            self.lower.grad = (cross / number).tril(-1)
        loss = loss / number - self.spread - float(self.log_scale.sum())
        return torch.tensor(loss, dtype=self.mean.dtype, device=self.mean.device)

    def log_predictive(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """log of the mean over eight draws of p(y | x, theta), row by row."""
        return log_mean_over_draws(lambda: self.potential.joint.row_log_prob(self._at(self._white(noise)), batch))

    def culprits(self, _batch: Batch, _noise: torch.Generator) -> list[str]:
        """Latents whose means are not finite."""
        slices = self.potential.joint.layout.slices()
        return [name for name, where in slices.items() if not self.mean[where].isfinite().all()]

    def put(self) -> None:
        """Give the guide the law as it is now."""
        root, factor = self.root, self._factor()
        scales = root * factor if factor.ndim == 1 else root @ factor
        mean = self._at(torch.zeros_like(self.mean))
        named = _of_all if factor.ndim == 2 else _of_sites
        leaves = self.pair.leaves
        found = named(mean, scales, self.potential)
        self.pair.put({name: value.reshape(leaves[name].shape).to(leaves[name]) for name, value in found.items()})

    def weighed(self, key: int) -> tuple[Tensor, dict[str, Tensor]]:
        """log p(theta, y | x) - log q(theta) at S draws, (S,), float64, in nats, and the latents there, (S, ...)."""
        noise = generator(key, device=self.mean.device)
        white = torch.stack([self._white(noise) for _ in range(NUM_WEIGHED)])
        draws = torch.stack([self._at(one) for one in white])
        log_joint = [-self.potential.at(draw)[0] for draw in draws]
        log_q = -0.5 * white.double().square().sum(dim=1).cpu() - self.spread - float(self.log_scale.sum())
        return torch.tensor(log_joint, dtype=torch.float64) - log_q, self.potential.latents(draws)

    def agrees(self, rows: Batch, key: int) -> bool:
        """Whether Pyro's own route finds the same density at a draw of the guide, and the guide is this law."""
        self.put()
        with torch.no_grad(), self.pair.active(derive_seed(key, 0)):
            guide, model = self.pair.traces(rows)
            theirs = float(model.log_prob_sum().double() - guide.log_prob_sum().double())
            theta = {name: model.nodes[name]["value"] for name in self.pair.latents}
        try:
            flat = self.potential.joint.flat(theta, rows)
        except ValueError:
            return False
        value = self.potential.at(flat)[0]
        white = self._solved((flat - self.origin).to(self.mean))
        inner = self._inner(white)
        ours = 0.5 * float(inner.double().square().sum()) - value + self.spread + float(self.log_scale.sum())
        return abs(ours - theirs) <= CLOSE * max(1.0, abs(theirs), abs(value))

    def _leaves(self) -> dict[str, Tensor]:
        own = {"mean": self.mean, "log_scale": self.log_scale}
        return own if self.lower is None else {**own, "lower": self.lower}

    def _factor(self) -> Tensor:
        """A, or its diagonal."""
        scale = self.log_scale.exp()
        return scale if self.lower is None else self.lower + scale.diag()

    def _at(self, white: Tensor) -> Tensor:
        """The flat vector of a standard normal one."""
        factor = self._factor()
        if self.lower is None:
            return self.origin + self.root * (self.mean + factor * white)
        return self.origin + self.root @ (self.mean + factor @ white)

    def _white(self, noise: torch.Generator) -> Tensor:
        return torch.randn(len(self.mean), dtype=self.mean.dtype, device=self.mean.device, generator=noise)

    def _drawn(self, noise: torch.Generator) -> tuple[Tensor, float, Tensor]:
        """A draw of the noise, and U with its gradient there; draws at density 0 are drawn again."""
        for _ in range(MOST_REDRAWS):
            white = self._white(noise)
            value, gradient = self.potential.at(self._at(white))
            if math.isfinite(value):
                break
        return white, value, gradient

    def _whitened(self, gradient: Tensor) -> Tensor:
        """F^T g."""
        gradient = gradient.to(self.root)
        return self.root * gradient if self.lower is None else self.root.T @ gradient

    def _score(self, white: Tensor) -> Tensor:
        """A^-T e, minus the slope of log q."""
        if self.lower is None:
            return white / self.log_scale.exp()
        return torch.linalg.solve_triangular(self._factor().T, white.unsqueeze(1), upper=True)[:, 0]

    def _solved(self, step: Tensor) -> Tensor:
        """F^-1 of a step."""
        if self.lower is None:
            return step / self.root
        return torch.linalg.solve_triangular(self.root, step.unsqueeze(1), upper=False)[:, 0]

    def _inner(self, step: Tensor) -> Tensor:
        """A^-1 (z - m)."""
        if self.lower is None:
            return (step - self.mean) / self.log_scale.exp()
        return torch.linalg.solve_triangular(self._factor(), (step - self.mean).unsqueeze(1), upper=False)[:, 0]


def normal_objective(
    pair: GuidedProgram, build: GuideBuilder, call: ProgramCall, rows: Batch, key: int
) -> NormalObjective | None:
    """The objective of a program's standard guide on all rows; None where Pyro's own route is to be taken.

    That is so of other guides, of programs that learn point values or have very many latents, of densities without a
    mode, and of supports that move with other latents, which the guide holds still.
    """
    if build not in (factorised, correlated):
        return None
    try:
        joint = ProgramJoint.of(call, rows)
        if list(joint.layout.shapes) != pair.latents or joint.layout.size > MOST_LATENTS:
            return None
        potential = ProgramPotential(joint, rows)
        modes = find_modes(potential, key)
    except (ChangingSitesError, ChangingDensityError):
        raise
    except UNSUPPORTED:
        return None
    if not modes:
        return None
    found = NormalObjective(pair, potential, modes, full=build is correlated)
    first = pair.values()
    if found.agrees(rows, key):
        return found
    pair.put(first)
    return None


def _of_sites(mean: Tensor, scale: Tensor, potential: ProgramPotential) -> Mapping[str, Tensor]:
    """Values of `AutoNormal`'s parameters."""
    unconstrained = transform_to(constraints.softplus_positive).inv(scale)
    slices = potential.joint.layout.slices()
    locs = {f"AutoNormal.locs.{name}": mean[where] for name, where in slices.items()}
    return locs | {f"AutoNormal.scales.{name}": unconstrained[where] for name, where in slices.items()}


def _of_all(mean: Tensor, factor: Tensor, _potential: ProgramPotential) -> Mapping[str, Tensor]:
    """Values of `AutoMultivariateNormal`'s parameters."""
    scale = factor.diagonal()
    return {
        "AutoMultivariateNormal.loc": mean,
        "AutoMultivariateNormal.scale": transform_to(constraints.softplus_positive).inv(scale),
        "AutoMultivariateNormal.scale_tril": transform_to(constraints.unit_lower_cholesky).inv(
            factor / scale.unsqueeze(1)
        ),
    }
