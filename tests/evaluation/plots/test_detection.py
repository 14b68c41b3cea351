"""Pictures of detection show the numbers that they are given."""

import io

import numpy as np
import pytest
import torch

from bayesuq.evaluation.plots.detection import rejection_curves, roc_curves, score_histograms
from bayesuq.evaluation.report.detection_tasks import evaluate_misclassification, evaluate_ood
from tests.evaluation.examples import labelled


def drawn(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def test_a_rejection_curve_starts_at_the_accuracy_of_all_points() -> None:
    predictive, y = labelled(0)
    found = evaluate_misclassification(predictive, y)
    figure = rejection_curves({name: found.risk_coverage(name) for name in ("margin", "mutual_information")})
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["margin", "mutual_information"]
    accuracy = float((predictive.mean.argmax(1) == y).double().mean())
    for line in lines:
        assert line.get_xdata()[-1] == pytest.approx(0.0)
        assert line.get_ydata()[-1] == pytest.approx(accuracy)
    assert len(drawn(figure)) > 5000


def test_histograms_show_each_score_on_both_sides() -> None:
    found = evaluate_ood(labelled(0)[0], labelled(8, num_points=50, sharpness=0.2)[0])
    figure = score_histograms(found, ["margin", "mutual_information"], positive_label="letters", num_bins=10)
    assert [axes.get_title().partition("\n")[0] for axes in figure.axes] == ["margin", "mutual information"]
    area = found.table.measures["margin"][0].value
    assert figure.axes[0].get_title().endswith(f"AUROC {area:.3f}")
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[1] == "letters (N = 50)"
    assert len(score_histograms(found).axes) == len(found.scores)
    assert len(drawn(figure)) > 5000


def test_histograms_have_the_weights_of_points_and_room_for_infinite_scores() -> None:
    predictive, y = labelled(0)
    own = torch.arange(200.0)
    own[:3], own[-3:] = -torch.inf, torch.inf
    weight = torch.where(torch.arange(200) < 100, 3.0, 1.0)
    found = evaluate_misclassification(predictive, y, scores={"own": own}, weight=weight)
    figure = score_histograms(found, "own", num_bins=2)
    right = ~found.positives
    expected = (weight * right)[:100].sum() / weight[right].sum()
    assert figure.axes[0].patches[0].get_xy()[:, 1].tolist().count(pytest.approx(float(expected))) > 0
    assert len(drawn(figure)) > 5000


def test_roc_curves_end_in_both_corners() -> None:
    found = evaluate_misclassification(*labelled(0))
    figure = roc_curves({"ensemble": found, "map": found}, "margin")
    for line in figure.axes[0].get_lines()[1:]:
        points = np.asarray(line.get_xydata())
        assert points[0].tolist() == [0, 0]
        assert points[-1].tolist() == [1, 1]
        assert (np.diff(points, axis=0) >= 0).all()
    assert len(drawn(figure)) > 5000


def test_names_are_whole_however_long_and_panels_keep_their_height() -> None:
    found = evaluate_misclassification(*labelled(0))
    for names in (["an ensemble of networks, each with its own temperature"], [f"network {n}" for n in range(12)]):
        figure = roc_curves(dict.fromkeys(names, found), "margin")
        drawn(figure)
        key = figure.legends[0].get_window_extent()
        assert key.x0 >= 0
        assert key.x1 <= figure.bbox.x1
        assert figure.axes[0].get_window_extent().height > 1.9 * figure.dpi


def test_nothing_to_draw_is_refused() -> None:
    found = evaluate_misclassification(*labelled(0))
    with pytest.raises(ValueError, match="nothing to draw"):
        rejection_curves({})
    with pytest.raises(ValueError, match="nothing to draw"):
        roc_curves({}, "margin")
    with pytest.raises(ValueError, match="nothing to draw"):
        score_histograms(found, [])
    with pytest.raises(KeyError):
        score_histograms(found, ["margins"])
    right = evaluate_ood(*[labelled(0)[0]] * 2)
    empty = type(right)(right.table, right.scores, torch.zeros_like(right.positives), 4)
    with pytest.raises(ValueError, match="of the positives"):
        score_histograms(empty)
