"""What every test and every documented example finds set up."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import bayesuq

# Oversubscribed threads make small-batch loops up to a hundred times slower.
torch.set_num_threads(1)

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()], patterns=["README.md", "docs/*.md", "docs/*/*.md"]
).pytest()
collect_ignore = ["docs/conf.py", "docs/_extensions"]  # Sphinx runs these, and may be missing


@pytest.fixture(autouse=True)
def _names_in_examples(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace |= {"torch": torch, "bq": bayesuq}


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    """Every test starts from the same global random state, and leaves none behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
