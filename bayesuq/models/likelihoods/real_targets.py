"""What all likelihoods of real targets share: targets that are rows or maps, and a predictive of either.

Letters: see `bayesuq.models.likelihoods.base`; K columns of f, which say D targets.
"""

from abc import abstractmethod

from torch import Tensor

from bayesuq.arrays import ArrayLike, as_targets
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.maps import RealMaps


class RealTargets(Likelihood):
    """Real targets (N, D), or maps of them, (N, D, ...), whose pixels are points with a law each."""

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Real targets, (N, D) or (N, D, ...)."""
        return as_targets(y, maps=True)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> RealPredictive | RealMaps:  # noqa: ARG002
        """The mixture of S laws; its components are the single draws, which it always keeps."""
        return RealMaps.of_draws(f, self._of_points) if f.ndim > 3 else self._of_points(f)

    @abstractmethod
    def _of_points(self, f: Tensor) -> RealPredictive:
        """The mixture over S draws of f at points, (S, N, K)."""
