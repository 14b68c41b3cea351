"""What pytest collects below this folder."""

from collections.abc import Generator
from typing import Any

import pytest
from _pytest.doctest import DoctestModule


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Generator[None, list[Any], list[Any]]:
    """Test files without their docstrings, in which no example stands: looking for some took a second a process."""
    return [found for found in (yield) if not isinstance(found, DoctestModule)]
