"""What every test of the commands finds set up."""

import functools
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest
from matplotlib import layout_engine
from torch import nn

from bayesuq.cli import main, parser
from bayesuq.inference.confidence import fitting as confidence
from bayesuq.inference.training.history import History
from bayesuq.inference.training.options import Training
from bayesuq.loaders import Data

BUILD = functools.cache(parser.build)


@pytest.fixture(autouse=True)
def _one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as long to build as to use, and is asked for three hundred times."""
    monkeypatch.setattr(main, "build", BUILD)


@pytest.fixture(autouse=True, scope="module")
def _parts_stand_where_they_are_put() -> Generator[None, None, None]:
    """No figure looks for better places for its parts, which takes longer than drawing them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_engine, "do_constrained_layout", lambda *_, **__: None)
        yield


@pytest.fixture(autouse=True)
def _few_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """The k of a variational fit is read from few draws, each of which takes a pass over all rows."""
    monkeypatch.setattr("bayesuq.cli.methods.NUM_RATIOS", 50)


@pytest.fixture(autouse=True)
def _short_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a confidence's fine-tuning, which no option of the commands shortens, two passes are made."""
    descend = confidence._descend

    def short(net: nn.Sequential, data: Data, training: Training, criterion: Any) -> History:
        is_second = len(net) > 1  # the features below the head are in it, too
        return descend(net, data, replace(training, num_epochs=2) if is_second else training, criterion)

    monkeypatch.setattr(confidence, "_descend", short)
