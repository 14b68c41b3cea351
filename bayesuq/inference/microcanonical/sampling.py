"""The sampler alone, on any log density."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bayesuq.arrays import check_count, check_positive
from bayesuq.inference.microcanonical.run import Plan, Run
from bayesuq.randomness import resolve_seed

__all__ = ["Samples", "sample"]
__dir__ = __all__.copy

ENERGY_VARIANCE = 2e-5  # at which variances are right to 1 %


@dataclass(frozen=True, eq=False)
class Samples:
    """Draws of C chains.

    Attributes:
        draws: (C, D, P).
        statistics: Of each draw, (C, D): `lp`, `energy_error` (root mean square over the steps of the draw, in nats),
            `step_size`, `length`, `n_steps` and `diverging`.
        energy_variance: E[dE^2] / d that was reached, in nats squared.
    """

    draws: Tensor
    statistics: Mapping[str, Tensor]
    energy_variance: float


def sample(
    log_density: Callable[[Tensor], Tensor],
    start: Tensor,
    *,
    num_samples: int = 1000,
    num_warmup: int = 2000,
    thinning: int = 1,
    energy_variance: float = ENERGY_VARIANCE,
    step_size: float | None = None,
    length: float | None = None,
    seed: int | None = None,
    progress: bool | None = False,
) -> Samples:
    """Draw from a density on R^P by microcanonical Langevin chains.

    No step is refused, so that the draws have the error of the integrator: `energy_variance` says how large it may be,
    and docs/methods/microcanonical.md what it does to variances.

    Args:
        log_density: From a vector (P,) to its log density, a 0-d tensor in nats, up to a constant, of operations that
            `torch.func.vmap` and autograd follow.
        start: Where the chains begin, (C, P), P at least 2.
        num_samples: Draws of each chain that are kept.
        num_warmup: Steps before, in which step size and length are tuned, each chain's for itself.
        thinning: Steps for one kept draw.
        energy_variance: Variance of a step's energy error a dimension that step sizes are tuned to, in nats squared.
        step_size: Instead of a tuned one, in units of the vectors.
        length: Over which a chain forgets its direction, instead of a tuned one.
        seed: Makes the draws repeatable; None draws one from torch's generator.
        progress: Whether to show a bar; None shows it on a terminal and in a notebook.

    Raises:
        TypeError: Numbers that are none.
        ValueError: A start of another shape, or of no finite density; a density of several numbers; options out of
            range.

    Warns:
        UserWarning: The chains have more than three minutes to go, by what their first steps take.

    Example:
        >>> found = sample(lambda x: -0.5 * x.dot(x), torch.zeros(4, 10), num_samples=500, num_warmup=500, seed=0)
        >>> found.draws.shape, bool((found.draws.var() - 1).abs() < 0.1)
        (torch.Size([4, 500, 10]), True)
    """
    plan = checked_plan(num_samples, num_warmup, thinning, energy_variance, step_size, length)
    if not isinstance(start, Tensor) or start.ndim != 2 or start.shape[1] < 2 or not start.is_floating_point():
        raise ValueError("`start` must be real numbers (C, P), a row for each chain, with P at least 2.")

    def energies(positions: Tensor) -> tuple[Tensor, Tensor]:
        flat = positions.detach().requires_grad_()
        with torch.enable_grad():
            values = torch.func.vmap(log_density)(flat)
            if values.shape != flat.shape[:1]:
                raise ValueError(
                    f"`log_density` must give one number, a 0-d tensor; got {tuple(values.shape[1:])}. Sum its terms."
                )
            (gradients,) = torch.autograd.grad(values.sum(), flat)  # a vector moves its own term alone
        return -values.detach().double(), -gradients

    run = Run(energies, start.detach().clone(), plan, resolve_seed(seed))
    if not bool(run.particles.potentials.isfinite().all() & run.particles.gradients.isfinite().all()):
        raise ValueError("The log density or its gradient is not finite at some `start`.")
    run.finish(None, None, progress)
    return Samples(run.draws, run.told, run.energy_variance())


def checked_plan(
    num_samples: int,
    num_warmup: int,
    thinning: int,
    energy_variance: float,
    step_size: float | None,
    length: float | None,
) -> Plan:
    """The plan of these options.

    Raises:
        TypeError: Numbers that are none.
        ValueError: Numbers out of range; a warm-up of no step where something is to be tuned.
    """
    check_count(num_samples, "num_samples")
    check_count(num_warmup, "num_warmup", minimum=0)
    check_count(thinning, "thinning")
    check_positive(energy_variance, "energy_variance")
    for value, name in ((step_size, "step_size"), (length, "length")):
        if value is not None:
            check_positive(value, name)
    if num_warmup == 0 and step_size is None:
        raise ValueError("Step sizes are tuned in the warm-up. Raise `num_warmup`, or pass `step_size`.")
    return Plan(num_samples, num_warmup, thinning, energy_variance, step_size, length)
