"""Measures of mixtures that are not Gaussian: Student's t for real targets, Poisson for counts."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor
from torch.distributions import Poisson, StudentT

from bayesuq.evaluation import uncertainty
from bayesuq.evaluation.calibration import (
    interval_coverage,
    interval_width,
    probability_integral_transform,
    regression_calibration_error,
)
from bayesuq.evaluation.report.comparison import compare_predictives
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.evaluation.scores import crps, interval_score, pointwise_crps, root_mean_squared_error
from bayesuq.predictive.mixture import MixturePredictive
from bayesuq.randomness import isolated
from tests.evaluation.examples import labelled, measured, noise

NUM_POINTS = 1000


def outlying(df: float = 4.0, *, num_draws: int = 3) -> tuple[MixturePredictive, Tensor]:
    """A mixture of Student laws, and targets drawn from it point by point."""
    loc = noise(0, num_draws, NUM_POINTS, 1)
    return drawn(MixturePredictive(StudentT(df, loc, 0.3 + noise(1, *loc.shape).abs())))


def counted(*, num_draws: int = 3) -> tuple[MixturePredictive, Tensor]:
    """A mixture of Poisson laws, and counts drawn from it point by point."""
    return drawn(MixturePredictive(Poisson((0.7 * noise(0, num_draws, NUM_POINTS, 1) + 0.5).exp())))


def drawn(predictive: MixturePredictive) -> tuple[MixturePredictive, Tensor]:
    with isolated(0):
        y = predictive.components.sample()
        chosen = torch.randint(predictive.num_samples, y.shape[1:])[None]  # each point chooses its own component
    return predictive, y.gather(0, chosen)[0]


@pytest.mark.parametrize("example", [outlying, counted])
def test_the_transform_is_uniform_under_the_truth_and_not_otherwise(example) -> None:
    predictive, y = example()
    u = probability_integral_transform(predictive, y, seed=0).flatten().numpy()
    assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
    wrong = probability_integral_transform(predictive, 2 * y, seed=0).flatten().numpy()
    assert scipy.stats.kstest(wrong, "uniform").pvalue < 1e-6
    assert regression_calibration_error(predictive, y, seed=0) < 2 / math.sqrt(NUM_POINTS)


def test_the_steps_of_counts_would_not_be_uniform_without_the_draw() -> None:
    predictive, y = counted()
    assert scipy.stats.kstest(predictive.cdf(y).flatten().numpy(), "uniform").pvalue < 1e-6
    one, same, other = (probability_integral_transform(predictive, y, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert (one <= predictive.cdf(y)).all()
    assert (one >= predictive.cdf(y - 1)).all()


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_the_share_between_the_quantiles(level: float) -> None:
    predictive, y = outlying(1.5)  # without variance, and all the same calibrated
    lower, upper = predictive.quantile((1 - level) / 2), predictive.quantile((1 + level) / 2)
    found = interval_coverage(predictive, y, level)
    assert found == ((lower <= y) & (y <= upper)).double().mean()
    assert abs(found - level) < 4 * math.sqrt(level * (1 - level) / NUM_POINTS)
    torch.testing.assert_close(interval_width(predictive, level), (upper - lower).mean())


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_of_counts_is_their_probability_between_the_ends(level: float) -> None:
    predictive, y = counted()
    lower, upper = predictive.quantile((1 - level) / 2), predictive.quantile((1 + level) / 2)
    held = predictive.cdf(upper) - predictive.cdf(lower - 1)
    assert (held >= level).all()  # at least what they claim, since counts leave no choice between
    error = (held * (1 - held)).sum().sqrt() / NUM_POINTS
    assert abs(interval_coverage(predictive, y, level) - held.mean()) < 4 * error


def test_crps_of_single_laws_is_their_closed_form() -> None:
    scoringrules = pytest.importorskip("scoringrules")
    predictive, y = outlying(4.0, num_draws=1)
    law = predictive.components
    expected = scoringrules.crps_t(y.numpy(), 4.0, law.loc[0].numpy(), law.scale[0].numpy())
    assert_within_error(pointwise_crps(predictive, y), torch.as_tensor(expected))
    predictive, y = counted(num_draws=1)
    expected = scoringrules.crps_poisson(y.numpy(), predictive.components.rate[0].numpy())
    assert_within_error(pointwise_crps(predictive, y), torch.as_tensor(expected))


def test_crps_of_a_mixture_is_the_integral_of_its_cdf() -> None:
    predictive, y = outlying(4.0)
    few, target = predictive.at(slice(0, 200)), y[:200]
    grid = 40 * torch.linspace(-4.0, 4.0, 1001, dtype=torch.float64).sinh() / math.sinh(4.0)
    steps = [(few.cdf(at.expand(200, 1)) - (at >= target).double()).square() for at in grid]
    expected = torch.trapezoid(torch.stack(steps), grid, dim=0)
    assert_within_error(pointwise_crps(few, target), expected)


def assert_within_error(found: Tensor, expected: Tensor) -> None:
    """Equal on average to four standard errors, whose size the scatter of the differences shows."""
    difference = found - expected
    assert difference.mean().abs() < 4 * difference.std() / math.sqrt(len(difference))
    assert difference.std() < 0.1 * expected.mean()


@pytest.mark.parametrize("example", [outlying, counted])
def test_crps_is_the_same_at_every_call_and_best_under_the_truth(example) -> None:
    predictive, y = example()
    found = crps(predictive, y)
    assert crps(predictive, y) == found
    law = predictive.components
    wide = StudentT(4.0, law.loc, 3 * law.scale) if example is outlying else Poisson(2 * law.rate)
    assert found < crps(MixturePredictive(wide), y)
    assert interval_score(predictive, y, 0.9) < interval_score(MixturePredictive(wide), y, 0.9)


@pytest.mark.parametrize("example", [outlying, counted])
def test_a_report_has_the_measures_of_real_targets(example) -> None:
    predictive, y = example()
    report = evaluate(predictive, y)
    assert [measure.name for measure in report.measures] == [
        measure.name for measure in evaluate(*measured(0)).measures
    ]
    assert report["root_mean_squared_error"].value == pytest.approx(float((y - predictive.mean).square().mean().sqrt()))
    assert report["negative_log_likelihood"].value == pytest.approx(-float(predictive.log_prob(y).mean()))
    assert "1000 draws of y" in report["crps"].remark
    assert ("ends included" in report["interval_coverage"].remark) == (example is counted)


def test_a_report_without_variance_says_so() -> None:
    predictive, y = outlying(1.5)
    report = evaluate(predictive, y)
    assert report["aleatoric_variance"].value == math.inf
    assert math.isfinite(report["epistemic_variance"].value)
    assert "inf" in str(report)
    assert "nan" not in str(report)


def test_variances_are_the_predictive_s_own() -> None:
    predictive, _ = counted()
    for name in ("predictive", "aleatoric", "epistemic"):
        own = predictive.total if name == "predictive" else getattr(predictive, name)
        assert torch.equal(getattr(uncertainty, f"{name}_variance")(predictive), own)


def test_noise_with_outliers_compares_with_gaussian_noise_point_by_point() -> None:
    gaussian, y = measured(0, num_draws=2, num_points=300)
    law = StudentT(4.0, gaussian.component_means, (gaussian.component_variances / 2).sqrt())
    student = MixturePredictive(law)  # of the same variance
    comparison = compare_predictives(student, gaussian, y)
    expected = gaussian.log_prob(y) - student.log_prob(y)
    assert comparison["negative_log_likelihood"].value == pytest.approx(float(expected.mean()))
    assert comparison["root_mean_squared_error"].value == pytest.approx(0.0, abs=1e-12)
    parts = (comparison[f"{kind}_variance"].value for kind in ("aleatoric", "epistemic"))
    assert sum(parts) == pytest.approx(0.0, abs=1e-9)


def test_densities_and_probabilities_do_not_compare() -> None:
    with pytest.raises(TypeError, match="got counts and real targets"):
        compare_predictives(counted()[0], outlying()[0], counted()[1])
    with pytest.raises(TypeError, match="got labels and counts"):
        compare_predictives(labelled(0)[0], counted()[0], [0])


def test_root_mean_squared_error_is_of_the_mean() -> None:
    predictive = MixturePredictive(Poisson(torch.tensor([[[1.0]], [[3.0]]])))
    assert root_mean_squared_error(predictive, [5]) == 3.0
    np.testing.assert_allclose(
        predictive.log_prob([5]), np.log((1 / 120 * math.exp(-1) + 243 / 120 * math.exp(-3)) / 2)
    )
