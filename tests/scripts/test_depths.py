"""The figures of depths: what is told of both methods, and three pictures."""

import argparse
import re
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from scripts.depths import main


def test_the_noise_of_each_pixel_is_told_and_three_pictures_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(argparse.Namespace(num_epochs=10, seed=0, figure=tmp_path / "folder" / "depths.png"))
    one, each = map(float, re.findall(r"noise off by a factor of ([0-9.]+)", capsys.readouterr().out))
    assert each < one
    for suffix in ("", "-kept", "-calibration"):
        assert torch.tensor(imread(tmp_path / "folder" / f"depths{suffix}.png")).std() > 0.05
