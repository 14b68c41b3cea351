"""Draws that are kept between calls: what they predict is what the posterior that they are of predicts, to the bit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bayesuq as bq
from bayesuq.inference import dropout, ensemble, gp, hmc, laplace, map_estimate, swag, temperature, variational
from bayesuq.inference.adoption import adopt
from bayesuq.inference.posteriors import weights
from bayesuq.inference.posteriors.weights import FixedDraws
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp import GaussianProcess
from bayesuq.posterior import Posterior
from bayesuq.predictive.base import PredictiveDistribution
from tests.inference.examples import SHORT_FIT, built, labelled, measured, noise
from tests.posterior_contract import assert_same_draws

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore::UserWarning")

X = noise(7, 9, 3).float()
ONCE = {"num_epochs": 1, "seed": 0, "progress": False}


def model(likelihood: likelihoods.Likelihood | None = None, *, rate: float = 0.0) -> BayesianNetwork:
    labels = likelihood is None
    net = built(lambda: networks.mlp(3, (6,), 3 if labels else 1, dropout=rate))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical() if labels else likelihood)


def learned_noise() -> Posterior:
    return variational.fit(model(likelihoods.Normal(scale="learned")), measured(), **ONCE)


def last_layer() -> Posterior:
    net = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3))
    mode = adopt(built(lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), *net)), likelihoods.Categorical())
    return laplace.fit(mode.model, labelled(), mode=mode, progress=False).sampled


def tempered() -> Posterior:
    return temperature.fit(variational.fit(model(), labelled(), **ONCE), labelled(), seed=0)


def chains() -> Posterior:
    return hmc.fit(model(), labelled(), num_samples=4, num_warmup=2, num_chains=2, num_steps=2, kernel="hmc", seed=0)


def of_gaussians() -> Posterior:
    return ensemble.fit(model(), labelled(), num_members=2, member_fit=variational.fit, **ONCE)


POSTERIORS: dict[str, Callable[[], Posterior]] = {
    "mean field": lambda: variational.fit(model(), labelled(), **ONCE),
    "a learned noise": learned_noise,
    "low rank": lambda: variational.fit(model(), labelled(), guide=variational.low_rank(2), **ONCE),
    "swag": lambda: swag.fit(model(), labelled(), **ONCE | {"num_epochs": 8}, batch_size=16),
    "a last layer": last_layer,
    "chains": chains,
    "an ensemble": lambda: ensemble.fit(model(), labelled(), num_members=3, **ONCE),
    "an ensemble of Gaussians": of_gaussians,
    "a temperature": tempered,
}


@pytest.fixture(scope="module", params=POSTERIORS)
def posterior(request: pytest.FixtureRequest) -> Posterior:
    return POSTERIORS[request.param]()


def kept(posterior: Posterior, number: int | None = None, seed: int = 3) -> PredictiveDistribution:
    return posterior.predict(X, num_samples=number, seed=seed, keep_samples=True)


def test_they_predict_the_bits_of_the_posterior(posterior: Posterior) -> None:
    assert_same_draws(kept(posterior.fixed_draws(5, seed=3)), kept(posterior, 5))


def test_they_predict_so_in_each_call_and_draw_nothing(posterior: Posterior, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, fixed = kept(posterior, 5), posterior.fixed_draws(5, seed=3)
    monkeypatch.setattr(Tensor, "normal_", lambda *_, **__: pytest.fail("a draw was made"))
    for seed in (3, 4):
        assert_same_draws(kept(fixed, seed=seed), expected)


def test_they_come_back_from_a_file(posterior: Posterior, tmp_path) -> None:
    fixed = posterior.fixed_draws(5, seed=3)
    fixed.save(tmp_path / "fixed")
    assert_same_draws(kept(bq.load(tmp_path / "fixed", model=posterior.model)), kept(fixed))


def test_their_weights_are_those_of_the_posterior_and_the_callers_own() -> None:
    posterior = learned_noise()
    fixed, expected = posterior.fixed_draws(5, seed=3), posterior.sample_weights(5, seed=3)
    found = fixed.sample_weights()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    for value in found.values():
        value.zero_()
    assert torch.equal(fixed.sample_weights()["1.weight"], expected["1.weight"])


def test_what_is_one_value_is_kept_once() -> None:
    posterior = last_layer()
    fixed = posterior.fixed_draws(20, seed=0)
    assert isinstance(fixed, FixedDraws)
    assert {name: len(value) for name, value in fixed.sites.items() if len(value) > 1} == {"4.weight": 20, "4.bias": 20}


def test_fewer_of_them_are_an_even_thinning() -> None:
    fixed = POSTERIORS["mean field"]().fixed_draws(6, seed=0)
    assert_same_draws(kept(fixed, 2), kept(fixed).__class__.from_logits(kept(fixed).draws[[1, 4]]))


def test_one_network_is_its_own_draw() -> None:
    mode = map_estimate.fit(model(), labelled(), **ONCE)
    assert mode.fixed_draws(100) is mode


@pytest.mark.parametrize(
    ("fit", "says"),
    [
        (lambda: dropout.fit(model(rate=0.1), labelled(), **ONCE), "masks, one for each row"),
        (lambda: laplace.fit(model(), labelled(), progress=False), "`sampled`"),
        (lambda: gp.fit(GaussianProcess(), measured(8), num_restarts=1, seed=0), "functions at the rows"),
    ],
)
def test_draws_that_are_no_weights_are_refused(fit: Callable[[], Posterior], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit().fixed_draws(5)


@pytest.mark.parametrize("last", [nn.Identity, nn.Softplus])
def test_groups_of_draws_that_share_the_memory_of_layers_keep_their_own_outputs(
    last: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = built(lambda: nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2), last()))
    drawn = {
        name: noise(number, 7, *value.shape).float() for number, (name, value) in enumerate(net.named_parameters())
    }
    with torch.no_grad():
        expected = torch.stack(
            [torch.func.functional_call(net, {name: value[s] for name, value in drawn.items()}, (X,)) for s in range(7)]
        )
        for together in (1, 3, 7):  # groups of which the last one is smaller
            monkeypatch.setattr(weights, "LAYER_BUDGET", together * len(X) * 9)
            torch.testing.assert_close(weights._by_layers(net, drawn, X), expected)
    monkeypatch.setattr(weights, "LAYER_BUDGET", 3 * len(X) * 9)
    f = weights._by_layers(net, {name: value.requires_grad_() for name, value in drawn.items()}, X)
    torch.testing.assert_close(f, expected)
    f.sum().backward()
    assert all(bool(value.grad.abs().sum(dim=tuple(range(1, value.ndim))).all()) for value in drawn.values())
