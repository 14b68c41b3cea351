"""A user's own likelihood by every method: fitted and read as bayesuq's own are, or refused by name with a remedy."""

from typing import Any

import pytest
import torch

import bayesuq as bq
from bayesuq.data import Dataset
from bayesuq.inference.catalogue import METHODS
from bayesuq.models import gp, likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.base import Likelihood
from tests.inference.examples import SHORT_FIT, built, labelled, measured, noise
from tests.zoo.own_likelihoods import Copy, NoisyLabels

pytestmark = [pytest.mark.filterwarnings(one) for one in (*SHORT_FIT, "ignore:The scales:UserWarning")]
SHORT: dict[str, dict[str, Any]] = {  # options of a fit that takes a moment
    "hmc": {"num_samples": 4, "num_warmup": 4, "num_chains": 1},
    "microcanonical": {"num_samples": 4, "num_warmup": 4, "num_members": 2, "num_epochs": 2},
    "sgmcmc": {"num_samples": 4, "num_warmup": 4, "num_chains": 2},
    "ensemble": {"num_members": 2, "num_epochs": 2},
    "gp": {"num_epochs": 2},
    "laplace": {"num_epochs": 2},
    "swag": {"num_epochs": 20},
    "confidence": {"hidden": (4,), "num_epochs": 2, "num_fine_tuning_epochs": 1},
    "local_temperature": {"num_epochs": 1},
    "temperature": {},
    "quantile_calibration": {"num_pieces": 3},
}


def model_of(likelihood: Likelihood, num_outputs: int, *, dropout: float = 0.0) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (4,), num_outputs, dropout=dropout, activation="tanh")).double()
    return BayesianNetwork(net, priors.Normal(), likelihood)


def fitted(name: str, likelihood: Likelihood, num_outputs: int, data: Dataset) -> Any:
    """By any method of the catalogue, briefly."""
    kind = next(method.kind for method in METHODS if method.name == name)
    fit, options = getattr(bq.inference, name).fit, SHORT.get(name, {"num_epochs": 2})
    if kind == "wrapper":
        subject = bq.inference.map_estimate.fit(model_of(likelihood, num_outputs), data, num_epochs=2, seed=0)
    elif kind == "process":
        subject = gp.GaussianProcess(likelihood=likelihood)
    else:
        subject = model_of(likelihood, num_outputs, dropout=0.2 if name == "dropout" else 0.0)
    return fit(subject, data, seed=0, **options)


def loaded(posterior: Any, path: Any, model: Any) -> Any:
    """Saved and loaded again, with the model that files do not hold."""
    with pytest.warns(UserWarning, match="NoisyLabels is not one of bayesuq's"):
        posterior.save(path)
    return bq.load(path, model=model)


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_the_likelihood_of_the_page_fits_by_every_method_and_is_asked_for_by_load(name, tmp_path):
    data = labelled(30)
    if name == "quantile_calibration":
        with pytest.raises(TypeError, match=r"got CategoricalPredictive. For labels take `temperature.fit`"):
            fitted(name, NoisyLabels(0.1), 3, data)
        return
    posterior = fitted(name, NoisyLabels(0.1), 3, data)
    predictive = posterior.predict(data.x, num_samples=3, seed=0)
    assert predictive.mean.shape == (30, 3)
    torch.testing.assert_close(predictive.mean.sum(dim=1), torch.ones(30, dtype=torch.float64))

    def model(share: float) -> Any:
        if name == "gp":
            return gp.GaussianProcess(likelihood=NoisyLabels(share))
        return model_of(NoisyLabels(share), 3, dropout=0.2 if name == "dropout" else 0.0)

    again = loaded(posterior, tmp_path / "file", model(0.1))
    assert torch.equal(again.predict(data.x, num_samples=3, seed=0).mean, predictive.mean)
    with pytest.raises(ValueError, match=r"its likelihood.share is 0\.2, the file's is 0\.1"):
        bq.load(tmp_path / "file", model=model(0.2))


def test_the_likelihood_of_the_page_is_adopted_stacked_and_read_in_units():
    data, likelihood = labelled(30), NoisyLabels(0.1)
    modes = [fitted(name, likelihood, 3, data) for name in ("map_estimate", "variational")]
    adopted = bq.adopt(modes[0].model.net, likelihood)
    units = bq.Standardizer.fit(data)
    found = (
        bq.inference.stacking.fit(modes, data),
        adopted,
        bq.inference.laplace.fit(adopted, data),
        bq.adopt_members([modes[0].model.net] * 2, likelihood),
        bq.in_units(fitted("map_estimate", likelihood, 3, units.transform(data)), units),
    )
    for posterior in found:
        total = posterior.predict(data.x, num_samples=3, seed=0).mean.sum(dim=1)
        torch.testing.assert_close(total, torch.ones(30, dtype=torch.float64))


@pytest.mark.parametrize("name", [method.name for method in METHODS])
def test_a_copy_of_a_normal_likelihood_fits_by_every_method(name):
    data = measured(30)
    likelihood = Copy(likelihoods.Normal(scale=0.5))
    if name in ("temperature", "confidence", "local_temperature"):
        with pytest.raises(TypeError, match=r"(labels|class probabilities)"):
            fitted(name, likelihood, 1, data)
        return
    predictive = fitted(name, likelihood, 1, data).predict(data.x, num_samples=3, seed=0)
    assert predictive.log_prob(data.y).shape == (30,)


PAIRS = {
    "bernoulli": (likelihoods.Bernoulli(), (noise(1, 40) > 0).long()),
    "poisson": (likelihoods.Poisson(), noise(1, 40).abs().mul(2).round()),
    "normal": (likelihoods.Normal(scale=0.5), noise(1, 40)),
}


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
@pytest.mark.parametrize("name", PAIRS)
def test_laplace_of_a_copy_is_that_of_the_original(name, structure):
    likelihood, y = PAIRS[name]
    data = Dataset(noise(0, 40, 3), y)
    ours, own = (
        bq.inference.laplace.fit(model_of(one, 1), data, structure=structure, num_epochs=20, seed=0)
        for one in (likelihood, Copy(likelihood))
    )
    torch.testing.assert_close(own.values, ours.values, rtol=1e-6, atol=1e-9)
    for part, value in ours.curvature.items():
        torch.testing.assert_close(own.curvature[part], value, rtol=1e-6, atol=1e-9)
    assert own.log_marginal_likelihood == pytest.approx(ours.log_marginal_likelihood, rel=1e-6)


@pytest.mark.parametrize(("likelihood", "num_outputs"), [(likelihoods.Bernoulli(), 1), (likelihoods.Categorical(), 3)])
def test_the_temperature_of_a_copy_is_that_of_the_original(likelihood, num_outputs):
    data = labelled(60) if num_outputs == 3 else Dataset(noise(0, 60, 3), (noise(1, 60) > 0).long())
    ours, own = (
        bq.inference.temperature.fit(
            bq.inference.map_estimate.fit(model_of(one, num_outputs), data.rows(range(30)), num_epochs=200, seed=0),
            data.rows(range(30, 60)),
            seed=0,
        )
        for one in (likelihood, Copy(likelihood))
    )
    assert own.temperature == pytest.approx(ours.temperature, rel=1e-6)
    torch.testing.assert_close(own.predict(data.x).mean, ours.predict(data.x).mean, rtol=1e-6, atol=1e-9)
