"""`bayesuq compare`, `fit` and `evaluate` on images with a label for every pixel."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from bayesuq.cli import map_figures, problem
from bayesuq.cli.judging import Judged, judge
from bayesuq.cli.main import main
from bayesuq.cli.problem import Problem
from bayesuq.cli.settings import ModelOptions, PredictionOptions
from bayesuq.data import Dataset, Split
from bayesuq.datasets import named as datasets
from bayesuq.datasets import shapes
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import likelihoods
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.cli.rendering import not_rendered
from tests.inference.examples import SHORT_FIT

__all__ = ["not_rendered"]  # a fixture
pytestmark = [
    pytest.mark.filterwarnings(*SHORT_FIT, "ignore:The held-out labels do not say:UserWarning"),
    pytest.mark.usefixtures("not_rendered"),
]
VOID = datasets.IGNORED["camvid"]
SHORT = ["--num_epochs", "1", "--batch_size", "4", "--num_samples", "3"]


def scenes(*, void: bool = True) -> Split:
    """Small images with three classes and, at one edge, void pixels."""
    parts = []
    for k in range(3):
        scene = shapes.draw(5, seed=k)
        x, y = scene.x[..., 10:26, 10:26].contiguous(), scene.y[:, 10:26, 10:26].clone()
        y[:, 0] = VOID if void else 0
        parts.append(Dataset(x, y))
    return Split(*parts)


@pytest.fixture
def camvid(monkeypatch: pytest.MonkeyPatch) -> Split:
    split = scenes()
    monkeypatch.setattr(datasets, "load", lambda *_, **__: split)
    monkeypatch.setattr(problem, "UNET_WIDTH", 4)
    return split


class Alike:
    """Says the same of each image, whatever it shows."""

    def predict(self, x: torch.Tensor, **_: object) -> CategoricalPredictive:
        said = torch.tensor([0.7, 0.3]).view(1, 1, 2, *[1] * (x.ndim - 2))
        return CategoricalPredictive.from_probs(said.expand(1, len(x), 2, *x.shape[2:]))


def judged_alike(x: torch.Tensor, y: torch.Tensor) -> tuple[Split, Judged]:
    part = Dataset(x, y)
    return Split(part, part, part), judge(Alike(), part, None, None, PredictionOptions())  # type: ignore[arg-type]


def test_images_of_the_same_labels_are_drawn_each_beside_its_own_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As slices without a lesion, of which all were drawn as the first."""
    shown: list[torch.Tensor] = []
    monkeypatch.setattr(
        map_figures.segmentation, "segmentation_maps", lambda _, x, *__, **___: shown.append(x) or Figure()
    )
    x = torch.arange(7.0).view(7, 1, 1, 1).expand(7, 1, 4, 4).contiguous()
    split, judged = judged_alike(x, torch.zeros(7, 4, 4).long())
    map_figures._maps("drawn", split, "map", judged)
    assert shown[0][:, 0, 0, 0].tolist() == [0, 3, 6]


def test_void_voxels_are_none_of_the_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []

    class StoppedError(Exception): ...

    def slices(*_: object, volume: int, **__: object) -> None:
        chosen.append(volume)
        raise StoppedError

    monkeypatch.setattr(map_figures, "segmentation_slices", slices)
    y = torch.zeros(3, 2, 2, 2).long()
    y[0] = VOID
    y[0, 0, 0, 0] = 0
    y[2, 0, 0] = 1
    split, judged = judged_alike(torch.zeros(3, 1, 2, 2, 2), y.clamp(max=1))
    with pytest.raises(StoppedError):
        map_figures._slices("camvid", split, "map", replace(judged, y=y))
    assert chosen == [2]


@pytest.mark.slow
def test_methods_are_compared_by_their_maps(camvid: Split, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(["compare", "--data", "camvid", "--methods", "map,temperature,laplace", "--out", str(out), *SHORT]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    for words in (
        "Where is it wrong, and where is it unsure? (laplace)",
        "Do uncertain pixels find the wrong ones? (mutual information)",
        "Does it know which images went wrong?",
        "Intersection over union",
        "Was it trained long enough?",
        "A blind guess among 3 classes has an entropy of 1.10 nats.",  # void is none of them
    ):
        assert words in page
    report = json.loads((out / "reports" / "laplace.json").read_text())
    found = {measure["name"]: measure for measure in report["measures"]}
    assert "chosen on other images" in found["predictive_entropy_overlap"]["remark"]
    posterior = load(out / "posteriors" / "map.safetensors")
    said = posterior.predict(camvid.test.x).mean.argmax(dim=1)
    kept = camvid.test.y != VOID
    expected = float((said == camvid.test.y)[kept].double().mean())
    alone = json.loads((out / "reports" / "map.json").read_text())["measures"]
    assert next(m["value"] for m in alone if m["name"] == "pixel_accuracy") == pytest.approx(expected)


@pytest.mark.usefixtures("camvid")
def test_a_fit_is_evaluated_on_another_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--data", "camvid", "--method", "map", "--out", str(tmp_path / "fit"), *SHORT]) == 0
    posterior = str(tmp_path / "fit" / "posterior.safetensors")
    capsys.readouterr()
    out = str(tmp_path / "evaluated")
    assert main(["evaluate", "--posterior", posterior, "--data", "camvid", "--part", "val", "--out", out]) == 0
    capsys.readouterr()
    assert "chosen on these very images" in (tmp_path / "evaluated" / "report.json").read_text()


def test_a_page_on_volumes_is_scrolled_slice_by_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [shapes.volumes(3, seed=k) for k in range(3)]
    small = [Dataset(part.x[..., 8:12, 8:12].contiguous(), part.y[..., 8:12, 8:12].contiguous()) for part in parts]
    monkeypatch.setattr(datasets, "load", lambda *_, **__: Split(*small))
    monkeypatch.setattr(problem, "UNET_WIDTH", 2)
    out = tmp_path / "run"
    assert main(["compare", "--data", "shapes", "--methods", "map", "--out", str(out), *SHORT]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Through a whole volume (map)" in page
    (leaves,) = page.split('<div class="leaves"')[1:]
    assert leaves.count('<div class="leaf"><img src="data:image/png;base64,') == parts[0].y.shape[1]
    assert "<script" not in page


def test_void_pixels_are_no_class() -> None:
    camvid = Problem.of("camvid", scenes(), ModelOptions())
    model = camvid.model(seed=0)
    assert camvid.options.network == "unet"
    assert model.likelihood == likelihoods.Categorical(ignore_index=VOID)
    assert camvid.num_outputs == 3
    assert model.net(torch.zeros(1, 3, 16, 16)).shape == (1, 3, 16, 16)
    assert Problem.of("shapes", scenes(void=False), ModelOptions()).ignore_index is None
