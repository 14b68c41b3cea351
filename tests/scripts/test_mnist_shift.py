"""Calibration under shift: what is done to the images, and that each fitted posterior has its line and its curves."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

import scripts.mnist_shift as mnist_shift
from bayesuq.inference.posteriors.saved import load
from scripts import mnist
from scripts.mnist_methods import read_settings
from scripts.mnist_shift import AMOUNTS, MEASURES, NOISE, ROTATION, main, noisy, rotated
from scripts.recording import Records
from tests.inference.examples import SHORT_FIT
from tests.scripts.test_mnist import METHODS, folder, options

__all__ = ["folder"]  # a fixture


def test_a_quarter_turn_is_that_of_the_pixels() -> None:
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(rotated(images, 90), images.rot90(1, (2, 3)), rtol=0, atol=1e-9)
    torch.testing.assert_close(rotated(images, 180), images.flip(2, 3), rtol=0, atol=1e-9)
    torch.testing.assert_close(rotated(images, 0), images, rtol=0, atol=1e-9)


def test_noise_has_its_scale_and_stays_within_black_and_white() -> None:
    grey = torch.full((50, 1, 28, 28), 1.0)
    grey[0, 0, 0, 0] = 2.0  # white
    moved = noisy(grey, 0.1, seed=0)
    assert moved.min() >= 0
    assert moved.max() <= 2
    # 39,199 pixels: the standard error of their standard deviation is 0.2 / sqrt(2 x 39,199)
    assert float(moved[1:].std()) == pytest.approx(0.2, abs=4 * 0.2 / (2 * 39_199) ** 0.5)
    assert torch.equal(noisy(grey, 0.0, seed=0), grey)
    assert torch.equal(noisy(grey, 0.1, seed=0), moved)


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_every_fitted_posterior_has_a_line_and_a_second_call_adds_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist.main(["map", "ensemble"], options(folder))
    monkeypatch.setattr(mnist_shift, "Images", mnist.Images)
    again: dict[str, Any] = {"settings": folder / "settings.toml", "num_seeds": 1, "work": folder / "work"}
    given = argparse.Namespace(**again, out=folder / "shift.jsonl", figure=folder / "new" / "shift.png")
    main(given)
    lines = Records(folder / "shift.jsonl").read()
    assert {line["method"] for line in lines} == {"map", "ensemble"} <= set(METHODS)
    (fitted,) = (line for line in Records(folder / "runs.jsonl").read() if line["method"] == "map")
    (shift,) = (line["shift"] for line in lines if line["method"] == "map")
    assert {kind: {name: len(values) for name, values in found.items()} for kind, found in shift.items()} == {
        kind: dict.fromkeys(MEASURES, len(amounts)) for kind, amounts in AMOUNTS.items()
    }
    for kind in (ROTATION, NOISE):  # no shift is the table's own row
        assert shift[kind]["error"][0] == pytest.approx(fitted["error"])
        assert shift[kind]["NLL, nats"][0] == pytest.approx(fitted["negative_log_likelihood"], rel=1e-5)
    setting = read_settings(folder / "settings.toml")["map"]
    assert load(mnist.posterior_file(folder / "work", mnist.key_of("map", setting, "test", 0))).num_members == 1
    assert imread(folder / "new" / "shift.png")[..., :3].std() > 0.02
    main(given)
    assert Records(folder / "shift.jsonl").read() == lines


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_what_other_settings_gave_is_not_drawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist.main(["map", "dropout"], options(folder))
    monkeypatch.setattr(mnist_shift, "Images", mnist.Images)
    again: dict[str, Any] = {"settings": folder / "settings.toml", "num_seeds": 1, "work": folder / "work"}
    given = argparse.Namespace(**again, out=folder / "shift.jsonl", figure=folder / "shift.png")
    main(given)
    drawn: list[list[str]] = []
    monkeypatch.setattr(mnist_shift, "picture", lambda lines, _: drawn.append([line["method"] for line in lines]))
    settings = (folder / "settings.toml").read_text()
    (folder / "settings.toml").write_text(settings.replace("dropout = 0.2", "dropout = 0.3"))
    main(given)
    assert drawn == [["map"]]
    assert len(Records(folder / "shift.jsonl").read()) == 2  # the old posterior is not taken for the new one
