"""One call for a table: its budget by a clock of the test's own, its units, its weights, and its files."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import bayesuq as bq
from bayesuq.deadline import Pace, has_deadline
from bayesuq.inference.automatic import candidates, fitting
from bayesuq.inference.automatic.candidates import Trial, noise_floor, trials_for_labels, trials_for_numbers
from bayesuq.inference.automatic.log_odds import DEVIATION
from bayesuq.inference.automatic.outliers import warn_of_strangers
from bayesuq.inference.ensemble import EnsemblePosterior
from tests.inference.examples import measured

SIZES = {"ensemble": 12, "laplace": 12, "gp": 8, "dropout": 12, "microcanonical": 60}


class Clock:
    """Seconds that pass only where a fit says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def constant(value: float) -> Any:
    """A posterior that predicts this value with a deviation of 1, whatever the input."""

    net = torch.nn.Linear(3, 1)
    model = bq.models.BayesianNetwork(net, bq.models.priors.Normal(), bq.models.likelihoods.Normal(1.0))
    return bq.from_samples(model, {"weight": torch.zeros(1, 1, 3), "bias": torch.full((1, 1), value)})


def table(number: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    data = measured()
    return data.x[:number], data.y[:number, 0]


def use(monkeypatch: pytest.MonkeyPatch, *trials: Trial) -> None:
    monkeypatch.setattr(fitting, "trials_for_numbers", lambda _: list(trials))


def timed(clock: Clock, name: str, value: float, overhead: float, pace: float, calls: list[Any]) -> Trial:
    def fit(rows: bq.Dataset, size: int, _: int) -> Any:
        clock.now += overhead
        calls.append((name, stepped(clock, size, lambda _: pace), len(rows)))
        return constant(value)

    return Trial(name, fit, 1000, 10)


def stepped(clock: Clock, size: int, pace: Callable[[int], float]) -> int:
    """Steps that a loop of this size makes, each of so many seconds."""
    loop = Pace(size)
    while not loop.is_over:
        clock.now += pace(loop.done)
        loop.advance(loop.done + 1)
    loop.end()
    return loop.done


def test_a_budget_is_kept_and_decides_on_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}
    for budget in (60.0, 100.0, 1e6):
        clock, calls = Clock(), []
        fast = timed(clock, "fast", 0.5, 1.0, 0.01, calls)
        slow = timed(clock, "slow", -0.5, 2.0, 0.1, calls)
        use(monkeypatch, fast, slow)
        found = fitting.regress(*table(), budget=budget, seed=0, clock=clock)
        assert clock.now - 100.0 <= budget
        sizes[budget] = {name: max(size for who, size, _ in calls if who == name) for name in ("fast", "slow")}
        assert [one.name for one in found.candidates] == ["fast", "slow"]
    assert sizes[1e6] == {"fast": 1000, "slow": 1000}
    assert 10 <= sizes[60.0]["slow"] < sizes[100.0]["slow"] < 1000


PILOTS = 2  # fits of few steps before the one that counts


@pytest.mark.parametrize(("pilot", "pace"), [(0.03, 0.09), (0.09, 0.03), (0.03, 0.01)])
def test_a_fit_has_its_time_whatever_pilots_say_of_a_step(
    monkeypatch: pytest.MonkeyPatch, pilot: float, pace: float
) -> None:
    """A machine that is thrice as slow after them, or as quick, makes fewer steps of a fit, or more, and not later."""
    clock, sizes = Clock(), []

    def fit(rows: bq.Dataset, size: int, _: int) -> Any:  # noqa: ARG001 - what a trial is given
        one = pilot if len(sizes) < PILOTS else pace
        clock.now += 1.0
        sizes.append(stepped(clock, size, lambda _: one))
        return constant(0.0)

    use(monkeypatch, Trial("network", fit, 1000, 10))
    found = fitting.regress(*table(), budget=60.0, seed=0, clock=clock)
    seconds = fitting.SAFETY * fitting.FIRST_FITS * 60.0 - sum(sizes[1:PILOTS]) * pilot - 2.0
    wanted = min(1000, seconds / pace)
    assert 0.96 * wanted - 1 <= sizes[PILOTS] <= wanted + 1
    assert clock.now - 100.0 <= 60.0
    assert len(sizes) == PILOTS + 2  # and again, to all rows
    cut = "" if sizes[-1] == 1000 else " of 1000, where its time ended"
    assert found.candidates[0].remark == f"size {sizes[-1]}{cut}, fitted again to the judging rows too"


