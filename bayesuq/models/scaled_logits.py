"""A likelihood of labels read at scaled logits: what temperature, vector and matrix scaling make of one."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from bayesuq.arrays import ArrayLike, check_finite_number
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.predictive.base import PredictiveDistribution

Vector = tuple[float, ...]
Matrix = tuple[Vector, ...]


@dataclass(frozen=True)
class ScaledLogits(Likelihood):
    """`base` at slopes * f + mixing f + biases + pulls softmax(slope f), f being its logits.

    One slope 1 / T and bias 0 is temperature scaling; a slope and a bias for each class is vector scaling; with mixing,
    and with pulls, it is matrix scaling. Every draw's logits are scaled, before the draws are mixed. Where a network's
    outputs are no logits, log p of each class given them is scaled: of HeteroscedasticCategorical that of the mean over
    its noise.

    Attributes:
        base: The likelihood that takes the scaled f.
        slopes: One for all outputs, or one for each.
        biases: Likewise, in nats.
        mixing: What each output (row) takes of each other one (column), C rows of C numbers; none is 0.
        pulls: What each output (row) takes of the probability of each one (column), C rows of C nats; none is 0.
        slope: Of the logits that these are the probabilities of.

    Reference:
        Guo et al. 2017, On Calibration of Modern Neural Networks, section 4.2.
    """

    base: Likelihood
    slopes: Vector
    biases: Vector = (0.0,)
    mixing: Matrix = ()
    pulls: Matrix = ()
    slope: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.base, Likelihood) or not self.base.has_labels:
            raise TypeError(f"`base` must be a likelihood of labels; got {type(self.base).__name__}.")
        for name in ("slopes", "biases"):
            values = tuple(check_finite_number(value, name) for value in getattr(self, name))
            if not values:
                raise ValueError(f"`{name}` must not be empty.")
            object.__setattr__(self, name, values)
        for name in ("mixing", "pulls"):
            rows = tuple(tuple(check_finite_number(value, name) for value in row) for row in getattr(self, name))
            if {len(row) for row in rows} - {len(rows)}:
                sizes = [len(row) for row in rows]
                raise ValueError(f"`{name}` must have as many columns as rows; got rows of {sizes}.")
            object.__setattr__(self, name, rows)
        object.__setattr__(self, "slope", check_finite_number(self.slope, "slope"))

    @property
    def reweights_classes(self) -> bool:
        """As the base."""
        return self.base.reweights_classes

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:
        """As the base."""
        return self.base.targets(y, num_outputs=num_outputs)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Labels as the scaled f ask for them."""
        return self.takes_logits.align(self.scaled(f, dim=1), y)

    def num_outputs(self, y: Tensor) -> int:
        """As the base."""
        return self.base.num_outputs(y)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """The base's at the scaled f."""
        return self.takes_logits.elementwise_log_prob(self.scaled(f, dim=1), y)

    def distribution(self, f: Tensor) -> Any:
        """The base's at the scaled f."""
        return self.takes_logits.distribution(self.scaled(f, dim=1))

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> PredictiveDistribution:
        """The base's at the scaled f."""
        return self.takes_logits.predictive(self.scaled(f, dim=2), keep_samples=keep_samples)

    def scaled(self, f: Tensor, dim: int) -> Tensor:
        """The scaled logits along the outputs' dimension, of what the base makes of f.

        Raises:
            ValueError: Another number of outputs than slopes, biases, or rows of mixing or pulls.
        """
        f = self.base.logits(f, dim)  # which an inner scaling, that was there when this one was chosen, has scaled
        sizes = [len(self.slopes), len(self.biases), len(self.mixing), len(self.pulls)]
        if set(sizes) - {0, 1, f.shape[dim]}:
            raise ValueError(
                f"`slopes`, `biases`, `mixing` and `pulls` must have 1 or {f.shape[dim]} entries, as there are logits; "
                f"got {sizes[0]}, {sizes[1]}, {sizes[2]} and {sizes[3]}."
            )
        return rescaled(f, dim, self.slopes, self.biases, self.mixing, self.pulls, self.slope)

    def logits(self, f: Tensor, dim: int = 1) -> Tensor:
        """The scaled ones."""
        return self.scaled(f, dim)

    @property
    def takes_logits(self) -> Likelihood:
        """What takes the scaled logits."""
        return self.base.takes_logits or Categorical()

    @property
    def outputs_are_logits(self) -> bool:
        """As the base: the scaling is a layer more."""
        return self.base.outputs_are_logits

    @property
    def has_one_logit(self) -> bool:
        """As the base."""
        return self.base.has_one_logit

    def target_weights(self, y: Tensor) -> Tensor:
        """As the base."""
        return self.takes_logits.target_weights(y)


def rescaled(
    f: Tensor, dim: int, slopes: Vector, biases: Vector, mixing: Matrix = (), pulls: Matrix = (), slope: float = 1.0
) -> Tensor:
    """slopes * f + mixing f + biases + pulls softmax(slope f) along dimension `dim`: see `ScaledLogits`."""
    shape = (-1, *[1] * (f.ndim - dim - 1))
    scaled = f * f.new_tensor(slopes).reshape(shape) + f.new_tensor(biases).reshape(shape)
    if mixing:
        scaled = scaled + _product(mixing, f, dim)
    if pulls:
        scaled = scaled + _product(pulls, (slope * f).softmax(dim), dim)
    return scaled


def _product(rows: Matrix, values: Tensor, dim: int) -> Tensor:
    return (values.movedim(dim, -1) @ values.new_tensor(rows).T).movedim(-1, dim)
