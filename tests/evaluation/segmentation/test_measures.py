"""Regions, and the overlap of uncertainty and errors, against sets counted by hand."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from bayesuq.evaluation import segmentation
from bayesuq.evaluation.segmentation import overlap
from bayesuq.evaluation.segmentation.measures import pixel_accuracy, pointwise_dice, rank_correlation
from bayesuq.evaluation.segmentation.overlap import PUBLISHED_THRESHOLDS, OverlapCounts, overlap_sweep
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts
from bayesuq.evaluation.streaming import states
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.segmented import VOID, segmented


def maps(seed: int = 0, num_images: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Uncertainty in [0, 1], errors where it is large and elsewhere, and which pixels count."""
    noise = torch.Generator().manual_seed(seed)
    uncertainty = torch.rand(num_images, 8, 9, generator=noise, dtype=torch.float64).square()
    errors = torch.rand(num_images, 8, 9, generator=noise) < 0.05 + 0.6 * uncertainty
    return uncertainty, errors, torch.rand(num_images, 8, 9, generator=noise) < 0.8


def authors_formula(u: Tensor, e: Tensor, t: float) -> float:
    """`error_dice` of the authors' code: 2 (fnu + fpu) / (fn + fp + fnu + fpu + tnu + tpu), 1 where both are empty."""
    wrong_uncertain, wrong, right_uncertain = int((e & (u > t)).sum()), int(e.sum()), int((~e & (u > t)).sum())
    size = wrong + wrong_uncertain + right_uncertain
    return 1.0 if size == 0 else 2 * wrong_uncertain / size


def test_the_sweep_is_the_authors_formula_at_each_threshold_and_image() -> None:
    uncertainty, errors, labelled = maps()
    counts = overlap_sweep(uncertainty, errors, labelled=labelled)
    expected = [
        [authors_formula(u[m], e[m], t) for t in PUBLISHED_THRESHOLDS]
        for u, e, m in zip(uncertainty, errors, labelled, strict=True)
    ]
    np.testing.assert_allclose(counts.overlap, expected, rtol=1e-15)
    single = segmentation.uncertainty_error_overlap(uncertainty, errors, 0.3, labelled=labelled)
    np.testing.assert_allclose(single, np.array(expected)[:, 3], rtol=1e-15)
    assert counts.best_threshold == PUBLISHED_THRESHOLDS[int(np.mean(expected, axis=0).argmax())]
    assert float(counts.test_maximum) == pytest.approx(np.mean(expected, axis=0).max())


def test_recall_and_precision_are_shares_of_the_two_sets() -> None:
    uncertainty, errors, _ = maps(1, num_images=1)
    counts = overlap_sweep(uncertainty, errors, thresholds=(0.4,))
    both = int((errors & (uncertainty > 0.4)).sum())
    assert float(counts.recall) == pytest.approx(both / int(errors.sum()))
    assert float(counts.precision) == pytest.approx(both / int((uncertainty > 0.4).sum()))


def test_a_pixel_at_the_threshold_is_not_uncertain() -> None:
    counts = overlap_sweep([[0.3, 0.3, 0.31]], [[True, True, True]], thresholds=(0.3, 0.31))
    assert counts.uncertain.tolist() == [[1, 0]]


def test_empty_sets_agree_and_one_empty_set_does_not() -> None:
    sure_and_right = overlap_sweep([[0.0, 0.0]], [[False, False]], thresholds=(0.5,))
    sure_and_wrong = overlap_sweep([[0.0, 0.0]], [[True, False]], thresholds=(0.5,))
    unsure_and_right = overlap_sweep([[1.0, 0.0]], [[False, False]], thresholds=(0.5,))
    nothing_labelled = overlap_sweep([[1.0]], [[True]], thresholds=(0.5,), labelled=[[False]])
    found = [float(c.overlap) for c in (sure_and_right, sure_and_wrong, unsure_and_right, nothing_labelled)]
    assert found[:3] == [1.0, 0.0, 0.0]
    assert math.isnan(found[3])
    assert sure_and_right.recall.isnan().all()
    assert sure_and_right.precision.isnan().all()
    assert [float(c.floor) for c in (sure_and_right, sure_and_wrong)] == [0.0, pytest.approx(2 / 3)]


