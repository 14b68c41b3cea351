import math

import pytest
import torch
from torch import Tensor

from bayesuq.evaluation.detection import aurc, auroc, average_precision
from bayesuq.evaluation.gaps import Gaps
from bayesuq.evaluation.standard_errors import weighted
from bayesuq.evaluation.standard_errors.closed_form import (
    by_derivative,
    of_aurc,
    of_auroc,
    of_average_precision,
    of_expected_calibration_error,
    of_gap_difference,
    of_mean,
    of_root_mean,
)
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.examples import labelled, noise

# A standard deviation over R normal replicates has a relative standard error of 1 / sqrt(2 R).
REPLICATES = 400
FOUR_ERRORS = 4 / math.sqrt(2 * REPLICATES)


def clustered(seed: int, num_rows: int, num_columns: int) -> tuple[Tensor, Tensor]:
    """Scores of rows whose columns share noise and class."""
    shared = noise(seed, num_rows, 1)
    positives = (shared + noise(seed + 1, num_rows, num_columns)) > 0.5
    return positives + 2 * noise(seed + 2, num_rows, 1) + noise(seed + 3, num_rows, num_columns), positives


class TestOfMean:
    def test_is_the_deviation_over_root_n(self) -> None:
        values = noise(0, 50)
        expected = values.std() / math.sqrt(50)
        torch.testing.assert_close(of_mean(values), expected)

    def test_counts_rows_not_their_columns(self) -> None:
        values = noise(0, 50)
        torch.testing.assert_close(of_mean(values[:, None, None].expand(-1, 8, 8)), of_mean(values))

    def test_of_equal_rows_is_exactly_zero(self) -> None:
        assert of_mean(torch.full((1000,), 0.1, dtype=torch.float64)).item() == 0

    def test_of_one_row_or_infinite_values_is_undefined(self) -> None:
        assert math.isnan(of_mean(torch.ones(1)))
        assert math.isnan(of_mean(torch.tensor([1.0, math.inf])))


class TestOfRootMean:
    def test_is_the_spread_over_repeated_test_sets(self) -> None:
        squares = noise(0, REPLICATES, 300).square()
        spread = squares.mean(dim=1).sqrt().std()
        assert of_root_mean(squares[0]).item() == pytest.approx(spread.item(), rel=FOUR_ERRORS + 0.1)
        mean = torch.stack([of_root_mean(one) for one in squares]).mean()
        assert mean.item() == pytest.approx(spread.item(), rel=FOUR_ERRORS)

    def test_scales_with_y(self) -> None:
        squares = noise(0, 50).square()
        torch.testing.assert_close(of_root_mean(9 * squares), 3 * of_root_mean(squares))

    def test_of_no_error_is_zero(self) -> None:
        assert of_root_mean(torch.zeros(5)).item() == 0


class TestOfAUROC:
    def test_is_delongs_formula_written_out(self) -> None:
        scores, positives = noise(0, 60).mul(2).round(), torch.arange(60) % 3 == 0  # with ties
        gaps = scores[positives][:, None] - scores[~positives][None]
        kernel = (gaps > 0).double() + (gaps == 0) / 2
        m, n = kernel.shape
        expected = (kernel.mean(dim=1).var() / m + kernel.mean(dim=0).var() / n).sqrt()
        torch.testing.assert_close(of_auroc(scores, positives), expected)

    @pytest.mark.parametrize("num_columns", [1, 6])
    def test_is_the_spread_over_repeated_test_sets(self, num_columns: int) -> None:
        values, errors = [], []
        for seed in range(0, 10 * REPLICATES, 10):
            example = clustered(seed, 60, num_columns)
            values.append(auroc(*example))
            errors.append(of_auroc(*example))
        spread = torch.stack(values).std().item()
        assert torch.stack(errors).mean().item() == pytest.approx(spread, rel=FOUR_ERRORS)

    def test_of_repeated_columns_is_that_of_one(self) -> None:
        scores, positives = noise(0, 60), torch.arange(60) % 3 == 0
        repeated = of_auroc(scores[:, None].expand(-1, 4), positives[:, None].expand(-1, 4))
        torch.testing.assert_close(repeated, of_auroc(scores, positives))

    @pytest.mark.parametrize("num_positive", [0, 1, 4, 5])
    def test_of_fewer_than_two_of_a_class_is_undefined(self, num_positive: int) -> None:
        assert math.isnan(of_auroc(noise(0, 5), torch.arange(5) < num_positive))


