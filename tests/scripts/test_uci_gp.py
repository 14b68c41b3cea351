import json
import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from bayesuq import datasets

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The hyperparameters had not converged:UserWarning")
@pytest.mark.skipif("uci/yacht" not in datasets.available(), reason="needs uci/yacht")
def test_a_line_for_each_split_exact_and_collapsed_and_none_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ("--inducing", "20", "--iterations", "3")
    options = ("--data", "yacht,power-plant", "--count", "1", "--out", str(tmp_path / "lines"), *sizes)
    for _ in range(2):
        run("uci_gp.py", monkeypatch, *options)
    yacht, plant = (json.loads(line) for line in (tmp_path / "lines").read_text().splitlines())
    # The published mean over splits is 0.42; a constant prediction errs by 15.
    assert yacht["rmse"] < 1
    assert yacht["nlpd"] < 1
    # A linear regression errs by 4.6, a constant by 17.
    assert plant["rmse"] < 4.6
    assert "yacht, exact, 1 splits" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The hyperparameters had not converged:UserWarning")
@pytest.mark.skipif("co2" not in datasets.available(), reason="needs co2")
def test_the_forecast_of_carbon_dioxide_is_better_with_a_season(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("co2.py", monkeypatch, "--out", str(tmp_path), "--iterations", "5")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("root_mean_squared")]
    with_season, without = (float(line[1]) for line in lines)
    assert with_season < without  # the season's amplitude is 3 ppm
    assert imread(tmp_path / "co2.png")[..., :3].std() > 0.05
