"""Pictures of draws, by ArviZ: chains, their ranks and energies, intervals, pairs, and predictive checks.

Each takes what `posterior.to_arviz` gives. ArviZ 0.x and 1.x draw them in their own ways; what they show is the same.
ArviZ makes its figures by pyplot, which here forgets them at once: save them by `figure.savefig(path)`.
"""

import warnings
from typing import Any, Literal

import numpy as np
from cycler import cycler
from matplotlib import MatplotlibDeprecationWarning, pyplot
from matplotlib.figure import Figure

from bayesuq import optional
from bayesuq.evaluation.diagnostics.leave_one_out import PARETO_WARNING
from bayesuq.evaluation.diagnostics.worst_entries import worst_entries
from bayesuq.evaluation.plots.panels import LINES
from bayesuq.to_arviz.container import IS_ARVIZ_BEFORE_1, Container, group, native

NUM_SHOWN = 4  # numbers in one figure
NUM_REPLICATES = 50
WIDTH, ROW = 9.0, 1.9  # inches


def trace_plot(data: Container, *, number: int = NUM_SHOWN) -> Figure:
    """Draws in their order, and their density, a line for each chain: of the numbers whose chains agree least.

    Raises:
        TypeError: No container.
        ValueError: No draws in it.
    """
    shown = worst_entries(data, number)
    size = (WIDTH, ROW * len(group(shown, "posterior").data_vars))
    if IS_ARVIZ_BEFORE_1:
        return _drawn("plot_trace", shown, size, compact=False)
    return _drawn("plot_trace_dist", shown, size)


def rank_plot(data: Container, *, number: int = NUM_SHOWN) -> Figure:
    """Ranks of each chain's draws among those of all chains, even where the chains have found the same law.

    Raises:
        TypeError: No container.
        ValueError: No draws in it.
    """
    shown = worst_entries(data, number)
    size = (WIDTH, 3.4 * -(-len(group(shown, "posterior").data_vars) // 4))
    return _drawn("plot_rank", shown, size)


def energy_plot(data: Container) -> Figure:
    """Law of the energy and of its steps, which should be alike, with BFMI.

    Raises:
        TypeError: No container.
        ValueError: A sampler that tells no energy.
    """
    if "energy" not in group(data, "sample_stats"):
        raise ValueError("`data` has no energy in `sample_stats`: only Hamiltonian samplers tell one.")
    return _drawn("plot_energy", data, (WIDTH, 3.2))


def forest_plot(data: Container, *, number: int = 10) -> Figure:
    """Intervals of single numbers, one for each chain: of those whose chains agree least, or that are least sure.

    Raises:
        TypeError: No container.
        ValueError: No draws in it.
    """
    shown = worst_entries(data, number)
    return _drawn("plot_forest", shown, (WIDTH, 1.0 + 0.4 * len(group(shown, "posterior").data_vars)))


def pair_plot(data: Container, *, number: int = 3) -> Figure:
    """Draws of each two numbers against each other, divergent ones marked where the sampler tells them.

    Raises:
        TypeError: No container.
        ValueError: No draws in it, or a single number.
    """
    shown = worst_entries(data, number)
    count = len(group(shown, "posterior").data_vars)
    if count < 2:
        raise ValueError("A plot of pairs needs at least two numbers; the draws are of one.")
    diverging = "diverging" in group(shown, "sample_stats")
    size = (2.6 * count, 2.6 * count)
    if IS_ARVIZ_BEFORE_1:
        return _drawn("plot_pair", shown, size, divergences=diverging)
    return _drawn("plot_pair", shown, size, visuals={"divergence": True} if diverging else {})


def loo_pit_plot(data: Container) -> Figure:
    """P(y* <= y_n) of each row with that row left out, which should be uniform: of real targets in one column.

    Raises:
        TypeError: No container.
        ValueError: Labels, counts or several columns, or no log likelihood.
    """
    observed, terms = group(data, "observed_data"), group(data, "log_likelihood")
    if "y" not in observed or "y" not in terms:
        raise ValueError("`data` needs the groups of `posterior.to_arviz(x, y)`.")
    if not np.issubdtype(observed["y"].dtype, np.floating) or observed["y"].ndim > 1:
        raise ValueError("LOO-PIT needs real targets in one column: labels and counts have jumps in their cdf.")
    return _drawn("plot_loo_pit", data, (WIDTH, 3.2), **({"y": "y"} if IS_ARVIZ_BEFORE_1 else {"var_names": "y"}))


def predictive_check_plot(
    data: Container, *, replicates: Literal["posterior_predictive", "prior_predictive"] = "posterior_predictive"
) -> Figure:
    """Law of the observed targets among those of replicates y*, one line for each of some draws.

    Raises:
        TypeError: No container.
        ValueError: No replicates, or nothing observed.
    """
    drawn = group(data, replicates)
    if "y" not in drawn or "y" not in group(data, "observed_data"):
        raise ValueError(f"`data` needs `y` in the groups {replicates} and observed_data; see `posterior.to_arviz`.")
    size = (WIDTH, 3.4)
    count = min(NUM_REPLICATES, drawn.sizes["chain"] * drawn.sizes["draw"])
    if IS_ARVIZ_BEFORE_1:
        kind = replicates.removesuffix("_predictive")
        return _drawn("plot_ppc", data, size, group=kind, num_pp_samples=count, random_seed=0)
    return _drawn("plot_ppc_dist", data, size, group=replicates, num_samples=count)


def _drawn(name: str, data: Container, size: tuple[float, float], **options: Any) -> Figure:
    """The figure that an ArviZ function of this name makes: axes on 0.x, a collection on 1.x."""
    plot = getattr(optional.arviz, name)
    with warnings.catch_warnings(), pyplot.rc_context({"axes.prop_cycle": cycler(color=LINES)}):
        warnings.simplefilter("ignore", MatplotlibDeprecationWarning)  # ArviZ 0.23 on matplotlib 3.11
        warnings.filterwarnings("ignore", PARETO_WARNING, UserWarning)  # see `LeaveOneOut.problems`
        if IS_ARVIZ_BEFORE_1:
            figure = np.ravel(plot(native(data), figsize=size, show=False, **options))[0].figure
        else:
            figure = plot(native(data), backend="matplotlib", **options).viz["figure"].item()
    figure.set_size_inches(size)
    figure.set_layout_engine("constrained")
    pyplot.close(figure)
    return figure
