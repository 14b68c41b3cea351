"""Windows over images: what they predict is what the whole image would, wherever a window has all that counts."""

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import (
    dropout,
    ensemble,
    gp,
    laplace,
    local_temperature,
    map_estimate,
    stacking,
    swag,
    temperature,
    variational,
)
from bayesuq.inference.hmc.from_samples import from_samples
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.models.gp import GaussianProcess
from bayesuq.posterior import Posterior
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.inference.examples import NO_MODE, built, noise
from tests.zoo.live_tensors import LiveTensors

pytestmark = [pytest.mark.filterwarnings(NO_MODE), pytest.mark.filterwarnings("ignore::UserWarning")]
REACH = 2  # pixels that an output sees to each side: two convolutions of 3
SIZES = {1: (19,), 2: (13, 16), 3: (7, 9, 8)}
LABELS = {"classes": (3, likelihoods.Categorical()), "regions": (2, likelihoods.Bernoulli())}


def network(rank: int, num_outputs: int) -> nn.Module:
    """Convolutions and dropped channels, in float64."""
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    drop = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)[rank - 1]
    return built(
        lambda: nn.Sequential(
            convolution(1, 4, 3, padding=1), nn.Tanh(), drop(0.3), convolution(4, num_outputs, 3, padding=1)
        ).double()
    )


@cache
def problem(rank: int = 2, kind: str = "classes") -> tuple[BayesianNetwork, Dataset]:
    num_outputs, likelihood = LABELS[kind]
    x = noise(0, 3, 1, *SIZES[rank])
    y = (x[:, 0] > 0).long() + (x[:, 0] > 0.5) if kind == "classes" else torch.cat([x > 0, x > 0.5], dim=1).long()
    return BayesianNetwork(network(rank, num_outputs), priors.Normal(scale=0.5), likelihood), Dataset(x, y)


FEW: dict[str, Any] = {"num_epochs": 2, "seed": 0, "progress": False}


def stacked(model: BayesianNetwork, data: Dataset) -> Posterior:
    members = [map_estimate.fit(model, data, **FEW), dropout.fit(model, data, **FEW)]
    return stacking.StackedPosterior(members=tuple(members), shares=(1, 4))


METHODS = {
    "map": lambda m, d: map_estimate.fit(m, d, **FEW),
    "mean field": lambda m, d: variational.fit(m, d, **FEW),
    "full rank": lambda m, d: variational.fit(m, d, guide=variational.full_rank, **FEW),
    "dropout": lambda m, d: dropout.fit(m, d, **FEW),
    "ensemble": lambda m, d: ensemble.fit(m, d, num_members=2, **FEW),
    "ensemble of dropout": lambda m, d: ensemble.fit(m, d, num_members=2, member_fit=dropout.fit, **FEW),
    "swag": lambda m, d: swag.fit(m, d, **{**FEW, "num_epochs": 12}),
    "last layer": lambda m, d: laplace.fit(m, d, mode=map_estimate.fit(m, d, **FEW), subset="last_layer"),
    "probit": lambda m, d: laplace.fit(m, d, mode=map_estimate.fit(m, d, **FEW), subset="last_layer").probit,
    "sampled": lambda m, d: laplace.fit(m, d, mode=map_estimate.fit(m, d, **FEW), subset="last_layer").sampled,
    "temperature": lambda m, d: temperature.fit(dropout.fit(m, d, **FEW), d, seed=0),
    "local temperature": lambda m, d: local_temperature.fit(map_estimate.fit(m, d, **FEW), d, num_epochs=1, seed=0),
    "stacked": stacked,
}


def assert_same(found: Any, expected: Any, rtol: float = 1e-9) -> None:
    for part in ("mean", "total", "aleatoric", "epistemic"):
        torch.testing.assert_close(getattr(found, part), getattr(expected, part), rtol=rtol, atol=rtol / 1e3)


@pytest.mark.parametrize("method", METHODS)
def test_one_draw_sees_all_windows_of_an_image(method: str) -> None:
    model, data = problem()
    posterior = METHODS[method](model, data)
    expected = posterior.predict(data.x, num_samples=5, seed=3)
    for blend in ("gaussian", "constant"):
        options: dict[str, Any] = {"window": (8, 9), "overlap": 0.6, "blend": blend, "margin": REACH}
        rounding = 1e-5 if method == "local temperature" else 1e-9  # its own network runs in float32
        assert_same(posterior.predict(data.x, num_samples=5, seed=3, **options), expected, rounding)


@pytest.mark.parametrize(("rank", "kind"), [(1, "classes"), (3, "classes"), (2, "regions"), (3, "regions")])
def test_windows_of_any_rank_and_of_regions(rank: int, kind: str) -> None:
    model, data = problem(rank, kind)
    posterior = dropout.fit(model, data, **FEW)
    expected = posterior.predict(data.x, num_samples=3, seed=1, keep_samples=True)
    found = posterior.predict(data.x, num_samples=3, seed=1, keep_samples=True, window=6, overlap=0.7, margin=REACH)
    assert_same(found, expected)
    torch.testing.assert_close(found.samples, expected.samples, rtol=1e-9, atol=1e-12)
    assert found.is_multilabel == expected.is_multilabel == (kind == "regions")


