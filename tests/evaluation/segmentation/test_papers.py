"""What papers of medical images report, each against a loop, a closed form, or what an order must do.

Dice of classes, the surface distances and the surface Dice were equal to MONAI 1.6.1's to the rounding of its floats,
empty masks, spacings and both ways to count the background included, on thirty random pairs of images and volumes.
Against medpy 0.5.2 (NumPy 1.26.4, SciPy 1.17.1), on 54 pairs of images and volumes of three spacings that have a border
each: the largest distance, and the larger of its two sides' 95 % quantiles, are equal to the last bit, the average
(`assd`) to 9e-16. Its own `hd95` pools the sides and is up to .28 of ours off. On six pairs with an empty mask it
raises, where ours are infinite, or NaN where both are empty.
"""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.evaluation import segmentation
from bayesuq.evaluation.segmentation.failures import image_failures, image_uncertainties, least_dice_of_draws
from bayesuq.evaluation.segmentation.lesions import LesionCounts, lesion_counts
from bayesuq.evaluation.segmentation.masks import borders, class_dice, near_foreground
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts
from bayesuq.evaluation.segmentation.raters import region
from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation
from bayesuq.evaluation.segmentation.surfaces import surface_distances
from bayesuq.inference import temperature
from bayesuq.models import likelihoods
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.segmented import VOID, part, segmented

SIZES = {1: (14,), 2: (7, 8), 3: (4, 5, 4)}


def sure(labels: Tensor, num_classes: int) -> CategoricalPredictive:
    """A predictive that says these labels."""
    one_hot = torch.nn.functional.one_hot(labels, num_classes).movedim(-1, 1)
    return CategoricalPredictive.from_logits(9.0 * one_hot[None])


