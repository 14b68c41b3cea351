"""Laplace over a closing 1 x 1 convolution: the linear model of which every pixel is a row, at a pixel's cost."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import laplace, map_estimate
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.laplace import fitting as laplace_fitting
from bayesuq.inference.laplace import linearisation as curvature_layers
from bayesuq.inference.laplace import sketches as curvature_sketches
from bayesuq.inference.laplace.linearisation import Linearisation
from bayesuq.inference.laplace.posterior import LaplacePosterior
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import NO_MODE, built, noise
from tests.zoo.computed_numbers import ComputedNumbers

pytestmark = pytest.mark.filterwarnings(NO_MODE)
STRUCTURES = ["diagonal", "kronecker", "full"]
VOID = 3
LIKELIHOODS = {
    "three classes": (3, likelihoods.Categorical(class_weights=(0.5, 1.0, 2.0), ignore_index=VOID)),
    "two classes": (1, likelihoods.Bernoulli(class_weights=(0.5, 2.0))),
}


def images(kind: str, num: int = 4, size: tuple[int, int] = (5, 6)) -> Dataset:
    """With a weight for each pixel, and for three classes a void one."""
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(4 if kind == "three classes" else 2, (num, *size), generator=generator)
    return Dataset(noise(1, num, 2, *size), y, torch.rand(num, *size, generator=generator, dtype=torch.float64))


def model_of(kind: str) -> BayesianNetwork:
    num_outputs, likelihood = LIKELIHOODS[kind]
    net = built(lambda: networks.unet(2, num_outputs, depth=1, width=3).double())
    return BayesianNetwork(net, priors.Normal(scale=2.0), likelihood)


def fitted(kind: str, structure: Any, model: BayesianNetwork | None = None) -> LaplacePosterior:
    model, data = model or model_of(kind), images(kind)
    mode = map_estimate.fit(model, data, num_epochs=3, seed=0)
    return laplace.fit(model, data, mode=mode, structure=structure, subset="last_layer", seed=0)


def features(posterior: LaplacePosterior, x: Tensor) -> Tensor:
    """What goes into the head at each pixel, (N H W, I)."""
    seen: list[Tensor] = []
    linear = posterior._linear()
    with linear.tree.head.register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        linear.forward(x)
    return seen[0].movedim(1, -1).flatten(0, 2)


def of_pixels(posterior: LaplacePosterior, kind: str, structure: Any) -> tuple[LaplacePosterior, Tensor]:
    """The same posterior, of a linear layer whose rows are the pixels, and those rows."""
    data = images(kind)
    rows = features(posterior, data.x)
    net = nn.Linear(rows.shape[1], LIKELIHOODS[kind][0]).double()
    model = BayesianNetwork(net, posterior.model.prior, posterior.model.likelihood)
    theta = Layout.of(posterior.model).split(posterior.values)
    values = torch.cat([theta["head.weight"].flatten(), theta["head.bias"]])
    mode = map_estimate.fit(model, Dataset(rows, data.y.flatten() % 2), num_epochs=1, seed=0)
    mode = map_estimate.MapPosterior(model=mode.model, values=values, buffers={}, history=mode.history)
    data = Dataset(rows, data.y.flatten(), data.weight.flatten())
    return laplace.fit(model, data, mode=mode, structure=structure, seed=0), rows


@pytest.mark.filterwarnings("ignore:.*far from unit size:UserWarning")
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_it_is_the_linear_model_whose_rows_are_the_pixels(kind, structure):
    posterior = fitted(kind, structure)
    linear, rows = of_pixels(posterior, kind, structure)
    x = images(kind).x
    assert posterior.log_likelihood == pytest.approx(linear.log_likelihood, rel=1e-9)
    for mine, theirs in zip(posterior.curvature.values(), linear.curvature.values(), strict=True):
        torch.testing.assert_close(mine.flatten(), theirs.flatten(), rtol=1e-9, atol=1e-12)
    for reading in ("probit", "itself"):
        mine, theirs = (each.probit if reading == "probit" else each for each in (posterior, linear))
        expected = theirs.predict(rows, num_samples=7, seed=4)
        found = mine.predict(x, num_samples=7, seed=4)
        torch.testing.assert_close(found.mean.movedim(1, -1).flatten(0, 2), expected.mean, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found.epistemic.flatten(), expected.epistemic, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_pixels_as_rows_are_what_whole_maps_give(structure, monkeypatch):
    """With one weight for all pixels, where a Kronecker structure takes no mean of them."""
    model, data = model_of("three classes"), images("three classes")
    model = model.with_likelihood(likelihoods.Categorical())
    data = Dataset(data.x, data.y % 3)
    mode = map_estimate.fit(model, data, num_epochs=3, seed=0)
    found = []
    for by_pixel in (True, False):
        if not by_pixel:
            monkeypatch.setattr(Linearisation, "is_by_pixel", lambda _self, _rows: False)
        posterior = laplace.fit(model, data, mode=mode, structure=structure, subset="last_layer", seed=0)
        predictives = [posterior.predict(data.x, num_samples=5, seed=1), posterior.probit.predict(data.x)]
        found.append([posterior.law.log_det(), *(predictive.mean for predictive in predictives)])
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-9)


def test_weights_drawn_and_put_into_the_network_predict_the_same(tmp_path):
    """A closing linear layer is linear in its weights, so that the linear network is the network; saved, too."""
    posterior, x = fitted("three classes", "kronecker"), images("three classes").x
    expected = posterior.sampled.predict(x, num_samples=6, seed=2).mean
    torch.testing.assert_close(posterior.predict(x, num_samples=6, seed=2).mean, expected, rtol=1e-7, atol=1e-9)
    posterior.save(tmp_path / "laplace")
    torch.testing.assert_close(load(tmp_path / "laplace").predict(x, num_samples=6, seed=2).mean, expected)


class Beyond(nn.Module):
    """A network that does something with what the last convolution gives."""

    def __init__(self, after: Any) -> None:
        super().__init__()
        self.head, self.after = nn.Conv2d(2, 3, 1).double(), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(x))


@pytest.mark.parametrize(
    ("after", "expected"),
    [(lambda f: f, True), (torch.relu, False), (torch.relu_, False), (lambda f: f.flip(2), False)],
)
def test_only_what_the_convolution_gave_as_it_is_counts_by_the_pixel(after, expected):
    net = built(lambda: Beyond(after))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    x = noise(0, 2, 2, 3, 4)
    assert Linearisation(model, model.initial(), {}, list(model.laws)).is_by_pixel(x) is expected


def test_large_maps_fit_memory():
    """Of 128 x 128 pixels and three classes, whose whole Jacobian would have 2.4e9 entries."""
    model = model_of("three classes")
    mode = map_estimate.fit(model, images("three classes"), num_epochs=1, seed=0)
    data = images("three classes", num=2, size=(128, 128))
    posterior = laplace.fit(model, data, mode=mode, subset="last_layer", seed=0)
    assert posterior.predict(data.x, num_samples=2, seed=0).total.shape == (2, 128, 128)


# Whole networks on maps


MAPS = {
    "three classes": (3, likelihoods.Categorical(class_weights=(0.5, 1.0, 2.0), ignore_index=VOID)),
    "two classes": (1, likelihoods.Bernoulli()),
    "noisy labels": (6, likelihoods.HeteroscedasticCategorical(4)),
}


class Maps(nn.Module):
    """Convolutions, a normalisation and a bare parameter; what it ends in is no convolution."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first, self.norm, self.last = (
            nn.Conv2d(2, 3, 3, padding=1),
            nn.GroupNorm(1, 3),
            nn.Conv2d(3, num_outputs, 1),
        )
        self.scale = nn.Parameter(torch.full((num_outputs, 1, 1), 1.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).tanh()) * self.scale


