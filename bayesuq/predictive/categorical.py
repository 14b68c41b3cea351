"""The predictive of labels: the mean of S softmaxes, from sums of fixed size that stream and merge.

Letters: S draws, N points, C classes, `...` further dimensions such as an image's height and width.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_labels, check_count, check_finite, check_one_of, to_floating
from bayesuq.predictive.base import (
    BLOCK_NUMBERS,
    PredictiveDistribution,
    block_size,
    check_concatenable,
    check_draws,
    check_mergeable,
    chosen_points,
)
from bayesuq.predictive.by_point import Columns
from bayesuq.predictive.probability_sums import LEAST, ProbabilitySum
from bayesuq.randomness import generator, resolve_seed
from bayesuq.waiting import are_noted, check

Kind = Literal["categorical", "bernoulli"]
PROBABILITY_SUM_TOLERANCE = 1e-4  # and no less than the rounding of the numbers as they came: half floats are coarser
CACHE_NUMBERS = 2**16  # that fit a processor's cache several times over
OVERFLOWN = "`logits` must not hold NaN or +inf; the network's output has overflowed."
NO_CLASS = "`logits` must leave at least one class possible; got rows of -inf."
ROUNDING = 1e-14  # of a sum in float64
SMALLEST_NORMAL = torch.finfo(torch.float64).tiny
LOG_OF_ZERO = -800.0  # below which a probability is 0 in float64
MOST_APART = 32  # classes, up to which softmaxes are faster with each class apart
NEAR = -math.log(LEAST)  # logits that are less than this apart have no probability too small for a sum
PIECE = 2**14  # pixels of two classes that are computed with at a time


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CategoricalPredictive(PredictiveDistribution):
    """Label probabilities: the mean of S softmaxes, with the entropies that split its uncertainty.

    The state is additive over draws and of fixed size, so predictions stream and merge exactly. Build it with
    `from_logits`, `from_probs`, or `from_sums` from a state that was kept.

    Attributes:
        probability_sum: Sum over draws of p, float64, (N, C, ...).
        entropy_sum: Sum over draws of H[p] in nats, float64, (N, ...).
        votes: Number of draws whose most probable class this is, int64, (N, C, ...); of equal ones it is the first.
        num_draws: S.
        draws: The draws' log probabilities up to a constant, (S, N, C, ...), where they were kept, else None.
        small_log_sum: The log of `probability_sum`, (N, C, ...), where an entry of it is too small for a float64 and
            not 0, else None; `log_probability_sum` is there always.
        names: Of the classes, C, by which tables tell them and labels may be given; None where they have numbers.
        is_multilabel: Whether each point has K labels of two classes that do not exclude each other, (N, 2, K, ...), as
            `likelihoods.Bernoulli` and `from_probs` of kind "bernoulli" give them: K is then no axis of an image.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))
        >>> predictive.mean, predictive.epistemic  # two sure draws that disagree: log 2 nats, all of it epistemic
        (tensor([[0.5000, 0.5000]], dtype=torch.float64), tensor([0.6931], dtype=torch.float64))
    """

    probability_sum: Tensor
    entropy_sum: Tensor
    votes: Tensor
    num_draws: int
    draws: Tensor | None = None
    small_log_sum: Tensor | None = None
    names: tuple[str, ...] | None = None
    is_multilabel: bool = False

    @classmethod
    def from_logits(cls, logits: ArrayLike, *, keep_samples: bool = True) -> Self:
        """The mixture of S softmaxes.

        Args:
            logits: Unnormalised log probabilities, (S, N, C, ...); -inf is a probability of zero.
            keep_samples: Whether single draws stay available (O(S N C) memory).

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Fewer than three dimensions, an empty one, one class, NaN or +inf, or a row of -inf.
        """
        logits = to_floating(logits, "logits")
        check_draws(logits, "logits", "(S, N, C, ...)", "logits[None]")
        _check_classes(logits, "logits", dim=2)
        extremes = torch.stack(logits.detach().aminmax())  # one pass, and NaN spreads to both
        if are_noted(logits):
            check(extremes[1] < math.inf, lambda: ValueError(OVERFLOWN))
            check(~(logits == -math.inf).all(dim=2).any(), lambda: ValueError(NO_CLASS))
            return cls._from_logits(logits, keep_samples=keep_samples)
        lowest, highest = extremes.tolist()
        if not highest < math.inf:
            raise ValueError(OVERFLOWN)
        if lowest == -math.inf and (logits == -math.inf).all(dim=2).any():
            raise ValueError(NO_CLASS)
        return cls._from_logits(logits, keep_samples=keep_samples, are_near=highest - lowest < NEAR)

    @classmethod
    def from_probs(cls, probs: ArrayLike, *, keep_samples: bool = True, kind: Kind = "categorical") -> Self:
        """The mixture of S vectors of class probabilities, (S, N, C, ...), summing to one over C.

        Args:
            probs: Of the classes; of "bernoulli" the probability of each of K labels that do not exclude each other,
                such as the sigmoids of regions that overlap, (S, N, K, ...). Each label is then a point with two
                classes: a mean (N, 2, K, ...) and y (N, K, ...) of 0 and 1; or (N, 2, ...) and y (N, ...) of one.
            keep_samples: Whether single draws stay available (O(S N C) memory).
            kind: What they are probabilities of.

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Fewer than three dimensions, an empty one, one class, negative, not finite, or not summing to
                one (logits by mistake), of "bernoulli" above 1; another kind.
        """
        check_one_of(kind, "kind", Kind)
        tolerance = max(PROBABILITY_SUM_TOLERANCE, _rounding_of(probs))
        probs = to_floating(probs, "probs")
        check_draws(probs, "probs", "(S, N, C, ...)", "probs[None]")
        num_labels = probs.shape[2]
        probs = _of_two_classes(probs) if kind == "bernoulli" else probs
        _check_classes(probs, "probs", dim=2)
        check_finite(probs, "probs")
        lowest = probs.detach().min()
        blocks = probs.split(block_size(CACHE_NUMBERS, probs[:, :1]), dim=1)
        positive = not are_noted(probs) and bool(lowest > SMALLEST_NORMAL)
        sums = [_sums_of_probabilities(block, positive=positive) for block in blocks]
        probability_sum, entropy_sum, votes, least, most = (torch.cat(part) for part in zip(*sums, strict=True))
        are_right = (lowest >= 0) & (most.max() - 1 <= tolerance) & (1 - least.min() <= tolerance)
        check(are_right, lambda: _no_probabilities(probs, least.min(), most.max()))
        return cls(
            probability_sum=probability_sum,
            entropy_sum=entropy_sum,
            votes=votes,
            num_draws=len(probs),
            draws=probs.log() if keep_samples else None,
            is_multilabel=kind == "bernoulli" and num_labels > 1,
        )

    @classmethod
    def from_sums(
        cls,
        *,
        probability_sum: Tensor,
        entropy_sum: Tensor,
        votes: Tensor,
        num_draws: int,
        small_log_sum: Tensor | None = None,
    ) -> Self:
        """From a streamed state; the arguments are the attributes of the class.

        Raises:
            ValueError: Shapes that do not fit each other, or sums that `num_draws` draws cannot have.
        """
        check_count(num_draws, "num_draws")
        if probability_sum.ndim < 2 or votes.shape != probability_sum.shape or entropy_sum.shape != votes[:, 0].shape:
            raise ValueError(
                "`probability_sum` and `votes` must have shape (N, C, ...) and `entropy_sum` (N, ...); got "
                f"{tuple(probability_sum.shape)}, {tuple(votes.shape)} and {tuple(entropy_sum.shape)}."
            )
        _check_classes(probability_sum, "probability_sum", dim=1)
        _check_sums(probability_sum, entropy_sum, votes, num_draws)
        if small_log_sum is not None:
            _check_log_sum(small_log_sum, probability_sum)
        return cls(
            probability_sum=probability_sum.double(),
            entropy_sum=entropy_sum.double(),
            votes=votes.long(),
            num_draws=num_draws,
            small_log_sum=None if small_log_sum is None else small_log_sum.double(),
        )

    @classmethod
    def _from_logits(cls, logits: Tensor, *, keep_samples: bool, are_near: bool = False) -> Self:
        # A few draws at a time: float64 copies of all would take S times the memory of the state.
        first, *others = logits.split(block_size(BLOCK_NUMBERS, logits[:1]))
        sums_of = _sums_of_two_maps if are_near and _are_two_maps(logits) else _sums_of_logits
        running, entropy_sum, votes = sums_of(first)
        for block in others:
            probs, entropy, said = sums_of(block)
            running.add(probs)
            entropy_sum += entropy
            votes += said
        return cls._of(
            running,
            entropy_sum=entropy_sum,
            votes=votes,
            num_draws=len(logits),
            draws=logits if keep_samples else None,
        )

    @classmethod
    def _of(cls, running: ProbabilitySum, **rest: Any) -> Self:
        settled = running.settled()
        return cls(probability_sum=settled.value, small_log_sum=settled.log, **rest)

    @property
    def _sum(self) -> ProbabilitySum:
        return ProbabilitySum(self.probability_sum, self.small_log_sum)

    @property
    def log_probability_sum(self) -> Tensor:
        """log of the sum over draws of p, float64, (N, C, ...); -inf only where every draw says 0."""
        return self._sum.full_log()

    @property
    def num_samples(self) -> int:
        """S, the number of draws in the mixture."""
        return self.num_draws

    @property
    def mean(self) -> Tensor:
        """Class probabilities, (N, C, ...)."""
        return self.probability_sum / self.num_draws

    @cached_property
    @torch.enable_grad()  # for whoever asks next
    def total(self) -> Tensor:
        """Entropy of the mean, H[E p], in nats, (N, ...)."""
        blocks = self.probability_sum.split(block_size(CACHE_NUMBERS, self.probability_sum[:1]))
        return torch.cat([_entropy_parts(block / self.num_draws).sum(dim=1) for block in blocks])

    @property
    def aleatoric(self) -> Tensor:
        """Mean entropy of the draws, E H[p], in nats, (N, ...)."""
        return self.entropy_sum / self.num_draws

    @property
    def epistemic(self) -> Tensor:
        """Mutual information of label and weights, H[E p] - E H[p], in nats, (N, ...), in [0, log min(S, C)].

        Its estimate from few draws is biased towards zero.

        Raises:
            FloatingPointError: Below -1e-6, which rounding cannot explain: the state's parts do not belong together.
        """
        if self.num_draws == 1:
            return 0.0 * self.entropy_sum  # exactly, where the difference would leave rounding errors
        information = self.total - self.aleatoric
        check(
            ~(information < -1e-6).any(),
            lambda: FloatingPointError(
                f"mutual information is negative, {float(information.min())}: inconsistent state"
            ),
        )
        return information.clamp(min=0.0)

    def named(self, names: Sequence[str]) -> Self:
        """The same predictive, its classes told by names.

        Raises:
            ValueError: Another number of names than classes, or two that are the same.
        """
        told, number = tuple(map(str, names)), self.probability_sum.shape[1]
        if isinstance(names, str) or len(told) != number or len(set(told)) < number:
            raise ValueError(f"`names` must be {number} different ones, as there are classes; got {names!r}.")
        return replace(self, names=told)

    def columns(self) -> Columns:
        """Label, class probabilities and uncertainties in nats of each point, (N,) each; of maps, means over pixels."""
        uncertainties = super().columns()
        if self.mean.ndim > 2:
            return uncertainties
        names = self.names or range(self.mean.shape[1])
        probabilities = {f"p_{name}": column for name, column in zip(names, self.mean.unbind(dim=1), strict=True)}
        return {"label": self._told(self.mean.max(dim=1).indices), **probabilities, **uncertainties}

    def _told(self, labels: Tensor) -> Tensor | list[str]:
        """Labels by their names, where they have such."""
        return labels if self.names is None else [self.names[label] for label in labels.tolist()]

    def shown_columns(self, number: int) -> Columns:
        """What a notebook shows of the first points, by name: of the probabilities that of the label."""
        uncertainties = {name: values[:number] for name, values in super().columns().items()}
        if self.mean.ndim > 2:
            return uncertainties
        top = self.mean[:number].max(dim=1)
        return {"label": self._told(top.indices), "probability": top.values, **uncertainties}

    @property
    def samples(self) -> Tensor:
        """Class probabilities of the single draws, (S, N, C, ...).

        Raises:
            ValueError: The draws were not kept.
        """
        return self._kept_draws().double().softmax(dim=2)

    def log_prob(self, y: ArrayLike) -> Tensor:
        """log of the mean probability of the labels, in nats, (N, ...).

        Args:
            y: Labels in {0, ..., C - 1}, (N, ...) or (N, 1, ...).

        Raises:
            TypeError: Labels that are not whole numbers.
            ValueError: Another shape, or a label outside the classes.
        """
        labels = self.labels(y).unsqueeze(1)
        if self.draws is None:
            if self.small_log_sum is None:
                log_sum = self.probability_sum.gather(1, labels).squeeze(1).log_()
            else:
                log_sum = self.small_log_sum.gather(1, labels).squeeze(1)
            return log_sum if self.num_draws == 1 else log_sum.sub_(math.log(self.num_draws))
        return self.component_log_prob(y).logsumexp(dim=0) - math.log(self.num_draws)

    def component_log_prob(self, y: ArrayLike) -> Tensor:
        """log probability of the labels under each draw, in nats, (S, N, ...).

        Raises:
            TypeError: See `log_prob`.
            ValueError: See `log_prob`; or the draws were not kept.
        """
        draws, labels = self._kept_draws(), self.labels(y).unsqueeze(1)
        return torch.stack([draw.double().log_softmax(dim=1).gather(1, labels).squeeze(1) for draw in draws])

    def labels(self, y: ArrayLike) -> Tensor:
        """`y` as int64 labels of shape (N, ...) on this predictive's device, or the errors that `log_prob` lists."""
        expected = self.entropy_sum.shape
        if self.names is not None:
            y = by_name(y, self.names)
        labels = as_labels(y, num_classes=self.probability_sum.shape[1])
        if labels.shape == (*expected[:1], 1, *expected[1:]):
            labels = labels.squeeze(1)
        if labels.shape != expected:
            one_hot = " Of one-hot labels pass `y.argmax(1)`." if labels.shape == self.votes.shape else ""
            raise ValueError(
                f"`y` must have shape {tuple(expected)} as the predictive has; got {tuple(labels.shape)}.{one_hot}"
            )
        return labels.to(self.probability_sum.device)

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Labels, (num_samples, N, ...), int64.

        Where the draws were kept, each sample takes one draw for all points and so has the points' joint distribution;
        else points are independent given x*, with the same distribution at each point.
        """
        check_count(num_samples, "num_samples")
        device = self.probability_sum.device
        noise = generator(resolve_seed(seed), device=device)
        if self.draws is None:
            probs = self.mean.movedim(1, -1).expand(num_samples, *self.entropy_sum.shape, -1)
        else:
            chosen = torch.randint(self.num_draws, (num_samples,), generator=noise, device=device)
            probs = self.draws[chosen].double().softmax(dim=2).movedim(2, -1)
        return _drawn_labels(probs, noise)

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """Labels, one from each draw, (S, N, ...), int64.

        Raises:
            ValueError: The draws were not kept.
        """
        noise = generator(resolve_seed(seed), device=self.probability_sum.device)
        return _drawn_labels(self.samples.movedim(2, -1), noise)

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        return type(self)(
            probability_sum=self.probability_sum.to(device),
            entropy_sum=self.entropy_sum.to(device),
            votes=self.votes.to(device),
            num_draws=self.num_draws,
            draws=None if self.draws is None else self.draws.to(device),
            small_log_sum=None if self.small_log_sum is None else self.small_log_sum.to(device),
            names=self.names,
            is_multilabel=self.is_multilabel,
        )

    @classmethod
    def mixture(cls, parts: Iterable[Self]) -> Self:
        """The equal mixture of the draws of all parts, at the same points; draws stay kept where all parts kept them.

        Parts may come from a generator: each is added to the running state and let go.
        """
        remaining = iter(parts)
        first = next(remaining, None)
        if first is None:
            raise ValueError("A mixture must have at least one part; got none.")
        running = ProbabilitySum(first.probability_sum.clone(), first.small_log_sum)
        entropy_sum, votes = first.entropy_sum.clone(), first.votes.clone()
        num_draws, draws = first.num_draws, [first.draws]
        names, is_multilabel = first.names, first.is_multilabel
        del first  # so that no part is held while another is made
        for part in remaining:
            check_mergeable(running.value.shape, part.probability_sum.shape)
            _check_same_kind([is_multilabel, part.is_multilabel])
            names = same_names(names, part.names)
            running.add(part._sum)
            entropy_sum += part.entropy_sum
            votes += part.votes
            num_draws += part.num_draws
            draws.append(part.draws)
            del part
        kept = [draw for draw in draws if draw is not None]
        return cls._of(
            running,
            entropy_sum=entropy_sum,
            votes=votes,
            num_draws=num_draws,
            draws=torch.cat(kept) if len(kept) == len(draws) else None,
            names=names,
            is_multilabel=is_multilabel,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The predictive at the points of all parts, in order; each part must have the same number of draws."""
        check_concatenable([part.num_draws for part in parts], [part.probability_sum.shape[1:] for part in parts])
        _check_same_kind([part.is_multilabel for part in parts])
        all_kept = all(part.draws is not None for part in parts)
        return cls._of(
            ProbabilitySum.concatenate([part._sum for part in parts]),
            entropy_sum=torch.cat([part.entropy_sum for part in parts]),
            votes=torch.cat([part.votes for part in parts]),
            num_draws=parts[0].num_draws,
            draws=torch.cat([part._kept_draws() for part in parts], dim=1) if all_kept else None,
            names=reduce(same_names, (part.names for part in parts)),
            is_multilabel=parts[0].is_multilabel,
        )

    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive at some of its points: see `RealPredictive.at`."""
        chosen = chosen_points(points, len(self.probability_sum), self.probability_sum.device)
        small = self.small_log_sum
        return self._of(
            ProbabilitySum(self.probability_sum[chosen], None if small is None else small[chosen]),
            entropy_sum=self.entropy_sum[chosen],
            votes=self.votes[chosen],
            num_draws=self.num_draws,
            draws=None if self.draws is None else self.draws[:, chosen],
            names=self.names,
            is_multilabel=self.is_multilabel,
        )

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:  # noqa: ARG002 - labels have no unit
        """Itself: labels have no unit."""
        return self

    def _kept_draws(self) -> Tensor:
        if self.draws is None:
            raise ValueError("Single draws were not kept. Call `predict(..., keep_samples=True)`.")
        return self.draws


def _log_softmax(logits: Tensor) -> Tensor:
    """log p in float64 of logits (S, N, C, ...), over C.

    Of a few classes in memory side by side torch takes one softmax after another, five times as long as with the
    classes apart, where it takes several at a time.
    """
    if logits.ndim > 3 or logits.shape[2] > MOST_APART or logits.requires_grad:
        return logits.double().log_softmax(dim=2)
    apart = logits.movedim(2, 0).contiguous().double()
    return apart.log_softmax(dim=0).movedim(0, 2).contiguous()


def by_name(y: ArrayLike, names: Sequence[str], *, known: Tensor | None = None) -> ArrayLike:
    """Labels by their numbers, where they come as names of classes.

    Args:
        y: Labels, any shape. Where classes are called by numbers that are not their own, as 3 to 8 for 0 to 5, numbers
            in arrays, lists and data frames are names if they can be nothing else; tensors hold places.
        names: Of the classes.
        known: Which labels count, of that shape; the others are 0, whatever they are. None is all.

    Raises:
        ValueError: A name that no class has; numbers that can be names or places.
    """
    if isinstance(y, Tensor):
        return y
    array = np.asarray(y)
    counts = np.ones(array.shape, dtype=bool) if known is None else known.cpu().numpy()
    if array.dtype.kind in "iuf":
        return _by_numeral(array, names, counts) if _are_other_numerals(names) else y
    if array.dtype.kind not in "OUST":
        return y
    given = [str(name) if counted else names[0] for name, counted in zip(array.flat, counts.flat, strict=True)]
    unknown = [name for name in given if name not in names]
    if unknown:
        raise ValueError(f"`y` has the label {unknown[0]!r}, which is none of {', '.join(names)}.")
    return torch.tensor([names.index(name) for name in given]).reshape(array.shape)


def _are_other_numerals(names: Sequence[str]) -> bool:
    """Whether all classes are called by numbers, and not by their own."""
    return all(name.removeprefix("-").isdecimal() for name in names) and [*map(int, names)] != [*range(len(names))]


def _by_numeral(array: "np.ndarray[Any, Any]", names: Sequence[str], counts: "np.ndarray[Any, Any]") -> ArrayLike:
    """Numbers as the classes that are called so, or as places where some are no such names.

    Raises:
        ValueError: They can be both.
    """
    called, given = [int(name) for name in names], array[counts]
    if not np.isin(given, called).all():
        return array
    if np.isin(given, np.arange(len(names))).all():
        raise ValueError(
            f"`y` holds numbers that may be names of classes ({', '.join(names)}) or their places from 0 to "
            f"{len(names) - 1}. Pass names as words, `y.astype(str)`, or places as a tensor."
        )
    places = [called.index(number) if counted else 0 for number, counted in zip(array.flat, counts.flat, strict=True)]
    return torch.tensor(places).reshape(array.shape)


def same_names(one: Sequence[str] | None, other: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names that both have of their classes, or the one that has any.

    Raises:
        ValueError: Others, or in another order, so that a number is not the same class.
    """
    if one is not None and other is not None and tuple(one) != tuple(other):
        raise ValueError(
            f"Predictives must have the same classes, in one order; got {', '.join(one)} and {', '.join(other)}."
        )
    names = other if one is None else one
    return None if names is None else tuple(names)