def test_a_second_fit_ends_with_the_budget_on_a_machine_that_has_become_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), []

    def fit(rows: bq.Dataset, size: int, _: int) -> Any:
        one = 0.02 if len(rows) == 34 else 0.06
        calls.append(stepped(clock, size, lambda _: one))
        return constant(0.0)

    use(monkeypatch, Trial("network", fit, 1000, 10))
    found = fitting.regress(*table(), budget=60.0, seed=0, clock=clock)
    assert 59.0 < clock.now - 100.0 <= 60.06
    first, again = calls[-2:]
    assert 0.6 * first < again < 0.7 * first
    assert found.candidates[0].remark == (
        f"size {again} of {first}, where its time ended, fitted again to the judging rows too"
    )
    assert "where its time ended" in found.explanation


def test_what_there_is_no_time_for_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), []
    use(
        monkeypatch,
        timed(clock, "fast", 0.0, 0.1, 0.001, calls),
        timed(clock, "endless", 0.0, 1.0, 5.0, calls),
    )
    found = fitting.regress(*table(), budget=60.0, seed=0, clock=clock)
    assert clock.now - 100.0 <= 60.0
    last = found.candidates[1]
    assert (last.name, last.score, last.weight, last.remark) == ("endless", None, 0.0, "no time for a fit of use")
    assert max(size for name, size, _ in calls if name == "endless") == 6
    assert "endless: not fitted" in found.explanation
    assert found.explanation.endswith(f"{clock.now - 100.0:.1f} of 60 seconds taken.")


def test_a_pilot_that_takes_most_of_the_time_is_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), []
    use(monkeypatch, timed(clock, "fast", 0.0, 0.1, 0.001, calls), timed(clock, "slow", 0.0, 16.0, 0.1, calls))
    found = fitting.regress(*table(), budget=60.0, seed=0, clock=clock)
    assert [size for name, size, _ in calls if name == "slow"] == [1, 2]  # of some 26 seconds
    assert found.candidates[1].remark == "no time for a fit of use"


def test_with_no_time_at_all_the_first_method_is_fitted_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), []
    use(monkeypatch, *(timed(clock, name, 0.0, 1.0, 1.0, calls) for name in ("first", "second")))
    fitting.regress(*table(), budget=1e-9, seed=0, clock=clock)
    assert [(name, size) for name, size, _ in calls] == [("first", size) for size in (1, 2, 10)]


def test_the_chosen_is_fitted_again_to_the_rows_that_judged_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), []
    use(monkeypatch, *(timed(clock, name, at, 1.0, 0.01, calls) for name, at in (("good", 0.0), ("bad", 40.0))))
    found = fitting.regress(*table(), budget=200.0, seed=0, clock=clock)
    assert {one.name: one.weight for one in found.candidates} == {"good": 1.0, "bad": 0.0}
    assert calls[-1] == ("good", 1000, 40)
    assert [name for name, _, rows in calls if rows == 40] == ["good"]


def test_pilots_of_very_many_rows_read_a_few_and_tell_the_pace_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MANY_ROWS", 30)
    monkeypatch.setattr(fitting, "PILOT_ROWS", 10)
    clock, calls = Clock(), []

    def fit(rows: bq.Dataset, size: int, _: int) -> Any:
        clock.now += 1.0
        calls.append((stepped(clock, size, lambda _: 0.01 * len(rows)), len(rows)))
        return constant(0.0)

    use(monkeypatch, Trial("network", fit, 10_000, 10))
    fitting.regress(*table(), budget=60.0, seed=0, clock=clock)
    assert [rows for _, rows in calls] == [10, 10, 34, 40]
    assert 45 < calls[2][0] < 80  # 27 seconds, less the pilots and a tenth, at .34 a step
    monkeypatch.setattr(fitting, "MANY_ROWS", 35)
    calls.clear()
    fitting.regress(*table(), budget=60.0, seed=0, clock=clock)
    assert [rows for _, rows in calls] == [34, 34, 34, 40]


