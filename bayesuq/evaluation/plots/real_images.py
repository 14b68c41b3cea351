"""Pictures of real-valued images: what was predicted, where it is wrong, and why it is unsure."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from bayesuq.arrays import ArrayLike, to_tensor
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.images import as_pictures
from bayesuq.evaluation.plots.panels import LINES, PANEL_HEIGHT, draw_key, stack_panels
from bayesuq.evaluation.real_maps import kept_errors
from bayesuq.predictive.maps import RealMaps

COLUMNS = ("image", "truth", "prediction", "error", "aleatoric", "epistemic")
MAP_HEIGHT = 1.5  # inches
POINTS = 200  # of a curve


def real_maps(
    predictive: RealMaps,
    images: ArrayLike,
    y: ArrayLike,
    *,
    channel: int = 0,
    labels: Sequence[str] | None = None,
) -> Figure:
    """A row for each image: itself, truth, mean, absolute error, and the two parts of the standard deviation.

    Truth and mean share one colour scale; error and standard deviations, all in units of y, share another, so that one
    sees whether the error lies where it was expected, and of which kind.

    Args:
        predictive: Of N images, with a mean (N, C, H, W).
        images: (N, H, W), (N, 1, H, W) or (N, 3, H, W); of other numbers of channels the first is shown.
        y: The truth, (N, C, H, W).
        channel: Of the C, which is shown.
        labels: What stands beside each row.

    Raises:
        TypeError: Not numbers.
        ValueError: Images that are not of two axes; shapes that differ; a channel that is not there.

    Example:
        >>> from bayesuq.predictive.gaussian import GaussianPredictive
        >>> maps = RealMaps.of_draws(torch.zeros(1, 1, 1, 4, 4), lambda f: GaussianPredictive(mean=f, noise_variance=1))
        >>> len(real_maps(maps, torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)).axes)  # six, and two colour bars
        8
    """
    if len(predictive.size) != 2:
        raise ValueError(f"Maps are drawn of images of two axes; got {tuple(predictive.size)}.")
    if not 0 <= channel < predictive.mean.shape[1]:
        raise ValueError(f"`channel` must be below {predictive.mean.shape[1]}; got {channel}.")
    seen = to_tensor(images, "images")
    pixels = as_pictures(seen[:, :1] if seen.ndim == 4 and seen.shape[1] not in (1, 3) else seen)
    truth = predictive.as_maps(predictive.pixel_targets(y))

    def at(values: Tensor) -> np.ndarray:
        return np.asarray(values[:, channel].cpu())

    left = [at(truth), at(predictive.mean)]
    right = [at((truth - predictive.mean).abs()), *(at(v.sqrt()) for v in (predictive.aleatoric, predictive.epistemic))]
    ends = min(map(np.min, left)), max(map(np.max, left))
    highest = max(float(np.quantile(right[0], 0.99)), *(float(each.max()) for each in right[1:]))
    ratio = pixels.shape[2] / pixels.shape[1]
    figure = Figure(
        figsize=(len(COLUMNS) * MAP_HEIGHT * ratio + 1.6, len(pixels) * MAP_HEIGHT + 0.4), layout="constrained"
    )
    grid = figure.subplots(len(pixels), len(COLUMNS), squeeze=False)
    for row, axes in enumerate(grid):
        axes[0].imshow(pixels[row], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for place, values in enumerate(left, start=1):
            mean = axes[place].imshow(values[row], cmap="viridis", vmin=ends[0], vmax=ends[1], interpolation="nearest")
        for place, values in enumerate(right, start=3):
            spread = axes[place].imshow(values[row], cmap="magma", vmin=0, vmax=highest, interpolation="nearest")
        for axis, title in zip(axes, COLUMNS, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(title if row == 0 else "", fontsize="medium")
        if labels is not None:
            axes[0].set_ylabel(labels[row], fontsize="medium")
    figure.colorbar(mean, ax=grid[:, 1:3], label="y", pad=0.01)
    figure.colorbar(spread, ax=grid[:, 3:], label="units of y", pad=0.01)
    return figure


def kept_error_curves(maps: Mapping[str, tuple[RealMaps, ArrayLike]]) -> Figure:
    """Root mean squared error of the pixels kept, against their share: it falls where variances know of errors.

    Args:
        maps: Predictive and truth by the name of the method.

    Raises:
        ValueError: No method; see `kept_errors`.

    Reference:
        Kendall & Gal 2017, figure 2.
    """
    figure, panels = stack_panels(1, levels={"error of pixels kept (units of y)": PANEL_HEIGHT})
    if not maps:
        raise ValueError("There is nothing to draw: pass at least one method.")
    panel = panels[0][0]
    for colour, (name, (predictive, y)) in zip(LINES * len(maps), maps.items(), strict=False):
        curve = kept_errors(predictive, y)
        step = max(1, len(curve.coverage) // POINTS)
        panel.plot(
            curve.coverage[step - 1 :: step].cpu(), curve.risk[step - 1 :: step].sqrt().cpu(), color=colour, label=name
        )
    panel.set_xlim(0, 1)
    panel.set_ylim(bottom=0)
    figure.supxlabel("share of pixels kept, surest first", fontsize="medium")
    draw_key(figure, panel.get_legend_handles_labels()[0])
    return figure
