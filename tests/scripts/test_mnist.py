"""The MNIST table: its rows, its measures, and that a stopped command goes on."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bayesuq as bq
import scripts.mnist as mnist
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.options import Callback, Progress
from bayesuq.models import priors
from scripts.mnist import SETTINGS, main
from scripts.mnist_methods import PIXEL_SCALE, Images, Setting, read_settings
from scripts.recording import Records
from tests.inference.examples import SHORT_FIT

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)
NUM_TRAIN, NUM_TEST, NUM_VAL = 5060, 30, 5000
SHORT = "prior_scales = [1.0]\nnum_epochs = 2\nlearning_rate = 0.01\nhidden = [8]\nbatch_size = 20\nnum_samples = 5\n"
METHODS = {
    "map": SHORT,
    "dropout": SHORT + "dropout = 0.2\n",
    "ensemble": SHORT + "num_members = 2\n",
    "variational": SHORT,
    "variational-mixture": SHORT.replace("[1.0]", "[1.0, 0.01]"),
    "ivon": SHORT + "num_draws = 2\n",
    "microcanonical": SHORT + "num_members = 2\nnum_warmup = 4\nnum_kept = 2\nthinning = 1\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small `mnist.npz` and `fashion_mnist.npz`: a bright row that names the class, or a bright column."""
    noise = np.random.default_rng(0)
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("mnist", "fashion_mnist"):
        parts = {}
        for part, size in (("train", NUM_TRAIN), ("test", NUM_TEST)):
            y = noise.integers(0, 10, size=size)
            x = noise.integers(0, 60, size=(size, 28, 28)).astype(np.uint8)
            for image, label in zip(x, y, strict=True):
                (image if name == "mnist" else image.T)[2 * label + 3] = 255
            parts |= {f"x_{part}": x, f"y_{part}": y.astype(np.uint8)}
        np.savez(tmp_path / "data" / "images" / f"{name}.npz", **parts)
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path / "data"))
    # Few rows to fit, so that a test takes no time; which ones is another test's question.
    load = Images.load

    def few(part: Any) -> Images:
        whole = load(part)
        val = None if whole.val is None else whole.val.rows(range(20))
        return Images(whole.train.rows(range(60)), val, whole.judged.rows(range(30)), whole.others)

    monkeypatch.setattr(mnist, "Images", argparse.Namespace(load=few))
    return tmp_path


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    tables = "\n".join(
        f'[{name}]\nmethod = "{name.partition("-")[0]}"\n{settings}' for name, settings in METHODS.items()
    )
    (folder / "settings.toml").write_text(tables, encoding="utf-8")
    defaults = {"settings": folder / "settings.toml", "part": "test", "num_seeds": 1}
    return argparse.Namespace(**{**defaults, "out": folder / "runs.jsonl", "work": folder / "work", **changes})


@pytest.mark.usefixtures("folder")
def test_all_images_are_fitted_to_test_and_none_that_is_judged_by() -> None:
    split = bq.datasets.load("mnist")
    tested, chosen = Images.load("test"), Images.load("val")
    assert len(tested.train) == NUM_TRAIN
    assert tested.val is None
    assert torch.equal(tested.judged.y, split.test.y)
    assert torch.equal(tested.judged.x, split.test.x * PIXEL_SCALE)
    assert float(tested.train.x.max()) == pytest.approx(255 / 126)
    assert tested.others is not None
    assert len(tested.others) == NUM_TEST
    assert len(chosen.train) == NUM_TRAIN - NUM_VAL
    assert chosen.others is None
    assert chosen.val is chosen.judged
    assert torch.equal(chosen.judged.y, split.val.y)


