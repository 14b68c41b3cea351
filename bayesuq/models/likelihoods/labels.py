"""Likelihoods of labels: Categorical and Bernoulli, per pixel too, with class weights; and of shares of raters.

Letters: see `bayesuq.models.likelihoods.base`.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional

from bayesuq.arrays import ArrayLike, as_labels, as_targets, check_count, check_each
from bayesuq.models.likelihoods.base import LOGITS, Likelihood, aligned
from bayesuq.models.likelihoods.far_rows import are_within, within_floats
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.waiting import are_noted

VOID_OF_TWO = "give void ones weight 0 and another label: Dataset(x, y * known, weight=known)"
ONE_CLASS = "Categorical needs a network of at least 2 outputs; got 1. Use Bernoulli for one."
SHARE_TOLERANCE = 1e-4  # of the sum of shares over classes
NO_LABEL = torch.iinfo(torch.int64).min  # torch's own default, -100, would hide a wrong label


@dataclass(frozen=True)
class Categorical(Likelihood):
    """Labels in {0, ..., C - 1} with probabilities softmax(f); f is (N, C, ...), y (N, ...).

    Attributes:
        class_weights: Multiplies log p(y | f) by the weight of the true class; None is 1 for all.
        ignore_index: A label that adds nothing, such as an image's void pixels.
    """

    output_kinds = (LOGITS,)

    class_weights: tuple[float, ...] | None = None
    ignore_index: int | None = None

    def __post_init__(self) -> None:
        if self.class_weights is not None:
            object.__setattr__(self, "class_weights", _check_class_weights(self.class_weights))
        if self.ignore_index is not None:
            object.__setattr__(self, "ignore_index", check_count(self.ignore_index, "ignore_index", minimum=NO_LABEL))

    @property
    def reweights_classes(self) -> bool:
        """Whether class weights or an ignored label are set."""
        return self.class_weights is not None or self.ignore_index is not None

    @property
    def takes_logits(self) -> "Categorical":
        """Itself."""
        return self

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:
        """Labels, int64."""
        if num_outputs == 1:
            raise ValueError(ONE_CLASS)
        labels = as_labels(y)
        as_labels(labels[labels != self.ignore_index], num_classes=num_outputs)
        return labels

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Labels of shape (N, ...)."""
        if f.ndim > 1 and f.shape[1] == 1:
            raise ValueError(ONE_CLASS)
        if f.ndim > 1 and y.shape == f.shape:
            expected = (len(f), *f.shape[2:])
            raise ValueError(
                f"`y` must have shape {expected} for outputs f of shape {tuple(f.shape)}; got {tuple(y.shape)}. "
                "Of labels that do not exclude each other, take likelihoods.Bernoulli(); of one-hot rows, pass "
                "`y.argmax(1)`."
            )
        return aligned(f, y, channels=())

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """Weighted log softmax(f) at y, (N, ...)."""
        weights = None if self.class_weights is None else f.new_tensor(self.class_weights)
        if self.class_weights is not None and len(self.class_weights) != f.shape[1]:
            raise ValueError(
                f"`class_weights` must have one entry for each of {f.shape[1]} classes; got {len(self.class_weights)}."
            )
        ignored = NO_LABEL if self.ignore_index is None else self.ignore_index
        return -functional.cross_entropy(f, y, weight=weights, ignore_index=ignored, reduction="none")

    def distribution(self, f: Tensor) -> Any:
        """Categorical law with event shape (...)."""
        return dist.Categorical(logits=f.movedim(1, -1)).to_event(f.ndim - 2)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> CategoricalPredictive:
        """The mixture of S softmaxes."""
        return CategoricalPredictive.from_logits(_within_floats(f), keep_samples=keep_samples)

    def logits(self, f: Tensor, dim: int = 1) -> Tensor:  # noqa: ARG002
        """The outputs themselves."""
        return f

    def fisher_root(self, f: Tensor) -> Tensor:
        """diag(sqrt p) - p sqrt(p)^T at each position, whose square is diag(p) - p p^T, (N, K, K)."""
        p = f.double().reshape(*f.shape[:2], -1).softmax(dim=1).movedim(1, -1)  # (N, M, C); M = 1 for plain labels
        root = p.sqrt().diag_embed() - p.unsqueeze(-1) * p.sqrt().unsqueeze(-2)
        _, num_positions, num_classes = p.shape
        whole = torch.diag_embed(root.movedim(1, -1))  # (N, C, C, M, M): positions do not mix
        return whole.permute(0, 1, 3, 2, 4).reshape(len(f), num_classes * num_positions, -1)

    def target_weights(self, y: Tensor) -> Tensor:
        """Of each label's class, and 0 of one that is ignored."""
        own = _of_classes(self.class_weights, y)
        return own if self.ignore_index is None else torch.where(y == self.ignore_index, 0.0, own)


