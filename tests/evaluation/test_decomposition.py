import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayesuq.evaluation.decomposition import BrierDecomposition, brier_bins, brier_decomposition
from bayesuq.evaluation.scores import brier_score
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.examples import labelled, measured, noise, sure

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)
REPLICATES = 500
PARTS = ("reliability", "resolution", "uncertainty", "within_bin_variance", "within_bin_covariance")


def binary(p: Tensor) -> CategoricalPredictive:
    """Probability p of label 1."""
    return CategoricalPredictive.from_probs(torch.stack([1 - p, p], dim=1)[None])


def assert_same(one: BrierDecomposition, other: BrierDecomposition) -> None:
    for part in PARTS:
        torch.testing.assert_close(getattr(one, part), getattr(other, part), rtol=1e-10, atol=1e-12)


@PROPERTY
@given(st.integers(0, 2**32 - 4), st.integers(1, 40), st.floats(0.1, 20.0))
def test_parts_are_the_brier_score_exactly(seed: int, num_bins: int, sharpness: float) -> None:
    predictive, y = labelled(seed, num_points=30, sharpness=sharpness)
    bins = brier_bins(predictive, y, num_bins)
    for parts in (bins.decomposition, bins.debiased):
        torch.testing.assert_close(parts.score, brier_score(predictive, y), rtol=1e-12, atol=1e-13)
        rebuilt = parts.reliability - parts.generalised_resolution + parts.uncertainty
        torch.testing.assert_close(rebuilt, parts.score, rtol=1e-12, atol=1e-13)
    parts = bins.decomposition
    assert parts.reliability >= 0
    assert -1e-12 <= parts.resolution <= parts.uncertainty + 1e-12
    assert parts.within_bin_variance >= -1e-12


def test_of_equal_forecasts_in_a_bin_is_murphys_without_further_terms() -> None:
    # Murphy (1973) by hand: forecast .2 four times, once true; forecast .8 six times, five times true. Times two, since
    # both classes count.
    p = torch.tensor([0.2] * 4 + [0.8] * 6, dtype=torch.float64)
    y = [1, 0, 0, 0, 1, 1, 1, 1, 1, 0]
    parts = brier_decomposition(binary(p), y, num_bins=10)
    rate = 6 / 10
    assert parts.reliability.item() == pytest.approx(2 * (4 * (0.2 - 1 / 4) ** 2 + 6 * (0.8 - 5 / 6) ** 2) / 10)
    assert parts.resolution.item() == pytest.approx(2 * (4 * (1 / 4 - rate) ** 2 + 6 * (5 / 6 - rate) ** 2) / 10)
    assert parts.uncertainty.item() == pytest.approx(2 * rate * (1 - rate))
    assert parts.within_bin_variance.item() == pytest.approx(0, abs=1e-15)
    assert parts.within_bin_covariance.item() == pytest.approx(0, abs=1e-15)


def test_within_bin_terms_are_variance_and_covariance_written_out() -> None:
    predictive, y = labelled(0, num_draws=1)
    parts = brier_decomposition(predictive, y, num_bins=4)
    variance = covariance = 0.0
    for k in range(5):
        p, true = predictive.mean[:, k].numpy(), (y == k).double().numpy()
        for b in range(4):
            held = (p >= b / 4) & ((p < (b + 1) / 4) | (b == 3))
            if held.any():
                variance += held.sum() * p[held].var() / 200
                covariance += 2 * ((p[held] - p[held].mean()) * (true[held] - true[held].mean())).sum() / 200
    assert parts.within_bin_variance.item() == pytest.approx(variance)
    assert parts.within_bin_covariance.item() == pytest.approx(covariance)


def test_reliability_is_zero_for_the_base_rate_and_grows_with_overconfidence() -> None:
    base = brier_decomposition(binary(torch.full((10,), 0.3, dtype=torch.float64)), [1] * 3 + [0] * 7)
    assert base.reliability.item() == pytest.approx(0, abs=1e-15)
    assert base.resolution.item() == pytest.approx(0, abs=1e-15)
    calibrated = brier_decomposition(*labelled(0, num_points=5000))
    overconfident = brier_decomposition(*labelled(0, num_points=5000, sharpness=3.0))
    assert overconfident.reliability > 10 * calibrated.reliability


