"""Pictures of how fits went."""

from collections.abc import Mapping, Sized

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from bayesuq.arrays import ArrayLike
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.panels import BLUE, PANEL_HEIGHT, VERMILLION, Numbers, check_named, flat, stack_panels

BEGINNING = 0.1  # of the epochs, whose fall the axes may cut, so that what comes after is seen


def loss_curves(losses: Mapping[str, ArrayLike], validation_losses: Mapping[str, ArrayLike] | None = None) -> Figure:
    """Loss over epochs, a panel for each fit, on axes of its own: losses of different methods do not compare.

    Args:
        losses: Loss of each epoch in nats a data point, by the name of the fit: `posterior.history.loss`.
        validation_losses: Mean negative log predictive density of held-out points, for the fits that have it, drawn
            below (it has no prior in it) with a dot at the best epoch.

    Raises:
        TypeError: Not numbers.
        ValueError: No fit, no epoch, values that are not finite.

    Example:
        >>> loss_curves({"variational": [3.0, 2.0, 1.5]}).axes[0].get_title()
        'variational'
    """
    check_named(losses, "losses", "`posterior.history.loss`", Sized)
    watched = {name: values for name, values in (validation_losses or {}).items() if name in losses}
    levels = {"training loss": PANEL_HEIGHT} | ({"validation loss": 0.8 * PANEL_HEIGHT} if watched else {})
    figure, stacks = stack_panels(len(losses), levels=levels, share=False)
    for (name, values), stack in zip(losses.items(), stacks, strict=True):
        stack[0].set_title(name, fontsize="medium")
        _draw_curve(stack[0], flat(values, f"losses[{name!r}]"), BLUE)
        if name in watched:
            curve = flat(watched[name], f"validation_losses[{name!r}]")
            _draw_curve(stack[1], curve, VERMILLION)
            stack[1].plot([curve.argmin() + 1], [curve.min()], "o", color=VERMILLION, markersize=5)
        elif watched:
            stack[1].set_axis_off()
    figure.supxlabel("epoch; losses in nats a data point", fontsize="medium")
    return figure


def _draw_curve(panel: Axes, curve: Numbers, color: str) -> None:
    panel.plot(range(1, len(curve) + 1), curve, color=color, linewidth=1.4)
    shown = curve[int(BEGINNING * len(curve)) :]
    room = 0.08 * (shown.max() - shown.min()) or 0.5
    panel.set_ylim(shown.min() - room, shown.max() + room)
    panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
