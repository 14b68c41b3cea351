import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesuq.evaluation.binning import Reliability
from bayesuq.evaluation.calibration import (
    adaptive_calibration_error,
    classwise_calibration_error,
    debiased_calibration_error,
    expected_calibration_error,
    interval_coverage,
    interval_width,
    maximum_calibration_error,
    pointwise_coverage,
    probability_integral_transform,
    regression_calibration_error,
    reliability,
)
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
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

    @pytest.mark.parametrize("level", [0.05, 0.5, 0.9])
    def test_width_is_between_the_quantiles(self, level: float) -> None:
        predictive, _ = measured(0, num_columns=2)
        expected = predictive.quantile((1 + level) / 2) - predictive.quantile((1 - level) / 2)
        torch.testing.assert_close(interval_width(predictive, level), expected.mean())
        rescaled = predictive.rescale(torch.tensor(3.0), torch.tensor(10.0))
        torch.testing.assert_close(interval_width(rescaled, level), 10 * expected.mean())

    def test_impossible_levels_have_no_width(self) -> None:
        with pytest.raises(ValueError, match="`level`"):
            interval_width(measured(0)[0], 1.0)


class TestRegressionCalibrationError:
    def test_is_the_mean_over_levels_of_the_coverages_gap(self) -> None:
        predictive, y = measured(0, num_points=23, num_columns=2)
        off_centre = (2 * probability_integral_transform(predictive, y) - 1).abs().flatten()
        levels = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
        coverage = torch.searchsorted(off_centre.sort().values, levels, right=True) / off_centre.numel()
        # The midpoint rule errs by half a cell at each of the 46 jumps of height 1/46.
        assert regression_calibration_error(predictive, y).item() == pytest.approx(
            (coverage - levels).abs().mean().item(), abs=1e-5
        )

    def test_is_smallest_for_the_true_scale(self) -> None:
        # The area between the cdf of n uniform numbers and the diagonal is some sqrt(pi / 32) / sqrt n = .0044 here
        # (half the Brownian bridge's mean, .157); scales off by a third give more than .05.
        y = noise(0, 5000)
        values = [
            regression_calibration_error(GaussianPredictive(mean=torch.zeros(1, 5000, 1), noise_variance=scale**2), y)
            for scale in (0.7, 1.0, 1.4)
        ]
        assert values[1] < 0.015
        assert min(values[0], values[2]) > 0.05

    def test_of_the_extremes_is_a_half(self) -> None:
        predictive = GaussianPredictive(mean=torch.zeros(1, 3, 1), noise_variance=1.0)
        assert regression_calibration_error(predictive, [0.0, 0.0, 0.0]).item() == pytest.approx(0.5)
        assert regression_calibration_error(predictive, [50.0, -50.0, 50.0]).item() == pytest.approx(0.5)

    @pytest.mark.oracle
    def test_agrees_with_uncertainty_toolbox(self) -> None:
        from uncertainty_toolbox.metrics_calibration import mean_absolute_calibration_error

        mean, y = noise(0, 300), noise(1, 300)
        scale = 0.5 + noise(2, 300).square()
        predictive = GaussianPredictive(mean=mean[None, :, None], noise_variance=(scale**2)[None, :, None])
        arrays = mean.numpy(), scale.numpy(), y.numpy()
        expected = mean_absolute_calibration_error(*arrays, num_bins=2001, vectorized=True)
        # It takes the mean over 2001 levels of an integrand that jumps 300 times by 1/300.
        assert regression_calibration_error(predictive, y).item() == pytest.approx(expected, abs=1e-3)


