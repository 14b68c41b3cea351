"""SWAG's draws by its rate: wider laws of more mutual information, on a few small images."""

from pathlib import Path

import pytest

import bayesuq as bq
import scripts.rates_and_draws as rates_and_draws
from bayesuq.datasets import shapes
from bayesuq.inference import map_estimate
from scripts.segmentation_methods import Setting, model, training_data
from tests.inference.examples import SHORT_FIT

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore:SWAG:UserWarning", "ignore:SGD has left:UserWarning")


def test_draws_of_a_higher_rate_and_scale_differ_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    crop = slice(16, 32)
    parts = [shapes.draw(number, seed=number) for number in (4, 3, 3)]
    split = bq.Split(*(bq.Dataset(part.x[..., crop, crop], part.y[:, crop, crop]) for part in parts))
    training = {"num_epochs": 8, "batch_size": 2, "learning_rate": 0.01}
    setting = Setting(likelihood="categorical", num_classes=3, network={"depth": 1, "width": 2}, training=training)
    mode = map_estimate.fit(model(setting, 3, seed=0), training_data(setting, split.train), seed=0, **training)
    mode.save(tmp_path / "mode.safetensors")
    monkeypatch.setattr(bq.datasets, "load", lambda _: split)
    monkeypatch.setattr(rates_and_draws, "RATES", (0.003, 0.3))
    rates_and_draws.main(tmp_path / "mode.safetensors", setting)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        *("rate 0.003, scale 1", "rate 0.003, scale 100", "rate 0.3, scale 1", "rate 0.3, scale 100")
    ]
    added = [float(line.partition("mutual information ")[2].split()[0]) for line in lines]
    assert added[0] < added[1]
    assert added[0] < added[2] < added[3]
