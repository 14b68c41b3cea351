"""Pictures of segmented images: maps side by side, the overlap of uncertainty and errors, and quality by image."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.patches import Patch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_labels, check_count, check_finite, to_tensor
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.images import as_pictures, class_name
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
OF_IMAGES = ("pixels", "truth", "said", "void")
VOID, RIGHT, WRONG = "#FFFFFF", "#D9D9D9", "#000000"


def segmentation_maps(
    predictive: CategoricalPredictive,
    images: ArrayLike,
    y: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    ignore_index: int | None = None,
    labels: Sequence[str] | None = None,
    slice: int | None = None,
    axis: int = 0,
) -> Figure:
    """A row for each image: itself, truth, prediction, errors, and the three uncertainties on one colour scale.

    Aleatoric and epistemic add up to total, in nats, pixel by pixel; all three maps of all rows share their colours, so
    that shades compare. Void pixels are white. Of volumes one slice is shown.

    Args:
        predictive: Of the pixels of N images, with a mean (N, C, H, W), or (N, C, D, H, W) of volumes.
        images: (N, H, W), (N, 1, H, W) or (N, 3, H, W); volumes (N, D, H, W) or (N, channels, D, H, W), of which the
            first channel is shown, or three as colours.
        y: Labels, (N, H, W) or (N, D, H, W); one beyond the C classes is drawn as void.
        names: Of the classes, for the key.
        ignore_index: The label of void pixels.
        labels: What stands beside each row.
        slice: Of volumes, which one along the axis; negative ones count from the end, None is the middle.
        axis: Of volumes, the axis that is cut across: 0 is the first after channels.

    Raises:
        TypeError: Not numbers.
        ValueError: Images, labels and predictive that are not of the same pixels; signals of one axis; a slice or an
            axis that is not there, or either of images.

    Example:
        >>> predictive = CategoricalPredictive.from_probs([[[[[0.9, 0.2]], [[0.1, 0.8]]]]])
        >>> len(segmentation_maps(predictive, [[[0.0, 1.0]]], [[[0, 0]]]).axes)  # seven maps and the colour bar
        8
    """
    maps = Maps.of(predictive, images, y, ignore_index=ignore_index)
    if maps.truth.ndim == 4:
        size = maps.truth.shape[1:][check_axis(axis)]
        place = size // 2 if slice is None else slice
        if not -size <= place < size:
            raise ValueError(f"`slice` must be below {size} along axis {axis}; got {slice}.")
        maps = maps.cut(axis, place)
    elif slice is not None or axis != 0:
        raise ValueError("`slice` and `axis` are of volumes; the images have two axes.")
    return _drawn(maps, names, labels)


def segmentation_montage(
    predictive: CategoricalPredictive,
    images: ArrayLike,
    y: ArrayLike,
    *,
    volume: int = 0,
    num_slices: int = 6,
    axis: int = 0,
    names: Sequence[str] | None = None,
    ignore_index: int | None = None,
) -> Figure:
    """A row for each of some slices of one volume, evenly through it, with the maps of `segmentation_maps`.

    Args:
        predictive: Of N volumes, with a mean (N, C, D, H, W).
        images: (N, D, H, W) or (N, channels, D, H, W).
        y: Labels, (N, D, H, W).
        volume: Which of the N.
        num_slices: At most; a volume that has fewer shows all.
        axis: The axis that is cut across: 0 is the first after channels.
        names: Of the classes, for the key.
        ignore_index: The label of void pixels.

    Raises:
        TypeError: Not numbers.
        ValueError: See `segmentation_maps`; images that are no volumes; a volume that is not there.

    Example:
        >>> predictive = CategoricalPredictive.from_probs(torch.full((1, 1, 2, 4, 3, 3), 0.5))
        >>> figure = segmentation_montage(predictive, torch.rand(1, 4, 3, 3), torch.zeros(1, 4, 3, 3), num_slices=2)
        >>> figure.axes[0].get_ylabel(), figure.axes[7].get_ylabel()
        ('slice 1', 'slice 3')
    """
    maps = Maps.of(predictive, images, y, ignore_index=ignore_index)
    places, rows = maps.through(volume, num_slices=check_count(num_slices, "num_slices"), axis=check_axis(axis))
    return _drawn(rows, names, [f"slice {place}" for place in places])


@dataclass(frozen=True, eq=False)
class Maps:
    """What is drawn of N images, (N, ...) each, on the CPU.

    Attributes:
        pixels: In [0, 1]; colours are a last dimension of 3.
        truth: Labels.
        said: Predicted labels.
        void: Where there is no truth.
        parts: Total, aleatoric and epistemic, (3, N, ...).
        num_classes: C.
    """

    pixels: Tensor
    truth: Tensor
    said: Tensor
    void: Tensor
    parts: Tensor
    num_classes: int

    @classmethod
    def of(
        cls, predictive: CategoricalPredictive, images: ArrayLike, y: ArrayLike, *, ignore_index: int | None
    ) -> Self:
        """Checked, and with the class of each pixel."""
        truth, mean = as_labels(y).cpu(), predictive.mean.cpu()
        rank = mean.ndim - 2
        if rank not in (2, 3):
            raise ValueError(
                f"Maps are drawn of images (N, C, H, W) and volumes (N, C, D, H, W); got {tuple(mean.shape)}."
            )
        pixels = torch.as_tensor(as_pictures(images) if rank == 2 else _as_volumes(images))
        expected = (mean.shape[0], *mean.shape[2:])
        if not tuple(pixels.shape[: rank + 1]) == tuple(truth.shape) == expected:
            raise ValueError(
                f"`images`, `y` and `predictive` must be of the same pixels; got {tuple(pixels.shape[: rank + 1])}, "
                f"{tuple(truth.shape)} and {expected}."
            )
        num_classes = mean.shape[1]
        void = ((truth < 0) | (truth >= num_classes)) if ignore_index is None else truth == ignore_index
        parts = torch.stack([predictive.total, predictive.aleatoric, predictive.epistemic]).cpu()
        return cls(pixels, truth, mean.max(dim=1).indices, void, parts, num_classes)

    def at(self, rows: list[int]) -> Self:
        """Some of the images."""
        return self._each(lambda values: values[rows], self.parts[:, rows])

    def cut(self, axis: int, place: int) -> Self:
        """One slice of each volume."""
        return self._each(lambda values: values.select(axis + 1, place), self.parts.select(axis + 2, place))

    def through(self, volume: int, *, num_slices: int, axis: int) -> tuple[list[int], Self]:
        """Where some slices lie, evenly through one volume, and these slices as images.

        Raises:
            ValueError: Images that are no volumes; a volume that is not there.
        """
        if self.truth.ndim != 4:
            raise ValueError("A montage is of volumes, (N, D, H, W); use `segmentation_maps` for images.")
        if not -len(self.truth) <= volume < len(self.truth):
            raise ValueError(f"`volume` must be one of {len(self.truth)}; got {volume}.")
        size = self.truth.shape[1:][axis]
        number = min(num_slices, size)
        places = [(2 * k + 1) * size // (2 * number) for k in range(number)]
        one = self.at([volume])
        return places, self.concatenate([one.cut(axis, place) for place in places])

    @classmethod
    def concatenate(cls, some: Sequence[Self]) -> Self:
        """The images of all."""
        joined: dict[str, Any] = {name: torch.cat([getattr(one, name) for one in some]) for name in OF_IMAGES}
        return replace(some[0], **joined, parts=torch.cat([one.parts for one in some], dim=1))

    def _each(self, change: Callable[[Tensor], Tensor], parts: Tensor) -> Self:
        changed: dict[str, Any] = {name: change(getattr(self, name)) for name in OF_IMAGES}
        return replace(self, **changed, parts=parts)


def _drawn(maps: Maps, names: Sequence[str] | None, labels: Sequence[str] | None) -> Figure:
    """A row of seven maps for each image."""
    pixels, num_classes = maps.pixels.numpy(), maps.num_classes
    colours, highest = class_colours(num_classes), max(float(maps.parts[0].max()), 1e-12)
    figure, grid = _grid(len(pixels), pixels.shape[2] / pixels.shape[1])
    for row, axes in enumerate(grid):
        axes[0].imshow(pixels[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        _draw_classes(axes[1], maps.truth[row], maps.void[row], colours)
        _draw_classes(axes[2], maps.said[row], maps.void[row], colours)
        _draw_errors(axes[3], maps.said[row] != maps.truth[row], maps.void[row])
        for place, values in enumerate(maps.parts[:, row], start=4):
            shown = axes[place].imshow(np.asarray(values), cmap="magma", vmin=0, vmax=highest, interpolation="nearest")
        if labels is not None:
            axes[0].set_ylabel(labels[row], fontsize="medium")
        for place, title in enumerate(COLUMNS):
            axes[place].set_title(title if row == 0 else "", fontsize="medium")
    figure.colorbar(shown, ax=grid[:, 4:], label="nats", aspect=12 * len(pixels), shrink=0.9, pad=0.01)
    entries = [Patch(facecolor=colours(k), label=class_name(k, names)) for k in range(num_classes)]
    wrong = Patch(facecolor=WRONG, label="wrong")
    figure.legend(handles=[*entries, wrong], loc="outside lower center", ncols=7, frameon=False, fontsize="small")
    return figure


def _as_volumes(images: ArrayLike) -> Tensor:
    """Volumes (N, D, H, W), or (N, D, H, W, 3) of colours, scaled to [0, 1] over all of them."""
    given = to_tensor(images, "images").double().cpu()
    check_finite(given, "images")
    if given.ndim == 5:
        given = given.movedim(1, -1) if given.shape[1] == 3 else given[:, 0]
    if given.ndim not in (4, 5):
        raise ValueError(
            f"`images` must have shape (N, D, H, W) or (N, channels, D, H, W) for volumes; got {tuple(given.shape)}."
        )
    lowest, highest = given.min(), given.max()
    return (given - lowest) / (highest - lowest).clamp(min=1e-12)


def check_axis(axis: int) -> int:
    """It, or a ValueError unless volumes have it."""
    if axis not in (0, 1, 2):
        raise ValueError(f"`axis` must be 0, 1 or 2, of the axes after channels; got {axis!r}.")
    return axis


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
