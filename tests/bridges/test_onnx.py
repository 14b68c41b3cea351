"""`to_onnx`: onnxruntime's mean, total and epistemic are those of `predict`, at any number of rows."""

import functools
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bayesuq as bq
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.posterior import Posterior
from tests.inference.examples import SHORT_FIT

pytestmark = [
    pytest.mark.filterwarnings(*SHORT_FIT),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),  # torch's exporter of itself
]
SHORT: dict[str, Any] = {"num_epochs": 2, "seed": 0, "progress": False}
IMAGE = (1, 4, 4)


@pytest.fixture(autouse=True, scope="module")
def _exporter() -> None:
    """Loaded by the process that runs these tests, and not by each that collects them."""
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="needs the extra `onnx`")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime, which runs the graph")


@pytest.fixture(autouse=True, scope="module")
def _operators_are_read_once(_exporter: None) -> Iterator[None]:
    """Torch's exporter parses the source of each of its 500 operators anew for every graph, which takes longest."""
    registry = import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "from_torchlib", staticmethod(functools.cache(registry.from_torchlib)))
        yield


def data(num_classes: int | None = None, width: int = 3) -> bq.Dataset:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(40, width, generator=noise)
    y = x[:, :1] + 0.1 * torch.randn(40, 1, generator=noise)
    return bq.Dataset(x, y if num_classes is None else torch.arange(40) % num_classes)


def model(likelihood: Any, outputs: int, **options: Any) -> BayesianNetwork:
    return BayesianNetwork(networks.mlp(3, (5,), outputs, seed=0, **options), priors.Normal(), likelihood)


def of_labels() -> Posterior:
    """Members with running means of their own."""
    net = model(likelihoods.Categorical(), 3, batch_norm=True)
    return bq.inference.ensemble.fit(net, data(3), num_members=2, **SHORT)


def of_images_at_a_temperature() -> Posterior:
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 1))
    x = torch.randn(12, *IMAGE, generator=torch.Generator().manual_seed(0))
    rows = bq.Dataset(x, torch.arange(12) % 2)
    fitted = bq.inference.variational.fit(BayesianNetwork(net, priors.Normal(), likelihoods.Bernoulli()), rows, **SHORT)
    return bq.inference.temperature.fit(fitted, rows, num_samples=4, seed=0)


def in_units() -> Posterior:
    """Members of which each has draws, noise of its own at every row, and inputs and targets in large units."""
    raw = data()
    raw = bq.Dataset(100 + 30 * raw.x, 1000 * raw.y - 70)
    units = bq.Standardizer.fit(raw)
    noisy = model(likelihoods.HeteroscedasticNormal(), 2)
    options = {"num_members": 2, "member_fit": bq.inference.variational.fit, **SHORT}
    return bq.in_units(bq.inference.ensemble.fit(noisy, units.transform(raw), **options), units)


def with_a_noise_scale() -> Posterior:
    """One for each column."""
    one = data()
    rows = bq.Dataset(one.x, torch.cat([one.y, 3 * one.y], dim=1))
    return bq.inference.variational.fit(model(likelihoods.Normal(per_column=True), 2), rows, **SHORT)


def of_padded_sequences() -> Posterior:
    net = nn.Sequential(nn.Embedding(9, 4, padding_idx=0), nn.Flatten(), nn.Linear(12, 3))
    rows = bq.Dataset(torch.arange(36).reshape(12, 3) % 9, torch.arange(12) % 3)
    own = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    return bq.inference.variational.fit(own, rows, **SHORT)


@pytest.mark.parametrize(
    "make", [of_labels, of_images_at_a_temperature, in_units, with_a_noise_scale, of_padded_sequences]
)
def test_the_graph_answers_as_predict_does(make: Any, tmp_path: Path) -> None:
    posterior = make()
    shape = IMAGE if make is of_images_at_a_temperature else (3,)
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(1)) * (50 if make is in_units else 1)
    x = x.gt(0).long() if make is of_padded_sequences else x
    bq.bridges.to_onnx(posterior, tmp_path / "graph.onnx", x[:1], num_samples=4, seed=3)
    graph = import_module("onnxruntime").InferenceSession(tmp_path / "graph.onnx")
    assert [output.name for output in graph.get_outputs()] == ["mean", "total", "epistemic"]
    predictive = posterior.predict(x, num_samples=4, seed=3)
    for rows in (x, x[:1]):
        found = graph.run(None, {"x": rows.numpy()})
        for values, expected in zip(found, (predictive.mean, predictive.total, predictive.epistemic), strict=True):
            largest = float(expected.abs().max())
            assert values == pytest.approx(expected[: len(rows)].numpy(), rel=1e-5, abs=1e-6 * largest)
    assert float(predictive.epistemic.max()) > 0


@pytest.mark.parametrize(
    ("fit", "likelihood", "message"),
    [
        (bq.inference.dropout.fit, likelihoods.Normal(), "DropoutPosterior is no stack of networks"),
        (bq.inference.laplace.fit, likelihoods.Normal(), "LaplacePosterior is no stack.*`sampled`"),
        (bq.inference.map_estimate.fit, likelihoods.StudentT(), "StudentT.* is not written out"),
    ],
)
def test_what_is_no_graph_is_refused_by_name(fit: Any, likelihood: Any, message: str, tmp_path: Path) -> None:
    posterior = fit(model(likelihood, 1, dropout=0.1), data(), **SHORT)
    with pytest.raises(TypeError, match=message):
        bq.bridges.to_onnx(posterior, tmp_path / "graph.onnx", data().x)
    assert not list(tmp_path.iterdir())
