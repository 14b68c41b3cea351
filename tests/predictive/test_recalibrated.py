"""Recalibrated quantiles: density, moments, parts and draws against numerical integration of the definition."""

import math

import pytest
import torch
from torch import Tensor

from bayesuq.evaluation.calibration import interval_coverage, probability_integral_transform
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.evaluation.scores import crps, interval_score, negative_log_likelihood, root_mean_squared_error
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.recalibrated import RecalibratedPredictive

KNOTS, LEVELS = (0.0, 0.05, 0.3, 0.8, 1.0), (0.0, 0.2, 0.4, 0.65, 1.0)
GRID = torch.linspace(-30, 30, 120_001, dtype=torch.float64)  # steps of .0005: integrals to some 1e-4
STEP = float(GRID[1] - GRID[0])


def base(num_draws: int = 3, num_points: int = 2) -> GaussianPredictive:
    noise = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(num_draws, num_points, 1, generator=noise, dtype=torch.float64)
    variance = 0.3 + torch.rand(num_draws, num_points, 1, generator=noise, dtype=torch.float64)
    return GaussianPredictive(mean=means, noise_variance=variance)


def on_grid(predictive: RecalibratedPredictive, point: int) -> Tensor:
    """The density of one point's target at each value of the grid, by the definition, (S, G)."""
    means, variances = (part[:, point] for part in (predictive.base.component_means, predictive.base.noise_variance))
    parts = torch.exp(-((GRID - means) ** 2) / (2 * variances)) / (math.tau * variances).sqrt() / len(means)
    cdf = torch.special.ndtr((GRID - means) / variances.sqrt()).mean(dim=0)
    weight = torch.zeros_like(cdf)
    for k in range(len(KNOTS) - 1):
        slope = (LEVELS[k + 1] - LEVELS[k]) / (KNOTS[k + 1] - KNOTS[k])
        weight[(cdf >= KNOTS[k]) & (cdf < KNOTS[k + 1])] = slope
    return parts * weight


def test_density_and_cdf_are_the_definitions_and_integrate_to_one() -> None:
    predictive = RecalibratedPredictive(base(), KNOTS, LEVELS)
    for point in range(2):
        density = on_grid(predictive, point).sum(dim=0)
        at = GRID[::4000]
        many = RecalibratedPredictive(
            GaussianPredictive(
                mean=predictive.base.component_means[:, point : point + 1].expand(-1, len(at), -1),
                noise_variance=predictive.base.noise_variance[:, point : point + 1].expand(-1, len(at), -1),
            ),
            KNOTS,
            LEVELS,
        )
        torch.testing.assert_close(many.log_prob(at).exp(), density[::4000], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(many.cdf(at)[:, 0], density.cumsum(0)[::4000] * STEP, rtol=0, atol=2e-3)
        components = many.component_log_prob(at).logsumexp(dim=0) - math.log(3)
        torch.testing.assert_close(components, many.log_prob(at))
        assert float(density.sum() * STEP) == pytest.approx(1.0, abs=2e-3)


def test_moments_and_their_parts_are_integrals_of_the_density() -> None:
    predictive = RecalibratedPredictive(base(), KNOTS, LEVELS)
    for point in range(2):
        parts = on_grid(predictive, point)
        share = parts.sum(dim=1) * STEP
        means = (parts * GRID).sum(dim=1) * STEP / share
        variances = (parts * (GRID - means[:, None]) ** 2).sum(dim=1) * STEP / share
        mean = (share * means).sum()
        assert float(predictive.mean[point]) == pytest.approx(float(mean), abs=5e-3)
        assert float(predictive.aleatoric[point]) == pytest.approx(float((share * variances).sum()), rel=5e-3)
        expected = float((share * (means - mean) ** 2).sum())
        assert float(predictive.epistemic[point]) == pytest.approx(expected, rel=5e-3)
    torch.testing.assert_close(predictive.total, predictive.aleatoric + predictive.epistemic)


def test_moments_are_the_same_of_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = (RecalibratedPredictive(base(4, 7), KNOTS, LEVELS) for _ in range(2))
    at_once = whole.mean, whole.aleatoric, whole.epistemic
    monkeypatch.setattr("bayesuq.predictive.recalibrated.BLOCK_NUMBERS", 2 * 4 * len(KNOTS))  # two rows
    for found, truth in zip((pieces.mean, pieces.aleatoric, pieces.epistemic), at_once, strict=True):
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)


