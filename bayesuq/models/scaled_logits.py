"""A classification likelihood read at scaled outputs: what temperature and vector scaling make of one."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayesuq.arrays import ArrayLike, check_finite_number
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Bernoulli, Categorical
from bayesuq.predictive import PredictiveDistribution


@dataclass(frozen=True)
class ScaledLogits(Likelihood):
    """`base` at slopes * f + biases.

    One slope 1 / T and bias 0 is temperature scaling; a slope and a bias for each class is vector scaling. Every
    draw's f is scaled, before the draws are mixed.

    Attributes:
        base: The likelihood that takes the scaled f.
        slopes: One for all outputs, or one for each.
        biases: Likewise, in nats.

    Reference:
        Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """

    base: Likelihood
    slopes: tuple[float, ...]
    biases: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if not isinstance(self.base, Categorical | Bernoulli | ScaledLogits):
            raise TypeError(f"`base` must be a likelihood of labels; got {type(self.base).__name__}.")
        for name in ("slopes", "biases"):
            values = tuple(check_finite_number(value, name) for value in getattr(self, name))
            if not values:
                raise ValueError(f"`{name}` must not be empty.")
            object.__setattr__(self, name, values)

    @property
    def reweights_classes(self) -> bool:
        """As the base."""
        return self.base.reweights_classes

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:
        """As the base."""
        return self.base.targets(y, num_outputs=num_outputs)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """As the base."""
        return self.base.align(f, y)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """The base's at the scaled f."""
        return self.base.elementwise_log_prob(self.scaled(f, dim=1), y)

    def distribution(self, f: Tensor) -> Any:
        """The base's at the scaled f."""
        return self.base.distribution(self.scaled(f, dim=1))

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> PredictiveDistribution:
        """The base's at the scaled f."""
        return self.base.predictive(self.scaled(f, dim=2), keep_samples=keep_samples)

    def scaled(self, f: Tensor, dim: int) -> Tensor:
        """slopes * f + biases along the outputs' dimension.

        Raises:
            ValueError: Another number of outputs than slopes or biases.
        """
        if {len(self.slopes), len(self.biases)} - {1, f.shape[dim]}:
            raise ValueError(
                f"`slopes` and `biases` must have 1 or {f.shape[dim]} entries, as f has outputs; got "
                f"{len(self.slopes)} and {len(self.biases)}."
            )
        shape = (-1, *[1] * (f.ndim - dim - 1))
        return f * f.new_tensor(self.slopes).reshape(shape) + f.new_tensor(self.biases).reshape(shape)
