"""What a posterior over a last layer holds and writes: the network once, and all else for the last layer alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.inference import (
    dropout,
    ensemble,
    hmc,
    ivon,
    laplace,
    microcanonical,
    sgmcmc,
    swag,
    temperature,
    variational,
)
from bayesuq.inference.adoption import adopt
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.models.likelihoods import Categorical
from bayesuq.posterior import Posterior
from tests.inference.examples import built, labelled

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
BODY, LAYER = 3 * 400 + 400 + 400 * 400 + 400 + 400 * 10 + 10, 10 * 3 + 3  # numbers
HEADER = 20_000  # bytes
SHORT: dict[str, Any] = {"num_epochs": 2, "seed": 0}
CHAINS: dict[str, Any] = {"num_samples": 3, "num_warmup": 2, "num_chains": 2, "thinning": 1, "seed": 0}
# How to fit, and for how many copies of the last layer's numbers, in float32, there may be room in the file.
FITS: dict[str, tuple[Callable[[MapPosterior, Any], Posterior], int]] = {
    "adopted": (lambda mode, _: mode, 2),
    "dropout": (lambda mode, _: dropout.around(mode, put_in={"6": 0.1}), 2),
    "laplace": (lambda mode, data: laplace.fit(mode, data), 4 + 2 * LAYER // 3),  # and two factors in float64
    "variational": (lambda mode, data: variational.fit(mode.model, data, **SHORT), 8),
    "ivon": (lambda mode, data: ivon.fit(mode.model, data, **SHORT), 8),
    "swag": (lambda mode, data: swag.fit(mode.model, data, mode=mode, rank=2, batch_size=10, **SHORT), 16),
    "ensemble": (lambda mode, data: ensemble.fit(mode.model, data, num_members=3, **SHORT), 8),
    "hmc": (lambda mode, data: hmc.fit(mode.model, data, start=mode, **CHAINS), 40),
    "sgmcmc": (lambda mode, data: sgmcmc.fit(mode.model, data, start=mode, **CHAINS), 40),
    "microcanonical": (
        lambda mode, data: microcanonical.fit(
            mode.model, data, start=mode, num_members=2, num_samples=3, num_warmup=4, thinning=1, seed=0
        ),
        40,
    ),
    "temperature": (lambda mode, data: temperature.fit(laplace.fit(mode, data), data, seed=0), 4 + 2 * LAYER // 3),
}


class Own(nn.Sequential):
    """Of a class that no file can name."""


def adopted() -> MapPosterior:
    net = built(
        lambda: Own(
            *(nn.Linear(3, 400), nn.Tanh(), nn.Linear(400, 400), nn.Tanh(), nn.Linear(400, 10), nn.Tanh()),
            nn.Linear(10, 3),
        )
    )
    return adopt(net, Categorical())


def tensors_of(value: Any) -> dict[int, Tensor]:
    """All tensors that a posterior holds outside of its models, by where they are in memory."""
    if isinstance(value, Tensor):
        return {value.untyped_storage().data_ptr(): value}
    parts = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, tuple) else []
    if isinstance(value, Posterior):
        parts = [part for name, part in vars(value).items() if name != "model"]
    return {place: tensor for part in parts for place, tensor in tensors_of(part).items()}


@pytest.mark.parametrize("name", FITS)
def test_files_and_memory_hold_the_body_once(name: str, tmp_path: Path) -> None:
    fit, room = FITS[name]
    mode, data = adopted(), labelled(30)
    posterior = fit(mode, data)
    file = tmp_path / "file.safetensors"
    posterior.save(file)
    assert file.stat().st_size <= 4 * (BODY + LAYER) + 4 * room * LAYER + HEADER < 2 * 4 * BODY
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(posterior).values())
    assert held <= 4 * room * LAYER + HEADER
    # Of the body there is one copy for all that is fitted to it.
    inner = posterior.posterior if name == "temperature" else posterior  # type: ignore[attr-defined]
    first = inner.members[0] if name == "ensemble" else inner
    if name not in ("dropout", "temperature"):
        body = first.model.net[2].weight  # type: ignore[attr-defined]
        assert name == "ensemble" or body.data_ptr() == mode.model.net[2].weight.data_ptr()
    model = mode.model if name != "dropout" else posterior.model  # type: ignore[attr-defined]
    loaded = bq.load(file, model=model).predict(data.x, num_samples=3, seed=0).mean
    assert torch.equal(loaded, posterior.predict(data.x, num_samples=3, seed=0).mean)
