"""What of the features lies outside of the subspace of the training rows, as one more logit (ViM).

With the origin at o = -W^+ b, where the last layer's logits are all 0, and P the directions outside of the first k
principal ones of the training features around it,

    score = alpha |P^T (z - o)| - log sum_c exp f_c,      alpha = mean max_c f_c / mean |P^T (z - o)|.

Reference:
    Wang, Li, Feng & Zhang 2022, ViM: Out-Of-Distribution with Virtual-logit Matching, eq. (4) to (7).
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.inference.features.gaussians import scatter
from bayesuq.inference.features.taken import Features, FeatureScore, check_width

WIDTHS = ((2048, 1000), (768, 512))  # published: from so many features on so many directions; below them the half


@dataclass(frozen=True, eq=False, kw_only=True)
class VirtualLogit(FeatureScore):
    """The virtual logit minus the log of the sum of exponents of the others, in nats.

    Attributes:
        origin: o, (D,), float64.
        outside: P, (D, D - k).
        scale: alpha.
    """

    origin: Tensor
    outside: Tensor
    scale: float

    @classmethod
    def of(cls, taken: Features, *, num_directions: int | None = None) -> Self:
        """Fit it.

        Args:
            taken: Features with logits and the last layer.
            num_directions: k, below D. None is 1,000 from 2,048 features on, 512 from 768 on, and else the half.

        Raises:
            ValueError: No logits, or no last layer; as many directions as features.
        """
        weight, logits = taken.needed("weight", "ViM").double(), taken.needed("logits", "ViM").double()
        width = taken.features.shape[1]
        number = next((k for least, k in WIDTHS if width >= least), width // 2)
        number = number if num_directions is None else check_count(num_directions, "num_directions")
        if number >= width:
            raise ValueError(f"`num_directions` must be below the {width} features; got {number}.")
        bias = weight.new_zeros(len(weight)) if taken.bias is None else taken.bias.double()
        origin = -torch.linalg.pinv(weight) @ bias
        _, vectors = torch.linalg.eigh(scatter(taken, origin.expand(len(taken), -1)))  # rising eigenvalues
        outside = vectors[:, : width - number]
        length = torch.cat([((z - origin) @ outside).norm(dim=1) for z in taken.blocks()])
        return cls(origin=origin, outside=outside, scale=float(logits.amax(dim=1).mean() / length.mean()))

    def __call__(self, taken: Features) -> Tensor:
        """The score, (N,), float64, in nats."""
        check_width(taken, len(self.origin))
        energy = -taken.needed("logits", "ViM").double().logsumexp(dim=1)
        length = torch.cat([((z - self.origin) @ self.outside).norm(dim=1) for z in taken.blocks()])
        return energy + self.scale * length
