"""Fixtures for tests that look at no picture: figures are drawn but not rendered, or those of draws not even drawn."""

import pytest
from matplotlib.figure import Figure

from bayesuq.cli.figures import Picture


@pytest.fixture
def not_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages hold an empty picture in the place of each figure."""
    monkeypatch.setattr("bayesuq.cli.figures._written", lambda *_: b"<svg/>")


def nothing_drawn(_plot: object, _data: object, title: str, caption: str) -> Picture:
    """The picture that `diagnose` would show, with nothing in it."""
    return Picture.of(Figure(), title, caption, title)


@pytest.fixture
def not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of comparisons hold no figure; those of `diagnose` an empty one under the title of each of ArviZ's."""
    monkeypatch.setattr("bayesuq.cli.figures.draw", lambda *_: [])
    monkeypatch.setattr("bayesuq.cli.figures._written", lambda *_: b"<svg/>")
    monkeypatch.setattr("bayesuq.cli.diagnosis._told", nothing_drawn)
