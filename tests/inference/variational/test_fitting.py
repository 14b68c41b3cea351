"""Stochastic variational inference: unbiased gradients, the exact mean-field posterior, and scales that are learned."""

import itertools
import math
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from bayesuq import datasets
from bayesuq.data import Batch, Dataset
from bayesuq.inference import variational
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.variational.defaults import default_learning_rate
from bayesuq.inference.variational.factorised import EvidenceObjective, VariationalPosterior
from bayesuq.inference.variational.guides import MeanFieldGuide, mean_field
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator
from tests.inference.examples import SHORT_FIT, Conjugate, built, expectation, measured, noise, recorded_steps

PRIORS = [
    priors.Normal(),
    priors.Normal(loc=0.3, scale=0.4),
    priors.Laplace(loc=-0.9, scale=0.6),
    priors.StudentT(df=4.0, loc=0.1, scale=0.5),
    priors.ScaleMixture(scales=(1.0, 0.3), weights=(0.6, 0.4)),
    priors.FanIn(priors.Normal(scale=1.4)),
]
UNKNOWN_SCALES = ["learned", priors.HalfNormal(0.7), priors.LogNormal(0.3, 0.5), priors.Gamma(3.0, 2.0)]
PAIRS = [  # of a prior and a scale: each kind of either, and some of both
    *[(prior, 0.5) for prior in PRIORS],
    *[(priors.Normal(), scale) for scale in UNKNOWN_SCALES],
    (priors.Laplace(loc=-0.9), priors.Gamma(3.0, 2.0)),
    (priors.ScaleMixture((1.0, 0.3, 0.1), (0.6, 0.3, 0.1)), priors.HalfNormal(0.7)),
    (priors.StudentT(), "learned"),
]
SHORT = pytest.mark.filterwarnings(*SHORT_FIT)


def one_weight_model(prior=None, scale: object = 0.5) -> BayesianNetwork:
    net = built(lambda: nn.Linear(1, 1, bias=False, dtype=torch.float64))
    return BayesianNetwork(net, priors.Normal() if prior is None else prior, likelihoods.Normal(scale=scale))


def negative_elbo(prior, scale, data: Dataset, loc: Tensor, log_scale: Tensor) -> Tensor:
    """Of `one_weight_model`, exactly: E_q[-log p(w, s, y) - log s] less the entropy of q(w, log s), by quadrature."""
    law = prior.entry(torch.zeros(1, 1, dtype=torch.float64))

    def energy(eps: Tensor) -> Tensor:
        flat = loc + log_scale.exp() * eps
        w, s = flat[:, :1], torch.full_like(flat[:, :1], scale if isinstance(scale, float) else 1.0)
        energies = -law.log_prob(w)[:, 0]
        if isinstance(scale, priors.Prior):
            s = flat[:, 1:].exp()
            energies = energies - scale.entry(s[0, 0]).log_prob(s[:, 0]) - flat[:, 1]
        residuals = (data.y[:, 0] - w * data.x[:, 0]) / s
        return energies + (0.5 * residuals**2 + s.log() + 0.5 * math.log(2 * math.pi)).sum(dim=1)

    entropy = log_scale.sum() + 0.5 * len(loc) * (1 + math.log(2 * math.pi))
    return expectation(energy, len(loc), num_nodes=30) - entropy


# The gradient of a step


def where_the_elbo_is_known(prior, scale) -> tuple[BayesianNetwork, Dataset, Tensor, Tensor, Tensor, list[Tensor]]:
    """A model, data, means and log scales of a guide; minus the ELBO there and its gradients along both."""
    model, data = one_weight_model(prior, scale), measured(12, num_features=1)
    size = len(model.laws)
    loc = torch.tensor([0.8, -0.4], dtype=torch.float64)[:size]
    log_scale = torch.tensor([0.15, 0.2], dtype=torch.float64)[:size].log()  # far from the kink of a Laplace density
    leaves = loc.clone().requires_grad_(), log_scale.clone().requires_grad_()
    exact = negative_elbo(prior, scale, data, *leaves)
    return model, data, loc, log_scale, exact.detach(), list(torch.autograd.grad(exact, leaves))


