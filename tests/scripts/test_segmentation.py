"""The segmentation table: each method has a line, a stopped command goes on, masks turn with their images."""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import bayesuq as bq
import scripts.segmentation as segmentation
from bayesuq.datasets import shapes
from bayesuq.inference import ensemble
from bayesuq.predictive.categorical import CategoricalPredictive
from scripts.recording import Records
from scripts.segmentation_methods import (
    METHODS,
    Setting,
    augmented,
    best_of,
    fit,
    lowered,
    model,
    read_settings,
    training_data,
    turned,
)
from tests.inference.examples import SHORT_FIT

pytestmark = pytest.mark.filterwarnings(
    *SHORT_FIT, "ignore:The held-out labels do not say:UserWarning", "ignore:SWAG:UserWarning"
)
TINY = """
[shapes]
likelihood = "categorical"
num_classes = 3
ignore_index = 2
augments = true
num_samples = 3
[shapes.network]
depth = 1
width = 2
[shapes.training]
num_epochs = 2
batch_size = 2
learning_rate = 0.01
"""


def tiny() -> bq.Split:
    train, val, test = (shapes.draw(number, seed=number) for number in (4, 3, 3))
    crop = slice(16, 28)
    return bq.Split(*(bq.Dataset(s.x[..., crop, crop], s.y[:, crop, crop]) for s in (train, val, test)))


def options(folder: Path, methods: str) -> argparse.Namespace:
    (folder / "settings.toml").write_text(TINY, encoding="utf-8")
    return argparse.Namespace(
        data="shapes",
        methods=methods,
        settings=folder / "settings.toml",
        num_seeds=1,
        batch_size=2,
        num_threads=1,
        work=folder / "work",
        out=folder / "lines.jsonl",
    )


@pytest.mark.slow
def test_every_method_has_a_line_and_none_is_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bq.datasets, "load", lambda _: tiny())
    chosen, draw, drawn = options(tmp_path, ",".join(reversed(METHODS))), segmentation.draw, []

    def draw_first(*of: Any) -> None:
        if not drawn:  # pictures take longest
            draw(*of)
        drawn.append(of[-1])

    monkeypatch.setattr(segmentation, "draw", draw_first)
    segmentation.main(chosen)
    assert len({file.name for file in drawn}) == len(METHODS)
    assert [file.name for file in (chosen.work / "figures").iterdir()] == [drawn[0].name]
    lines = Records(chosen.out).read()
    assert [line["method"] for line in lines] == list(METHODS)
    for line in lines:
        assert line["num_images"] == 3
        assert line["seconds"] > 0
        assert 0 <= line["measures"]["pixel_accuracy"][0] <= 1
        assert "chosen on other images" in line["measures"]["mutual_information_overlap"][2]
    by_method = {line["method"]: line["measures"]["mutual_information"][0] for line in lines}
    assert by_method["map"] == by_method["temperature"] == by_method["local-temperature"] == 0
    assert min(by_method[name] for name in ("laplace", "dropout", "ensemble", "variational", "swag")) > 0
    capsys.readouterr()
    segmentation.main(chosen)
    assert capsys.readouterr().out == ""
    assert Records(chosen.out).read() == lines


def test_a_posterior_that_is_on_the_disk_is_not_fitted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "draw", lambda *_: None)
    monkeypatch.setattr(bq.datasets, "load", lambda _: tiny())
    chosen = options(tmp_path, "map")
    segmentation.main(chosen)
    chosen.out.unlink()
    monkeypatch.setattr(segmentation, "fit", None)
    segmentation.main(chosen)
    assert Records(chosen.out).read()[0]["seconds"] is None


def test_a_stopped_fit_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "draw", lambda *_: None)
    monkeypatch.setattr(bq.datasets, "load", lambda _: tiny())
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole, stopped = options(tmp_path / "whole", "ensemble"), options(tmp_path / "stopped", "ensemble")
    segmentation.main(whole)
    with monkeypatch.context() as patch:
        patch.setattr(ensemble.EnsemblePosterior, "save", None)
        with pytest.raises(TypeError, match="not callable"):
            segmentation.main(stopped)
    assert {path.suffixes[0] for path in stopped.work.iterdir()} == {".checkpoint"}
    segmentation.main(stopped)
    (one,), (other,) = (Records(run.out).read() for run in (whole, stopped))
    assert one["measures"] == other["measures"]
    assert other["seconds"] is None
    assert {path.suffix for path in stopped.work.iterdir()} == {".safetensors"}


