"""The largest curvature: eigenvalues that are known."""

import math

import pytest
import torch

from bayesuq.inference.training.stability import largest_curvature
from bayesuq.randomness import generator
from tests.inference.examples import noise


def hessian(seed: int, size: int, top: float) -> torch.Tensor:
    basis = torch.linalg.qr(noise(seed, size, size)).Q
    return basis @ torch.diag(torch.linspace(0.1, 1.0, size, dtype=torch.float64) ** 2 * top) @ basis.T


@pytest.mark.parametrize("top", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("sign", [1, -1])
def test_power_iterations_find_the_largest_eigenvalue_of_a_quadratic(top, sign):
    matrix = sign * hessian(0, 12, top)
    found = largest_curvature(lambda u: 0.5 * u @ matrix @ u + 3 * u.sum(), noise(1, 12), generator(0))
    assert 0.9 * top < found < (1 + 1e-9) * top  # never above: |H v| <= max |lambda| for a unit v


def test_scales_change_the_units():
    matrix, scales = hessian(0, 6, 5.0), torch.linspace(0.5, 2.0, 6, dtype=torch.float64)
    expected = float(torch.linalg.eigvalsh(scales[:, None] * matrix * scales).max())
    found = largest_curvature(lambda u: 0.5 * u @ matrix @ u, noise(1, 6), generator(0), scales=scales)
    assert 0.9 * expected < found < (1 + 1e-9) * expected


@pytest.mark.parametrize("at", [0.0, 2.0])
def test_the_curvature_is_that_of_where_one_stands(at):
    where = torch.full((1,), at, dtype=torch.float64)
    found = largest_curvature(lambda u: u.cosh().sum(), where, generator(0))
    assert found == pytest.approx(math.cosh(at), rel=1e-12)


def test_a_line_has_none_and_what_is_not_finite_has_no_end():
    assert largest_curvature(lambda u: u.sum(), noise(0, 3), generator(0)) == 0
    assert largest_curvature(lambda u: (u * math.nan).square().sum(), noise(0, 3), generator(0)) == math.inf
