"""What is kept of segmented images: counts and sums, image by image or of all together, whose pixels are then let go.

Every measure of pixels is a function of these counts, exact over all labelled pixels; void ones (`ignore_index`) are in
none of them. The counts of images stand in rows, so that the image is the unit of every standard error: pixels of one
image are far from independent. Counts are int64 and sums float64, a few hundred numbers an image.

    rows = [PixelCounts.of(posterior.predict(x), y, ignore_index=11) for x, y in loader]
    PixelCounts.concatenate(rows).pooled.intersection_over_union
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self, SupportsIndex

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_labels, check_count
from bayesuq.evaluation.binning import Reliability, added, bin_index
from bayesuq.evaluation.kinds import check_categorical
from bayesuq.evaluation.scores import FOR_LABELS, pointwise_brier_score
from bayesuq.evaluation.segmentation.image_counts import CountedPixels
from bayesuq.evaluation.streaming.states import State
from bayesuq.predictive.categorical import CategoricalPredictive


@dataclass(frozen=True, eq=False, kw_only=True)
class PixelCounts:
    """Counts and sums over labelled pixels; `...` is N for images in rows, nothing for all of them together.

    Attributes:
        confusion: Pixels by true and predicted class, int64, (..., C, C).
        confidence_count: Pixels by the bin of their confidence, int64, (..., B).
        confidence_correct: Of these, those predicted right, int64, (..., B).
        confidence_sum: Sum of confidences by bin, float64, (..., B).
        num_impossible: Pixels whose label has probability 0, int64, (...): one makes the log score infinite.
        log_score_sum: Of -log p(y), in nats, float64, (...).
        brier_sum: Of Brier scores, float64, (...).
        total_sum: Of total uncertainty, entropies in nats, float64, (...).
        epistemic_sum: Of epistemic uncertainty, likewise; exactly 0 for one draw.
    """

    confusion: Tensor
    confidence_count: Tensor
    confidence_correct: Tensor
    confidence_sum: Tensor
    num_impossible: Tensor
    log_score_sum: Tensor
    brier_sum: Tensor
    total_sum: Tensor
    epistemic_sum: Tensor

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        predictive: CategoricalPredictive,
        y: ArrayLike,
        *,
        ignore_index: int | None = None,
        num_bins: int = 15,
    ) -> Self:
        """Of N images, in rows.

        Args:
            predictive: Of their pixels, with a mean (N, C, ...).
            y: Labels, (N, ...).
            ignore_index: The label of void pixels, which count nowhere.
            num_bins: B, equal bins of the confidence.

        Raises:
            TypeError: Not a CategoricalPredictive; labels or `num_bins` that are not whole numbers.
            ValueError: `y` of another shape, or a label outside the classes; fewer than one bin.
        """
        check_count(num_bins, "num_bins")
        mean = predictive.mean
        if mean.ndim < 3:
            raise ValueError(
                "`predictive` must be of the pixels of images, with a mean (N, C, H, W); got "
                f"{tuple(mean.shape)}. Of single labels take `scores.accuracy`."
            )
        labels, valid = labelled(predictive, y, ignore_index=ignore_index)
        num_images, num_classes = mean.shape[:2]
        # Rounding of a streamed sum may leave a probability a hair above 1; the first class wins a tie.
        confidence, predicted = mean.max(dim=1)
        counted = CountedPixels(valid)
        truth, said, stated = counted.of(labels), counted.of(predicted), counted.of(confidence).clamp(max=1.0)
        cells = (counted.images * num_classes + truth) * num_classes + said
        bins = counted.images * num_bins + bin_index(stated, num_bins)
        size = num_images * num_bins
        log_scores = -predictive.log_prob(labels)
        counts = [
            torch.bincount(bins, minlength=size),
            torch.bincount(bins[truth == said], minlength=size),
            torch.bincount(bins, weights=stated, minlength=size),
        ]
        count, correct, sums = (each.view(num_images, num_bins) for each in counts)
        return cls(
            confusion=torch.bincount(cells, minlength=num_images * num_classes**2).view(-1, num_classes, num_classes),
            confidence_count=count,
            confidence_correct=correct,
            confidence_sum=sums,
            num_impossible=(valid & log_scores.isposinf()).flatten(1).sum(dim=1),
            log_score_sum=_sum(log_scores, valid),
            brier_sum=_sum(pointwise_brier_score(predictive, labels), valid),
            total_sum=_sum(predictive.total, valid),
            epistemic_sum=_sum(predictive.epistemic, valid),
        )

    @classmethod
    def empty(cls, num_classes: int, num_bins: int = 15) -> Self:
        """Of no image: what merging starts from.

        Raises:
            TypeError, ValueError: Numbers that are not whole, or fewer than two classes or one bin.
        """
        check_count(num_classes, "num_classes", minimum=2)
        none, bins = torch.zeros((), dtype=torch.float64), torch.zeros(check_count(num_bins, "num_bins")).long()
        return cls(
            confusion=torch.zeros(num_classes, num_classes).long(),
            confidence_count=bins,
            confidence_correct=bins,
            confidence_sum=bins.double(),
            num_impossible=none.long(),
            log_score_sum=none,
            brier_sum=none,
            total_sum=none,
            epistemic_sum=none,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts.

        Raises:
            ValueError: No part, or parts of other numbers of classes or bins.
        """
        shapes = {(part.confusion.shape[1:], part.confidence_count.shape[1:]) for part in parts}
        if len(shapes) != 1:
            raise ValueError(f"Parts must have the same classes and bins, and be at least one; got {sorted(shapes)}.")
        return cls(**{field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)})

    @property
    def pooled(self) -> Self:
        """Of all images together."""
        return self.weighted(torch.ones(len(self.confusion), dtype=torch.float64, device=self.confusion.device))

    def weighted(self, weights: Tensor) -> Self:
        """Of all images together, each as often as its weight says.

        Args:
            weights: (N,), or (R, N) for R ways to weigh; counts stay whole numbers where weights are, and float64.
        """

        def summed(values: Tensor) -> Tensor:
            flat = weights @ values.double().reshape(len(values), -1)
            return flat.reshape((*weights.shape[:-1], *values.shape[1:]))

        whole = {field.name: summed(getattr(self, field.name)) for field in fields(self)}
        for name in ("confusion", "confidence_count", "confidence_correct", "num_impossible"):
            whole[name] = whole[name].round().long() if bool((weights == weights.round()).all()) else whole[name]
        return replace(self, **whole)

    def merge(self, other: Self) -> Self:
        """Of the images of both, as sums.

        Raises:
            ValueError: Other numbers of classes or bins.
        """
        if self.confusion.shape != other.confusion.shape or self.confidence_sum.shape != other.confidence_sum.shape:
            raise ValueError(
                "Only counts of the same classes and bins merge; got "
                f"{tuple(self.confusion.shape)} with {self.confidence_sum.shape[-1]} bins and "
                f"{tuple(other.confusion.shape)} with {other.confidence_sum.shape[-1]}. Use `concatenate` for rows."
            )
        return added(self, other)

    @property
    def num_pixels(self) -> Tensor:
        """Labelled pixels, (...)."""
        return self.confusion.sum(dim=(-2, -1))

    @property
    def num_errors(self) -> Tensor:
        """Of these, those predicted wrong, (...)."""
        return self.num_pixels - self._hits.sum(dim=-1)

    @property
    def accuracy(self) -> Tensor:
        """Share of labelled pixels predicted right, (...), float64."""
        return self._hits.sum(dim=-1).double() / self.num_pixels

    @property
    def class_intersection_over_union(self) -> Tensor:
        """#(truth and predicted) / #(truth or predicted) of each class, (..., C); NaN where the class is in neither."""
        return self._hits.double() / (self.confusion.sum(dim=-1) + self.confusion.sum(dim=-2) - self._hits)

    @property
    def class_dice(self) -> Tensor:
        """2 #(truth and predicted) / (#truth + #predicted) of each class, (..., C); NaN where it is in neither."""
        return 2 * self._hits.double() / (self.confusion.sum(dim=-1) + self.confusion.sum(dim=-2))

    @property
    def intersection_over_union(self) -> Tensor:
        """Mean over the classes that are there, (...); of two classes, that of class 1 alone, the foreground.

        1 where there was no foreground to find and none was found; NaN without a labelled pixel.
        """
        return self._over_classes(self.class_intersection_over_union)

    @property
    def dice(self) -> Tensor:
        """As `intersection_over_union`, of `class_dice`."""
        return self._over_classes(self.class_dice)

    @property
    def foreground_dice(self) -> Tensor:
        """Mean of `class_dice` over the classes that are there but class 0, the background, (...).

        1 where there was no foreground to find and none was found; NaN without a labelled pixel.
        """
        mean = self.class_dice[..., 1:].nanmean(dim=-1)
        return torch.where(mean.isnan() & (self.num_pixels > 0), 1.0, mean)

    @property
    def reliability(self) -> Reliability:
        """Confidence against accuracy over pixels."""
        return Reliability(
            count=self.confidence_count, num_correct=self.confidence_correct, confidence_sum=self.confidence_sum
        )

    @property
    def negative_log_likelihood(self) -> Tensor:
        """Nats a pixel, (...)."""
        return self.log_score_sum / self.num_pixels

    @property
    def brier_score(self) -> Tensor:
        """A pixel's, from 0 to 2, (...)."""
        return self.brier_sum / self.num_pixels

    @property
    def total(self) -> Tensor:
        """Mean total uncertainty, nats a pixel, (...)."""
        return self.total_sum / self.num_pixels

    @property
    def aleatoric(self) -> Tensor:
        """Mean aleatoric uncertainty, nats a pixel, (...)."""
        return (self.total_sum - self.epistemic_sum) / self.num_pixels

    @property
    def epistemic(self) -> Tensor:
        """Mean epistemic uncertainty, nats a pixel, (...)."""
        return self.epistemic_sum / self.num_pixels

    @property
    def _hits(self) -> Tensor:
        return self.confusion.diagonal(dim1=-2, dim2=-1)

    def _over_classes(self, values: Tensor) -> Tensor:
        if values.shape[-1] > 2:
            return values.nanmean(dim=-1)
        foreground = values[..., 1]
        return torch.where(foreground.isnan() & (self.num_pixels > 0), 1.0, foreground)


