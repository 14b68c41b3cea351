"""A loss that still falls is told from one that has come to rest, whatever the schedule and the noise."""

import math

import numpy as np
import pytest

from bayesuq.inference.training.trend import FEWEST_POINTS, trend

TOLERANCE = 0.01


def course(rate: float, *, num_points: int = 200, schedule: str = "cosine", height: float = 2.0) -> np.ndarray:
    """exp(-rate * path), of a whole fit whose path is 1."""
    t = (np.arange(num_points) + 0.5) / num_points
    path = t if schedule == "constant" else t + np.sin(math.pi * t) / math.pi
    return height * np.exp(-rate * path)


def remaining_rate(num_points: int) -> np.ndarray:
    return 0.5 * (1 + np.cos(math.pi * (np.arange(num_points) + 0.5) / num_points))


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("rate", [0.3, 1.0, 3.0])
def test_the_fall_of_a_smooth_course_is_that_of_another_tenth(rate, schedule):
    told = trend(course(rate, schedule=schedule), schedule)
    true = 2.0 * math.exp(-rate) * (1 - math.exp(-0.1 * rate))
    assert told.exceeds(TOLERANCE)
    assert 0.5 < told.fall / true < 2


def test_a_cosine_schedule_does_not_hide_a_fall():
    losses = course(1.0)
    assert losses[-20] - losses[-1] < 0.01 < trend(losses, "cosine").fall  # the last tenth alone looks flat


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("rate", [10.0, 30.0])
def test_a_course_that_has_come_to_rest_is_silent(rate, schedule):
    assert not trend(course(rate, schedule=schedule), schedule).exceeds(TOLERANCE)


def test_noise_that_dies_away_with_the_rate_is_no_fall():
    noise = np.random.default_rng(0)
    rate = remaining_rate(500)
    alarms = [
        trend(0.5 * rate + 0.1 * np.sqrt(rate) * noise.standard_normal(500), "cosine").exceeds(TOLERANCE)
        for _ in range(100)
    ]
    assert sum(alarms) <= 2


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("num_points", [20, 100, 1000])
def test_plain_noise_is_no_fall(schedule, num_points):
    noise = np.random.default_rng(num_points)
    alarms = [trend(noise.chisquare(1, num_points), schedule).exceeds(TOLERANCE) for _ in range(100)]
    assert sum(alarms) <= 5  # at a rate of 1 %, more in one of 10^3 tries


def test_a_fall_is_seen_through_noise_and_outliers():
    noise = np.random.default_rng(0)
    losses = course(1.0) + 0.003 * noise.standard_normal(200)
    losses[[90, 150]] += 5.0
    assert trend(losses, "cosine").exceeds(TOLERANCE)


def test_a_rising_course_and_a_constant_one_are_silent():
    for losses in (-course(1.0), np.ones(50)):
        assert not trend(losses, "cosine").exceeds(TOLERANCE)


def test_too_short_or_broken_courses_say_nothing():
    assert trend(course(1.0, num_points=FEWEST_POINTS - 1), "cosine") is None
    assert trend([*course(1.0), math.inf], "cosine") is None