class TestOtherCalibrationErrors:
    def test_classwise_by_hand(self) -> None:
        # Two bins. Class 0: p = .75 and .25, both true: gaps .25 and .75. Class 1: p = .25 and .75, neither true: same.
        predictive = sure([0.75, 0.25], [0.25, 0.75])
        assert classwise_calibration_error(predictive, [0, 0], num_bins=2).item() == pytest.approx((1.0 + 1.0) / 4)
        # Above .5: class 0 at .75 with gap .25, class 1 at .75 with gap .75.
        kept = classwise_calibration_error(predictive, [0, 0], num_bins=2, threshold=0.5)
        assert kept.item() == pytest.approx((0.25 + 0.75) / 2)

    def test_classwise_is_the_mean_of_each_class_against_the_rest(self) -> None:
        predictive, y = labelled(0)
        errors = [
            Reliability.from_confidences(predictive.mean[:, k], y == k).expected_calibration_error for k in range(5)
        ]
        torch.testing.assert_close(classwise_calibration_error(predictive, y), torch.stack(errors).mean())
        result = reliability(predictive, y, classwise=True)
        assert result.count.shape == (5, 15)
        assert result.count.sum(dim=1).tolist() == [200] * 5
        assert result.num_correct.sum(dim=1).tolist() == torch.bincount(y, minlength=5).tolist()

    def test_classwise_leaves_out_classes_that_never_reach_the_threshold(self) -> None:
        predictive = sure([0.9, 0.1, 0.0], [0.8, 0.2, 0.0])
        kept = classwise_calibration_error(predictive, [0, 1], num_bins=1, threshold=0.5)
        assert kept.item() == pytest.approx(abs(0.85 - 0.5))

    def test_debiased_squares_are_right_on_average(self) -> None:
        # Confidence .75 for 8 points that are right with chance .6: the squared gap is .15^2. The mean over R test sets
        # may be off by four standard errors.
        right = torch.rand(2000, 8, generator=torch.Generator().manual_seed(0)) < 0.6
        found = [Reliability.from_confidences(torch.full((8,), 0.75), row, num_bins=4) for row in right]
        squares = torch.stack([one.debiased_squared_error for one in found])
        allowed = 4 * squares.std().item() / math.sqrt(len(squares))
        assert squares.mean().item() == pytest.approx(0.15**2, abs=allowed)
        plain = torch.stack([one.expected_calibration_error.square() for one in found])
        assert plain.mean().item() > 0.15**2 + allowed

    def test_debiased_ignores_bins_of_one_point_and_is_never_below_zero(self) -> None:
        assert debiased_calibration_error(sure([0.75, 0.25]), [1]).item() == 0
        predictive = sure([0.75, 0.25], [0.75, 0.25], [0.75, 0.25], [0.75, 0.25])
        assert debiased_calibration_error(predictive, [0, 0, 0, 1]).item() == 0  # the gap is 0, less its noise
        squared = reliability(predictive, [0, 0, 0, 1]).debiased_squared_error
        assert squared.item() == pytest.approx(-0.75 * 0.25 / 3)

    @pytest.mark.oracle
    def test_debiased_agrees_with_torchmetrics_whose_wrappers_switch_it_off(self) -> None:
        from torchmetrics.functional.classification.calibration_error import _ce_compute

        predictive, y = labelled(0, num_points=2000, sharpness=3.0)
        confidence, right = predictive.mean.amax(dim=1), predictive.mean.argmax(dim=1) == y
        assert not (reliability(predictive, y, 5).count == 1).any()  # where it divides by zero
        edges = torch.linspace(0, 1, 6, dtype=torch.float64)
        expected = _ce_compute(confidence, right.double(), edges, norm="l2", debias=True)
        assert debiased_calibration_error(predictive, y, 5).item() == pytest.approx(expected.item(), abs=1e-6)

    @pytest.mark.parametrize("num_bins", [1, 4, 10])
    def test_adaptive_bins_hold_equally_many_points(self, num_bins: int) -> None:
        predictive, y = labelled(0)
        confidence, right = predictive.mean.amax(dim=1).numpy(), (predictive.mean.argmax(dim=1) == y).numpy()
        parts = np.array_split(np.argsort(confidence), num_bins)  # 200 is a multiple of each number
        expected = sum(abs(right[rows].sum() - confidence[rows].sum()) for rows in parts) / 200
        assert adaptive_calibration_error(predictive, y, num_bins).item() == pytest.approx(expected)

    def test_adaptive_keeps_ties_together_in_any_order(self) -> None:
        # Eight of ten points at full confidence: one bin of its own, whatever their order; half of them wrong.
        predictive = sure(*[[0.6, 0.4]] * 2, *[[1.0, 0.0]] * 8)
        y = torch.tensor([0, 0, 0, 1, 0, 1, 0, 1, 0, 1])
        expected = (2 * 0.4 + 4) / 10
        for order in (torch.arange(10), torch.arange(10).flip(0), torch.tensor([3, 5, 7, 9, 0, 1, 2, 4, 6, 8])):
            shuffled = CategoricalPredictive.from_logits(predictive.draws[:, order])
            assert adaptive_calibration_error(shuffled, y[order], 5).item() == pytest.approx(expected)

    def test_adaptive_of_fewer_points_than_bins_is_defined(self) -> None:
        assert adaptive_calibration_error(sure([0.75, 0.25]), [1], 15).item() == pytest.approx(0.75)

    @pytest.mark.parametrize(
        "measure", [classwise_calibration_error, adaptive_calibration_error, debiased_calibration_error]
    )
    def test_of_pixels_counts_each(self, measure) -> None:
        logits, y = noise(0, 2, 3, 4, 5, 6), torch.arange(90).reshape(3, 5, 6) % 4
        flat = CategoricalPredictive.from_logits(logits.movedim(2, -1).reshape(2, 90, 4))
        images = CategoricalPredictive.from_logits(logits)
        torch.testing.assert_close(measure(images, y), measure(flat, y.flatten()))

    @pytest.mark.parametrize(
        "measure", [classwise_calibration_error, adaptive_calibration_error, debiased_calibration_error]
    )
    def test_refuse_what_has_no_bins(self, measure) -> None:
        with pytest.raises(ValueError, match="`num_bins`"):
            measure(*labelled(0), 0)
        with pytest.raises(TypeError, match=r"GaussianPredictive.*`interval_coverage`"):
            measure(*measured(0))
        with pytest.raises(ValueError, match="`threshold`"):
            classwise_calibration_error(*labelled(0), threshold=1.0)

    def test_nothing_is_merged_from_an_empty_state(self) -> None:
        predictive, y = labelled(0)
        assert_same(Reliability.empty(15).merge(reliability(predictive, y)), reliability(predictive, y))
        assert Reliability.empty(15).expected_calibration_error.isnan()
        with pytest.raises(ValueError, match="`num_bins`"):
            Reliability.empty(0)
        with pytest.raises(ValueError, match="15 and 5 x 15 bins"):
            reliability(predictive, y).merge(reliability(predictive, y, classwise=True))
