"""Measures as the data move away from those of training."""

from collections.abc import Mapping

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bayesuq.arrays import ArrayLike, check_finite, to_tensor
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.panels import PANEL_HEIGHT, Numbers, draw_key, flat, looks, stack_panels

LEVEL_HEIGHT = 0.75 * PANEL_HEIGHT
Curves = Mapping[str, Mapping[str, Mapping[str, ArrayLike]]]


def shift_curves(curves: Curves, amounts: Mapping[str, ArrayLike]) -> Figure:
    """Measures against the amount of shift: a column for each kind of shift, a row for each measure, a line a method.

    A line is the mean over repeats, its band one standard error to either side. Rows share an axis with 0 on it.

    Args:
        curves: By kind of shift, measure and method: values at each amount, (L,), or (R, L) for R repeats of the fit.
        amounts: By kind of shift: (L,), in the unit that the kind's name says.

    Raises:
        TypeError: Not numbers.
        ValueError: Nothing to draw; kinds, measures or methods that differ from column to column or row to row; lengths
            that differ; values that are not finite.

    Reference:
        Ovadia et al. 2019, Can You Trust Your Model's Uncertainty?, figures 1 and 2.

    Example:
        >>> figure = shift_curves({"rotation, degrees": {"ECE": {"map": [0.01, 0.2]}}}, {"rotation, degrees": [0, 90]})
        >>> figure.axes[0].get_xlabel()
        'rotation, degrees'
    """
    measures, methods = _check_names(curves, amounts)
    figure, stacks = stack_panels(len(curves), dict.fromkeys(measures, LEVEL_HEIGHT), scale=1.4, share=False)
    styles = dict(zip(methods, looks(len(methods)), strict=True))
    for (kind, by_measure), stack in zip(curves.items(), stacks, strict=True):
        places = flat(amounts[kind], f"amounts[{kind!r}]")
        for panel, measure in zip(stack, measures, strict=True):
            for method in methods:
                name = f"curves[{kind!r}][{measure!r}][{method!r}]"
                mean, error = _mean_and_error(by_measure[measure][method], len(places), name)
                panel.plot(places, mean, linewidth=1.4, **styles[method])
                panel.fill_between(
                    places, mean - error, mean + error, color=styles[method]["color"], alpha=0.2, linewidth=0
                )
            panel.xaxis.set_major_locator(MaxNLocator(6))
            panel.tick_params(labelbottom=panel is stack[-1], labelleft=stack is stacks[0])
        stack[-1].set_xlabel(kind)
    for row in zip(*stacks, strict=True):
        bottom, top = (choose(end for panel in row for end in panel.get_ylim()) for choose in (min, max))
        is_below = min(panel.dataLim.y0 for panel in row) < 0  # as log scores of densities are
        for panel in row:
            panel.set_ylim(bottom if is_below else 0, max(0, top))
    draw_key(figure, [Line2D([], [], label=method, **style) for method, style in styles.items()])
    return figure


def _check_names(curves: Curves, amounts: Mapping[str, ArrayLike]) -> tuple[list[str], list[str]]:
    """Measures and methods, the same everywhere."""
    if set(curves) != set(amounts):
        raise ValueError(f"`amounts` must have the kinds of `curves`, {list(curves)}; got {list(amounts)}.")
    measures = {tuple(by_measure) for by_measure in curves.values()}
    methods = {tuple(by_method) for by_measure in curves.values() for by_method in by_measure.values()}
    if len(measures) > 1 or len(methods) > 1:
        raise ValueError("`curves` must have the same measures for each kind of shift, and the same methods for each.")
    if not measures or not methods or not next(iter(methods)):
        raise ValueError("There is nothing to draw: pass at least one kind of shift, measure and method.")
    return list(next(iter(measures))), list(next(iter(methods)))


def _mean_and_error(values: ArrayLike, num_amounts: int, name: str) -> tuple[Numbers, Numbers]:
    """Over the repeats, (L,) each; the error of one repeat is 0, so that it has no band."""
    tensor = to_tensor(values, name)
    if tensor.ndim not in (1, 2) or tensor.shape[-1] != num_amounts or tensor.numel() == 0:
        raise ValueError(
            f"`{name}` must have shape ({num_amounts},), or (R, {num_amounts}); got {tuple(tensor.shape)}."
        )
    check_finite(tensor, name)
    rows = np.atleast_2d(tensor.double().cpu().numpy())
    spread = rows.std(axis=0, ddof=1) / len(rows) ** 0.5 if len(rows) > 1 else np.zeros(num_amounts)
    return rows.mean(axis=0), spread
