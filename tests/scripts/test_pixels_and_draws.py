"""What the draws of a last layer add by the number of its pixels."""

from pathlib import Path

import pytest
import torch

import bayesuq as bq
import scripts.pixels_and_draws as pixels_and_draws
from bayesuq.inference import map_estimate
from bayesuq.models import BayesianNetwork, likelihoods, priors
from tests.inference.examples import built, noise


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_information_falls_as_the_pixels_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two weights that 1,024 and 4,096 labels decide: some 2 / (2 N) nats a label, here to a factor of two."""
    x = noise(0, 4, 1, 32, 32).float()
    y = (torch.rand(x[:, 0].shape, generator=torch.Generator().manual_seed(1)) < x[:, 0].sigmoid()).long()
    data = bq.Dataset(x, y)
    model = BayesianNetwork(built(lambda: torch.nn.Conv2d(1, 1, 1)), priors.Normal(scale=3.0), likelihoods.Bernoulli())
    mode = map_estimate.fit(model, data, num_epochs=100, learning_rate=0.1, seed=0)
    monkeypatch.setattr(bq, "load", lambda _: mode)
    monkeypatch.setattr(bq.datasets, "load", lambda _: bq.Split(data, data, data))
    monkeypatch.setattr(pixels_and_draws, "CROPS", ((1, 32), (4, 32)))
    pixels_and_draws.main(tmp_path / "mode.safetensors")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [int(row[0]) for row in rows] == [1024, 4096]
    for row in rows:
        assert 1.0 < float(row[6]) < 4.0
