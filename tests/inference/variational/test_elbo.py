"""The ELBO with its hand-written gradient: Pyro's own, draw for draw, and the exact one where that is known."""

import math
from collections.abc import Iterator

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.variational.elbo import Divergence, MeanFieldELBO
from bayesuq.inference.variational.guides import MeanFieldGuide, mean_field
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import Conjugate, built, noise

SAME_DRAWS = {"rtol": 1e-9, "atol": 1e-9}  # float64
PRIORS = [
    priors.Normal(),
    priors.Normal(loc=0.3, scale=0.4),
    priors.Laplace(loc=-0.2, scale=0.6),
    priors.StudentT(df=4.0, loc=0.1, scale=0.5),
    priors.ScaleMixture(),
    priors.FanIn(priors.Normal(scale=1.4)),
    priors.FanIn(priors.StudentT()),
    {"1.weight": priors.Laplace(), "*.bias": priors.Normal(loc=0.5, scale=0.2), "*": priors.StudentT()},
]
SCALES = ["learned", priors.HalfNormal(0.7), priors.HalfCauchy(0.4), priors.LogNormal(0.3, 0.5), priors.Gamma(3.0, 2.0)]
LIKELIHOODS = [
    (likelihoods.Categorical(), 3),
    (likelihoods.Categorical(class_weights=(1.0, 2.0, 0.5), ignore_index=2), 3),
    (likelihoods.Bernoulli(), 1),
    (likelihoods.Bernoulli(class_weights=(1.0, 3.0)), 1),
    (likelihoods.HeteroscedasticNormal(minimum_scale=0.1), 2),
    (likelihoods.Normal(scale=0.5), 1),
    (likelihoods.StudentT(df="learned", scale=priors.HalfNormal(0.7)), 1),
    (likelihoods.Poisson(), 1),
    *[(likelihoods.Normal(scale=scale), 1) for scale in SCALES],
]
X = noise(0, 9, 2)


@pytest.fixture(autouse=True)
def _empty_parameter_store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def model_of(prior, likelihood=None, num_outputs: int = 1, **options) -> BayesianNetwork:
    net = built(lambda: networks.mlp(2, (3,), num_outputs).double())
    return BayesianNetwork(net, prior, likelihoods.Normal(scale=0.5) if likelihood is None else likelihood, **options)


def targets(model: BayesianNetwork) -> Tensor:
    if isinstance(model.likelihood, likelihoods.Categorical | likelihoods.Bernoulli):
        return torch.arange(len(X)) % (3 if isinstance(model.likelihood, likelihoods.Categorical) else 2)
    if isinstance(model.likelihood, likelihoods.Poisson):
        return torch.arange(len(X)).remainder(4).double().unsqueeze(1)
    return noise(1, len(X), 1)


def guide_of(model: BayesianNetwork, seed: int = 2) -> MeanFieldGuide:
    """Some guide that is no special one."""
    size = Layout.of(model, model.laws).size
    return MeanFieldGuide(model, 0.3 * noise(seed, size), -1 + 0.3 * noise(seed + 1, size))


def loss_and_gradients(elbo, model: BayesianNetwork, **options) -> dict[str, Tensor]:
    """At the same draws, for the same global seed: minus the ELBO, and its gradient by parameter."""
    pyro.clear_param_store()
    guide = guide_of(model)
    torch.manual_seed(4)
    loss = elbo.differentiable_loss(model, guide, X, targets(model), **options)
    loss.backward()
    points = {name: pyro.param(name).unconstrained().grad for name in model.points}
    return {"loss": loss.detach(), "loc": guide.loc.grad, "log_scale": guide.log_scale.grad, **points}