def test_every_method_has_a_line_for_each_seed_and_a_second_call_adds_none(folder: Path) -> None:
    main(None, options(folder, num_seeds=2))
    lines = Records(folder / "runs.jsonl").read()
    assert {(line["method"], line["seed"]) for line in lines} == {(name, s) for name in METHODS for s in (0, 1)}
    for line in lines:
        assert line["num_train"] == 60
        assert 0 <= line["error"] <= 1
        assert 0 <= line["expected_calibration_error"] <= 1
        assert 0 <= line["auroc_total"] <= 1
        assert (line["median_scale"] is None) == (not line["method"].startswith(("variational", "ivon")))
        assert len(line["curve"]) == {"ensemble": 2, "microcanonical": 0}.get(line["method"], 1)
        assert all(len(member["loss"]) == 2 and member["validation_loss"] == [] for member in line["curve"])
    assert {line["auroc_epistemic"] for line in lines if line["method"] == "map"} == {0.5}  # one network has none
    assert len({line["error"] + line["negative_log_likelihood"] for line in lines}) == len(lines)
    kept = {f"{line['method']}-test-{line['seed']}-{line['settings']}.safetensors" for line in lines}
    assert {file.name for file in (folder / "work").iterdir()} == kept  # the posteriors, and no checkpoint
    content = (folder / "runs.jsonl").read_bytes()
    main(None, options(folder, num_seeds=2))
    assert (folder / "runs.jsonl").read_bytes() == content


def test_to_choose_is_to_watch_the_validation_images(folder: Path) -> None:
    main(["map"], options(folder, part="val"))
    (line,) = Records(folder / "runs.jsonl").read()
    (member,) = line["curve"]
    assert len(member["validation_loss"]) == 2
    assert "auroc_total" not in line


class StoppedError(Exception):
    """The machine went away."""


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_fit_goes_on_and_ends_with_the_same_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    main([name], options(folder, out=folder / "whole.jsonl"))
    fit = mnist.fit

    def stopping(
        setting: Setting, images: Images, seed: int, checkpoint: Path, callbacks: Sequence[Callback]
    ) -> bq.Posterior:
        seen = []

        def stop(progress: Progress) -> None:
            seen.append(progress.epoch)
            if len(seen) == (4 if name == "ensemble" else 2):  # of the ensemble, in its second member
                raise StoppedError

        often = Checkpoint(checkpoint, every_steps=1)
        return fit(setting, images, seed, often, [*callbacks, stop])  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(mnist, "fit", stopping)
        with pytest.raises(StoppedError):
            main([name], options(folder))
    assert Records(folder / "runs.jsonl").read() == []
    assert list((folder / "work").iterdir())
    main([name], options(folder))
    (resumed,), (whole,) = (Records(folder / file).read() for file in ("runs.jsonl", "whole.jsonl"))
    assert resumed.pop("seconds") is None
    assert whole.pop("seconds") > 0
    assert json.dumps(resumed) == json.dumps(whole)


def test_scales_name_the_prior() -> None:
    settings = read_settings(SETTINGS)
    assert settings["variational"].model(0).prior == priors.Normal(scale=1.0)
    mixture = settings["variational-mixture"].model(0).prior
    assert isinstance(mixture, priors.ScaleMixture)
    assert mixture.scales == pytest.approx((1.0, np.exp(-6)))
    assert mixture.weights == (0.5, 0.5)
    lighter = replace(settings["variational-mixture"], prior_weights=[0.9, 0.1]).model(0).prior
    assert isinstance(lighter, priors.ScaleMixture)
    assert lighter.weights == pytest.approx((0.9, 0.1))


def test_the_committed_settings_have_the_papers_network_and_every_method() -> None:
    settings = read_settings(SETTINGS)
    mixtures = {f"variational-mixture-{name}" for name in ("256", "800", "light")}
    assert settings.keys() == {*METHODS, "variational-narrow", *mixtures}
    for name, setting in settings.items():
        width = 800 if name == "variational-mixture-800" else 400
        shapes = [tuple(parameter.shape) for parameter in setting.model(0).net.parameters() if parameter.ndim == 2]
        assert shapes == [(width, 784), (width, width), (10, width)]
    with pytest.raises(ValueError, match="`method` must be one of map"):
        Setting(method="swag", prior_scales=[1.0], num_epochs=1, learning_rate=0.1)  # type: ignore[arg-type]
