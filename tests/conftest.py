"""What pytest collects below this folder."""

import pkgutil
import sys
from collections.abc import Generator
from typing import Any

import pytest
from _pytest.doctest import DoctestModule

LOOKS = {
    "bayesuq.inference.training.convergence.MIN_GRADIENTS": 2,
    "bayesuq.inference.training.convergence.MAX_GRADIENTS": 2,
    "bayesuq.inference.training.convergence.FEWEST_RATIOS": 5,
    "bayesuq.inference.variational.guide_posterior.NUM_DRAWS": 2,
}


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[Any], list[Any]]:
    """Test files without their docstrings, in which no example stands: looking for some took a second a process."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems() -> None:
    """Hypothesis draws no numbers from the source of the modules that a process happens to have loaded.

    It reads all of them for that, and a property would meet other examples in another process.
    """
    if "hypothesis" in sys.modules:
        sys.modules["hypothesis.internal.conjecture.providers"].is_local_module_file = lambda _: False


@pytest.fixture(autouse=True, scope="module")
def few_looks() -> Generator[dict[str, int], None, None]:
    """Fits end without the hundreds of looks that their warnings need; `every_look` is for tests of the warnings."""
    usual = {name: pkgutil.resolve_name(name) for name in LOOKS}
    with pytest.MonkeyPatch.context() as patch:
        for name, number in LOOKS.items():
            patch.setattr(name, number)
        yield usual


@pytest.fixture
def every_look(few_looks: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits look as often as a user's do."""
    for name, number in few_looks.items():
        monkeypatch.setattr(name, number)
