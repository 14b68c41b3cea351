"""Pictures of simulation-based calibration."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bayesuq.arrays import check_count
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.panels import (
    BLUE,
    GREY,
    PANEL_HEIGHT,
    VERMILLION,
    draw_key,
    stack_panels,
)
from bayesuq.evaluation.simulation import Ranks

BAND = 0.95


def rank_histograms(ranks: Mapping[str, Ranks], *, quantity: str | None = None, num_bins: int = 10) -> Figure:
    """Histogram of the ranks, and their distribution function less the uniform one, a panel for each method.

    Grey is where uniform ranks stay: each bar by itself in 95 % of cases, the whole line in 95 %. Bars that rise at
    both ends say that a posterior is too narrow, in the middle too wide, at one end shifted.

    Args:
        ranks: From `simulation.calibrate`, by the name of the method.
        quantity: The one to draw; None takes each method's worst.
        num_bins: Of the histogram, at most L + 1.

    Raises:
        ValueError: No method; a quantity that a method does not have.
    """
    check_count(num_bins, "num_bins", minimum=2)
    figure, panels = stack_panels(
        len(ranks), {"simulations": PANEL_HEIGHT, "ECDF - uniform": PANEL_HEIGHT}, share=False
    )
    for (name, found), (upper, lower) in zip(ranks.items(), panels, strict=True):
        if quantity is not None and quantity not in found.names:
            raise ValueError(f"`quantity` must be one of {', '.join(found.names)}; got {quantity!r}.")
        shown = int(found.p_values.argmin()) if quantity is None else found.names.index(quantity)
        upper.set_title(f"{name}\n{found.names[shown]}, p = {float(found.p_values[shown]):.3f}", fontsize="medium")
        _draw_bars(upper, found, shown, num_bins)
        _draw_difference(lower, found, shown)
    figure.supxlabel("rank of the truth among the draws, as a share", fontsize="medium")
    key = [Patch(color=BLUE, label="ranks"), Patch(color=GREY, alpha=0.3, label="95 % of uniform ranks")]
    draw_key(figure, [*key, Line2D([], [], color=VERMILLION, label="their distribution function")])
    return figure


def _draw_bars(panel: Axes, found: Ranks, shown: int, num_bins: int) -> None:
    num_bins = min(num_bins, found.num_draws + 1)
    edges = np.linspace(0, 1, num_bins + 1)
    shares = (found.ranks[shown].double().numpy() + 0.5) / (found.num_draws + 1)
    panel.hist(shares, bins=edges.tolist(), color=BLUE, edgecolor="white", linewidth=0.8)
    # Ranks are whole, so that bins may hold unequal numbers of them.
    possible = np.histogram((np.arange(found.num_draws + 1) + 0.5) / (found.num_draws + 1), bins=edges)[0]
    chance = possible / (found.num_draws + 1)
    middle = found.num_simulations * chance
    reach = 1.96 * np.sqrt(middle * (1 - chance))
    panel.fill_between(
        edges, np.append(middle - reach, (middle - reach)[-1]), np.append(middle + reach, (middle + reach)[-1]),
        step="post", color=GREY, alpha=0.3, linewidth=0,
    )  # fmt: skip
    panel.set_xlim(0, 1)


def _draw_difference(panel: Axes, found: Ranks, shown: int) -> None:
    levels = found.levels.numpy()
    lower, upper = (end.numpy() - levels for end in found.band(BAND))
    panel.fill_between(levels, lower, upper, color=GREY, alpha=0.3, linewidth=0)
    panel.step(levels, found.distribution[shown].numpy() - levels, where="post", color=VERMILLION, linewidth=1.4)
    panel.axhline(0, color=GREY, linewidth=0.8)
    panel.set_xlim(0, 1)