def mapped(kind: str) -> tuple[BayesianNetwork, Dataset]:
    num_outputs, likelihood = MAPS[kind]
    data = images("two classes" if kind == "two classes" else "three classes", num=3, size=(2, 4))
    if kind == "noisy labels":
        data = Dataset(data.x, data.y % 3)
    return BayesianNetwork(built(lambda: Maps(num_outputs).double()), priors.Normal(scale=2.0), likelihood), data


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("kind", MAPS)
def test_combinations_of_all_outputs_give_the_explicit_curvature(kind, structure, monkeypatch):
    """Unit vectors instead of random signs: the sums over them are the sums over outputs."""
    model, data = mapped(kind)
    mode = map_estimate.fit(model, data, num_epochs=3, seed=0)
    explicit = laplace.fit(model, data, mode=mode, structure=structure)
    num_outputs = model.forward(model.initial(), data.x[:1]).numel()
    groups = num_outputs // curvature_sketches.TOGETHER
    assert groups * curvature_sketches.TOGETHER == num_outputs

    def units(number: int, _row: int, group: int) -> Tensor:
        chosen = torch.arange(curvature_sketches.TOGETHER) + group * curvature_sketches.TOGETHER
        return torch.eye(number, dtype=torch.float64)[:, chosen] * number**0.5

    monkeypatch.setattr(curvature_layers, "EXACT_OUTPUTS", 1)
    monkeypatch.setattr(curvature_sketches, "_signs", units)
    monkeypatch.setattr(laplace_fitting, "num_groups", lambda _: groups)
    for batch_size in (3, 1):
        sketched = laplace.fit(model, data, mode=mode, structure=structure, batch_size=batch_size)
        for name, value in explicit.curvature.items():
            torch.testing.assert_close(sketched.curvature[name], value, rtol=1e-9, atol=1e-12)


