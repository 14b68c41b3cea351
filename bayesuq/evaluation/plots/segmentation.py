"""Pictures of segmented images: maps side by side, the overlap of uncertainty and errors, and quality by image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.patches import Patch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_labels
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.images import as_pictures
from bayesuq.evaluation.plots.panels import (
    BLUE,
    GREY,
    LINES,
    PANEL_HEIGHT,
    VERMILLION,
    draw_key,
    flat,
    stack_panels,
)
from bayesuq.evaluation.segmentation.measures import rank_correlation
from bayesuq.evaluation.segmentation.overlap import OverlapCounts
from bayesuq.predictive.categorical import CategoricalPredictive

MAP_HEIGHT, KEY_HEIGHT = 1.45, 0.75  # inches
COLUMNS = ("image", "truth", "prediction", "error", "total", "aleatoric", "epistemic")
VOID, RIGHT, WRONG = "#FFFFFF", "#D9D9D9", "#000000"


def segmentation_maps(
    predictive: CategoricalPredictive,
    images: ArrayLike,
    y: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    ignore_index: int | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """A row for each image: itself, truth, prediction, errors, and the three uncertainties on one colour scale.

    Aleatoric and epistemic add up to total, in nats, pixel by pixel; all three maps of all rows share their colours, so
    that shades compare. Void pixels are white.

    Args:
        predictive: Of the pixels of N images, with a mean (N, C, H, W).
        images: (N, H, W), (N, 1, H, W) or (N, 3, H, W).
        y: Labels, (N, H, W); one beyond the C classes is drawn as void.
        names: Of the classes, for the key.
        ignore_index: The label of void pixels.
        labels: What stands beside each row.

    Raises:
        TypeError: Not numbers.
        ValueError: Images, labels and predictive that are not of the same pixels.

    Example:
        >>> predictive = CategoricalPredictive.from_probs([[[[[0.9, 0.2]], [[0.1, 0.8]]]]])
        >>> len(segmentation_maps(predictive, [[[0.0, 1.0]]], [[[0, 0]]]).axes)  # seven maps and the colour bar
        8
    """
    pixels, truth, mean = as_pictures(images), as_labels(y).cpu(), predictive.mean.cpu()
    num_classes = mean.shape[1]
    if not pixels.shape[:3] == tuple(truth.shape) == (mean.shape[0], *mean.shape[2:]):
        raise ValueError(
            f"`images`, `y` and `predictive` must be of the same pixels; got {pixels.shape[:3]}, {tuple(truth.shape)} "
            f"and {(mean.shape[0], *mean.shape[2:])}."
        )
    void = ((truth < 0) | (truth >= num_classes)) if ignore_index is None else truth == ignore_index
    said = mean.argmax(dim=1)
    maps = [np.asarray(part.cpu()) for part in (predictive.total, predictive.aleatoric, predictive.epistemic)]
    colours, highest = class_colours(num_classes), max(float(maps[0].max()), 1e-12)
    figure, grid = _grid(len(pixels), pixels.shape[2] / pixels.shape[1])
    for row, axes in enumerate(grid):
        axes[0].imshow(pixels[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _draw_classes(axes[1], truth[row], void[row], colours)
        _draw_classes(axes[2], said[row], void[row], colours)
        _draw_errors(axes[3], said[row] != truth[row], void[row])
        for place, values in enumerate(maps, start=4):
            shown = axes[place].imshow(values[row], cmap="magma", vmin=0, vmax=highest, interpolation="nearest")
        if labels is not None:
            axes[0].set_ylabel(labels[row], fontsize="medium")
        for place, title in enumerate(COLUMNS):
            axes[place].set_title(title if row == 0 else "", fontsize="medium")
    figure.colorbar(shown, ax=grid[:, 4:], label="nats", aspect=12 * len(pixels), shrink=0.9, pad=0.01)
    entries = [Patch(facecolor=colours(k), label=_name(k, names)) for k in range(num_classes)]
    wrong = Patch(facecolor=WRONG, label="wrong")
    figure.legend(handles=[*entries, wrong], loc="outside lower center", ncols=7, frameon=False, fontsize="small")
    return figure


def overlap_curves(counts: Mapping[str, OverlapCounts]) -> Figure:
    r"""Overlap of uncertain and wrong pixels against the threshold above which a pixel is uncertain, a panel a method.

    The mean over images. It says something only where it is above the same map shuffled within each image, and above
    the floor of calling every pixel uncertain.

    Args:
        counts: From `overlap.overlap_sweep`, by the name of the method.

    Raises:
        ValueError: No method.

    Example:
        >>> from bayesuq.evaluation.segmentation.overlap import overlap_sweep
        >>> figure = overlap_curves({"ensemble": overlap_sweep([[0.9, 0.1]], [[True, False]])})
        >>> figure.axes[0].get_title()
        'ensemble\n1.000 above 0.1'
    """
    figure, panels = stack_panels(len(counts), levels={"overlap, mean over images": PANEL_HEIGHT})
    for (name, found), (panel,) in zip(counts.items(), panels, strict=True):
        thresholds = found.thresholds.cpu().numpy()
        panel.plot(thresholds, found.mean.cpu().numpy(), color=BLUE, marker="o", markersize=3, label="uncertainty")
        shuffled = found.shuffled.nanmean(dim=0).cpu().numpy()
        panel.plot(thresholds, shuffled, color=VERMILLION, linestyle="--", label="the same map, shuffled")
        panel.axhline(float(found.floor.nanmean()), color=GREY, linestyle=":", label="floor: all pixels")
        panel.set_title(f"{name}\n{float(found.test_maximum):.3f} above {found.best_threshold:g}", fontsize="medium")
        if (thresholds > 0).all():
            panel.set_xscale("log")
        panel.set_ylim(0, 1)
    figure.supxlabel("threshold: share of the largest uncertainty that there can be", fontsize="medium")
    draw_key(figure, panels[0][0].get_legend_handles_labels()[0])
    return figure


def quality_scatter(
    images: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    quality: str = "Dice",
    uncertainty: str = "mean predictive entropy (nats a pixel)",
) -> Figure:
    r"""Quality of each image's segmentation against its uncertainty, which is told without the truth, a panel a method.

    An uncertainty that finds the images to look at puts the dots on a line that falls.

    Args:
        images: Uncertainty (N,) and quality (N,) of each image, by the name of the method.
        quality: Its name.
        uncertainty: Its name, with the unit.

    Raises:
        TypeError: Not numbers.
        ValueError: No method, no image, or values that are not finite.

    Example:
        >>> quality_scatter({"ensemble": ([0.1, 0.2], [0.9, 0.5])}).axes[0].get_title()
        'ensemble\nrank correlation -1.00'
    """
    figure, panels = stack_panels(len(images), levels={quality: PANEL_HEIGHT})
    for (name, (values, qualities)), (panel,) in zip(images.items(), panels, strict=True):
        across, up = flat(values, f"images[{name!r}]"), flat(qualities, f"images[{name!r}]")
        panel.plot(across, up, "o", color=BLUE, markersize=4, alpha=0.6, markeredgewidth=0)
        panel.set_title(f"{name}\nrank correlation {float(rank_correlation(across, up)):.2f}", fontsize="medium")
    figure.supxlabel(uncertainty, fontsize="medium")
    return figure


def class_colours(num_classes: int) -> ListedColormap:
    """One for each class, the first dark: colour-blind readers tell eight of them apart."""
    if num_classes <= len(LINES) + 1:
        return ListedColormap(["#404040", *[line for line in LINES if line != "#000000"], "#F0E442"][:num_classes])
    return ListedColormap([colormaps["tab20"](k % 20) for k in range(num_classes)])


def _grid(rows: int, ratio: float) -> tuple[Figure, Any]:
    size = (len(COLUMNS) * MAP_HEIGHT * ratio + 1.0, rows * MAP_HEIGHT + KEY_HEIGHT)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, len(COLUMNS), squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    return figure, grid


def _draw_classes(axes: Axes, labels: Tensor, void: Tensor, colours: ListedColormap) -> None:
    painted = colours(np.asarray(labels.clamp(0, colours.N - 1)))
    painted[np.asarray(void)] = to_rgba(VOID)
    axes.imshow(painted, interpolation="nearest")


def _draw_errors(axes: Axes, wrong: Tensor, void: Tensor) -> None:
    painted = np.full((*wrong.shape, 4), to_rgba(RIGHT))
    painted[np.asarray(wrong)] = to_rgba(WRONG)
    painted[np.asarray(void)] = to_rgba(VOID)
    axes.imshow(painted, interpolation="nearest")


def _name(label: int, names: Sequence[str] | None) -> str:
    return str(label) if names is None else str(names[label])
