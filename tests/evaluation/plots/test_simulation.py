import numpy as np
import pytest
import torch

from bayesuq.evaluation.plots.simulation import rank_histograms
from bayesuq.evaluation.simulation import Ranks
from bayesuq.randomness import generator

UNIFORM = Ranks(("a", "b"), torch.randint(20, (2, 300), generator=generator(0)), 19)
NARROW = Ranks(("a", "b"), torch.stack([UNIFORM.ranks[0], torch.tensor([0, 19]).repeat(150)]), 19)


def test_each_method_shows_its_worst_quantity() -> None:
    figure = rank_histograms({"right": UNIFORM, "narrow": NARROW})
    upper, _, narrow, difference = figure.axes
    assert upper.get_title().startswith("right\n")
    assert narrow.get_title() == "narrow\nb, p = 0.000"
    assert sum(bar.get_height() for bar in upper.patches) == 300
    assert [narrow.patches[place].get_height() for place in (0, 1, 9)] == [150, 0, 150]
    np.testing.assert_allclose(difference.lines[0].get_ydata(), 0.5 - NARROW.levels)


def test_a_quantity_may_be_chosen() -> None:
    assert "a, p" in rank_histograms({"narrow": NARROW}, quantity="a").axes[0].get_title()
    with pytest.raises(ValueError, match="`quantity` must be one of a, b"):
        rank_histograms({"narrow": NARROW}, quantity="c")


def test_no_method_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one method"):
        rank_histograms({})