@pytest.mark.parametrize("watches", [False, True])
def test_what_is_watched_has_its_part_of_the_time_that_is_left(
    monkeypatch: pytest.MonkeyPatch, *, watches: bool
) -> None:
    clock, calls = Clock(), []
    first, second = (timed(clock, name, 0.0, 0.0, 0.1, calls) for name in ("first", "second"))

    def watched(rows: bq.Dataset, judging: bq.Dataset, size: int, key: int) -> Any:
        assert len(judging) == 6
        return first.fit(rows, size, key)

    use(monkeypatch, replace(first, share=0.5, watched=watched if watches else None), second)
    monkeypatch.setattr(fitting, "stacking_weights", lambda _: torch.tensor([0.75, 0.25]))
    monkeypatch.setattr(fitting, "FIRST_FITS", 0.2)
    found = fitting.regress(*table(), budget=100.0, seed=0, clock=clock)
    assert clock.now - 100.0 <= 100.0
    sizes = [size for name, size, rows in calls if name == "first" and rows == (34 if watches else 40)]
    before = [size for name, size, rows in calls if (name, rows) == ("first", 34)][2]
    assert (sizes[-1] > 1.5 * before) if watches else (sizes == [before])
    assert calls[-1][::2] == ("second", 40)  # which has time still
    assert ("watched by the judging rows" in found.explanation) == watches


def test_long_tables_keep_the_epoch_at_which_the_judging_rows_are_most_probable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(candidates, "MANY_ROWS", 30)
    monkeypatch.setattr(candidates, "LARGE", (4,))
    data = measured()
    watched = {trial.name: trial.watched for trial in trials_for_numbers(data) if trial.watched is not None}
    assert watched.keys() == {"ensemble", "laplace", "dropout"}
    posterior: Any = watched["dropout"](data, data.rows(torch.arange(6)), 3, 0)
    assert len(posterior.history.validation_loss) == 3


def test_what_goes_on_begins_at_its_first_fit_and_has_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = Clock(), []
    long = timed(clock, "long", 0.0, 1.0, 0.1, calls)
    begun: list[Any] = []

    def onwards(rows: bq.Dataset, size: int, key: int, before: Any) -> Any:
        begun.append(before)
        return long.fit(rows, size, key)

    other = timed(clock, "other", 40.0, 1.0, 0.01, calls)
    use(monkeypatch, replace(long, share=3.0, going_on=onwards), other)
    found = fitting.regress(*table(), budget=100.0, seed=0, clock=clock)
    assert clock.now - 100.0 <= 100.0
    firsts = [size for name, size, rows in calls if (name, rows) == ("long", 34)]
    (again,) = [size for name, size, rows in calls if rows == 40]
    assert 280 < firsts[-1] < 420  # most of 45 seconds at ten a second
    assert 350 < again < 500  # of what is left, and not the size of the first fit
    assert begun == [begun[0]]
    assert torch.equal(begun[0].predict(torch.zeros(1, 3)).mean, torch.zeros(1, 1))  # its first fit
    assert found.candidates[0].remark == f"size {firsts[-1] + again}, fitted again to the judging rows too"


