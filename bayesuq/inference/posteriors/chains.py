"""Chains of weights as a posterior: what every Markov chain Monte Carlo method returns.

Draws are members: a prediction takes all of them, or an even thinning that runs through every chain.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.models.bnn import BayesianNetwork


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ChainPosterior(WeightPosterior):
    """C chains of D draws each, with what the sampler told of each draw.

    Attributes:
        model: The joint density.
        draws: The flat vectors of every site, (C, D, P); sites learned as point values repeat.
        buffers: The network's buffers, the same for all draws.
        statistics: Of each draw, (C, D), by ArviZ's names, as many of them as the sampler has: `lp` (log density of the
            flat vector, in nats), `energy`, `acceptance_rate`, `n_steps`, `tree_depth`, `step_size`, `diverging`.
        warmup_statistics: The same of the warm-up, (C, W); empty where it was not kept.
    """

    model: BayesianNetwork
    draws: Tensor
    buffers: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    warmup_statistics: Mapping[str, Tensor]

    @property
    def num_chains(self) -> int:
        """C."""
        return self.draws.shape[0]

    @property
    def num_members(self) -> int:
        """C D."""
        return self.draws.shape[0] * self.draws.shape[1]

    def draw(self, index: int, seed: int) -> Tensor:  # noqa: ARG002 - draws are stored
        """Draw number `index` in the order of the chains, one after another."""
        return self.draws[divmod(index, self.draws.shape[1])]