@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_probabilities_are_blended_draw_by_draw(blend: str) -> None:
    """By a loop over windows and pixels of one axis: the last window is moved back to the end."""
    model, data = problem(1)
    posterior = dropout.fit(model, data, **FEW)
    x, side = data.x, 6
    starts = [0, 3, 6, 9, 12, 13]
    totals, norm = torch.zeros(4, 3, 3, 19, dtype=torch.float64), torch.zeros(19, dtype=torch.float64)
    for start in starts:
        part = posterior.predict(x[..., start : start + side], num_samples=4, seed=2, keep_samples=True).samples
        for i in range(side):
            weight = math.exp(-0.5 * ((i - 2.5) / (side / 8)) ** 2) if blend == "gaussian" else 1.0
            totals[..., start + i] += max(weight, 1e-3) * part[..., i]
            norm[start + i] += max(weight, 1e-3)
    expected = CategoricalPredictive.from_probs(totals / norm)
    assert_same(posterior.predict(x, num_samples=4, seed=2, window=side, blend=blend), expected)


def test_a_gradient_goes_through_the_windows() -> None:
    model, data = problem(1)
    posterior = map_estimate.fit(model, data, **FEW)
    slopes: list[Tensor] = []
    for options in ({}, {"window": 8, "overlap": 0.6, "margin": REACH}):
        x = data.x.clone().requires_grad_()
        posterior.predict(x, differentiable=True, **options).total.sum().backward()
        slopes.append(x.grad)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-8, atol=1e-10)


def test_the_network_sees_no_more_than_a_window_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = problem(2)
    posterior = map_estimate.fit(model, problem(2)[1], **FEW)
    seen: list[int] = []
    forward = BayesianNetwork.forward

    def watched(self: BayesianNetwork, theta: Any, x: Tensor, **rest: Any) -> Tensor:
        seen.append(x[0].numel())
        return forward(self, theta, x, **rest)

    monkeypatch.setattr(BayesianNetwork, "forward", watched)
    posterior.predict(noise(1, 1, 1, 64, 64), window=16)
    assert max(seen) == 16 * 16


def peak_bytes(channels: int, side: int, **windows: Any) -> int:
    """Of the tensors that live at once while an image is predicted by three draws of a network so wide."""
    net = built(lambda: nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, 2, 1)))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    draws = {name: torch.stack([value, -value, 0.5 * value]) for name, value in model.initial().items()}
    posterior, x = from_samples(model, draws, by_chain=False), torch.zeros(1, 1, side, side)
    with LiveTensors(net, x) as census:
        posterior.predict(x, **windows)
    return census.peak


def test_memory_of_the_network_is_that_of_a_window_whatever_the_image() -> None:
    """What a wide network takes beyond a narrow one does not grow with the image; in one pass it does, fourfold."""
    beyond = {
        size: [peak_bytes(64, side, **given) - peak_bytes(4, side, **given) for side in (32, 64)]
        for size, given in {"window": {"window": 16, "overlap": 0.0}, "whole": {}}.items()
    }
    assert beyond["window"][1] <= beyond["window"][0] < 4 * 16**2 * 2 * 3 * 64
    assert beyond["whole"][1] == pytest.approx(4 * beyond["whole"][0], rel=0.05)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"window": (8, 8, 8)}, ValueError, "a side for each axis"),
        ({"window": 0}, ValueError, "window"),
        ({"window": 8, "overlap": 1.0}, ValueError, r"`overlap` must lie in \[0, 1\)"),
        ({"window": 8, "blend": "linear"}, ValueError, "`blend` must be one of 'gaussian', 'constant'"),
        ({"window": 8, "overlap": 0.0, "margin": 1}, ValueError, "leaves pixels out"),
        ({"overlap": 0.25}, ValueError, "pass `window`"),
        ({"windows": 8}, TypeError, "did you mean 'window'"),
        ({"num_sample": 8}, TypeError, "did you mean 'num_samples'"),
        ({"window": 8.5}, TypeError, "`window` must be a whole number; got 8.5"),
    ],
)
def test_windows_that_cannot_be_are_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    model, data = problem()
    posterior = map_estimate.fit(model, data, **FEW)
    with pytest.raises(error, match=message):
        posterior.predict(data.x, **options)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_sides_may_come_as_an_array(kind: Any) -> None:
    model, data = problem()
    posterior = map_estimate.fit(model, data, **FEW)
    expected = posterior.predict(data.x, window=(8, 6)).mean
    assert torch.equal(posterior.predict(data.x, window=kind([8, 6])).mean, expected)


def test_what_predicts_no_pixels_takes_no_window() -> None:
    process = gp.fit(GaussianProcess(), Dataset([[0.0], [1.0], [2.0]], [0.0, 0.5, 0.9]), seed=0)
    with pytest.raises(ValueError, match="ExactGpPosterior predicts rows, not the pixels"):
        process.predict([[0.5]], window=4)
    net = built(lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2)))
    rows = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    posterior = map_estimate.fit(rows, Dataset(noise(0, 4, 1, 6, 6).float(), [0, 1, 0, 1]), **FEW)
    with pytest.raises(ValueError, match="keeps the size of images"):
        posterior.predict(noise(0, 4, 1, 6, 6).float(), window=6)
