"""How far a measure would move on other test points of the same kind: its standard error.

The unit is a row of the test set. A row may hold many values (an image its pixels); these count together, never as
independent. Rows are taken as independent, the fitted model as given: this is the noise of the test set alone.

References:
    DeLong, DeLong and Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves", Biometrics 1988.
    Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 1997.
    Efron, "Jackknife-after-bootstrap standard errors and influence functions", JRSS B 1992, for derivatives.
    Hanley and MacGibbon, "Creating non-parametric bootstrap samples using Poisson frequencies", CMPB 2006.
"""

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.evaluation import weighted
from bayesuq.evaluation.ranks import check_scores
from bayesuq.evaluation.weighted import Weighted
from bayesuq.predictive import CategoricalPredictive
from bayesuq.randomness import generator


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


def of_average_precision(scores: ArrayLike, positives: ArrayLike) -> Tensor:
    """Of `detection.average_precision`, by the derivative in each row's weight; see `of_auroc` for the rest.

    Returns:
        Fraction, 0-d float64; NaN where there is no positive, or one row.
    """
    return by_derivative(weighted.average_precision(scores, positives))


def of_aurc(scores: ArrayLike, errors: ArrayLike) -> Tensor:
    """Of `detection.aurc`, by the derivative in each row's weight.

    Args:
        scores: Uncertainty of each point, (N, ...).
        errors: Whether each prediction is wrong, or any loss of at least 0, (N, ...).

    Returns:
        In the unit of `errors`, 0-d float64; NaN for one row.

    Raises:
        TypeError: Not numbers.
        ValueError: See `detection.aurc`.
    """
    return by_derivative(weighted.aurc(scores, errors))


def by_derivative(measure: Weighted) -> Tensor:
    """Of a measure that is smooth in its rows' weights: the infinitesimal jackknife, of one pass and its derivative.

    sqrt(N / (N - 1) sum_i (d measure / d w_i)^2) at w = 1. For a mean it is `of_mean`.

    Args:
        measure: From `weighted`. Where it has kinks, as the ECE, or jumps, take `bootstrap.standard_error`.

    Returns:
        In the unit of the measure, 0-d float64; NaN where it is undefined, or for one row.
    """
    if measure.num_rows < 2:
        return torch.full((), torch.nan, dtype=torch.float64, device=measure.device)
    with torch.enable_grad():
        weights = torch.ones(1, measure.num_rows, dtype=torch.float64, device=measure.device, requires_grad=True)
        (slopes,) = torch.autograd.grad(measure(weights).sum(), weights)
    return (slopes.square().sum() * measure.num_rows / (measure.num_rows - 1)).sqrt()


def of_expected_calibration_error(
    predictive: CategoricalPredictive, y: ArrayLike, num_bins: int = 15, *, num_replicates: int = 200, seed: int = 0
) -> Tensor:
    """Of `calibration.expected_calibration_error`, by a Poisson bootstrap of the rows in its normal limit.

    Rows that count Poisson(1) times each have bin sums of mean sum x and covariance sum x x^T, with x what a row adds.
    Those are drawn as normal, so that the cost does not grow with the number of replicates; `bootstrap` draws counts.

    Too wide for a calibrated predictive, where |gap| has its kink: by a quarter for 400 points; right for clear gaps.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        num_bins: B, bins of equal width.
        num_replicates: R, bootstrap samples; the standard error's own relative error is about 1 / sqrt(2 R).
        seed: Of the draws.

    Returns:
        Fraction, 0-d float64; NaN for one row.

    Raises:
        TypeError: Not a CategoricalPredictive; labels, or a seed, that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes; fewer than one bin, or than two replicates; a negative
            seed.
    """
    check_count(num_replicates, "num_replicates", minimum=2)
    gaps = weighted.row_gaps(predictive, y, num_bins)
    sums, size = _resampled_sums(gaps, num_replicates, seed)
    return (sums.abs().sum(dim=1) / size).std()


def of_gap_difference(one: Tensor, other: Tensor, *, num_replicates: int = 200, seed: int = 0) -> Tensor:
    """Of the difference of two ECEs on the same rows, resampled together; see `of_expected_calibration_error`.

    Args:
        one: From `weighted.row_gaps`, (N, B).
        other: The same of another predictive at the same points.
        num_replicates: R.
        seed: Of the draws.
    """
    sums, size = _resampled_sums(torch.cat([one, other], dim=1), num_replicates, seed)
    first, second = (part.abs().sum(dim=1) for part in sums.split([one.shape[1], other.shape[1]], dim=1))
    return ((first - second) / size).std()


def _resampled_sums(rows: Tensor, num_replicates: int, seed: int) -> tuple[Tensor, Tensor]:
    """Column sums of rows (N, K) that count Poisson(1) times each, in the normal limit, (R, K), and their number."""
    check_count(seed, "seed", minimum=0)
    if len(rows) < 2:  # as of any other measure: one row tells nothing of others
        return rows.new_full((num_replicates, rows.shape[1]), torch.nan), rows.new_ones(num_replicates)
    counted = torch.nn.functional.pad(rows, (0, 1), value=1.0)
    # The symmetric root, since the covariance is singular where bins are empty; what rounding leaves of 0 would have a
    # root far from 0.
    values, vectors = torch.linalg.eigh(counted.T @ counted)
    values = torch.where(values > 1e-13 * values.max(), values, 0.0)
    root = vectors * values.sqrt() @ vectors.T
    noise = generator(seed, device=rows.device)
    normal = torch.randn(num_replicates, len(values), generator=noise, dtype=torch.float64, device=rows.device)
    drawn = counted.sum(dim=0) + normal @ root
    return drawn[:, :-1], drawn[:, -1].clamp(min=1)


def _placements(scores: Tensor, positive: Tensor) -> Tensor:
    """Of each positive the share of negatives that it beats, of each negative the share of positives that beat it."""
    _, group = scores.unique(return_inverse=True)
    size = int(group.max()) + 1
    positives = torch.bincount(group[positive], minlength=size).double()  # whole numbers would halve in float32
    negatives = torch.bincount(group[~positive], minlength=size).double()
    below = (negatives.cumsum(0) - negatives + negatives / 2) / negatives.sum()
    above = (positives.sum() - positives.cumsum(0) + positives / 2) / positives.sum()
    return torch.where(positive, below[group], above[group])
