"""A picture of the parts of an uncertainty: aleatoric and epistemic against the number of data."""

from collections.abc import Mapping, Sequence

import numpy as np

from bayesuq.arrays import ArrayLike, check_finite, to_tensor
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.panels import BLUE, GREY, PANEL_HEIGHT, VERMILLION, draw_key, stack_panels

COLORS = {"aleatoric": BLUE, "epistemic": VERMILLION}
Parts = Mapping[str, Mapping[str, ArrayLike]]


def uncertainty_by_size(parts: Parts, sizes: Sequence[int], *, truth: Mapping[str, float] | None = None) -> Figure:
    """Mean aleatoric and epistemic uncertainty against the number of training rows, a panel for each problem.

    Both axes are logarithmic. More data make the epistemic part fall; the aleatoric part comes to what the noise is.

    Args:
        parts: By problem "aleatoric" and "epistemic", each (K, R) for K sizes and R repetitions, above 0: lines are
            the means, bars their standard errors.
        sizes: The K numbers of training rows.
        truth: The true aleatoric part of each problem, where it is known.

    Raises:
        TypeError: Not numbers.
        ValueError: No problem, parts of other names, of another shape, or not above 0.

    Example:
        >>> parts = {"toy": {"aleatoric": [[0.1], [0.1]], "epistemic": [[0.1], [0.01]]}}
        >>> uncertainty_by_size(parts, [10, 100], truth={"toy": 0.1}).axes[0].get_title()
        'toy'
    """
    figure, panels = stack_panels(len(parts), levels={"mean uncertainty": 1.2 * PANEL_HEIGHT}, scale=1.4, share=False)
    for (name, of_problem), (panel,) in zip(parts.items(), panels, strict=True):
        if set(of_problem) != set(COLORS):
            raise ValueError(f"`parts` must have 'aleatoric' and 'epistemic'; got {sorted(of_problem)} for {name!r}.")
        panel.set_title(name, fontsize="medium")
        if truth is not None and name in truth:
            panel.axhline(truth[name], color=GREY, linestyle="--", linewidth=1, label="the noise itself")
        for part, color in COLORS.items():
            mean, error = _mean_and_error(of_problem[part], len(sizes), f"{part} of {name}")
            panel.errorbar(list(sizes), mean, yerr=error, color=color, marker="o", markersize=4, label=part)
        panel.set_xscale("log")
        panel.set_yscale("log")
    figure.supxlabel("training rows", fontsize="medium")
    draw_key(figure, panels[0][0].get_legend_handles_labels()[0])
    return figure


def _mean_and_error(values: ArrayLike, num_sizes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    tensor = to_tensor(values, name).double().cpu()
    if tensor.ndim != 2 or len(tensor) != num_sizes or tensor.shape[1] == 0:
        raise ValueError(
            f"The {name} must have shape ({num_sizes}, R), a row for each size; got {tuple(tensor.shape)}."
        )
    check_finite(tensor, name)
    if (tensor <= 0).any():
        raise ValueError(f"The {name} must be above 0, as the axis is logarithmic; got {float(tensor.min())}.")
    count = tensor.shape[1]
    error = tensor.std(dim=1) / count**0.5 if count > 1 else tensor.new_zeros(num_sizes)
    return tensor.mean(dim=1).numpy(), error.numpy()
