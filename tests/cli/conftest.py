"""What every test of the commands finds set up."""

import functools
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from bayesuq.cli import main, parser
from bayesuq.data import Dataset
from bayesuq.inference.confidence import fitting as confidence
from bayesuq.inference.training.history import History

BUILD = functools.cache(parser.build)


@pytest.fixture(autouse=True)
def _one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes as long to build as to use, and is asked for three hundred times."""
    monkeypatch.setattr(main, "build", BUILD)


@pytest.fixture(autouse=True)
def _few_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """The k of a variational fit is read from few draws, each of which takes a pass over all rows."""
    monkeypatch.setattr("bayesuq.cli.methods.NUM_RATIOS", 50)


@pytest.fixture(autouse=True)
def _short_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a confidence's fine-tuning, which no option of the commands shortens, two passes are made."""
    tune = confidence._fine_tune

    def short(net: nn.Sequential, data: Dataset, training: Any, criterion: Any) -> History:
        return tune(net, data, replace(training, num_epochs=2), criterion)

    monkeypatch.setattr(confidence, "_fine_tune", short)