def _check_same_kind(are_multilabel: Sequence[bool]) -> None:
    """Refuse labels that do not exclude each other beside pixels of one label, whose shapes may be alike.

    Raises:
        ValueError: Both are there.
    """
    if len(set(are_multilabel)) > 1:
        raise ValueError(
            "Predictives of several labels a point, and of maps with one label a pixel, do not go together. Make both "
            "by one likelihood, or all by `from_probs(..., kind='bernoulli')`."
        )


def _entropy_parts(probs: Tensor) -> Tensor:
    """-p log p, which has no slope at 0 that a number could be."""
    return torch.special.entr(probs.clamp(min=SMALLEST_NORMAL) if probs.requires_grad else probs)


def _drawn_labels(probs: Tensor, noise: torch.Generator) -> Tensor:
    """Labels drawn with the probabilities in the last dimension."""
    return torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1, generator=noise).reshape(probs.shape[:-1])


def _of_two_classes(probs: Tensor) -> Tensor:
    """Probabilities of labels (S, N, K, ...) beside those of their absence, (S, N, 2, K, ...), or (S, N, 2, ...)."""
    check_finite(probs, "probs")
    least, most = probs.detach().aminmax()
    check(
        (least >= 0) & (most <= 1),
        lambda: ValueError(
            f"`probs` must lie in [0, 1]; got {least:.4g} to {most:.4g}. Logits become such by a sigmoid."
        ),
    )
    both = torch.stack([1 - probs, probs], dim=2)
    return both.squeeze(3) if probs.shape[2] == 1 else both


