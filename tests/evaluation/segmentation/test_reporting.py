"""All measures of segmentation in one call: as the single functions have them, streamed, with the image as the unit."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from bayesuq.evaluation.report.reporting import Report
from bayesuq.evaluation.segmentation import overlap, patches, reporting
from bayesuq.evaluation.segmentation.failures import image_failures
from bayesuq.evaluation.segmentation.measures import pointwise_dice, rank_correlation
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts
from bayesuq.evaluation.segmentation.reporting import SegmentationResult, evaluate_segmentation, predictions
from bayesuq.evaluation.standard_errors import bootstrap
from bayesuq.inference.posteriors import weights
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.evaluation.peak_memory import drawn
from tests.evaluation.segmented import VOID, part, segmented
from tests.zoo.live_tensors import LiveTensors


def batches(seed: int = 0, size: int = 5) -> list[tuple[CategoricalPredictive, Tensor]]:
    predictive, y = segmented(seed)
    return [(part(predictive, slice(n, n + size)), y[n : n + size]) for n in range(0, 5, size)]


def result(seed: int = 0, size: int = 5, **options) -> SegmentationResult:
    return evaluate_segmentation(batches(seed, size), ignore_index=VOID, **options)


def test_measures_are_those_of_the_single_functions() -> None:
    predictive, y = segmented(0)
    report = result().report
    pooled = PixelCounts.of(predictive, y, ignore_index=VOID).pooled
    assert report["intersection_over_union"].value == float(pooled.intersection_over_union)
    assert report["negative_log_likelihood"].value == pytest.approx(float(pooled.negative_log_likelihood), rel=1e-12)
    errors = predictive.mean.argmax(dim=1) != y
    for score in overlap.SCORES:
        values = overlap.fractions(predictive, score)
        counts = overlap.overlap_sweep(values, errors, thresholds=overlap.THRESHOLDS, labelled=y != VOID)
        assert report[f"{score}_overlap_test_maximum"].value == pytest.approx(float(counts.test_maximum))
        assert report[f"{score}_overlap"].value == report[f"{score}_overlap_test_maximum"].value
        assert "on these very images" in report[f"{score}_overlap"].remark
    assert report["overlap_floor"].value == pytest.approx(float(counts.floor.mean()))
    mean_entropy = torch.where(y != VOID, predictive.total, 0).flatten(1).sum(1) / (y != VOID).flatten(1).sum(1)
    dice = pointwise_dice(predictive, y, ignore_index=VOID)
    expected = float(rank_correlation(mean_entropy, dice))
    assert report["predictive_entropy_rank_correlation"].value == pytest.approx(expected)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_batch_size_changes_nothing(size: int) -> None:
    one, other = result(1).report, result(1, size).report
    for measure in one.measures:
        assert other[measure.name].value == pytest.approx(measure.value, rel=1e-12)
        if measure.standard_error is not None:
            assert other[measure.name].standard_error == pytest.approx(measure.standard_error, rel=1e-9)
    assert one.num_points == other.num_points == 5
    assert one.num_samples == 3


def test_counts_of_many_batches_are_joined_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors between large ones that go would keep the memory of these: no more than some stay single."""
    held: list[int] = []
    for kind in (PixelCounts, overlap.OverlapCounts, patches.PatchCounts):
        concatenate = kind.concatenate

        def counted(parts: list, joined=concatenate):
            held.append(len(parts))
            return joined(parts)

        monkeypatch.setattr(kind, "concatenate", counted)
    monkeypatch.setattr(reporting, "MOST_PARTS", 2)
    report = result(1, 1).report
    assert max(held) == 2
    for measure in result(1, 5).report.measures:
        assert report[measure.name].value == pytest.approx(measure.value, rel=1e-12)


