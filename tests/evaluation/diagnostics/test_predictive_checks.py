"""Predictive checks: a right model passes, and what a wrong one cannot do is seen. Runs under ArviZ 1.x, too."""

import numpy as np
import pytest

from bayesuq.evaluation.diagnostics.predictive_checks import PredictiveChecks, predictive_checks
from bayesuq.to_arviz.container import Variable, build
from tests.evaluation.draws_examples import conjugate, noise


def checked(y: np.ndarray, replicates: np.ndarray):
    groups = {
        "posterior_predictive": {"y": Variable.of_draws(replicates, 2, ("point",))},
        "observed_data": {"y": Variable(y, ("point",))},
    }
    return {each.name: each for each in predictive_checks(build(groups, attributes={}))}


def test_a_right_model_passes_and_the_numbers_are_those_of_the_replicates():
    data, y = conjugate(400, 50)
    replicates = data["posterior_predictive"]["y"].values[0]
    for check in predictive_checks(data):
        statistic = {"mean": np.mean, "sd": np.std, "smallest": np.min, "largest": np.max}[check.name]
        values = np.array([statistic(row) for row in replicates])
        assert check.observed == pytest.approx(statistic(y))
        assert (check.lower, check.upper) == pytest.approx(tuple(np.percentile(values, [5, 95])))
        assert check.p_value == pytest.approx((values > statistic(y)).mean())
        assert 0.005 < check.p_value < 0.995


def test_a_model_that_is_too_narrow_is_seen():
    found = checked(3 * noise(60), noise(200, 60, seed=1))
    assert found["sd"].is_surprising
    assert found["sd"].p_value == 0.0
    assert found["largest"].p_value < 0.05


def test_labels_are_checked_by_class():
    generator = np.random.default_rng(0)
    y = generator.integers(0, 3, 300)
    found = checked(y, generator.integers(0, 3, (100, 300)))
    assert list(found) == ["share of 0", "share of 1", "share of 2"]
    assert found["share of 1"].observed == (y == 1).mean()
    skewed = checked(np.where(y == 1, 0, y), generator.integers(0, 3, (100, 300)))
    assert skewed["share of 0"].is_surprising


def test_equal_replicates_count_half():
    found = checked(np.zeros(5), np.zeros((30, 5)))
    assert found["mean"].p_value == 0.5
    assert not found["mean"].is_surprising


def test_a_single_draw_surprises_nobody():
    assert not checked(5 + noise(9), noise(2, 9))["mean"].is_surprising


def test_a_statistic_of_ones_own_and_the_prior_are_taken():
    data, y = conjugate(40, 20)
    (check,) = predictive_checks(data, statistics={"median": np.median})
    assert check.observed == np.median(y)
    assert "median" in str(PredictiveChecks([check]))
    with pytest.raises(ValueError, match="prior_predictive"):
        predictive_checks(data, replicates="prior_predictive")
