"""A likelihood of counts: Poisson.

Letters: see `bayesuq.models.likelihoods.base`.
"""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_targets
from bayesuq.models.likelihoods.base import Likelihood, aligned
from bayesuq.models.likelihoods.far_rows import LARGEST_LOG, within_floats
from bayesuq.predictive.mixture import MixturePredictive

LARGEST_COUNT = 2**24  # below which float32 tells every whole number from its neighbours


@dataclass(frozen=True)
class Poisson(Likelihood):
    """Counts y in {0, 1, 2, ...} with mean exp(f): f are log rates, (N, D), y (N, D).

    A count's variance given the rate is the rate; what varies more than that shows as epistemic uncertainty, or not at
    all. For an exposure that differs between rows, let the network add its logarithm.
    """

    output_kinds = ("log rates",)
    is_elementwise = True

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Counts, (N, D), floating."""
        counts = as_targets(y)
        check_counts(counts)
        if counts.dtype == torch.float32 and counts.numel() and float(counts.max()) >= LARGEST_COUNT:
            raise ValueError(
                f"`y` must hold counts below {LARGEST_COUNT}, which float32 can tell apart; got {float(counts.max())}. "
                "Give y and the network in float64."
            )
        return counts

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Counts of f's shape and dtype."""
        return aligned(f, y, channels=f.shape[1:2]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """y f - exp(f) - log y!, (N, D)."""
        return y * f - f.exp() - torch.lgamma(y + 1)

    def distribution(self, f: Tensor) -> Any:
        """Poisson law with event shape (D,)."""
        return dist.Poisson(f.exp()).to_event(f.ndim - 1)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> MixturePredictive:  # noqa: ARG002
        """The mixture of S Poisson laws; its components are the single draws, which it always keeps."""
        return MixturePredictive(dist.Poisson(within_floats(f.double(), highest=LARGEST_LOG).exp()))

    def fisher_root(self, f: Tensor) -> Tensor:
        """exp(f / 2) on the diagonal, (N, K, K): a count tells of its log rate as much as the rate is large."""
        return (0.5 * f.double()).exp().flatten(1).diag_embed()


def check_counts(y: Tensor) -> None:
    """Raise unless `y` holds whole numbers that are at least 0.

    Raises:
        TypeError: Fractions.
        ValueError: Numbers below 0.
    """
    if (y != y.round()).any():
        raise TypeError("`y` must hold counts, whole numbers; got fractions. Is this a real target?")
    if (y < 0).any():
        raise ValueError(f"`y` must hold counts, at least 0; got a minimum of {float(y.min())}.")