def test_random_signs_give_it_on_average_whatever_the_chunks(monkeypatch):
    model, data = mapped("three classes")
    mode = map_estimate.fit(model, data, num_epochs=3, seed=0)
    explicit = laplace.fit(model, data, mode=mode, structure="diagonal")
    monkeypatch.setattr(curvature_layers, "EXACT_OUTPUTS", 1)
    monkeypatch.setattr(curvature_sketches, "COMBINATIONS", 3 * 300)
    whole, parts = (
        laplace.fit(model, data, mode=mode, structure="diagonal", batch_size=size).curvature for size in (3, 2)
    )
    errors = []
    for name, value in explicit.curvature.items():
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-9, atol=1e-12)
        errors.append(((whole[name] - value) / value).flatten())
    # Of 300 combinations a row, a relative standard error of sqrt(2 / 300) or less: 8 % where one row has it all.
    assert torch.cat(errors).abs().max() < 4.5 * (2 / 300) ** 0.5
    assert torch.cat(errors).std() < (2 / 300) ** 0.5


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("forward", [True, False])
def test_draws_by_products_are_those_by_jacobians(structure, forward, monkeypatch):
    model, data = mapped("three classes")
    mode = map_estimate.fit(model, data, num_epochs=3, seed=0)
    posterior = laplace.fit(model, data, mode=mode, structure=structure)
    expected = posterior.predict(data.x, num_samples=5, seed=2, keep_samples=True).draws
    probit = posterior.probit.predict(data.x).mean
    monkeypatch.setattr(curvature_layers, "EXACT_OUTPUTS", 1)
    if not forward:
        monkeypatch.setattr(torch.func, "jvp", lambda *_: (_ for _ in ()).throw(RuntimeError("no forward derivative")))
    found = posterior.predict(data.x, num_samples=5, seed=2, keep_samples=True).draws
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    # A variance from 100 draws has a relative standard error of 14 %; of a logit / sqrt(1 + pi/8 v) half of that.
    assert (posterior.probit.predict(data.x).mean - probit).abs().max() < 4.5 * 0.07 * float(expected.std())


def test_whole_networks_fit_memory_on_large_maps(monkeypatch):
    """Of 128 x 128 pixels, whose Jacobian in factors would hold 49,152 outputs times 16,384 positions a layer."""
    monkeypatch.setattr(curvature_sketches, "COMBINATIONS", 8)  # for time
    model = model_of("three classes")
    data = images("three classes", num=1, size=(128, 128))
    mode = map_estimate.fit(model, images("three classes"), num_epochs=1, seed=0)
    posterior = laplace.fit(model, data, mode=mode)
    assert posterior.predict(data.x, num_samples=2, seed=0).total.shape == (1, 128, 128)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (6, 7)),
        ({"stride": 2}, (6, 7)),
        ({"padding": 1, "dilation": 2}, (6, 7)),
        ({"padding": 1, "dilation": 2, "stride": 2}, (9,)),
        ({"padding": (1, 0, 2), "dilation": (2, 1, 1), "stride": (1, 2, 1)}, (3, 4, 3)),
    ],
    ids=str,
)
def test_a_closing_convolution_of_any_kind_counts_by_the_pixel(options, size, monkeypatch):
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    first = built(lambda: convolution(2, 2, 3, padding=1))
    net = built(lambda: nn.Sequential(first, nn.Tanh(), convolution(2, 3, 3, **options)).double())
    model, data = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical()), noise(0, 4, 2, *size)
    y = (model.forward(model.initial(), data) + noise(1, *model.forward(model.initial(), data).shape)).argmax(dim=1)
    data = Dataset(data, y)
    mode = map_estimate.fit(model, data, num_epochs=3, seed=0)
    found = []
    for by_pixel in (True, False):
        if not by_pixel:
            monkeypatch.setattr(Linearisation, "is_by_pixel", lambda _self, _rows: False)
        posterior = laplace.fit(model, data, mode=mode, structure="full", subset="last_layer")
        assert by_pixel == posterior._linear().is_by_pixel(data.x)
        found.append(posterior.law.curvature["full"])
        found.append(posterior.predict(data.x, num_samples=5, seed=1).mean)
    torch.testing.assert_close(found[0], found[2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], found[3], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("structure", "subset"), [("diagonal", "all"), ("diagonal", "last_layer"), ("kronecker", "last_layer")]
)
def test_its_work_grows_as_the_pixels_do_and_not_as_their_square(
    structure: Any, subset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curvature_layers, "EXACT_OUTPUTS", 100)  # small maps take the way of large ones
    model, counts = model_of("three classes"), []
    for side in (6, 12):
        data = images("three classes", num=1, size=(side, side))
        mode = map_estimate.fit(model, data, num_epochs=1, seed=0)
        with ComputedNumbers() as numbers:
            laplace.fit(model, data, mode=mode, structure=structure, subset=subset, seed=0)
        counts.append(numbers.count)
    assert math.log(counts[1] / counts[0], 4) < 1.1  # one by one it is 1.9
