"""Counts of pixels: what a loop over them finds, whatever the batches, and never a void one."""

from collections.abc import Callable

import pytest
import torch
from sklearn import metrics
from torch import Tensor

from bayesuq.evaluation import calibration, scores
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts, pixel_state
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.segmented import VOID, part, segmented

EXACT = {"rtol": 1e-12, "atol": 0.0}


def without_void(predictive: CategoricalPredictive, y: Tensor) -> tuple[CategoricalPredictive, Tensor]:
    """The labelled pixels as rows of their own."""
    valid = y != VOID
    sums = {
        name: getattr(predictive, name).movedim(1, -1)[valid]
        if name != "entropy_sum"
        else predictive.entropy_sum[valid]
        for name in ("probability_sum", "entropy_sum", "votes")
    }
    return CategoricalPredictive.from_sums(**sums, num_draws=predictive.num_draws), y[valid]


def test_pixels_are_counted_as_scikit_learn_counts_them() -> None:
    predictive, y = segmented(0)
    rows, labels = without_void(predictive, y)
    counts = PixelCounts.of(predictive, y, ignore_index=VOID).pooled
    said = rows.mean.argmax(dim=1)
    assert counts.confusion.tolist() == metrics.confusion_matrix(labels, said).tolist()
    assert float(counts.accuracy) == pytest.approx(metrics.accuracy_score(labels, said))
    assert counts.class_intersection_over_union.tolist() == pytest.approx(
        metrics.jaccard_score(labels, said, average=None).tolist()
    )
    assert counts.class_dice.tolist() == pytest.approx(metrics.f1_score(labels, said, average=None).tolist())
    assert float(counts.intersection_over_union) == pytest.approx(metrics.jaccard_score(labels, said, average="macro"))


@pytest.mark.parametrize(
    ("of_counts", "of_rows"),
    [
        (lambda c: c.negative_log_likelihood, scores.negative_log_likelihood),
        (lambda c: c.brier_score, scores.brier_score),
        (lambda c: c.accuracy, scores.accuracy),
        (lambda c: c.reliability.expected_calibration_error, calibration.expected_calibration_error),
        (lambda c: c.total, lambda rows, _: rows.total.mean()),
        (lambda c: c.aleatoric, lambda rows, _: rows.aleatoric.mean()),
        (lambda c: c.epistemic, lambda rows, _: rows.epistemic.mean()),
    ],
)
def test_measures_are_those_of_the_labelled_pixels_as_rows(of_counts: Callable, of_rows: Callable) -> None:
    predictive, y = segmented(1)
    counts = PixelCounts.of(predictive, y, ignore_index=VOID).pooled
    torch.testing.assert_close(of_counts(counts), of_rows(*without_void(predictive, y)), rtol=1e-10, atol=1e-14)


def test_void_pixels_may_predict_anything() -> None:
    predictive, y = segmented(2)
    other = segmented(3)[0]
    void = y == VOID
    mixed = CategoricalPredictive.from_sums(
        probability_sum=torch.where(void[:, None], other.probability_sum, predictive.probability_sum),
        entropy_sum=torch.where(void, other.entropy_sum, predictive.entropy_sum),
        votes=torch.where(void[:, None], other.votes, predictive.votes),
        num_draws=predictive.num_draws,
    )
    one, two = (PixelCounts.of(each, y, ignore_index=VOID) for each in (predictive, mixed))
    for name, value in vars(one).items():
        torch.testing.assert_close(value, getattr(two, name), **EXACT)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_batches_of_any_size_and_merges_give_the_same_counts(size: int) -> None:
    predictive, y = segmented(4)
    batches = [(part(predictive, slice(n, n + size)), y[n : n + size]) for n in range(0, 5, size)]
    whole = PixelCounts.of(predictive, y, ignore_index=VOID)
    joined = PixelCounts.concatenate([PixelCounts.of(*batch, ignore_index=VOID) for batch in batches])
    states = [pixel_state(3, ignore_index=VOID).update(*batch) for batch in batches]
    merged = states[0]
    for state in reversed(states[1:]):
        merged = merged.merge(state)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(joined, name), value, rtol=1e-14, atol=0.0)
        torch.testing.assert_close(getattr(merged.summary, name), getattr(whole.pooled, name), rtol=1e-13, atol=0.0)
    assert merged.summary.confusion.dtype == torch.int64
    torch.testing.assert_close(merged.result, whole.pooled.intersection_over_union, **EXACT)


