import numpy as np
import pytest
import torch

from bayesuq.evaluation.plots.shift import shift_curves

ANGLES, SCALES = [0, 45, 90], [0.0, 0.5]
CURVES = {
    "rotation": {
        "ECE": {"map": [0.0, 0.2, 0.4], "ensemble": [0.0, 0.1, 0.2]},
        "NLL": {"map": [1, 2, 3], "ensemble": [1, 1, 2]},
    },
    "noise": {"ECE": {"map": [0.0, 0.8], "ensemble": [0.0, 0.1]}, "NLL": {"map": [1, 2], "ensemble": [1, 5]}},
}


def test_columns_are_kinds_rows_are_measures_and_lines_are_methods() -> None:
    figure = shift_curves(CURVES, {"rotation": ANGLES, "noise": SCALES})
    first_ece, first_nll, second_ece, second_nll = figure.axes
    assert [panel.get_ylabel() for panel in (first_ece, first_nll)] == ["ECE", "NLL"]
    assert [panel.get_xlabel() for panel in (first_nll, second_nll)] == ["rotation", "noise"]
    np.testing.assert_array_equal(first_nll.lines[1].get_xydata(), [[0, 1], [45, 1], [90, 2]])
    np.testing.assert_array_equal(second_ece.lines[0].get_xydata(), [[0, 0], [0.5, 0.8]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["map", "ensemble"]


def test_a_row_has_one_axis_that_begins_at_zero() -> None:
    first_ece, first_nll, second_ece, second_nll = shift_curves(CURVES, {"rotation": ANGLES, "noise": SCALES}).axes
    assert first_ece.get_ylim() == second_ece.get_ylim()
    assert first_nll.get_ylim() == second_nll.get_ylim()
    assert first_ece.get_ylim()[0] == 0
    assert first_ece.get_ylim()[1] >= 0.8


@pytest.mark.parametrize("lines", [[[-1.0, 2.0], [0.5, 1.0]], [[-3.0, -2.0], [-2.5, -2.2]]])
def test_what_lies_below_zero_is_seen(lines: list[list[float]]) -> None:
    """Such as log scores of densities, which an axis from 0 on would hide."""
    curves = {"noise": {"NLL": {"map": lines}}, "blur": {"NLL": {"map": [1.0, 1.0]}}}
    panels = shift_curves(curves, {"noise": SCALES, "blur": SCALES}).axes
    assert panels[0].get_ylim() == panels[1].get_ylim()
    lowest = panels[0].collections[0].get_paths()[0].vertices[:, 1].min()
    assert panels[0].get_ylim()[0] < lowest < 0 <= panels[0].get_ylim()[1]


def test_repeats_are_a_mean_with_a_band_of_one_standard_error() -> None:
    repeats = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    (panel,) = shift_curves({"noise": {"NLL": {"map": repeats}}}, {"noise": SCALES}).axes
    np.testing.assert_array_equal(panel.lines[0].get_ydata(), [2, 2])
    heights = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(1)  # standard deviation sqrt(2) over sqrt(2) repeats
    assert heights.max() == pytest.approx(3)


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        ({}, "kinds of"),
        ({"noise": {}}, "at least one"),
        ({"noise": {"NLL": {}}}, "at least one"),
        ({"noise": {"NLL": {"map": [1.0]}}}, r"shape \(2,\)"),
        ({"noise": {"NLL": {"map": [1.0, np.nan]}}}, "finite"),
        ({"noise": {"NLL": {"map": [1.0, 2.0]}, "ECE": {"other": [1.0, 2.0]}}}, "the same methods"),
        ({"rotation": {"NLL": {"map": [1.0, 2.0]}}}, "kinds of"),
    ],
)
def test_what_does_not_belong_together_is_refused(curves: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shift_curves(curves, {"noise": SCALES})
