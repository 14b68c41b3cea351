"""The flat vector is a bijection of the sites, densities change by its Jacobian, and predictions use its draws."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev, vmap

from bayesuq.inference import ensemble, map_estimate, variational
from bayesuq.inference.joint.layout import FlatPrior, Layout
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, measured, noise

POSITIVE = [priors.HalfNormal(0.7), priors.HalfCauchy(0.4), priors.LogNormal(0.3, 0.5), priors.Gamma(3.0, 2.0)]
REAL = [
    priors.Normal(),
    priors.Normal(loc=0.3, scale=0.4),
    priors.Laplace(loc=-0.2, scale=0.6),
    priors.StudentT(df=4.0, loc=0.1, scale=0.5),
    priors.ScaleMixture(),
    priors.FanIn(priors.Normal(scale=1.4)),
    priors.FanIn(priors.Laplace()),
    priors.Gamma(3.0, 2.0),
]
MIXED = {"1.weight": priors.Laplace(), "*.bias": priors.Normal(loc=0.5, scale=0.2), "*": priors.StudentT()}


def model_of(prior=None, likelihood=None, **options) -> BayesianNetwork:
    net = built(lambda: networks.mlp(2, (3,), 1).double())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()  # so that a prior over positive numbers gives them a density
    likelihood = likelihoods.Normal(scale=0.5) if likelihood is None else likelihood
    return BayesianNetwork(net, priors.Normal() if prior is None else prior, likelihood, **options)


def test_sites_stand_in_the_order_of_the_network_then_the_likelihood_then_point_values():
    layout = Layout.of(model_of(likelihood=likelihoods.Normal(scale=priors.HalfNormal()), random="1.*"))
    assert list(layout.shapes) == ["1.weight", "1.bias", "likelihood.scale", "3.weight", "3.bias"]
    assert layout.sizes == [6, 3, 1, 3, 1]
    assert layout.size == 14
    assert list(layout.slices().values()) == [slice(0, 6), slice(6, 9), slice(9, 10), slice(10, 13), slice(13, 14)]
    assert list(layout.transforms) == ["likelihood.scale"]


@pytest.mark.parametrize("prior", [priors.Normal(), priors.Gamma(2.0, 2.0)])
@pytest.mark.parametrize("scale", [0.5, "learned", *POSITIVE])
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_split_and_join_are_inverse_for_any_leading_dimensions(prior, scale, leading):
    layout = Layout.of(model_of(prior, likelihoods.Normal(scale=scale)))
    flat = noise(0, *leading, layout.size)
    theta = layout.split(flat)
    assert {name: value.shape for name, value in theta.items()} == {
        name: leading + shape for name, shape in layout.shapes.items()
    }
    torch.testing.assert_close(layout.join(theta), flat, rtol=1e-12, atol=1e-12)


def test_split_gives_views_on_the_real_line():
    layout = Layout.of(model_of())
    flat = noise(0, 4, layout.size)
    flat_pointer = flat.untyped_storage().data_ptr()
    assert all(value.untyped_storage().data_ptr() == flat_pointer for value in layout.split(flat).values())


def test_join_of_the_initial_values_splits_into_them():
    model = model_of(likelihood=likelihoods.Normal(scale="learned", initial_scale=0.3))
    theta = Layout.of(model).split(Layout.of(model).join(model.initial()))
    for name, value in model.initial().items():
        torch.testing.assert_close(theta[name], value, rtol=1e-14, atol=0)


@pytest.mark.parametrize("prior", [priors.Normal(), priors.Gamma(2.0, 2.0)])
@pytest.mark.parametrize("scale", ["learned", *POSITIVE])
def test_log_abs_det_jacobian_is_autograds(prior, scale):
    layout = Layout.of(model_of(prior, likelihoods.Normal(scale=scale)))
    flats = noise(0, 2, 3, layout.size)

    def values(flat):
        return torch.cat([value.reshape(-1) for value in layout.split(flat).values()])

    expected = torch.stack([jacrev(values)(flat).slogdet().logabsdet for flat in flats.reshape(6, -1)]).reshape(2, 3)
    torch.testing.assert_close(layout.log_abs_det_jacobian(flats), expected, rtol=1e-10, atol=1e-10)


def test_log_abs_det_jacobian_of_real_sites_is_zero():
    layout = Layout.of(model_of())
    assert torch.equal(layout.log_abs_det_jacobian(noise(0, 5, layout.size)), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("scale", POSITIVE)
def test_a_density_read_from_the_flat_vector_integrates_to_one(scale):
    layout = Layout.of(model_of(likelihood=likelihoods.Normal(scale=scale)), ["likelihood.scale"])
    law = scale.entry(torch.zeros((), dtype=torch.float64))
    u = torch.linspace(-30, 30, 20001, dtype=torch.float64)[:, None]
    log_density = law.log_prob(layout.split(u)["likelihood.scale"]) + layout.log_abs_det_jacobian(u)
    assert torch.trapezoid(log_density.exp(), u[:, 0]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("prior", [*REAL, MIXED], ids=str)
@pytest.mark.parametrize("scale", [0.5, "learned", *POSITIVE], ids=str)
@pytest.mark.parametrize("random", ["all", "1.*"])
def test_the_flat_prior_is_the_sum_of_the_laws(prior, scale, random):
    if prior is MIXED and random == "1.*":
        prior = {"1.weight": priors.Laplace(), "*": priors.Normal(loc=0.5, scale=0.2)}
    model = model_of(prior, likelihoods.Normal(scale=scale), random=random)
    layout = Layout.of(model)
    flat = layout.join(model.initial()) + 0.1 * noise(0, layout.size).abs()
    theta = layout.split(flat)
    expected = sum(law.log_prob(theta[name]) for name, law in model.laws.items())
    assert model.points.keys() == theta.keys() - model.laws.keys()
    torch.testing.assert_close(FlatPrior.of(model, layout).log_prob(flat, theta), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prior", REAL, ids=str)
def test_the_gradient_of_the_flat_prior_is_that_of_the_laws(prior):
    model = model_of(prior)
    layout = Layout.of(model)
    start = layout.join(model.initial()) + 0.1 * noise(0, layout.size).abs()
    gradients = []
    for density in (
        lambda flat: FlatPrior.of(model, layout).log_prob(flat, layout.split(flat)),
        lambda flat: model.log_prior(layout.split(flat)),
    ):
        flat = start.clone().requires_grad_()
        gradients.append(torch.autograd.grad(density(flat), flat)[0])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_point_values_have_no_prior_term():
    model = model_of(random="3.bias")
    layout = Layout.of(model)
    prior = FlatPrior.of(model, layout)
    flat = noise(0, layout.size)
    bias = flat[layout.slices()["3.bias"]]
    expected = -0.5 * bias.square().sum() - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(prior.log_prob(flat, layout.split(flat)), expected, rtol=1e-12, atol=0)


FITS = {
    "map_estimate": (map_estimate.fit, {}),
    "variational": (variational.fit, {}),
    "ensemble": (ensemble.fit, {"num_members": 3}),
    "ensemble of variational": (ensemble.fit, {"num_members": 2, "member_fit": variational.fit}),
}


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("scale", [0.5, "learned", priors.HalfNormal()], ids=str)
def test_the_weights_sampled_are_those_that_predict(method, scale):
    fit, options = FITS[method]
    model = model_of(likelihood=likelihoods.Normal(scale=scale), random="3.*")
    posterior = fit(model, measured(num_features=2), num_epochs=2, batch_size=32, learning_rate=1e-2, seed=0, **options)
    theta, x = posterior.sample_weights(5, seed=3), noise(5, 6, 2)
    predictive = posterior.predict(x, num_samples=5, seed=3)
    weights = {name: value for name, value in theta.items() if not name.startswith("likelihood.")}
    assert set(theta) == set(model.initial())
    f = vmap(lambda one: functional_call(model.net, one, (x,)))(weights)
    torch.testing.assert_close(predictive.component_means, f, rtol=1e-12, atol=1e-12)
    noise_scale = theta.get("likelihood.scale", torch.full((len(f),), 0.5, dtype=torch.float64))
    expected = noise_scale[:, None, None].expand_as(f) ** 2
    torch.testing.assert_close(predictive.noise_variance, expected, rtol=1e-12, atol=0)


@pytest.mark.filterwarnings(*SHORT_FIT)
@pytest.mark.parametrize("method", FITS)
def test_sampled_weights_have_their_parameters_shapes_and_learned_points_repeat(method):
    fit, options = FITS[method]
    posterior = fit(
        model_of(random="3.*"), measured(num_features=2), num_epochs=1, learning_rate=1e-2, seed=0, **options
    )
    theta = posterior.sample_weights(4, seed=0)
    number = len(theta["3.bias"])
    assert theta["1.weight"].shape == (number, 3, 2)
    members = getattr(posterior, "members", (posterior,))
    assert len(torch.unique(theta["1.weight"], dim=0)) == min(len(members), number)
    assert len(torch.unique(theta["3.weight"], dim=0)) == number


def test_a_posterior_of_weights_at_hand_predicts_with_them():
    model = BayesianNetwork(nn.Linear(1, 1, dtype=torch.float64), priors.Normal(), likelihoods.Normal(scale=0.1))
    fitted = map_estimate.fit(model, measured(num_features=1), num_epochs=1, learning_rate=1e-2, seed=0)
    known = dataclasses.replace(fitted, values=torch.tensor([2.0, -1.0], dtype=torch.float64))
    predictive = known.predict([[0.0], [1.0], [3.0]])
    assert predictive.mean.flatten().tolist() == [-1.0, 1.0, 5.0]
    torch.testing.assert_close(predictive.total, torch.full((3, 1), 0.01, dtype=torch.float64))