def _rounding_of(values: ArrayLike) -> float:
    """How far sums to 1 of numbers of this type may be off."""
    if isinstance(values, Tensor) and values.is_floating_point():
        return torch.finfo(values.dtype).eps
    return float(np.finfo(np.float16).eps) if getattr(values, "dtype", None) == np.float16 else 0.0


def _sums_of_logits(block: Tensor) -> tuple[ProbabilitySum, Tensor, Tensor]:
    """Of (S, N, C, ...) the sums over draws of p and of H[p], and the votes, by rows that a cache holds."""
    parts = [_sums_of_rows(rows) for rows in block.split(block_size(CACHE_NUMBERS, block[:, :1]), dim=1)]
    if len(parts) == 1:
        return parts[0]
    sums, entropies, votes = zip(*parts, strict=True)
    return ProbabilitySum.concatenate(sums), torch.cat(entropies), torch.cat(votes)


def _sums_of_rows(block: Tensor) -> tuple[ProbabilitySum, Tensor, Tensor]:
    log_probs = _log_softmax(block)
    probs = log_probs.exp()
    entropy = 0.0 - (probs * log_probs.clamp(min=LOG_OF_ZERO)).sum(dim=(0, 2))
    # Not of logits: two that differ may have equal probabilities, of which the first counts.
    winners = probs.max(dim=2).indices.movedim(0, 1)  # of maps ten times as fast as `argmax`
    votes = torch.zeros(block.shape[1:], dtype=torch.int64, device=block.device)
    votes.scatter_add_(1, winners, torch.ones_like(winners))
    return ProbabilitySum.of_draws(probs, log_probs), entropy, votes


