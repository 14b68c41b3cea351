"""How far the training rows are: the distance to the k-th nearest of them in the space of features.

Reference:
    Sun, Ming, Zhu & Li 2022, Out-of-Distribution Detection with Deep Nearest Neighbors, algorithm 1.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bayesuq.arrays import check_count
from bayesuq.inference.features.taken import BLOCK, Features, FeatureScore, check_width


@dataclass(frozen=True, eq=False, kw_only=True)
class NearestNeighbours(FeatureScore):
    """The Euclidean distance to the k-th nearest training row, of features of length 1 or as they are.

    It holds all training features, and takes O(N M D) time for N rows and M of training. A training row is its own
    nearest neighbour: score others.

    Attributes:
        features: Of the training rows, (M, D), as they were taken.
        num_neighbours: k.
        has_unit_length: Whether features are divided by their length, as published.

    Example:
        >>> taken = Features([[0.0], [1.0], [3.0]])
        >>> NearestNeighbours.of(taken, num_neighbours=2, has_unit_length=False)(Features([[4.0]]))
        tensor([3.], dtype=torch.float64)
    """

    features: Tensor
    num_neighbours: int
    has_unit_length: bool

    @classmethod
    def of(cls, taken: Features, *, num_neighbours: int = 50, has_unit_length: bool = True) -> Self:
        """Fit it: nothing but to keep the features.

        Raises:
            ValueError: Fewer rows than neighbours.
        """
        check_count(num_neighbours, "num_neighbours")
        if num_neighbours > len(taken):
            raise ValueError(
                f"`num_neighbours` must be at most the {len(taken)} training rows; got {num_neighbours}. Choose fewer: "
                '`scores={"nearest": functools.partial(features.NearestNeighbours.of, num_neighbours=5)}`; or name the '
                'scores that are to be fitted without it, such as `scores=["mahalanobis", "energy"]`.'
            )
        return cls(features=taken.features, num_neighbours=num_neighbours, has_unit_length=has_unit_length)

    def __call__(self, taken: Features) -> Tensor:
        """The distance, (N,), float64."""
        check_width(taken, self.features.shape[1])
        rows = max(1, BLOCK // max(len(self.features), self.features.shape[1]))
        blocks = (part for block in taken.blocks() for part in block.split(rows))
        return torch.cat([self._distance(self._scaled(block)) for block in blocks])

    def _distance(self, z: Tensor) -> Tensor:
        """Of some rows; the nearest of each block of training rows are held, and those of all are among them."""
        nearest = []
        for theirs in Features(self.features).blocks():
            distance = torch.cdist(z, self._scaled(theirs))
            number = min(self.num_neighbours, len(theirs))
            nearest.append(distance.topk(number, dim=1, largest=False, sorted=False).values)
        return torch.cat(nearest, dim=1).kthvalue(self.num_neighbours, dim=1).values

    def _scaled(self, z: Tensor) -> Tensor:
        return normalize(z, dim=1) if self.has_unit_length else z
