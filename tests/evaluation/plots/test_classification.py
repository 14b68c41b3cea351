import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from bayesuq.evaluation.calibration import Reliability, reliability
from bayesuq.evaluation.detection import risk_coverage
from bayesuq.evaluation.plots.classification import entropy_histogram, reliability_diagram, risk_coverage_curves
from bayesuq.evaluation.plots.panels import BLUE, VERMILLION
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.examples import labelled

NAMES = ["map_estimate", "ensemble", "variational", "dropout", "laplace"]


def results(number: int) -> dict[str, Reliability]:
    return {name: reliability(*labelled(seed)) for seed, name in enumerate(NAMES[:number])}


def entropies(number: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: scale * labelled(seed)[0].total for seed, name in enumerate(NAMES[:number])}


def drawn(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def ticks_shown(axes: Axes, axis: str) -> bool:
    return any(label.get_visible() for label in getattr(axes, f"get_{axis}ticklabels")())


@pytest.mark.parametrize("number", [1, 2, 5])
def test_every_method_has_a_panel_on_shared_axes(number: int) -> None:
    diagram, histogram = reliability_diagram(results(number)), entropy_histogram(entropies(number), entropies(number))
    for figure, levels in ((diagram, 2), (histogram, 1)):
        assert drawn(figure).startswith(b"\x89PNG")
        assert len(figure.axes) == levels * number
        assert [axes.get_title().split("\n")[0] for axes in figure.axes[::levels]] == NAMES[:number]
        for axes in figure.axes:
            assert axes.get_xlim() == figure.axes[0].get_xlim()
        for level in range(levels):
            assert len({axes.get_ylim() for axes in figure.axes[level::levels]}) == 1


def test_the_lowest_panel_of_each_column_shows_its_ticks() -> None:
    figure = entropy_histogram(entropies(5), entropies(5))  # three columns, two rows, one place empty
    figure.draw_without_rendering()
    assert [ticks_shown(axes, "x") for axes in figure.axes] == [False, False, True, True, True]
    assert [ticks_shown(axes, "y") for axes in figure.axes] == [True, False, False, True, False]


def test_reliability_diagram_draws_the_bins_that_hold_points() -> None:
    result = results(1)["map_estimate"]
    upper, lower = reliability_diagram({"map_estimate": result}).axes
    held = result.count > 0
    assert not held.all()
    diagonal, dots = upper.lines[0], upper.lines[1]
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    np.testing.assert_allclose(dots.get_xydata(), torch.stack([result.confidence, result.accuracy])[:, held].T)
    tops = [bar.get_y() + bar.get_height() for bar in lower.patches]
    np.testing.assert_allclose(tops, result.count)
    np.testing.assert_allclose([bar.get_x() for bar in lower.patches], result.edges[:-1])
    error, total = result.expected_calibration_error, int(result.count.sum())
    assert upper.get_title() == f"map_estimate\nECE {error:.3f}, N = {total}"


def test_a_bin_of_one_point_still_shows() -> None:
    result = Reliability.from_confidences(torch.tensor([0.5]), torch.tensor([True]), num_bins=3)
    _, lower = reliability_diagram({"one": result}).axes
    heights = [bar.get_height() for bar in lower.patches]
    assert heights[1] > 0
    assert heights[0] == heights[2] == 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_weighted_points_are_counted_by_what_they_are_worth(scale: float) -> None:
    """Weights of mean 1 / N had a title of N = 0 and no bars."""
    weight = scale * torch.tensor([1.0, 3.0, 2.0, 2.0])
    predictive = CategoricalPredictive.from_probs([[[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]]])
    result = reliability(predictive, [0, 1, 0, 1], 2, weight=weight)
    upper, lower = reliability_diagram({"map": result}).axes
    assert upper.get_title() == "map\nECE 0.375, worth 4 points"  # 64 / 18
    assert lower.get_ylabel() == "effective\npoints"
    tops = [bar.get_y() + bar.get_height() for bar in lower.patches]
    np.testing.assert_allclose(tops, [0, 64 / 18], rtol=1e-6)
    with pytest.raises(ValueError, match=r"top labels, with bins \(B,\); got \(2, 15\), as `classwise=True`"):
        reliability_diagram({"map": reliability(predictive, [0, 1, 0, 1], classwise=True)})


def test_the_area_in_the_key_is_that_under_the_weighted_curve() -> None:
    scores, errors = [0.1, 0.2, 0.3, 0.4], [False, True, False, True]
    weight = torch.tensor([5.0, 1.0, 1.0, 3.0])
    curve = risk_coverage(scores, errors, weight=weight)
    key = risk_coverage_curves({"map": curve}).axes[0].get_legend_handles_labels()[1]
    area = (5 * 0 + 1 / 6 + 1 / 7 + 3 * 4 / 10) / 10
    assert key == [f"map (area {area:.3g})"]


def test_histograms_are_shares_of_their_own_points() -> None:
    inside, outside = {"ensemble": torch.tensor([0.1, 0.1, 0.9])}, {"ensemble": torch.tensor([0.9, 1.0])}
    (panel,) = entropy_histogram(inside, outside, num_bins=2).axes
    filled, outline = panel.patches
    assert to_hex(filled.get_facecolor()).upper() == BLUE
    assert to_hex(outline.get_edgecolor()).upper() == VERMILLION
    for patch, shares in ((filled, {2 / 3, 1 / 3}), (outline, {1.0})):
        heights = {round(float(height), 12) for height in patch.get_xy()[:, 1]} - {0.0}
        assert heights == {round(share, 12) for share in shares}


def test_labels_and_units_are_told() -> None:
    figure = entropy_histogram(
        entropies(2),
        entropies(2, 0.5),
        in_label="digits",
        out_label="letters",
        quantity="mutual information",
        unit="bits",
    )
    assert figure.get_supxlabel() == "mutual information (bits)"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["digits (N = 200)", "letters (N = 200)"]
    assert figure.axes[0].get_ylabel() == "share of points"


def test_long_numbers_at_the_ticks_do_not_touch() -> None:
    scores = {name: torch.linspace(9e3, 2e4, 20) for name in ("map", "gp")}
    figure = entropy_histogram(scores, scores, unit="units of y")
    figure.draw_without_rendering()
    labels = [(axes, label) for axes in figure.axes for label in axes.get_xticklabels()]
    seen = [label for axes, label in labels if axes.get_xlim()[0] <= label.get_position()[0] <= axes.get_xlim()[1]]
    boxes = sorted((box.x0, box.x1) for box in (label.get_window_extent() for label in seen))
    assert all(left[1] < right[0] for left, right in pairwise(boxes))


def test_methods_are_matched_by_name_not_by_order() -> None:
    inside, outside = {"a": [0.1], "b": [0.2]}, {"b": [0.9], "a": [0.8]}
    figure = entropy_histogram(inside, outside, num_bins=9)
    one = entropy_histogram({"a": [0.1], "b": [0.2]}, {"a": [0.8], "b": [0.9]}, num_bins=9)
    for axes, expected in zip(figure.axes, one.axes, strict=True):
        np.testing.assert_array_equal(axes.patches[1].get_xy(), expected.patches[1].get_xy())


def test_zero_everywhere_can_be_drawn() -> None:
    assert drawn(entropy_histogram({"map_estimate": torch.zeros(5)}, {"map_estimate": torch.zeros(3)}))


@pytest.mark.parametrize(
    ("inside", "outside", "reason"),
    [
        ({"a": [0.1]}, {"b": [0.1]}, "same methods"),
        ({}, {}, "at least one method"),
        ({"a": [math.nan]}, {"a": [0.1]}, r"`in_distribution\['a'\]` must be finite"),
        ({"a": [0.1]}, {"a": []}, r"`out_of_distribution\['a'\]` must hold at least one"),
    ],
)
def test_what_cannot_be_drawn_is_refused(inside: dict, outside: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        entropy_histogram(inside, outside)


def test_no_method_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one method"):
        reliability_diagram({})


def test_refusals_are_drawn_where_a_threshold_attains_them() -> None:
    scores, errors = [0.1, 0.2, 0.2, 0.4], [False, True, False, True]
    curve = risk_coverage(scores, errors)
    figure = risk_coverage_curves({"ensemble": curve, "variational": curve}, quantity="error rate")
    (panel,) = figure.axes
    np.testing.assert_allclose(panel.lines[0].get_xydata(), [[0.25, 0], [0.75, 1 / 3], [1, 0.5]])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [f"{name} (area {float(curve.risk.mean()):.3g})" for name in ("ensemble", "variational")]
    assert len({(line.get_color(), line.get_linestyle()) for line in panel.lines}) == 2
    assert drawn(figure)


def test_ten_lines_are_told_apart_and_no_line_is_refused() -> None:
    curve = risk_coverage([0.1, 0.2], [False, True])
    (panel,) = risk_coverage_curves({str(number): curve for number in range(10)}).axes
    assert len({(line.get_color(), line.get_linestyle()) for line in panel.lines}) == 10
    with pytest.raises(ValueError, match="at least one method"):
        risk_coverage_curves({})