def test_thresholds_are_those_of_the_validation_images() -> None:
    validation = result(2)
    test = result(3, validation=validation)
    for score in overlap.SCORES:
        chosen = validation.overlaps[score].best_threshold
        assert test.report[f"{score}_overlap"].value == pytest.approx(float(test.overlaps[score].at(chosen).mean()))
        assert f"above {chosen:g}, chosen on other images" in test.report[f"{score}_overlap"].remark
        assert test.report[f"{score}_overlap"].value <= test.report[f"{score}_overlap_test_maximum"].value


def test_the_image_is_the_unit_of_the_standard_error() -> None:
    """Of a mean over images it is the standard deviation over root N, to the bootstrap's own error of some 5 %."""
    predictive, y = segmented(4, num_images=60)
    found = evaluate_segmentation([(predictive, y)], ignore_index=VOID)
    floor = found.overlaps["predictive_entropy"].floor
    expected = float(floor.std(correction=0)) / math.sqrt(60)
    assert found.report["overlap_floor"].standard_error == pytest.approx(expected, rel=0.2)
    pixels = int(found.pixels.num_pixels.sum())
    twice = CategoricalPredictive.from_sums(
        probability_sum=predictive.probability_sum.repeat(1, 1, 4, 1),
        entropy_sum=predictive.entropy_sum.repeat(1, 4, 1),
        votes=predictive.votes.repeat(1, 1, 4, 1),
        num_draws=predictive.num_draws,
    )
    larger = evaluate_segmentation([(twice, y.repeat(1, 4, 1))], ignore_index=VOID)
    assert int(larger.pixels.num_pixels.sum()) == 4 * pixels
    assert larger.report["pixel_accuracy"].standard_error == pytest.approx(  # four times the pixels, no more images
        found.report["pixel_accuracy"].standard_error, rel=1e-9
    )


def test_images_without_a_labelled_pixel_are_left_out_and_counted() -> None:
    """With 4 of 16 images annotated every number is that of the four alone; empty ones used to count as perfect."""
    predictive, y = segmented(8, num_images=16)
    y[4:] = VOID
    part_of = evaluate_segmentation(predictive, y, ignore_index=VOID).report
    alone = evaluate_segmentation(part(predictive, slice(0, 4)), y[:4], ignore_index=VOID).report
    for one, other in zip(part_of.measures, alone.measures, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-12), one.name
    assert (part_of.num_points, part_of.num_missing) == (4, 12)
    assert "4 points (12 more without a known target)" in str(part_of)
    assert evaluate_segmentation(predictive, y, ignore_index=VOID).class_report().num_missing == 12
    none = evaluate_segmentation(predictive, torch.full_like(y, VOID), ignore_index=VOID)
    with pytest.raises(ValueError, match="labelled pixel"):
        evaluate_segmentation(predictive, y, ignore_index=VOID, validation=none)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_pixels_of_probability_0_are_counted_and_the_log_score_is_infinite_in_its_file_too(cut: int) -> None:
    y = torch.zeros(4, 2, 3).long()
    y[0, 0, 0] = y[3, 1, :2] = 1  # said to be impossible
    y[2, 0, 0] = VOID
    sure = CategoricalPredictive.from_probs(torch.tensor([1.0, 0.0]).view(1, 1, 2, 1, 1).expand(1, 4, 2, 2, 3))
    parts = [(part(sure, slice(n, n + cut)), y[n : n + cut]) for n in range(0, 4, cut)]
    found = evaluate_segmentation(parts, ignore_index=VOID).report
    assert found.num_impossible == 3
    assert found["negative_log_likelihood"].remark == "3 of probability 0"
    assert Report.from_dict(found.to_dict())["negative_log_likelihood"].value == math.inf


@pytest.mark.parametrize("measure", [evaluate_segmentation, image_failures])
def test_batches_whose_classes_are_called_otherwise_are_not_counted_together(measure) -> None:
    predictive, y = segmented(0)
    one, other = predictive.named(["ground", "disc", "square"]), predictive.named(["disc", "square", "ground"])
    measure([(predictive, y), (one, y), (one, y)], ignore_index=VOID)
    with pytest.raises(ValueError, match="same classes, in one order"):
        measure([(one, y), (predictive, y), (other, y)], ignore_index=VOID)


