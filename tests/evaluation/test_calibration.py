import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesuq.evaluation.calibration import (
    Reliability,
    expected_calibration_error,
    interval_coverage,
    maximum_calibration_error,
    pointwise_coverage,
    probability_integral_transform,
    reliability,
)
from bayesuq.predictive import CategoricalPredictive, GaussianPredictive
from tests.evaluation.examples import labelled, measured, noise, sure

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)


def assert_same(one: Reliability, other: Reliability) -> None:
    assert torch.equal(one.count, other.count)
    assert torch.equal(one.num_correct, other.num_correct)
    torch.testing.assert_close(one.confidence_sum, other.confidence_sum, rtol=1e-12, atol=1e-12)


def binary(confidence: Tensor) -> CategoricalPredictive:
    return CategoricalPredictive.from_probs(torch.stack([confidence, 1 - confidence], dim=1)[None])


class TestReliability:
    def test_by_hand(self) -> None:
        predictive = sure([0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.4, 0.35, 0.25], [0.3, 0.05, 0.65])
        result = reliability(predictive, [0, 0, 0, 2], num_bins=3)
        torch.testing.assert_close(result.edges, torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64))
        assert result.count.tolist() == [0, 2, 2]
        assert result.num_correct.tolist() == [0, 2, 1]
        assert result.confidence.tolist()[1:] == pytest.approx([(0.4 + 0.65) / 2, (0.9 + 0.7) / 2])
        assert result.accuracy.tolist()[1:] == [1.0, 0.5]
        assert math.isnan(result.confidence[0])
        assert math.isnan(result.accuracy[0])
        assert result.expected_calibration_error.item() == pytest.approx((abs(2 - 1.05) + abs(1 - 1.6)) / 4)
        assert result.maximum_calibration_error.item() == pytest.approx(1 - 1.05 / 2)

    def test_counts_are_whole_and_sums_double(self) -> None:
        result = reliability(*labelled(0))
        assert (result.count.dtype, result.num_correct.dtype) == (torch.int64, torch.int64)
        assert (result.confidence_sum.dtype, result.edges.dtype) == (torch.float64, torch.float64)
        assert result.count.sum() == 200
        assert len(result.count) == 15

    @pytest.mark.parametrize("num_bins", [1, 2, 3, 7, 10, 15, 100])
    def test_every_edge_opens_its_bin_and_one_closes_the_last(self, num_bins: int) -> None:
        edges = [k / num_bins for k in range(num_bins + 1)]
        result = Reliability.from_confidences(
            torch.tensor(edges, dtype=torch.float64), torch.ones(num_bins + 1), num_bins=num_bins
        )
        assert result.count.tolist() == [1] * (num_bins - 1) + [2]

    def test_confidence_of_exactly_zero_or_one_is_in_the_first_or_last_bin(self) -> None:
        result = Reliability.from_confidences(torch.tensor([0.0, 1.0]), torch.tensor([False, True]), num_bins=10)
        assert result.count.tolist() == [1] + [0] * 8 + [1]
        assert result.expected_calibration_error.item() == 0

    @PROPERTY
    @given(st.integers(1, 40), st.integers(0, 199))
    def test_merging_batches_is_one_pass(self, num_bins: int, cut: int) -> None:
        predictive, y = labelled(0)
        parts = [
            reliability(CategoricalPredictive.from_logits(predictive.draws[:, rows]), y[rows], num_bins)
            for rows in (slice(cut, None), slice(None, max(1, cut)))
            if len(y[rows])
        ]
        whole = reliability(predictive, y, num_bins)
        if cut:
            assert_same(parts[0].merge(parts[1]), whole)
            assert_same(parts[1].merge(parts[0]), whole)

    def test_order_of_points_and_names_of_classes_do_not_matter(self) -> None:
        predictive, y = labelled(0)
        rows, classes = torch.randperm(200, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 4, 1, 2])
        shuffled = CategoricalPredictive.from_logits(predictive.draws[:, rows][:, :, classes])
        assert_same(reliability(shuffled, classes.argsort()[y[rows]]), reliability(predictive, y))

    def test_counters_do_not_stop_at_two_to_the_24(self) -> None:
        # A float32 counter drops each of these single points.
        full = Reliability(
            count=torch.tensor([0, 2**24]),
            num_correct=torch.tensor([0, 2**23]),
            confidence_sum=torch.tensor([0.0, 0.9 * 2**24], dtype=torch.float64),
        )
        one = Reliability.from_confidences(torch.tensor([0.9], dtype=torch.float64), torch.tensor([True]), num_bins=2)
        merged = full
        for _ in range(1000):
            merged = merged.merge(one)
        assert merged.count.tolist() == [0, 2**24 + 1000]
        assert merged.num_correct.tolist() == [0, 2**23 + 1000]
        assert merged.confidence[1].item() == pytest.approx(0.9, rel=1e-12)

    @pytest.mark.slow
    def test_more_than_two_to_the_24_points_in_one_pass_are_exact(self) -> None:
        # PITFALLS section 3: at confidence .9 and accuracy .5, float32 counters said .106 and then 0 instead of .4.
        num_points = 2**24 + 2**20
        correct = torch.arange(num_points, dtype=torch.int32) % 2 == 0
        result = Reliability.from_confidences(torch.tensor([0.9], dtype=torch.float64).expand(num_points), correct)
        assert result.count.max().item() == num_points
        assert result.expected_calibration_error.item() == pytest.approx(0.4, abs=1e-9)

    @pytest.mark.oracle
    def test_interval_of_the_accuracy_is_wilsons(self) -> None:
        from scipy.stats import binomtest

        for right, count in [(0, 3), (3, 3), (7, 20), (950, 1000)]:
            result = Reliability.from_confidences(torch.full((count,), 0.3), torch.arange(count) < right, num_bins=1)
            expected = binomtest(right, count).proportion_ci(method="wilson")
            assert result.accuracy_interval[:, 0].tolist() == pytest.approx([expected.low, expected.high], abs=1e-12)
            assert result.accuracy_interval[0] <= result.accuracy <= result.accuracy_interval[1]

    def test_of_pixels_counts_each(self) -> None:
        logits, y = noise(0, 2, 3, 4, 5, 6), torch.arange(90).reshape(3, 5, 6) % 4
        flat = CategoricalPredictive.from_logits(logits.movedim(2, -1).reshape(2, 90, 4))
        assert_same(reliability(CategoricalPredictive.from_logits(logits), y), reliability(flat, y.flatten()))

    @pytest.mark.parametrize(("num_bins", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError)])
    def test_impossible_numbers_of_bins_are_refused(self, num_bins: int, error: type[Exception]) -> None:
        for measure in (reliability, expected_calibration_error, maximum_calibration_error):
            with pytest.raises(error, match="`num_bins`"):
                measure(*labelled(0), num_bins)

    @pytest.mark.parametrize("confidence", [math.nan, 1.5, -0.1])
    def test_impossible_confidences_are_refused(self, confidence: float) -> None:
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            Reliability.from_confidences(torch.tensor([0.5, confidence]), torch.tensor([True, True]))

    def test_truths_that_are_not_yes_or_no_are_refused(self) -> None:
        for truth in (2.0, math.nan):
            with pytest.raises(ValueError, match="`correct`"):
                Reliability.from_confidences([0.5, 0.5], [1.0, truth])

    def test_takes_what_numpy_has(self) -> None:
        confidence, correct = np.array([0.2, 0.9]), np.array([False, True])
        tensors = torch.from_numpy(confidence), torch.from_numpy(correct)
        assert_same(Reliability.from_confidences(confidence, correct), Reliability.from_confidences(*tensors))

    def test_confidences_and_truth_of_other_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="`correct`"):
            Reliability.from_confidences(torch.zeros(3, 1), torch.zeros(3))

    def test_other_bins_do_not_merge(self) -> None:
        with pytest.raises(ValueError, match="10 and 15 bins"):
            reliability(*labelled(0), 10).merge(reliability(*labelled(0)))

    def test_real_targets_are_sent_to_their_own_measures(self) -> None:
        for measure in (reliability, expected_calibration_error, maximum_calibration_error):
            with pytest.raises(TypeError, match=r"GaussianPredictive.*`interval_coverage`"):
                measure(*measured(0))


