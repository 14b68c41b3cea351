"""When a line of the benchmarks has lost: not because the machine was busy once."""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # a script, which finds its neighbours there
    return import_module("suite")


def result(suite: Any, ratio: float) -> Any:
    return suite.Result("map, step", "plain steps", ratio, ratio - 0.02, ratio + 0.02, 1.0, 11, {})


@pytest.mark.parametrize(
    ("ratios", "found"),
    [([1.05], []), ([1.5, 1.05], []), ([1.5, 1.4, 1.02], []), ([1.5, 1.4, 1.3], ["map, step"])],
    ids=["not lost", "noise once", "noise twice", "lost"],
)
def test_a_line_has_lost_that_does_so_each_time(suite: Any, ratios: list[float], found: list[str]) -> None:
    old = {"map, step": result(suite, 1.0)}
    first, *others = (result(suite, ratio) for ratio in ratios)
    times: Iterator[Any] = iter(others)
    new = {"map, step": first}
    assert suite.lost_each_time(old, new, lambda _: next(times)) == found
    assert next(times, None) is None
    assert new["map, step"] == min([first, *others], key=lambda one: one.ratio)


def test_quartiles_that_overlap_are_no_loss(suite: Any) -> None:
    old, new = result(suite, 1.0), replace(result(suite, 1.5), low=1.01)
    assert suite.lost({"map, step": old}, {"map, step": new}) == []
