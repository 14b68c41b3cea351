"""Real-valued images: laws of pixels that stream, their measures by image, and noise that is found where it is."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bayesuq.data import Dataset, Standardizer
from bayesuq.datasets import shapes
from bayesuq.evaluation import plots, report, scores
from bayesuq.evaluation.real_maps import evaluate_maps, kept_errors
from bayesuq.evaluation.segmentation.reporting import predictions
from bayesuq.inference import dropout, ensemble, laplace, map_estimate, variational
from bayesuq.inference.posteriors import draw_budget
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.predictive.maps import RealMaps
from tests.inference.examples import NO_MODE, built, noise

pytestmark = [pytest.mark.filterwarnings(NO_MODE), pytest.mark.filterwarnings("ignore::UserWarning")]
FEW: dict[str, Any] = {"num_epochs": 2, "seed": 0, "progress": False}
HEADS = {
    "normal": (2, likelihoods.Normal(scale=0.3)),
    "by channel": (2, likelihoods.Normal(scale=[0.3, 0.6])),
    "laplace": (2, likelihoods.Laplace(scale=0.3)),
    "heteroscedastic": (4, likelihoods.HeteroscedasticNormal()),
    "student": (2, likelihoods.StudentT(scale=0.3)),
}


def problem(head: str, size: tuple[int, ...] = (5, 6)) -> tuple[BayesianNetwork, Dataset]:
    num_outputs, likelihood = HEADS[head]
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(size) - 1]
    drop = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[len(size) - 1]

    def net() -> nn.Module:
        parts = convolution(1, 3, 3, padding=1), nn.Tanh(), drop(0.2), convolution(3, num_outputs, 1)
        return nn.Sequential(*parts).double()

    x = noise(0, 3, 1, *size)
    y = torch.cat([x, x.square()], dim=1) + 0.3 * noise(1, 3, 2, *size)
    return BayesianNetwork(built(net), priors.Normal(), likelihood), Dataset(x, y)


@pytest.mark.parametrize("size", [(7,), (5, 6), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("head", HEADS)
def test_pixels_have_the_laws_that_rows_would_have(head: str, size: tuple[int, ...]) -> None:
    """By hand: the likelihood of the outputs of one pixel, at its place among all."""
    model, data = problem(head, size)
    posterior = map_estimate.fit(model, data, **FEW)
    theta = {name: value[0] for name, value in posterior.sample_weights(1).items()}
    f = model.forward(theta, data.x)
    rows, y = f.movedim(1, -1).flatten(0, -2), data.y.movedim(1, -1).flatten(0, -2)
    expected = model.likelihood.predictive(rows.unsqueeze(0))
    found = posterior.predict(data.x)
    assert isinstance(found, RealMaps)
    for part in ("mean", "total", "aleatoric"):
        values = getattr(found, part)
        assert values.shape == data.y.shape
        torch.testing.assert_close(values.movedim(1, -1).flatten(0, -2), getattr(expected, part))
    torch.testing.assert_close(found.log_prob(data.y).flatten(), expected.log_prob(y))
    torch.testing.assert_close(found.quantile(0.9).movedim(1, -1).flatten(0, -2), expected.quantile(0.9))
    torch.testing.assert_close(model.likelihood.log_prob(f, data.y).sum(), expected.log_prob(y).sum())
    torch.testing.assert_close(model.likelihood.distribution(f).log_prob(data.y), model.likelihood.log_prob(f, data.y))


FITS = {
    "mean field": variational.fit,
    "dropout": dropout.fit,
    "ensemble": partial(ensemble.fit, num_members=3),
    "last layer": partial(laplace.fit, subset="last_layer"),
}


@pytest.mark.parametrize("method", FITS)
def test_draws_mix_at_every_pixel_and_windows_give_the_whole(method: str, tmp_path: Any) -> None:
    model, data = problem("heteroscedastic")
    posterior = FITS[method](model, data, **FEW)
    found = posterior.predict(data.x, num_samples=6, seed=1)
    torch.testing.assert_close(found.total, found.aleatoric + found.epistemic)
    assert float(found.epistemic.min()) > 0
    if method != "last layer":  # in closed form
        means = found.as_maps(found.pixels.component_means)
        torch.testing.assert_close(found.epistemic, means.var(dim=0, correction=0))
    windowed = posterior.predict(data.x, num_samples=6, seed=1, window=4, overlap=0.6, margin=1)
    for part in ("mean", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(windowed, part), getattr(found, part), rtol=1e-8, atol=1e-10)
    posterior.save(tmp_path / "maps")


def test_a_last_layer_is_the_linear_model_whose_rows_are_the_pixels() -> None:
    model, data = problem("by channel")
    mode = map_estimate.fit(model, data, num_epochs=1, seed=0)
    posterior = laplace.fit(model, data, mode=mode, subset="last_layer", structure="full")
    found = posterior.predict(data.x)
    theta = {name: value[0] for name, value in mode.sample_weights(1).items()}
    features = torch.tanh(nn.functional.conv2d(data.x, theta["0.weight"], theta["0.bias"], padding=1))
    a = torch.cat([features, torch.ones_like(features[:, :1])], dim=1).movedim(1, -1).flatten(0, -2)
    for k, scale in enumerate((0.3, 0.6)):
        precision = a.T @ a / scale**2 + torch.eye(4)
        expected = torch.einsum("ni,ij,nj->n", a, torch.linalg.inv(precision), a)
        torch.testing.assert_close(found.epistemic[:, k].flatten(), expected.double(), rtol=1e-6, atol=1e-9)


def test_draws_beyond_the_budget_are_thinned_and_moments_are_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = problem("normal")
    posterior = dropout.fit(model, data, **FEW)
    whole = posterior.predict(data.x, num_samples=64, seed=2, keep_samples=True)
    monkeypatch.setattr(draw_budget, "DRAW_BUDGET", 20 * whole.mean.numel())
    with pytest.warns(UserWarning, match="64 draws"):
        some = posterior.predict(data.x, num_samples=64, seed=2)
    assert some.num_samples == 16 < whole.num_samples == 64
    for part in ("mean", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(some, part), getattr(whole, part))


def test_measures_are_means_over_images_of_means_over_pixels() -> None:
    model, data = problem("heteroscedastic")
    posterior = dropout.fit(model, data, **FEW)
    predict = partial(posterior.predict, num_samples=4, seed=0)
    predictive = predict(data.x)
    found = evaluate_maps(predictive, data.y, levels=(0.8,))
    squares = (predictive.mean - data.y).square().flatten(1).mean(dim=1)
    assert found["root_mean_squared_error"].value == pytest.approx(float(squares.mean().sqrt()))
    log_prob = -predictive.log_prob(data.y).flatten(1).mean(dim=1) / 2
    assert found["negative_log_likelihood"].value == pytest.approx(float(log_prob.mean()))
    assert found["negative_log_likelihood"].standard_error == pytest.approx(float(log_prob.std() / math.sqrt(3)))
    inside = (data.y > predictive.quantile(0.1)) & (data.y < predictive.quantile(0.9))
    assert found["coverage_0.8"].value == pytest.approx(float(inside.double().mean()))
    one_by_one = evaluate_maps(predictions(lambda x: posterior.predict(x, num_samples=1), data.x, data.y, batch_size=1))
    assert one_by_one.num_points == 3
    half = torch.zeros_like(data.y, dtype=torch.bool)
    half[..., :3] = True
    of_half = evaluate_maps(predictive, data.y, counts=half)["mean_absolute_error"].value
    assert of_half == pytest.approx(float((predictive.mean - data.y).abs()[..., :3].mean()))


@pytest.mark.parametrize("head", HEADS)
def test_the_log_score_of_a_pixel_is_that_of_its_channels_that_count(head: str) -> None:
    """Whatever stands in the others; where one channel counts alone, it is that channel's own."""
    model, data = problem(head)
    predictive = map_estimate.fit(model, data, **FEW).predict(data.x)
    known = noise(4, *data.y.shape) > 0
    observed = known.movedim(1, -1).flatten(0, -2)
    joint = -predictive.pixels.log_prob(predictive.pixel_targets(data.y), observed=observed).reshape(3, -1).sum(dim=1)
    expected = (joint / known.flatten(1).sum(dim=1)).mean()
    for other in (0.0, 1e3, math.nan):
        found = evaluate_maps(predictive, torch.where(known, data.y, other), counts=known)["negative_log_likelihood"]
        assert found.value == pytest.approx(float(expected))
    assert found.unit == "nats a pixel and channel"