class TestByDerivative:
    def test_of_a_mean_and_a_root_mean_are_the_closed_forms(self) -> None:
        values = noise(0, 50, 3)
        torch.testing.assert_close(by_derivative(weighted.mean(values)), of_mean(values))
        torch.testing.assert_close(by_derivative(weighted.root_mean(values**2)), of_root_mean(values**2))

    @pytest.mark.parametrize("num_columns", [1, 6])
    @pytest.mark.parametrize(("measure", "error"), [(average_precision, of_average_precision), (aurc, of_aurc)])
    def test_is_the_spread_over_repeated_test_sets(self, measure, error, num_columns: int) -> None:
        values, errors = [], []
        for seed in range(0, 10 * REPLICATES, 10):
            example = clustered(seed, 200, num_columns)
            values.append(measure(*example))
            if seed < 1000:
                errors.append(error(*example))
        spread = torch.stack(values).std().item()
        # A derivative sees no curvature, which is of order 1/N: a tenth is allowed for it.
        assert torch.stack(errors).mean().item() == pytest.approx(spread, rel=FOUR_ERRORS + 0.1)

    def test_of_auroc_is_near_delongs(self) -> None:
        scores, positives = noise(0, 400).mul(2).round(), torch.arange(400) % 3 == 0
        found = by_derivative(weighted.auroc(scores, positives))
        torch.testing.assert_close(found, of_auroc(scores, positives), rtol=0.01, atol=0)

    def test_is_the_finite_difference_in_each_weight(self) -> None:
        scores, wrong = noise(0, 12).mul(2).round(), torch.arange(12) % 3 == 0
        for measure in (weighted.aurc(scores, wrong), weighted.average_precision(scores, wrong)):
            step = 1e-6 * torch.eye(12, dtype=torch.float64)
            slopes = (measure(1 + step) - measure(1 - step)) / 2e-6
            expected = (slopes.square().sum() * 12 / 11).sqrt()
            torch.testing.assert_close(by_derivative(measure), expected, rtol=1e-6, atol=0)

    def test_of_repeated_columns_is_that_of_one(self) -> None:
        scores, wrong = noise(0, 60), torch.arange(60) % 3 == 0
        repeated = of_aurc(scores[:, None].expand(-1, 4), wrong[:, None].expand(-1, 4))
        single = of_aurc(scores, wrong)
        # The ties of a row's four copies are met at their mean, a quarter of a place wide.
        torch.testing.assert_close(repeated, single, rtol=0.02, atol=0)

    def test_of_one_row_is_undefined_and_of_no_error_zero(self) -> None:
        assert of_aurc([1.0], [True]).isnan()
        assert of_aurc(noise(0, 5), torch.zeros(5)).item() == 0
        assert of_average_precision(noise(0, 5), torch.zeros(5)).isnan()