def test_debiased_parts_are_right_on_average() -> None:
    # Forecasts .2, .5 and .8, a third of the points each, come true with chance .3, .5 and .9, so the parts of
    # infinitely many points are known. A mean over R test sets of 40 points may be off by four standard errors; a bin
    # of fewer than two points, whose noise stays, has a chance of 6e-6.
    forecasts, chances = (torch.tensor(values, dtype=torch.float64) for values in ([0.2, 0.5, 0.8], [0.3, 0.5, 0.9]))
    random = torch.Generator().manual_seed(0)
    chosen = torch.randint(3, (REPLICATES, 40), generator=random)
    came_true = torch.rand(REPLICATES, 40, generator=random, dtype=torch.float64) < chances[chosen]
    found = [brier_bins(binary(forecasts[c]), y.long(), 10) for c, y in zip(chosen, came_true, strict=True)]
    rate = chances.mean()
    truth = [(forecasts - chances).square().mean(), (chances - rate).square().mean(), rate * (1 - rate)]
    for part, value in zip(PARTS[:3], truth, strict=True):
        debiased = torch.stack([getattr(bins.debiased, part) for bins in found])
        plain = torch.stack([getattr(bins.decomposition, part) for bins in found]).mean()
        allowed = 4 * debiased.std() / math.sqrt(REPLICATES)
        assert abs(debiased.mean() - 2 * value) < allowed
        assert abs(plain - 2 * value) > abs(debiased.mean() - 2 * value)


@pytest.mark.parametrize("num_points", [2, 3, 5])
def test_debiased_parts_of_one_bin_are_right_exactly(num_points: int) -> None:
    # Every outcome of a few labels of chance .3 at forecast .5, weighted by its probability.
    mean = dict.fromkeys(PARTS[:3], 0.0)
    for outcome in itertools.product([0, 1], repeat=num_points):
        weight = 0.3 ** sum(outcome) * 0.7 ** (num_points - sum(outcome))
        parts = brier_bins(binary(torch.full((num_points,), 0.5, dtype=torch.float64)), list(outcome)).debiased
        for part in mean:
            mean[part] += weight * getattr(parts, part).item()
    expected = {"reliability": 2 * 0.2**2, "resolution": 0.0, "uncertainty": 2 * 0.3 * 0.7}
    assert mean == pytest.approx(expected, abs=1e-12)


@PROPERTY
@given(st.integers(1, 199), st.integers(1, 30))
def test_merging_batches_is_one_pass(cut: int, num_bins: int) -> None:
    predictive, y = labelled(0)
    one, other = (
        brier_bins(CategoricalPredictive.from_logits(predictive.draws[:, rows]), y[rows], num_bins)
        for rows in (slice(cut, None), slice(None, cut))
    )
    assert_same(one.merge(other).decomposition, brier_decomposition(predictive, y, num_bins))
    assert_same(other.merge(one).debiased, brier_bins(predictive, y, num_bins).debiased)


def test_order_of_points_and_names_of_classes_do_not_matter() -> None:
    predictive, y = labelled(0)
    rows, classes = torch.randperm(200, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 0, 4, 1, 2])
    shuffled = CategoricalPredictive.from_logits(predictive.draws[:, rows][:, :, classes])
    assert_same(brier_decomposition(shuffled, classes.argsort()[y[rows]]), brier_decomposition(predictive, y))


def test_of_pixels_counts_each() -> None:
    logits, y = noise(0, 2, 3, 4, 5, 6), torch.arange(90).reshape(3, 5, 6) % 4
    flat = CategoricalPredictive.from_logits(logits.movedim(2, -1).reshape(2, 90, 4))
    images = CategoricalPredictive.from_logits(logits)
    assert_same(brier_decomposition(images, y), brier_decomposition(flat, y.flatten()))


def test_of_one_point_is_finite() -> None:
    bins = brier_bins(sure([0.75, 0.25]), [0])
    for parts in (bins.decomposition, bins.debiased):
        assert np.isfinite([getattr(parts, part).item() for part in PARTS]).all()
        assert parts.score.item() == pytest.approx(0.125)


def test_refuses_what_has_no_bins() -> None:
    with pytest.raises(ValueError, match="`num_bins`"):
        brier_decomposition(*labelled(0), 0)
    with pytest.raises(TypeError, match=r"GaussianPredictive.*`crps`"):
        brier_decomposition(*measured(0))
    with pytest.raises(ValueError, match="Only equal bins merge"):
        brier_bins(*labelled(0), 5).merge(brier_bins(*labelled(0), 6))