class TestCalibrationErrors:
    def test_bins_are_weighted_by_their_points(self) -> None:
        # PITFALLS section 2: 9,990 points at .95, all but 500 right, and 10 at .55, all wrong. Unweighted: .275.
        confidence = torch.tensor([0.95] * 9990 + [0.55] * 10, dtype=torch.float64)
        y = (torch.arange(10_000) >= 9490).long()
        by_hand = (abs(9490 - 0.95 * 9990) + 10 * 0.55) / 10_000
        assert expected_calibration_error(binary(confidence), y).item() == pytest.approx(by_hand)
        assert by_hand == pytest.approx(0.0006, abs=5e-5)
        assert maximum_calibration_error(binary(confidence), y).item() == pytest.approx(0.55)

    def test_full_confidence_shares_the_last_bin(self) -> None:
        # PITFALLS section 3: torchmetrics gives confidence 1 a bin of its own and says .525.
        predictive = sure([0.95, 0.05], [1.0, 0.0])
        assert expected_calibration_error(predictive, [1, 0], num_bins=10).item() == pytest.approx(0.475)

    def test_saturated_and_right_is_perfect(self) -> None:
        predictive = CategoricalPredictive.from_logits([[[0.0, 1000.0], [1000.0, 0.0]]])
        assert expected_calibration_error(predictive, [1, 0]).item() == 0
        assert maximum_calibration_error(predictive, [1, 0]).item() == 0

    def test_labels_drawn_from_the_predictive_are_calibrated_and_sharpened_ones_are_not(self) -> None:
        # Under calibration ECE is about sum_b sqrt(2 n_b p (1 - p) / pi) / N, at most sqrt(B / (2 pi N)) = .011.
        calibrated = expected_calibration_error(*labelled(0, num_points=20_000))
        overconfident = expected_calibration_error(*labelled(0, num_points=20_000, sharpness=3.0))
        assert calibrated < 0.02
        assert overconfident > 0.1

    @PROPERTY
    @given(st.integers(0, 2**32 - 4), st.integers(1, 30))
    def test_expected_is_at_most_the_maximum_and_both_are_fractions(self, seed: int, num_bins: int) -> None:
        predictive, y = labelled(seed, num_points=30)
        expected = expected_calibration_error(predictive, y, num_bins)
        maximum = maximum_calibration_error(predictive, y, num_bins)
        assert 0 <= expected <= maximum + 1e-15
        assert maximum <= 1

    @pytest.mark.oracle
    @pytest.mark.parametrize("num_bins", [1, 5, 15])
    @pytest.mark.parametrize("sharpness", [1.0, 3.0])
    def test_agree_with_netcal(self, num_bins: int, sharpness: float) -> None:
        from netcal.metrics import ECE, MCE

        predictive, y = labelled(0, sharpness=sharpness)
        arrays = predictive.mean.numpy(), y.numpy()
        assert expected_calibration_error(predictive, y, num_bins).item() == pytest.approx(
            ECE(num_bins).measure(*arrays)
        )
        assert maximum_calibration_error(predictive, y, num_bins).item() == pytest.approx(
            MCE(num_bins).measure(*arrays)
        )

    @pytest.mark.oracle
    def test_agree_with_netcal_at_full_confidence(self) -> None:
        from netcal.metrics import ECE

        predictive = sure([0.95, 0.05], [1.0, 0.0])
        expected = ECE(10).measure(predictive.mean.numpy(), np.array([1, 0]))
        assert expected_calibration_error(predictive, [1, 0], 10).item() == pytest.approx(expected)

    @pytest.mark.oracle
    def test_agree_with_torchmetrics_below_full_confidence(self) -> None:
        from torchmetrics.functional.classification import multiclass_calibration_error

        predictive, y = labelled(0)
        for norm, measure in (("l1", expected_calibration_error), ("max", maximum_calibration_error)):
            expected = multiclass_calibration_error(predictive.mean, y, 5, n_bins=15, norm=norm)
            assert measure(predictive, y).item() == pytest.approx(expected.item(), abs=1e-6)  # it counts in float32