@pytest.mark.parametrize(("prior", "scale"), PAIRS, ids=str)
def test_loss_and_gradient_over_all_draws_are_those_of_the_exact_elbo(prior, scale, monkeypatch):
    """Where draws are the nodes of a quadrature, their weighted mean has no noise."""
    model, data, loc, log_scale, exact, gradients = where_the_elbo_is_known(prior, scale)
    objective = EvidenceObjective(model, MeanFieldGuide(model, loc, log_scale), len(data), num_draws=1, scale_rate=1.0)
    batch = Batch(data.x, data.y, None)
    nodes, shares = (torch.tensor(part) for part in np.polynomial.hermite_e.hermegauss(12))
    found = [torch.zeros(()).double(), torch.zeros_like(loc), torch.zeros_like(loc)]
    for place in itertools.product(range(12), repeat=len(loc)):
        eps = nodes[list(place)]

        def draw(_stream, eps=eps) -> None:
            objective.weights.values.copy_(loc + log_scale.exp() * objective.noise.copy_(eps))

        monkeypatch.setattr(objective, "_draw", draw)
        value = objective.loss_and_grads(batch, generator(0)).detach()
        share = shares[list(place)].prod() / math.tau ** (len(loc) / 2)
        for total, part in zip(found, (value, objective.grad_loc, objective.grad_log_scale), strict=True):
            total += share * part
    for total, expected in zip(found, (exact, *gradients), strict=True):
        torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-4)


@SHORT
@pytest.mark.parametrize(("prior", "scale"), [PAIRS[0], *PAIRS[-3:]], ids=str)
def test_loss_and_gradient_of_minibatches_and_several_draws_are_those_of_the_exact_elbo_on_average(prior, scale):
    model, data, loc, log_scale, exact, expected_gradients = where_the_elbo_is_known(prior, scale)
    options = {"num_epochs": 35, "batch_size": 5, "num_draws": 3, "learning_rate": 1e-13, "seed": 0}
    with recorded_steps() as steps:
        posterior = variational.fit(model, data, guide=lambda _: MeanFieldGuide(model, loc, log_scale), **options)

    for leaf, expected in enumerate(expected_gradients):
        gradients = torch.stack([step["gradients"][leaf] for step in steps])
        error = gradients.std(dim=0) / len(gradients) ** 0.5
        # One of some 100 such means exceeds 5 standard errors with probability 6e-5; the seed is fixed besides.
        assert ((gradients.mean(dim=0) - expected).abs() < 5 * error + 1e-9).all()
        assert (error < 0.3 * (1 + expected.abs())).all()
    losses = len(data) * torch.tensor(posterior.history.loss)
    assert abs(losses.mean() - exact.item()) < 5 * losses.std() / len(losses) ** 0.5 + 1e-9


@SHORT
def test_more_draws_a_step_make_its_gradient_less_noisy():
    case = Conjugate(20, 2, 0.5)
    spread = []
    for num_draws in (1, 8):
        with recorded_steps() as steps:
            variational.fit(
                case.model, case.data, num_draws=num_draws, num_epochs=150, batch_size=20, learning_rate=1e-9, seed=0
            )
        spread.append(torch.stack([step["gradients"][0] for step in steps]).var(dim=0))
    # A ratio of two variances of 150 draws has a standard error of about 2 / 150^(1/2) = 16 %.
    assert (spread[0] / spread[1] / 8).log().abs().max() < 0.65


@SHORT
def test_scales_have_a_learning_rate_of_their_own():
    model = one_weight_model(scale="learned")
    with recorded_steps() as steps:
        variational.fit(
            model, measured(10, num_features=1), num_epochs=1, batch_size=10, learning_rate=0.02, scale_rate=3.0, seed=0
        )
    assert steps[0]["rates"] == pytest.approx([0.02, 0.06, 0.06])  # means, log scales, the likelihood's scale


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"num_draws": 0}, ValueError, "`num_draws` must be at least 1"),
        ({"num_draws": 1.5}, TypeError, "`num_draws` must be a whole number"),
        ({"scale_rate": 0.0}, ValueError, "`scale_rate`"),
        ({"scale_rate": math.nan}, ValueError, "`scale_rate`"),
        ({"guide": partial(mean_field, initial_scale=0.0)}, ValueError, "`initial_scale`"),
        ({"guide": lambda _: nn.Linear(1, 1)}, TypeError, "Pyro guide; it gave Linear"),
        ({"num_draw": 2}, TypeError, "did you mean 'num_draws'"),
    ],
)
def test_its_own_options_are_checked(options, error, says):
    with recorded_steps() as steps, pytest.raises(error, match=says):
        variational.fit(one_weight_model(), measured(10, num_features=1), **({"num_epochs": 1, "seed": 0} | options))
    assert steps == []


# Where a fit starts


