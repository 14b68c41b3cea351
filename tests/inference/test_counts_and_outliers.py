"""Poisson and Student likelihoods through the methods: known answers, one predictive type, saved and loaded."""

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.inference import ensemble, laplace, map_estimate, variational
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.mixture import MixturePredictive
from bayesuq.randomness import isolated
from tests.inference.examples import SHORT_FIT, built, noise

METHODS = [map_estimate.fit, variational.fit, ensemble.fit, laplace.fit]
each_method = pytest.mark.parametrize("fit", METHODS, ids=lambda fit: fit.__module__.rpartition(".")[2])


def counted(num_points=60):
    """Counts, as whole numbers, whose log rate rises along a line."""
    x = noise(0, num_points, 2)
    with isolated(1):
        return Dataset(x, torch.poisson((0.5 + 0.8 * x[:, 0]).exp()).long())


def outlying(num_points=60):
    """A line with noise of 0.1, and every sixth target 20 above it."""
    x = noise(0, num_points, 1)
    y = x[:, 0] + 0.1 * noise(1, num_points)
    y[::6] += 20.0
    return Dataset(x, y)


def model_of(likelihood, num_features):
    net = built(lambda: networks.mlp(num_features, (), 1)).double()
    return BayesianNetwork(net, priors.Normal(scale=3.0), likelihood)


@each_method
@pytest.mark.parametrize("likelihood", [likelihoods.Poisson(), likelihoods.StudentT(df="learned")], ids=["counts", "t"])
@pytest.mark.filterwarnings(*SHORT_FIT)
def test_every_method_gives_a_mixture_that_a_report_takes(fit, likelihood, tmp_path):
    data = counted() if isinstance(likelihood, likelihoods.Poisson) else outlying()
    model = model_of(likelihood, data.x.shape[1])
    posterior = fit(model, data, num_epochs=100, learning_rate=0.1, seed=0)
    predictive = posterior.predict(data.x, num_samples=5, seed=1)
    assert isinstance(predictive, MixturePredictive)
    posterior.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior").predict(data.x, num_samples=5, seed=1)
    torch.testing.assert_close(again.log_prob(data.y), predictive.log_prob(data.y), rtol=1e-12, atol=0)
    report = evaluate(predictive, data.y)
    assert report["interval_coverage"].value > 0.5
    y = data.y.reshape(-1, 1).double()
    assert (predictive.quantile(0.5) - y).abs().mean() < (y.median() - y).abs().mean()  # a learned df may have no mean


def test_laplace_of_one_rate_is_its_closed_form():
    y = torch.tensor([3, 5, 2, 4, 6, 3, 1, 4])
    net = built(lambda: nn.Linear(1, 1, bias=False)).double()
    model = BayesianNetwork(net, priors.Normal(scale=2.0), likelihoods.Poisson())
    data = Dataset(torch.ones(8, 1, dtype=torch.float64), y)
    posterior = laplace.fit(model, data, structure="full", num_epochs=250, learning_rate=0.1, seed=0)
    log_rate = torch.tensor(1.0, dtype=torch.float64)
    for _ in range(50):  # Newton's steps on sum y - N exp(w) - w / 4
        log_rate += (28 - 8 * log_rate.exp() - log_rate / 4) / (8 * log_rate.exp() + 0.25)
    draws = posterior.sampled.sample_weights(2000, seed=0)["weight"].flatten()
    scale = (8 * log_rate.exp() + 0.25) ** -0.5
    assert abs(draws.mean() - log_rate) < 4 * scale / 2000**0.5 + 1e-4
    assert abs(draws.std() / scale - 1) < 4 / 4000**0.5


def test_outliers_move_normal_noise_and_not_student_s():
    data = outlying()
    slopes = {}
    for name, likelihood in (("normal", likelihoods.Normal()), ("student", likelihoods.StudentT(df=2.0))):
        posterior = map_estimate.fit(model_of(likelihood, 1), data, num_epochs=300, learning_rate=0.1, seed=0)
        theta = posterior.sample_weights(1)
        slopes[name] = torch.stack([theta["1.weight"].flatten()[0] - 1, theta["1.bias"].flatten()[0]]).abs().max()
    assert slopes["normal"] > 2.0
    assert slopes["student"] < 0.1


def test_probit_is_for_labels_only():
    data = counted()
    model = model_of(likelihoods.Poisson(), 2)
    posterior = laplace.fit(model, data, num_epochs=50, learning_rate=0.05, seed=0)
    means = [one.predict(data.x, num_samples=20, seed=3).mean for one in (posterior.probit, posterior)]
    torch.testing.assert_close(*means, rtol=1e-12, atol=0)
