"""A posterior with outliers: its density is the contaminated one, and its means and functions stay."""

from typing import Any

import pytest
import torch
from torch.distributions import Normal

import bayesuq as bq
from bayesuq.inference.automatic.outliers import OutlierPosterior, outlier_share


def lines(num_draws: int = 100) -> Any:
    """The line y* = x + e, e ~ N(0, 0.2^2), as equal draws."""
    model = bq.models.BayesianNetwork(
        torch.nn.Linear(1, 1), bq.models.priors.Normal(), bq.models.likelihoods.Normal(0.2)
    )
    return bq.from_samples(model, {"weight": torch.ones(1, num_draws, 1, 1), "bias": torch.zeros(1, num_draws, 1)})


def test_the_density_is_contaminated_and_a_row_far_off_costs_ten_nats() -> None:
    inner = lines()
    outer = OutlierPosterior(posterior=inner, share=0.03, scale=2.0)
    x, y = torch.zeros(3, 1), torch.tensor([[0.0], [0.5], [3.0]])
    found = outer.predict(x, seed=0)
    densities = 0.97 * Normal(0.0, 0.2).log_prob(y).exp() + 0.03 * Normal(0.0, 4.04**0.5).log_prob(y).exp()
    torch.testing.assert_close(found.log_prob(y), densities.log().flatten().double(), rtol=1e-5, atol=1e-5)
    plain = inner.predict(x, seed=0)
    assert plain.log_prob(y)[2] < -110 < -7 < found.log_prob(y)[2]
    assert torch.equal(found.mean, plain.mean)
    assert torch.equal(outer.functions(x, seed=0).mean, inner.functions(x, seed=0).mean)


@pytest.mark.parametrize(("num_draws", "wide"), [(10, 0), (100, 3), (1000, 30)])
def test_the_share_is_one_of_draws_taken_evenly(num_draws: int, wide: int) -> None:
    outer = OutlierPosterior(posterior=lines(num_draws), share=0.03, scale=1.0)
    found = outer.predict(torch.zeros(1, 1), num_samples=num_draws, seed=0)
    assert found.num_samples == num_draws
    assert int((found.component_variances > 1).sum()) == wide


def test_a_share_below_one_draw_repeats_the_laws_and_its_density_is_contaminated() -> None:
    inner, share = lines(), outlier_share(400, 0.04, 2.0)
    assert share == pytest.approx(0.001)  # a tenth of 0.04 over 2 squared, which is rarer than one row in 400
    outer = OutlierPosterior(posterior=inner, share=share, scale=2.0)
    x, y = torch.zeros(2, 1), torch.tensor([[0.1], [3.0]])
    found = outer.predict(x, seed=0)
    densities = 0.999 * Normal(0.0, 0.2).log_prob(y).exp() + 0.001 * Normal(0.0, 4.04**0.5).log_prob(y).exp()
    torch.testing.assert_close(found.log_prob(y), densities.log().flatten().double(), rtol=1e-5, atol=1e-5)
    assert len(found.laws.weights) == len(inner.predict(x).laws.weights) + 1  # which are held once
    torch.testing.assert_close(found.std, inner.predict(x).std * 1.1**0.5, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("number", "variance", "share"), [(50, 1.0, 0.02), (50, 0.01, 0.001), (50, 0.0, 0.0)])
def test_outliers_are_as_rare_as_rows_and_add_at_most_a_tenth_to_the_variance(
    number: int, variance: float, share: float
) -> None:
    assert outlier_share(number, variance, 1.0) == pytest.approx(share)
    outer = OutlierPosterior(posterior=lines(), share=share * 1e-9, scale=1.0)  # too rare to be kept
    assert outer.predict(torch.zeros(1, 1)).num_samples == 100