class TestOfExpectedCalibrationError:
    @pytest.mark.parametrize("num_points", [20, 100, 1000])
    @pytest.mark.parametrize("shift", [0.0, -0.1, -0.3])
    def test_is_the_spread_over_repeated_test_sets_within_a_fifth(self, num_points: int, shift: float) -> None:
        """Calibrated at shift 0, too sure below; the mean of 30 simulated errors against the spread of 600 ECEs.

        Its own error is 1 / sqrt(1200) = .029 of the spread, and of the mean of errors less than that.
        """
        noise = torch.Generator().manual_seed(num_points)
        confidence = 0.4 + 0.6 * torch.rand(600, num_points, generator=noise, dtype=torch.float64)
        right = torch.rand(600, num_points, generator=noise) < (confidence + shift).clamp(min=0)
        sets = [Gaps.of(*one, None, 15) for one in zip(confidence, right, strict=True)]
        spread = torch.stack([gaps.expected_calibration_error for gaps in sets]).std()
        errors = [gaps.standard_error(num_replicates=200, seed=k) for k, gaps in enumerate(sets[:30])]
        assert 0.8 - 0.05 < float(torch.stack(errors).mean() / spread) < 1.2 + 0.05

    @pytest.mark.parametrize("num_points", [20, 50, 200])
    @pytest.mark.parametrize(("lowest", "shift"), [(0.4, 0.1), (0.7, 0.1), (0.7, 0.3), (0.85, 0.2)])
    def test_of_too_low_confidences_it_is_right_too_or_said_to_be_a_bound(
        self, lowest: float, shift: float, num_points: int
    ) -> None:
        """As above, of 600 sets; 200 of all right ones at confidences from .85 were 1.67 times too wide, 50 3.4."""
        noise = torch.Generator().manual_seed(num_points)
        confidence = lowest + (1 - lowest) * torch.rand(600, num_points, generator=noise, dtype=torch.float64)
        right = torch.rand(600, num_points, generator=noise) < (confidence + shift)
        sets = [Gaps.of(*one, None, 15) for one in zip(confidence, right, strict=True)]
        spread = torch.stack([gaps.expected_calibration_error for gaps in sets]).std()
        errors = [gaps.standard_error(num_replicates=100, seed=k) for k, gaps in enumerate(sets[:30])]
        ratio = float(torch.stack(errors).mean() / spread)
        bounded = [gaps.is_bounded for gaps in sets[:30]]
        assert ratio > 0.8 - 0.08  # the spread's own error is .029
        assert ratio < 1.2 + 0.08 or sum(bounded) >= 25
        assert num_points == 20 or not any(bounded)

    def test_of_images_is_the_spread_over_repeated_test_sets(self) -> None:
        """200 rows of eight points that are right or wrong together, as pixels are; calibrated and too sure."""
        noise = torch.Generator().manual_seed(0)
        for shift in (0.0, -0.3):
            confidence = (0.4 + 0.6 * torch.rand(600, 200, 1, generator=noise, dtype=torch.float64)).expand(-1, -1, 8)
            right = torch.rand(600, 200, 1, generator=noise) < (confidence + shift).clamp(min=0)
            sets = [Gaps.of(*one, None, 15) for one in zip(confidence, right, strict=True)]
            spread = torch.stack([gaps.expected_calibration_error for gaps in sets]).std()
            errors = [gaps.standard_error(num_replicates=200, seed=k) for k, gaps in enumerate(sets[:60])]
            assert 0.75 < float(torch.stack(errors).mean() / spread) < 1.25
            floors = torch.stack([gaps.floor for gaps in sets]).mean()
            if shift == 0:
                mean = torch.stack([gaps.expected_calibration_error for gaps in sets]).mean()
                assert float(floors / mean) == pytest.approx(1.0, abs=0.05)

    def test_is_repeatable_and_leaves_the_global_generator(self) -> None:
        predictive, y = labelled(0)
        before = torch.get_rng_state()
        one, same, other = (of_expected_calibration_error(predictive, y, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(one, same)
        assert not torch.equal(one, other)

    def test_counts_images_not_their_pixels(self) -> None:
        predictive, y = labelled(0, num_draws=1)
        images = CategoricalPredictive.from_logits(predictive.draws[..., None].expand(-1, -1, -1, 6))
        repeated = of_expected_calibration_error(images, y[:, None].expand(-1, 6), num_replicates=2000)
        single = of_expected_calibration_error(predictive, y, num_replicates=2000)
        assert repeated.item() == pytest.approx(single.item(), rel=0.15)  # normal sums of rows, and counts of points

    def test_of_two_points_is_finite_and_of_one_undefined(self) -> None:
        assert of_expected_calibration_error(*labelled(0, num_points=2)).isfinite()
        predictive, y = labelled(0, num_points=1)
        assert of_expected_calibration_error(predictive, y).isnan()
        gaps = weighted.row_gaps(predictive, y, 15)
        assert of_gap_difference(gaps, gaps + 0.1).isnan()

    def test_needs_two_replicates(self) -> None:
        with pytest.raises(ValueError, match="`num_replicates`"):
            of_expected_calibration_error(*labelled(0), num_replicates=1)
