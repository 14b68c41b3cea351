import json
import math
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from time import process_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import bayesuq as bq
from bayesuq.predictive.gaussian import GaussianPredictive

SCRIPT = Path(__file__).parents[2] / "scripts" / "uci_automatic.py"


def constant(_: Any, y: torch.Tensor, *, budget: float, seed: int, clock: Callable[[], float]) -> Any:
    """The mean and the variance of the rows that are fitted, everywhere."""
    assert (budget, seed, clock) == (2.0, 0, process_time)

    def predict(x: torch.Tensor, *, seed: int) -> GaussianPredictive:  # noqa: ARG001 - as a posterior has it
        mean = y.mean().expand(1, len(x), 1)
        return GaussianPredictive(mean=mean, noise_variance=y.var().expand_as(mean))

    return SimpleNamespace(predict=predict, candidates=[("constant", -1.0, 1.0, 0.0, "")], remarks=())


def test_a_line_for_each_split_of_its_own_rows_and_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of gap splits: the middle third of an input is left out of what is fitted, and judged."""
    x, y = np.arange(30.0).reshape(30, 1), np.arange(30.0)
    is_test = np.zeros((2, 30), dtype=bool)
    is_test[0, 10:20] = is_test[1, :10] = True
    for name in ("yacht", "boston"):
        (tmp_path / "uci_gap").mkdir(exist_ok=True)
        np.savez(tmp_path / "uci_gap" / name, x=x, y=y, is_test=is_test)
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path))
    monkeypatch.setattr(bq, "regress", constant)
    out = tmp_path / "lines"
    for count in ("1", "2"):
        options = ["--part", "gap", "--data", "yacht,boston", "--count", count, "--budget", "2", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["uci_automatic.py", *options])
        runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["split"], line["data"]) for line in lines] == [(s, d) for s in (0, 1) for d in ("yacht", "boston")]
    fitted = np.concatenate([y[:10], y[20:]])
    error, scale = y[10:20] - fitted.mean(), fitted.std(ddof=1)
    density = -0.5 * np.mean((error / scale) ** 2) - math.log(scale) - 0.5 * math.log(2 * math.pi)
    assert lines[0]["log_likelihood"] == pytest.approx(density, rel=1e-5)
    assert lines[0]["rmse"] == pytest.approx(math.sqrt(np.mean(error**2)), rel=1e-5)
    assert (lines[0]["coverage"], lines[0]["num_train"], lines[0]["num_test"]) == (1.0, 20, 10)


def test_a_method_by_its_defaults_is_judged_in_units_of_y(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In standard units 0 with a deviation of 1: the mean and the deviation of the rows that are fitted."""
    x, y = np.arange(30.0).reshape(30, 1), 5.0 * np.arange(30.0)
    is_test = np.zeros((1, 30), dtype=bool)
    is_test[0, 10:20] = True
    (tmp_path / "uci_gap").mkdir()
    np.savez(tmp_path / "uci_gap" / "yacht", x=x, y=y, is_test=is_test)

    def fit(_: Any, data: bq.Dataset, **options: Any) -> Any:
        assert options == {"seed": 0, "progress": False}
        assert float(data.y.std(correction=0)) == pytest.approx(1)
        zeros = torch.zeros(1, 10, 1)
        return SimpleNamespace(predict=lambda _, **__: GaussianPredictive(mean=zeros, noise_variance=zeros + 1))

    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path))
    monkeypatch.setattr(bq.inference.ivon, "fit", fit)
    out = tmp_path / "lines"
    options = ["--method", "ivon", "--part", "gap", "--data", "yacht", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["uci_defaults.py", *options])
    runpy.run_path(str(SCRIPT.with_name("uci_defaults.py")), run_name="__main__")
    (line,) = [json.loads(line) for line in out.read_text().splitlines()]
    fitted = np.concatenate([y[:10], y[20:]])
    error, scale = y[10:20] - fitted.mean(), fitted.std()
    density = -0.5 * np.mean((error / scale) ** 2) - math.log(scale) - 0.5 * math.log(2 * math.pi)
    assert line["log_likelihood"] == pytest.approx(density, rel=1e-5)
    assert (line["method"], line["split"], line["part"]) == ("ivon", 0, "gap")
