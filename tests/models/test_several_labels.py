"""Bernoulli of several labels a row or pixel that do not exclude each other."""

import pyro.poutine as poutine
import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.evaluation import scores
from bayesuq.inference import gp, laplace, map_estimate, temperature
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.models import gp as processes
from bayesuq.predictive.categorical import CategoricalPredictive

K = 3
X = torch.randn(60, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.stack([X[:, 0] > 0, X[:, 1] > 0.3, X.sum(dim=1) > 0], dim=1).long()
FLIPPED = torch.where(torch.rand(60, K, generator=torch.Generator().manual_seed(1)) < 0.15, 1 - Y, Y)


def model_of(num_outputs: int = K, **options: object) -> BayesianNetwork:
    torch.manual_seed(0)
    net = networks.mlp(2, (8,), num_outputs).double()
    return BayesianNetwork(net, priors.Normal(), likelihoods.Bernoulli(**options))


@pytest.mark.parametrize("pixels", [(), (2, 3)])
@pytest.mark.parametrize("class_weights", [None, (0.5, 2.0)])
def test_each_label_is_a_bernoulli_of_its_own(
    pixels: tuple[int, ...], class_weights: tuple[float, float] | None
) -> None:
    f = torch.randn(4, 5, K, *pixels, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (torch.rand(5, K, *pixels, generator=torch.Generator().manual_seed(1)) < 0.5).long()
    several = likelihoods.Bernoulli(class_weights)
    single = [several.log_prob(f[0][:, k : k + 1], y[:, k]) for k in range(K)]
    torch.testing.assert_close(several.log_prob(f[0], y), torch.stack(single).sum(dim=0))
    torch.testing.assert_close(
        several.distribution(f[0]).log_prob(y.double()), likelihoods.Bernoulli().log_prob(f[0], y)
    )
    predictive = several.predictive(f)
    for k in range(K):
        alone = several.predictive(f[:, :, k : k + 1])
        torch.testing.assert_close(predictive.log_prob(y)[:, k], alone.log_prob(y[:, k]))
        torch.testing.assert_close(predictive.epistemic[:, k], alone.epistemic)


def test_the_pyro_program_is_the_log_joint() -> None:
    model = model_of()
    theta = model.initial()
    trace = poutine.trace(poutine.condition(model, data=theta)).get_trace(X, Y)
    torch.testing.assert_close(trace.log_prob_sum(), model.log_joint(theta, X, Y))


def test_fits_laplace_and_temperature_scaling_take_them() -> None:
    data = Dataset(X, FLIPPED)
    mode = map_estimate.fit(model_of(), data, num_epochs=100, learning_rate=0.05, seed=0)
    predictive = mode.predict(X)
    assert predictive.mean.shape == (60, 2, K)
    assert scores.accuracy(predictive, Y) > 0.85
    scaled = temperature.fit(mode, data)
    assert scores.negative_log_likelihood(scaled.predict(X), FLIPPED) <= scores.negative_log_likelihood(
        predictive, FLIPPED
    )
    net = nn.Linear(2, K, dtype=torch.float64)
    linear = BayesianNetwork(net, priors.Normal(), likelihoods.Bernoulli())
    at_mode = map_estimate.fit(linear, data, num_epochs=300, batch_size=60, learning_rate=0.05, seed=0)
    together = laplace.fit(linear, data, mode=at_mode, structure="full", seed=0).predict(
        X, num_samples=400, seed=0, keep_samples=True
    )
    one = BayesianNetwork(nn.Linear(2, 1, dtype=torch.float64), priors.Normal(), likelihoods.Bernoulli())
    first = Dataset(X, FLIPPED[:, 0])
    at_mode = map_estimate.fit(one, first, num_epochs=300, batch_size=60, learning_rate=0.05, seed=0)
    alone = laplace.fit(one, first, mode=at_mode, structure="full", seed=0).predict(X, num_samples=400, seed=1)
    # Independent labels of a linear network: the same law, by other draws: 5 standard errors of two means of 400.
    spread = together.samples[:, :, 1, 0].std(dim=0)
    assert ((together.mean[:, 1, 0] - alone.mean[:, 1]).abs() < 5 * spread * (2 / 400) ** 0.5 + 1e-3).all()


def test_processes_take_them() -> None:
    process = processes.GaussianProcess(likelihood=likelihoods.Bernoulli())
    posterior = gp.fit(process, Dataset(X, Y), approximation="sparse", num_inducing=10, num_epochs=20, seed=0)
    assert posterior.predict(X, num_samples=20, seed=0).mean.shape == (60, 2, K)


class TestErrorsWhoseRemedyWorks:
    def test_one_output_for_several_labels(self) -> None:
        with pytest.raises(ValueError, match=r"or give the network 3, for \(N, 3\) labels .* got \(60, 3\)"):
            map_estimate.fit(model_of(1), Dataset(X, Y), num_epochs=1, seed=0)
        map_estimate.fit(model_of(3), Dataset(X, Y), num_epochs=1, seed=0)

    def test_sigmoids_of_regions_that_overlap(self) -> None:
        probs = torch.tensor([0.9, 0.8, 0.1]).expand(2, 4, 3)
        with pytest.raises(ValueError, match=r"sums from 1\.8 .*pass `kind='bernoulli'`") as caught:
            CategoricalPredictive.from_probs(probs)
        assert "from_logits" not in str(caught.value)
        predictive = CategoricalPredictive.from_probs(probs, kind="bernoulli")
        y = torch.tensor([1, 1, 0]).expand(4, 3)
        torch.testing.assert_close(predictive.log_prob(y).exp()[0], torch.tensor([0.9, 0.8, 0.9]).double())
        with pytest.raises(ValueError, match="from_logits"):
            CategoricalPredictive.from_probs(3 * probs)

    def test_temperature_of_what_is_no_posterior(self) -> None:
        with pytest.raises(TypeError, match=r"must be a fitted posterior over labels; got Tensor") as caught:
            temperature.fit(torch.zeros(5, 3), Dataset(X, Y))
        assert "None" not in str(caught.value)
        real = map_estimate.fit(
            BayesianNetwork(nn.Linear(2, 1).double(), priors.Normal(), likelihoods.Normal(scale=0.1)),
            Dataset(X, X[:, 0]),
            num_epochs=1,
            seed=0,
        )
        with pytest.raises(TypeError, match=r"likelihood Normal. For real targets take `quantile_calibration.fit"):
            temperature.fit(real, Dataset(X, X[:, 0]))