@pytest.mark.parametrize(
    ("other", "waits", "most_anew", "budget", "is_anew"),
    [
        (40.0, True, 40, 60.0, True),
        (40.0, True, 39, 60.0, False),
        (0.0, True, 40, 60.0, False),
        (0.0, False, 40, 60.0, True),
        (40.0, True, 40, 1e-9, False),
    ],
    ids=["alone", "more rows than it learns from", "beside what goes on", "beside what is fitted anew", "without time"],
)
def test_what_it_keeps_when_it_goes_on_is_learned_anew_where_nothing_else_waits(
    other: float, waits: bool, most_anew: int, budget: float, *, is_anew: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = Clock(), []
    begun: list[int] = []
    process = timed(clock, "process", 0.0, 1.0, 0.1, calls)

    def onwards(rows: bq.Dataset, size: int, key: int, before: Any) -> Any:  # noqa: ARG001 - what a trial is given
        begun.append(size)
        return before

    use(
        monkeypatch,
        replace(process, wanted=50, going_on=onwards, most_anew=most_anew),
        replace(timed(clock, "other", other, 1.0, 0.01, calls), going_on=onwards if waits else None),
    )
    fitting.regress(*table(), budget=budget, seed=0, clock=clock)
    assert [(size, rows) for name, size, rows in calls if (name, rows) == ("process", 40)] == [(50, 40)] * is_anew
    assert (not begun) == (is_anew or budget < 1)


@pytest.mark.parametrize(
    ("least_onwards", "predicts", "goes_on"),
    [(None, 0.0, False), (1, 0.0, True), (1, 40.0, False)],
    ids=["too late", "in time", "its noise is wrong of these rows"],
)
def test_a_process_goes_on_to_the_judging_rows_in_less_time_than_a_fit_takes(
    monkeypatch: pytest.MonkeyPatch, *, least_onwards: int | None, predicts: float, goes_on: bool
) -> None:
    clock, begun = Clock(), []
    process = timed(clock, "process", predicts, 1.0, 0.1, [])

    def onwards(rows: bq.Dataset, size: int, key: int, before: Any) -> Any:  # noqa: ARG001 - what a trial is given
        begun.append(size)
        return before

    use(monkeypatch, replace(process, going_on=onwards, most_anew=40, least_onwards=least_onwards))
    fitting.regress(*table(), budget=6.5, seed=0, clock=clock)
    assert begun == [size for size in begun if 0 < size < process.least]
    assert bool(begun) == goes_on


@pytest.mark.parametrize(("goes_on", "least", "fitted"), [(True, 1000, 2), (False, 1000, 1), (False, 500, 2)])
def test_what_needs_no_second_fit_has_all_the_time_that_others_leave(
    monkeypatch: pytest.MonkeyPatch, *, goes_on: bool, least: int, fitted: int
) -> None:
    """What needs one has half of it; a share of its own would be too little for either."""
    clock, calls = Clock(), []
    process = replace(timed(clock, "process", 0.0, 1.0, 0.01, calls), going_on=lambda *given: given[-1], most_anew=40)
    chains = timed(clock, "chains", 0.0, 0.0, 0.02, calls)
    use(monkeypatch, process, replace(chains, least=least, going_on=(lambda *given: given[-1]) if goes_on else None))
    found = fitting.regress(*table(), budget=60.0, seed=0, clock=clock)
    assert clock.now - 100.0 <= 60.0
    assert [one.name for one in found.candidates if one.score is not None] == ["process", "chains"][:fitted]


def test_chains_go_on_from_their_last_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(candidates, "microcanonical", SimpleNamespace(fit=lambda *_, **options: given.append(options)))
    data = measured()
    chains = next(trial for trial in trials_for_numbers(data) if trial.name == "microcanonical")
    model = bq.models.BayesianNetwork(
        torch.nn.Linear(3, 1), bq.models.priors.Normal(), bq.models.likelihoods.Normal(1.0)
    )
    draws = {"weight": torch.arange(24.0).view(2, 4, 1, 3), "bias": torch.zeros(2, 4, 1)}
    before = bq.from_samples(model, draws)
    assert chains.going_on is not None
    chains.fit(data, 600, 0)
    chains.going_on(data, 600, 0, before)
    assert [one["start"] is None for one in given] == [True, False]
    assert given[0]["seed"] != given[1]["seed"]
    begins = given[1]["start"].sample_weights()["weight"]
    assert torch.equal(begins, draws["weight"][:, -1])


def test_what_is_loaded_once_is_no_part_of_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first optimiser of a process imports for seconds, beside which a pilot takes none: sizes stay in time."""
    clock, calls = Clock(), []
    steady = timed(clock, "steady", 0.0, 0.0, 0.1, calls)

    def fit(rows: bq.Dataset, size: int, key: int) -> Any:
        clock.now += 0.0 if calls else 8.0
        return steady.fit(rows, size, key)

    use(monkeypatch, Trial("loading", fit, 1000, 10))
    fitting.regress(*table(), budget=60.0, seed=0, clock=clock)
    assert clock.now - 100.0 <= 60.0
    assert 150 < max(size for _, size, _ in calls) < 300  # 27 seconds at ten a second


def test_a_process_learns_from_some_rows_and_goes_on_to_as_many_as_there_is_time_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their number grows as the cube root of the time."""
    monkeypatch.setattr(candidates, "LEARNING_ROWS", 20)
    monkeypatch.setattr(candidates, "CONDITIONING", 1.0)
    data = bq.Dataset(*table())
    process = next(trial for trial in trials_for_numbers(data) if trial.name == "gp")
    first: Any = process.fit(data.rows(torch.arange(34)), 3, 0)
    assert process.going_on is not None
    again: Any = [process.going_on(data, size, 1, first) for size in (1, 4, 8)]
    assert [len(one.x) for one in (first, *again)] == [20, 21, 31, 40]
    torch.testing.assert_close(again[2].x, data.x.double())
    assert all(torch.equal(again[2].hyperparameters[name], value) for name, value in first.hyperparameters.items())


@pytest.mark.parametrize(
    ("number", "order"), [(60, "gp microcanonical"), (2000, "gp microcanonical"), (2001, "gp ensemble laplace")]
)
def test_small_tables_have_their_chains_before_other_networks_and_all_their_process(number: int, order: str) -> None:
    names = [trial.name for trial in trials_for_numbers(bq.Dataset(torch.randn(number, 2), torch.randn(number, 1)))]
    assert " ".join(names).startswith(order)
    assert set(names) == set(SIZES)


def test_a_method_that_fails_is_said_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Any:
        raise FloatingPointError("the loss is NaN")

    clock = Clock()
    use(monkeypatch, Trial("broken", failing, 10, 1), timed(clock, "whole", 0.0, 1.0, 0.01, []))
    found = fitting.regress(*table(), budget=50.0, seed=0, clock=clock)
    assert found.candidates[0].remark == "failed: the loss is NaN"
    use(monkeypatch, Trial("broken", failing, 10, 1))
    with pytest.raises(FloatingPointError, match=r"No method could be fitted .* broken: failed: the loss is NaN"):
        fitting.regress(*table(), seed=0, clock=clock)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, ZeroDivisionError, None])
