"""What a report says of a variational fit."""

import math

import numpy as np
import pytest

from bayesuq.evaluation.diagnostics.fit_quality import evaluate_fit
from bayesuq.evaluation.report.reporting import Report


def by_name(**arguments):
    return {measure.name: measure for measure in evaluate_fit(**arguments)}


def test_only_what_is_given_is_measured():
    assert evaluate_fit() == ()
    assert list(by_name(losses=[1.0] * 30, scale_movement=2.0)) == ["elbo_rise", "scale_movement"]


def test_a_falling_loss_is_a_rising_elbo():
    slope = 0.01
    losses = 5 - slope * np.arange(200) + 0.02 * np.random.default_rng(0).standard_normal(200)
    measure = by_name(losses=losses)["elbo_rise"]
    # Windows of 20 epochs are 20 epochs apart; each mean adds its slope's spread to the scatter.
    assert measure.value == pytest.approx(20 * slope, abs=3 * 0.02 * math.sqrt(2 / 20))
    assert measure.remark.endswith("still rising")


def test_a_level_loss_is_called_flat_nearly_always():
    rng = np.random.default_rng(1)
    verdicts = [by_name(losses=1 + 0.1 * rng.standard_normal(400))["elbo_rise"].remark for _ in range(400)]
    rising = sum(verdict.endswith("rising") for verdict in verdicts)
    # One tail beyond two standard errors: 2.3 %, so 9 of 400; five standard deviations of that count more.
    assert rising < 9 + 5 * math.sqrt(9)
    level = [by_name(losses=1 + 0.1 * rng.standard_normal(400))["elbo_rise"] for _ in range(200)]
    spread = np.std([measure.value for measure in level])
    assert np.mean([measure.standard_error for measure in level]) == pytest.approx(spread, rel=5 / math.sqrt(2 * 200))


def test_what_the_scatter_hides_is_not_called_flat():
    noise = np.random.default_rng(2).standard_normal(400)
    assert by_name(losses=1 + 0.001 * noise)["elbo_rise"].remark.endswith("flat")
    hidden = by_name(losses=1 - 0.0001 * np.arange(400) + 0.3 * noise)["elbo_rise"]
    assert f"it may be {hidden.value + 2 * hidden.standard_error:.2g}" in hidden.remark


def test_few_epochs_say_nothing():
    measure = by_name(losses=[3.0, 2.0, 1.0])["elbo_rise"]
    assert math.isnan(measure.value)
    assert "needs 20 epochs; there were 3" in measure.remark


@pytest.mark.parametrize(("movement", "words"), [(0.1, "hardly learned"), (2.5, "of the median")])
def test_scales_that_stayed_are_named(movement, words):
    assert words in by_name(scale_movement=movement)["scale_movement"].remark


@pytest.mark.parametrize(
    ("k", "words"), [(0.3, "reaches the posterior"), (0.85, "doubtful"), (1.5, "misses parts of the posterior")]
)
def test_the_tail_of_the_ratios_decides_the_verdict(k, words):
    ratios = -k * np.log(np.random.default_rng(0).random(20_000))
    measure = by_name(log_ratios=ratios)["pareto_k"]
    assert measure.remark == words
    assert measure.unit == "shape, from S = 20000 draws"


def test_a_report_takes_them_in():
    report = Report((), num_points=1, num_samples=1).extended(evaluate_fit(scale_movement=2.0))
    assert report["scale_movement"].value == 2.0
