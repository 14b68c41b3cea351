"""The modes of a Pyro program's flat density: where several searches end, how much lies around each, and which is it.

    log mass of a mode  =  -U(u*) + P / 2 log 2 pi - log |H| / 2,     H = d^2 U / du^2 at u*

A search from one start ends in the nearest mode, which may hold next to nothing of the posterior, and ratios of
densities at draws around it cannot tell: none of the draws lies where the rest is. Other starts can.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.posteriors.arrowhead import Arrowhead, Pattern, Root
from bayesuq.randomness import derive_seed, generator

RADIUS, MOST_TRIES = 2.0, 100  # of starts on the real line
MOST_ITERATIONS = 5000
NEWTON_STEPS = 5
NUM_STARTS = 6  # in pairs that mirror each other, so that neither side of the origin is left out
FAR = 3.0  # standard deviations, from which on two modes are two
LEAST_SHARE = 0.05  # of all mass, from which on another mode is told of
FALL = 1e-3  # nats, beyond which a step downhill is one: no mode yet

Curvature = Callable[[ProgramPotential, Tensor], Arrowhead]  # at a point


@dataclass(frozen=True, eq=False)
class Mode:
    """A point with positive curvature.

    Attributes:
        flat: Where it is, (P,).
        precision: The Hessian there, or its blocks.
        log_mass: Of the normal law around it, in nats, but for the evidence.
    """

    flat: Tensor
    precision: Arrowhead
    log_mass: float

    def is_near(self, flat: Tensor) -> bool:
        """Whether a point lies within a few standard deviations."""
        return self.precision.square((flat - self.flat).cpu()) < FAR**2 * len(flat)


def polished(potential: ProgramPotential, start: Tensor) -> Tensor:
    """The nearest mode by L-BFGS."""

    def loss(values: "np.ndarray") -> tuple[float, "np.ndarray"]:
        value, gradient = potential.at(torch.as_tensor(values).to(start))
        return (value if math.isfinite(value) else 1e300), gradient.double().cpu().numpy()

    options = {"maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS, "ftol": 1e-15, "gtol": 1e-8, "maxcor": 20}
    found = minimize(loss, start.double().cpu().numpy(), jac=True, method="L-BFGS-B", options=options)
    before, _ = potential.at(start)
    return torch.as_tensor(found.x).to(start) if found.fun <= before else start


def hessian_at(potential: ProgramPotential, flat: Tensor) -> Arrowhead:
    """The Hessian at a point, whole."""
    products = potential.joint.curvature(flat, potential.rows)
    return Arrowhead.measured(products, Pattern.dense(len(flat)))


def sharpened(
    potential: ProgramPotential, flat: Tensor, curvature: Curvature = hessian_at
) -> tuple[Tensor, Arrowhead, Root | None]:
    """A point after some steps of Newton's, the curvature there, and its root where it is positive."""
    for _ in range(NEWTON_STEPS):
        value, gradient = potential.at(flat)
        precision = curvature(potential, flat)
        if precision.root is None:
            return flat, precision, None
        moved = (flat.double() - precision.root.solved(gradient.double().cpu()).to(flat.device)).to(flat)
        if not potential.at(moved)[0] < value:
            return flat, precision, precision.root
        flat = moved
    precision = curvature(potential, flat)
    return flat, precision, precision.root


def mode_at(potential: ProgramPotential, flat: Tensor, curvature: Curvature = hessian_at) -> Mode | None:
    """The mode near the end of a search; None where the curvature is not positive, or the density rises yet."""
    flat, precision, root = sharpened(potential, flat, curvature)
    value, gradient = potential.at(flat)
    if root is None or not math.isfinite(value):
        return None
    slope = gradient.double().cpu()
    if float(root.solved(slope) @ slope) > FALL + abs(value) * 1e-5:
        return None
    return Mode(flat, precision, log_mass(root, value))


def log_mass(root: Root, value: float) -> float:
    """log of the integral of a normal law's density with its top at exp(-value), in nats."""
    return 0.5 * root.size * math.log(2 * math.pi) + root.log_volume - value


def find_modes(
    potential: ProgramPotential, key: int, first: Sequence[Mode] = (), curvature: Curvature = hessian_at
) -> list[Mode]:
    """Distinct modes, the one that holds most mass first.

    Args:
        potential: With the volume, so that mass is that of the posterior.
        key: Seed of the starts.
        first: Modes that are known.
        curvature: At a point.
    """
    found = list(first)
    for number in range(NUM_STARTS):
        start = _start(potential, derive_seed(key, number // 2), 1.0 if number % 2 else -1.0)
        end = None if start is None else polished(potential, start)
        if end is None or any(mode.is_near(end) for mode in found):
            continue
        other = mode_at(potential, end, curvature)
        if other is not None and not any(mode.is_near(other.flat) or other.is_near(mode.flat) for mode in found):
            found.append(other)
    return sorted(found, key=lambda mode: -mode.log_mass)


def warn_of_modes(modes: Sequence[Mode], remedy: str) -> None:
    """Warn where modes beside the first hold a share of the posterior, by the normal laws around them.

    Args:
        modes: The one that was taken first.
        remedy: What to do about it, a sentence.
    """
    shares = torch.tensor([mode.log_mass for mode in modes], dtype=torch.float64).softmax(dim=0)
    left = float(1 - shares[0]) if len(modes) > 1 else 0.0
    if left > LEAST_SHARE:
        warn_of_fit(
            f"The density has several modes: searches from {NUM_STARTS} starts found {len(modes)}, and those that this "
            f"fit leaves out hold some {left:.0%} of the posterior. Its means and spreads are of one alone. {remedy}"
        )


def _start(potential: ProgramPotential, key: int, sign: float) -> Tensor | None:
    """A point drawn evenly on the real line, or its mirror image, at which the density is finite."""
    like = potential.joint.probe(0.0)
    for attempt in range(MOST_TRIES):
        share = torch.rand(len(like), dtype=like.dtype, generator=generator(derive_seed(key, attempt)))
        flat = sign * RADIUS * (2 * share - 1).to(like.device)
        value, gradient = potential.at(flat)
        if math.isfinite(value) and bool(gradient.isfinite().all()):
            return flat
    return None
