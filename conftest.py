"""What every test and every documented example finds set up."""

import gc
import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import bayesuq
from tests.printed import checked_print

# Oversubscribed threads make small-batch loops up to a hundred times slower.
torch.set_num_threads(1)
# Neither modules nor collected tests are garbage: looking through them over and over takes a tenth of a short run.
gc.disable()
os.fsync = lambda _: None  # no test ends in a power cut, and a disk of others may take its time
NUMPY_START = np.random.RandomState(0).get_state()  # what `np.random.seed(0)` sets, in a tenth of its time

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser()],
    patterns=["README.md", "docs/*.md", "docs/*/*.md"],
    setup=lambda names: names.update(print=checked_print),
).pytest()
collect_ignore = ["docs/conf.py", "docs/_extensions"]  # Sphinx runs these, and may be missing


def pytest_collection_finish() -> None:
    """All that is there now stays: from here on garbage is looked for among what the tests make."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test and all its fixtures start from the same global random state: torch's, NumPy's and Python's.

    A hook, because a fixture takes longer than a small test does.
    """
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` writes the stack down for each absent device
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)
    random.seed(0)
    np.random.set_state(NUMPY_START)  # noqa: NPY002 - what users' networks draw from


def pytest_sessionstart(session: pytest.Session) -> None:
    """Workers tell what each test found, and of its beginning, its fixtures and its end only where that is asked for.

    Telling all of it, and reading it, takes pytest-xdist twice as long as pytest takes around a test.
    """
    asked = session.config.getoption
    if asked("durations") is not None or asked("xmlpath") is not None or asked("verbose") > 0:
        return
    for worker in session.config.pluginmanager.get_plugins():
        if type(worker).__name__ == "WorkerInteractor":  # of xdist/remote.py, which is sent and not imported
            worker.sendevent = partial(_tell_outcome, worker.sendevent)


def _tell_outcome(send: Callable[..., None], name: str, **of: Any) -> None:
    """What happens in a worker, less the beginnings and ends of tests, and the fixtures that passed."""
    is_fixture = name == "testreport" and of["data"]["when"] != "call" and of["data"]["outcome"] == "passed"
    if name not in ("logstart", "logfinish") and not is_fixture:
        send(name, **of)


@pytest.fixture(scope="session")
def doctest_namespace() -> dict[str, Any]:
    """The names that examples in docstrings find."""
    return {"torch": torch, "bq": bayesuq}
