"""Yesterday's posterior as today's prior: two halves in turn are the whole where the posterior factorises."""

from functools import partial

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import laplace, map_estimate, variational
from bayesuq.inference.posteriors.network import NormalMarginals
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.sequential import updated_model
from bayesuq.inference.variational.elbo import Divergence
from bayesuq.inference.variational.guides import mean_field
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, measured, noise

NOISE = 0.5
CONTINUE = partial(mean_field, initial_scale=1.0)


def halves():
    """Two data sets whose columns are orthogonal, so that every posterior factorises."""
    x = torch.linalg.qr(noise(0, 12, 3)).Q * 4
    y = x @ torch.tensor([1.0, -0.5, 0.2]).double() + NOISE * noise(1, 12)
    other = torch.linalg.qr(noise(2, 8, 3)).Q * 3
    return Dataset(x, y), Dataset(other, other @ torch.tensor([1.0, -0.5, 0.2]).double() + NOISE * noise(3, 8))


def regression(prior=None):
    net = built(lambda: nn.Linear(3, 1, bias=False)).double()
    return BayesianNetwork(net, prior or priors.Normal(scale=2.0), likelihoods.Normal(scale=NOISE))


def exact(*parts):
    x, y = torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])
    precision = x.T @ x / NOISE**2 + torch.eye(3).double() / 4
    return torch.linalg.solve(precision, x.T @ y[:, 0] / NOISE**2), precision.diagonal().rsqrt()


def test_laplace_on_two_halves_in_turn_is_exact():
    first, second = halves()
    options = {"structure": "diagonal", "num_epochs": 300, "learning_rate": 0.1, "seed": 0}
    posterior = laplace.fit(updated_model(laplace.fit(regression(), first, **options)), second, **options)
    mean, scale = exact(first, second)
    torch.testing.assert_close(posterior.values, mean, rtol=1e-4, atol=1e-4)
    found = (posterior.curvature["weight"] + posterior.prior_precision()["weight"]).rsqrt()
    torch.testing.assert_close(found[0], scale, rtol=1e-9, atol=0)


def test_mean_field_on_two_halves_in_turn_is_exact():
    first, second = halves()
    options = {"num_epochs": 700, "num_draws": 4, "batch_size": 12, "seed": 0}
    monday = variational.fit(regression(), first, **options)
    posterior = variational.fit(updated_model(monday), second, guide=CONTINUE, **options)
    mean, scale = exact(first, second)
    assert ((posterior.loc - mean) / scale).abs().max() < 0.1  # of a posterior scale: Adam's last steps
    torch.testing.assert_close(posterior.scale, scale, rtol=0.05, atol=0)


def test_the_divergence_from_yesterday_s_posterior_is_the_closed_form():
    posterior = variational.fit(regression(), halves()[0], num_epochs=300, seed=0)
    model = updated_model(posterior)
    guide = mean_field(model, initial_scale=0.3)
    divergence = Divergence.of(model, guide)
    assert not divergence.prior.others
    loc, log_scale = guide.loc.detach() + 0.1, guide.log_scale.detach()
    law = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(law(loc, log_scale.exp()), law(posterior.loc, posterior.scale)).sum()
    torch.testing.assert_close(divergence.value(loc, log_scale, log_scale.exp()), expected, rtol=1e-12, atol=0)
    start = CONTINUE(model)
    torch.testing.assert_close(start.loc.detach(), posterior.loc, rtol=0, atol=0)
    torch.testing.assert_close(start.log_scale.detach(), posterior.log_scale, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_noise_points_and_buffers_carry_over():
    net = built(lambda: networks.mlp(3, (4,), 1, batch_norm=True)).double()
    likelihood = likelihoods.Normal(scale=priors.HalfNormal(1.0))
    model = BayesianNetwork(net, priors.Normal(), likelihood, random="last_layer")
    posterior = variational.fit(model, measured(), num_epochs=5, seed=0)
    updated = updated_model(posterior)
    assert list(updated.laws) == list(model.laws)
    theta = updated.initial()
    ends = posterior.sample_weights(1)
    for name in posterior.model.points:
        torch.testing.assert_close(theta[name], ends[name][0], rtol=0, atol=0)
    for name, value in posterior.buffers.items():
        assert torch.equal(dict(updated.net.named_buffers())[name], value)
    law = updated.laws["likelihood.scale"]
    assert law.loc.item() == pytest.approx(posterior.loc[-1].item())
    assert law.scale.item() == pytest.approx(posterior.scale[-1].item())
    assert theta["likelihood.scale"].log().item() == pytest.approx(posterior.loc[-1].item())
    variational.fit(updated, measured(seed=5), num_epochs=2, guide=CONTINUE, seed=0)  # and goes on


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_learned_noise_starts_where_it_ended():
    model = BayesianNetwork(built(lambda: nn.Linear(3, 1)).double(), priors.Normal(), likelihoods.Normal())
    posterior = variational.fit(model, measured(), num_epochs=20, seed=0)
    updated = updated_model(posterior)
    assert updated.likelihood.scale == "learned"
    ended = posterior.sample_weights(1)["likelihood.scale"].item()
    assert ended != 1.0
    assert updated.initial()["likelihood.scale"].item() == pytest.approx(ended)


def test_what_is_no_factorised_law_is_refused():
    first, _ = halves()
    for posterior in (
        map_estimate.fit(regression(), first, num_epochs=1, seed=0),
        laplace.fit(regression(), first, structure="full", num_epochs=1, seed=0),
    ):
        with pytest.raises(TypeError, match=r"factorised normal law .* got (MapPosterior|LaplacePosterior)"):
            updated_model(posterior)


class Narrow(MapPosterior):
    """A law of somebody's own around a mode."""

    def marginals(self):
        return NormalMarginals.of(self.model, self.values, torch.full_like(self.values, 0.1))


def test_a_law_of_ones_own_is_the_next_prior_where_it_says_that_it_factorises():
    own = Narrow.of(regression())
    prior = updated_model(own).laws["weight"]
    assert torch.equal(prior.base_dist.loc, own.values.view(1, 3))
    assert (prior.base_dist.scale == 0.1).all()
