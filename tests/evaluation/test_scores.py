import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesuq.evaluation import scores
from bayesuq.evaluation.scores import (
    accuracy,
    brier_score,
    crps,
    interval_score,
    negative_log_likelihood,
    pointwise_accuracy,
    pointwise_brier_score,
    pointwise_crps,
    pointwise_interval_score,
    pointwise_negative_log_likelihood,
    pointwise_sample_crps,
    pointwise_squared_error,
    root_mean_squared_error,
    sample_crps,
    top_label,
)
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.empirical import EmpiricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.evaluation.examples import labelled, measured, noise, sure
from tests.zoo.computed_numbers import ComputedNumbers

OF_LABELS = [(negative_log_likelihood, pointwise_negative_log_likelihood)]
OF_LABELS += [(brier_score, pointwise_brier_score), (accuracy, pointwise_accuracy)]
OF_REAL_TARGETS = [(negative_log_likelihood, pointwise_negative_log_likelihood), (crps, pointwise_crps)]
PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)


class TestEveryScore:
    @pytest.mark.parametrize(("score", "pointwise"), OF_LABELS)
    def test_is_the_mean_of_its_points(self, score, pointwise) -> None:
        predictive, y = labelled(0)
        assert score(predictive, y).shape == ()
        assert score(predictive, y).dtype == torch.float64
        assert pointwise(predictive, y).shape == (200,)
        torch.testing.assert_close(score(predictive, y), pointwise(predictive, y).mean())

    @pytest.mark.parametrize(("score", "pointwise"), OF_REAL_TARGETS)
    def test_of_real_targets_is_the_mean_of_its_points(self, score, pointwise) -> None:
        predictive, y = measured(0, num_columns=3)
        assert score(predictive, y).dtype == torch.float64
        torch.testing.assert_close(score(predictive, y), pointwise(predictive, y).mean())

    @pytest.mark.parametrize("score", [negative_log_likelihood, brier_score, accuracy])
    def test_order_of_points_and_names_of_classes_do_not_matter(self, score) -> None:
        predictive, y = labelled(0)
        rows, classes = torch.randperm(200, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 4, 1, 2])
        shuffled = CategoricalPredictive.from_logits(predictive.draws[:, rows][:, :, classes])
        torch.testing.assert_close(score(shuffled, classes.argsort()[y[rows]]), score(predictive, y))

    @pytest.mark.parametrize("score", [negative_log_likelihood, crps, root_mean_squared_error])
    def test_a_column_of_targets_never_becomes_a_square(self, score) -> None:
        predictive, y = measured(0)
        assert torch.equal(score(predictive, y), score(predictive, y.squeeze(1)))
        with pytest.raises(ValueError, match="`y`"):
            score(predictive, y.T)

    @pytest.mark.parametrize("score", [negative_log_likelihood, brier_score, accuracy])
    def test_a_column_of_labels_never_becomes_a_square(self, score) -> None:
        predictive, y = labelled(0)
        assert torch.equal(score(predictive, y), score(predictive, y[:, None]))
        with pytest.raises(ValueError, match="`y`"):
            score(predictive, y[None])

    def test_of_the_wrong_kind_of_predictive_names_the_right_scores(self) -> None:
        for score in (brier_score, accuracy):
            with pytest.raises(TypeError, match=r"GaussianPredictive.*`crps`"):
                score(*measured(0))
        for score in (crps, root_mean_squared_error):
            with pytest.raises(TypeError, match=r"CategoricalPredictive.*`brier_score`"):
                score(*labelled(0))

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_is_the_same_on_a_gpu(self) -> None:
        predictive, y = measured(0)
        for score in (negative_log_likelihood, crps, root_mean_squared_error):
            on_gpu = score(predictive.to("cuda"), y)
            assert on_gpu.is_cuda
            torch.testing.assert_close(on_gpu.cpu(), score(predictive, y))

    @PROPERTY
    @given(st.integers(0, 2**32 - 4), st.floats(0.3, 3.0).filter(lambda value: abs(value - 1) > 0.1))
    def test_of_labels_is_proper(self, seed: int, sharpness: float) -> None:
        # Expected scores, exactly: under the truth p, no other forecast q scores better than p itself.
        logits = noise(seed, 1, 1, 4)
        truth, other = (CategoricalPredictive.from_logits(factor * logits) for factor in (1.0, sharpness))
        for pointwise in (pointwise_negative_log_likelihood, pointwise_brier_score):
            honest, dishonest = (
                sum(truth.mean[0, k] * pointwise(forecast, [k])[0] for k in range(4)) for forecast in (truth, other)
            )
            assert honest <= dishonest + 1e-12


