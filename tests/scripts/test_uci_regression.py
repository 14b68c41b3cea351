import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.scripts.printed import row

SCRIPT = Path(__file__).parents[2] / "scripts" / "uci_regression.py"
NOISE, SLOPE = 30.0, 100.0


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The posterior scales:UserWarning")  # a fit this short has not learned them
@pytest.mark.filterwarnings("ignore:The ELBO was still rising:UserWarning")
def test_uci_measures_are_in_the_targets_own_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(5.0, 2.0, size=(400, 1))
    y = 1000.0 + SLOPE * x[:, 0] + NOISE * generator.normal(size=400)
    rows = np.arange(400)
    (tmp_path / "uci").mkdir()
    np.savez(tmp_path / "uci/line.npz", x=x, y=y, train_index=[rows[:300]], test_index=[rows[300:]])
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path))
    run(monkeypatch, "uci/line", "--out", str(tmp_path / "out"), "--epochs", "25")
    printed = capsys.readouterr().out
    # The law itself has RMSE 30 and a log loss of log(30) + (1 + log 2 pi) / 2 = 4.82 nats. Over 100 test points its
    # RMSE has a standard error of 30 / sqrt 200 = 2.1 and its log loss one of sqrt(1/2) / sqrt 100 = 0.07; in
    # standard units they would be 0.15 and -0.49.
    bayes = np.log(NOISE) + 0.5 * (1 + np.log(2 * np.pi))
    errors, log_losses = row(printed, "root_mean_squared_error"), row(printed, "negative_log_likelihood")
    assert len(errors) == len(log_losses) == 4
    assert min(errors) == pytest.approx(NOISE, abs=4 * 2.1)
    assert min(log_losses) == pytest.approx(bayes, abs=4 * 0.07)
    assert (tmp_path / "out" / "line-0.txt").read_text(encoding="utf-8").strip().splitlines()[-1] in printed


def test_uci_skips_an_absent_set_and_says_where_it_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path))
    run(monkeypatch, "uci/boston", "--out", str(tmp_path / "out"))
    printed = capsys.readouterr().out
    assert printed.startswith("Skipped")
    assert "uci/boston" in printed
    assert "BAYESUQ_DATA" in printed
    assert not (tmp_path / "out").exists()
