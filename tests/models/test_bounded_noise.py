"""The bounds on the noise of HeteroscedasticNormal."""

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import map_estimate
from bayesuq.inference.gp.expectations import expected_log_prob
from bayesuq.models import BayesianNetwork, gp, priors
from bayesuq.models.likelihoods import HeteroscedasticNormal
from bayesuq.models.records import _built, _part

BOUNDED = [HeteroscedasticNormal(), HeteroscedasticNormal(0.05, 3.0), HeteroscedasticNormal(maximum_scale=0.01)]
G = torch.cat([torch.linspace(-60, 60, 2001), torch.tensor([-1e30, -1e4, 1e4, 1e30])]).double()


def column(g: Tensor, mean: float = 0.0) -> Tensor:
    """Network outputs of one target column, (N, 2)."""
    return torch.stack([torch.full_like(g, mean), g], dim=1)


@pytest.mark.parametrize("likelihood", BOUNDED, ids=str)
class TestBound:
    def test_lies_between_the_floor_and_the_ceiling(self, likelihood: HeteroscedasticNormal) -> None:
        variance = likelihood.log_variance(G).exp()
        floor = likelihood.minimum_scale**2
        assert (variance <= likelihood.maximum_scale**2 * (1 + 1e-12) + floor).all()
        assert (variance >= (1e-10 + floor) * (1 - 1e-12)).all()
        limits = likelihood.log_variance(torch.tensor([-1e30, 1e30]).double())
        expected = torch.tensor([1e-10 + floor, likelihood.maximum_scale**2 + floor], dtype=torch.float64).log()
        torch.testing.assert_close(limits, expected, rtol=1e-9, atol=1e-9)

    def test_changes_nothing_in_the_middle(self, likelihood: HeteroscedasticNormal) -> None:
        inside = G[(2 * math.log(2.2e-5) < G) & (2 * math.log(likelihood.maximum_scale / 2.2) > G)]
        assert len(inside) > 50
        plain = HeteroscedasticNormal(likelihood.minimum_scale, None)
        assert torch.equal(likelihood.log_variance(inside), plain.log_variance(inside))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_rises_with_a_slope_that_is_never_zero(self, likelihood: HeteroscedasticNormal, dtype: torch.dtype) -> None:
        bare = HeteroscedasticNormal(maximum_scale=likelihood.maximum_scale)  # a floor's own slope falls as exp(g)
        g = G[G.abs() <= 1e4].to(dtype).sort().values.requires_grad_()
        bounded = bare.log_variance(g)
        (slope,) = torch.autograd.grad(bounded.sum(), g)
        assert (bounded.diff() >= 0).all()
        assert (slope > 0).all()
        torch.testing.assert_close(slope, bare.log_variance_slope(g.detach()), rtol=1e-4, atol=0)

    def test_has_the_slope_that_it_says(self, likelihood: HeteroscedasticNormal) -> None:
        g = torch.linspace(-30, 20, 400, dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(likelihood.log_variance(g).sum(), g)
        torch.testing.assert_close(slope, likelihood.log_variance_slope(g.detach()), rtol=1e-9, atol=1e-12)
        step = 1e-5
        difference = (likelihood.log_variance(g + step) - likelihood.log_variance(g - step)) / (2 * step)
        torch.testing.assert_close(slope, difference, rtol=1e-4, atol=1e-5)

    def test_is_the_same_in_density_law_predictive_and_curvature(self, likelihood: HeteroscedasticNormal) -> None:
        f, y = column(G[::40].clone(), mean=0.3), torch.linspace(-2, 2, len(G[::40])).double().unsqueeze(1)
        log_prob = likelihood.log_prob(f, y)
        torch.testing.assert_close(likelihood.distribution(f).log_prob(y), log_prob, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(likelihood.predictive(f[None]).log_prob(y), log_prob, rtol=1e-9, atol=1e-9)
        # The expected square of the score, by the law of its own: E (d log p / d g)^2 = slope^2 / 2.
        root = likelihood.fisher_root(f)
        torch.testing.assert_close(root[:, 1, 1], likelihood.log_variance_slope(f[:, 1]) / math.sqrt(2))
        scale = likelihood.distribution(f).base_dist.scale[:, 0]
        torch.testing.assert_close(root[:, 0, 0], 1 / scale)


def test_without_a_ceiling_it_is_as_it_was() -> None:
    g = torch.tensor([-40.0, 0.0, 40.0]).double()
    assert torch.equal(HeteroscedasticNormal(maximum_scale=None).log_variance(g), g)
    old = HeteroscedasticNormal(0.05, None)
    torch.testing.assert_close(old.log_variance(g).exp(), g.exp() + 0.05**2)


def test_a_file_from_before_keeps_its_meaning() -> None:
    old = {"part": "likelihoods.HeteroscedasticNormal", "minimum_scale": 0.05}
    assert _built(old) == HeteroscedasticNormal(0.05, None)
    for likelihood in (HeteroscedasticNormal(), HeteroscedasticNormal(maximum_scale=None)):
        assert _built(_part(likelihood)) == likelihood


@pytest.mark.parametrize("arguments", [(0.0, 0.0), (0.0, -1.0), (0.5, 1.0), (0.0, 5e-5), (0.0, math.inf)])
def test_bounds_that_leave_no_room_are_refused(arguments: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="maximum_scale"):
        HeteroscedasticNormal(*arguments)


@pytest.mark.filterwarnings("ignore:.*far from unit size:UserWarning")  # which is told of, too
@pytest.mark.parametrize("size", [1e-6, 1e4])
def test_a_y_that_the_bounds_do_not_suit_is_told_of_and_the_remedies_are_silent(size: float) -> None:
    x = torch.linspace(-1, 1, 30).unsqueeze(1)
    y = size * x

    def fit(y: Tensor, **options: float | None) -> None:
        model = BayesianNetwork(nn.Linear(1, 2), priors.Normal(), HeteroscedasticNormal(**options))
        map_estimate.fit(model, Dataset(x, y), num_epochs=1, seed=0)

    with pytest.warns(UserWarning, match=r"Standardise y .* `maximum_scale` of its size, or None"):
        fit(y)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The noise is bounded")
        fit(y / y.std())
        fit(y, maximum_scale=None)
        if size > 1:
            fit(y, maximum_scale=10 * size)


def test_processes_leave_the_default_away_and_take_another_by_quadrature() -> None:
    assert gp.GaussianProcess(likelihood=HeteroscedasticNormal()).likelihood.maximum_scale is None
    other = gp.GaussianProcess(likelihood=HeteroscedasticNormal(maximum_scale=2.0)).likelihood
    assert other.maximum_scale == 2
    mean, variance = torch.tensor([[0.3, 1.0]]).double(), torch.tensor([[0.2, 0.5]]).double()
    y, noise = torch.tensor([[1.0]]).double(), torch.Generator().manual_seed(0)
    found = expected_log_prob(other, mean, variance, y, None, noise, 10)
    eps = torch.randn(200_000, 2, generator=noise, dtype=torch.float64)
    terms = other.log_prob(mean + variance.sqrt() * eps, y.expand(200_000, 1))
    assert abs(found - terms.mean()) < 5 * terms.std() / math.sqrt(200_000)


def test_a_row_fifty_deviations_out_has_a_finite_predictive() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 1)
    y = x + x.exp() * torch.randn(100, 1)
    model = BayesianNetwork(nn.Linear(1, 2), priors.Normal(scale=3.0), HeteroscedasticNormal())
    posterior = map_estimate.fit(model, Dataset(x, y / y.std()), num_epochs=30, learning_rate=0.1, seed=0)
    far = posterior.predict(torch.tensor([[-1e4], [50.0], [1e4]]))
    assert far.aleatoric.max() <= 100.01
    assert far.log_prob(torch.zeros(3)).isfinite().all()


@pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)])
@pytest.mark.parametrize("bounds", [{}, {"minimum_scale": 0.1}, {"maximum_scale": None}])
def test_slopes_that_are_written_out_are_autograds_and_a_subclass_has_its_own(bounds: Any, weight: Any) -> None:
    class Doubled(HeteroscedasticNormal):
        def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
            return 2 * super().elementwise_log_prob(f, y)

    f = torch.tensor([[0.3, -20.0], [1.0, -1.0], [-2.0, 3.0], [0.0, 9.0]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0.3 + 1e-5], [0.0], [1.0], [2.0]], dtype=torch.float64)
    expected = HeteroscedasticNormal(**bounds).log_prob(f, y, weight)
    (slope,) = torch.autograd.grad(expected.sum(), f)
    for likelihood, factor in ((HeteroscedasticNormal(**bounds), 1), (Doubled(**bounds), 2)):
        found = likelihood.log_prob_and_slope(f.detach(), y, weight)
        torch.testing.assert_close(found[0], factor * expected.detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[1], factor * slope, rtol=1e-10, atol=1e-10)