@pytest.mark.parametrize(
    ("prior", "spread"),
    [
        (priors.Normal(scale=0.4), 0.4),
        (priors.Laplace(scale=0.6), 0.6 * 2**0.5),
        (priors.StudentT(df=4.0, scale=0.5), 0.5 * 2**0.5),
        (priors.StudentT(df=2.0, scale=0.5), 1.0),  # whose variance is infinite
        (priors.ScaleMixture(scales=(1.0, 0.5), weights=(0.5, 0.5)), 0.625**0.5),
    ],
    ids=str,
)
def test_a_guide_starts_at_the_networks_weights_with_a_share_of_the_priors_scale(prior, spread):
    net = built(lambda: networks.mlp(2, (3,), 1).double())
    model = BayesianNetwork(net, prior, likelihoods.Normal(scale=priors.HalfNormal(), initial_scale=0.3))
    guide = mean_field(model, initial_scale=0.2)
    expected = torch.cat([p.detach().flatten() for p in net.parameters()] + [torch.tensor([math.log(0.3)])])
    torch.testing.assert_close(guide.loc.detach(), expected.double(), rtol=1e-7, atol=1e-12)
    scales = guide.log_scale.detach().exp()
    torch.testing.assert_close(scales[:-1], torch.full((13,), 0.2 * spread, dtype=torch.float64))
    assert float(scales[-1]) == pytest.approx(0.2)


def test_scales_start_as_shares_of_each_priors_own():
    net = built(lambda: networks.mlp(4, (2,), 1))
    model = BayesianNetwork(net, priors.FanIn(priors.Normal(scale=2.0)), likelihoods.Normal(scale=0.1))
    scales = Layout.of(model).split(mean_field(model, initial_scale=0.1).log_scale.detach().exp())
    assert float(scales["1.weight"].mean()) == pytest.approx(0.1 * 2 / 4**0.5)
    assert float(scales["3.weight"].mean()) == pytest.approx(0.1 * 2 / 2**0.5)
    assert float(scales["1.bias"].mean()) == pytest.approx(0.1 * 2)


# Where it ends


CONJUGATE = [  # (points, features, noise, seed)
    (100, 1, 1.0, 0),
    (128, 4, 0.5, 0),
    (128, 4, 0.1, 1),
    (128, 30, 1.0, 1),
    (640, 4, 0.5, 0),
    (1280, 8, 1.0, 0),
    (20, 2, 0.5, 1),
]