def test_measures_of_rows_say_what_to_take_for_images() -> None:
    model, data = problem("normal")
    predictive = map_estimate.fit(model, data, **FEW).predict(data.x)
    for measure in (scores.root_mean_squared_error, report.evaluate):
        with pytest.raises(TypeError, match="evaluate_maps"):
            measure(predictive, data.y)
    assert float(scores.crps(predictive.pixels, predictive.pixel_targets(data.y))) > 0
    with pytest.raises(ValueError, match=r"`y` must have shape \(3, 2, 5, 6\)"):
        predictive.log_prob(data.y[:, :1])
    with pytest.raises(ValueError, match="subset='last_layer'"):
        laplace.fit(model, data, **FEW)


def test_channels_have_units_and_missing_pixels_count_nowhere() -> None:
    model, data = problem("normal")
    y = data.y * torch.tensor([2.0, 30.0]).view(2, 1, 1) + 5
    units = Standardizer.fit(Dataset(data.x, y))
    standard = units.transform(Dataset(data.x, y))
    torch.testing.assert_close(standard.y.std(dim=(0, 2, 3), correction=0), torch.ones(2, dtype=torch.float64))
    predictive = map_estimate.fit(model, standard, **FEW).predict(standard.x)
    back = units.inverse(predictive)
    scale = units.y_scale.view(2, 1, 1)
    torch.testing.assert_close(back.mean, predictive.mean * scale + units.y_loc.view(2, 1, 1))
    torch.testing.assert_close(back.log_prob(y), predictive.log_prob(standard.y) - units.y_scale.log().sum())
    known = noise(3, *data.y.shape) > -0.5
    missing = Dataset(data.x, torch.where(known, data.y, torch.nan), weight=known.double())
    other = Dataset(data.x, torch.where(known, data.y, 1e3), weight=known.double())
    one, two = (map_estimate.fit(model, part, **FEW).predict(data.x).mean for part in (missing, other))
    torch.testing.assert_close(one, two)


