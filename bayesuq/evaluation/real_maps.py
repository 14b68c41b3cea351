"""Measures of real-valued images, whose unit is the image: pixels of one image are far from independent.

    batches = predictions(partial(posterior.predict, num_samples=20, seed=0), test.x, test.y)
    print(evaluate_maps(batches))

or `evaluate_maps(predictive, y)` of a few images. What is kept of a batch are means over the pixels of each image.

Reference:
    Kendall & Gal 2017, What uncertainties do we need in Bayesian deep learning for computer vision?, section 5, for
    errors of the pixels that are kept as the least sure ones are refused.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_fraction, to_tensor
from bayesuq.evaluation import detection
from bayesuq.evaluation.ranks import as_flags
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report
from bayesuq.evaluation.segmentation.reporting import Batches, pairs
from bayesuq.evaluation.standard_errors import closed_form
from bayesuq.predictive.maps import RealMaps

__all__ = ["evaluate_maps"]
__dir__ = __all__.copy


def evaluate_maps(
    batches: RealMaps | Batches,
    y: ArrayLike | None = None,
    *,
    levels: Sequence[float] = (0.5, 0.9),
    counts: ArrayLike | None = None,
) -> Report:
    """Errors, log scores, coverage of each pixel's intervals, and the parts of the variance, with errors over images.

    The log score is of a pixel's channels together, of those that count, and shared out among them: nats a channel.

    Args:
        batches: Predictives of the pixels of some images, each with its truth, (N, C, ...), one after the other; or one
            predictive.
        y: The truth of one predictive, (N, C, ...).
        levels: Of the central intervals, between 0 and 1.
        counts: Which pixels of one predictive count, of y's shape, boolean; anything may stand in y where one does not.
            None is all.

    Returns:
        Means over the pixels of each image, and over images.

    Raises:
        TypeError: Predictives of anything but real-valued images; one predictive without `y`, or `y` or `counts` beside
            batches.
        ValueError: No batch; a truth of another shape; a level outside (0, 1); an image of which no pixel counts.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> f = torch.zeros(1, 2, 1, 4, 4)  # one draw, two images
        >>> maps = RealMaps.of_draws(f, lambda f: GaussianPredictive(mean=f, noise_variance=1.0))
        >>> print(evaluate_maps(maps, torch.ones(2, 1, 4, 4))["root_mean_squared_error"])
        root_mean_squared_error 1 ± 0 units of y
    """
    if counts is not None and not isinstance(batches, RealMaps):
        raise TypeError("`counts` is of one predictive and its `y`; it says nothing of the pixels of batches.")
    shares = [check_fraction(level, "levels") for level in levels]
    rows: list[dict[str, Tensor]] = []
    num_samples = num_channels = 0
    for predictive, truth in pairs(batches, y):
        if not isinstance(predictive, RealMaps):
            raise TypeError(
                f"`batches` must give predictives of real-valued images; got {type(predictive).__name__}. Of labels of "
                "pixels take `evaluate_segmentation`, of rows `report.evaluate`."
            )
        rows.append(_of_images(predictive, truth, shares, counts))
        num_samples, num_channels = predictive.num_samples, predictive.mean.shape[1]
    if not rows:
        raise ValueError("`batches` must give at least one batch; it gave none. A generator can be used once only.")
    joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    of_channels = " and channel" if num_channels > 1 else ""
    squares = joined.pop("squares")
    root = squares.mean().sqrt()
    measures = [Measure.of("root_mean_squared_error", root, closed_form.of_root_mean(squares), "units of y")]
    for name, values in joined.items():
        unit = next(unit for start, unit in UNITS.items() if name.startswith(start))
        unit += of_channels if name == "negative_log_likelihood" else ""
        measures.append(Measure.of(name, values.mean(), closed_form.of_mean(values), unit))
    return Report(tuple(measures), len(squares), num_samples)


UNITS = {
    "negative_log_likelihood": "nats a pixel",
    "mean_absolute_error": "units of y",
    "coverage": "fraction",
    "": "units of y, squared",
}


def kept_errors(predictive: RealMaps, y: ArrayLike) -> detection.RiskCoverage:
    """Mean squared error of the pixels kept, as those of largest variance are refused, over all images together.

    Its root against `coverage` is the precision-recall curve of Kendall & Gal (2017, figure 2).

    Args:
        predictive: Of N images.
        y: The truth, (N, C, ...).

    Raises:
        TypeError: Not numbers.
        ValueError: A truth of another shape.
    """
    return detection.risk_coverage(predictive.pixels.total, _squares(predictive, y))


def _squares(predictive: RealMaps, y: ArrayLike) -> Tensor:
    return (predictive.pixels.mean - predictive.pixel_targets(y)).square()


def _of_images(
    predictive: RealMaps, y: ArrayLike, levels: Sequence[float], counts: ArrayLike | None
) -> dict[str, Tensor]:
    """Means over the pixels of each image, (N,) each, float64."""
    weight = torch.ones_like(predictive.mean, dtype=torch.float64)
    if counts is not None:
        known, y = as_flags(counts, "counts"), to_tensor(y, "y")
        y = torch.where(known.to(y.device), y, 0) if known.shape == y.shape else y
        weight = known.double()
    truth, weight = predictive.pixel_targets(y), predictive.pixel_targets(weight)
    number = len(predictive.mean)
    total = weight.reshape(number, -1).sum(dim=1)
    if not bool((total > 0).all()):
        raise ValueError(f"`counts` leaves no pixel of image {int((total <= 0).nonzero()[0])}.")

    def mean(values: Tensor) -> Tensor:
        return torch.where(weight > 0, values * weight, 0.0).reshape(number, -1).sum(dim=1) / total

    laws = predictive.pixels
    away, below = laws.mean - truth, laws.cdf(truth)
    observed = None if counts is None else weight > 0
    # Of the channels of a pixel that count together, shared out among them.
    log_prob = laws.log_prob(truth, observed=observed).unsqueeze(1) / weight.sum(dim=1, keepdim=True).clamp(min=1)
    inside = {f"coverage_{level:g}": ((below - 0.5).abs() <= level / 2).double() for level in levels}
    values = {
        "squares": away.square(),
        "mean_absolute_error": away.abs(),
        "negative_log_likelihood": -log_prob.expand_as(truth),
        **inside,
        "aleatoric": laws.aleatoric,
        "epistemic": laws.epistemic,
    }
    return {name: mean(each) for name, each in values.items()}