def pixel_state(num_classes: int, *, ignore_index: int | None = None, num_bins: int = 15) -> State[PixelCounts]:
    """A state of fixed size for images without end; see `bayesuq.evaluation.streaming.states`.

    `state.summary` has every measure of pixels; the result is the intersection over union.
    """

    def summarise(predictive: CategoricalPredictive, y: ArrayLike, weight: ArrayLike | None) -> PixelCounts:
        if weight is not None:
            raise ValueError("Pixels have no `weight` here: give those that do not count the label `ignore_index`.")
        return PixelCounts.of(predictive, y, ignore_index=ignore_index, num_bins=num_bins).pooled

    return State(
        name=f"pixels of {num_classes} classes in {num_bins} bins, ignoring {ignore_index}",
        summary=PixelCounts.empty(num_classes, num_bins),
        summarise=summarise,
        read=lambda counts: counts.intersection_over_union,
        is_classwise=True,
    )


def labelled(predictive: CategoricalPredictive, y: ArrayLike, *, ignore_index: int | None) -> tuple[Tensor, Tensor]:
    """Labels with 0 in the place of void, and which pixels are not void, each of the shape of the predictive's maps.

    Raises:
        TypeError: Not a CategoricalPredictive; labels, or the void one, that are not whole numbers.
        ValueError: `y` of another shape, or a label outside the classes.
    """
    check_categorical(predictive, FOR_LABELS)
    given = as_labels(y)
    if ignore_index is not None and not isinstance(ignore_index, SupportsIndex | float):
        raise TypeError(f"`ignore_index` must be a whole number or None; got {ignore_index!r}.")
    void = torch.zeros_like(given, dtype=torch.bool) if ignore_index is None else given == ignore_index
    labels = predictive.labels(given.masked_fill(void, 0))
    return labels, ~void.reshape(labels.shape).to(labels.device)


def _sum(values: Tensor, valid: Tensor) -> Tensor:
    """Over the labelled pixels of each image, (N,)."""
    return torch.where(valid, values, 0.0).flatten(1).sum(dim=1)
