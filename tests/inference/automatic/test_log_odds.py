"""One number for all levels: found where it is known, near 1 where it is not, right for a pool that is too wide."""

import pytest
import torch

import bayesuq as bq
from bayesuq.inference.automatic.log_odds import log_odds_factor, log_odds_levels
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.recalibrated import RecalibratedPredictive


def scaled(uniform: torch.Tensor, factor: float) -> torch.Tensor:
    """R^-1 of uniform levels."""
    return torch.sigmoid(torch.logit(uniform) / factor)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.7])
def test_the_factor_that_levels_were_made_with_is_found(factor: float) -> None:
    levels = scaled((torch.arange(2000).double() + 0.5) / 2000, factor)
    assert log_odds_factor(levels) == pytest.approx(factor, rel=0.03)  # it is held to 1 as by 70 rows


def test_no_other_factor_is_more_probable() -> None:
    levels = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = torch.tensor(log_odds_factor(levels, 0.3)).double()

    def log_posterior(factor: torch.Tensor) -> torch.Tensor:
        odds = torch.logit(levels)
        slopes = factor.log() + torch.nn.functional.logsigmoid(factor * odds)
        slopes = slopes + torch.nn.functional.logsigmoid(-factor * odds)
        return slopes.sum() - factor.log().square() / (2 * 0.3**2)

    assert all(log_posterior(found) > log_posterior(found * by) for by in (0.97, 1.03))


@pytest.mark.parametrize(
    ("level", "number", "least", "most"),
    [(0.5, 1, 1.0, 1.02), (0.0, 1, 0.7, 0.9), (0.5, 99, 1.99, 2.01), (0.0, 99, 0.49, 0.51)],
)
def test_few_rows_leave_levels_nearly_as_they_are(level: float, number: int, least: float, most: float) -> None:
    assert least < log_odds_factor(torch.full((number,), level)) < most


def test_the_map_has_pieces_of_equal_probability_and_the_log_odds_of_the_factor() -> None:
    knots, levels = (torch.tensor(each, dtype=torch.float64) for each in log_odds_levels(1.6, 20))
    torch.testing.assert_close(levels.diff(), torch.full((20,), 0.05).double())
    torch.testing.assert_close(torch.logit(levels[1:-1]), 1.6 * torch.logit(knots[1:-1]), rtol=1e-9, atol=1e-9)


def test_a_pool_of_laws_that_are_calibrated_each_is_too_wide_and_is_mended() -> None:
    # y = a + b + e: one law knows a, the other b, and each is calibrated; their pool is not (Ranjan and Gneiting 2010).
    a, b, rest = torch.randn(3, 4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pool = GaussianPredictive(mean=torch.stack([a, b]), noise_variance=1 + 0.3**2)
    y = a + b + 0.3 * rest
    first, last = slice(0, 2000), slice(2000, 4000)
    factor = log_odds_factor(pool.at(first).cdf(y[first]).flatten())
    mended = RecalibratedPredictive(pool, *log_odds_levels(factor)).at(last)

    def coverage(predictive: bq.predictive.RealPredictive) -> float:
        lower, upper = predictive.interval(0.9)
        return float(((y[last] > lower) & (y[last] < upper)).double().mean())

    assert coverage(pool.at(last)) > 0.93  # a standard error is 0.007
    assert abs(coverage(mended) - 0.9) < 0.02
    assert mended.log_prob(y[last]).mean() > pool.at(last).log_prob(y[last]).mean() + 0.01
