"""What pytest collects below this folder."""

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


@pytest.fixture(scope="module")
def few_looks() -> Generator[None, None, None]:
    """Fits end without the hundreds of looks that their warnings need, for tests of something else than warnings."""
    with pytest.MonkeyPatch.context() as patch:
        for name, number in LOOKS.items():
            patch.setattr(name, number)
        yield