def test_aleatoric_maps_follow_the_noise_that_is_there() -> None:
    """Heights under haze, whose noise is known: the map of 16 images finds it on other ones."""
    seen, new = shapes.depths(16, seed=0, side=16), shapes.depths(6, seed=1, side=16)
    net = built(lambda: nn.Sequential(nn.Conv2d(2, 8, 1), nn.Tanh(), nn.Conv2d(8, 2, 1)))
    model = BayesianNetwork(net, priors.Normal(scale=3.0), likelihoods.HeteroscedasticNormal())
    posterior = map_estimate.fit(
        model, Dataset(seen.x, seen.y), num_epochs=60, batch_size=4, learning_rate=0.05, seed=0
    )
    predictive = posterior.predict(new.x)
    spread = predictive.aleatoric.sqrt()
    assert float(torch.corrcoef(torch.stack([spread.flatten(), new.noise.flatten().double()]))[0, 1]) > 0.95
    assert float((spread / new.noise).log().abs().mean()) < 0.25
    assert float((predictive.mean - new.mean).square().mean()) < 0.01 * float(new.noise.square().mean()) + 1e-3
    coverage = evaluate_maps(predictive, new.y)["coverage_0.9"].value
    assert coverage == pytest.approx(0.9, abs=0.03)
    curve = kept_errors(predictive, new.y)
    half = len(curve.risk) // 2
    assert float(curve.risk[half]) < 0.5 * float(curve.risk[-1])
    figure = plots.real_maps(predictive, new.x, new.y, labels=[str(n) for n in range(6)])
    drawn = np.asarray(figure.axes[4].images[0].get_array())
    np.testing.assert_allclose(drawn, spread[0, 0])
    (panel,) = plots.kept_error_curves({"ensemble": (predictive, new.y)}).axes
    assert panel.get_lines()[0].get_ydata()[-1] == pytest.approx(float(curve.risk[-1].sqrt()), rel=0.02)
