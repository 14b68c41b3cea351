"""The tail shape of importance ratios is ArviZ's own, and that of known tails."""

import math

import numpy as np
import pytest

from bayesuq import optional
from bayesuq.pareto import tail_shape
from bayesuq.to_arviz.container import IS_ARVIZ_BEFORE_1


def arviz_k(ratios):
    """Pareto k by ArviZ, of the same ratios.

    0.x rounds the number of ratios in the tail up, as the paper's authors do in their packages loo and posterior. 1.3
    rounds it down above 225 draws: with two more draws, the smallest, it takes the tail that ours has without them
    (3 sqrt(498) up and 3 sqrt(500) down are 67). It has NaN where the first quarter of a tail is too small for a float.
    """
    if IS_ARVIZ_BEFORE_1:
        return optional.arviz.psislw(ratios)[1]
    from arviz_stats.base import array_stats

    tail = 3 * math.sqrt(len(ratios))
    smallest = [] if len(ratios) <= 225 or tail.is_integer() else [ratios.min()] * 2
    return array_stats.psislw(-np.concatenate([smallest, ratios]))[1]


@pytest.mark.oracle
@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0, 30.0, 1000.0])
@pytest.mark.parametrize("size", [40, 100, 498])
def test_k_is_that_of_arviz(scale, size):
    ratios = scale * np.random.default_rng(size).standard_normal(size) + 1e4
    expected = arviz_k(ratios)
    if np.isnan(expected):
        assert scale == 1000.0
        assert tail_shape(ratios) > 10  # the mean of the ratios does not exist from 1 on
    else:
        assert tail_shape(ratios) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("k", [0.2, 0.5, 1.0])
def test_k_of_a_pareto_tail_is_its_shape(k):
    found = [tail_shape(np.log(np.random.default_rng(seed).pareto(1 / k, 5000))) for seed in range(20)]
    assert np.mean(found) == pytest.approx(k, abs=0.06)  # sd of one: .1, and .02 of pull towards .5
    assert tail_shape(np.array([0.0] * 50 + [1.0])) == np.inf
