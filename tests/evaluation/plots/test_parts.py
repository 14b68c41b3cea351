"""Aleatoric and epistemic uncertainty against the number of data, drawn."""

import pytest
import torch

from bayesuq.evaluation.plots.parts import uncertainty_by_size

SIZES = [10, 100, 1000]
PARTS = {
    "toy": {"aleatoric": [[0.2, 0.4], [0.3, 0.3], [0.3, 0.3]], "epistemic": [[0.1, 0.1], [0.01, 0.03], [1e-3, 1e-3]]},
    "other": {"aleatoric": torch.ones(3, 1), "epistemic": torch.ones(3, 1)},
}


def test_lines_are_means_over_repetitions_and_bars_their_standard_errors() -> None:
    figure = uncertainty_by_size(PARTS, SIZES, truth={"toy": 0.25})
    panel = figure.axes[0]
    lines = {container.get_label(): container for container in panel.containers}
    assert list(lines) == ["aleatoric", "epistemic"]
    line, _, (bars,) = lines["aleatoric"]
    assert line.get_xdata().tolist() == SIZES
    assert line.get_ydata() == pytest.approx([0.3, 0.3, 0.3])
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.2, 0.4])  # .3 -+ .1414 / sqrt 2
    assert panel.get_xscale() == panel.get_yscale() == "log"
    assert [float(y) for y in panel.get_lines()[0].get_ydata()] == [0.25, 0.25]
    assert [axes.get_title() for axes in figure.axes] == ["toy", "other"]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert set(texts) == {"the noise itself", "aleatoric", "epistemic"}


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({}, "nothing to draw"),
        ({"toy": {"aleatoric": [[1.0]] * 3}}, "must have 'aleatoric' and 'epistemic'"),
        ({"toy": {"aleatoric": [[1.0]] * 2, "epistemic": [[1.0]] * 3}}, r"shape \(3, R\)"),
        ({"toy": {"aleatoric": [[0.0]] * 3, "epistemic": [[1.0]] * 3}}, "above 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(parts: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        uncertainty_by_size(parts, SIZES)