class TestLogScore:
    def test_is_of_the_mixture_not_of_the_draws(self) -> None:
        predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64))
        assert negative_log_likelihood(predictive, [0]).item() == pytest.approx(math.log(2))  # mean of logs: 1.204

    def test_of_distant_members_is_of_the_mixture_not_of_one_matched_gaussian(self) -> None:
        predictive = GaussianPredictive(mean=[[[-1.0]], [[1.0]]], noise_variance=0.01)
        mixture = math.log(2) + 0.5 * math.log(2 * math.pi * 0.01)
        assert negative_log_likelihood(predictive, [1.0]).item() == pytest.approx(mixture)
        assert negative_log_likelihood(predictive, [0.0]).item() > 40  # a matched Gaussian says 0.92

    def test_of_an_impossible_point_is_infinite_never_nan(self) -> None:
        assert negative_log_likelihood(sure([1.0, 0.0], [0.5, 0.5]), [1, 0]).item() == math.inf

    @pytest.mark.oracle
    def test_agrees_with_scikit_learn(self) -> None:
        from sklearn.metrics import log_loss

        predictive, y = labelled(0)
        expected = log_loss(y.numpy(), predictive.mean.numpy(), labels=range(5))
        assert negative_log_likelihood(predictive, y).item() == pytest.approx(expected, rel=1e-12)

    @pytest.mark.oracle
    def test_of_a_mixture_agrees_with_scoringrules(self) -> None:
        import scoringrules

        predictive, y = measured(0)
        means, scales = predictive.component_means, predictive.component_variances.sqrt()
        expected = scoringrules.logs_mixnorm(y.squeeze(1).numpy(), means[..., 0].T.numpy(), scales[..., 0].T.numpy())
        np.testing.assert_allclose(pointwise_negative_log_likelihood(predictive, y).numpy(), expected, rtol=1e-9)


class TestBrierScore:
    def test_runs_from_zero_to_two(self) -> None:
        assert brier_score(sure([1.0, 0.0, 0.0]), [0]).item() == 0
        assert brier_score(sure([1.0, 0.0, 0.0]), [2]).item() == 2

    def test_of_two_classes_is_twice_the_binary_one(self) -> None:
        # PITFALLS section 2: scikit-learn says .025 for these two points where the sum over classes is .050.
        assert brier_score(sure([0.9, 0.1], [0.2, 0.8]), [0, 1]).item() == pytest.approx(0.05)

    @pytest.mark.oracle
    @pytest.mark.parametrize("num_classes", [2, 5])
    def test_agrees_with_scikit_learn_unhalved(self, num_classes: int) -> None:
        from sklearn.metrics import brier_score_loss

        predictive, y = labelled(0, num_classes=num_classes)
        probs = predictive.mean.numpy() if num_classes > 2 else predictive.mean[:, 1].numpy()
        expected = brier_score_loss(y.numpy(), probs, labels=range(num_classes), scale_by_half=False)
        assert brier_score(predictive, y).item() == pytest.approx(expected, rel=1e-12)


class TestAccuracy:
    def test_is_of_the_mean_not_of_the_votes(self) -> None:
        probs = [[[0.51, 0.49]], [[0.51, 0.49]], [[0.0, 1.0]]]  # two votes for 0, and a mean of .34
        assert accuracy(CategoricalPredictive.from_probs(probs), [1]).item() == 1

    def test_counts_pixels(self) -> None:
        predictive = CategoricalPredictive.from_logits(noise(0, 2, 3, 4, 5, 6))
        y = predictive.mean.argmax(dim=1)
        y[0, 0, 0] = (y[0, 0, 0] + 1) % 4
        assert accuracy(predictive, y).item() == pytest.approx(89 / 90)


