"""The posterior that chains of Hamiltonian Monte Carlo are, of ours or of another sampler."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from bayesuq.inference.posteriors.chains import ChainPosterior


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class HmcPosterior(ChainPosterior):
    """Chains of Hamiltonian Monte Carlo.

    Attributes:
        model: As in `ChainPosterior`, like the following.
        draws: The flat vectors of every site, (C, D, P); sites learned as point values repeat.
        buffers: The network's buffers, the same for all draws.
        statistics: Of each draw, (C, D): `lp`, `energy`, `acceptance_rate`, `n_steps`, `step_size`, `diverging`; of
            NUTS also `tree_depth`. With thinning, steps are summed, acceptances averaged, and a draw is `diverging`
            where any of its transitions was; the rest is that of the last.
        warmup_statistics: The same of each transition of the warm-up, (C, W); empty where it was not kept.
        inverse_mass: Variances of the unconstrained random sites as adapted, (C, R); covariances, (C, R, R), by dense
            masses.
        ends: What `extend` goes on from; empty in files of before.
    """

    inverse_mass: Tensor
    ends: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_divergences(self) -> int:
        """Draws whose trajectories diverged."""
        return int(self.statistics["diverging"].sum()) if "diverging" in self.statistics else 0
