"""Pareto k of importance ratios: against laws whose tail is known, and with no torch in sight.

This file also runs under ArviZ 1.x on Python 3.12 or later, where there is no torch.
"""

import math
import subprocess
import sys

import numpy as np
import pytest

from bayesuq.evaluation.diagnostics.pareto import pareto_k


@pytest.mark.parametrize("k", [0.3, 0.6, 0.9, 1.3])
def test_the_tail_of_pareto_ratios_is_found(k):
    """Ratios u^(-k) have a Pareto tail of shape k, which M tail draws show with an error of (1 + k) / sqrt(M)."""
    num_draws = 20_000
    uniform = np.random.default_rng(0).random(num_draws)
    tail = 3 * math.sqrt(num_draws)
    assert abs(pareto_k(-k * np.log(uniform)) - k) < 3 * (1 + k) / math.sqrt(tail)


@pytest.mark.parametrize(("scale", "k"), [(0.5, 0.75), (0.8, 0.36)])
def test_a_normal_that_is_too_narrow_has_the_tail_that_theory_gives(scale, k):
    """For p = N(0, 1) and q = N(0, s^2), P(ratio > t) falls as t^(-1 / k) with k = 1 - s^2, up to logarithms."""
    draws = scale * np.random.default_rng(1).standard_normal(100_000)
    ratios = -0.5 * draws**2 + 0.5 * (draws / scale) ** 2
    assert pareto_k(ratios) == pytest.approx(k, abs=0.15)  # the logarithms bend the tail: .08 was seen


def test_a_constant_in_the_ratios_changes_nothing():
    ratios = np.random.default_rng(2).standard_normal(500)
    assert pareto_k(ratios + 1234.5) == pytest.approx(pareto_k(ratios), abs=1e-6)


def test_an_exact_approximation_has_no_tail():
    assert pareto_k(np.full(100, -345.6)) == 0.0


def test_ratios_of_zero_are_taken():
    ratios = np.random.default_rng(3).standard_normal(500)
    ratios[:10] = -np.inf
    assert math.isfinite(pareto_k(ratios))


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        (np.zeros((4, 25)), r"shape \(S,\)"),
        (np.zeros(24), "at least 25"),
        ([math.nan] * 30, "NaN"),
        ([math.inf] * 30, "inf"),
    ],
)
def test_what_are_no_ratios_is_refused(ratios, words):
    with pytest.raises(ValueError, match=words):
        pareto_k(ratios)


def test_the_bridge_needs_no_torch():
    code = "import sys, bayesuq.evaluation.diagnostics; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
