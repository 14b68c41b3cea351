"""What all figures share: panels on common axes, one key, and colours that colour-blind readers tell apart."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from bayesuq.arrays import ArrayLike, check_finite, to_tensor
from bayesuq.evaluation.plots.figure import Figure

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#767676"
LINES = (BLUE, VERMILLION, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")  # Okabe and Ito, nearly
STYLES = ("-", "--", "-.", ":")  # beyond eight lines, and for readers who see no colours
PANEL_WIDTH, PANEL_HEIGHT, STRIP_HEIGHT, LEGEND_HEIGHT = 2.3, 2.2, 0.8, 0.7  # inches
HANDLE_WIDTH, CHARACTER_WIDTH, LINE_HEIGHT = 0.7, 0.085, 0.22  # of a legend, in inches
MAX_COLUMNS = 4

Numbers = np.ndarray[Any, np.dtype[np.float64]]


def stack_panels(
    num_panels: int, levels: Mapping[str, float], *, scale: float = 1.0, share: bool = True
) -> tuple[Figure, list[list[Axes]]]:
    """Stacks of axes, one for each y label from the top down; all share x, and y within a level.

    Args:
        num_panels: Stacks, side by side and then below each other.
        levels: Height of each level of a stack in inches, by its y label.
        scale: Width of a stack, in usual ones.
        share: Whether axes are shared; else each has its own.

    Raises:
        ValueError: No panel.
    """
    if num_panels == 0:
        raise ValueError("There is nothing to draw: pass at least one method.")
    rows = -(-num_panels // MAX_COLUMNS)
    columns = -(-num_panels // rows)
    size = (
        PANEL_WIDTH * max(scale * columns, 1.4),
        sum(levels.values()) * rows + LEGEND_HEIGHT,
    )  # a legend needs 1.4 panels
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(len(levels) * rows, columns, height_ratios=[*levels.values()] * rows)
    stacks: list[list[Axes]] = []
    for place in range(num_panels):
        row, column = divmod(place, columns)
        stack: list[Axes] = []
        for level, label in enumerate(levels):
            shared_x = stack[0] if stack else stacks[0][0] if stacks and share else None
            shared_y = stacks[0][level] if stacks and share else None
            axes = figure.add_subplot(grid[len(levels) * row + level, column], sharex=shared_x, sharey=shared_y)
            lowest = level == len(levels) - 1 and place + columns >= num_panels
            axes.tick_params(labelbottom=lowest or not share, labelleft=column == 0 or not share)
            axes.set_ylabel(label if column == 0 else "")
            axes.spines[["top", "right"]].set_visible(False)
            stack.append(axes)
        stacks.append(stack)
    return figure, stacks


def draw_key(figure: Figure, entries: Sequence[Any]) -> None:
    """One legend, above the panels; the figure grows where its names are longer, or more, than there is room for."""
    width, height = figure.get_size_inches()
    needed = HANDLE_WIDTH + CHARACTER_WIDTH * max(len(str(entry.get_label())) for entry in entries)
    columns = 2 if width > max(2 * PANEL_WIDTH + 0.1, 2 * needed) else 1
    lines = -(-len(entries) // columns)
    figure.set_size_inches(max(width, needed), height + max(0.0, LINE_HEIGHT * lines - LEGEND_HEIGHT))
    figure.legend(handles=entries, loc="outside upper center", ncols=columns, frameon=False, fontsize="medium")


def check_named(values: object, name: str, source: str, kind: type | tuple[type, ...] = object) -> None:
    """Raise a TypeError unless an argument maps names to values of a kind; `source` says what gives them."""
    wrong = values
    if isinstance(values, Mapping):
        others = [value for value in values.values() if not isinstance(value, kind)]
        if not others:
            return
        wrong = others[0]
    raise TypeError(
        f"`{name}` must map the name of each method to what {source} gives, as in {{'ensemble': ...}}; got "
        f"{'' if wrong is values else 'a value of type '}{type(wrong).__name__}."
    )


def flat(values: ArrayLike, name: str) -> Numbers:
    """All values in a row.

    Raises:
        TypeError: Not numbers.
        ValueError: None, or some that are not finite.
    """
    tensor = to_tensor(values, name).flatten()
    if tensor.numel() == 0:
        raise ValueError(f"`{name}` must hold at least one point.")
    check_finite(tensor, name)
    return tensor.double().cpu().numpy()


def looks(number: int) -> list[dict[str, Any]]:
    """Colour and style of each of so many lines."""
    return [
        {"color": LINES[line % len(LINES)], "linestyle": STYLES[line // len(LINES) % len(STYLES)]}
        for line in range(number)
    ]