class TestSquaredError:
    def test_by_hand(self) -> None:
        predictive = GaussianPredictive(mean=[[[0.0, 1.0], [2.0, 3.0]], [[2.0, 1.0], [2.0, 5.0]]], noise_variance=1.0)
        y = [[1.0, 2.0], [0.0, 4.0]]  # the means are (1, 1) and (2, 4)
        assert pointwise_squared_error(predictive, y).tolist() == [[0.0, 1.0], [4.0, 0.0]]
        assert root_mean_squared_error(predictive, y).item() == pytest.approx(math.sqrt(5 / 4))

    @pytest.mark.oracle
    def test_agrees_with_scikit_learn(self) -> None:
        from sklearn.metrics import mean_squared_error

        predictive, y = measured(0, num_columns=3)
        expected = mean_squared_error(y.numpy(), predictive.mean.numpy()) ** 0.5
        assert root_mean_squared_error(predictive, y).item() == pytest.approx(expected, rel=1e-12)


def explicit_crps(predictive: GaussianPredictive, y: Tensor) -> Tensor:
    """Grimit et al. (2006), eq. (5), as the double sum that it is."""

    def spread(mean: Tensor, variance: Tensor) -> Tensor:
        scale, normal = variance.sqrt(), torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
        standard = mean / scale
        return 2 * scale * normal.log_prob(standard).exp() + mean * (2 * normal.cdf(standard) - 1)

    means, variances = predictive.component_means, predictive.component_variances
    pairs = spread(means[:, None] - means[None], variances[:, None] + variances[None])
    return spread(y - means, variances).mean(dim=0) - pairs.mean(dim=(0, 1)) / 2


MANY = 600


