"""Predictives from draws and from quantiles of y*: closed forms, exchangeability, and the Gaussian that they are of."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import bayesuq as bq
from bayesuq import conformal
from bayesuq.evaluation import calibration, scores, uncertainty
from bayesuq.evaluation.plots.regression import interval_calibration, regression_bands
from bayesuq.evaluation.report import compare_predictives
from bayesuq.predictive.empirical import EmpiricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive

N = 300
LEVELS = torch.tensor([0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975], dtype=torch.float64)
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def gaussian() -> GaussianPredictive:
    return GaussianPredictive(mean=noise(0, 1, N, 1), noise_variance=0.3 + noise(1, 1, N, 1).abs())


@pytest.fixture(scope="module")
def y(gaussian: GaussianPredictive) -> Tensor:
    return gaussian.sample(1, seed=2)[0]


@pytest.fixture(scope="module")
def quantiles(gaussian: GaussianPredictive) -> EmpiricalPredictive:
    return EmpiricalPredictive.from_quantiles(LEVELS, torch.stack([gaussian.quantile(float(one)) for one in LEVELS]))


@pytest.fixture(scope="module")
def draws(gaussian: GaussianPredictive) -> EmpiricalPredictive:
    return EmpiricalPredictive.from_draws(gaussian.sample(400, seed=3))


def test_quantiles_of_a_normal_law_are_that_law(gaussian, quantiles, y) -> None:
    torch.testing.assert_close(quantiles.mean, gaussian.mean, **EXACT)
    torch.testing.assert_close(quantiles.total, gaussian.total, **EXACT)
    torch.testing.assert_close(quantiles.cdf(y), gaussian.cdf(y), **EXACT)
    torch.testing.assert_close(quantiles.log_prob(y), gaussian.log_prob(y), **EXACT)
    torch.testing.assert_close(scores.pointwise_crps(quantiles, y), scores.pointwise_crps(gaussian, y), **EXACT)
    for level in (0.001, 0.3, 0.6, 0.999):
        torch.testing.assert_close(quantiles.quantile(level), gaussian.quantile(level), rtol=1e-9, atol=1e-9)


def test_given_quantiles_come_back_to_the_last_bit(quantiles) -> None:
    assert [
        torch.equal(quantiles.quantile(float(t)), quantiles.quantiles[0, ..., k]) for k, t in enumerate(LEVELS)
    ] == [True] * len(LEVELS)


def test_levels_in_float32_are_those_that_were_meant(quantiles) -> None:
    """0.9 in float32 is below 0.9, so that ends at it were told as extrapolated."""
    known = EmpiricalPredictive.from_quantiles(LEVELS.float(), quantiles.quantiles[0].movedim(-1, 0))
    assert known.interval_remark(0.8) == known.interval_remark(0.95) == ""
    assert all(torch.equal(known.quantile(float(t)), quantiles.quantile(float(t))) for t in LEVELS)


@pytest.mark.parametrize(
    "values", [[0.0, 1.0, 1.0, 4.0], [0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0], [-3.0, 0.1, 0.4, 9.0]]
)
def test_the_law_between_any_quantiles_is_one_by_quadrature(values: list[float]) -> None:
    """CRPS, mean and variance against integrals of the cdf; equal quantiles are atoms."""
    known = EmpiricalPredictive.from_quantiles([0.1, 0.3, 0.6, 0.9], [[value] for value in values])
    grid = torch.linspace(-60, 60, 240_001, dtype=torch.float64)
    law = EmpiricalPredictive.from_quantiles([0.1, 0.3, 0.6, 0.9], [[value] * len(grid) for value in values])
    cdf = law.cdf(grid.unsqueeze(1)).squeeze(1)
    assert bool((cdf.diff() >= 0).all())
    assert float(cdf[0]) < 1e-9
    assert float(cdf[-1]) > 1 - 1e-9
    positive, negative = grid >= 0, grid < 0
    mean = torch.trapezoid(1 - cdf[positive], grid[positive]) - torch.trapezoid(cdf[negative], grid[negative])
    assert float(known.mean) == pytest.approx(float(mean), abs=2e-3)
    square = torch.trapezoid(2 * grid[positive] * (1 - cdf[positive]), grid[positive]) - torch.trapezoid(
        2 * grid[negative] * cdf[negative], grid[negative]
    )
    assert float(known.total) == pytest.approx(float(square - mean**2), abs=1e-2)
    for at in (-2.0, 1.0, 3.3):
        expected = torch.trapezoid((cdf - (grid >= at).double()).square(), grid)
        assert float(scores.crps(known, [at])) == pytest.approx(float(expected), abs=1e-3)
    assert ((known.cdf(known.quantile(0.45)) - 0.45) >= -1e-12).all()


def test_draws_estimate_what_they_are_from_within_their_error(gaussian, draws, y) -> None:
    number = draws.num_samples
    sd = gaussian.total.sqrt()
    assert float(((draws.mean - gaussian.mean) / sd).square().mean()) * number == pytest.approx(
        1, abs=5 * (2 / N) ** 0.5
    )
    assert float((draws.total / gaussian.total).mean()) == pytest.approx(1, abs=5 * (2 / number / N) ** 0.5)
    report = bq.evaluation.report.evaluate(draws, y)
    exact = bq.evaluation.report.evaluate(gaussian, y)
    for name in ("crps", "interval_width", "interval_score", "interval_coverage", "root_mean_squared_error"):
        assert report[name].value == pytest.approx(exact[name].value, abs=0.02 + 0.05 * abs(exact[name].value))
        assert report[name].standard_error > 0
    assert "fair, from 400 draws" in report["crps"].remark


def test_the_fair_score_is_unbiased_for_few_draws(gaussian, y) -> None:
    """Over 1,500 targets of 4 draws each; the score of the empirical law is larger by E|x - x'| / (2 S)."""
    exact = scores.pointwise_crps(gaussian, y)
    parts = [
        scores.pointwise_crps(EmpiricalPredictive.from_draws(gaussian.sample(4, seed=seed)), y) for seed in range(200)
    ]
    error = torch.stack(parts) - exact
    # One sample takes one component for all points, and here there is one: rows are independent.
    assert abs(float(error.mean())) < 4 * float(error.std()) / error.numel() ** 0.5


