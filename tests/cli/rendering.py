"""A fixture for tests that look at no picture: figures are drawn but not rendered, which takes longest."""

import pytest


@pytest.fixture
def not_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages hold an empty picture in the place of each figure."""
    monkeypatch.setattr("bayesuq.cli.figures._written", lambda *_: b"<svg/>")
