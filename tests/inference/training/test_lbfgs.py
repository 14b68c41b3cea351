"""Fits by L-BFGS that were stopped end with the same bits as others, and compute nothing twice."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.inference import gp, temperature
from bayesuq.inference.gp.algebra import NotPositiveDefiniteError
from bayesuq.inference.temperature import fitting as temperature_fitting
from bayesuq.inference.temperature import scaling
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.identity import Identity
from bayesuq.inference.training.lbfgs import Course, Evaluation, Evaluations
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods
from bayesuq.posterior import Posterior
from tests.inference.examples import labelled, measured
from tests.inference.temperature.test_fitting import labelled as logits_labelled
from tests.inference.temperature.test_fitting import member, mixture
from tests.posterior_contract import tensors_of

REAL = processes.GaussianProcess(processes.Scale(processes.RBF()))
CLASSES = processes.GaussianProcess(likelihood=likelihoods.Categorical())
SHORT = {"num_restarts": 2, "max_iterations": 4, "seed": 1}


def exact(**options: Any) -> Posterior:
    return gp.fit(REAL, measured(25), approximation="exact", **{**SHORT, **options})


def collapsed(**options: Any) -> Posterior:
    return gp.fit(REAL, measured(30), approximation="collapsed", num_inducing=5, **{**SHORT, **options})


def dirichlet(**options: Any) -> Posterior:
    return gp.fit(CLASSES, labelled(20), approximation="dirichlet", **{**SHORT, **options})


def scaled(**options: Any) -> Posterior:
    return temperature.fit(mixture(0.5, 2.0), logits_labelled(60, 2.0), **{"seed": 1, **options})


def by_vector(**options: Any) -> Posterior:
    return scaled(vector=True, **options)


def by_matrix(**options: Any) -> Posterior:
    return scaled(matrix=True, **options)


def by_folds(**options: Any) -> Posterior:
    """As matrices of many classes are chosen."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(temperature_fitting, "MOST_CLASSES", 0)
        return scaled(matrix=True, **options)


FITS = {
    "exact": exact,
    "collapsed": collapsed,
    "dirichlet": dirichlet,
    "temperature": scaled,
    "vector": by_vector,
    "matrix": by_matrix,
    "matrix by folds": by_folds,
}
pytestmark = pytest.mark.filterwarnings("ignore:The hyperparameters had not converged:UserWarning")


@pytest.fixture(autouse=True)
def few_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix scaling makes 26 searches of up to 200 iterations; and a test's files need not outlive the power."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    monkeypatch.setattr(scaling, "WIDTHS", (0.03,))
    monkeypatch.setattr(scaling, "MAX_ITERATIONS", 6)


class StoppedError(Exception):
    """As if the power had failed."""


class Counter:
    """Counts the evaluations that are computed, and stops where told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.computed = 0
        self.stop_after: int | None = None
        original = Evaluations._at

        def at(record: Evaluations, course: Course, point: Tensor, compute: Callable[[], Evaluation]) -> Evaluation:
            def counted() -> Evaluation:
                if self.stop_after is not None and self.computed == self.stop_after:
                    raise StoppedError
                self.computed += 1
                return compute()

            return original(record, course, point, counted)

        monkeypatch.setattr(Evaluations, "_at", at)

    @contextmanager
    def run(self, stop_after: int | None = None) -> Iterator[None]:
        self.computed, self.stop_after = 0, stop_after
        yield


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Counter:
    return Counter(monkeypatch)


def facts(posterior: Any) -> list[Any]:
    """What is no tensor."""
    names = (
        "history",
        "log_marginal_likelihood",
        "slopes",
        "biases",
        "mixing",
        "pulls",
        "slope",
        "negative_log_likelihood",
    )
    return [getattr(posterior, name, None) for name in names]


def assert_same(one: Posterior, other: Posterior) -> None:
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))
    assert facts(one) == facts(other)


@pytest.mark.parametrize("name", FITS)
def test_a_stopped_fit_goes_on_to_the_same_bits_and_computes_nothing_twice(
    name: str, tmp_path: Any, counter: Counter
) -> None:
    plain = FITS[name]()
    with counter.run():
        assert_same(FITS[name](checkpoint=tmp_path / "whole"), plain)
        total = counter.computed
    assert total > 5
    places = (1, total // 2, total - 1)
    for stop_after in places:
        checkpoint = Checkpoint(tmp_path / str(stop_after), every_steps=1)
        with counter.run(stop_after), pytest.raises(StoppedError):
            FITS[name](checkpoint=checkpoint)
        torch.rand(3)  # whatever happened in between
        with counter.run():
            assert_same(FITS[name](checkpoint=checkpoint.path), plain)  # which writes at the end alone
        assert counter.computed == total - stop_after


@pytest.mark.parametrize("name", ["collapsed", "matrix"])
def test_several_stops_between_writes_lose_evaluations_and_nothing_else(
    name: str, tmp_path: Any, counter: Counter
) -> None:
    plain = FITS[name]()
    checkpoint = Checkpoint(tmp_path / "file", every_steps=3)
    for stop_after in (4, 5, 2):
        with counter.run(stop_after), pytest.raises(StoppedError):
            FITS[name](checkpoint=checkpoint)
    with counter.run():
        assert_same(FITS[name](checkpoint=checkpoint), plain)


@pytest.mark.parametrize("name", FITS)
def test_a_finished_fit_computes_nothing_and_needs_no_seed(name: str, tmp_path: Any, counter: Counter) -> None:
    first = FITS[name](checkpoint=tmp_path / "file", seed=None)
    with counter.run(0):
        assert_same(FITS[name](checkpoint=str(tmp_path / "file"), seed=None), first)


def test_a_covariance_without_factor_on_the_way_is_recalled_as_it_was_found(
    tmp_path: Any, counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a search's first point it ends the search; at a later one it is a wall, after a stop, too."""
    from bayesuq.inference.gp import search as gp_search

    original, calls = gp_search._evaluate, itertools.count()
    failing: list[tuple[float, ...]] = []

    def evaluate(evidence: Any, vector: Any, at: Tensor) -> Evaluation:
        place = tuple(at.tolist())
        if next(calls) in (0, 4):  # the first start, and a later point of the second
            failing.append(place)
        if place in failing:
            raise NotPositiveDefiniteError("no factor")
        return original(evidence, vector, at)

    monkeypatch.setattr(gp_search, "_evaluate", evaluate)
    plain = exact()
    assert len(failing) == 2
    with counter.run():
        exact(checkpoint=tmp_path / "whole")
    for stop_after in range(1, counter.computed - 1):
        checkpoint = Checkpoint(tmp_path / str(stop_after), every_steps=1)
        with counter.run(stop_after), pytest.raises(StoppedError):
            exact(checkpoint=checkpoint)
        with counter.run():
            assert_same(exact(checkpoint=checkpoint), plain)


