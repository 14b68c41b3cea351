"""Predictives of anyone's making, with their targets: temperatures, levels and conformal sets without a posterior."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bayesuq import conformal
from bayesuq.data import Dataset
from bayesuq.inference import map_estimate, quantile_calibration, temperature, variational
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.empirical import EmpiricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from tests.inference.examples import SHORT_FIT, labelled, measured, noise

OPTIONS = ({}, {"vector": True}, {"matrix": True})


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_predictive_with_its_labels_gives_what_its_posterior_gives(options: dict[str, bool]) -> None:
    data, new = labelled(60), labelled(20, seed=5)
    model = BayesianNetwork(networks.mlp(3, (8,), 3, seed=0), priors.Normal(), likelihoods.Categorical())
    posterior = variational.fit(model, data, num_epochs=5, seed=0)
    expected = temperature.fit(posterior, data, num_samples=4, seed=3, **options)
    predicted = posterior.predict(data.x, num_samples=4, seed=3, keep_samples=True)
    found = temperature.fit(predicted, data.y, seed=3, **options)
    np.testing.assert_allclose(found.slopes, expected.slopes, rtol=1e-4)
    np.testing.assert_allclose(found.negative_log_likelihood, expected.negative_log_likelihood, rtol=1e-6)
    assert found.accuracy == expected.accuracy
    scaled = found.scaled(posterior.predict(new.x, num_samples=4, seed=3, keep_samples=True))
    wanted = expected.predict(new.x, num_samples=4, seed=3)
    torch.testing.assert_close(scaled.mean, wanted.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scaled.epistemic, wanted.epistemic, rtol=1e-2, atol=1e-4)


def overconfident(num_rows: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities that are squared and made to sum to 1 again, and labels from the true ones: T is 2."""
    true = (2 * noise(seed, num_rows, 3)).softmax(dim=1)
    labels = torch.multinomial(true, 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    return true.square() / true.square().sum(dim=1, keepdim=True), labels


def test_probabilities_alone_have_a_temperature() -> None:
    probs, labels = overconfident(4000)
    found = temperature.fit(CategoricalPredictive.from_probs(probs[None]), labels.numpy())
    assert found.temperature == pytest.approx(2.0, abs=0.15)  # three standard errors of some 1 / sqrt(N var f)
    scaled = found.scaled(CategoricalPredictive.from_probs(probs[None]))
    own = scaled.log_prob(labels).mean()
    assert -float(own) == pytest.approx(found.negative_log_likelihood[1], rel=1e-9)
    for other in (0.9, 1.1):  # the best of all temperatures
        logits = probs.log() / (found.temperature * other)
        assert CategoricalPredictive.from_logits(logits[None]).log_prob(labels).mean() < own


@pytest.mark.parametrize("temperature_of", [0.012, 0.037, 0.2, 5.0, 90.0])
def test_any_temperature_within_its_bounds_is_found(temperature_of: float, recwarn: pytest.WarningsRecorder) -> None:
    """One label of ten is the less probable of two, so that the best gap of logits is log 9; a step leaps past none."""
    labels = (torch.arange(40) % 10 == 0).long()
    logits = torch.tensor([temperature_of * math.log(9), 0.0]).double().expand(1, 40, 2)
    found = temperature.fit(CategoricalPredictive.from_logits(logits), labels)
    assert found.temperature == pytest.approx(temperature_of, rel=1e-3)
    assert not recwarn.list


def test_classes_of_probability_0_stay_so() -> None:
    probs, labels = overconfident(200)
    with_zero = torch.cat([probs, torch.zeros(200, 1)], dim=1)
    found = temperature.fit(CategoricalPredictive.from_probs(with_zero[None]), labels)
    alone = temperature.fit(CategoricalPredictive.from_probs(probs[None]), labels)
    assert found.temperature == pytest.approx(alone.temperature, rel=1e-6)
    assert (found.scaled(CategoricalPredictive.from_probs(with_zero[None])).mean[:, 3] == 0).all()


def test_levels_of_a_gaussian_predictive_are_those_of_its_posterior() -> None:
    data = measured(60)
    model = BayesianNetwork(networks.mlp(3, (), 1, seed=0), priors.Normal(), likelihoods.Normal(scale=0.3))
    posterior = map_estimate.fit(model, data, num_epochs=200, seed=0)
    expected = quantile_calibration.fit(posterior, data, num_pieces=5)
    found = quantile_calibration.fit(posterior.predict(data.x), data.y, num_pieces=5)
    assert (found.knots, found.levels) == (expected.knots, expected.levels)
    new = noise(7, 10, 3)
    one, other = found.calibrated(posterior.predict(new)), expected.predict(new)
    assert torch.equal(one.quantile(0.2), other.quantile(0.2))


def outside(kind: str, centre: Tensor) -> Any:
    """A predictive around a centre, (N,), of spread 1."""
    if kind == "draws":
        steps = torch.special.ndtri((torch.arange(400, dtype=torch.float64) + 0.5) / 400)
        return EmpiricalPredictive.from_draws(centre + steps.unsqueeze(1))
    if kind == "quantiles":
        levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64)
        return EmpiricalPredictive.from_quantiles(levels, centre + torch.special.ndtri(levels).unsqueeze(1))
    return MixturePredictive(torch.distributions.StudentT(5.0, centre[None, :, None], 1.0))


