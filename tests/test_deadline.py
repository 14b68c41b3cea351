"""Deadlines: loops end with their time, at the end of their course, by a clock of the test's own."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

import bayesuq as bq
from bayesuq.deadline import LOOK, Deadline, Pace, has_deadline, until, within
from bayesuq.inference import ensemble, map_estimate, microcanonical
from bayesuq.inference.training import loop
from tests.inference.examples import measured


class Clock:
    """Seconds that pass only where a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Ticking(Clock):
    """A second passes with each look at it, of which a loop takes one a step."""

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def places(seconds: float, planned: int, taken: Callable[[int], float], unit: int = 1) -> tuple[list[float], Deadline]:
    """Where the steps of a loop are in its plan, each of which takes some seconds."""
    clock = Clock()
    deadline = Deadline(clock, clock.now + seconds)
    with until(deadline):
        pace = Pace(planned, unit=unit)
    found: list[float] = []
    while pace.done % unit or not pace.is_over:
        found.append(pace.place)
        clock.now += taken(pace.done)
        pace.advance(pace.done + 1)
    pace.end()
    return found, deadline


@pytest.mark.parametrize("slow", [None, 0, 120])
def test_a_plan_with_time_enough_is_as_without_a_deadline(slow: int | None) -> None:
    """One slow step, as the first, which loads what it needs, changes nothing either."""
    found, deadline = places(10.0, 400, lambda step: 1.0 if step == slow else 0.02)
    assert found == list(range(400))
    assert all(isinstance(place, int) for place in found)
    assert deadline.ended[0].share == 1.0
    assert places(1e9, 400, lambda _: 0.02)[0] == found


@pytest.mark.parametrize(
    ("taken", "least"),
    [
        (lambda _: 0.05, 195),
        (lambda step: 0.02 if step < 100 else 0.06, 225),
        (lambda step: 0.06 if step < 100 else 0.02, 260),
        (lambda step: 0.03 * (1 + step % 2), 215),
        (lambda _: 0.7, 13),
    ],
    ids=["from the beginning", "slower", "quicker", "uneven", "of few steps"],
)
def test_a_short_time_shortens_the_course_and_not_its_end(taken: Callable[[int], float], least: int) -> None:
    """Ten seconds for 400 steps, which would take more: as many are made as there is time for, and the last is last."""
    found, deadline = places(10.0, 400, taken)
    longest = max(map(taken, range(200)))
    assert deadline.clock() <= deadline.time + longest
    assert least <= len(found) < 400
    further = [after - before for before, after in pairwise(found)]
    assert min(further) >= 1 - 1e-9
    assert max(further) < 400 * 3 * max(LOOK, 1 / len(found))  # it leaps nowhere
    assert found[-1] > 400 * (1 - 2 * max(LOOK, 1 / len(found)))
    assert deadline.ended[0].share == len(found) / 400


@pytest.mark.parametrize("unit", [7, 50])
def test_an_epoch_is_made_whole_and_none_begun_that_would_end_too_late(unit: int) -> None:
    found, deadline = places(10.0, 100 * unit, lambda _: 0.31 / unit, unit=unit)
    assert len(found) == 32 * unit
    assert found[-1] > 0.97 * 100 * unit
    assert deadline.clock() <= deadline.time


def test_with_no_time_at_all_one_epoch_is_made() -> None:
    assert len(places(-5.0, 100, lambda _: 1.0)[0]) == 1
    found, deadline = places(0.0, 100, lambda _: 1.0, unit=10)
    assert len(found) == 10
    assert deadline.ended[0].share == 0.1


def test_parts_of_a_time_share_what_is_left_and_tell_the_whole() -> None:
    clock = Clock()
    whole = Deadline(clock, 110.0)
    with until(whole):
        with within(0.5):
            clock.now += 2.0
            Pace(1).end()
            part = Pace(1).deadline
        assert part is not None
        assert part.time == 105.0
        assert len(whole.ended) == 1
        assert has_deadline()
    assert whole.since_end == 0.0
    assert not has_deadline()
    with within(0.5):
        assert not has_deadline()
    assert Deadline(clock, float("inf")).part(0.2).time == float("inf")


