"""The tail shape of importance ratios is ArviZ's own, and that of known tails."""

import numpy as np
import pytest

from bayesuq.evaluation.diagnostics import pareto_k
from bayesuq.pareto import tail_shape


@pytest.mark.oracle
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, 30.0, 1000.0])
@pytest.mark.parametrize("size", [40, 100, 500])
def test_k_is_that_of_arviz(scale, size):
    ratios = scale * np.random.default_rng(size).standard_normal(size) + 1e4
    assert tail_shape(ratios) == pytest.approx(pareto_k(ratios), rel=1e-8)


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_k_of_a_pareto_tail_is_its_shape(k):
    found = [tail_shape(np.log(np.random.default_rng(seed).pareto(1 / k, 5000))) for seed in range(20)]
    assert np.mean(found) == pytest.approx(k, abs=0.06)  # sd of one: .1, and .02 of pull towards .5
    assert tail_shape(np.array([0.0] * 50 + [1.0])) == np.inf