def test_two_methods_are_compared_on_the_same_images() -> None:
    predictive, y = segmented(5, num_images=40)
    blurred = CategoricalPredictive.from_probs((0.9 * predictive.mean + 0.1 / 3)[None])
    one, other = (evaluate_segmentation([(each, y)], ignore_index=VOID) for each in (predictive, blurred))
    difference = bootstrap.paired_difference(one.measures["brier_score"][0], other.measures["brier_score"][0])
    assert difference.value == pytest.approx(one.report["brier_score"].value - other.report["brier_score"].value)
    assert difference.standard_error < 0.5 * one.report["brier_score"].standard_error


def test_a_perfect_segmentation_has_nothing_to_overlap() -> None:
    y = segmented(6)[1]
    labels = torch.where(y == VOID, 0, y)
    sure = CategoricalPredictive.from_probs(torch.nn.functional.one_hot(labels, 3).movedim(-1, 1)[None].double())
    report = evaluate_segmentation([(sure, y)], ignore_index=VOID).report
    assert report["dice"].value == report["pixel_accuracy"].value == 1.0
    assert report["predictive_entropy_overlap"].value == 1.0
    assert report["overlap_floor"].value == 0.0
    assert math.isnan(report["predictive_entropy_rank_correlation"].value)


def test_predictions_come_a_few_images_at_a_time() -> None:
    predictive, y = segmented(7)
    seen: list[int] = []

    def predict(rows: Tensor) -> CategoricalPredictive:
        seen.append(len(rows))
        first = int(rows[0])
        return part(predictive, slice(first, first + len(rows)))

    streamed = evaluate_segmentation(predictions(predict, torch.arange(5), y, batch_size=2), ignore_index=VOID)
    assert seen == [2, 2, 1]
    whole = evaluate_segmentation(predictive, y, ignore_index=VOID)
    assert torch.equal(streamed.pixels.confusion, whole.pixels.confusion)


def test_memory_does_not_grow_with_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 draws less than 1.2 times the tensors are there at once that are there of 2, of maps that are large."""
    monkeypatch.setattr(weights, "VECTORISED_BUDGET", 1)
    posterior, peaks = drawn(10), []
    x, y = torch.rand(2, 3, 24, 32), torch.randint(11, (2, 24, 32))
    for num_draws in (2, 10):
        with LiveTensors() as tensors:
            predict = partial(posterior.predict, num_samples=num_draws, seed=0)
            evaluate_segmentation(predictions(predict, x, y, batch_size=2))
        peaks.append(tensors.peak)
    few, many = peaks
    assert few > 11 * y.numel() * 4, "not even one map of probabilities was seen"
    assert many < 1.2 * few


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: evaluate_segmentation([]), ValueError, "at least one batch"),
        (lambda: evaluate_segmentation(segmented(0)[0]), TypeError, "`y` is needed"),
        (
            lambda: evaluate_segmentation([segmented(0)], segmented(0)[1]),
            TypeError,
            "batches that bring their truth with them",
        ),
        (lambda: result(validation=result(thresholds=(0.33,))).report, ValueError, "`threshold` must be one of"),
        (lambda: result().class_report(["a"]), ValueError, "`names` must be 3, one for each class; got 1"),
        (
            lambda: evaluate_segmentation(*segmented(0), ignore_index="void"),
            TypeError,
            "`ignore_index` must be a whole",
        ),
        (lambda: list(predictions(lambda x: x, torch.zeros(2), [0])), ValueError, "as many rows"),
        (
            lambda: evaluate_segmentation([(GaussianPredictive(mean=[[[0.0]]], noise_variance=1.0), [0])]),
            ValueError,
            "must be of the pixels of images",
        ),
    ],
)
def test_what_cannot_be_evaluated_is_refused(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
