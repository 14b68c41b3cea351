"""Importance ratios: equal to the log evidence at every draw of an exact posterior, for every kind of posterior."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.evaluation.diagnostics.pareto import pareto_k
from bayesuq.inference import variational
from bayesuq.inference.posteriors import importance
from bayesuq.inference.variational.guides import autoguide
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, Conjugate, built, noise

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)

# With one weight and no bias, mean field holds the exact posterior.
ONE_WEIGHT = Conjugate(40, 1, 0.5, bias=False, dtype=torch.float64)


def exact_mean_field():
    posterior = variational.fit(ONE_WEIGHT.model, ONE_WEIGHT.data, num_epochs=1, seed=0)
    posterior.loc.copy_(ONE_WEIGHT.mean)
    posterior.log_scale.copy_(ONE_WEIGHT.scale.log())
    return posterior


def test_at_the_exact_posterior_every_ratio_is_the_log_evidence():
    ratios = exact_mean_field().log_importance_ratios(ONE_WEIGHT.data, num_samples=30, seed=1)
    torch.testing.assert_close(ratios, ONE_WEIGHT.log_evidence.expand(30), rtol=1e-10, atol=0)
    assert pareto_k(ratios) == 0.0


def test_chunks_and_loaders_change_nothing(monkeypatch):
    posterior = exact_mean_field()
    whole = posterior.log_importance_ratios(ONE_WEIGHT.data, num_samples=5, seed=1)
    loader = DataLoader(TensorDataset(ONE_WEIGHT.data.x, ONE_WEIGHT.data.y), batch_size=7)
    torch.testing.assert_close(posterior.log_importance_ratios(loader, num_samples=5, seed=1), whole)
    monkeypatch.setattr(importance, "CHUNK", 6)
    torch.testing.assert_close(posterior.log_importance_ratios(ONE_WEIGHT.data, num_samples=5, seed=1), whole)


def test_the_mean_of_the_ratios_estimates_the_evidence_where_scales_are_transformed():
    """With an inferred noise scale, q is log-normal in it: only with the Jacobian is the evidence the right number."""
    data = Dataset(noise(0, 12, 1), 0.7 * noise(1, 12))
    net = built(lambda: nn.Linear(1, 1, bias=False, dtype=torch.float64))
    likelihood = likelihoods.Normal(scale=priors.HalfNormal(scale=1.0))
    model = BayesianNetwork(net, priors.Normal(), likelihood)

    grid_weight = torch.linspace(-4, 4, 801, dtype=torch.float64)
    grid_scale = torch.linspace(0.02, 4, 800, dtype=torch.float64)
    residual = data.y[:, 0, None] - data.x * grid_weight
    squares = residual.square().sum(dim=0)
    log_prior = (
        torch.distributions.Normal(0.0, 1.0).log_prob(grid_weight)[:, None]
        + torch.distributions.HalfNormal(1.0).log_prob(grid_scale)[None]
    )
    log_likelihood = -0.5 * squares[:, None] / grid_scale**2 - 12 * (grid_scale.log() + 0.5 * math.log(2 * math.pi))
    cell = (grid_weight[1] - grid_weight[0]) * (grid_scale[1] - grid_scale[0])
    log_evidence = (log_prior + log_likelihood).flatten().logsumexp(dim=0) + cell.log()

    for guide in (variational.mean_field, autoguide(AutoMultivariateNormal)):
        posterior = variational.fit(model, data, guide=guide, num_epochs=100, seed=0)
        ratios = posterior.log_importance_ratios(data, num_samples=250, seed=1)
        estimate = ratios.logsumexp(dim=0) - math.log(250)
        relative = (ratios - ratios.max()).exp()
        error = float(relative.std() / relative.mean()) / math.sqrt(250)
        assert error < 0.05  # the Jacobian is worth some tenths of a nat
        assert abs(float(estimate - log_evidence)) < 4 * error + 1e-3  # and the grid's own error


def program(x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(slope * x[:, 0], 0.5), obs=y)


def test_a_programs_ratios_estimate_its_evidence():
    posterior = variational.fit(program, ONE_WEIGHT.data, num_epochs=200, seed=0)
    ratios = posterior.log_importance_ratios(ONE_WEIGHT.data, num_samples=250, seed=0)
    assert abs(float(ratios.logsumexp(dim=0)) - math.log(250) - float(ONE_WEIGHT.log_evidence)) < 0.05
    assert pareto_k(ratios) < 0.7


def test_a_posterior_that_is_too_narrow_is_found_out():
    """A scale of half the posterior's gives k = 1 - 1/4."""
    posterior = exact_mean_field()
    posterior.log_scale.sub_(math.log(2))
    assert pareto_k(posterior.log_importance_ratios(ONE_WEIGHT.data, num_samples=4000, seed=0)) > 0.5


def test_the_same_seed_gives_the_draws_of_a_prediction():
    posterior = variational.fit(ONE_WEIGHT.model, ONE_WEIGHT.data, guide=AutoNormal, num_epochs=1, seed=0)
    one, other = (posterior.log_importance_ratios(ONE_WEIGHT.data, num_samples=3, seed=4) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize("guide", [variational.mean_field, AutoDelta])
def test_a_number_of_draws_below_one_is_refused(guide):
    posterior = variational.fit(ONE_WEIGHT.model, ONE_WEIGHT.data, guide=guide, num_epochs=1, seed=0)
    with pytest.raises(ValueError, match="`num_samples` must be"):
        posterior.log_importance_ratios(ONE_WEIGHT.data, num_samples=0)
