"""What every test of the scripts finds set up."""

from typing import Any

import pytest
from matplotlib.figure import Figure

SAVE = Figure.savefig


def save(figure: Figure, path: Any, **options: Any) -> None:
    """Write a picture in few dots."""
    SAVE(figure, path, **{**options, "dpi": 40})


@pytest.fixture(autouse=True)
def _coarse_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures have few dots, and parts that stand where they are put first: finding better places takes longest."""
    monkeypatch.setattr("matplotlib.layout_engine.do_constrained_layout", lambda *_, **__: None)
    monkeypatch.setattr(Figure, "savefig", save)