def _are_two_maps(logits: Tensor) -> bool:
    return logits.ndim > 3 and logits.shape[2] == 2 and logits.device.type == "cpu" and not logits.requires_grad


def _sums_of_two_maps(block: Tensor) -> tuple[ProbabilitySum, Tensor, Tensor]:
    """As `_sums_of_logits`, of maps of two classes, (S, N, 2, ...), whose logits are less than `NEAR` apart.

    A piece of a map goes through all steps while a cache holds it, and its two classes are two sigmoids.
    """
    flat = block.flatten(3)
    size = flat.shape[1:]
    probs, votes = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.int64)
    entropy = torch.zeros(size[0], size[2], dtype=torch.float64)
    images = max(1, PIECE // size[2])
    for draw in flat:
        for rows in zip(*(values.split(images) for values in (draw, probs, entropy, votes)), strict=True):
            for piece in zip(*(values.split(PIECE, dim=-1) for values in rows), strict=True):
                _add_two_classes(*piece)
    torch.sub(len(block), votes[:, 1], out=votes[:, 0])
    shape = block.shape[1:]
    return ProbabilitySum(probs.view(shape)), entropy.view(shape[:1] + shape[2:]), votes.view(shape)


def _add_two_classes(logits: Tensor, probs: Tensor, entropy: Tensor, votes: Tensor) -> None:
    """Add what one draw says, logits (N, 2, M), to sums of both classes, of entropies, and to the votes of class 1."""
    gap = logits[:, 1].double() - logits[:, 0]  # not in place: float64 logits are the draws themselves
    away = gap.abs()
    one = gap.sigmoid()
    none = gap.neg_().sigmoid_()
    probs[:, 0] += none
    probs[:, 1] += one
    votes[:, 1] += one > none
    entropy.addcmul_(torch.minimum(one, none), away)  # H = |f| p - log(1 - p), p of the less probable class
    entropy.sub_(torch.maximum(one, none).log_())


def _sums_of_probabilities(block: Tensor, *, positive: bool) -> tuple[Tensor, ...]:
    """Of (S, N, C, ...) the sums over draws of p and of H[p], the votes, and the extremes of the sums over classes."""
    probs = block.double()
    size = probs.sum(dim=2, keepdim=True)
    least, most = size.aminmax()
    if are_noted(probs):
        probs = torch.where((least < 1 - ROUNDING) | (most > 1 + ROUNDING), probs / size, probs)
    elif bool((least < 1 - ROUNDING) | (most > 1 + ROUNDING)):
        probs = probs / size
    logs = (probs if positive else probs.clamp(min=SMALLEST_NORMAL)).log()  # 0 log 0 = 0
    entropy = -logs.mul_(probs).sum(dim=(0, 2))
    is_largest = probs == probs.amax(dim=2, keepdim=True)  # after the division, which may make two equal
    votes = is_largest.sum(dim=0)
    if are_noted(probs) or int(votes.sum()) > entropy.numel() * len(block):  # a tie goes to the first class
        first = is_largest.to(torch.uint8).max(dim=2, keepdim=True).indices
        votes = torch.zeros_like(is_largest).scatter_(2, first, True).sum(dim=0)
    return probs.sum(dim=0), entropy.clamp(min=0.0), votes, least[None], most[None]


def _no_probabilities(probs: Tensor, least: Tensor, most: Tensor) -> ValueError:
    return ValueError(
        "`probs` must be at least 0 and sum to 1 over classes, which stand in the third dimension; got sums from "
        f"{least:.4g} to {most:.4g}. {_mend_of(probs)}"
    )


def _mend_of(values: Tensor) -> str:
    """What to do with numbers that are no probabilities of classes which exclude each other."""
    if values.min() < 0 or values.max() > 1:
        return "Use `from_logits` for logits."
    return (
        "Of labels that do not exclude each other (a sigmoid for each, as of regions that overlap) each is a point "
        "with two classes: pass `kind='bernoulli'`, and y (N, K, ...) of 0 and 1. Where the "
        "classes stand in another dimension, move it."
    )


def _check_classes(values: Tensor, name: str, dim: int) -> None:
    if values.shape[dim] < 2:
        raise ValueError(
            f"`{name}` must have at least two classes in dimension {dim}; got shape {tuple(values.shape)}. Write a "
            "Bernoulli as two classes, with logits 0 and f."
        )


def _check_sums(probability_sum: Tensor, entropy_sum: Tensor, votes: Tensor, num_draws: int) -> None:
    off = (probability_sum.double().sum(dim=1) - num_draws).abs()
    if not ((off <= PROBABILITY_SUM_TOLERANCE * num_draws).all() and (probability_sum >= 0).all()):
        raise ValueError(f"`probability_sum` must be at least 0 and sum to {num_draws}, the draws, over classes.")
    if not (votes.sum(dim=1) == num_draws).all():
        raise ValueError(f"`votes` must sum to {num_draws}, the draws, over classes.")
    if not (entropy_sum.isfinite() & (entropy_sum >= -1e-6)).all():  # rounding may leave a little below 0
        raise ValueError("`entropy_sum` must be finite and at least 0.")


def _check_log_sum(small_log_sum: Tensor, probability_sum: Tensor) -> None:
    if small_log_sum.shape != probability_sum.shape or not torch.allclose(
        small_log_sum.double().exp(), probability_sum.double(), rtol=1e-6, atol=1e-250
    ):
        raise ValueError("`small_log_sum` must be the log of `probability_sum`, of its shape (N, C, ...).")