@pytest.mark.parametrize("case", CONJUGATE, ids=lambda case: "{} points, {} features, noise {}, seed {}".format(*case))
def test_all_defaults_and_500_steps_learn_a_conjugate_models_scales_and_means(case):
    num_points, num_features, noise_scale, seed = case
    exact = Conjugate(num_points, num_features, noise_scale, seed=10 * seed)
    posterior = variational.fit(exact.model, exact.data, num_epochs=500 // math.ceil(num_points / 128), seed=seed)
    ratio = posterior.scale / exact.scale
    assert ratio.min() > 0.8
    assert ratio.max() < 1.2
    # Noise of the gradient leaves the means some tenths of a posterior scale away: half of one is claimed.
    assert ((posterior.loc - exact.mean) / exact.scale).abs().max() < 0.5


def long_fit(**options) -> tuple[Conjugate, VariationalPosterior]:
    exact = Conjugate(60, 3, 0.5, dtype=torch.float64)
    options |= {"batch_size": 60, "learning_rate": 0.03, "scale_rate": 1.0, "seed": 0}
    return exact, variational.fit(exact.model, exact.data, **options)


@pytest.fixture(scope="module")
def fitted_for_long() -> tuple[Conjugate, VariationalPosterior]:
    return long_fit(num_epochs=800)


def assert_exact(exact: Conjugate, posterior: VariationalPosterior) -> None:
    assert (posterior.scale / exact.scale).log().abs().max() < 0.1
    assert ((posterior.loc - exact.mean) / exact.scale).abs().max() < 0.25


def test_a_long_fit_finds_the_exact_mean_field_posterior(fitted_for_long):
    assert_exact(*fitted_for_long)


def test_four_draws_a_step_find_it_in_a_quarter_of_the_steps():
    assert_exact(*long_fit(num_epochs=200, num_draws=4))


def test_its_predictive_is_the_exact_one_of_the_mean_field_posterior(fitted_for_long):
    _, posterior = fitted_for_long
    x = noise(5, 20, 3)
    design = torch.cat([x, torch.ones(20, 1, dtype=torch.float64)], dim=1)
    mean, variance = design @ posterior.loc, design**2 @ posterior.scale**2
    predictive = posterior.predict(x, num_samples=4000, seed=0)
    # Standard errors over 4,000 draws: (variance / S)^(1/2) of a mean, variance (2 / S)^(1/2) of a Gaussian's variance.
    assert ((predictive.mean[:, 0] - mean) / (variance / 4000).sqrt()).abs().max() < 4.5
    assert (predictive.epistemic[:, 0] / variance - 1).abs().max() < 4.5 * (2 / 4000) ** 0.5
    torch.testing.assert_close(predictive.aleatoric, torch.full((20, 1), 0.25, dtype=torch.float64))


@SHORT
@pytest.mark.slow
def test_an_inferred_noise_scale_ends_at_the_best_elbo():
    scale = priors.HalfNormal(0.7)
    model, data = one_weight_model(priors.StudentT(), scale), measured(40, num_features=1)
    best = torch.zeros(2, dtype=torch.float64, requires_grad=True), torch.full((2,), -2.0).double().requires_grad_()
    optimizer = torch.optim.LBFGS(best, max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = negative_elbo(priors.StudentT(), scale, data, *best)
        loss.backward()
        return loss

    optimizer.step(closure)
    posterior = variational.fit(
        model, data, num_epochs=200, batch_size=40, num_draws=4, learning_rate=0.06, scale_rate=1.0, seed=0
    )
    loc, log_scale = (leaf.detach() for leaf in best)
    assert ((posterior.loc - loc) / log_scale.exp()).abs().max() < 0.3
    assert (posterior.log_scale - log_scale).abs().max() < 0.15
    assert (posterior.sample_weights(50, seed=0)["likelihood.scale"] > 0).all()


def test_without_evidence_the_posterior_is_the_prior():
    net = built(lambda: networks.mlp(2, (3,), 1).double())
    model = BayesianNetwork(net, priors.Normal(loc=0.3, scale=0.4), likelihoods.Normal(scale=0.1))
    silent = Dataset(noise(0, 10, 2), noise(1, 10), weight=torch.zeros(10))
    posterior = variational.fit(
        model, silent, num_epochs=400, batch_size=10, learning_rate=0.05, scale_rate=1.0, seed=0
    )
    torch.testing.assert_close(posterior.loc, torch.full((13,), 0.3).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(posterior.scale, torch.full((13,), 0.4).double(), rtol=1e-3, atol=0)
    assert posterior.history.loss[-1] == pytest.approx(0, abs=1e-4)


@SHORT
def test_learned_points_do_not_vary_and_the_rest_does():
    net = built(lambda: networks.mlp(3, (6,), 1, activation="tanh"))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale="learned"), random="last_layer")
    posterior = variational.fit(model, measured(), num_epochs=30, batch_size=16, learning_rate=1e-2, seed=0)
    theta = posterior.sample_weights(5, seed=0)
    assert len(posterior.loc) == 7
    assert len(posterior.points) == 25
    assert all(len(torch.unique(theta[name], dim=0)) == 1 for name in ("1.weight", "1.bias", "likelihood.scale"))
    assert all(len(torch.unique(theta[name], dim=0)) == 5 for name in ("3.weight", "3.bias"))
    assert not torch.allclose(theta["1.weight"][0], net[1].weight, atol=1e-3)  # it has been learned


@SHORT
def test_a_fitted_posterior_is_a_pyro_guide_and_a_start_for_another_fit():
    case = Conjugate(60, 2, 0.5)
    posterior = variational.fit(case.model, case.data, num_epochs=100, batch_size=60, learning_rate=0.05, seed=0)
    x = case.data.x.float()
    torch.manual_seed(0)
    draws = pyro.infer.Predictive(case.model, guide=posterior.guide(), num_samples=400)(x)["weight"].reshape(-1, 2)
    error = posterior.scale[:2] / 400**0.5
    assert ((draws.mean(dim=0) - posterior.loc[:2]) / error).abs().max() < 4.5
    pyro.clear_param_store()
    again = variational.fit(
        case.model, case.data, guide=lambda _: posterior.guide(), num_epochs=1, learning_rate=1e-9, seed=1
    )
    torch.testing.assert_close(again.loc, posterior.loc)
    torch.testing.assert_close(again.log_scale, posterior.log_scale)


# Scales that say something


@pytest.mark.slow
def test_unknown_digits_are_unknown():
    split = datasets.load("digits-0to8")
    net = built(lambda: networks.mlp(64, (100, 100), 9))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    posterior = variational.fit(model, split.train, num_epochs=40, seed=0)
    known, unknown = (posterior.predict(part.x, num_samples=50, seed=0) for part in (split.test, split.ood))
    assert known.epistemic.mean() > 0.02  # nats
    assert unknown.epistemic.mean() > 3 * known.epistemic.mean()
    assert (known.mean.argmax(dim=1) == split.test.y).double().mean() > 0.94


@pytest.mark.parametrize(("num_epochs", "rate"), [(1, 0.05), (125, 0.05), (500, 0.025), (50_000, 0.0025)])
def test_the_default_learning_rate_falls_with_the_root_of_the_steps(num_epochs: int, rate: float):
    data = Dataset(torch.zeros(40, 1), torch.zeros(40))
    assert default_learning_rate(data, num_epochs, batch_size=10) == pytest.approx(rate)
