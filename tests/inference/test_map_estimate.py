"""The mode of the joint density: ridge regression, residual spread, and the gradient that leads there."""

import math

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import map_estimate
from bayesuq.inference.joint.layout import Layout
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import Conjugate, built, labelled, measured, noise, recorded_steps

PRIORS = [
    priors.Normal(),
    priors.Normal(loc=0.3, scale=0.4),
    priors.Laplace(loc=-0.2, scale=0.6),
    priors.StudentT(df=4.0, loc=0.1, scale=0.5),
    priors.ScaleMixture(),
    priors.FanIn(priors.Normal(scale=1.4)),
    {"1.weight": priors.Laplace(), "*.bias": priors.Normal(loc=0.5, scale=0.2), "*": priors.StudentT()},
]
LIKELIHOODS = [
    (likelihoods.Categorical(class_weights=(1.0, 2.0, 0.5)), 3),
    (likelihoods.HeteroscedasticNormal(minimum_scale=0.1), 2),
    (likelihoods.Normal(scale=0.5), 1),
    (likelihoods.Normal(scale="learned", initial_scale=0.7), 1),
    (likelihoods.Normal(scale=priors.HalfNormal(0.7)), 1),
    (likelihoods.Normal(scale=priors.Gamma(3.0, 2.0)), 1),
]


def fit(model: BayesianNetwork, data: Dataset, **options):
    """To the mode: full batches, and a rate that falls to nothing."""
    options = {"num_epochs": 400, "batch_size": len(data), "learning_rate": 0.1, "seed": 0} | options
    return map_estimate.fit(model, data, **options)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize(("likelihood", "num_outputs"), LIKELIHOODS, ids=str)
@pytest.mark.parametrize("random", ["all", "*.bias"])
def test_a_step_follows_the_gradient_of_the_log_joint(prior, likelihood, num_outputs, random):
    if isinstance(prior, dict) and random == "*.bias":
        prior = priors.Normal(loc=0.5, scale=0.2)
    net = built(lambda: networks.mlp(3, (4,), num_outputs, activation="tanh").double())
    model = BayesianNetwork(net, prior, likelihood, random=random)
    data = labelled(20) if num_outputs == 3 else measured(20)
    with recorded_steps() as steps:
        history = fit(model, data, num_epochs=1, learning_rate=1e-9).history
    layout = Layout.of(model)
    flat = layout.join(model.initial()).requires_grad_()
    loss = -model.log_joint(layout.split(flat), data.x, data.y)
    loss.backward()
    assert history.loss[0] * 20 == pytest.approx(loss.item(), rel=1e-12)
    # Weights move in one vector, the likelihood's unknowns in another.
    unknown = [name.startswith("likelihood.") for name in layout.shapes]
    parts = dict.fromkeys(unknown, flat.new_empty(0))
    for is_unknown, part in zip(unknown, flat.grad.split(layout.sizes), strict=True):
        parts[is_unknown] = torch.cat([parts[is_unknown], part])
    for gradient, expected in zip(steps[0]["gradients"], parts.values(), strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("prior_scale", "noise_scale"), [(0.1, 1.0), (1.0, 0.1), (10.0, 1.0)])
def test_the_mode_of_a_linear_model_is_the_ridge_solution(prior_scale, noise_scale):
    case = Conjugate(30, 3, noise_scale, prior_scale, dtype=torch.float64)
    posterior = fit(case.model, case.data)
    torch.testing.assert_close(posterior.values, case.mean, rtol=1e-4, atol=1e-5)
    predictive = posterior.predict(case.data.x)
    torch.testing.assert_close(predictive.epistemic, torch.zeros_like(predictive.mean))


def test_minibatches_end_near_the_ridge_solution():
    case = Conjugate(200, 3, 0.5, dtype=torch.float64)
    posterior = fit(case.model, case.data, num_epochs=60, batch_size=20)
    assert ((posterior.values - case.mean) / case.scale).abs().max() < 0.2