def test_an_image_that_weighs_two_is_there_twice() -> None:
    predictive, y = segmented(5)
    counts = PixelCounts.of(predictive, y, ignore_index=VOID)
    twice = PixelCounts.concatenate([counts, PixelCounts.of(part(predictive, slice(0, 1)), y[:1], ignore_index=VOID)])
    weights = torch.tensor([[2.0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.float64)
    weighted = counts.weighted(weights)
    for name, value in vars(twice.pooled).items():
        torch.testing.assert_close(getattr(weighted, name)[0], value, rtol=1e-13, atol=0.0)
    torch.testing.assert_close(weighted.dice[1], counts.pooled.dice, **EXACT)


def test_of_two_classes_the_foreground_is_measured() -> None:
    predictive, y = segmented(6, num_classes=2)
    counts = PixelCounts.of(predictive, y, ignore_index=VOID).pooled
    truth, said = (y == 1), (predictive.mean[:, 1] > 0.5) & (y != VOID)
    assert float(counts.dice) == pytest.approx(float(2 * (truth & said).sum() / (truth.sum() + said.sum())))
    assert float(counts.intersection_over_union) == pytest.approx(float((truth & said).sum() / (truth | said).sum()))


def test_a_class_that_is_nowhere_counts_nowhere() -> None:
    predictive = CategoricalPredictive.from_logits(torch.tensor([[[[[9.0, 9.0]], [[0.0, 0.0]], [[-9.0, -9.0]]]]]))
    counts = PixelCounts.of(predictive, [[[0, 1]]]).pooled
    assert counts.class_dice.isnan().tolist() == [False, False, True]
    assert float(counts.intersection_over_union) == 0.25  # a half and none


def test_images_without_a_labelled_pixel_have_no_measure_and_change_none() -> None:
    predictive, y = segmented(7)
    y[2] = VOID
    rows = PixelCounts.of(predictive, y, ignore_index=VOID)
    kept = [0, 1, 3, 4]
    others = CategoricalPredictive.from_probs(predictive.mean[kept][None])
    assert rows.accuracy[2].isnan()
    torch.testing.assert_close(
        rows.pooled.accuracy, PixelCounts.of(others, y[kept], ignore_index=VOID).pooled.accuracy, **EXACT
    )


def test_more_pixels_than_float32_can_count_are_counted() -> None:
    """2^24 + 8 right pixels of a half-float predictive: a float32 counter stops at 2^24."""
    state, num = pixel_state(2, num_bins=2), 2**20
    predictive = CategoricalPredictive.from_probs(torch.tensor([0.0, 1.0]).view(1, 1, 2, 1).expand(1, 1, 2, num))
    summary = state.update(predictive, torch.ones(1, num)).summary
    whole = summary
    for _ in range(16):
        whole = whole.merge(summary)
    assert int(whole.num_pixels) == 17 * num > 2**24
    assert int(whole.num_errors) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda y: y[:, :3], "`y` must have shape"),
        (lambda y: y.masked_fill(y == VOID, 9), "labels from 0 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(change: Callable[[Tensor], Tensor], message: str) -> None:
    predictive, y = segmented(8)
    with pytest.raises(ValueError, match=message):
        PixelCounts.of(predictive, change(y), ignore_index=VOID)


def test_other_classes_do_not_merge() -> None:
    one, two = (PixelCounts.of(*segmented(9, num_classes=c), ignore_index=VOID) for c in (2, 3))
    with pytest.raises(ValueError, match="Only counts of the same classes"):
        one.pooled.merge(two.pooled)
    with pytest.raises(ValueError, match="same classes and bins"):
        PixelCounts.concatenate([one, two])