def test_the_identity_map_changes_nothing() -> None:
    plain = base()
    same = RecalibratedPredictive(plain, (0.0, 0.3, 1.0), (0.0, 0.3, 1.0))
    y = torch.tensor([0.3, -1.0])
    for name in ("mean", "aleatoric", "epistemic", "total"):
        torch.testing.assert_close(getattr(same, name), getattr(plain, name))
    for name in ("log_prob", "cdf", "component_log_prob"):
        torch.testing.assert_close(getattr(same, name)(y), getattr(plain, name)(y))
    torch.testing.assert_close(same.quantile(0.7), plain.quantile(0.7))
    torch.testing.assert_close(same.sample(5, seed=1), plain.sample(5, seed=1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(crps(same, y), crps(plain, y), rtol=1e-3, atol=0)


def test_the_variance_of_the_function_stays_epistemic() -> None:
    means = torch.zeros(1, 1, 1)
    plain = GaussianPredictive(mean=means, noise_variance=1.0, function_variance=3.0)
    wide = RecalibratedPredictive(plain, (0.0, 0.25, 0.75, 1.0), (0.0, 0.4, 0.6, 1.0))
    assert float(wide.total) > 4.0
    assert float(wide.epistemic / wide.total) == pytest.approx(0.75)


@pytest.mark.parametrize("level", [0.01, 0.2, 0.4, 0.5, 0.9, 0.999])
def test_quantiles_invert_the_cdf(level: float) -> None:
    predictive = RecalibratedPredictive(base(), KNOTS, LEVELS)
    torch.testing.assert_close(predictive.cdf(predictive.quantile(level)), torch.full((2, 1), level).double())


@pytest.mark.parametrize("by_component", [False, True])
def test_draws_have_the_moments_of_the_law(by_component: bool) -> None:
    count = 20_000
    single = base(1)
    many = RecalibratedPredictive(single, KNOTS, LEVELS)
    if by_component:
        drawn = torch.cat([many.component_sample(seed=seed) for seed in range(2000)])
    else:
        spread = GaussianPredictive(
            mean=single.component_means[:, :1].expand(1, count, 1),
            noise_variance=single.noise_variance[:, :1].expand(1, count, 1),
        )
        drawn = RecalibratedPredictive(spread, KNOTS, LEVELS).sample(1, seed=0)[0][:, None]
    number = len(drawn)
    for level in (0.1, 0.2, 0.5, 0.65, 0.9):
        share = (drawn[:, 0, 0] <= many.quantile(level)[0]).double().mean()
        assert abs(float(share) - level) < 4 * (level * (1 - level) / number) ** 0.5


def test_points_share_a_component_within_a_sample() -> None:
    apart = GaussianPredictive(mean=torch.tensor([[[-5.0], [-5.0]], [[5.0], [5.0]]]), noise_variance=0.1)
    drawn = RecalibratedPredictive(apart, KNOTS, LEVELS).sample(200, seed=0)[..., 0]
    base_drawn = apart.sample(200, seed=0)[..., 0]
    assert torch.equal(base_drawn[:, 0].sign(), base_drawn[:, 1].sign())
    assert ((drawn[:, 0] - drawn[:, 1]).abs() < 4).double().mean() > 0.8  # .15 are moved from one mode to the other


def test_rescaling_has_the_jacobian_and_keeps_levels() -> None:
    predictive = RecalibratedPredictive(base(), KNOTS, LEVELS)
    loc, scale = torch.tensor([2.0]).double(), torch.tensor([3.0]).double()
    moved = predictive.rescale(loc, scale)
    y = torch.tensor([[0.3], [-1.0]]).double()
    torch.testing.assert_close(moved.log_prob(loc + scale * y), predictive.log_prob(y) - math.log(3))
    torch.testing.assert_close(moved.mean, loc + scale * predictive.mean)
    torch.testing.assert_close(moved.epistemic, 9 * predictive.epistemic)
    with pytest.raises(ValueError, match="above 0"):
        predictive.rescale(loc, -scale)


def test_a_mean_far_from_zero_is_as_exact_as_its_components() -> None:
    """Seconds since 1970, of days: the masses of all parts sum to 1 but for the tolerance of the quantiles."""
    predictive, far = RecalibratedPredictive(base(), KNOTS, LEVELS), torch.tensor([1e9]).double()
    moved = predictive.rescale(far, torch.ones(1).double())
    torch.testing.assert_close(moved.mean - far, predictive.mean, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.total, predictive.total, rtol=1e-4, atol=0)


def test_points_join_under_one_map_and_mixtures_do_not() -> None:
    predictive = RecalibratedPredictive(base(), KNOTS, LEVELS)
    twice = RecalibratedPredictive.concatenate([predictive, predictive.to("cpu")])
    torch.testing.assert_close(twice.mean, predictive.mean.repeat(2, 1))
    with pytest.raises(ValueError, match="same map"):
        RecalibratedPredictive.concatenate([predictive, RecalibratedPredictive(base(), LEVELS, KNOTS)])
    with pytest.raises(NotImplementedError, match="Mix the posteriors first"):
        predictive.merge(predictive)


def test_every_measure_of_real_targets_takes_it() -> None:
    predictive = RecalibratedPredictive(base(2, 60), KNOTS, LEVELS)
    y = predictive.sample(1, seed=3)[0]
    report = evaluate(predictive, y)
    assert report["negative_log_likelihood"].value == pytest.approx(float(negative_log_likelihood(predictive, y)))
    assert "200 quantiles" in str(report)
    assert float(interval_coverage(predictive, y, 0.8)) == pytest.approx(0.8, abs=4 * (0.16 / 60) ** 0.5)
    assert float(probability_integral_transform(predictive, y).min()) >= 0
    assert float(root_mean_squared_error(predictive, y)) > 0
    assert float(interval_score(predictive, y, 0.9)) > 0


@pytest.mark.parametrize(
    ("knots", "levels", "says"),
    [
        ((0.0, 0.5, 0.5, 1.0), (0.0, 0.2, 0.4, 1.0), "`knots` must rise from 0 to 1"),
        ((0.0, 0.5, 1.0), (0.1, 0.5, 1.0), "`levels` must rise from 0 to 1"),
        ((0.0, 1.0), (0.0, 0.5, 1.0), "as many; got 2 and 3"),
        ((0.0, math.nan, 1.0), (0.0, 0.5, 1.0), "`knots` must rise"),
    ],
)
def test_maps_that_do_not_rise_are_refused(knots: tuple[float, ...], levels: tuple[float, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RecalibratedPredictive(base(), knots, levels)


def test_other_predictives_are_refused() -> None:
    with pytest.raises(TypeError, match="must be a GaussianPredictive; got Tensor"):
        RecalibratedPredictive(torch.zeros(3), KNOTS, LEVELS)  # type: ignore[arg-type]
    columns = GaussianPredictive(mean=torch.zeros(1, 3, 2), noise_variance=1.0)
    with pytest.raises(ValueError, match="one target column; got 2"):
        RecalibratedPredictive(columns, KNOTS, LEVELS)
