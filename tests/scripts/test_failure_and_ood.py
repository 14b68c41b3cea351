"""The failure and out-of-distribution tables: every line, what a second call does, and that a stopped one goes on."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bayesuq as bq
import scripts.failure as failure
import scripts.ood as ood
from bayesuq.inference import map_estimate
from scripts.further_tables import CORBIERE, paired
from scripts.ood_methods import METHODS, WITHOUT_NETWORK, Setting, posterior_width, read_settings
from scripts.recording import Records
from tests.inference.examples import SHORT_FIT

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore:The held-out labels do not say:UserWarning")
TINY = """hidden = [16]
dropout = 0.3
prior_scale = 0.43
num_epochs = 3
learning_rate = 0.01
num_draws = 5
confidence_hidden = [8]
confidence_epochs = 2
confidence_rate = 0.001
fine_tuning_epochs = 1
fine_tuning_rate = 0.0001
"""
SHORT = "num_epochs = 2\nlearning_rate = 0.01\nhidden = [8]\nchannels = [2, 3]\nnum_samples = 5\nnum_members = 2\n"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two kinds, a bright row or a bright column that names the class, sometimes the wrong one."""
    noise = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    for name in ("mnist", "fashion_mnist"):
        parts = {}
        for part, size in (("train", 5200), ("test", 120)):
            y = noise.integers(0, 10, size=size)
            x = noise.integers(0, 60, size=(size, 28, 28)).astype(np.uint8)
            shown = np.where(noise.random(size) < 0.2, noise.integers(0, 10, size=size), y)
            for image, label in zip(x, shown, strict=True):
                (image if name == "mnist" else image.T)[2 * label + 3] = 255
            parts |= {f"x_{part}": x, f"y_{part}": y.astype(np.uint8)}
        np.savez(folder / "images" / f"{name}.npz", **parts)
    return folder


