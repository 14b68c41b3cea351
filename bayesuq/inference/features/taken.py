"""Features of rows and what goes with them, from a network or from arrays that somebody has on disk."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from bayesuq.arrays import as_labels, check_finite, to_floating, to_tensor

BLOCK = 2**22  # numbers that are held in float64 at a time: 32 MiB


@dataclass(frozen=True, eq=False)
class Features:
    """What a network's last layer gets at N rows, and what it makes of them.

    Any of them but the features may be missing: a score that needs it says so. Arrays of NumPy's become tensors.

    Attributes:
        features: (N, D), in the dtype that they come in.
        logits: (N, C).
        labels: Whole numbers from 0 to C - 1, (N,).
        weight: Of the last layer, (C, D), where logits = features weight^T + bias.
        bias: Of the last layer, (C,); None beside a weight is 0.

    Example:
        >>> taken = Features([[0.0, 1.0], [1.0, 0.0]], labels=[0, 1])
        >>> taken
        Features(2 rows of 2 features, 1 MB at most, with labels)
    """

    features: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("features", "logits", "weight", "bias"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _real(value, name))
        if self.features.ndim != 2 or 0 in self.features.shape:
            raise ValueError(f"`features` must have shape (N, D); got {tuple(self.features.shape)}.")
        size, width = self.features.shape
        if self.labels is not None:
            object.__setattr__(self, "labels", as_labels(self.labels).to(self.features.device))
            _check_shape("labels", self.labels, (size,))
        if self.logits is not None:
            _check_shape("logits", self.logits, (size, None))
        if self.weight is not None:
            classes = None if self.logits is None else self.logits.shape[1]
            _check_shape("weight", self.weight, (classes, width))
        if self.bias is not None:
            _check_shape("bias", self.bias, (None if self.weight is None else len(self.weight),))

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        also = [name for name in ("logits", "labels", "weight", "bias") if getattr(self, name) is not None]
        told = f", with {', '.join(also)}" if also else ""
        size = -(-self.features.numel() * self.features.element_size() // 10**6)
        return f"Features({len(self)} rows of {self.features.shape[1]} features, {size} MB at most{told})"

    def __getitem__(self, rows: Any) -> "Features":
        """Some rows: a slice, their numbers, or a mask."""
        logits, labels = (None if part is None else part[rows] for part in (self.logits, self.labels))
        return Features(self.features[rows], logits, labels, self.weight, self.bias)

    def needed(self, name: str, score: str) -> Tensor:
        """A part that a score cannot do without.

        Raises:
            ValueError: It is missing.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(f"{score} needs `{name}`: {MISSING[name]}.")
        return value

    def blocks(self) -> Iterator[Tensor]:
        """The features in float64, some rows at a time."""
        for block in self.features.split(max(1, BLOCK // self.features.shape[1])):
            yield block.double()


MISSING = {
    "logits": "pass `Features(features, logits=...)`, or a `weight` and `bias` of the last layer to what takes them",
    "labels": "take the features of a Dataset or a loader that has them, or pass `Features(features, labels=...)`",
    "weight": "the network must end in a linear layer on them; or pass `Features(features, weight=..., bias=...)`",
}


class FeatureScore(ABC):
    """A number of each row, larger where it is less like the rows that the score was fitted to.

    Scores are frozen dataclasses of tensors and plain values; `of` fits one.
    """

    @classmethod
    @abstractmethod
    def of(cls, taken: Features) -> Self:
        """Fit it to the features of training rows.

        Raises:
            ValueError: A part that it needs is missing.
        """

    @abstractmethod
    def __call__(self, taken: Features) -> Tensor:
        """The score of each row, (N,), float64.

        Raises:
            ValueError: A part that it needs is missing; features of another width.
        """


def check_width(taken: Features, width: int) -> None:
    """Refuse features of another width than those of the fit.

    Raises:
        ValueError: With both widths.
    """
    if taken.features.shape[1] != width:
        raise ValueError(f"The score was fitted to {width} features; got {taken.features.shape[1]}.")


def _real(value: Any, name: str) -> Tensor:
    tensor = to_tensor(value, name)
    tensor = tensor if tensor.is_floating_point() else to_floating(tensor, name)
    check_finite(tensor, name)
    return tensor.detach()


def _check_shape(name: str, value: Tensor, wanted: tuple[int | None, ...]) -> None:
    if value.ndim != len(wanted) or any(w not in (None, s) for w, s in zip(wanted, value.shape, strict=True)):
        shown = ", ".join("C" if size is None else str(size) for size in wanted)
        raise ValueError(f"`{name}` must have shape ({shown}{',' * (len(wanted) == 1)}); got {tuple(value.shape)}.")