def assert_equals_pyro(model: BayesianNetwork, num_particles: int = 1, **options) -> None:
    ours, pyros = (
        loss_and_gradients(elbo(num_particles=num_particles), model, **options)
        for elbo in (MeanFieldELBO, TraceMeanField_ELBO)
    )
    for name, value in pyros.items():
        torch.testing.assert_close(ours[name], value, **SAME_DRAWS, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize(("likelihood", "num_outputs"), LIKELIHOODS, ids=str)
def test_value_and_gradient_are_pyros_on_the_same_draws(prior, likelihood, num_outputs):
    assert_equals_pyro(model_of(prior, likelihood, num_outputs))


@pytest.mark.parametrize("prior", PRIORS[:4], ids=str)
@pytest.mark.parametrize("random", ["last_layer", "*.weight"])
@pytest.mark.parametrize("scale", [0.5, "learned", priors.HalfNormal()], ids=str)
def test_value_and_gradient_are_pyros_where_some_weights_are_points(prior, random, scale):
    assert_equals_pyro(model_of(prior, likelihoods.Normal(scale=scale), random=random))


@pytest.mark.parametrize("prior", [priors.Normal(loc=0.3, scale=0.4), priors.StudentT(), priors.Laplace()], ids=str)
@pytest.mark.parametrize("options", [{"num_data": 50}, {"weight": torch.arange(9.0).double()}], ids=str)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_value_and_gradient_are_pyros_for_minibatches_weights_and_particles(prior, options, num_particles):
    assert_equals_pyro(model_of(prior, likelihoods.Normal(scale=priors.HalfNormal())), num_particles, **options)


def test_particles_average_single_draws():
    model = model_of(priors.StudentT())
    guide = guide_of(model)
    torch.manual_seed(4)
    singles = [MeanFieldELBO().loss(model, guide, X, targets(model)) for _ in range(5)]
    torch.manual_seed(4)
    assert MeanFieldELBO(num_particles=5).loss(model, guide, X, targets(model)) == pytest.approx(
        sum(singles) / 5, rel=1e-12
    )


def test_draws_without_a_likelihood_leave_the_divergence():
    model = model_of(priors.Normal(loc=0.3, scale=0.4))
    guide = guide_of(model)
    loc, scale = guide.loc.detach(), guide.log_scale.detach().exp()
    # KL(N(m, s^2) || N(m0, s0^2)) = log(s0 / s) + (s^2 + (m - m0)^2) / (2 s0^2) - 1/2, summed over all weights
    expected = (math.log(0.4) - scale.log() + (scale**2 + (loc - 0.3) ** 2) / (2 * 0.4**2) - 0.5).sum()
    nothing = torch.zeros(len(X), dtype=torch.float64)
    loss = MeanFieldELBO().loss(model, guide, X, targets(model), weight=nothing)
    assert loss == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("hidden", [(), (3,), (30,), (3, 3), (3, 3, 3, 3)])
def test_the_divergence_is_summed_over_weights_and_layers_never_averaged(hidden):
    model = BayesianNetwork(networks.mlp(2, hidden, 1).double(), priors.Normal(), likelihoods.Normal(scale=0.5))
    size = Layout.of(model).size
    ones = torch.ones(size, dtype=torch.float64)
    guide = MeanFieldGuide(model, 0.7 * ones, (0.2 * ones).log())
    of_one_weight = -math.log(0.2) + (0.2**2 + 0.7**2) / 2 - 0.5
    loss = MeanFieldELBO().loss(model, guide, X, noise(1, 9, 1), weight=torch.zeros(9).double())
    assert loss == pytest.approx(size * of_one_weight, rel=1e-12)


def test_the_divergence_counts_once_whatever_the_minibatch():
    model = model_of(priors.Normal())
    guide = guide_of(model)
    losses = []
    for rows in (slice(0, 3), slice(3, 6), slice(6, 9), slice(0, 9)):
        torch.manual_seed(4)
        losses.append(MeanFieldELBO().loss(model, guide, X[rows], targets(model)[rows], num_data=9))
    assert sum(losses[:3]) / 3 == pytest.approx(losses[3], rel=1e-12)


def estimate(case: Conjugate, loc: Tensor, scale: Tensor, num_draws: int = 1000) -> tuple[float, float]:
    """The ELBO and its standard error over draws."""
    guide = MeanFieldGuide(case.model, loc, scale.log())
    elbo = MeanFieldELBO()
    draws = torch.tensor([-elbo.loss(case.model, guide, case.data.x, case.data.y) for _ in range(num_draws)])
    return float(draws.mean()), float(draws.std()) / num_draws**0.5


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("num_features", [1, 3])
def test_the_elbo_is_the_evidence_less_the_divergence_from_the_exact_posterior(num_features, shift):
    case = Conjugate(12, num_features, noise_scale=0.5, bias=False, dtype=torch.float64)
    loc, scale = case.mean + shift * case.scale, case.scale
    exact = torch.distributions.MultivariateNormal(case.mean, precision_matrix=case.precision)
    guide = torch.distributions.MultivariateNormal(loc, (scale**2).diag())
    divergence = torch.distributions.kl_divergence(guide, exact)
    if num_features == 1 and shift == 0:
        assert divergence.abs() < 1e-12  # one weight: the posterior itself is a mean-field Gaussian
    else:
        assert divergence > 0.01
    value, error = estimate(case, loc, scale)
    assert error < 0.1
    assert abs(value - float(case.log_evidence - divergence)) < 5 * error


def test_svi_trains_the_guide_and_its_loss_falls():
    model = model_of(priors.Normal(), likelihoods.Normal(scale="learned"))
    guide = mean_field(model)
    before = {name: value.detach().clone() for name, value in guide.named_parameters()}
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=MeanFieldELBO())
    y = X.sum(dim=1, keepdim=True)
    losses = torch.tensor([svi.step(X, y) for _ in range(150)])
    assert losses[-30:].mean() < losses[:30].mean() - 1
    assert all(not torch.equal(value, before[name]) for name, value in guide.named_parameters())
    assert pyro.param("likelihood.scale") < 0.9  # it started at 1
    assert math.isfinite(svi.evaluate_loss(X, y))