@pytest.mark.parametrize("kind", ["draws", "quantiles", "student t"])
def test_any_continuous_predictive_covers_as_its_levels_say(kind: str) -> None:
    """Targets have twice the spread that was predicted."""
    centre, new = noise(0, 1500), noise(1, 3000)
    y, later = centre + 2 * noise(2, 1500), new + 2 * noise(3, 3000)
    found = quantile_calibration.fit(outside(kind, centre), y, num_pieces=10)
    before, after = outside(kind, new), found.calibrated(outside(kind, new))
    for level in (0.1, 0.3, 0.5, 0.8, 0.9):
        share = float((later[:, None] <= after.quantile(level)).double().mean())
        # three standard errors of both samples
        assert share == pytest.approx(level, abs=3 * (level * (1 - level) * (1 / 1500 + 1 / 3000)) ** 0.5)
    assert float((later[:, None] <= before.quantile(0.1)).double().mean()) > 0.2


def test_conformal_takes_them_as_ever() -> None:
    probs, labels = overconfident(500)
    sets = conformal.calibrate_labels(CategoricalPredictive.from_probs(probs[None]), labels, seed=0)
    assert 0 < sets.threshold < 1
    centre = noise(0, 200)
    intervals = conformal.calibrate_intervals(outside("draws", centre), centre + noise(1, 200))
    assert intervals.threshold.isfinite().all()


PROBS = CategoricalPredictive.from_probs(torch.full((1, 4, 2), 0.5))
UNKEPT = CategoricalPredictive.from_logits(torch.zeros(1, 4, 2), keep_samples=False)
NORMAL = GaussianPredictive(mean=torch.zeros(1, 4, 1), noise_variance=1.0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: temperature.fit(NORMAL, [0, 1, 0, 1]), TypeError, "quantile_calibration"),
        (lambda: temperature.fit(PROBS, [0, 1, 0]), ValueError, "shape"),
        (lambda: temperature.fit(PROBS, [0, 1, 0, 1], num_samples=3), ValueError, "num_samples"),
        (
            lambda: temperature.fit(UNKEPT, [0] * 4),
            ValueError,
            "from_probs",
        ),
        (
            lambda: temperature.fit(CategoricalPredictive.from_probs([[[1.0, 0.0]] * 4]), [0, 0, 0, 1]),
            ValueError,
            "Mix in",
        ),
        (lambda: quantile_calibration.fit(PROBS, [0, 1, 0, 1]), TypeError, "temperature.fit"),
        (
            lambda: quantile_calibration.fit(EmpiricalPredictive.from_draws(torch.ones(3, 4).long()), [1.0] * 4),
            TypeError,
            "conformal",
        ),
        (lambda: quantile_calibration.fit(NORMAL, [0.0] * 4, num_samples=3, num_pieces=2), ValueError, "num_samples"),
        (lambda: temperature.fit(PROBS, Dataset(torch.ones(4, 1), torch.zeros(4).long())), TypeError, "labels"),
    ],
)
def test_mistakes_are_told_with_the_way_out(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
