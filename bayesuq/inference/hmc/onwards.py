"""What chains that came to their end hold, so that they can go on: as tensors by name, which any file takes.

Scales and step sizes are no longer learned, and random numbers come from each run's own generator: with its state, the
last point, and the transition's own numbers, further draws have the bits of a longer run.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from bayesuq.inference.chains.hamiltonian import Hmc, Kernel
from bayesuq.inference.chains.nuts import Nuts
from bayesuq.inference.chains.potential import Potential
from bayesuq.inference.chains.run import Chains, Plan
from bayesuq.storage import named

FIXED = "fixed."  # before the names of sites that do not move
WORD = 2**32
SAME_DENSITY = 1e-3  # of a log density, by which another machine's may differ


def ends_of(chains: Chains, kernel: Kernel, plan: Plan, seed: int, fixed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that going on needs besides the model, the data and what a posterior has anyway.

    Args:
        chains: That came to their end.
        kernel: Their transition.
        plan: How long they ran.
        seed: Of the fit.
        fixed: Values on their own support of sites that do not move.
    """
    own = {"seed": torch.tensor(divmod(seed, WORD)), "thinning": torch.tensor(plan.thinning)}
    return {**chains.ends, **own, **named(FIXED, fixed), **_numbers(kernel)}


def kernel_of(ends: Mapping[str, Tensor]) -> Kernel:
    """The transition."""
    if "max_tree_depth" in ends:
        return Nuts(int(ends["max_tree_depth"]))
    length = float(ends["trajectory_length"])
    return Hmc(int(ends["num_steps"]), length if length > 0 else None)


def seed_of(ends: Mapping[str, Tensor]) -> int:
    """The fit's seed."""
    high, low = ends["seed"].tolist()
    return high * WORD + low


def longer(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tables (C, D, ...) and those of the draws behind them."""
    return {name: torch.cat([value, after[name]], dim=1) for name, value in before.items()}


def check_same_density(potential: Potential, positions: Tensor, log_densities: Tensor) -> None:
    """Hold the density of each chain's last draw against what it was in the fit.

    Args:
        potential: Of the model and data that are given now.
        positions: Where the chains ended, (C, P).
        log_densities: There, of the model and data that were fitted, (C,), in nats.

    Raises:
        ValueError: Another density.
    """
    for position, told in zip(positions, log_densities.tolist(), strict=True):
        found = -potential.at(position)[0]
        if not abs(found - told) <= SAME_DENSITY * max(1.0, abs(told)):
            raise ValueError(
                f"`data` or the model are not those that were fitted: at a chain's last draw the log density is "
                f"{found:.6g} nats, and was {told:.6g}. Pass the same rows, or begin new chains: "
                "`hmc.fit(model, data, start=posterior)`."
            )


def _numbers(kernel: Kernel) -> dict[str, Tensor]:
    if isinstance(kernel, Nuts):
        return {"max_tree_depth": torch.tensor(kernel.max_tree_depth)}
    if not isinstance(kernel, Hmc):
        return {}
    length = 0.0 if kernel.trajectory_length is None else kernel.trajectory_length  # NaN would equal no other
    return {
        "num_steps": torch.tensor(kernel.num_steps),
        "trajectory_length": torch.tensor(length, dtype=torch.float64),
    }
