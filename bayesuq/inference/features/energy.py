"""The energy of logits, -T log sum_c exp(f_c / T), as they are or of features that are clipped (ReAct).

References:
    Liu, Wang, Owens & Li 2020, Energy-based Out-of-distribution Detection, eq. (4).
    Sun, Guo & Li 2021, ReAct: Out-of-distribution Detection With Rectified Activations.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import check_fraction, check_positive
from bayesuq.inference.features.taken import Features, FeatureScore


@dataclass(frozen=True, eq=False, kw_only=True)
class Energy(FeatureScore):
    """Minus the log of the sum of exponents of the logits, in nats; nothing is fitted but where features are clipped.

    Attributes:
        temperature: T.
        largest: What features are clipped at before the last layer; None takes the logits as they are.

    Example:
        >>> taken = Features([[0.0]], logits=[[0.0, 0.0]])
        >>> Energy.of(taken)(taken)  # -log 2
        tensor([-0.6931], dtype=torch.float64)
    """

    temperature: float
    largest: float | None = None

    @classmethod
    def of(cls, taken: Features, *, temperature: float = 1.0, clip: float | None = None) -> Self:
        """Fit it.

        Args:
            taken: Features.
            temperature: T.
            clip: The share of all activations that is not clipped, such as .9 (ReAct); None clips none.

        Raises:
            ValueError: A temperature that is not positive; a share outside (0, 1).
        """
        check_positive(temperature, "temperature")
        if clip is None:
            return cls(temperature=float(temperature))
        check_fraction(clip, "clip")
        features = taken.features.float() if taken.features.dtype == torch.bfloat16 else taken.features
        largest = float(np.quantile(features.cpu().numpy(), clip))  # NumPy has no bfloat16
        return cls(temperature=float(temperature), largest=largest)

    def __call__(self, taken: Features) -> Tensor:
        """The energy, (N,), float64, in nats."""
        if self.largest is None:
            logits = taken.needed("logits", "An energy").double()
            return -self.temperature * (logits / self.temperature).logsumexp(dim=1)
        weight = taken.needed("weight", "A clipped energy").double()
        bias = 0.0 if taken.bias is None else taken.bias.double()
        logits = torch.cat([block.clamp(max=self.largest) @ weight.T + bias for block in taken.blocks()])
        return -self.temperature * (logits / self.temperature).logsumexp(dim=1)