def linear() -> bq.models.BayesianNetwork:
    return bq.models.BayesianNetwork(
        bq.models.networks.mlp(3, (4,), 1, seed=0), bq.models.priors.Normal(), bq.models.likelihoods.Normal("learned")
    )


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
@pytest.mark.parametrize("vectorised", [True, False])
def test_members_end_together_or_have_equal_parts_of_the_time(
    *, vectorised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    falling = loop.falling_rate

    def noted(*given: Any) -> float:
        rates.append(falling(*given))
        return rates[-1]

    monkeypatch.setattr(loop, "falling_rate", noted)
    clock = Ticking()
    fitted: dict[int, Any] = {}
    options: dict[str, Any] = {"num_members": 3, "num_epochs": 50, "batch_size": 12, "seed": 0}
    for seconds in (90, 1000):
        deadline = Deadline(clock, clock.now + seconds)
        rates.clear()
        with until(deadline):
            fitted[seconds] = ensemble.fit(linear(), measured(), vectorised=vectorised, **options)
        assert clock.now <= deadline.time
        assert min(rates) < 0.02 * max(rates)
    epochs = [len(member.history.loss) for member in fitted[90].members]  # of four steps each
    assert epochs == ([22, 22, 22] if vectorised else [7, 7, 6])
    plain: Any = ensemble.fit(linear(), measured(), vectorised=vectorised, **options)
    for one, other in zip(plain.members, fitted[1000].members, strict=True):
        assert torch.equal(one.values, other.values)
        assert one.history == other.history


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_the_best_epoch_by_validation_is_kept_where_time_ends_the_fit() -> None:
    clock = Ticking()
    data = measured()
    with until(Deadline(clock, clock.now + 60)):
        found: Any = map_estimate.fit(linear(), data, num_epochs=500, validation=data.rows(torch.arange(9)), seed=0)
    watched = found.history.validation_loss
    assert len(watched) < 60
    assert watched[found.history.best_epoch] == min(watched)


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
@pytest.mark.parametrize(("seconds", "draws"), [(100, 4), (50, 2), (0, 1), (1000, 10)])
def test_chains_shorten_their_warm_up_and_their_draws_alike(seconds: int, draws: int) -> None:
    clock, model, data = Ticking(), linear(), measured()
    start = map_estimate.fit(model, data, num_epochs=2, seed=0)
    options: dict[str, Any] = {"num_members": 2, "num_warmup": 150, "num_samples": 10, "start": start, "seed": 1}
    with until(Deadline(clock, clock.now + seconds)):
        found: Any = microcanonical.fit(model, data, **options)
    assert abs(found.draws.shape[1] - draws) <= 1
    assert found.statistics["lp"].shape == found.draws.shape[:2]
    assert bool(found.draws.isfinite().all())
    if draws == 10:
        plain: Any = microcanonical.fit(model, data, **options)
        assert torch.equal(found.draws, plain.draws)
        assert all(torch.equal(found.statistics[name], told) for name, told in plain.statistics.items())


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_a_search_for_hyperparameters_ends_with_its_time_and_says_that_it_is_unfinished() -> None:
    clock = Ticking()
    deadline = Deadline(clock, clock.now + 4)
    process = bq.models.gp.GaussianProcess(bq.models.gp.Scale(bq.models.gp.RBF()))
    options: dict[str, Any] = {"num_restarts": 1, "max_iterations": 8, "seed": 0}
    with until(deadline), pytest.warns(bq.ConvergenceWarning, match="had not converged after 3 iterations"):
        found: Any = bq.inference.gp.fit(process, measured(), **options)
    assert len(found.history.loss) == 3
    assert deadline.ended[0].share == 3 / 8
    with until(Deadline(clock, clock.now + 1000)):
        again: Any = bq.inference.gp.fit(process, measured(), **options)
    plain: Any = bq.inference.gp.fit(process, measured(), **options)
    assert again.log_marginal_likelihood == plain.log_marginal_likelihood > found.log_marginal_likelihood


def test_a_fit_that_ends_by_the_clock_has_no_checkpoint(tmp_path: Any) -> None:
    with until(Deadline(Clock(), 200.0)), pytest.raises(ValueError, match="deadline has no checkpoint"):
        map_estimate.fit(linear(), measured(), num_epochs=2, checkpoint=tmp_path / "fit", seed=0)


def test_an_interruption_leaves_no_deadline_behind() -> None:
    def interrupted(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), until(Deadline(Clock(), 200.0)):
        map_estimate.fit(linear(), measured(), num_epochs=2, callbacks=[interrupted], seed=0)
    assert not has_deadline()
