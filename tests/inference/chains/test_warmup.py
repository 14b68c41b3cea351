"""The warm-up finds the step size of the wanted acceptance, and the scales."""

import math

import pytest
import torch

from bayesuq.inference.chains.warmup import Moments, StepSize, window_ends, window_start
from tests.inference.examples import noise


@pytest.mark.parametrize(
    ("num_warmup", "ends"),
    [
        # Stan's `windowed_adaptation.hpp` by hand: 75 + 25 + 50 + 100 + 200 + 500 + 50 are 1000, and so on. Short ones
        # are ours.
        (1000, [100, 150, 250, 450, 950]),
        (500, [100, 150, 250, 450]),
        (200, [100, 150]),
        (150, [100]),
        (100, [80]),
        (60, [48]),
        (59, []),
        (0, []),
    ],
)
def test_windows_are_stans(num_warmup, ends):
    assert window_ends(num_warmup) == ends
    assert not ends or window_start(num_warmup) < ends[0]


@pytest.mark.parametrize("target", [0.6, 0.8, 0.95])
def test_the_step_size_has_the_acceptance_that_is_wanted(target):
    size = StepSize.of(1.0)
    for k in range(2000):
        jitter = 0.05 * math.sin(12.9898 * k)  # acceptances differ from one transition to the next
        size = size.updated(min(1.0, max(0.0, math.exp(-size.current) + jitter)), target)
    assert math.exp(-size.average) == pytest.approx(target, abs=0.02)


def test_moments_in_any_grouping_are_those_of_all_vectors():
    rows = 5 + 2 * noise(0, 60, 3)
    whole = Moments.none(rows[0]).updated(rows)
    single = Moments.none(rows[0])
    for row in rows:
        single = single.updated(row.unsqueeze(0))
    expected = (60 * rows.var(dim=0) + 5e-3) / 65
    for moments in (whole, single):
        torch.testing.assert_close(moments.mean, rows.mean(dim=0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(moments.regularised_variance(), expected, rtol=1e-12, atol=1e-12)


def test_moments_of_one_vector_are_the_small_default():
    only = Moments.none(torch.zeros(2)).updated(torch.ones(1, 2))
    torch.testing.assert_close(only.regularised_variance(), torch.full((2,), 5e-3 / 6, dtype=torch.float64))