def test_masks_turn_with_their_images() -> None:
    torch.manual_seed(0)
    labels = torch.randint(3, (64, 4, 5))
    x, y = augmented([(label.float().unsqueeze(0), label) for label in labels])
    assert torch.equal(x[:, 0], y.float())
    moved = (y != labels).flatten(1).any(dim=1)
    assert torch.equal(y[moved], labels[moved].flip(-1))
    assert 16 < int(moved.sum()) < 48


def test_square_masks_turn_by_quarters_too() -> None:
    """Each of the eight symmetries comes in about an eighth of 160 images, 4.2 standard errors of which are 18."""
    torch.manual_seed(0)
    label = torch.arange(16).view(4, 4)
    x, y = turned([(label.float().unsqueeze(0), label)] * 160)
    assert torch.equal(x[:, 0], y.float())
    shapes_of_it = [one.rot90(k, (-2, -1)) for one in (label, label.flip(-1)) for k in range(4)]
    counts = torch.tensor([int((y == one).flatten(1).all(dim=1).sum()) for one in shapes_of_it])
    assert int(counts.sum()) == 160
    assert int((counts - 20).abs().max()) <= 18


def test_a_network_is_trained_in_the_precision_of_its_setting_and_no_law_is_computed_in_it() -> None:
    low = replace(read_tiny(), precision="bfloat16")
    for setting, method, expected in ((low, "map", True), (low, "laplace", False), (read_tiny(), "map", False)):
        with lowered(setting, method):
            assert torch.is_autocast_enabled("cpu") is expected


def test_the_count_of_a_pixel_is_that_of_the_likeliest_validation_labels(capsys: pytest.CaptureFixture[str]) -> None:
    """Of a law that is right where labels count for a hundredth; void pixels, which nobody predicts, do not count."""
    split, setting = tiny(), replace(read_tiny(), ignore_index=2)

    class Known:
        def __init__(self, count: float) -> None:
            self.count = count

        def predict(self, *_: Any, **__: Any) -> CategoricalPredictive:
            off = 0.1 * abs(math.log10(self.count) + 2)
            probs = torch.stack(
                [(split.val.y == 0) * (1 - 2 * off) + off, (split.val.y != 0) * (1 - 2 * off) + off], dim=1
            )
            return CategoricalPredictive.from_probs(torch.cat([probs, torch.zeros_like(probs[:, :1])], dim=1)[None])

    assert best_of(Known, setting, split.val, 0).count == 1e-2  # type: ignore[arg-type, attr-defined]
    assert "chosen: 0.01" in capsys.readouterr().out


def test_a_loader_of_turned_images_depends_on_the_seed_of_the_fit_alone() -> None:
    setting, split = read_tiny(), tiny()
    fits = [fit("map", setting, split, seed, None) for seed in (0, 0, 1)]
    assert torch.equal(fits[0].values, fits[1].values)  # type: ignore[attr-defined]
    assert not torch.equal(fits[0].values, fits[2].values)  # type: ignore[attr-defined]
    assert isinstance(training_data(setting, split.train), torch.utils.data.DataLoader)


def read_tiny() -> Setting:
    training = {"num_epochs": 1, "batch_size": 2, "learning_rate": 0.01}
    return Setting(
        likelihood="categorical", num_classes=3, augments=True, network={"depth": 1, "width": 2}, training=training
    )


def test_the_settings_that_are_committed_make_models() -> None:
    settings = read_settings(segmentation.SETTINGS)
    assert set(settings) == {"membrane", "camvid", "shapes"}
    again = read_settings(segmentation.SETTINGS.with_stem("segmentation-turned"))
    assert set(again) == {"membrane"}
    for setting in [*settings.values(), *again.values()]:
        net = model(setting, 3, seed=0, with_dropout=True).net
        expected = 1 if setting.likelihood == "bernoulli" else setting.num_classes
        assert net(torch.zeros(1, 3, 32, 32)).shape[1] == expected


def test_what_stands_on_the_map_needs_one() -> None:
    with pytest.raises(ValueError, match="stands on map; fit that first"):
        fit("laplace", read_tiny(), tiny(), 0, None)
    with pytest.raises(ValueError, match="stands on ensemble; fit that first"):
        fit("ensemble-temperature", read_tiny(), tiny(), 0, None)
    with pytest.raises(ValueError, match="`method` must be one of"):
        fit("hmc", read_tiny(), tiny(), 0, None)
