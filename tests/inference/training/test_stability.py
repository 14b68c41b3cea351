"""The largest curvature: eigenvalues that are known."""

import math

import pytest
import torch

from bayesuq.inference.training.stability import largest_curvature, largest_curvatures
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


def test_several_functions_at_once_have_the_curvatures_of_each():
    """One that is linear, one that is not finite and one in other units beside it change nothing of a row."""
    tops = [5.0, 0.0, math.nan, -1e6]
    matrices = torch.stack([top * hessian(row, 6, 1.0) for row, top in enumerate(tops)])
    scales = torch.rand(4, 6, dtype=torch.float64, generator=generator(1)) + 0.5
    found = largest_curvatures(
        lambda rows: 0.5 * torch.einsum("cp,cpq,cq->c", rows, matrices, rows) + rows.sum(dim=1),
        noise(1, 4, 6),
        [generator(row) for row in range(4)],
        scales=scales,
    )
    for row, matrix in enumerate(matrices):
        alone = largest_curvature(
            lambda u, matrix=matrix: 0.5 * u @ matrix @ u, noise(1, 4, 6)[row], generator(row), scales=scales[row]
        )
        assert float(found[row]) == pytest.approx(alone, rel=1e-12)
    assert found.tolist()[1:3] == [0, math.inf]
