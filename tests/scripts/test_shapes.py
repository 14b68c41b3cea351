"""The worked example of the two uncertainties writes its picture."""

import argparse
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

import bayesuq as bq
from bayesuq.datasets import shapes
from scripts.shapes import main


def test_it_tells_both_uncertainties_and_draws_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [shapes.draw(4, seed=k, unfamiliar=k == 3) for k in range(4)]
    few = bq.Split(*(bq.Dataset(part.x, part.y) for part in parts))
    monkeypatch.setattr(bq.datasets, "load", lambda *_, **__: few)
    figure = tmp_path / "folder" / "shapes.png"
    main(argparse.Namespace(num_members=2, num_epochs=1, seed=0, figure=figure))
    told = capsys.readouterr().out
    assert "unfamiliar object: aleatoric" in told
    assert "predictive_entropy_overlap" in told
    assert torch.tensor(imread(figure)).std() > 0.05
