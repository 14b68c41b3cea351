"""The script of the two commands counts what the written intervals hold, in the target's own units."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "two_commands.py"


def test_a_split_goes_through_both_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 1))
    y = 1000.0 + 50.0 * x[:, 0] + 10.0 * rng.normal(size=90)
    known, new = np.arange(60)[None], np.arange(60, 90)[None]
    (tmp_path / "uci").mkdir()
    np.savez(tmp_path / "uci" / "yacht", x=x, y=y, train_index=known, test_index=new)
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path))
    out = tmp_path / "lines"
    monkeypatch.setattr(sys, "argv", ["two_commands.py", "--data", "yacht", "--out", str(out)])
    for _ in range(2):  # a split that has a line is skipped
        runpy.run_path(str(SCRIPT), run_name="__main__")
    (line,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (line["rows"], line["held_out"]) == (60, 30)
    for found in (line, line["as_fitted"]):
        assert abs(found["inside"] / 30 - 0.9) < 4 * (0.09 * (1 / 30 + 1 / 42)) ** 0.5
        assert found["width"] == pytest.approx(2 * 1.645 * 10, rel=0.5)
        assert found["log_likelihood"] == pytest.approx(-np.log(10) - 0.5 * np.log(2 * np.pi) - 0.5, abs=0.6)
    assert line["width"] != line["as_fitted"]["width"]