def test_a_method_that_goes_wrong_in_any_way_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception] | None
) -> None:
    def wrong(*_: Any) -> Any:
        if kind is not None:
            raise kind("something is singular")
        density = SimpleNamespace(log_prob=lambda y: torch.full((len(y),), math.nan))
        return SimpleNamespace(predict=lambda *_, **__: density)

    use(monkeypatch, Trial("wrong", wrong, 10, 1), timed(Clock(), "whole", 0.0, 1.0, 0.01, []))
    found = fitting.regress(*table(), budget=50.0, seed=0, clock=Clock())
    said = "something is singular" if kind else "its density of held-out rows is no finite number"
    assert found.candidates[0].remark == f"failed: {said}"
    assert found.candidates[1].weight == 1.0


def test_an_interruption_ends_the_call_and_leaves_no_deadline_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        assert has_deadline()
        raise KeyboardInterrupt

    use(monkeypatch, timed(Clock(), "whole", 0.0, 1.0, 0.01, []), Trial("long", interrupted, 10, 1))
    with pytest.raises(KeyboardInterrupt):
        fitting.regress(*table(), budget=50.0, seed=0, clock=Clock())
    assert not has_deadline()


def test_a_target_of_another_world_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, timed(Clock(), "only", 0.0, 1.0, 0.01, []))
    x, y = table()
    with pytest.warns(UserWarning, match="1 of the targets are unlike the others, .* in row 7: .* Leave it out"):
        fitting.regress(x, y.index_fill(0, torch.tensor([7]), 1e6), seed=0, clock=Clock())


def test_targets_of_any_spread_are_no_strangers() -> None:
    noise = torch.Generator().manual_seed(0)
    wide = (2 * torch.randn(10_000, generator=noise)).exp()
    rare = torch.zeros(1000).index_fill(0, torch.arange(30), 5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for y in (wide, rare, torch.randn(1000, 2, generator=noise) ** 9, torch.full((30,), 7.0)):
            warn_of_strangers(y)


def test_rows_are_divided_without_overlap_and_some_recalibrate() -> None:
    for number, calibrating in ((40, 0), (999, 0), (1000, 100), (200_000, 5000)):
        parts = fitting.divided(number, 0)
        assert torch.cat(parts).sort().values.equal(torch.arange(number))
        assert len(parts[2]) == calibrating


def test_levels_of_a_small_table_are_scaled_by_the_rows_that_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, timed(Clock(), "only", 0.0, 1.0, 0.01, []))
    x, _ = table()
    y = torch.arange(40.0).sin()
    factors = []
    for spread in (3.0, 0.001):  # and a deviation of 1 at 0 is predicted
        monkeypatch.setattr(fitting, "standard_rows", lambda _, data, spread=spread: rows_of_spread(data, spread))
        (_, remark, _) = fitting.regress(x, y, seed=0, clock=Clock()).remarks
        assert "by the 6 rows that judged" in remark
        factors.append(float(remark.split("scaled by ")[1].split(",")[0]))
    assert factors[0] < 1
    assert factors[1] == pytest.approx(math.exp(6 * DEVIATION**2), abs=0.01)  # all in the middle