def test_a_map_of_the_errors_overlaps_wholly() -> None:
    _, errors, _ = maps(2)
    torch.testing.assert_close(overlap_sweep(errors.double(), errors).overlap, torch.ones(6, 11).double())


def test_all_pixels_uncertain_give_the_floor() -> None:
    uncertainty, errors, _ = maps(3)
    counts = overlap_sweep(uncertainty + 0.1, errors, thresholds=(0.05,))
    rate = errors.flatten(1).double().mean(dim=1)
    torch.testing.assert_close(counts.floor, 2 * rate / (1 + rate))
    torch.testing.assert_close(counts.overlap[:, 0], counts.floor)


def test_the_expected_overlap_of_shuffles_is_their_mean_and_never_above_the_floor() -> None:
    uncertainty, errors, labelled = maps(4, num_images=2)
    counts = overlap_sweep(uncertainty, errors, labelled=labelled)
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(1000):
        shuffled = uncertainty.clone()
        for image, mask in zip(shuffled, labelled, strict=True):
            image[mask] = image[mask][torch.randperm(int(mask.sum()), generator=generator)]
        found.append(overlap_sweep(shuffled, errors, labelled=labelled).overlap)
    draws = torch.stack(found)
    error = draws.std(dim=0) / 1000**0.5
    assert ((draws.mean(dim=0) - counts.shuffled).abs() <= 5 * error + 1e-12).all()
    assert (counts.shuffled <= counts.floor.unsqueeze(1) + 1e-12).all()


def test_the_mean_by_errors_weighs_images_by_their_wrong_pixels() -> None:
    uncertainty, errors, _ = maps(5)
    counts = overlap_sweep(uncertainty, errors)
    weight = errors.flatten(1).sum(dim=1).double()
    torch.testing.assert_close(counts.error_weighted_mean, (weight[:, None] * counts.overlap).sum(0) / weight.sum())


def test_images_join_whatever_the_batches() -> None:
    uncertainty, errors, labelled = maps(6)
    parts = [overlap_sweep(uncertainty[n : n + 1], errors[n : n + 1], labelled=labelled[n : n + 1]) for n in range(6)]
    joined, whole = OverlapCounts.concatenate(parts), overlap_sweep(uncertainty, errors, labelled=labelled)
    for name, value in vars(whole).items():
        assert torch.equal(getattr(joined, name), value)


def test_a_state_of_fixed_size_has_the_mean_overlap_at_a_threshold() -> None:
    def pointwise(predictive: CategoricalPredictive, y: Tensor, *, threshold: float) -> Tensor:
        errors = predictive.mean.argmax(dim=1) != y
        return segmentation.uncertainty_error_overlap(
            overlap.fractions(predictive, "predictive_entropy"), errors, threshold, labelled=y != VOID
        )

    state, expected = states.mean_of(pointwise, threshold=0.6), []
    for seed in range(3):
        predictive, y = segmented(seed)
        state = state.update(predictive, y)
        expected.append(pointwise(predictive, y, threshold=0.6))
    torch.testing.assert_close(state.result, torch.cat(expected).mean())


def test_an_image_without_a_labelled_pixel_changes_no_mean_of_images() -> None:
    """Pooled, image by image, in a state and in the curve: four of sixteen images are known, and only they count."""
    predictive, y = segmented(3, num_images=16)
    y[4:] = VOID
    known = [0, 1, 2, 3]
    few = CategoricalPredictive.from_probs(predictive.mean[known][None])
    for function in (segmentation.dice, segmentation.intersection_over_union, pixel_accuracy):
        all_images = function(predictive, y, ignore_index=VOID)
        torch.testing.assert_close(all_images, function(few, y[known], ignore_index=VOID))
    single = pointwise_dice(predictive, y, ignore_index=VOID)
    assert single.isnan().tolist() == 4 * [False] + 12 * [True]
    state = states.mean_of(pointwise_dice, skip_undefined=True, ignore_index=VOID).update(predictive, y)
    torch.testing.assert_close(state.result, single[known].mean())
    torch.testing.assert_close(state.summary.standard_error, single[known].std() / 2)
    uncertainty, errors = predictive.total / predictive.total.max(), predictive.mean.argmax(dim=1) != y
    counts = overlap_sweep(uncertainty, errors, labelled=y != VOID)
    alone = overlap_sweep(uncertainty[known], errors[known], labelled=(y != VOID)[known])
    torch.testing.assert_close(counts.mean, alone.mean)
    torch.testing.assert_close(counts.error_weighted_mean, alone.error_weighted_mean)
    assert counts.floor[4:].isnan().all()
    assert counts.shuffled[4:].isnan().all()


