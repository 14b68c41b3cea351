import numpy as np
import pytest

from bayesuq.evaluation.plots.training import loss_curves


def test_each_fit_has_its_own_axes_and_all_epochs() -> None:
    figure = loss_curves({"map": [3.0, 2.0, 1.0], "variational": (900.0, 800.0)})
    first, second = figure.axes
    np.testing.assert_array_equal(first.lines[0].get_xydata(), [[1, 3], [2, 2], [3, 1]])
    assert first.get_ylim()[1] < 10 < 700 < second.get_ylim()[0]


def test_the_first_tenth_may_fall_from_above_the_axes() -> None:
    (panel,) = loss_curves({"map": [1e6, *np.linspace(2, 1, 19)]}).axes
    assert panel.get_ylim()[1] < 3


def test_validation_is_drawn_below_with_its_best_epoch() -> None:
    figure = loss_curves({"map": [3.0, 2.0, 1.0], "other": [3.0, 2.0]}, {"map": [0.5, 0.2, 0.4], "strange": [1.0]})
    validation = figure.axes[1]
    assert validation.get_ylabel() == "validation loss"
    np.testing.assert_array_equal(validation.lines[1].get_xydata(), [[2, 0.2]])
    assert not figure.axes[3].axison  # the other fit watched none


@pytest.mark.parametrize(
    ("losses", "words"),
    [({}, "at least one method"), ({"map": []}, "at least one point"), ({"map": [np.nan]}, "finite")],
)
def test_what_is_no_course_is_refused(losses: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        loss_curves(losses)