def random_labels(rank: int, num_classes: int = 3, seed: int = 0) -> tuple[CategoricalPredictive, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    said, truth = (torch.randint(num_classes, (3, *SIZES[rank]), generator=noise) for _ in range(2))
    truth[0][truth[0] == 1] = 0  # a class that is not there
    said[1][said[1] == 2] = 0
    truth[1][truth[1] == 2] = 0  # and one that is in neither
    return sure(said, num_classes), truth


def border(mask: Tensor, void: Tensor) -> list[tuple[int, ...]]:
    """Pixels with a neighbour along an axis that is known to be outside of the mask, or is no pixel."""
    inside, unknown = ({tuple(place) for place in pixels.nonzero().tolist()} for pixels in (mask, void))
    steps = [
        tuple(sign * (axis == other) for other in range(mask.ndim)) for axis in range(mask.ndim) for sign in (-1, 1)
    ]
    on_no_other_side = inside | unknown
    return [
        p for p in inside if any(tuple(a + b for a, b in zip(p, s, strict=True)) not in on_no_other_side for s in steps)
    ]


@pytest.mark.parametrize("rank", SIZES)
def test_surfaces_are_those_of_a_loop_over_pairs(rank: int) -> None:
    predictive, y = random_labels(rank)
    y[2][torch.rand(y[2].shape, generator=torch.Generator().manual_seed(1)) < 0.3] = VOID
    spacing = (2.0, 1.0, 0.5)[:rank]
    found = surface_distances(predictive, y, spacing=spacing, tolerance=1.1, ignore_index=VOID)
    said = predictive.mean.argmax(dim=1)
    for n, k in itertools.product(range(3), (1, 2)):
        void = y[n] == VOID
        one, other = border((said[n] == k) & ~void, void), border(y[n] == k, void)
        three = [float(values[n, k - 1]) for values in (found.hausdorff, found.average, found.surface_dice)]
        if not one and not other:
            assert all(map(math.isnan, three))
            continue
        if not one or not other:
            assert three == [math.inf, math.inf, 0.0]
            continue
        away = torch.cdist(*(torch.tensor(side).double() * torch.tensor(spacing) for side in (one, other)))
        sides = [away.amin(dim=1), away.amin(dim=0)]
        both = torch.cat(sides)
        expected = [
            max(float(side.quantile(0.95)) for side in sides),
            float(both.mean()),
            float((both <= 1.1).double().mean()),
        ]
        assert three == pytest.approx(expected, rel=1e-9)


def test_what_ends_at_void_pixels_has_no_border_there() -> None:
    """In a row of pixels: void ones share no border, and a mask that ends at them alone has none at all."""
    truth = torch.tensor([[0, 1, 1, VOID, VOID, 0], [0, VOID, 1, 1, VOID, 0], [0, 1, 1, VOID, VOID, 0]])
    said = torch.tensor([[0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    found = surface_distances(sure(said, 2), truth, ignore_index=VOID, tolerance=0.5)
    assert found.hausdorff.flatten()[0] == 1  # one end each, a pixel apart; along void pixels all were at distance 0
    assert found.surface_dice.flatten()[0] == 0
    assert found.average[1].isnan().all()
    assert found.average[2] == 4 / 3  # beyond the void the prediction has a border that is 4 pixels from the truth's


def test_dice_of_a_class_knows_empty_masks_and_void_pixels() -> None:
    truth = torch.tensor([[0, 1, 1, VOID], [0, 0, 0, 0], [0, 0, 0, 0]])
    predictive = sure(torch.tensor([[1, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]]), 2)
    found = [class_dice(predictive, truth, ignore_index=VOID, ignore_empty=empty).flatten() for empty in (True, False)]
    assert found[0].isnan().tolist() == [False, True, True]
    assert float(found[0][0]) == 0.5
    assert found[1].tolist() == [0.5, 0.0, 1.0]
    both = class_dice(predictive, truth, ignore_index=VOID, background=True)
    assert both[:, 0].tolist() == pytest.approx([0.0, 6 / 7, 1.0])


def test_the_background_is_in_no_mean_of_many_classes_unless_it_is_asked_for() -> None:
    predictive, y = segmented(0)
    pooled = PixelCounts.of(predictive, y, ignore_index=VOID).pooled
    without, whole = (evaluate_segmentation(predictive, y, ignore_index=VOID, background=b) for b in (False, True))
    assert without.report["dice"].value == pytest.approx(float(pooled.class_dice[1:].mean()))
    assert whole.report["dice"].value == pytest.approx(float(pooled.class_dice.mean()))
    assert (without.report["dice"].remark, whole.report["dice"].remark) == (
        "mean of classes 1 to 2",
        "mean of classes 0 to 2",
    )
    classes = without.class_report(["ground", "disc", "square"])
    assert [measure.value for measure in classes.measures] == pytest.approx(pooled.class_dice.tolist())
    assert all(measure.standard_error > 0 for measure in classes.measures)


@pytest.mark.parametrize("rank", SIZES)
def test_near_the_foreground_is_within_a_box_of_it(rank: int) -> None:
    y = (torch.rand(2, *SIZES[rank], generator=torch.Generator().manual_seed(1)) < 0.05).long()
    y[0, ..., -1] = VOID
    found = near_foreground(y, 1, ignore_index=VOID)
    for place in itertools.product(range(2), *map(range, SIZES[rank])):
        box = (place[0], *(slice(max(0, i - 1), i + 2) for i in place[1:]))
        assert int(found[place]) == (int(y[place]) if (y[box] == 1).any() else VOID)


def test_calibration_near_the_foreground_is_that_of_those_pixels() -> None:
    predictive, y = segmented(4, size=(9, 9))
    y[:, 4:] = y[:, 4:].masked_fill(y[:, 4:] != VOID, 0)
    result = evaluate_segmentation(predictive, y, ignore_index=VOID, foreground_radius=1)
    near = near_foreground(y, 1, ignore_index=VOID)
    expected = evaluate_segmentation(predictive, near, ignore_index=VOID).report["expected_calibration_error"]
    found = result.report["expected_calibration_error_near_foreground"]
    assert found.value == expected.value != result.report["expected_calibration_error"].value
    assert found.standard_error == expected.standard_error


def parts_of(mask: Tensor) -> list[set[tuple[int, ...]]]:
    """Connected parts by flooding, corners included."""
    left = {tuple(place) for place in mask.nonzero().tolist()}
    parts = []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            place = edge.pop()
            part.add(place)
            for step in itertools.product((-1, 0, 1), repeat=mask.ndim):
                other = tuple(a + b for a, b in zip(place, step, strict=True))
                if other in left:
                    left.remove(other)
                    edge.append(other)
        parts.append(part)
    return parts


@pytest.mark.parametrize(("hits", "size"), [(7, 25), (14, 25), (7, 100), (57, 100)])
def test_a_share_that_is_just_reached_finds_the_lesion(hits: int, size: int) -> None:
    """Whose product with the size may be above the number of hits in floating point, as .07 x 100 is above 7."""
    p = torch.where(torch.arange(size) < hits, 0.9, 0.1)
    predictive = CategoricalPredictive.from_probs(torch.stack([1 - p, p])[None, None])
    truth = torch.ones(1, size).long()
    assert int(lesion_counts(predictive, truth, least_share=hits / size).found) == 1
    assert int(lesion_counts(predictive, truth, least_share=hits / size + 0.001).found) == 0


@pytest.mark.parametrize("least_share", [0.0, 0.5])
@pytest.mark.parametrize("rank", SIZES)
def test_lesions_are_those_of_a_flood(rank: int, least_share: float) -> None:
    noise = torch.Generator().manual_seed(rank)
    said, truth = (torch.rand(3, *SIZES[rank], generator=noise) < 0.2 for _ in range(2))
    truth[0] = False
    p = torch.where(said, 0.9, 0.1) + 0.05 * torch.rand(said.shape, generator=noise)
    predictive = CategoricalPredictive.from_probs(torch.stack([1 - p, p], dim=1)[None])
    counts = lesion_counts(predictive, truth.long(), least_share=least_share)
    uncertainty: list[float] = []
    for n in range(3):
        one, other = parts_of(said[n]), parts_of(truth[n])
        all_one, all_other = set().union(*one), set().union(*other)
        found = [len(part & all_one) for part in other]
        is_found = sum(hits > 0 and hits >= least_share * len(part) for hits, part in zip(found, other, strict=True))
        false = sum(not part & all_other for part in one)
        four = [int(getattr(counts, name)[n, 0]) for name in ("true", "found", "predicted", "false")]
        assert four == [len(other), is_found, len(one), false]
        uncertainty += [sum(float(predictive.total[n][place]) for place in part) / len(part) for part in one]
    assert sorted(counts.uncertainty.tolist()) == pytest.approx(sorted(uncertainty))
    assert int(counts.is_false.sum()) == int(counts.false.sum())
    assert float(counts.recall) == pytest.approx(int(counts.found.sum()) / int(counts.true.sum()))
    twice = LesionCounts.concatenate([counts, counts])
    assert float(twice.f1) == pytest.approx(float(counts.f1), nan_ok=True)


@pytest.mark.parametrize("rank", SIZES)
def test_regions_that_overlap_are_each_on_their_own(rank: int) -> None:
    """K is no axis of space: borders and lesions do not go from one region to the next."""
    noise = torch.Generator().manual_seed(rank)
    probs = torch.rand(2, 3, 4, *SIZES[rank], generator=noise)
    y = (torch.rand(3, 4, *SIZES[rank], generator=noise) < 0.3).long()
    y[0, 1], y[1, 2, ..., 0] = 0, VOID
    predictive = CategoricalPredictive.from_probs(probs, kind="bernoulli")
    options: dict[str, Any] = {"ignore_index": VOID}
    spacing = (2.0, 1.0, 0.5)[:rank]
    dice = class_dice(predictive, y, regions=True, **options)
    borders_of = surface_distances(predictive, y, regions=True, spacing=spacing, **options)
    counts = lesion_counts(predictive, y, regions=True, **options)
    alone = []
    for k in range(4):
        one = region(predictive, k)
        assert dice[:, k : k + 1].nan_to_num(nan=-1).equal(class_dice(one, y[:, k], **options).nan_to_num(nan=-1))
        expected = surface_distances(one, y[:, k], spacing=spacing, **options)
        for name in ("hausdorff", "average", "surface_dice"):
            found, truth = getattr(borders_of, name)[:, k : k + 1], getattr(expected, name)
            torch.testing.assert_close(found, truth, rtol=0, atol=0, equal_nan=True)
        alone.append(lesion_counts(one, y[:, k], **options))
        for name in ("true", "found", "predicted", "false"):
            assert getattr(counts, name)[:, k : k + 1].equal(getattr(alone[k], name))
    every = LesionCounts.concatenate(alone)
    assert sorted(counts.uncertainty.tolist()) == pytest.approx(sorted(every.uncertainty.tolist()))
    assert float(counts.uncertainty[counts.is_false].sum()) == pytest.approx(
        float(every.uncertainty[every.is_false].sum())
    )


def test_an_axis_of_regions_is_taken_for_none_of_space() -> None:
    """A predictive knows that it is of regions, whichever way it went; of one that does not, spacings tell."""
    probs = torch.rand(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    predictive, y = CategoricalPredictive.from_probs(probs, kind="bernoulli"), torch.ones(3, 4, 5, 6).long()
    ways = (
        predictive,
        predictive.to("cpu"),
        CategoricalPredictive.mixture([predictive, predictive]),
        CategoricalPredictive.concatenate([predictive]),
        likelihoods.Bernoulli().predictive(probs.logit(), keep_samples=False),
        temperature.fit(predictive, y).scaled(predictive),
    )
    for given, measure in itertools.product(ways, (surface_distances, lesion_counts, class_dice)):
        with pytest.raises(ValueError, match="K = 4 labels a pixel"):
            measure(given, y)
    with pytest.raises(ValueError, match="Of K regions pass `regions=True`"):
        surface_distances(part(predictive, slice(0, 3)), y, spacing=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"`spacing` must have 2 numbers, one for each axis; got 1\.$"):
        surface_distances(predictive, y, regions=True, spacing=(1.0,))
    one = CategoricalPredictive.from_probs(probs[:, :, :1], kind="bernoulli")
    with pytest.raises(ValueError, match="One region is no axis"):
        lesion_counts(one, y[:, :1], regions=True)
    with pytest.raises(ValueError, match="`background` is a class"):
        lesion_counts(predictive, y, regions=True, background=True)
    with pytest.raises(ValueError, match="K > 0 labels a pixel"):
        class_dice(sure(y[:, 0], 3), y[:, 0], regions=True)


def test_no_patch_border_or_neighbourhood_goes_from_one_region_to_the_next() -> None:
    noise = torch.Generator().manual_seed(1)
    predictive = CategoricalPredictive.from_probs(torch.rand(2, 2, 3, 6, 7, generator=noise), kind="bernoulli")
    y = (torch.rand(2, 3, 6, 7, generator=noise) < 0.2).long()
    options: dict[str, Any] = {"patch_size": 2, "foreground_radius": 1}
    whole = evaluate_segmentation(predictive, y, **options)
    alone = [evaluate_segmentation(region(predictive, k), y[:, k], **options) for k in range(3)]
    for name in ("accurate_certain", "accurate_uncertain", "inaccurate_certain", "inaccurate_uncertain"):
        of_regions = torch.stack([getattr(each.patches, name) for each in alone])
        assert getattr(whole.patches, name).equal(of_regions.sum(dim=0))
    near = [each.close.num_pixels for each in [whole, *alone] if each.close is not None]
    assert near[0].equal(torch.stack(near[1:]).sum(dim=0))
    said = predictive.mean.argmax(dim=1)
    edges = torch.stack([borders(said[:, k]) for k in range(3)], dim=1)
    expected = [float(entropy[edge].mean()) for entropy, edge in zip(predictive.total, edges, strict=True)]
    assert image_uncertainties(predictive)["boundary"].tolist() == pytest.approx(expected)


def failing(seed: int = 0, num_images: int = 12) -> tuple[CategoricalPredictive, Tensor]:
    """Discs that are found, but in every third image, where draws disagree and most is missed."""
    noise = torch.Generator().manual_seed(seed)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    inside = 5.0 - ((rows - 8).square() + (columns - 8).square()).sqrt()
    fails = torch.arange(num_images) % 3 == 0
    size = (
        0.5 * torch.rand(4, num_images, 1, 1, generator=noise)
        + torch.where(fails, -4.6 + 4 * torch.rand(4, num_images, generator=noise), 0.0)[..., None, None]
    )
    f = 3 * (inside + size)
    y = (inside > 0).long().expand(num_images, 16, 16)
    return CategoricalPredictive.from_logits(torch.stack([torch.zeros_like(f), f], dim=2)), y


def test_images_that_failed_are_the_uncertain_ones() -> None:
    predictive, y = failing()
    result = image_failures(predictive, y, failed_below=0.85)
    assert result.has_failed.sum() >= 3
    assert result.report["disagreement_rank_correlation"].value < -0.5
    assert result.report["disagreement_auroc"].value > 0.9
    risk = 1 - result.dice
    order = result.uncertainties["disagreement"].argsort()
    by_hand = (risk[order].cumsum(0) / torch.arange(1, 13)).mean()
    assert result.report["disagreement_aurc"].value == pytest.approx(float(by_hand))


def test_uncertainties_of_an_image_are_means_over_their_pixels() -> None:
    predictive, _ = failing(1, num_images=4)
    found, said = image_uncertainties(predictive), predictive.mean.argmax(dim=1)
    draws = predictive.samples.argmax(dim=2)
    for n in range(4):
        entropy = predictive.total[n]
        edge = torch.tensor(
            [
                [
                    any(
                        0 <= i + a < 16 and 0 <= j + b < 16 and said[n, i + a, j + b] != said[n, i, j]
                        for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1))
                    )
                    for j in range(16)
                ]
                for i in range(16)
            ]
        )
        assert torch.equal(borders(said)[n], edge)
        assert float(found["mean"][n]) == pytest.approx(float(entropy.mean()))
        assert float(found["boundary"][n]) == pytest.approx(float(entropy[edge].mean()))
        assert float(found["foreground"][n]) == pytest.approx(float(entropy[said[n] > 0].mean()))
        pairs = itertools.combinations(range(4), 2)
        dice = [
            2 * float((draws[a, n] & draws[b, n]).sum()) / float(draws[a, n].sum() + draws[b, n].sum())
            for a, b in pairs
        ]
        assert float(least_dice_of_draws(predictive)[n]) == pytest.approx(min(dice))


def test_failures_stream_and_leave_out_images_without_a_label() -> None:
    predictive, y = failing()
    y = y.clone()
    y[2] = VOID
    parts = [
        (CategoricalPredictive.from_probs(predictive.samples[:, rows]), y[rows]) for rows in (slice(0, 5), slice(5, 12))
    ]
    whole, streamed = image_failures(predictive, y, ignore_index=VOID), image_failures(parts, ignore_index=VOID)
    assert (streamed.report.num_points, streamed.report.num_missing) == (11, 1)
    for measure in whole.report.measures:
        assert streamed.report[measure.name].value == pytest.approx(measure.value, rel=1e-9)


def test_a_missing_foreground_is_as_uncertain_as_its_worst_pixel() -> None:
    p = torch.tensor([[0.9, 0.7, 0.99]])
    predictive = CategoricalPredictive.from_probs(torch.stack([p, 1 - p], dim=1)[None])
    assert float(image_uncertainties(predictive)["foreground"]) == float(predictive.total.max())
    assert segmentation.image_failures(predictive, [[0, 0, 0]]).dice.tolist() == [1.0]