class TestCRPSOfManyComponents:
    @staticmethod
    def both(predictive: GaussianPredictive, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
        """As it is computed, and over all pairs, each (N, D)."""
        y = noise(2, *predictive.shape[1:])
        found = pointwise_crps(predictive, y)
        monkeypatch.setattr("bayesuq.evaluation.scores.NODE_STEP", 1e-9)
        return found, pointwise_crps(predictive, y)

    def test_is_the_double_sum_at_far_fewer_places(self, monkeypatch: pytest.MonkeyPatch) -> None:
        scales = 0.2 + noise(1, MANY, 1, 1).abs()
        predictive = GaussianPredictive(mean=2.0 * noise(0, MANY, 4, 2), noise_variance=scales.square())
        found, exact = self.both(predictive, monkeypatch)
        assert not torch.equal(found, exact)
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=0)

    @pytest.mark.parametrize(
        ("spread", "narrow", "wide", "number_wide"),
        [
            (100.0, 1e-4, 1e-4, 0),  # far apart
            (0.02, 0.05, 15.0, 4),  # some that allow for outliers
            (0.02, 0.05, 1e20, 1),  # one that exploded
            (0.0, 1e-3, 1.0, MANY // 2),
        ],
    )
    def test_is_the_double_sum_where_components_are_narrow(
        self, spread: float, narrow: float, wide: float, number_wide: int
    ) -> None:
        scales = torch.where(torch.arange(MANY) < number_wide, wide, narrow)[:, None, None]
        predictive = GaussianPredictive(mean=spread * noise(0, MANY, 2, 1), noise_variance=scales.double().square())
        y = 0.1 * noise(2, 2, 1)
        found = pointwise_crps(predictive, y)
        torch.testing.assert_close(found, explicit_crps(predictive, y), rtol=1e-9, atol=1e-12)
        assert (found > 0).all()


def numbers_of_crps(num_draws: int, num_rows: int) -> int:
    predictive = GaussianPredictive(mean=noise(0, num_draws, num_rows, 1), noise_variance=0.01)
    y = noise(1, num_rows, 1)
    with ComputedNumbers() as numbers:
        pointwise_crps(predictive, y)
    return numbers.count


def test_the_crps_takes_work_in_proportion_to_draws_and_rows() -> None:
    """Over pairs of draws the first exponent would be 2."""
    few, more, rows = (numbers_of_crps(*sizes) for sizes in ((1000, 8), (4000, 8), (1000, 64)))
    assert math.log(more / few, 4) < 1.1
    assert math.log(rows / few, 8) < 1.1


class TestCRPS:
    def test_of_one_gaussian_is_its_closed_form(self) -> None:
        loc, scale, y = 1.5, 0.7, torch.linspace(-3, 5, 9, dtype=torch.float64)
        z = (y - loc) / scale
        density = (-0.5 * z**2).exp() / math.sqrt(2 * math.pi)
        expected = scale * (z * (2 * torch.special.ndtr(z) - 1) + 2 * density - 1 / math.sqrt(math.pi))
        predictive = GaussianPredictive(mean=torch.full((1, 9, 1), loc), noise_variance=scale**2)
        torch.testing.assert_close(pointwise_crps(predictive, y).squeeze(1), expected, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("num_draws", [1, 2, 3, 6])
    def test_is_the_integral_that_defines_it(self, num_draws: int) -> None:
        predictive, y = measured(0, num_draws=num_draws, num_points=3)
        grid = torch.linspace(-25, 25, 100_001, dtype=torch.float64)
        many = GaussianPredictive(
            mean=predictive.component_means.transpose(1, 2).expand(-1, len(grid), -1),
            noise_variance=predictive.component_variances.transpose(1, 2),
        )
        cdf = many.cdf(grid[:, None].expand(-1, 3))
        integrand = (cdf - (grid[:, None] >= y.squeeze(1)).double()).square()
        expected = torch.trapezoid(integrand, grid, dim=0)
        # The step at y is met to half a grid step, 2.5e-4, times a height of at most 1.
        torch.testing.assert_close(pointwise_crps(predictive, y).squeeze(1), expected, rtol=0, atol=5e-4)

    @pytest.mark.parametrize("num_draws", [1, 2, 3, 4, 7, 8])
    def test_every_pair_of_components_counts_once(self, num_draws: int) -> None:
        predictive, y = measured(0, num_draws=num_draws, num_columns=2)
        torch.testing.assert_close(pointwise_crps(predictive, y), explicit_crps(predictive, y), rtol=1e-9, atol=1e-12)

    def test_does_not_depend_on_the_size_of_its_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        predictive, y = measured(0, num_columns=3)
        whole = pointwise_crps(predictive, y)
        for numbers in (1, 44, 1000):
            monkeypatch.setattr(scores, "BLOCK_NUMBERS", numbers)
            torch.testing.assert_close(pointwise_crps(predictive, y), whole, rtol=1e-12, atol=1e-14)

    def test_is_in_units_of_y(self) -> None:
        predictive, y = measured(0)
        loc, scale = torch.tensor(7.0), torch.tensor(30.0)
        rescaled = crps(predictive.rescale(loc, scale), loc + scale * y)
        torch.testing.assert_close(rescaled, scale * crps(predictive, y), check_dtype=False)

    def test_of_a_narrow_forecast_is_the_absolute_error(self) -> None:
        predictive = GaussianPredictive(mean=[[[1.0]]], noise_variance=1e-20)
        assert crps(predictive, [4.0]).item() == pytest.approx(3.0, abs=1e-9)

    def test_is_best_at_the_truth(self) -> None:
        # y from N(0, 1): the expected CRPS of N(0, s^2) is least at s = 1, by some .01; the mean of 20,000 differences
        # has a standard error below .002.
        y = noise(0, 20_000)
        values = [
            crps(GaussianPredictive(mean=torch.zeros(1, len(y), 1), noise_variance=scale**2), y).item()
            for scale in (0.7, 1.0, 1.4)
        ]
        assert values[1] < min(values[0], values[2])
        assert values[1] == pytest.approx(1 / math.sqrt(math.pi), abs=0.01)  # E CRPS(N(0, 1)) = 1 / sqrt(pi)

    def test_of_a_component_without_variance_is_refused(self) -> None:
        with pytest.raises(ValueError, match="zero variance"):
            crps(GaussianPredictive(mean=[[[1.0]]], noise_variance=0.0), [4.0])

    @pytest.mark.oracle
    def test_agrees_with_scoringrules(self) -> None:
        import scoringrules

        predictive, y = measured(0, num_draws=7)
        means, scales = predictive.component_means[..., 0].T.numpy(), predictive.component_variances[..., 0].sqrt().T
        expected = scoringrules.crps_mixnorm(y.squeeze(1).numpy(), means, scales.numpy())
        np.testing.assert_allclose(pointwise_crps(predictive, y).squeeze(1).numpy(), expected, rtol=1e-9)


class TestSampleCRPS:
    def test_is_the_double_sum_written_out_and_if_fair_the_crps_of_these_draws(self) -> None:
        draws, y = noise(0, 7, 5, 2), noise(1, 5, 2)
        pairs = (draws[:, None] - draws[None]).abs().sum(dim=(0, 1))
        for fair, divisor in ((True, 2 * 7 * 6), (False, 2 * 7 * 7)):
            expected = (draws - y).abs().mean(dim=0) - pairs / divisor
            torch.testing.assert_close(pointwise_sample_crps(draws, y, fair=fair), expected)
            torch.testing.assert_close(sample_crps(draws, y, fair=fair), expected.mean())
        torch.testing.assert_close(crps(EmpiricalPredictive.from_draws(draws), y), sample_crps(draws, y))

    @pytest.mark.parametrize("num_draws", [2, 5, 20])
    def test_fair_score_is_that_of_the_mixture_on_average_and_the_plain_one_is_not(self, num_draws: int) -> None:
        # The spread over 20,000 points of fair minus exact gives the allowance of four standard errors.
        mixture, y = measured(0, num_draws=3, num_points=1)
        repeated = GaussianPredictive(
            mean=mixture.component_means.expand(-1, 20_000, -1),
            noise_variance=mixture.component_variances.expand(-1, 20_000, -1),
        )
        draws = torch.stack([independent(repeated, seed) for seed in range(num_draws)])
        exact = crps(mixture, y).item()
        fair, plain = (pointwise_sample_crps(draws, y.expand(20_000, 1), fair=fair) for fair in (True, False))
        allowed = 4 * fair.std().item() / math.sqrt(20_000)
        assert fair.mean().item() == pytest.approx(exact, abs=allowed)
        assert plain.mean().item() > exact + allowed

    @pytest.mark.oracle
    @pytest.mark.parametrize(("fair", "estimator"), [(True, "fair"), (False, "nrg")])
    def test_agrees_with_scoringrules(self, fair: bool, estimator: str) -> None:
        import scoringrules

        draws, y = noise(0, 9, 20), noise(1, 20)
        expected = scoringrules.crps_ensemble(y.numpy(), draws.T.numpy(), estimator=estimator)
        found = pointwise_sample_crps(draws, y, fair=fair).squeeze(1).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)

    def test_of_one_draw_is_the_absolute_error_and_never_fair(self) -> None:
        assert sample_crps([[1.0]], [3.0], fair=False).item() == 2
        with pytest.raises(ValueError, match="at least 2 draws; got 1"):
            sample_crps([[1.0]], [3.0])

    def test_other_shapes_and_values_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"`samples` must have shape \(S, N, D\).*\(4, 1\); got \(3, 5, 1\)"):
            sample_crps(noise(0, 3, 5), noise(1, 4))
        with pytest.raises(ValueError, match="`samples`"):
            sample_crps(noise(0, 5), noise(1, 5))
        with pytest.raises(ValueError, match="must be finite"):
            sample_crps([[math.nan], [1.0]], [0.0])