def test_pooled_and_pointwise_agree_on_an_absent_foreground() -> None:
    """1 where there was none to find and none was found, NaN where no pixel is labelled, 0 where it was missed."""
    predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.9, 0.1]]]).movedim(2, 2)[..., None])
    for label, expected in ((0, 1.0), (1, 0.0), (VOID, math.nan)):
        for function in (segmentation.dice, segmentation.intersection_over_union, pointwise_dice):
            found = float(function(predictive, [[label]], ignore_index=VOID))
            assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.mark.parametrize("score", overlap.SCORES)
def test_fractions_lie_between_certainty_and_ignorance(score: str) -> None:
    probs = torch.tensor([[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]])
    disagreeing, sure = CategoricalPredictive.from_probs(probs), CategoricalPredictive.from_probs(probs[:1])
    assert float(overlap.fractions(disagreeing, score)) == pytest.approx(1.0)
    assert float(overlap.fractions(sure, score)) == 0.0


def test_a_binary_entropy_is_in_bits() -> None:
    """As the authors have it: the entropy of the foreground's mean probability over ln 2."""
    p = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    predictive = CategoricalPredictive.from_probs(torch.stack([1 - p, p], dim=1)[None])
    expected = -(p * p.log2() + (1 - p) * (1 - p).log2())
    torch.testing.assert_close(overlap.fractions(predictive, "predictive_entropy"), expected)


def test_rescaled_maps_go_from_0_to_1_image_by_image() -> None:
    found = overlap.rescaled([[[1.0, 3.0], [2.0, 1.0]], [[5.0, 5.0], [5.0, 5.0]]])
    assert found.tolist() == [[[0.0, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]


def test_regions_are_those_of_the_counts() -> None:
    predictive, y = segmented(0)
    counts = PixelCounts.of(predictive, y, ignore_index=VOID)
    for function, expected in (
        (segmentation.intersection_over_union, counts.pooled.intersection_over_union),
        (segmentation.dice, counts.pooled.class_dice[1:].mean()),
        (partial(segmentation.dice, background=True), counts.pooled.dice),
        (pixel_accuracy, counts.pooled.accuracy),
        (pointwise_dice, counts.class_dice[:, 1:].nanmean(dim=1)),
        (partial(pointwise_dice, background=True), counts.dice),
    ):
        torch.testing.assert_close(function(predictive, y, ignore_index=VOID), expected)


def test_nothing_to_find_and_nothing_found_is_right() -> None:
    predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.9, 0.1]], [[0.9, 0.1]]]).movedim(0, 1)[..., None])
    assert pointwise_dice(predictive, [[0], [1]]).tolist() == [1.0, 0.0]


def test_rank_correlation_is_scipys_ties_included() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randint(6, (40,), generator=generator).double() for _ in range(2))
    expected = stats.spearmanr(one, other).statistic
    assert float(rank_correlation(one, other)) == pytest.approx(expected)
    assert rank_correlation(one, torch.ones(40)).isnan()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: overlap_sweep([[0.1, 0.2]], [[True]]), "must have one shape"),
        (lambda: overlap_sweep([[0.1]], [[True]], thresholds=(0.5, 0.2)), "`thresholds` must rise"),
        (lambda: overlap_sweep([[float("nan")]], [[True]]), "uncertainty"),
        (lambda: overlap_sweep([[0.1]], [[True]]).at(0.33), "`threshold` must be one of"),
        (lambda: overlap.fractions(segmented(0)[0], "entropy"), "`score` must be one of"),
        (lambda: rank_correlation([0.1], [0.1, 0.2]), "must have one shape"),
        (lambda: OverlapCounts.concatenate([]), "at least one"),
    ],
)
def test_what_cannot_be_counted_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