@pytest.mark.parametrize("prior", [priors.Normal(), priors.StudentT()], ids=str)
def test_svi_moves_as_it_does_by_pyros_elbo(prior):
    model = model_of(prior, likelihoods.Normal(scale="learned"))
    ends = []
    for elbo in (MeanFieldELBO(), TraceMeanField_ELBO()):
        pyro.clear_param_store()
        guide = guide_of(model)
        torch.manual_seed(4)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
        for _ in range(20):
            svi.step(X, targets(model), 50)
        ends.append(torch.cat([guide.loc.detach(), guide.log_scale.detach(), pyro.param("likelihood.scale")[None]]))
    torch.testing.assert_close(*ends, rtol=1e-7, atol=1e-7)  # rounding of 1e-9 a step, over 20 steps of Adam


def test_evaluating_makes_no_gradient():
    model = model_of(priors.Normal())
    guide = guide_of(model)
    MeanFieldELBO().loss(model, guide, X, targets(model))
    assert guide.loc.grad is None


def test_a_second_guide_in_the_same_store_is_refused():
    model = model_of(priors.Normal())
    MeanFieldELBO().loss_and_grads(model, guide_of(model), X, targets(model))
    with pytest.raises(RuntimeError, match="clear_param_store"):
        MeanFieldELBO().loss_and_grads(model, guide_of(model, seed=7), X, targets(model))
    pyro.clear_param_store()
    MeanFieldELBO().loss_and_grads(model, guide_of(model, seed=7), X, targets(model))


@pytest.mark.parametrize(
    "wrap", [lambda model: poutine.scale(model, 0.5), lambda model: poutine.block(model), lambda model: model.forward]
)
def test_a_wrapped_model_is_refused(wrap):
    model = model_of(priors.Normal())
    with pytest.raises(TypeError, match="TraceMeanField_ELBO for others"):
        MeanFieldELBO().loss(wrap(model), guide_of(model), X, targets(model))


@pytest.mark.parametrize(
    "guide", [AutoNormal, lambda model: poutine.scale(guide_of(model), 0.5), lambda _: nn.Linear(1, 1)]
)
def test_another_guide_is_refused(guide):
    model = model_of(priors.Normal())
    with pytest.raises(TypeError, match="bare BayesianNetwork and its MeanFieldGuide"):
        MeanFieldELBO().loss(model, guide(model), X, targets(model))


@pytest.mark.parametrize(("number", "error"), [(0, ValueError), (1.5, TypeError)])
def test_the_number_of_particles_must_be_a_count(number, error):
    with pytest.raises(error, match="`num_particles`"):
        MeanFieldELBO(num_particles=number)


MIXED = {
    "1.weight": priors.ScaleMixture((1.0, 0.1), (0.5, 0.5)),
    "1.bias": priors.ScaleMixture((1.0, 0.1), (0.5, 0.5)),
    "3.weight": priors.Laplace(),
    "3.bias": priors.ScaleMixture((2.0, 0.1, 0.01), (0.5, 0.25, 0.25)),
}


@pytest.mark.parametrize("prior", [priors.ScaleMixture(), MIXED], ids=["one mixture", "mixtures beside another family"])
def test_scale_mixtures_in_one_kernel_are_what_autograd_makes_of_them(prior):
    net = built(lambda: networks.mlp(2, (3,), 1)).double()
    model = BayesianNetwork(net, prior, likelihoods.Normal(scale=priors.HalfNormal(1.0)))
    guide = mean_field(model, initial_scale=0.5)
    divergence, noise = Divergence.of(model, guide), torch.randn_like(guide.loc)
    flat = (guide.loc + guide.log_scale.exp() * noise).detach().requires_grad_()
    whole = divergence.others(guide, noise, guide.layout.split(flat), flat)
    (expected,) = torch.autograd.grad(whole, flat)
    rest = divergence.others(guide, noise, guide.layout.split(flat), flat, mixtures=False)
    gradient = torch.autograd.grad(rest, flat)[0]
    value = rest + divergence.add_mixtures(noise, flat.detach(), gradient)
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert len(divergence.mixtures) == (1 if isinstance(prior, priors.Prior) else 2)  # neighbours of one law are one
