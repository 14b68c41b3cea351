import runpy
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

from tests.scripts.printed import row

SCRIPT = Path(__file__).parents[2] / "scripts" / "compare_digits.py"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The posterior scales:UserWarning")  # a fit this short has not learned them
@pytest.mark.filterwarnings("ignore:The ELBO was still rising:UserWarning")
def test_the_demo_prints_a_column_for_each_method_and_draws_pictures_with_something_in_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(tmp_path / "new"), "--epochs", "4"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("MAP", "variational", "MC dropout", "ensemble"))
    values = row(printed, "accuracy")
    assert len(values) == 4
    assert min(values) > 0.5  # nine classes: chance is 0.11
    for name in ("reliability.png", "entropy.png"):
        path = (tmp_path / "new" / name).resolve()
        assert str(path) in printed
        assert imread(path)[..., :3].std() > 0.05
