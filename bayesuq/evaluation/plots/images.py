"""Pictures of single inputs: what each method says of an image, and which images it is least sure of."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_labels, check_count, check_finite, to_tensor
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.panels import BLUE, VERMILLION, flat
from bayesuq.predictive.categorical import CategoricalPredictive

CELL, BARS = 1.15, 2.6  # inches: side of an image, width of its bars
COLUMNS = 8


def class_probabilities(
    predictives: Mapping[str, CategoricalPredictive],
    images: ArrayLike,
    *,
    y: ArrayLike | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """What each method says of a few images: a row for each image, then its class probabilities by method.

    Where a predictive has kept its draws, a line spans the middle 90 % of them for each class: long lines at a flat
    mean are epistemic, short ones aleatoric uncertainty.

    Args:
        predictives: Of the same N images, by the name of the method.
        images: (N, H, W), (N, 1, H, W), (N, 3, H, W), or square ones laid out flat, (N, H * H).
        y: True labels, (N,); their bars are blue, all others grey.
        names: Of the C classes; default those of the first predictive that has some, else their numbers.

    Raises:
        TypeError: Not numbers.
        ValueError: No method; no images of that shape; not as many as predicted.
    """
    pixels = as_pictures(images)
    if not predictives:
        raise ValueError("There is nothing to draw: pass at least one method.")
    for name, predictive in predictives.items():
        if predictive.mean.ndim != 2 or len(predictive.mean) != len(pixels):
            raise ValueError(
                f"`predictives[{name!r}]` must be of {len(pixels)} single labels, as there are images; its "
                f"probabilities have shape {tuple(predictive.mean.shape)}."
            )
    if names is None:
        names = next((each.names for each in predictives.values() if each.names is not None), None)
    truth = None if y is None else as_labels(y).flatten().tolist()
    size = (CELL + BARS * len(predictives), 1.2 * len(pixels) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(pixels), 1 + len(predictives), squeeze=False, width_ratios=[CELL, *[BARS] * len(predictives)]
    )
    for row, axes in enumerate(grid):
        _draw_image(axes[0], pixels[row], "" if truth is None else f"is {class_name(truth[row], names)}")
        for place, (name, predictive) in enumerate(predictives.items(), start=1):
            _draw_bars(axes[place], predictive, row, None if truth is None else truth[row], names)
            axes[place].tick_params(labelbottom=row == len(pixels) - 1, labelleft=place == 1)
            if row == 0:
                axes[place].set_title(name, fontsize="medium")
    figure.supylabel("probability", fontsize="medium", x=0.0)
    return figure


def most_uncertain(
    images: ArrayLike,
    scores: ArrayLike,
    *,
    predicted: ArrayLike,
    y: ArrayLike | None = None,
    names: Sequence[str] | None = None,
    number: int = 24,
    quantity: str = "predictive entropy (nats)",
) -> Figure:
    """The images of largest uncertainty, in falling order, with what was predicted and what they are.

    Args:
        images: As for `class_probabilities`.
        scores: Uncertainty of each, (N,).
        predicted: Predicted labels, (N,).
        y: True labels, (N,); a title is vermillion where the prediction is wrong.
        names: Of the classes; default their numbers.
        number: How many are shown, at most.
        quantity: Name of the uncertainty, with its unit.

    Raises:
        TypeError: Not numbers; `number` not a whole number.
        ValueError: No images of that shape; not as many scores or labels; scores that are not finite.
    """
    pixels, values = as_pictures(images), flat(scores, "scores")
    labels = as_labels(predicted).flatten().tolist()
    truth = labels if y is None else as_labels(y).flatten().tolist()
    if not len(pixels) == len(values) == len(labels) == len(truth):
        raise ValueError(
            f"For {len(pixels)} images there are {len(values)} scores, {len(labels)} predicted and {len(truth)} true "
            "labels."
        )
    shown = np.argsort(-values, kind="stable")[: check_count(number, "number")]
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(CELL * min(COLUMNS, len(shown)) + 0.2, (CELL + 0.35) * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, min(COLUMNS, len(shown)), squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, index in zip(grid.flat, shown, strict=False):
        wrong = labels[index] != truth[index]
        said = class_name(labels[index], names) + (f", is {class_name(truth[index], names)}" if wrong else "")
        _draw_image(axes, pixels[index], f"{said}\n{values[index]:.2f}", color=VERMILLION if wrong else "black")
    figure.suptitle(f"predicted class, and {quantity}", fontsize="medium")
    return figure


def as_pictures(images: ArrayLike) -> np.ndarray:
    """Images as `class_probabilities` takes them as (N, H, W) or (N, H, W, 3), scaled to [0, 1] over all of them."""
    tensor = to_tensor(images, "images").double()
    check_finite(tensor, "images")
    side = round(tensor.shape[-1] ** 0.5)
    if tensor.ndim == 2 and side * side == tensor.shape[1] and side > 1:
        tensor = tensor.unflatten(1, (side, side))
    if tensor.ndim == 4 and tensor.shape[1] in (1, 3):
        tensor = tensor.movedim(1, -1) if tensor.shape[1] == 3 else tensor[:, 0]
    if tensor.ndim not in (3, 4) or tensor.numel() == 0 or (tensor.ndim == 4 and tensor.shape[-1] != 3):
        raise ValueError(
            "`images` must have shape (N, H, W), (N, 1, H, W), (N, 3, H, W), or (N, H * H) for square ones; got "
            f"{tuple(to_tensor(images, 'images').shape)}."
        )
    lowest, highest = tensor.min(), tensor.max()
    return ((tensor - lowest) / (highest - lowest).clamp(min=1e-12)).cpu().numpy()


def _draw_image(axes: Axes, pixels: np.ndarray, title: str, *, color: str = "black") -> None:
    axes.imshow(pixels, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize="small", color=color)
    axes.set_axis_off()


def _draw_bars(
    axes: Axes, predictive: CategoricalPredictive, row: int, truth: int | None, names: Sequence[str] | None
) -> None:
    mean = predictive.mean[row].double().cpu().numpy()
    places = np.arange(len(mean))
    colours = [BLUE if place == truth else "#B8B8B8" for place in places]
    axes.bar(places, mean, color=colours)
    if predictive.draws is not None and predictive.num_samples > 1:
        draws: Tensor = predictive.samples[:, row].double().cpu()
        lower, upper = np.quantile(draws.numpy(), [0.05, 0.95], axis=0)
        axes.vlines(places, lower, upper, color="black", linewidth=1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 1])
    axes.set_xticks(places, [class_name(int(place), names) for place in places], fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)


def class_name(label: int, names: Sequence[str] | None) -> str:
    """That of a label, or its number."""
    return str(label) if names is None else str(names[label])
