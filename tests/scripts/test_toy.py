import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.scripts.printed import row

SCRIPT = Path(__file__).parents[2] / "scripts" / "toy.py"
METHODS = ("MAP", "variational", "dropout", "ensemble", "Laplace", "SWAG", "Gaussian process", "HMC")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The posterior scales:UserWarning")  # a fit this short has not learned them
@pytest.mark.filterwarnings("ignore:The ELBO was still rising:UserWarning")
@pytest.mark.filterwarnings("ignore:.*draws follow a trajectory that diverged:UserWarning")  # nor have chains adapted
@pytest.mark.filterwarnings("ignore:.*the chains move slowly:UserWarning")
def test_the_toy_measures_every_method_and_hmc_inside_and_outside_the_data_and_draws_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(tmp_path / "new"), "--epochs", "25", "--draws", "4"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    inside, outside = printed.partition("in the gap")[::2]
    for table in (inside, outside):
        assert all(name in table for name in METHODS)
        errors, epistemic = (row(table, name) for name in ("root_mean_squared_error", "epistemic_variance"))
        assert len(errors) == len(epistemic) == len(METHODS)
        assert epistemic[0] == 0  # one network knows no doubt of its own
        assert all(value > 0 for value in epistemic[1:])
    # sin(2 x) has a root mean square of 0.73 on the data: a fit that leaves less than half of it has found the curve
    assert min(row(inside, "root_mean_squared_error")) < 0.36
    assert "split R-hat of f(0)" in printed
    picture = imread(tmp_path / "new" / "toy.png")
    assert picture[..., :3].std() > 0.05
    assert str((tmp_path / "new" / "toy.png").resolve()) in printed
