"""Volumes from end to end, on a few of them."""

from pathlib import Path

import pytest

from scripts import volumes


@pytest.mark.filterwarnings("ignore::UserWarning")  # after one epoch
def test_the_script_measures_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--num-members", "2", "--num-epochs", "1", "--num-train", "4", "--num-test", "4"]
    volumes.main(volumes.parsed([*few, "--figure", str(tmp_path / "volumes.png")]))
    told = capsys.readouterr().out
    assert all(name in told for name in ("disagreement_aurc", "dice_lesion", "near_foreground", "Hausdorff"))
    assert (tmp_path / "volumes.png").stat().st_size > 0
    assert (tmp_path / "volumes-montage.png").stat().st_size > 0
