"""Figures by ArviZ: what they show are the draws that were passed, and pyplot keeps none of them."""

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from bayesuq.evaluation.plots import draws
from bayesuq.evaluation.plots.panels import LINES
from bayesuq.to_arviz.container import IS_ARVIZ_BEFORE_1, Variable, build
from tests.evaluation.draws_examples import chains, conjugate, independent, noise

STATISTICS = {"energy": noise(4, 60, seed=1), "diverging": noise(4, 60, seed=2) > 2}
CHAINS = chains(noise(4, 60, 6), statistics=STATISTICS)
CONJUGATE, OBSERVED = conjugate(60, 30)


@pytest.mark.parametrize(
    ("plot", "data"),
    [
        (draws.trace_plot, CHAINS),
        (draws.rank_plot, CHAINS),
        (draws.energy_plot, CHAINS),
        (draws.forest_plot, CHAINS),
        (draws.forest_plot, independent(noise(60, 3))),
        (draws.pair_plot, CHAINS),
        (draws.pair_plot, independent(noise(60, 3))),
        (draws.loo_pit_plot, CONJUGATE),
        (draws.predictive_check_plot, CONJUGATE),
    ],
)
def test_every_figure_is_drawn_and_forgotten_by_pyplot(plot: Callable[..., Figure], data: object) -> None:
    before = pyplot.get_fignums()
    figure = plot(data)
    assert isinstance(figure, Figure)
    assert figure.axes
    figure.canvas.draw()
    assert pyplot.get_fignums() == before


@pytest.mark.skipif(not IS_ARVIZ_BEFORE_1, reason="ArviZ 1.x lays its figures out in its own way")
def test_the_trace_shows_every_chain_of_the_worst_value() -> None:
    values = noise(4, 60, 6)
    values[1, :, 3] += 4.0
    figure = draws.trace_plot(chains(values), number=2)
    assert len(figure.axes) == 4
    assert figure.axes[0].get_title() == "mu[3]"
    shown = [np.asarray(line.get_ydata()) for line in figure.axes[1].lines]
    assert {line.get_color() for line in figure.axes[1].lines[:4]} == set(LINES[:4])
    for chain in range(4):
        assert any(len(line) == 60 and np.allclose(line, values[chain, :, 3]) for line in shown)


@pytest.mark.skipif(not IS_ARVIZ_BEFORE_1, reason="ArviZ 1.x lays its figures out in its own way")
def test_pairs_mark_the_draws_that_diverged() -> None:
    marked, plain = (
        len(draws.pair_plot(chains(noise(4, 60, 2), statistics=statistics)).axes[0].lines)
        for statistics in (STATISTICS, {})
    )
    assert marked == plain + 1


def test_figures_are_refused_where_there_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="only Hamiltonian samplers"):
        draws.energy_plot(CONJUGATE)
    with pytest.raises(ValueError, match="at least two numbers"):
        draws.pair_plot(independent(noise(60, 1)))
    with pytest.raises(ValueError, match="groups posterior_predictive and observed_data"):
        draws.predictive_check_plot(CHAINS)
    with pytest.raises(ValueError, match=r"posterior\.to_arviz"):
        draws.loo_pit_plot(CHAINS)
    y = Variable(np.arange(30) % 3, ("point",))
    labels = {"observed_data": {"y": y}, "log_likelihood": {"y": Variable.of_draws(noise(60, 30), 1, ("point",))}}
    with pytest.raises(ValueError, match="real targets in one column"):
        draws.loo_pit_plot(build(labels, attributes={}))