def rows_of_spread(data: bq.Dataset, spread: float) -> bq.Dataset:
    return bq.Dataset(data.x.float(), spread * data.y.float())


def small(trials: Callable[..., list[Trial]], *names: str) -> Callable[..., list[Trial]]:
    """The package's own trials, in sizes of a test."""
    return lambda *given: [
        replace(one, wanted=SIZES[one.name], least=1) for one in trials(*given) if not names or one.name in names
    ]


def test_all_methods_mix_are_recalibrated_and_come_back_from_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.rand(110, 2, generator=noise, dtype=torch.float64) * 6 - 3
    y = 50 + 10 * x[:, 0].sin() + 5 * torch.randn(110, generator=noise, dtype=torch.float64)
    monkeypatch.setattr(fitting, "trials_for_numbers", small(trials_for_numbers))
    monkeypatch.setattr(fitting, "RECALIBRATED_FROM", 100)
    monkeypatch.setattr(fitting, "FEWEST_PIECES", 3)
    found = bq.regress(x, y, seed=0, clock=Clock())
    assert {one.name for one in found.candidates} == set(SIZES)
    assert sum(one.weight for one in found.candidates) == pytest.approx(1.0)
    assert "Levels recalibrated by 11 further rows" in found.explanation
    predictive = found.predict(x, seed=1)
    assert predictive.log_prob(y).mean() > -3.4  # the truth has -3.03 (5 sqrt(2 pi e)), a constant -3.5
    assert float((predictive.mean[:, 0] - y).square().mean().sqrt()) < 6.5
    found.save(tmp_path / "table")
    again = bq.load(tmp_path / "table")
    assert torch.equal(again.predict(x, seed=1).mean, predictive.mean)
    assert again.explanation == found.explanation
    assert again.candidates == found.candidates


