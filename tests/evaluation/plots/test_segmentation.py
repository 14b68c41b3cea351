"""Pictures of segmentations: what is drawn is what was measured."""

import numpy as np
import pytest
import torch

from bayesuq.evaluation import plots
from bayesuq.evaluation.plots.segmentation import COLUMNS
from bayesuq.evaluation.segmentation.overlap import overlap_sweep
from tests.evaluation.segmented import VOID, segmented


def drawn(axes) -> np.ndarray:
    return np.asarray(axes.images[0].get_array())


def test_three_uncertainties_share_one_scale_and_add_up() -> None:
    predictive, y = segmented(0, num_images=2)
    figure = plots.segmentation_maps(predictive, torch.rand(2, 1, 6, 7), y, ignore_index=VOID, labels=["a", "b"])
    assert len(figure.axes) == 15
    rows = [figure.axes[:7], figure.axes[7:14]]
    assert [axes.get_title() for axes in rows[0]] == list(COLUMNS)
    for row in rows:
        total, aleatoric, epistemic = (drawn(axes) for axes in row[4:])
        np.testing.assert_allclose(total, aleatoric + epistemic, atol=1e-12)
        assert len({axes.images[0].get_clim() for axes in row[4:]}) == 1
    assert rows[0][4].images[0].get_clim() == rows[1][4].images[0].get_clim() == (0.0, float(predictive.total.max()))
    np.testing.assert_array_equal(drawn(rows[1][4]), predictive.total[1])
    assert [row[0].get_ylabel() for row in rows] == ["a", "b"]


def test_errors_and_void_pixels_have_colours_of_their_own() -> None:
    predictive, y = segmented(1, num_images=1)
    figure = plots.segmentation_maps(predictive, torch.rand(1, 3, 6, 7), y, ignore_index=VOID)
    painted, void = drawn(figure.axes[3]), (y[0] == VOID).numpy()
    wrong = (predictive.mean.argmax(dim=1)[0] != y[0]).numpy() & ~void
    colours = {tuple(painted[where][0]) for where in (void, wrong, ~void & ~wrong)}
    assert len(colours) == 3
    for where in (void, wrong, ~void & ~wrong):
        assert (painted[where] == painted[where][0]).all()
    assert (drawn(figure.axes[1])[void] == 1).all()


@pytest.mark.parametrize("num_classes", [2, 9, 11])
def test_classes_have_a_colour_each(num_classes: int) -> None:
    predictive, y = segmented(2, num_images=1, num_classes=num_classes)
    names = [f"class {k}" for k in range(num_classes)]
    figure = plots.segmentation_maps(predictive, torch.rand(1, 6, 7), y.clamp(max=num_classes - 1), names=names)
    patches = figure.legends[0].get_patches()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, "wrong"]
    assert len({patch.get_facecolor() for patch in patches[:-1]}) == num_classes


def test_curves_are_the_means_over_images() -> None:
    noise = torch.Generator().manual_seed(0)
    uncertainty = torch.rand(4, 50, generator=noise)
    counts = overlap_sweep(uncertainty, torch.rand(4, 50, generator=noise) < uncertainty)
    (axes,) = plots.overlap_curves({"ensemble": counts}).axes
    curve, shuffled, floor = axes.get_lines()
    np.testing.assert_array_equal(curve.get_ydata(), counts.mean)
    np.testing.assert_array_equal(shuffled.get_ydata(), counts.shuffled.mean(dim=0))
    assert floor.get_ydata()[0] == float(counts.floor.mean())


def test_dots_are_images() -> None:
    figure = plots.quality_scatter({"map": ([0.1, 0.4, 0.2], [0.9, 0.2, 0.8]), "swag": ([0.1, 0.2], [0.5, 0.6])})
    first, second = figure.axes
    np.testing.assert_array_equal(first.get_lines()[0].get_ydata(), [0.9, 0.2, 0.8])
    assert first.get_title() == "map\nrank correlation -1.00"
    assert second.get_title() == "swag\nrank correlation 1.00"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.overlap_curves({}), "at least one method"),
        (lambda: plots.quality_scatter({}), "at least one method"),
        (
            lambda: plots.segmentation_maps(segmented(0)[0], torch.rand(5, 6, 6), segmented(0)[1]),
            "must be of the same pixels",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
