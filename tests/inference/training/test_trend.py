"""A loss that still falls is told from one that has come to rest, whatever the schedule and the noise."""

import math

import numpy as np
import pytest

from bayesuq.inference.training.trend import EARLY, FEWEST_POINTS, paired_trend, trend

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


# The same rows under the same masks

TIMES = np.linspace(EARLY, 1, 8)


def looks(fall: float, *, spread: float, num_rows: int = 50, num_masks: int = 4, seed: int = 0) -> np.ndarray:
    """A loss that falls by so much along the path; rows' and masks' own falls spread by so much."""
    noise = np.random.default_rng(seed)
    level = 3.0 * noise.standard_normal((num_masks, num_rows))
    own = fall + spread * noise.standard_normal((num_masks, num_rows))
    left = 1 - (TIMES + np.sin(math.pi * TIMES) / math.pi)
    wander = 1e-4 * noise.standard_normal((len(TIMES), 1, 1))
    return level + left[:, None, None] * own + wander


def test_masks_that_hide_a_fall_from_step_to_step_do_not_hide_it_from_look_to_look():
    told = paired_trend(looks(0.3, spread=0.3), TIMES, 50, "cosine")
    assert told.exceeds(TOLERANCE)
    assert told.fall == pytest.approx(0.03, rel=0.2)


def test_what_rows_and_masks_differ_by_is_no_fall():
    alarms = [
        paired_trend(looks(0.0, spread=3.0, seed=seed), TIMES, num_data, "cosine").exceeds(TOLERANCE)
        for seed in range(100)
        for num_data in (50, 10_000)
    ]
    assert sum(alarms) <= 4  # three standard errors on one side, twice: 1 of 740


def test_rows_that_are_all_there_are_no_sample():
    rows = looks(0.3, spread=1.1, num_masks=1)  # standard error of 50 rows: .16
    rows = rows + looks(0.3, spread=0.0, num_masks=1).mean(axis=2, keepdims=True) - rows.mean(axis=2, keepdims=True)
    among_all, among_many = (paired_trend(rows.repeat(4, axis=1), TIMES, size, "cosine") for size in (50, 10_000))
    assert among_all.fall == among_many.fall
    assert (among_all.is_certain, among_many.is_certain) == (True, False)


def test_a_look_that_is_not_finite_says_nothing():
    broken = looks(0.3, spread=0.0)
    broken[3, 0, 0] = math.nan
    assert paired_trend(broken, TIMES, 50, "cosine") is None