def test_units_of_x_and_y_do_not_change_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table()
    monkeypatch.setattr(fitting, "trials_for_numbers", small(trials_for_numbers, "ensemble", "gp"))
    plain = bq.regress(x, y, seed=0, clock=Clock()).predict(x, seed=1)
    for unit in (1e-6, 1e6):
        scaled = bq.regress(x / unit, unit * y, seed=0, clock=Clock()).predict(x / unit, seed=1)
        torch.testing.assert_close(scaled.mean / unit, plain.mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(scaled.std / unit, plain.std, rtol=1e-2, atol=1e-3)


def test_a_data_frame_is_read_by_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table()
    monkeypatch.setattr(fitting, "trials_for_numbers", small(trials_for_numbers, "ensemble"))
    frame = pd.DataFrame(x.numpy(), columns=["a", "b", "c"])
    found = bq.regress(frame, y, seed=0, clock=Clock())
    turned = found.predict(frame[["c", "a", "b"]], seed=1).mean
    assert torch.equal(turned, found.predict(frame, seed=1).mean)
    with pytest.raises(ValueError, match="it lacks 'c'"):
        found.predict(frame[["a", "b"]])


def test_whole_numbers_that_repeat_themselves_do_not_collapse(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = measured().x, measured().y
    rounded = (2 * y).round()
    rows = bq.Dataset(x, rounded / rounded.std())
    assert noise_floor(rows) == pytest.approx(1 / float(rounded.std()) / 12**0.5, rel=1e-6)
    assert noise_floor(bq.Dataset(x, y)) == 0.001
    monkeypatch.setattr(fitting, "trials_for_numbers", small(trials_for_numbers, "ensemble"))
    found = bq.regress(x, rounded[:, 0].long(), seed=0, clock=Clock())
    predictive = found.predict(x, seed=1)
    assert predictive.component_variances.sqrt().min() >= 0.9 / 12**0.5  # of rounding to 1
    assert predictive.log_prob(rounded).mean() > -3.0


def test_labels_of_text_come_back_in_order_and_a_single_class_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = table()
    text = np.where(y.numpy() > float(y.median()), "above", "below")
    monkeypatch.setattr(fitting, "trials_for_labels", small(trials_for_labels, "ensemble"))
    found = bq.classify(x, text, seed=0, clock=Clock())
    assert found.labels == ("above", "below")
    accuracy = (found.predict(x, seed=1).mean.argmax(dim=1).numpy() == (text == "below")).mean()
    assert accuracy > 0.7
    assert isinstance(found.posterior.posterior.members[0], EnsemblePosterior)
    with pytest.raises(TypeError, match=r"bayesuq\.regress"):
        bq.classify(x, y.numpy() + 0.5, seed=0)
    with pytest.raises(ValueError, match="at least two classes"):
        bq.classify(x, ["a"] * len(x))


@pytest.mark.parametrize(
    ("rows", "options", "error", "says"),
    [
        (10, {}, ValueError, "at least 20 rows; got 10"),
        (36, {"budget": 0.0}, ValueError, "`budget` must be"),
        (36, {"budgets": 1.0}, TypeError, "budget"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    rows: int, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    x, y = table(rows)
    with pytest.raises(error, match=says):
        bq.regress(x, y, **options)


X, Y = table()
NAMED = np.array([None, *["a", "b"] * 20][: len(X)], dtype=object)


@pytest.mark.parametrize(
    ("call", "x", "y", "error", "says"),
    [
        ("regress", scipy.sparse.csr_matrix(X), Y, TypeError, r"`x` must be dense; .* `\.toarray\(\)`"),
        ("regress", X, scipy.sparse.csr_matrix(Y.reshape(-1, 1)), TypeError, "`y` must be dense"),
        ("regress", X, np.ma.masked_array(Y, Y > 0), TypeError, "`y` must not be a masked array"),
        ("regress", X.reshape(-1, 1, 1, 3), Y, ValueError, r"`x` must be a table, \(N, F\); got \(40, 1, 1, 3\)"),
        (
            "regress",
            X,
            X.isnan().any(1).double().index_fill(0, torch.tensor([4]), torch.nan),
            ValueError,
            "row 4. Leave",
        ),
        ("regress", X, Y > 0, TypeError, r"true and false\. Take `bayesuq\.classify\(x, y\)`"),
        ("regress", X.numpy().astype(object), Y, TypeError, r"`x` .* as objects\. Pass `x\.astype\(float\)`"),
        ("classify", X, np.arange(len(X)), ValueError, r"all 40 are different\. .*bayesuq\.regress"),
        ("classify", X, np.eye(2)[np.arange(len(X)) % 2], ValueError, r"got shape \(40, 2\).*argmax"),
        ("classify", X, 1, ValueError, r"one label a row, \(N,\); got shape \(\)"),
        ("classify", X, np.where(np.arange(len(X)) == 4, np.nan, Y > 0), ValueError, "1 of 40 are missing.* row 4"),
        ("classify", X, NAMED, ValueError, "1 of 40 are missing.* row 0"),
        ("classify", X, pd.Series(NAMED, dtype="string"), ValueError, "1 of 40 are missing.* row 0"),
        ("classify", X, np.where(Y > 0, 1, NAMED), TypeError, "of one kind; got int, str"),
    ],
)
def test_what_is_no_table_and_what_are_no_labels_is_told(
    call: str, x: Any, y: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        getattr(bq, call)(x, y, seed=0)


def test_a_series_of_pandas_is_taken_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, timed(Clock(), "only", 0.0, 1.0, 0.01, []))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bq.regress(pd.DataFrame(X), pd.Series(Y), seed=0, clock=Clock())


def test_a_row_unlike_the_others_is_expected_once_in_as_many_as_were_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, timed(Clock(), "only", 0.0, 1.0, 0.01, []))
    x, y = table()
    found = fitting.regress(x, y, seed=0, clock=Clock())
    scale = y.double().std(correction=0)
    density = found.predict(x[:1], seed=0).log_prob((y.double().mean() + 20 * scale)[None])
    law = torch.distributions.Normal(0.0, 2**0.5)  # the noise of `constant`, and as much again
    knots: Any = found.posterior.posterior.knots  # type: ignore[attr-defined]
    slope = torch.tensor(0.05 / (1 - knots[-2])).log()  # of the levels' last piece
    expected = law.log_prob(torch.tensor(20.0)) - math.log(40) - scale.log() + slope
    assert float(density) == pytest.approx(float(expected), abs=1e-3)  # and not -200