def test_a_learned_noise_scale_is_the_root_mean_square_of_the_residuals():
    data = measured(60)
    net = built(lambda: nn.Linear(3, 1, dtype=torch.float64))
    posterior = fit(BayesianNetwork(net, priors.Normal(scale=100.0), likelihoods.Normal(scale="learned")), data)
    predictive = posterior.predict(data.x)
    residual = (data.y - predictive.mean).square().mean().sqrt()
    design = torch.cat([data.x, torch.ones(60, 1, dtype=torch.float64)], dim=1)
    least_squares = torch.linalg.lstsq(design, data.y).solution.flatten()
    torch.testing.assert_close(posterior.sample_weights()["likelihood.scale"][0], residual, rtol=1e-5, atol=0)
    torch.testing.assert_close(posterior.values[:4], least_squares, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(predictive.aleatoric, residual.square().expand(60, 1), rtol=1e-4, atol=0)


def test_an_inferred_noise_scale_is_the_mode_on_its_own_scale():
    # y ~ N(0, s^2) with s ~ Gamma(a, b): the log density (a - 1 - N) log s - b s - sum y^2 / (2 s^2) has its mode where
    # b s^3 + (N + 1 - a) s^2 = sum y^2.
    y = noise(0, 30)
    net = nn.Linear(1, 1, dtype=torch.float64).requires_grad_(False)
    nn.init.zeros_(net.weight)
    nn.init.zeros_(net.bias)
    net = nn.Sequential(net, Shift())
    prior = {"*": priors.Normal(scale=1e-3)}
    model = BayesianNetwork(net, prior, likelihoods.Normal(scale=priors.Gamma(4.0, 5.0)))
    scale = float(fit(model, Dataset(torch.zeros(30, 1), y)).sample_weights()["likelihood.scale"])
    assert 5 * scale**3 + (30 + 1 - 4) * scale**2 == pytest.approx(float(y.square().sum()), rel=1e-3)


class Shift(nn.Module):
    """One weight, which its prior holds near 0."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return x + self.shift


@pytest.mark.parametrize(
    "prior", [priors.Normal(0.7, 1e-2), priors.Laplace(0.7, 1e-2), priors.StudentT(5.0, 0.7, 1e-2)]
)
def test_a_tight_prior_draws_the_weights_to_its_centre(prior):
    net = built(lambda: nn.Linear(3, 1, dtype=torch.float64))
    model = BayesianNetwork(net, prior, likelihoods.Normal(scale=1.0))
    values = fit(model, measured(10)).values
    torch.testing.assert_close(values, torch.full_like(values, 0.7), rtol=0, atol=5e-3)


def test_a_prior_on_some_weights_leaves_the_others_alone():
    data = measured(40)
    net = built(lambda: nn.Linear(3, 1, dtype=torch.float64))
    model = BayesianNetwork(
        net, {"weight": priors.Normal(scale=1e-4), "bias": priors.Normal(scale=1e3)}, likelihoods.Normal(0.5)
    )
    theta = fit(model, data).sample_weights()
    assert theta["weight"].abs().max() < 1e-3
    assert float(theta["bias"]) == pytest.approx(float(data.y.mean()), abs=1e-3)


def test_points_have_no_prior_term():
    data = measured(40)
    net = built(lambda: nn.Linear(3, 1, dtype=torch.float64))
    model = BayesianNetwork(net, priors.Normal(scale=1e-4), likelihoods.Normal(0.5), random="weight")
    theta = fit(model, data).sample_weights()
    assert theta["weight"].abs().max() < 1e-3
    assert float(theta["bias"]) == pytest.approx(float(data.y.mean()), rel=1e-4)  # as if there were no prior


def test_a_fit_starts_from_the_networks_own_weights():
    net = built(lambda: nn.Linear(3, 1, dtype=torch.float64))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(0.5))
    posterior = fit(model, measured(40), num_epochs=1, learning_rate=1e-12)
    torch.testing.assert_close(posterior.values, torch.cat([net.weight[0], net.bias]).detach(), rtol=0, atol=1e-9)


@pytest.mark.slow
def test_dropout_layers_regularise_the_fit_and_are_the_identity_afterwards():
    data = measured(40)
    ends = []
    for p in (0.0, 0.5):
        net = built(lambda p=p: nn.Sequential(nn.Dropout(p), nn.Linear(3, 1, dtype=torch.float64)))
        model = BayesianNetwork(net, priors.Normal(scale=1e3), likelihoods.Normal(0.5))
        ends.append(fit(model, data, num_epochs=600, learning_rate=0.05).sample_weights()["1.weight"][0, 0])
    # Dropout at rate p on the inputs is ridge regression with the penalty p / (1 - p) diag(X^T X) (Wager 2013, eq. 5),
    # here up to the noise of the masks.
    x = data.x
    centred, target = x - x.mean(dim=0), data.y - data.y.mean()
    expected = torch.linalg.solve(centred.T @ centred + (x.T @ x).diag().diag(), centred.T @ target).flatten()
    assert (ends[1] - expected).abs().max() < 0.05
    assert (ends[0] - expected).abs().max() > 0.1


def test_a_predictive_of_one_network_has_its_softmax():
    net = built(lambda: networks.mlp(3, (4,), 3))
    posterior = fit(BayesianNetwork(net, priors.Normal(), likelihoods.Categorical()), labelled(30), num_epochs=30)
    theta = {name: value[0] for name, value in posterior.sample_weights().items()}
    x = noise(3, 5, 3).float()
    expected = torch.func.functional_call(net, theta, (x,)).double().softmax(dim=1)
    predictive = posterior.predict(x, keep_samples=True)
    torch.testing.assert_close(predictive.mean, expected, rtol=1e-5, atol=1e-6)
    assert predictive.epistemic.max() < 1e-12
    assert predictive.total.max() < math.log(3)