@pytest.fixture(scope="module")
def few_images(images: Path) -> dict[str, bq.Split]:
    """What the sets hold, of which few are fitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BAYESUQ_DATA", str(images))
        return {name: few(bq.datasets.load(name)) for name in ("mnist", "fashion_mnist")}


@pytest.fixture
def folder(images: Path, few_images: dict[str, bq.Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BAYESUQ_DATA", str(images))
    monkeypatch.setattr(bq.datasets, "load", few_images.__getitem__)
    return tmp_path


def few(whole: bq.Split) -> bq.Split:
    return bq.Split(whole.train.rows(range(150)), whole.val.rows(range(60)), whole.test, whole.ood)


def options(folder: Path, text: str, **changes: Any) -> argparse.Namespace:
    (folder / "settings.toml").write_text(text, encoding="utf-8")
    defaults = {
        "settings": folder / "settings.toml",
        "num_seeds": 1,
        "networks": ("mlp",),
        "data": ("mnist", "fashion_mnist"),
    }
    return argparse.Namespace(**{**defaults, "out": folder / "runs.jsonl", "work": folder / "work", **changes})


def test_every_score_has_a_line_for_each_seed_beside_the_published_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failure.main(options(folder, TINY, num_seeds=2))
    lines = Records(folder / "runs.jsonl").read()
    expected = [(seed, name) for seed in (0, 1) for name in CORBIERE]
    assert [(line["seed"], line["score"]) for line in lines] == expected
    for line in lines:
        assert all(0 <= line[name] <= 100 for name in ("fpr95", "aupr_error", "aupr_success", "auroc", "error"))
    assert lines[0]["error"] == lines[2]["error"]  # maximum probability and ConfidNet judge one network
    assert len({line["auroc"] for line in lines}) == 6
    printed = capsys.readouterr().out
    assert "57.37" in printed
    assert "±" in printed
    content = (folder / "runs.jsonl").read_bytes()
    failure.main(options(folder, TINY, num_seeds=2))
    assert (folder / "runs.jsonl").read_bytes() == content


def test_the_measures_are_the_papers() -> None:
    wrong = torch.tensor([True, False, True, False, False])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.1])
    found = failure.measured(scores, wrong)
    assert found["error"] == pytest.approx(40.0)
    assert found["auroc"] == pytest.approx(100 * 5 / 6)
    assert found["aupr_error"] == pytest.approx(100 * (1 + 2 / 3) / 2)
    assert found["fpr95"] == pytest.approx(50.0)  # to keep every right prediction, one error of two is kept


def test_a_stopped_failure_run_goes_on_with_the_same_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failure.main(options(folder, TINY, out=folder / "whole.jsonl", work=folder / "other"))
    with monkeypatch.context() as patch:
        patch.setattr(failure, "maximum_probability", None)
        with pytest.raises(TypeError):
            failure.main(options(folder, TINY))
    assert Records(folder / "runs.jsonl").read() == []
    failure.main(options(folder, TINY))
    assert json.dumps(Records(folder / "runs.jsonl").read()) == json.dumps(Records(folder / "whole.jsonl").read())


def tables(*methods: str) -> str:
    return "\n".join(f"[{name}]\n{SHORT}{'dropout = 0.2' if name == 'dropout' else ''}" for name in methods)


@pytest.mark.slow
def test_every_method_has_a_line(folder: Path) -> None:
    ood.main(options(folder, tables(*METHODS), data=("mnist",)))
    lines = Records(folder / "runs.jsonl").read()
    assert [line["method"] for line in lines] == list(METHODS)
    for line in lines:
        assert all(0 <= area <= 1 for area in line["auroc"].values())
        assert ("mutual_information" in line["auroc"]) == (line["method"] not in ("map", "temperature"))
        assert (line["width"] is not None) == (line["method"] in ("variational", "swag", "laplace"))
        assert line["num_draws"] == {"map": 1, "temperature": 1, "ensemble": 2}.get(line["method"], 5)
    by_method = {line["method"]: line for line in lines}
    assert by_method["temperature"]["error"] == by_method["map"]["error"]


@pytest.mark.slow
def test_each_direction_and_network_has_lines_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tables("map", "ensemble", "svgp", "deep-kernel").replace("num_samples", "num_inducing = 20\nnum_samples")
    ood.main(options(folder, text, networks=("mlp", "convnet")))
    lines = Records(folder / "runs.jsonl").read()
    assert len(lines) == 2 * (2 * 3 + 1)  # the process on pixels has no network
    printed = capsys.readouterr().out
    assert "Fitted to `fashion_mnist`, told from MNIST; 1 seed:" in printed
    assert printed.count("Entropy of the ensemble less that of one ") == 4
    content = (folder / "runs.jsonl").read_bytes()
    ood.main(options(folder, text, networks=("mlp", "convnet")))
    assert (folder / "runs.jsonl").read_bytes() == content


def test_what_stands_on_the_mode_takes_it_from_its_file(folder: Path) -> None:
    ood.main(options(folder, tables("map", "temperature", "laplace")))
    lines = Records(folder / "runs.jsonl").read()
    assert [line["method"] for line in lines] == ["map", "temperature", "laplace"] * 2
    assert {path.name.partition("-")[0] for path in (folder / "work").iterdir()} == {"mode"}  # and no checkpoint
    assert lines[2]["mean_mutual_information"] > 0


def test_digits_are_told_from_nines_by_the_perceptron_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    text = tables("map", "svgp", "deep-kernel").replace("num_samples", "num_inducing = 20\nnum_samples")
    ood.main(options(folder, text, data=("digits-0to8",), networks=("mlp", "convnet")))
    lines = Records(folder / "runs.jsonl").read()
    assert [(line["network"], line["method"]) for line in lines] == [
        ("mlp", "map"),
        ("none", "svgp"),
        ("mlp", "deep-kernel"),
    ]
    assert "mutual_information" in lines[1]["auroc"]
    assert "told from nines; 1 seed:" in capsys.readouterr().out


def test_the_paired_difference_is_by_seed() -> None:
    lines = [
        {"method": method, "seed": seed, "auroc": {"predictive_entropy": area}}
        for method, areas in {"map": (0.90, 0.80), "ensemble": (0.95, 0.87, 0.1), "swag": (0.0, 0.0)}.items()
        for seed, area in enumerate(areas)
    ]
    assert paired(lines, "ensemble", "map").rounded(4) == "0.0600 ± 0.0100"


def test_the_committed_settings_have_every_method() -> None:
    for (_, network), path in ood.SETTINGS_OF.items():
        without = WITHOUT_NETWORK if network == "convnet" else ()  # the perceptron's run has had them
        assert list(read_settings(path)) == [name for name in METHODS if name not in without]
    model = Setting(hidden=(2,)).model("mlp", few_rows(), 0)
    assert posterior_width(map_estimate.fit(model, few_rows(), num_epochs=1), 0) is None


def few_rows() -> bq.Dataset:
    return bq.Dataset(torch.rand(4, 1, 28, 28), [0, 1, 2, 3])


def test_unknown_methods_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[hmc]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="among map, temperature"):
        read_settings(tmp_path / "bad.toml")
