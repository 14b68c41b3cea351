"""Signals, images and volumes: every measure of pixels against loops over them, and pictures by what is in them."""

import itertools
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from matplotlib.image import imread

from bayesuq.evaluation import plots
from bayesuq.evaluation.segmentation.patches import patch_sweep
from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation
from tests.evaluation.segmented import VOID, segmented

SIZES = {1: (23,), 2: (6, 7), 3: (4, 3, 5)}


@pytest.mark.parametrize("rank", SIZES)
def test_all_measures_are_those_of_a_loop_over_pixels(rank: int) -> None:
    predictive, y = segmented(rank, num_images=3, size=SIZES[rank])
    result = evaluate_segmentation(predictive, y, ignore_index=VOID, patch_size=2)
    said = predictive.mean.argmax(dim=1)
    entropy, known = predictive.total, y != VOID
    for n in range(3):
        confusion = torch.zeros(3, 3).long()
        log_score = 0.0
        for place in itertools.product(*map(range, SIZES[rank])):
            if known[n][place]:
                confusion[y[n][place], said[n][place]] += 1
                log_score -= float(predictive.mean[n][(slice(None), *place)].log()[y[n][place]])
        assert torch.equal(result.pixels.confusion[n], confusion)
        assert float(result.pixels.log_score_sum[n]) == pytest.approx(log_score, rel=1e-9)
        threshold = result.thresholds["predictive_entropy"]
        uncertain = known[n] & (entropy[n] / np.log(3) > threshold)
        wrong = known[n] & (said[n] != y[n])
        expected = 2 * int((uncertain & wrong).sum()) / int(uncertain.sum() + wrong.sum())
        assert float(result.overlaps["predictive_entropy"].at(threshold)[n]) == pytest.approx(expected)


@pytest.mark.parametrize("rank", [1, 3])
def test_patches_of_any_rank_are_those_of_a_loop(rank: int) -> None:
    predictive, y = segmented(7, num_images=2, size=SIZES[rank])
    uncertainty, wrong, known = predictive.total / np.log(3), predictive.mean.argmax(dim=1) != y, y != VOID
    counts = patch_sweep(uncertainty, wrong, size=2, thresholds=(0.5,), labelled=known)
    expected = torch.zeros(2, 2).long()  # by accurate and certain
    for corner in itertools.product(*(range(0, size, 2) for size in SIZES[rank])):
        where = (0, *(slice(start, start + 2) for start in corner))
        inside = known[where]
        if inside.any():
            accurate = bool((~wrong[where][inside]).double().mean() > 0.5)
            expected[int(accurate), int(bool(uncertainty[where][inside].mean() <= 0.5))] += 1
    found = [
        [counts.inaccurate_uncertain, counts.inaccurate_certain],
        [counts.accurate_uncertain, counts.accurate_certain],
    ]
    assert [[int(each[0, 0]) for each in row] for row in found] == expected.tolist()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_of_a_volume_is_drawn_as_it_is(axis: int) -> None:
    predictive, y = segmented(3, num_images=2, size=SIZES[3])
    images = torch.rand(2, 2, *SIZES[3])
    figure = plots.segmentation_maps(predictive, images, y, ignore_index=VOID, slice=-1, axis=axis)
    drawn = np.asarray(figure.axes[11].images[0].get_array())  # total of the second volume
    np.testing.assert_array_equal(drawn, predictive.total[1].select(axis, -1))
    pixels = np.asarray(figure.axes[7].images[0].get_array())
    first = images[:, 0].double()
    expected = ((first[1] - first.min()) / (first.max() - first.min())).select(axis, -1)
    np.testing.assert_allclose(pixels, expected)


def test_a_montage_goes_evenly_through_a_volume() -> None:
    predictive, y = segmented(3, num_images=2, size=SIZES[3])
    figure = plots.segmentation_montage(predictive, torch.rand(2, *SIZES[3]), y, volume=1, axis=2, num_slices=2)
    for row, place in enumerate((1, 3)):
        assert figure.axes[7 * row].get_ylabel() == f"slice {place}"
        drawn = np.asarray(figure.axes[7 * row + 6].images[0].get_array())
        np.testing.assert_array_equal(drawn, predictive.epistemic[1, :, :, place])


@pytest.mark.parametrize(
    ("rank", "options", "message"),
    [
        (2, {"slice": 1}, "are of volumes"),
        (3, {"slice": 4}, "`slice` must be below 4 along axis 0; got 4"),
        (3, {"axis": 3}, "`axis` must be 0, 1 or 2"),
        (1, {}, "Maps are drawn of images"),
    ],
)
def test_slices_that_are_not_there_are_refused(rank: int, options: dict[str, int], message: str) -> None:
    predictive, y = segmented(0, num_images=1, size=SIZES[rank])
    with pytest.raises(ValueError, match=message):
        plots.segmentation_maps(predictive, torch.rand(1, *SIZES[rank]), y, **options)


def test_slices_to_scroll_through_hold_the_maps_of_each_on_one_scale() -> None:
    """Pixel by pixel, from the pictures as they are written; a name of a class is text."""
    predictive, y = segmented(3, num_images=2, size=SIZES[3])
    images = torch.rand(2, *SIZES[3])
    names = ["<script>", "b", "c"]
    found = plots.segmentation_slices(predictive, images, y, volume=1, axis=1, names=names, ignore_index=VOID)
    assert found.places == (0, 1, 2)
    assert found.highest == float(predictive.total[1].max())
    wrong = (predictive.mean.argmax(dim=1) != y) & (y != VOID)
    colour = colormaps["magma"]
    for place, picture, share in zip(found.places, found.pictures, found.share_wrong, strict=True):
        drawn = imread(BytesIO(picture))[..., :3]
        assert drawn.shape == (4, 7 * 5 + 6, 3)
        for column, part in enumerate((predictive.total, predictive.aleatoric, predictive.epistemic), start=4):
            expected = colour(part[1].select(1, place).numpy() / found.highest)[..., :3]
            np.testing.assert_allclose(drawn[:, 6 * column : 6 * column + 5], expected, atol=0.5 / 255 + 1e-6)
        black = (drawn[:, 18:23] == 0).all(axis=-1)
        np.testing.assert_array_equal(black, wrong[1].select(1, place))
        assert share == pytest.approx(float(wrong[1].select(1, place).sum() / (y != VOID)[1].select(1, place).sum()))
    page = found.html
    assert page.count("<img") == 3
    assert "<script" not in page
    assert "http" not in page


def test_large_slices_are_thinned_and_no_more_than_asked_for() -> None:
    predictive, y = segmented(0, num_images=1, size=(5, 2, 300))
    found = plots.segmentation_slices(predictive, torch.rand(1, 5, 2, 300), y, num_slices=2)
    assert found.places == (1, 3)
    assert imread(BytesIO(found.pictures[0])).shape == (1, 7 * 100 + 6 * 4, 4)