class TestIntervals:
    def test_transform_of_the_median_is_a_half_and_of_a_quantile_its_level(self) -> None:
        predictive, _ = measured(0, num_columns=2)
        for level in (0.025, 0.5, 0.9):
            u = probability_integral_transform(predictive, predictive.quantile(level))
            torch.testing.assert_close(u, torch.full_like(u, level))

    @pytest.mark.oracle
    def test_transform_of_targets_from_the_predictive_is_uniform(self) -> None:
        from scipy.stats import kstest

        u = probability_integral_transform(*measured(0, num_points=2000))
        assert kstest(u.flatten().numpy(), "uniform").pvalue > 0.01  # false alarms in 1 of 100 seeds; this one is fixed

    @pytest.mark.parametrize("level", [0.05, 0.5, 0.9, 0.99])
    def test_coverage_counts_the_targets_between_the_quantiles(self, level: float) -> None:
        predictive, y = measured(0, num_columns=2)
        lower, upper = predictive.quantile((1 - level) / 2), predictive.quantile((1 + level) / 2)
        inside = ((lower <= y) & (y <= upper)).double()
        assert torch.equal(pointwise_coverage(predictive, y, level), inside)
        torch.testing.assert_close(interval_coverage(predictive, y, level), inside.mean())

    @pytest.mark.parametrize("level", [0.5, 0.9])
    def test_coverage_of_targets_from_the_predictive_is_nominal(self, level: float) -> None:
        predictive, y = measured(0, num_points=10_000)
        error = math.sqrt(level * (1 - level) / 10_000)
        assert interval_coverage(predictive, y, level).item() == pytest.approx(level, abs=4 * error)

    def test_averaged_members_would_cover_too_little(self) -> None:
        # Members at -1 and +1 with scale .1: the 90 % interval reaches both modes, the average's (-.16, .16) neither.
        predictive = GaussianPredictive(mean=torch.tensor([[[-1.0]], [[1.0]]]).expand(2, 4, 1), noise_variance=0.01)
        assert interval_coverage(predictive, [-1.0, 1.0, -0.9, 0.9], 0.9).item() == 1

    @pytest.mark.oracle
    @pytest.mark.parametrize("level", [0.3, 0.9])
    def test_coverage_of_one_gaussian_agrees_with_uncertainty_toolbox(self, level: float) -> None:
        from uncertainty_toolbox.metrics_calibration import get_proportion_in_interval

        predictive, y = measured(0, num_draws=1)
        arrays = [value.flatten().numpy() for value in (predictive.mean, predictive.total.sqrt(), y)]
        expected = get_proportion_in_interval(*arrays, level)
        assert interval_coverage(predictive, y, level).item() == pytest.approx(expected)

    @pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 90, math.nan])
    def test_impossible_levels_are_refused(self, level: float) -> None:
        with pytest.raises(ValueError, match="`level`"):
            interval_coverage(*measured(0), level)

    def test_labels_are_sent_to_their_own_measures(self) -> None:
        with pytest.raises(TypeError, match=r"CategoricalPredictive.*`reliability`"):
            probability_integral_transform(*labelled(0))
        with pytest.raises(TypeError, match=r"CategoricalPredictive.*`reliability`"):
            interval_coverage(*labelled(0), 0.9)

    def test_a_row_of_targets_never_becomes_a_square(self) -> None:
        predictive, y = measured(0)
        assert torch.equal(interval_coverage(predictive, y, 0.5), interval_coverage(predictive, y.squeeze(1), 0.5))
        with pytest.raises(ValueError, match="`y`"):
            interval_coverage(predictive, y.T, 0.5)
