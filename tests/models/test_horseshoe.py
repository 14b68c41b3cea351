"""The horseshoe's density against scipy, its derivative, its mass, and its draws."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import torch
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck
from torch.distributions import biject_to

from bayesuq.models import priors
from bayesuq.models.horseshoe import CORE, HorseshoeLaw, log_scaled_exponential_integral
from bayesuq.randomness import isolated


def law(scale: float = 1.0, dtype: torch.dtype = torch.float64) -> HorseshoeLaw:
    return priors.Horseshoe(scale).entry(torch.zeros((), dtype=dtype))


def test_the_exponential_integral_is_scipy_s_at_all_sizes() -> None:
    u = torch.logspace(-9, 2.8, 4000, dtype=torch.float64)  # up to 630, where E1 itself still is a number
    expected = np.log(scipy.special.exp1(u.numpy())) + u.numpy()
    np.testing.assert_allclose(log_scaled_exponential_integral(u).numpy(), expected, rtol=0, atol=3e-13)
    far = torch.logspace(3, 12, 50, dtype=torch.float64)
    asymptotic = -far.log() + torch.log1p(-1 / far + 2 / far**2 - 6 / far**3)
    torch.testing.assert_close(log_scaled_exponential_integral(far), asymptotic, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_the_density_is_the_mixture_over_local_scales(scale: float) -> None:
    for w in (0.01, 0.3, 1.0, 4.0, 50.0):

        def component(angle: float, w: float = w) -> float:  # lambda = tan(angle): the half-Cauchy is uniform over it
            return stats.norm.pdf(w, scale=scale * math.tan(angle)) * 2 / math.pi

        expected, _ = scipy.integrate.quad(component, 0, math.pi / 2, epsabs=1e-13, epsrel=1e-11, limit=500)
        assert law(scale).log_prob(torch.tensor(w).double()).exp().item() == pytest.approx(expected, rel=1e-6)


def test_the_density_integrates_to_one_but_for_its_core() -> None:
    t = torch.linspace(math.log(CORE), math.log(1e9), 400_001, dtype=torch.float64)
    tails = 2 * torch.trapezoid((law().log_prob(t.exp()) + t).exp(), t)
    core = 2 * CORE * law().log_prob(torch.zeros(()).double()).exp()
    missing = 4 * CORE / math.sqrt(2 * math.pi**3)  # 2 int_0^core of p(w) - p(core), p being near -2 K log w there
    assert 1 - (tails + core).item() == pytest.approx(missing, rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_density_and_its_slope_are_finite_everywhere(dtype: torch.dtype) -> None:
    w = torch.tensor([0.0, 1e-30, 1e-5, 1.0, 1e5, 1e15]).to(dtype).requires_grad_()
    value = law(dtype=dtype).log_prob(w)
    (slope,) = torch.autograd.grad(value.sum(), w)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    tail = slope[-1] * w[-1].detach()  # of a density like 1 / w^2
    torch.testing.assert_close(tail, torch.tensor(-2.0, dtype=dtype), rtol=1e-4, atol=0)
    assert (value.diff() <= 0).all()


def test_the_derivative_agrees_with_finite_differences_also_under_vmap() -> None:
    w = torch.tensor([-30.0, -2.1, -1.99, -0.4, 0.01, 0.7, 1.9999, 2.5, 100.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(law(0.8).log_prob, w)
    (slope,) = torch.autograd.grad(law(0.8).log_prob(w).sum(), w)
    one_by_one = torch.func.vmap(torch.func.grad(law(0.8).log_prob))(w.detach())
    torch.testing.assert_close(one_by_one, slope, rtol=1e-12, atol=0)


def test_draws_follow_the_law() -> None:
    count = 20_000
    with isolated(0):
        draws = law(0.5).expand(torch.Size([count])).sample().abs()
    grid = torch.logspace(math.log10(0.5 * CORE), 6, 200_001, dtype=torch.float64)
    masses = 2 * torch.cumulative_trapezoid(law(0.5).log_prob(grid).exp(), grid)
    cdf = torch.cat([torch.zeros(1).double(), masses]) + 5e-4
    share = torch.as_tensor(np.interp(draws.numpy(), grid.numpy(), cdf.numpy()))
    assert stats.kstest(share.numpy(), "uniform").pvalue > 1e-3


def test_it_narrows_expands_and_maps_to_the_real_line() -> None:
    prior = priors.FanIn(priors.Horseshoe(2.0))
    whole = prior.distribution(torch.zeros(3, 4, dtype=torch.float64))
    w = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(whole.log_prob(w), law(1.0).log_prob(w).sum())
    assert torch.equal(biject_to(whole.support)(w), w)
    assert whole.mean.shape == (3, 4)
    assert whole.variance.isposinf().all()
    for bad in (0.0, -1.0, math.nan, "1"):
        with pytest.raises((ValueError, TypeError), match="`scale`"):
            priors.Horseshoe(bad)  # type: ignore[arg-type]


def shrinkage(prior: priors.Prior, w: float) -> Tensor:
    """How hard the prior pulls a weight to 0."""
    value = torch.tensor(w, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(prior.entry(value.detach()).log_prob(value), value)
    return -slope


def test_small_weights_are_pulled_harder_and_large_ones_let_go() -> None:
    horseshoe, normal = priors.Horseshoe(1.0), priors.Normal()
    assert shrinkage(horseshoe, 0.01) > 20 * shrinkage(normal, 0.01)
    assert shrinkage(horseshoe, 10.0) < 0.03 * shrinkage(normal, 10.0)
