"""How far a measure would move on other test points of the same kind: its standard error.

The unit is a row of the test set. A row may hold many values (an image its pixels); these count together, never as
independent. Rows are taken as independent, the fitted model as given: this is the noise of the test set alone.

References:
    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", Biometrics 1988.
    Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 1997.
    Hanley and MacGibbon, "Creating non-parametric bootstrap samples using Poisson frequencies", CMPB 2006.
"""

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.evaluation.calibration import bin_index
from bayesuq.evaluation.detection import check_scores
from bayesuq.evaluation.scores import pointwise_accuracy
from bayesuq.predictive import CategoricalPredictive
from bayesuq.randomness import generator

BLOCK_ROWS = 8192  # whose Poisson counts are held at a time


def of_mean(values: Tensor) -> Tensor:
    """Of the mean of `values`: standard deviation of the rows' means (ddof 1) over sqrt N.

    Args:
        values: Of each point, (N, ...).

    Returns:
        In the unit of `values`, 0-d float64; NaN for one row or infinite values.
    """
    rows = values.double().reshape(len(values), -1).mean(dim=1)
    if len(rows) < 2:
        return torch.full((), torch.nan, dtype=torch.float64, device=values.device)
    return (rows - rows[0]).std() / len(rows) ** 0.5  # the shift makes it exactly 0 where all rows are equal


def of_root_mean(squares: Tensor) -> Tensor:
    """Of sqrt(mean(squares)), by the delta method: that of the mean over twice the root; see `of_mean`.

    Returns:
        In the unit of the root, 0-d float64; 0 where all squares are.
    """
    root = squares.double().mean().sqrt()
    return of_mean(squares) / (2 * root) if root > 0 else torch.zeros_like(root)


def of_auroc(scores: ArrayLike, positives: ArrayLike) -> Tensor:
    """Of `detection.auroc`, in closed form: DeLong et al. (1988), with rows of many values as Obuchowski (1997).

    Args:
        scores: Of each point, (N, ...).
        positives: Whether each point is a positive, (N, ...).

    Returns:
        Fraction, 0-d float64; NaN where fewer than two rows hold a positive, or a negative.

    Raises:
        TypeError: Not numbers.
        ValueError: NaN scores, positives that are not 0 or 1, shapes that differ.
    """
    values, positive = check_scores(scores, positives)
    placement = _placements(values.flatten(), positive.flatten()).reshape(len(values), -1)
    positive = positive.reshape(len(values), -1)
    num_positive, num_negative = positive.sum(), (~positive).sum()
    area = (placement * positive).sum() / num_positive
    # Each row's part in the sums over positives and over negatives, centred: the brackets of Obuchowski, section 3.
    found = ((placement - area) * positive).sum(dim=1)
    passed = ((placement - area) * ~positive).sum(dim=1)
    rows = len(values)
    with_positive, with_negative = (group.any(dim=1).sum().double() for group in (positive, ~positive))
    variance = (
        with_positive / (with_positive - 1) * (found / num_positive).square().sum()
        + with_negative / (with_negative - 1) * (passed / num_negative).square().sum()
        + 2 * rows / max(rows - 1, 1) * (found * passed).sum() / (num_positive * num_negative)
    )
    defined = (with_positive > 1) & (with_negative > 1)
    return torch.where(defined, variance.clamp(min=0.0).sqrt(), torch.nan)


def of_expected_calibration_error(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, num_replicates: int = 200, seed: int = 0
) -> Tensor:
    """Of `calibration.expected_calibration_error`, by a Poisson bootstrap: each row counts Poisson(1) times.

    Too wide for a calibrated predictive, where |gap| has its kink: by a quarter for 400 points; right for clear gaps.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        num_bins: B, bins of equal width.
        num_replicates: R, bootstrap samples; the standard error's own relative error is about 1 / sqrt(2 R).
        seed: Of the counts.

    Returns:
        Fraction, 0-d float64.

    Raises:
        TypeError: Not a CategoricalPredictive; labels that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes; fewer than one bin, or than two replicates.
    """
    check_count(num_bins, "num_bins")
    check_count(num_replicates, "num_replicates", minimum=2)
    correct = pointwise_accuracy(predictive, y)
    confidence = predictive.mean.amax(dim=1)
    correct, confidence = correct.reshape(len(correct), -1), confidence.reshape(len(correct), -1)
    gaps = confidence.new_zeros(len(confidence), num_bins)  # of each row, what it adds to each bin's sum
    gaps.scatter_add_(1, bin_index(confidence, num_bins), correct - confidence)
    sums, sizes = gaps.new_zeros(num_replicates, num_bins), gaps.new_zeros(num_replicates)
    for block, rows in enumerate(gaps.split(BLOCK_ROWS)):
        rate = rows.new_ones(num_replicates, len(rows))
        counts = torch.poisson(rate, generator=generator(seed, block, device=rows.device))
        sums += counts @ rows
        sizes += counts.sum(dim=1)
    # A replicate of no rows at all (N of a few) has no error either.
    return (sums.abs().sum(dim=1) / (sizes * confidence.shape[1]).clamp(min=1)).std()


def _placements(scores: Tensor, positive: Tensor) -> Tensor:
    """Of each positive the share of negatives that it beats, of each negative the share of positives that beat it."""
    _, group = scores.unique(return_inverse=True)
    size = int(group.max()) + 1
    positives = torch.bincount(group[positive], minlength=size).double()  # whole numbers would halve in float32
    negatives = torch.bincount(group[~positive], minlength=size).double()
    below = (negatives.cumsum(0) - negatives + negatives / 2) / negatives.sum()
    above = (positives.sum() - positives.cumsum(0) + positives / 2) / positives.sum()
    return torch.where(positive, below[group], above[group])