def test_ranks_of_exchangeable_draws_are_uniform_however_few(gaussian) -> None:
    few = [EmpiricalPredictive.from_draws(gaussian.sample(3, seed=seed)) for seed in range(20)]
    truths = [gaussian.sample(1, seed=100 + seed)[0] for seed in range(20)]
    values = [
        calibration.probability_integral_transform(*pair, seed=s)
        for s, pair in enumerate(zip(few, truths, strict=True))
    ]
    assert scipy.stats.kstest(torch.cat(values).flatten(), "uniform").pvalue > 1e-3
    middle = calibration.probability_integral_transform(few[0], truths[0], steps="middle")
    assert set(middle.flatten().tolist()) <= {0.125, 0.375, 0.625, 0.875}
    coverage = np.mean([float(calibration.interval_coverage(p, t, 0.5)) for p, t in zip(few, truths, strict=True)])
    assert coverage == pytest.approx(0.5, abs=5 * (0.25 / (20 * N)) ** 0.5)


def test_counts_have_counts_for_quantiles_and_agree_with_their_family() -> None:
    rate = torch.rand(1, 200, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6 + 0.5
    family = bq.MixturePredictive(torch.distributions.Poisson(rate))
    drawn = EmpiricalPredictive.from_draws(family.sample(3000, seed=1).long())
    assert drawn.is_discrete
    for level in (0.05, 0.5, 0.95):
        away = (drawn.quantile(level) - family.quantile(level)).abs()
        assert float(away.max()) <= 1
        assert float((away == 0).double().mean()) > 0.9
    y = family.sample(1, seed=2)[0]
    values = calibration.probability_integral_transform(drawn, y, seed=0)
    assert scipy.stats.kstest(values.flatten(), "uniform").pvalue > 1e-3
    assert compare_predictives(drawn, family, y)["root_mean_squared_error"].value == pytest.approx(0, abs=0.02)


def test_pinball_losses_and_the_weighted_interval_score_are_the_crps(gaussian, draws, y) -> None:
    levels = [(k + 0.5) / 200 for k in range(200)]
    twice = 2 * torch.stack([scores.pointwise_pinball_loss(gaussian, y, level) for level in levels]).mean(dim=0)
    torch.testing.assert_close(twice, scores.pointwise_crps(gaussian, y), rtol=0, atol=2e-3)
    inside = [0.5, 0.8]
    edges = [0.1, 0.25, 0.5, 0.75, 0.9]
    for predictive in (gaussian, draws):
        losses = torch.stack([scores.pointwise_pinball_loss(predictive, y, level) for level in edges])
        torch.testing.assert_close(
            scores.weighted_interval_score(predictive, y, inside), 2 * losses.mean(), rtol=1e-12, atol=0
        )
    even = [k / 40 for k in range(1, 40)]
    assert abs(float(scores.weighted_interval_score(gaussian, y, even) - scores.crps(gaussian, y))) < 0.01
    half = (torch.arange(N) < N / 2).double()
    assert float(scores.weighted_interval_score(draws, y, weight=half)) == pytest.approx(
        float(scores.weighted_interval_score(draws.at(slice(0, N // 2)), y[: N // 2])), rel=1e-12
    )


def test_a_report_says_in_words_what_draws_and_quantiles_do_not_tell(draws, quantiles, y) -> None:
    of_draws, of_quantiles = (bq.evaluation.report.evaluate(each, y) for each in (draws, quantiles))
    assert math.isnan(of_draws["negative_log_likelihood"].value)
    assert of_draws["negative_log_likelihood"].remark == "draws of y* have no density, so no log score: take the CRPS"
    assert of_quantiles["negative_log_likelihood"].remark == "interpolated between 7 quantiles"
    for report in (of_draws, of_quantiles):
        assert "does not tell noise" in report["total_variance"].remark
        assert type(report).from_dict(report.to_dict())["total_variance"] == report["total_variance"]
    few = bq.evaluation.report.evaluate(draws.components_at(torch.arange(8)), y)
    assert "8 draws cover 0.78 at most" in few["interval_coverage"].remark
    narrow = EmpiricalPredictive.from_quantiles([0.25, 0.75], quantiles.quantiles[0, ..., [2, 4]].movedim(-1, 0))
    printed = " ".join(str(bq.evaluation.report.evaluate(narrow, y)).split())
    assert "extrapolated beyond the levels 0.25 to 0.75" in printed
    for ask in (lambda: draws.log_prob(y), lambda: draws.aleatoric, lambda: uncertainty.epistemic_variance(quantiles)):
        with pytest.raises(NotImplementedError, match=r"no log score|not tell noise"):
            ask()


def test_batches_weights_missing_targets_and_columns_are_those_of_all_rows(draws, y) -> None:
    several = EmpiricalPredictive.from_draws(torch.cat([draws.draws, 2 * draws.draws + 1], dim=2))
    both = torch.cat([y, 2 * y + 1], dim=1)
    whole = bq.evaluation.report.evaluate(several, both)
    parts = [(several.at(rows), both[rows]) for rows in (slice(0, 100), slice(100, None))]
    streamed = bq.evaluation.report.evaluate(parts)
    assert [m.name for m in streamed.measures] == [m.name for m in whole.measures]
    assert whole["crps[1]"].value == pytest.approx(2 * whole["crps[0]"].value, rel=1e-9)
    assert streamed["crps"].value == pytest.approx(whole["crps"].value, rel=1e-12)
    missing = both.clone()
    missing[:50, 1] = math.nan
    weight = (~missing.isnan()).double()
    assert bq.evaluation.report.evaluate(several, missing, weight=weight)["crps[1]"].value > 0


def test_mixtures_points_units_and_devices(draws, quantiles, y) -> None:
    again = draws.components_at(torch.arange(200)).merge(draws.components_at(torch.arange(200, 400)))
    assert torch.equal(again.draws, draws.draws)
    assert torch.equal(type(draws).concatenate([draws.at(slice(0, 9)), draws.at(slice(9, None))]).draws, draws.draws)
    shifted = quantiles.rescale(torch.tensor(3.0), torch.tensor(1.0))
    mixed = quantiles.merge(shifted)
    torch.testing.assert_close(mixed.epistemic, torch.full((N, 1), 2.25, dtype=torch.float64), **EXACT)
    torch.testing.assert_close(mixed.total, mixed.aleatoric + mixed.epistemic, **EXACT)
    means, variances = torch.cat([quantiles.component_means, shifted.component_means]), quantiles.total
    exact = GaussianPredictive(mean=means, noise_variance=variances.unsqueeze(0))
    torch.testing.assert_close(mixed.quantile(0.2), exact.quantile(0.2), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(mixed.log_prob(y), exact.log_prob(y), **EXACT)
    torch.testing.assert_close(scores.pointwise_crps(mixed, y), scores.pointwise_crps(exact, y), rtol=1e-4, atol=1e-5)
    sampled = mixed.sample(4000, seed=0)
    assert float(((sampled.mean(dim=0) - mixed.mean) / (mixed.total / 4000).sqrt()).abs().max()) < 5
    inverse = bq.Standardizer.fit(bq.Dataset(y, 10 * y + 2)).inverse(draws)
    torch.testing.assert_close(inverse.mean / draws.mean, inverse.mean / draws.mean)
    assert float(inverse.total.mean() / draws.total.mean()) == pytest.approx(
        float((10 * y).var(correction=0)), rel=1e-4
    )
    assert draws.to("cpu").num_samples == 400
    assert list(draws.columns()) == ["mean", "std", "median", "lower", "upper"]
    assert "aleatoric_std" in mixed.columns()
    assert "<table>" in draws._repr_html_()
    assert repr(draws) == "DrawnPredictive(400 draws, mean: (300, 1))"


def test_conformal_intervals_and_pictures_take_them(draws, quantiles, gaussian) -> None:
    y = gaussian.sample(1, seed=7)[0]
    for predictive in (draws, quantiles):
        for method in ("absolute", "normalised", "quantile"):
            half = predictive.at(slice(0, 150))
            lower, upper = conformal.calibrate_intervals(half, y[:150], alpha=0.2, method=method).intervals(
                predictive.at(slice(150, None))
            )
            inside = float(((lower <= y[150:]) & (y[150:] <= upper)).double().mean())
            assert abs(inside - 0.8) < 5 * (0.16 / 150 * 2) ** 0.5
        with mpl.rc_context({"backend": "agg"}):
            panels = regression_bands({"outside": predictive, "ours": gaussian}, torch.arange(N)).axes
            assert [len(panel.collections) for panel in panels] == [1, 2]
            interval_calibration({"outside": calibration.probability_integral_transform(predictive, y, seed=0)})


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: EmpiricalPredictive.from_draws([[1.0, 2.0]]), "at least two draws"),
        (lambda: EmpiricalPredictive.from_draws([1.0, 2.0]), r"\(S, N, D\)"),
        (lambda: EmpiricalPredictive.from_draws([[1.0], [math.nan]]), "draws"),
        (lambda: EmpiricalPredictive.from_draws([[1.5], [2.0]], is_discrete=True), "whole numbers"),
        (lambda: EmpiricalPredictive.from_quantiles([0.5], [[1.0]]), "at least two"),
        (lambda: EmpiricalPredictive.from_quantiles([0.9, 0.1], [[1.0], [2.0]]), "rising"),
        (lambda: EmpiricalPredictive.from_quantiles([0.0, 0.5], [[1.0], [2.0]]), "above 0"),
        (lambda: EmpiricalPredictive.from_quantiles([0.1, 0.5], [[1.0]]), "K = 2"),
        (
            lambda: EmpiricalPredictive.from_quantiles([0.1, 0.5], [[1.0], [2.0]]).rescale(
                torch.tensor(0.0), torch.tensor(-1.0)
            ),
            "above 0",
        ),
    ],
)
def test_what_is_no_draw_and_no_quantile_is_refused(make, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        make()


def test_quantiles_that_cross_are_put_in_order_with_a_word() -> None:
    with pytest.warns(UserWarning, match="cross at 1 of 2 targets") as warned:
        known = EmpiricalPredictive.from_quantiles([0.1, 0.5, 0.9], [[0.0, 0.0], [2.0, 1.0], [1.0, 2.0]])
    assert warned[0].filename == __file__
    assert torch.equal(known.quantile(0.5), torch.ones(2, 1, dtype=torch.float64))
