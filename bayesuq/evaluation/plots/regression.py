"""Pictures of predicted real numbers: bands over one input, and whether intervals hold what they promise."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes

from bayesuq.arrays import ArrayLike, check_finite, to_tensor
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.panels import (
    GREY,
    PANEL_HEIGHT,
    Numbers,
    check_named,
    draw_key,
    flat,
    looks,
    stack_panels,
)
from bayesuq.predictive.base import RealPredictive

BAND = 2.0  # standard deviations to each side
LIGHT_BLUE, LIGHT_VERMILLION = "#A6CFE5", "#EE9E66"


def regression_bands(
    predictives: Mapping[str, RealPredictive],
    x: ArrayLike,
    *,
    data: tuple[ArrayLike, ArrayLike] | None = None,
    truth: ArrayLike | None = None,
    output: int = 0,
) -> Figure:
    """Mean and two standard deviations over one input, split by the kind of uncertainty; a panel for each method.

    The inner band is epistemic: of the function. The outer one adds what is aleatoric: the noise of y. They are bands
    of standard deviations, so variances add in them and widths do not. A predictive known by draws or quantiles of y
    alone, whose variance is not split, has the outer band only.

    Args:
        predictives: At the same N points, by the name of the method.
        x: The points, (N,) or (N, 1), in any order.
        data: Observed x and y, each (M,) or (M, 1), drawn as dots.
        truth: Mean of y at the points, (N,) or (N, 1), where it is known.
        output: Which column of y.

    Raises:
        TypeError: Not numbers.
        ValueError: No method; points that are not as many as predicted, or have several inputs; a column there is not.

    Example:
        >>> import torch
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> predictive = GaussianPredictive(mean=torch.zeros(1, 3, 1), noise_variance=0.1)
        >>> regression_bands({"ensemble": predictive}, [0.0, 1.0, 2.0]).axes[0].get_title()
        'ensemble'
    """
    check_named(predictives, "predictives", "`posterior.predict(x)` of real targets", RealPredictive)
    line = _column(x, "x")
    order = np.argsort(line)
    figure, stacks = stack_panels(len(predictives), levels={"y": PANEL_HEIGHT})
    for (name, predictive), (panel,) in zip(predictives.items(), stacks, strict=True):
        mean, total = (_output(values, len(line), output)[order] for values in (predictive.mean, predictive.total))
        panel.set_title(name, fontsize="medium")
        bands = [(total, LIGHT_BLUE, "± 2 sd of y: epistemic and aleatoric")]
        if not predictive.without_split:
            epistemic = _output(predictive.epistemic, len(line), output)[order]
            bands.append((epistemic, LIGHT_VERMILLION, "± 2 sd of f: epistemic"))
        for variance, colour, label in bands:
            half = BAND * np.sqrt(variance)
            panel.fill_between(line[order], mean - half, mean + half, color=colour, linewidth=0, label=label)
        panel.plot(line[order], mean, color="black", linewidth=1.2, label="mean")
        if truth is not None:
            panel.plot(
                line[order], _column(truth, "truth")[order], color="black", linewidth=1, linestyle=":", label="truth"
            )
        if data is not None:
            panel.plot(
                _column(data[0], "data[0]"), _column(data[1], "data[1]"), ".", color=GREY, markersize=3, label="data"
            )
    figure.supxlabel("x", fontsize="medium")
    draw_key(figure, max((panel.get_legend_handles_labels()[0] for (panel,) in stacks), key=len))
    return figure


def interval_calibration(transforms: Mapping[str, ArrayLike]) -> Figure:
    """Share of the truths that central intervals hold, against the share they promise; a line for each method.

    On the diagonal intervals keep their promise; below it they are too narrow: overconfident. The grey band is where a
    calibrated method of as many points lies, point by point, 95 times in 100.

    Args:
        transforms: The probability integral transforms F(y) of the truths, any shape, by the name of the method: see
            `calibration.probability_integral_transform`.

    Raises:
        TypeError: Not numbers.
        ValueError: No method, no point, values outside [0, 1].

    Example:
        >>> interval_calibration({"ensemble": [0.1, 0.4, 0.6, 0.9]}).axes[0].get_ylabel()
        'share of truths inside'
    """
    figure, ((panel,),) = stack_panels(1, levels={"share of truths inside": 1.4 * PANEL_HEIGHT}, scale=2.0)
    check_named(transforms, "transforms", "`calibration.probability_integral_transform`")
    values = {name: flat(transform, f"transforms[{name!r}]") for name, transform in transforms.items()}
    if not values:
        raise ValueError("There is nothing to draw: pass at least one method.")
    for name, transform in values.items():
        if transform.min() < 0 or transform.max() > 1:
            raise ValueError(f"`transforms[{name!r}]` must lie in [0, 1].")
    panel.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    _draw_range(panel, min(map(len, values.values())))
    for (name, transform), look in zip(values.items(), looks(len(values)), strict=True):
        # The central interval of level p holds y exactly where |2 F(y) - 1| <= p.
        levels = np.sort(np.abs(2 * transform - 1))
        shares = np.arange(1, len(levels) + 1) / len(levels)
        panel.step([0, *levels, 1], [0, *shares, 1], where="post", linewidth=1.6, label=name, **look)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    panel.set_aspect("equal")
    panel.set_xlabel("level of the central interval")
    draw_key(figure, panel.get_legend_handles_labels()[0])
    return figure


def _draw_range(panel: Axes, num_points: int) -> None:
    level = np.linspace(0, 1, 101)
    half = 1.96 * np.sqrt(level * (1 - level) / num_points)
    lower, upper = np.clip(level - half, 0, 1), np.clip(level + half, 0, 1)
    panel.fill_between(level, lower, upper, color=GREY, alpha=0.2, linewidth=0)


def _column(values: ArrayLike, name: str) -> Numbers:
    """One number for each row."""
    tensor = to_tensor(values, name)
    if tensor.ndim == 0 or tensor.numel() != len(tensor) or len(tensor) == 0:
        raise ValueError(f"`{name}` must have shape (N,) or (N, 1); got {tuple(tensor.shape)}.")
    check_finite(tensor, name)
    return tensor.double().flatten().cpu().numpy()


def _output(values: ArrayLike, num_points: int, output: int) -> Numbers:
    tensor = to_tensor(values, "predictive")
    if len(tensor) != num_points:
        raise ValueError(f"`x` must hold the {len(tensor)} points that were predicted; got {num_points}.")
    if not 0 <= output < tensor.shape[1]:
        raise ValueError(f"`output` must be from 0 to {tensor.shape[1] - 1}; got {output}.")
    return tensor[:, output].double().cpu().numpy()