@pytest.mark.parametrize("name", FITS)
def test_truncated_and_foreign_files_are_refused(name: str, tmp_path: Any) -> None:
    path = tmp_path / "file"
    FITS[name](checkpoint=path)
    whole = path.read_bytes()
    for length in (0, 1, 100, -1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a complete file written by bayesuq"):
            FITS[name](checkpoint=path)
    exact().save(path)
    with pytest.raises(ValueError, match="is no checkpoint of this version"):
        FITS[name](checkpoint=path)


def test_files_of_other_fits_are_refused(tmp_path: Any) -> None:
    path = tmp_path / "file"
    exact(checkpoint=path)
    other = processes.GaussianProcess(processes.Scale(processes.Matern()))
    again: dict[str, Callable[[], Posterior]] = {
        "seed": lambda: exact(checkpoint=path, seed=2),
        "num_restarts": lambda: exact(checkpoint=path, num_restarts=1),
        "max_iterations": lambda: exact(checkpoint=path, max_iterations=5),
        "log joint at fixed weights": lambda: gp.fit(
            other, measured(25), approximation="exact", checkpoint=path, **SHORT
        ),
        "data": lambda: gp.fit(REAL, measured(25, seed=3), approximation="exact", checkpoint=path, **SHORT),
        "approximation": lambda: gp.fit(REAL, measured(25), approximation="collapsed", checkpoint=path, **SHORT),
    }
    for name, call in again.items():
        with pytest.raises(ValueError, match=f"belongs to another fit: its {name} is"):
            call()
    scaled(checkpoint=tmp_path / "scaled")
    for name, call in {
        "scaling": lambda: by_vector(checkpoint=tmp_path / "scaled"),
        "seed": lambda: scaled(checkpoint=tmp_path / "scaled", seed=2),
        "data": lambda: temperature.fit(member(), logits_labelled(60, 2.0), seed=1, checkpoint=tmp_path / "scaled"),
    }.items():
        with pytest.raises(ValueError, match=f"belongs to another fit: its {name} is"):
            call()


class EverythingSame(Identity):
    """Of any fit: what a file records is given as options."""

    def record(self) -> dict[str, Any]:
        return dict(self.options)

    def difference(self, _there: Any) -> None:
        return None


def test_more_restarts_go_on_from_those_that_are_over(tmp_path: Any, counter: Counter) -> None:
    first = exact(checkpoint=tmp_path / "file")
    with counter.run():
        more = exact(num_restarts=3, checkpoint=tmp_path / "other")
    whole = counter.computed
    with counter.run():
        resumed = exact(num_restarts=3, checkpoint=tmp_path / "file")
    assert counter.computed < whole
    assert_same(resumed, more)
    assert_same(exact(), first)


def test_a_file_of_other_arithmetic_is_told_and_the_rest_computed(tmp_path: Any, counter: Counter) -> None:
    checkpoint = Checkpoint(tmp_path / "file", every_steps=1)
    with counter.run(4), pytest.raises(StoppedError):
        exact(checkpoint=checkpoint)
    found = checkpoint.load(EverythingSame({}))
    assert found is not None
    (name,) = found[0]["points"]
    found[1][f"gradients.{name}"][2] *= 1 + 1e-9
    checkpoint.save(EverythingSame(checkpoint._read()[0]["fit"]), found)
    with counter.run(), pytest.warns(UserWarning, match="computed anew from evaluation 3 of the search"):
        posterior = exact(checkpoint=checkpoint)
    assert float(posterior.log_marginal_likelihood) == pytest.approx(exact().log_marginal_likelihood, abs=1e-3)


def test_a_folder_that_is_not_there_is_told_before_any_work(tmp_path: Any, counter: Counter) -> None:
    for one in (exact, collapsed, scaled):
        with counter.run(0), pytest.raises(FileNotFoundError, match="There is no folder"):
            one(checkpoint=tmp_path / "nowhere" / "file")


def test_time_decides_as_well_as_steps(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[int] = []
    monkeypatch.setattr(Checkpoint, "save", lambda _self, _fit, state: writes.append(len(state[0]["results"])))
    exact(checkpoint=Checkpoint(tmp_path / "file", every_seconds=3600.0))
    assert writes == [1, 2]  # the end of each search
    writes.clear()
    exact(checkpoint=Checkpoint(tmp_path / "file", every_seconds=1e-9))
    assert len(writes) > 8