def independent(predictive: GaussianPredictive, seed: int) -> Tensor:
    """A draw at each point on its own, (N, D): `sample` takes one component for all points."""
    random = torch.Generator().manual_seed(seed)
    chosen = torch.randint(predictive.num_samples, predictive.mean.shape, generator=random)[None]
    scale = predictive.component_variances.gather(0, chosen)[0].sqrt()
    normal = torch.randn(scale.shape, generator=random, dtype=torch.float64)
    return predictive.component_means.gather(0, chosen)[0] + scale * normal


class TestIntervalScore:
    def test_by_hand(self) -> None:
        predictive = GaussianPredictive(mean=torch.zeros(1, 3, 1), noise_variance=4.0)
        half = 2 * 1.6448536269514722  # the standard normal's quantile at .95
        expected = [2 * half, 2 * half + 20 * (5 - half), 2 * half + 20 * (6 - half)]
        found = pointwise_interval_score(predictive, [1.0, 5.0, -6.0], 0.9).flatten().tolist()
        assert found == pytest.approx(expected)

    @pytest.mark.parametrize("level", [0.5, 0.9])
    def test_is_twice_the_pinball_losses_over_the_tail(self, level: float) -> None:
        # Gneiting and Raftery (2007), section 6.2: the sum of the two quantiles' scores.
        predictive, y = measured(0, num_columns=2)
        total = torch.zeros_like(y)
        for quantile in ((1 - level) / 2, (1 + level) / 2):
            gap = y - predictive.quantile(quantile)
            total += torch.where(gap > 0, quantile * gap, (quantile - 1) * gap)
        torch.testing.assert_close(pointwise_interval_score(predictive, y, level), 2 * total / (1 - level))

    def test_is_best_at_the_truth(self) -> None:
        y = noise(0, 20_000)
        values = [
            interval_score(GaussianPredictive(mean=torch.zeros(1, len(y), 1), noise_variance=scale**2), y, 0.9).item()
            for scale in (0.7, 1.0, 1.4)
        ]
        assert values[1] < min(values[0], values[2])

    def test_is_in_units_of_y(self) -> None:
        predictive, y = measured(0)
        loc, scale = torch.tensor(7.0), torch.tensor(30.0)
        rescaled = interval_score(predictive.rescale(loc, scale), loc + scale * y, 0.8)
        torch.testing.assert_close(rescaled, scale * interval_score(predictive, y, 0.8), check_dtype=False)

    def test_refuses_impossible_levels_and_labels(self) -> None:
        with pytest.raises(ValueError, match="`level`"):
            interval_score(*measured(0), 1.0)
        with pytest.raises(TypeError, match=r"CategoricalPredictive.*`brier_score`"):
            interval_score(*labelled(0), 0.9)


