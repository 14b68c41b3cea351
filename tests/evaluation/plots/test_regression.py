import math

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bayesuq.evaluation.calibration import probability_integral_transform
from bayesuq.evaluation.plots.regression import interval_calibration, regression_bands
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.evaluation.examples import measured

X = torch.tensor([2.0, 0.0, 1.0])


def predictive() -> GaussianPredictive:
    """Two draws at three points: means apart by 2, 4 and 6, noise of variance 0.25."""
    gap = torch.tensor([1.0, 2.0, 3.0])[:, None]
    return GaussianPredictive(mean=torch.stack([-gap, gap]), noise_variance=0.25)


def half_width(axes: Axes, band: int) -> NDArray[np.float64]:
    """Half the height of a band at x = 0, 1, 2."""
    corners = axes.collections[band].get_paths()[0].vertices
    heights = [corners[corners[:, 0] == place, 1] for place in (0.0, 1.0, 2.0)]
    return np.array([(height.max() - height.min()) / 2 for height in heights])


def test_the_inner_band_is_epistemic_and_the_outer_one_is_all() -> None:
    (panel,) = regression_bands({"ensemble": predictive()}, X).axes
    in_order = np.array([2.0, 3.0, 1.0])  # of x
    np.testing.assert_allclose(half_width(panel, 1), 2 * in_order, rtol=1e-6)
    np.testing.assert_allclose(half_width(panel, 0), 2 * np.sqrt(in_order**2 + 0.25), rtol=1e-6)
    np.testing.assert_array_equal(panel.lines[0].get_xdata(), [0, 1, 2])


def test_data_and_truth_are_drawn_where_they_are_known() -> None:
    figure = regression_bands({"a": predictive(), "b": predictive()}, X, data=([5.0], [7.0]), truth=[4.0, 0.0, 1.0])
    for panel in figure.axes:
        _, truth, dots = panel.lines
        np.testing.assert_array_equal(truth.get_xydata(), [[0, 0], [1, 1], [2, 4]])
        np.testing.assert_array_equal(dots.get_xydata(), [[5, 7]])
    assert [text.get_text() for text in figure.legends[0].get_texts()][-2:] == ["truth", "data"]
    assert len({panel.get_ylim() for panel in figure.axes}) == 1


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        ([0.0, 1.0], {}, "must hold the 3 points that were predicted; got 2"),
        (torch.zeros(3, 2), {}, r"`x` must have shape \(N,\) or \(N, 1\); got \(3, 2\)"),
        ([0.0, 1.0, math.nan], {}, "`x` must be finite"),
        (X, {"output": 1}, "`output` must be from 0 to 0; got 1"),
    ],
)
def test_other_points_than_predicted_are_refused(x: object, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        regression_bands({"ensemble": predictive()}, x, **options)


def test_shares_inside_are_those_of_the_intervals() -> None:
    given, y = measured(0)
    transform = probability_integral_transform(given, y)
    (panel,) = interval_calibration({"ensemble": transform}).axes
    levels, shares = panel.lines[1].get_xydata().T
    for level in (0.1, 0.5, 0.9):
        lower, upper = given.quantile((1 - level) / 2), given.quantile((1 + level) / 2)
        inside = ((y >= lower) & (y <= upper)).double().mean()
        assert shares[np.searchsorted(levels, level, side="right") - 1] == pytest.approx(float(inside))


def test_a_calibrated_method_lies_mostly_in_the_band_and_an_overconfident_one_below() -> None:
    calibrated = np.random.default_rng(0).random(2000)
    overconfident = np.clip(0.5 + 2 * (calibrated - 0.5), 0, 1)
    (panel,) = interval_calibration({"calibrated": calibrated, "overconfident": overconfident}).axes
    levels, shares = panel.lines[1].get_xydata()[1:-1].T
    # Point by point 95 %; one curve strays or stays as a whole, so that 80 % is asked.
    assert np.mean(np.abs(levels - shares) <= 1.96 * np.sqrt(levels * (1 - levels) / 2000) + 1e-3) > 0.8
    levels, shares = panel.lines[2].get_xydata()[1:-1].T
    assert (shares < levels)[500:1000].all()


@pytest.mark.parametrize(("values", "words"), [([1.2], r"must lie in \[0, 1\]"), ([], "at least one point")])
def test_what_are_no_transforms_is_refused(values: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        interval_calibration({"ensemble": values})


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one method"):
        interval_calibration({})
    with pytest.raises(ValueError, match="at least one method"):
        regression_bands({}, X)
