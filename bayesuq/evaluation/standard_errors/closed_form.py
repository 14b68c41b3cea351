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
from bayesuq.evaluation.gaps import Gaps, normal_draws
from bayesuq.evaluation.observed import observe
from bayesuq.evaluation.scores import top_label
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.evaluation.standard_errors.sums import Sums
from bayesuq.evaluation.standard_errors.weighted import Ranks, Weighted
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import generator


def of_mean(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """Of the mean of `values`: standard deviation of the rows' means (ddof 1) over sqrt N.

    With weights the mean is a ratio of two sums over rows, and so is linear in what each row moves it by,
    (t_r - m w_r) / sum w: the root of N / (N - 1) times the sum of their squares. N are the rows of weight above 0.

    Args:
        values: Of each point, (N, ...).
        weight: Of each point, at least 0, of the same shape; None is 1 everywhere.

    Returns:
        In the unit of `values`, 0-d float64; NaN for one row or infinite values.
    """
    return Sums.of(values, weight).standard_error


def of_root_mean(squares: Tensor, weight: Tensor | None = None) -> Tensor:
    """Of sqrt(mean(squares)), by the delta method: that of the mean over twice the root; see `of_mean`.

    Returns:
        In the unit of the root, 0-d float64; 0 where all squares are.
    """
    return Sums.of(squares, weight).root_standard_error


def of_auroc(scores: ArrayLike, positives: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """Of `detection.auroc`, in closed form: DeLong et al. (1988), with rows of many values as Obuchowski (1997).

    Args:
        scores: Of each point, (N, ...).
        positives: Whether each point is a positive, (N, ...).
        weight: How much each row counts, (N,), or each point, (N, ...); None counts all alike.

    Returns:
        Fraction, 0-d float64; NaN where fewer than two rows hold a positive, or a negative.

    Raises:
        TypeError: Not numbers.
        ValueError: NaN scores, positives that are not 0 or 1, shapes that differ.
    """
    return error_of_auroc(Ranks.of_positives(scores, positives, weight))


def error_of_auroc(ranks: Ranks) -> Tensor:
    """As `of_auroc`, of scores in order."""
    w = ranks.of_points(torch.ones(1, ranks.num_rows, dtype=torch.float64, device=ranks.row.device))
    up, down = w * ranks.found, w * ranks.others
    num_positive, num_negative = up.sum(), down.sum()
    # Of each positive the share of negatives that it beats, of each negative the share of positives that beat it.
    beaten, beating = (sum(ranks.around(side)) / (2 * side.sum()) for side in (down, up))
    area = (beaten * up).sum() / num_positive
    # Each row's part in the sums over positives and over negatives, centred: the brackets of Obuchowski, section 3.
    found = ranks.by_row(((beaten - area) * up)[0])
    passed = ranks.by_row(((1 - beating - area) * down)[0])
    with_positive, with_negative, rows = ((ranks.by_row(side[0]) > 0).sum().double() for side in (up, down, w))
    variance = (
        with_positive / (with_positive - 1) * (found / num_positive).square().sum()
        + with_negative / (with_negative - 1) * (passed / num_negative).square().sum()
        + 2 * rows / (rows - 1).clamp(min=1) * (found * passed).sum() / (num_positive * num_negative)
    )
    defined = (with_positive > 1) & (with_negative > 1)
    return torch.where(defined, variance.clamp(min=0.0).sqrt(), torch.nan)


def of_average_precision(scores: ArrayLike, positives: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """Of `detection.average_precision`, by the derivative in each row's weight; see `of_auroc` for the rest.

    Returns:
        Fraction, 0-d float64; NaN where there is no positive, or one row.
    """
    return by_derivative(weighted.average_precision(scores, positives, weight=weight))


def of_aurc(scores: ArrayLike, errors: ArrayLike, *, weight: ArrayLike | None = None) -> Tensor:
    """Of `detection.aurc`, by the derivative in each row's weight.

    Args:
        scores: Uncertainty of each point, (N, ...).
        errors: Whether each prediction is wrong, or any loss of at least 0, (N, ...).
        weight: How much each row counts, (N,), or each point, (N, ...); None counts all alike.

    Returns:
        In the unit of `errors`, 0-d float64; NaN for one row.

    Raises:
        TypeError: Not numbers.
        ValueError: See `detection.aurc`.
    """
    return by_derivative(weighted.aurc(scores, errors, weight=weight))


def by_derivative(measure: Weighted) -> Tensor:
    """Of a measure that is smooth in its rows' weights: the infinitesimal jackknife, of one pass and its derivative.

    sqrt(N / (N - 1) sum_i (d measure / d w_i)^2) at w = 1. For a mean it is `of_mean`.

    Args:
        measure: From `weighted`. Where it has kinks, as the ECE, or jumps, take `bootstrap.standard_error`.

    Returns:
        In the unit of the measure, 0-d float64; NaN where it is undefined, or for one row.
    """
    rows = measure.num_counting
    if rows < 2:
        return torch.full((), torch.nan, dtype=torch.float64, device=measure.device)
    return (row_slopes(measure).square().sum() * rows / (rows - 1)).sqrt()


def row_slopes(measure: Weighted) -> Tensor:
    """Derivative of a measure in the weight of each row, at weights of 1, (N,): what a row moves it by."""
    with torch.enable_grad():
        weights = torch.ones(1, measure.num_rows, dtype=torch.float64, device=measure.device, requires_grad=True)
        (slopes,) = torch.autograd.grad(measure(weights).sum(), weights)
    return slopes[0]


def of_expected_calibration_error(
    predictive: CategoricalPredictive,
    y: ArrayLike,
    num_bins: int = 15,
    *,
    weight: ArrayLike | None = None,
    num_replicates: int = 200,
    seed: int = 0,
) -> Tensor:
    """Of `calibration.expected_calibration_error`, by simulating the counts of its bins; see `gaps`.

    Within 20 % of the truth, by simulation: from 20 rows on for calibrated and overconfident predictives, from 50 rows
    on for all. Where nearly all is right and the confidence is too low, fewer rows cannot tell it, and it is up to
    four times too large (a report then says that it is an upper bound). Rows of many points, such as images, have the
    covariance of their sums, drawn as normal.

    Args:
        predictive: Of labels, at N points.
        y: Labels, (N, ...).
        num_bins: B, bins of equal width.
        weight: How much each row counts, (N,), or each point, of y's shape; None counts all alike.
        num_replicates: R, simulated test sets; the standard error's own relative error is about 1 / sqrt(2 R).
        seed: Of the draws.

    Returns:
        Fraction, 0-d float64; NaN for one row.

    Raises:
        TypeError: Not a CategoricalPredictive; labels, or a seed, that are not whole numbers.
        ValueError: `y` of another shape, or outside the classes; fewer than one bin, or than two replicates; a negative
            seed.
    """
    seen = observe(predictive, y, weight)
    gaps = Gaps.of(*top_label(predictive, seen.y), seen.weight, num_bins)
    return gaps.standard_error(num_replicates=num_replicates, seed=seed)


def of_gap_difference(one: Tensor, other: Tensor, *, num_replicates: int = 200, seed: int = 0) -> Tensor:
    """Of the difference of two ECEs on the same rows, resampled together; see `of_expected_calibration_error`.

    Args:
        one: From `weighted.row_gaps`, (N, B + 1).
        other: The same of another predictive at the same points.
        num_replicates: R.
        seed: Of the draws.
    """
    check_count(num_replicates, "num_replicates", minimum=2)
    check_count(seed, "seed", minimum=0)
    rows, sizes = torch.cat([one[:, :-1], other], dim=1), other[:, -1]
    if int((sizes > 0).sum()) < 2:  # as of any other measure: one row tells nothing of others
        return rows.new_full((), torch.nan)
    # Column sums of rows that count Poisson(1) times each, in the normal limit.
    drawn = rows.sum(dim=0) + normal_draws(rows.T @ rows, num_replicates, generator(seed, device=rows.device))
    first, second, size = drawn.split([one.shape[1] - 1, other.shape[1] - 1, 1], dim=1)
    gaps = first.abs().sum(dim=1) - second.abs().sum(dim=1)
    return (gaps / size[:, 0].clamp(min=float(sizes.max()))).std()
