"""The No-U-Turn sampler: a trajectory doubles, forwards or backwards in time, until it would come back on itself.

The next point is drawn from the whole trajectory, in proportion to exp(-H) and with a bias to the later half. The
criterion is the generalised one, asked of each subtree and across the joint of its halves.

Reference:
    Hoffman & Gelman 2014, The No-U-Turn Sampler; Betancourt 2017, A Conceptual Introduction to Hamiltonian Monte Carlo,
    appendix A; Stan's `base_nuts.hpp` for the checks across joints.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.inference.chains.hamiltonian import MOST_ENERGY_ERROR, Info, Points, draw_momenta
from bayesuq.inference.chains.mass import Mass
from bayesuq.inference.chains.potential import Potential


@dataclass(frozen=True, eq=False, slots=True)
class _Phase:
    """A point in phase space; `velocity` is M^-1 r."""

    position: Tensor
    momentum: Tensor
    velocity: Tensor
    potential: float
    gradient: Tensor
    energy: float


@dataclass(frozen=True, eq=False, slots=True)
class _Tree:
    """A stretch of the trajectory, `first` being the earlier end in time.

    `log_weight` is the log of the sum of exp(H_0 - H) over its points, `momentum` the sum of their momenta.
    """

    first: _Phase
    last: _Phase
    proposal: _Phase
    log_weight: float
    momentum: Tensor


@dataclass(frozen=True)
class Nuts:
    """Trajectories of up to 2^max_tree_depth - 1 leapfrog steps."""

    max_tree_depth: int = 10

    def __call__(
        self, points: Points, potential: Potential, step_size: float, mass: Mass, noise: torch.Generator
    ) -> tuple[Points, Info]:
        """Move one chain once."""
        builder = _Builder(points, potential, step_size, mass, noise)
        while builder.depth < self.max_tree_depth and builder.double():
            pass
        drawn = builder.tree.proposal
        after = Points(
            drawn.position.unsqueeze(0), points.potentials.new_tensor([drawn.potential]), drawn.gradient.unsqueeze(0)
        )
        number = torch.float64
        info = {
            "lp": torch.tensor([-drawn.potential], dtype=number),
            "energy": torch.tensor([drawn.energy], dtype=number),
            "acceptance_rate": torch.tensor([builder.acceptance / builder.num_steps], dtype=number),
            "n_steps": torch.tensor([builder.num_steps]),
            "tree_depth": torch.tensor([builder.depth]),
            "step_size": torch.tensor([step_size], dtype=number),
            "diverging": torch.tensor([builder.diverging]),
        }
        return after, info


class _Builder:
    """One trajectory as it grows; `depth` counts its completed doublings."""

    def __init__(
        self, points: Points, potential: Potential, step_size: float, mass: Mass, noise: torch.Generator
    ) -> None:
        self.potential, self.step_size, self.mass, self.noise = potential, step_size, mass, noise
        momentum = draw_momenta(points.positions, mass, noise)[0]
        start = self._phase(points.positions[0], momentum, float(points.potentials[0]), points.gradients[0])
        self.energy = start.energy
        self.tree = _Tree(start, start, start, 0.0, momentum)
        self.acceptance, self.num_steps, self.depth, self.diverging = 0.0, 0, 0, False

    def double(self) -> bool:
        """Double the trajectory at one of its ends; False where it has come to its end."""
        forwards = self._uniform() < 0.5
        half = self._grow(self.tree.last if forwards else self.tree.first, self.depth, forwards)
        if half is None:
            return False
        self.depth += 1
        # Biased progressive sampling: the new half is taken with probability min(1, its weight / the old weight).
        taken = math.log(self._uniform()) < half.log_weight - self.tree.log_weight
        self.tree, turned = self._joined(self.tree, half, forwards, half.proposal if taken else self.tree.proposal)
        return not turned

    def _grow(self, end: _Phase, depth: int, forwards: bool) -> _Tree | None:
        """A subtree of 2^depth points beyond an end; None where it diverges, or turns within."""
        if depth == 0:
            return self._step(end, forwards)
        inner = self._grow(end, depth - 1, forwards)
        if inner is None:
            return None
        outer = self._grow(inner.last if forwards else inner.first, depth - 1, forwards)
        if outer is None:
            return None
        # Multinomial sampling within a subtree: each half by its share of the weight.
        total = _log_sum(inner.log_weight, outer.log_weight)
        taken = math.log(self._uniform()) < outer.log_weight - total
        tree, turned = self._joined(inner, outer, forwards, outer.proposal if taken else inner.proposal)
        return None if turned else tree

    def _step(self, end: _Phase, forwards: bool) -> _Tree | None:
        """One leapfrog step."""
        step_size = self.step_size if forwards else -self.step_size
        half = torch.add(end.momentum, end.gradient, alpha=-0.5 * step_size)
        position = self.mass.moved(end.position, half, step_size)
        potential, gradient = self.potential.at(position)
        phase = self._phase(position, torch.add(half, gradient, alpha=-0.5 * step_size), potential, gradient)
        error = phase.energy - self.energy
        if math.isnan(error):
            error = math.inf
        self.num_steps += 1
        self.acceptance += math.exp(min(0.0, -error))
        if error > MOST_ENERGY_ERROR:
            self.diverging = True
            return None
        return _Tree(phase, phase, phase, -error, phase.momentum)

    def _phase(self, position: Tensor, momentum: Tensor, potential: float, gradient: Tensor) -> _Phase:
        velocity = self.mass.velocities(momentum)
        energy = potential + 0.5 * (momentum * velocity).sum(dtype=torch.float64).item()
        return _Phase(position, momentum, velocity, potential, gradient, energy)

    def _joined(self, old: _Tree, new: _Tree, forwards: bool, proposal: _Phase) -> tuple[_Tree, bool]:
        """Two neighbouring stretches as one, and whether that turns back on itself."""
        early, late = (old, new) if forwards else (new, old)
        momentum = early.momentum + late.momentum
        turned = _turns(momentum, early.first, late.last)
        if not turned and early.first is not early.last:  # of two single points, the joint is the whole
            turned = _turns(early.momentum + late.first.momentum, early.first, late.first) or _turns(
                early.last.momentum + late.momentum, early.last, late.last
            )
        log_weight = _log_sum(old.log_weight, new.log_weight)
        return _Tree(early.first, late.last, proposal, log_weight, momentum), turned

    def _uniform(self) -> float:
        """In (0, 1]."""
        return 1.0 - torch.rand((), dtype=torch.float64, generator=self.noise).item()


def _turns(momentum: Tensor, first: _Phase, last: _Phase) -> bool:
    """Whether a stretch with this sum of momenta would shorten if it went on at either end."""
    return momentum.dot(first.velocity).item() <= 0 or momentum.dot(last.velocity).item() <= 0


def _log_sum(one: float, other: float) -> float:
    """log(exp(one) + exp(other))."""
    high, low = max(one, other), min(one, other)
    return high + math.log1p(math.exp(low - high)) if high > -math.inf else high