class TestTopLabel:
    @PROPERTY
    @given(st.integers(0, 2**32 - 4), st.integers(2, 5), st.integers(1, 3))
    def test_is_the_first_of_the_most_probable_classes(self, seed: int, num_classes: int, num_draws: int) -> None:
        # Logits of a few whole numbers, so that ties are the rule.
        logits = noise(seed, num_draws, 50, num_classes).round()
        predictive = CategoricalPredictive.from_logits(logits)
        y = torch.arange(50) % num_classes
        confidence, right = top_label(predictive, y)
        assert torch.equal(right, predictive.probability_sum.argmax(dim=1) == y)
        torch.testing.assert_close(confidence, predictive.mean.amax(dim=1), rtol=0, atol=0)

    def test_of_pixels_is_a_value_each(self) -> None:
        predictive = CategoricalPredictive.from_logits(noise(0, 2, 3, 4, 5, 6).round())
        y = torch.arange(90).reshape(3, 5, 6) % 4
        assert torch.equal(top_label(predictive, y)[1], predictive.probability_sum.argmax(dim=1) == y)


def test_each_score_is_the_mean_of_its_points_and_other_functions_have_none() -> None:
    labels, real = labelled(0), measured(0)
    drawn, options = (
        (real[0].sample(5, seed=0), real[1]),
        {"interval_score": {"level": 0.9}, "pinball_loss": {"level": 0.9}},
    )
    of_labels = ("accuracy", "brier_score", "negative_log_likelihood")
    for name in (score.__name__ for score in scores.POINTWISE):
        example = labels if name in of_labels else drawn if name == "sample_crps" else real
        score, given = getattr(scores, name), options.get(name, {})
        mean = scores.pointwise(score)(*example, **given).mean()
        root = mean.sqrt() if name == "root_mean_squared_error" else mean
        torch.testing.assert_close(score(*example, **given), root, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"one of accuracy, .*; got mean"):
        scores.pointwise(torch.mean)
