"""Quantiles of normal mixtures against bisection, over mixtures on which a step of Newton's goes astray."""

import math

import pytest
import torch
from torch import Tensor

from bayesuq.predictive import quantiles
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.quantiles import normal_mixture_quantiles

LEVELS = (1e-12, 1e-4, 0.05, 0.3, 0.5, 0.61, 0.95, 1 - 1e-9)
EPS = 2.0**-52
N = 20


def laws(name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Means and scales, (S, N) or what broadcasts to it, and weights."""
    torch.manual_seed(0)
    means, scales = torch.randn(30, N).double(), torch.rand(30, N).double() + 0.2
    equal = torch.full((30,), 1 / 30, dtype=torch.float64)
    pair = torch.tensor([[-1e3], [1e3]], dtype=torch.float64).expand(2, N)
    wild = torch.where(torch.rand(30, N) < 0.1, 1e6, 1.0).double()
    return {
        "one": (means[:1], scales[:1], torch.ones(1, dtype=torch.float64)),
        "equal draws": (means[:1].expand(30, N).clone(), scales[:1, :1], equal),
        "scattered": (means, scales, equal),
        "one noise": (5 * means, scales[:1, :1], equal),
        "a noise a draw": (means, scales[:, :1], equal),
        "a noise a row": (means, scales[:1], equal),
        "two far modes": (pair, torch.ones(1, 1, dtype=torch.float64), torch.tensor([0.5, 0.5]).double()),
        "weights": (means, scales, torch.arange(1, 31).double() / 465),
        "heavy tails": (means, scales * wild, equal),
        "narrow beside wide": (means, torch.logspace(-9, 3, 30).double().unsqueeze(1), equal),
        "tiny": (1e-140 * means, 1e-140 * scales, equal),
        "large": (1e140 * means, 1e140 * scales, equal),
        "far from zero": (1e6 + means, scales, equal),
        "islands": (means, torch.full((1, 1), 1e-3, dtype=torch.float64), torch.arange(1, 31).double() / 465),
        "of float32": (means.float().double(), scales.float().double(), equal),
    }[name]


ZOO = ("one", "equal draws", "scattered", "one noise", "a noise a draw", "a noise a row", "two far modes", "weights")
ODD = ("heavy tails", "narrow beside wide", "tiny", "large", "far from zero", "islands", "of float32")


def tail(means: Tensor, scales: Tensor, weights: Tensor, point: Tensor, *, upper: bool) -> Tensor:
    standard = (point - means) / scales * (1 if upper else -1)
    return weights @ torch.erfc(math.sqrt(0.5) * standard).expand(len(weights), -1) / 2


@pytest.mark.parametrize("name", [*ZOO, *ODD])
def test_quantiles_of_normal_mixtures_are_those_of_bisection(name: str) -> None:
    means, scales, weights = laws(name)
    found = normal_mixture_quantiles(means, scales, weights, LEVELS)
    for level, quantile in zip(LEVELS, found, strict=True):
        upper = level > 0.5
        wanted = 1 - level if upper else level
        standard = torch.special.ndtri(torch.tensor(level, dtype=torch.float64))
        lower, above = (means + scales * standard).aminmax(dim=0)
        for _ in range(120):  # 53 bits, and the 40 from the widest law to the narrowest
            middle = lower / 2 + above / 2
            short = tail(means, scales, weights, middle, upper=upper) > wanted
            short = short if upper else ~short
            lower, above = torch.where(short, middle, lower), torch.where(short, above, middle)
        # The cdf's own rounding, relative, is that of some thirty terms whose arguments are rounded, and moves its root
        # by as much over the density; the points themselves have 53 bits.
        rounding = 40 * EPS * (1 + float(standard) ** 2) * wanted
        shift = 4 * EPS * (quantile.abs() + means.abs().amax(dim=0))
        reached = [tail(means, scales, weights, quantile + by, upper=upper) for by in (-shift, shift)]
        low, high = torch.stack(reached).aminmax(dim=0)
        near = (low <= wanted + rounding) & (high >= wanted - rounding)
        assert (near | ((quantile - lower).abs() <= shift)).all(), level


def test_quantiles_take_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, numbers = quantiles._tail_density_slope, list[int]()

    def counted(means: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        numbers.append(means.numel())
        return plain(means, *rest)

    monkeypatch.setattr(quantiles, "_tail_density_slope", counted)
    means, scales, weights = laws("scattered")
    levels = [place / 20 for place in range(1, 20)]
    normal_mixture_quantiles(means, scales, weights, levels)
    assert sum(numbers) <= 3 * len(levels) * means.numel()
    numbers.clear()
    means, scales, weights = laws("two far modes")
    normal_mixture_quantiles(means, scales, weights, levels)
    assert sum(numbers) <= 12 * len(levels) * means.numel()


def test_quantiles_at_are_quantiles_and_move_with_the_components() -> None:
    torch.manual_seed(0)
    means = torch.randn(5, 3, 2, dtype=torch.float64, requires_grad=True)
    noise = (torch.rand(5, 1, 2, dtype=torch.float64) + 0.1).requires_grad_()
    whole = GaussianPredictive(mean=means.detach(), noise_variance=noise.detach())
    together = whole.quantiles_at((0.1, 0.8))
    assert all(torch.equal(one, whole.quantile(level)) for one, level in zip(together, (0.1, 0.8), strict=True))
    assert whole.quantiles_at(()) == []

    def quantile(means: Tensor, noise: Tensor) -> Tensor:
        return GaussianPredictive._of(means, noise, torch.zeros(1, 1, 1), None).quantile(0.8)

    assert torch.autograd.gradcheck(quantile, (means, noise))