@dataclass(frozen=True)
class SoftCategorical(Likelihood):
    """Shares of classes instead of one label: several raters who need not agree, or a smoothed label.

    f and y are (N, C, ...), y the share of each class, which sum to 1 over C. The log-likelihood is the mean over
    raters of that of `Categorical`,

        log p(y | f) = sum_c y_c log softmax(f)_c

    exactly: a row for each rater, of weight 1 / R, gives the same at R times the cost. Shares that are whole numbers
    alone are labels: take `Categorical`. The predictive is over the label that one more rater would give.
    """

    output_kinds = (LOGITS,)

    @property
    def takes_logits(self) -> "Categorical":
        """The likelihood of single labels at the same outputs."""
        return Categorical()

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:
        """Shares, (N, C, ...)."""
        shares = as_targets(y, maps=True)
        least, off = float(shares.min()), float((shares.sum(dim=1) - 1).abs().max())
        if least < 0 or off > SHARE_TOLERANCE:
            raise ValueError(
                "`y` must hold shares of classes, at least 0 and summing to 1 over the second dimension; got a least "
                f"share of {least:.4g} and sums that are off by {off:.4g}. Of labels take likelihoods.Categorical()."
            )
        if num_outputs is not None and shares.shape[1] != num_outputs:
            raise ValueError(f"`y` must have shares of {num_outputs} classes; got {tuple(shares.shape)}.")
        return shares

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Shares of f's shape and dtype."""
        return aligned(f, y, channels=f.shape[1:2]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """y_c log softmax(f)_c, (N, C, ...)."""
        return y * f.log_softmax(dim=1)

    def distribution(self, f: Tensor) -> Any:
        """The law of one more rater's label, with event shape (...)."""
        return Categorical().distribution(f)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> CategoricalPredictive:
        """The mixture of S softmaxes."""
        return Categorical().predictive(f, keep_samples=keep_samples)

    def num_outputs(self, y: Tensor) -> int:
        """One for each class."""
        return y.shape[1]

    def logits(self, f: Tensor, dim: int = 1) -> Tensor:  # noqa: ARG002
        """The outputs themselves."""
        return f

    def fisher_root(self, f: Tensor) -> Tensor:
        """That of `Categorical`, (N, K, K)."""
        return Categorical().fisher_root(f)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Labels in {0, 1} with P(y = 1) = sigmoid(f); f is (N, 1, ...), y (N, ...) or (N, 1, ...).

    Several labels that do not exclude each other, K of them a row or pixel, take a network of K outputs: f and y are
    (N, K, ...), independent given f. log p(y | f) is minus the binary cross entropy. The predictive has two classes,
    (N, 2, ...), of K labels (N, 2, K, ...): its points are then the labels, (N, K, ...).

    Attributes:
        class_weights: Multiplies log p(y | f) by the weight of the true class, (of 0, of 1); None is 1 for both.
    """

    output_kinds = (LOGITS,)
    has_one_logit = True
    is_elementwise = True

    class_weights: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.class_weights is not None:
            weights = _check_class_weights(self.class_weights)
            if len(weights) != 2:
                raise ValueError(f"`class_weights` must have two entries, for 0 and 1; got {len(weights)}.")
            object.__setattr__(self, "class_weights", weights)

    @property
    def reweights_classes(self) -> bool:
        """Whether class weights are set."""
        return self.class_weights is not None

    @property
    def takes_logits(self) -> "Bernoulli":
        """Itself."""
        return self

    def targets(self, y: ArrayLike, *, num_outputs: int | None = None) -> Tensor:  # noqa: ARG002
        """Labels 0 and 1, int64."""
        return as_labels(y, num_classes=2, void=VOID_OF_TWO)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        """Labels of f's shape and dtype."""
        _check_has_outputs(f, dim=1)
        if f.shape[1] > 1 and y.ndim < f.ndim:
            raise ValueError(
                f"The network must give f of shape (N, 1, ...) for Bernoulli; got {tuple(f.shape)}. Several outputs "
                f"are for as many labels a row that do not exclude each other: y of shape {tuple(f.shape)}."
            )
        if f.ndim == y.ndim and f.shape[1] == 1 and y.shape[1] > 1:
            raise ValueError(
                f"`y` must have shape {tuple(f.shape)} as the network has 1 output; or give the network {y.shape[1]}, "
                f"for (N, {y.shape[1]}) labels that do not exclude each other. Labels that do are one number a row, "
                f"for Categorical; got {tuple(y.shape)}."
            )
        return aligned(f, y, channels=f.shape[1:2]).to(f.dtype)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        """Weighted log p, (N, K, ...)."""
        terms = -functional.binary_cross_entropy_with_logits(f, y, reduction="none")
        if self.class_weights is None:
            return terms
        of_zero, of_one = self.class_weights
        return terms * (of_zero + (of_one - of_zero) * y)

    def distribution(self, f: Tensor) -> Any:
        """Bernoulli law with event shape (K, ...)."""
        _check_has_outputs(f, dim=1)
        return dist.Bernoulli(logits=f).to_event(f.ndim - 1)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> CategoricalPredictive:
        """The mixture of S pairs (P(y = 0), P(y = 1)), (N, 2, ...), or (N, 2, K, ...) of K labels."""
        _check_has_outputs(f, dim=2)
        f = within_floats(f)
        num_labels = f.shape[2]
        f = f if num_labels == 1 else f.unsqueeze(2)
        both = torch.cat([torch.zeros_like(f), f], dim=2)
        made = CategoricalPredictive.from_logits(both, keep_samples=keep_samples)
        return replace(made, is_multilabel=True) if num_labels > 1 else made

    def num_outputs(self, y: Tensor) -> int:
        """One for each label of a row."""
        return y.shape[1] if y.ndim > 1 else 1

    def logits(self, f: Tensor, dim: int = 1) -> Tensor:  # noqa: ARG002
        """The outputs themselves, logits of the second class."""
        return f

    def fisher_root(self, f: Tensor) -> Tensor:
        """sqrt(p (1 - p)) on the diagonal, (N, K, K)."""
        p = f.double().sigmoid()
        return (p * (1 - p)).sqrt().flatten(1).diag_embed()

    def target_weights(self, y: Tensor) -> Tensor:
        """Of each label's class."""
        return _of_classes(self.class_weights, y)


def _of_classes(class_weights: tuple[float, ...] | None, y: Tensor) -> Tensor:
    """The weight of each label's class, float64."""
    own = torch.ones(y.shape, dtype=torch.float64, device=y.device)
    if class_weights is None:
        return own
    classes = own.new_tensor(class_weights)
    return classes[y.long().clamp(0, len(classes) - 1)]  # an ignored label may be any number


def _within_floats(f: Tensor) -> Tensor:
    """Logits within floats, but for -inf, by which a network rules a class out."""
    if not are_noted(f) and are_within(f):
        return f
    ruled_out = f == -math.inf
    ruled_out = ruled_out & ~ruled_out.all(dim=2, keepdim=True)  # of all classes alike it is an overflow
    return within_floats(torch.where(ruled_out, 0.0, f)).masked_fill(ruled_out, -math.inf)


def _check_has_outputs(f: Tensor, dim: int) -> None:
    if f.ndim <= dim:
        raise ValueError(f"The network must give f of shape (N, 1, ...) for Bernoulli; got {tuple(f.shape)}.")


def balanced_class_weights(y: ArrayLike, *, num_classes: int | None = None) -> tuple[float, ...]:
    """Weights by which all classes count alike: N / (C n_c) for a class that n_c of N labels have, as scikit-learn's.

    Args:
        y: Labels, of rows or of pixels; negative ones are left out.
        num_classes: C; None is one more than the largest label.

    Raises:
        TypeError: Labels that are not whole numbers.
        ValueError: A class that no label has.

    Example:
        >>> balanced_class_weights([0, 0, 0, 1])
        (0.6666666666666666, 2.0)
    """
    labels = as_labels(y).flatten()
    counts = torch.bincount(labels[labels >= 0], minlength=num_classes or 0)
    if (counts == 0).any():
        raise ValueError(
            f"Each class must have a label to weigh it by; class {int((counts == 0).nonzero()[0])} has none."
        )
    return tuple((counts.sum() / (len(counts) * counts.double())).tolist())


def _check_class_weights(weights: Any) -> tuple[float, ...]:
    if isinstance(weights, str):
        raise ValueError(
            f"`class_weights` must be numbers, one for each class; got {weights!r}. Weights that balance classes are "
            "those of the data: class_weights=likelihoods.balanced_class_weights(data.y)."
        )
    values = check_each(weights, "class_weights", lambda weight, _: float(weight))
    if len(values) < 2 or any(not math.isfinite(value) or value < 0 for value in values) or sum(values) == 0:
        raise ValueError(f"`class_weights` must be finite, at least 0, not all 0, one for each class; got {values}.")
    return values
