import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from bayesuq.evaluation.plots.images import class_probabilities, most_uncertain
from bayesuq.evaluation.plots.panels import BLUE, VERMILLION
from bayesuq.predictive.categorical import CategoricalPredictive

PROBS = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.5, 0.4, 0.1], [0.3, 0.1, 0.6]]])


def images(number: int, *shape: int) -> torch.Tensor:
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(0))


def test_bars_are_the_mean_and_lines_span_the_draws() -> None:
    predictive = CategoricalPredictive.from_probs(PROBS)
    figure = class_probabilities({"ensemble": predictive}, images(2, 8, 8), y=[0, 2], names=["cat", "dog", "owl"])
    picture, bars, _, second = figure.axes
    np.testing.assert_allclose([bar.get_height() for bar in bars.patches], [0.6, 0.3, 0.1], rtol=1e-6)
    assert [to_hex(bar.get_facecolor()).upper() for bar in bars.patches].count(BLUE) == 1
    assert to_hex(second.patches[2].get_facecolor()).upper() == BLUE
    spans = bars.collections[0].get_segments()
    np.testing.assert_allclose(spans[0][:, 1], np.quantile([0.7, 0.5], [0.05, 0.95]), rtol=1e-6)
    assert picture.get_title() == "is cat"
    assert [label.get_text() for label in second.get_xticklabels()] == ["cat", "dog", "owl"]
    itself = class_probabilities({"ensemble": predictive.named(["cat", "dog", "owl"])}, images(2, 8, 8), y=[0, 2])
    assert itself.axes[0].get_title() == "is cat"  # a predictive knows its own names


def test_without_kept_draws_there_are_no_spans() -> None:
    predictive = CategoricalPredictive.from_probs(PROBS, keep_samples=False)
    figure = class_probabilities({"a": predictive, "b": predictive}, images(2, 8, 8))
    assert not any(axes.collections for axes in figure.axes)


@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 8, 8), (3, 8, 8)], ids=str)
def test_images_come_in_any_usual_layout(shape: tuple[int, ...]) -> None:
    given = images(2, *shape)
    figure = class_probabilities({"ensemble": CategoricalPredictive.from_probs(PROBS)}, given)
    shown = np.asarray(figure.axes[0].images[0].get_array())
    expected = given[0].movedim(0, -1) if shape[0] == 3 else given[0].reshape(8, 8)
    scaled = (expected - given.min()) / (given.max() - given.min())
    np.testing.assert_allclose(shown, scaled, atol=1e-6)


def test_the_most_uncertain_come_first_and_errors_are_marked() -> None:
    figure = most_uncertain(images(4, 8, 8), [0.1, 0.9, 0.5, 0.3], predicted=[0, 1, 2, 0], y=[0, 1, 0, 0], number=3)
    shown = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["1\n0.90", "2, is 0\n0.50", "0\n0.30"]
    assert [to_hex(axes.title.get_color()).upper() == VERMILLION for axes in shown] == [False, True, False]
    np.testing.assert_array_equal(
        np.asarray(shown[0].images[0].get_array()).argsort(axis=None), images(4, 8, 8)[1].numpy().argsort(axis=None)
    )


def test_more_than_there_are_shows_all() -> None:
    assert sum(bool(axes.images) for axes in most_uncertain(images(10, 8, 8), range(10), predicted=[0] * 10).axes) == 10


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"images": images(2, 7)}, r"`images` must have shape .* got \(2, 7\)"),
        ({"images": images(2, 2, 8, 8)}, "`images` must have shape"),
        ({"scores": [0.1]}, "For 2 images there are 1 scores"),
        ({"predicted": [0]}, "1 predicted"),
        ({"y": [0, 1, 2]}, "3 true labels"),
        ({"scores": [0.1, np.nan]}, "`scores` must be finite"),
        ({"number": 0}, "`number` must be"),
    ],
)
def test_what_does_not_belong_together_is_refused(arguments: dict, words: str) -> None:
    given = {"images": images(2, 8, 8), "scores": [0.1, 0.2], "predicted": [0, 1], **arguments}
    with pytest.raises(ValueError, match=words):
        most_uncertain(**given)


def test_predictions_of_other_images_are_refused() -> None:
    predictive = CategoricalPredictive.from_probs(PROBS)
    with pytest.raises(ValueError, match="must be of 3 single labels"):
        class_probabilities({"ensemble": predictive}, images(3, 8, 8))
    with pytest.raises(ValueError, match="at least one method"):
        class_probabilities({}, images(3, 8, 8))
