"""How well images are segmented, and whether the uncertainty lies where the segmentation is wrong.

Each measure is exact over all labelled pixels, never a sample of them; `ignore_index` leaves void pixels out. Regions
are counted over all images together, so that a class counts by its area; `pointwise_dice` is image by image. What
streams over images, with the image as the unit of standard errors, is `pixel_counts`, `overlap` and
`segmentation_report`.

References:
    Jungo & Reyes, "Assessing reliability and challenges of uncertainty estimations for medical image segmentation",
    MICCAI 2019: the uncertainty-error overlap.
    DeVries & Taylor, "Leveraging uncertainty estimates for predicting segmentation quality", 2018.
"""

from torch import Tensor

from bayesuq.arrays import ArrayLike, check_finite, to_floating
from bayesuq.evaluation.segmentation.overlap import overlap_sweep
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts
from bayesuq.predictive.categorical import CategoricalPredictive


def intersection_over_union(
    predictive: CategoricalPredictive, y: ArrayLike, *, ignore_index: int | None = None
) -> Tensor:
    """#(truth and predicted) / #(truth or predicted), the mean over the classes that are in either.

    Of two classes it is that of class 1 alone, the foreground, and 1 where there was none to find and none was found;
    `PixelCounts.class_intersection_over_union` has each.

    Args:
        predictive: Of the pixels of N images, with a mean (N, C, ...) of any spatial rank, such as (N, C, H, W).
        y: Labels, (N, ...).
        ignore_index: The label of void pixels.

    Returns:
        Fraction, 0-d float64; NaN without labelled pixels.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or a label outside the classes.

    Example:
        >>> predicted = CategoricalPredictive.from_logits([[[[[0, 0, 9, 9]], [[9, 9, 0, 0]]]]])  # 1, 1, 0, 0
        >>> intersection_over_union(predicted, [[[1, 0, 0, 0]]])  # one pixel of class 1 in both, two in either
        tensor(0.5000, dtype=torch.float64)
    """
    return PixelCounts.of(predictive, y, ignore_index=ignore_index).pooled.intersection_over_union


def dice(
    predictive: CategoricalPredictive, y: ArrayLike, *, ignore_index: int | None = None, background: bool = False
) -> Tensor:
    """2 #(truth and predicted) / (#truth + #predicted), otherwise as `intersection_over_union`.

    The mean leaves out class 0, the background, unless `background` is true; of two classes it is that of class 1 in
    any case. `masks.class_dice` has each class of each image.
    """
    return _dice(PixelCounts.of(predictive, y, ignore_index=ignore_index).pooled, background=background)


def pointwise_dice(
    predictive: CategoricalPredictive, y: ArrayLike, *, ignore_index: int | None = None, background: bool = False
) -> Tensor:
    """Dice of each image, (N,), the mean over the classes that are in it; see `dice`.

    Where there is nothing to find and nothing was found it is 1; NaN where no pixel is labelled. Over batches
    `states.mean_of(pointwise_dice, skip_undefined=True)` leaves those images out.
    """
    return _dice(PixelCounts.of(predictive, y, ignore_index=ignore_index), background=background)


def pixel_accuracy(predictive: CategoricalPredictive, y: ArrayLike, *, ignore_index: int | None = None) -> Tensor:
    """Share of labelled pixels predicted right; see `intersection_over_union` for the rest."""
    return PixelCounts.of(predictive, y, ignore_index=ignore_index).pooled.accuracy


def uncertainty_error_overlap(
    uncertainty: ArrayLike, errors: ArrayLike, threshold: float, *, labelled: ArrayLike | None = None
) -> Tensor:
    """Dice of uncertain pixels, U = {u > threshold}, and wrong ones, E, image by image: 2 #(E and U) / (#E + #U).

    An image where both are empty has 1, one without a labelled pixel NaN. A map that says nothing has about 2 e / (1 +
    e) at error rate e where all is called uncertain: see `bayesuq.evaluation.segmentation.overlap` for that floor, and
    for the choice of the threshold.

    Args:
        uncertainty: In [0, 1] as `overlap.fractions` gives it, (N, ...).
        errors: Whether each pixel is predicted wrong, (N, ...).
        threshold: Pixels above it are uncertain.
        labelled: Which pixels count, (N, ...); None is all.

    Returns:
        Fraction for each image, (N,), float64.

    Raises:
        TypeError: Not numbers.
        ValueError: Shapes that differ, values that are not finite.

    Reference:
        Jungo & Reyes 2019, section 2.3.

    Example:
        >>> uncertainty_error_overlap([[0.9, 0.6, 0.1, 0.1]], [[True, False, True, False]], 0.5)  # one of two and two
        tensor([0.5000], dtype=torch.float64)
    """
    return overlap_sweep(uncertainty, errors, thresholds=(threshold,), labelled=labelled).overlap[:, 0]


def rank_correlation(uncertainty: ArrayLike, quality: ArrayLike) -> Tensor:
    """Spearman's correlation over images of an uncertainty with a quality such as Dice, ties at their mean rank.

    -1 is an uncertainty that orders the images from best to worst without seeing the truth (DeVries & Taylor 2018).

    Args:
        uncertainty: Of each image, (N,).
        quality: Of each image, (N,).

    Returns:
        In [-1, 1], 0-d float64; NaN where one of them is constant.

    Raises:
        TypeError: Not numbers.
        ValueError: Shapes that differ, values that are not finite.

    Example:
        >>> rank_correlation([0.1, 0.2, 0.9], [0.95, 0.9, 0.3])
        tensor(-1., dtype=torch.float64)
    """
    one, other = to_floating(uncertainty, "uncertainty").double(), to_floating(quality, "quality").double()
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(
            f"`uncertainty` and `quality` must have one shape (N,); got {tuple(one.shape)} and {tuple(other.shape)}."
        )
    for values, name in ((one, "uncertainty"), (other, "quality")):
        check_finite(values, name)
    ranks = [_mean_ranks(values) for values in (one, other)]
    centred = [rank - rank.mean() for rank in ranks]
    product = (centred[0] * centred[1]).sum()
    return (product / (centred[0].square().sum() * centred[1].square().sum()).sqrt()).clamp(-1, 1)


def _dice(counts: PixelCounts, *, background: bool) -> Tensor:
    return counts.dice if background else counts.foreground_dice


def _mean_ranks(values: Tensor) -> Tensor:
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(dim=0).double()
    return (last - (count - 1) / 2)[place]
