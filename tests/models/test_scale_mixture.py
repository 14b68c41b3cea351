"""The kernel of a scale mixture against its law and autograd."""

import math

import pytest
import torch
from torch import Tensor

from bayesuq.models import priors
from bayesuq.models.scale_mixture import BLOCK

MIXTURES = {
    "the default": priors.ScaleMixture(),
    "narrow first": priors.ScaleMixture((0.01, 2.0), (0.3, 0.7)),
    "nearly one": priors.ScaleMixture((1.0, 1.0001), (0.9, 0.1)),
    "three": priors.ScaleMixture((1.0, 0.1, 0.01), (0.5, 0.3, 0.2)),
    "one": priors.ScaleMixture((0.7,), (1.0,)),
    "farther apart than floats": priors.ScaleMixture((1.0, 1e-40), (0.5, 0.5)),
}


def values(size: int) -> Tensor:
    """From the narrow peak to far out, with zeros."""
    w = torch.randn(size, dtype=torch.float64) * torch.logspace(-4, 1.5, size, dtype=torch.float64)
    w[::7] = 0.0
    return w


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("size", [1, 50, BLOCK + 3])
def test_the_kernel_is_the_law_and_its_gradient_autograd_s(name: str, size: int) -> None:
    law = MIXTURES[name].entry(torch.zeros((), dtype=torch.float64))
    w = values(size).requires_grad_()
    expected = -law.log_prob(w).sum()
    (slope,) = torch.autograd.grad(expected, w)
    before = torch.randn(size, dtype=torch.float64)
    gradient = before.clone()
    energy = law.kernel().energy(w.detach(), gradient, weight=0.3)
    torch.testing.assert_close(energy, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, before + 0.3 * slope, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("far", [0.0, 1e-30, 1e3, 1e10])
def test_single_precision_is_finite_far_out_and_at_the_peak(far: float) -> None:
    law = priors.ScaleMixture().entry(torch.zeros(()))
    gradient = torch.zeros(1)
    energy = law.kernel().energy(torch.tensor([far]), gradient)
    assert energy.isfinite()
    assert gradient.item() == pytest.approx(far * (1.0 if far > 1 else math.exp(12)), rel=0.01, abs=1e-9)
