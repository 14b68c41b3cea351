"""Pictures of predicted labels: calibration, uncertainty in and out of distribution, refusals, single inputs."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, StrMethodFormatter

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.evaluation.binning import Reliability
from bayesuq.evaluation.detection import RiskCoverage
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.panels import (
    BLUE,
    GREY,
    PANEL_HEIGHT,
    STRIP_HEIGHT,
    VERMILLION,
    Numbers,
    check_named,
    draw_key,
    flat,
    looks,
    stack_panels,
)


def reliability_diagram(reliabilities: Mapping[str, Reliability]) -> Figure:
    r"""Accuracy against confidence, a panel for each method, with the number of points in each bin under it.

    A dot is a bin: its mean confidence and its accuracy, with Wilson's 95 % interval. On the diagonal confidence comes
    true, below it the method is overconfident. Counts are on a logarithmic axis; of weighted points they are Kish's
    effective numbers, by which the intervals go, too.

    Args:
        reliabilities: From `calibration.reliability`, by the name of the method.

    Raises:
        TypeError: No mapping, or of something else.
        ValueError: No method; the reliability of each class, which has an axis more.

    Example:
        >>> from bayesuq.evaluation.calibration import reliability
        >>> from bayesuq.predictive.categorical import CategoricalPredictive
        >>> predictive = CategoricalPredictive.from_probs([[[0.9, 0.1], [0.4, 0.6]]])
        >>> reliability_diagram({"ensemble": reliability(predictive, [0, 0])}).axes[0].get_title()
        'ensemble\nECE 0.350, N = 2'
    """
    check_named(reliabilities, "reliabilities", "`calibration.reliability`", Reliability)
    _check_top_labels(reliabilities)
    weighted = any(result.count.is_floating_point() for result in reliabilities.values())
    counts = "effective\npoints" if weighted else "points"
    figure, panels = stack_panels(len(reliabilities), levels={"accuracy": PANEL_HEIGHT, counts: STRIP_HEIGHT})
    for (name, result), (upper, lower) in zip(reliabilities.items(), panels, strict=True):
        upper.set_title(
            f"{name}\nECE {float(result.expected_calibration_error):.3f}, {_size(result)}", fontsize="medium"
        )
        _draw_accuracy(upper, result)
        _draw_counts(lower, result)
    figure.supxlabel("confidence: largest predicted probability", fontsize="medium")
    draw_key(figure, panels[0][0].get_legend_handles_labels()[0])
    return figure


def entropy_histogram(
    in_distribution: Mapping[str, ArrayLike],
    out_of_distribution: Mapping[str, ArrayLike],
    *,
    in_label: str = "in distribution",
    out_label: str = "out of distribution",
    quantity: str = "predictive entropy",
    unit: str = "nats",
    num_bins: int = 30,
) -> Figure:
    """Histograms of an uncertainty on data like the training set's and on data unlike it, a panel for each method.

    Each histogram shows shares of its own points, so that sets of different size compare. Bins are the same everywhere.

    Args:
        in_distribution: Uncertainty of each point, any shape, by the name of the method.
        out_of_distribution: The same for other data, with the same names.
        in_label: What the first data are.
        out_label: What the second data are.
        quantity: Name of the uncertainty.
        unit: Its unit.
        num_bins: Of equal width, over the range of all values.

    Raises:
        TypeError: Not numbers; `num_bins` not a whole number.
        ValueError: No method, names that differ, no points, values that are not finite, fewer than one bin.

    Example:
        >>> figure = entropy_histogram({"ensemble": [0.1, 0.2]}, {"ensemble": [0.5, 0.6, 0.7]}, out_label="letters")
        >>> figure.axes[0].get_title()
        'ensemble'
    """
    if in_distribution.keys() != out_of_distribution.keys():
        raise ValueError(
            "`in_distribution` and `out_of_distribution` must name the same methods; got "
            f"{list(in_distribution)} and {list(out_of_distribution)}."
        )
    inside = [flat(values, f"in_distribution[{name!r}]") for name, values in in_distribution.items()]
    outside = [flat(out_of_distribution[name], f"out_of_distribution[{name!r}]") for name in in_distribution]
    figure, panels = stack_panels(len(inside), levels={"share of points": PANEL_HEIGHT})
    edges = _common_edges([*inside, *outside], check_count(num_bins, "num_bins"))
    for name, values, others, (panel,) in zip(in_distribution, inside, outside, panels, strict=True):
        panel.set_title(name, fontsize="medium")
        _draw_shares(panel, values, edges, BLUE, fill=True)
        _draw_shares(panel, others, edges, VERMILLION, fill=False)
        panel.set_xlim(edges[0], edges[-1] + (edges[-1] - edges[0]) / 50)
        if edges[-1] >= 1000:  # numbers so long leave space for fewer
            panel.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
        panel.set_ylim(bottom=0)
    figure.supxlabel(f"{quantity} ({unit})", fontsize="medium")
    key = [
        Patch(facecolor=BLUE, alpha=0.5, edgecolor=BLUE, label=f"{in_label} ({_sizes(inside)})"),
        Line2D([], [], color=VERMILLION, linewidth=1.6, label=f"{out_label} ({_sizes(outside)})"),
    ]
    draw_key(figure, key)
    return figure


def risk_coverage_curves(curves: Mapping[str, RiskCoverage], *, quantity: str = "error rate") -> Figure:
    """Error of the points kept, as those of largest uncertainty are refused; a line for each method.

    From right to left, more and more points are refused. A good uncertainty makes the line fall fast; one that says
    nothing leaves it level. Each line begins where its score begins to tell points apart.

    Args:
        curves: From `detection.risk_coverage`, by the name of the method.
        quantity: What the risk is.

    Raises:
        ValueError: No method.

    Example:
        >>> from bayesuq.evaluation.detection import risk_coverage
        >>> figure = risk_coverage_curves({"ensemble": risk_coverage([0.1, 0.2, 0.3], [False, False, True])})
        >>> figure.axes[0].get_xlabel()
        'coverage: share of points kept'
    """
    figure, ((panel,),) = stack_panels(1, levels={f"{quantity} of the points kept": 1.4 * PANEL_HEIGHT}, scale=2.0)
    if not curves:
        raise ValueError("There is nothing to draw: pass at least one method.")
    for (name, curve), look in zip(curves.items(), looks(len(curves)), strict=True):
        attainable = curve.attainable.cpu().numpy()
        coverage, risk = curve.coverage.cpu().numpy()[attainable], curve.risk.cpu().numpy()[attainable]
        area = float((curve.risk * curve.coverage.diff(prepend=torch.zeros_like(curve.coverage[:1]))).sum())
        panel.plot(coverage, risk, linewidth=1.6, label=f"{name} (area {area:.3g})", **look)
    panel.set_xlim(0, 1.01)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("coverage: share of points kept")
    draw_key(figure, panel.get_legend_handles_labels()[0])
    return figure


def _draw_accuracy(panel: Axes, result: Reliability) -> None:
    held = (result.count > 0).cpu()
    confidence, accuracy = result.confidence.cpu()[held].numpy(), result.accuracy.cpu()[held].numpy()
    lower, upper = result.accuracy_interval.cpu()[:, held].numpy()
    panel.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    panel.errorbar(
        confidence,
        accuracy,
        yerr=(accuracy - lower, upper - accuracy),
        color=BLUE,
        fmt="o",
        markersize=4,
        linewidth=1,
        label="a bin, with 95 % interval",
    )
    panel.set_xlim(-0.04, 1.04)
    panel.set_ylim(-0.04, 1.04)
    panel.set_xticks([0, 0.5, 1])
    panel.set_yticks([0, 0.5, 1])


def _check_top_labels(reliabilities: Mapping[str, Reliability]) -> None:
    wrong = next((tuple(one.count.shape) for one in reliabilities.values() if one.count.ndim != 1), None)
    if wrong is not None:
        raise ValueError(
            f"`reliabilities` must be of top labels, with bins (B,); got {wrong}, as `classwise=True` gives."
        )


def _size(result: Reliability) -> str:
    """How many points; of weighted ones how many they are worth."""
    total = result.count.sum()
    if not result.count.is_floating_point():
        return f"N = {int(total):,}"
    return f"worth {float(total.square() / result.square_count.sum()):,.0f} points"


def _draw_counts(panel: Axes, result: Reliability) -> None:
    count, edges = result.effective_count.cpu().numpy(), result.edges.cpu().numpy()
    panel.set_yscale("log")
    # From below one, so that a bin of one point still shows.
    panel.bar(edges[:-1], count - 0.5 * (count > 0), np.diff(edges), bottom=0.5 * (count > 0), align="edge", color=GREY)
    panel.set_ylim(bottom=0.5)
    panel.yaxis.set_major_locator(LogLocator(numticks=4))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    panel.minorticks_off()


def _draw_shares(panel: Axes, values: Numbers, edges: list[float], color: str, *, fill: bool) -> None:
    weights = np.full(len(values), 1 / len(values))
    if fill:
        panel.hist(values, edges, weights=weights, histtype="stepfilled", facecolor=color, edgecolor=color, alpha=0.5)
    else:
        panel.hist(values, edges, weights=weights, histtype="step", color=color, linewidth=1.6)
    panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def _common_edges(values: Sequence[Numbers], num_bins: int) -> list[float]:
    lowest, highest = min(0.0, *(part.min() for part in values)), max(part.max() for part in values)
    return np.linspace(lowest, highest if highest > lowest else lowest + 1, num_bins + 1).tolist()


def _sizes(values: Sequence[Numbers]) -> str:
    sizes = sorted({len(part) for part in values})
    return f"N = {sizes[0]:,}" if len(sizes) == 1 else f"N = {sizes[0]:,} to {sizes[-1]:,}"
