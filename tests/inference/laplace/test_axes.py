"""Curvatures of fewer rows than columns: the same law as by the whole matrix, without anything of its size."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.data import Dataset
from bayesuq.inference import laplace
from bayesuq.inference.adoption import adopt
from bayesuq.inference.laplace import axes, linearisation, structures
from bayesuq.inference.laplace.axes import Axes
from bayesuq.inference.laplace.posterior import LaplacePosterior
from bayesuq.models.likelihoods.labels import Categorical
from bayesuq.models.likelihoods.real import Normal as NormalLikelihood
from bayesuq.models.priors import Normal
from tests.inference.examples import NO_MODE, built, noise
from tests.zoo.live_tensors import LiveTensors

ROWS, WIDTH = 9, 30  # rows, and inputs of the last layer without its bias
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def fitted(kind: str, *, likelihood: str = "labels", batch_size: int = 4) -> LaplacePosterior:
    """Of a last layer, of all layers, or of convolutions and a last layer; float64, rows of several weights."""
    layers = {
        "last layer": lambda: nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4)),
        "all layers": lambda: nn.Sequential(nn.Linear(3, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 4)),
        "convolution": lambda: nn.Sequential(
            nn.Conv2d(1, 30, 3), nn.Tanh(), nn.Conv2d(30, 2, 2), nn.Flatten(), nn.Linear(2, 4)
        ),
    }
    net = built(lambda: layers[kind]().double(), seed=1)
    x = noise(1, ROWS, 1, 4, 4) if kind == "convolution" else noise(1, ROWS, 3)
    y = torch.arange(ROWS) % 4 if likelihood == "labels" else noise(2, ROWS, 4)
    data = Dataset(x, y, torch.linspace(0.0, 2.0, ROWS))
    law = Categorical() if likelihood == "labels" else NormalLikelihood(scale=0.3)
    random = "last_layer" if kind == "last layer" else "all"
    return laplace.fit(adopt(net, law, prior=Normal(scale=0.7), random=random), data, batch_size=batch_size)


def by_matrices(posterior: LaplacePosterior) -> LaplacePosterior:
    """The same with the products of the rows in their place."""
    curvature = {
        name.replace("rows.", "inputs.", 1): value.T @ value if name.startswith("rows.") else value
        for name, value in posterior.curvature.items()
    }
    return replace(posterior, curvature=curvature)


CASES = [("last layer", "labels"), ("last layer", "numbers"), ("all layers", "labels"), ("convolution", "labels")]


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.parametrize(("kind", "likelihood"), CASES)
def test_rows_and_the_sum_of_their_products_are_one_law(kind: str, likelihood: str) -> None:
    few = fitted(kind, likelihood=likelihood)
    assert any(name.startswith("rows.") for name in few.curvature)
    whole = by_matrices(few)
    mine, other = few.law, whole.law
    size = mine.layout.size
    maps = [law.deviation(torch.eye(size, dtype=torch.float64)) for law in (mine, other)]
    torch.testing.assert_close(maps[0].T @ maps[0], maps[1].T @ maps[1], **TIGHT)
    torch.testing.assert_close(mine.eigenvalues().sort().values, other.eigenvalues().sort().values, **TIGHT)
    for number in ("log_det", "num_determined"):
        torch.testing.assert_close(getattr(mine, number)(), getattr(other, number)(), **TIGHT)
    x = noise(3, 5, 1, 4, 4) if kind == "convolution" else noise(3, 5, 3)
    linear = few._linear()
    _, derivatives = linear.derivatives(x)
    for asked in ("output_covariance", "output_variance"):
        torch.testing.assert_close(getattr(mine, asked)(derivatives), getattr(other, asked)(derivatives), **TIGHT)
    drawn = noise(4, 6, size)
    torch.testing.assert_close(
        mine.pushed(derivatives, drawn), derivatives.pushed(mine.layout.split(mine.deviation(drawn))), **TIGHT
    )
    vector = mine.layout.split(noise(5, size))
    squares = [law.square(vector, lambda: linear.as_derivatives(vector)) for law in (mine, other)]
    torch.testing.assert_close(*squares, **TIGHT)
    assert few.tuned("each").prior_factors == pytest.approx(whole.tuned("each").prior_factors, rel=1e-5)


@pytest.mark.filterwarnings(NO_MODE, "ignore:the network Sequential was not built")
def test_outputs_at_few_rows_have_that_law_too(tmp_path: Path) -> None:
    few = fitted("last layer")
    _, derivatives = few._linear().derivatives(noise(3, 5, 3))
    roots = [posterior.law.outputs_at(derivatives).roots for posterior in (few, by_matrices(few))]
    torch.testing.assert_close(roots[0] @ roots[0].mT, roots[1] @ roots[1].mT, **TIGHT)
    few.save(tmp_path / "few.bq")
    again = bq.load(tmp_path / "few.bq", model=few.model)
    x = noise(6, 4, 3)
    assert torch.equal(again.predict(x, seed=0).mean, few.predict(x, seed=0).mean)


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize("width", [5, 16, 18, 40])
def test_how_rows_come_in_batches_changes_nothing(batch_size: int, width: int) -> None:
    net = built(lambda: nn.Sequential(nn.Linear(3, width), nn.Linear(width, 4)).double(), seed=1)
    weight = torch.linspace(0.1, 2.0, ROWS).double()
    data = Dataset(noise(1, ROWS, 3), torch.arange(ROWS) % 4, weight)
    adopted = adopt(net, Categorical())
    found = laplace.fit(adopted, data, batch_size=batch_size).curvature
    with torch.no_grad():
        a = torch.cat([net[0](data.x), torch.ones(ROWS, 1).double()], dim=1) * data.weight.sqrt().unsqueeze(1)
    own = found["rows.1"] if width + 1 >= 2 * ROWS else found["inputs.1"]
    torch.testing.assert_close(own, a if width + 1 >= 2 * ROWS else a.T @ a, rtol=1e-12, atol=1e-12)
    assert len(found) == 3


def test_axes_of_equal_rows_are_as_few_as_there_are_directions() -> None:
    rows = noise(1, 2, 7).repeat(3, 1)
    found = Axes.of_rows(rows)
    assert found.vectors.shape == (7, 2)
    torch.testing.assert_close((found.vectors * found.values) @ found.vectors.T, rows.T @ rows, **TIGHT)
    assert Axes.of_rows(0 * rows).coordinates(rows).equal(rows)


def test_large_matrices_are_decomposed_in_their_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = noise(1, 50, 40)
    expected = Axes.of_matrix(lambda: rows.T @ rows)
    monkeypatch.setattr(axes, "LARGEST_COPIED", 0)
    found = Axes.of_matrix(lambda: rows.T @ rows)
    torch.testing.assert_close(found.values, expected.values, **TIGHT)
    torch.testing.assert_close((found.vectors * found.values) @ found.vectors.T, rows.T @ rows, **TIGHT)


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.parametrize(("num_rows", "of_own"), [(35, 0), (900, 1)])
def test_a_last_layer_takes_little_beside_the_network_and_its_features(
    num_rows: int, of_own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proportions of 100 million weights before 5,000 features, whose curvature is half as large as the weights."""
    monkeypatch.setattr(linearisation, "LARGEST_EXACT", 0)  # that is too large to be looked at in float64
    width, num_features = 390, 870
    net = nn.Sequential(*[nn.Linear(width, width) for _ in range(4)], nn.Linear(width, num_features), nn.ReLU())
    net.append(nn.Linear(num_features, 10))
    x, y = torch.randn(num_rows, width), torch.arange(num_rows) % 10
    with LiveTensors(net, x) as live:
        posterior = laplace.fit(adopt(net, Categorical()), Dataset(x, y), batch_size=300)
        posterior.predict(x[:10], num_samples=10, seed=0)
    weights, features = (4 * number for number in (sum(map(Tensor.numel, net.parameters())), num_rows * num_features))
    state = [*posterior.curvature.values(), *(part.vectors for part in posterior.law._decompositions["6"])]
    held = of_own * sum(8 * part.numel() for part in state)
    assert live.peak <= 1.3 * (weights + features + held)


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.parametrize(("width", "most"), [(77, 1.2), (102, 1.25)])
def test_a_last_layer_of_many_classes_does_too(width: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proportions of 100 million weights before 768 and 1,024 features and 1,000 classes, by a tenth."""
    monkeypatch.setattr(linearisation, "LARGEST_EXACT", 0)
    monkeypatch.setattr(structures, "NUMBERS_AT_A_TIME", 2**10)
    words = (1_000_000 - 100 * width) // width
    net = nn.Sequential(nn.EmbeddingBag(words, width), nn.Tanh(), nn.Linear(width, 100))
    x, y = torch.arange(200).view(100, 2), torch.arange(100)
    with LiveTensors(net, x) as live:
        laplace.fit(adopt(net, Categorical()), Dataset(x, y)).predict(x[:5], num_samples=5, seed=0)
    weights = sum(map(Tensor.numel, net.parameters()))
    assert live.peak <= most * 4 * (weights + 100 * width)
