"""Low-rank and full-rank guides: against torch's laws, conjugate posteriors, and autograd through the plain formula."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from torch import nn

from bayesuq.data import Batch
from bayesuq.inference import variational
from bayesuq.inference.variational.correlated import CorrelatedObjective, CorrelatedPosterior
from bayesuq.inference.variational.elbo import Divergence
from bayesuq.inference.variational.guides import FullRankGuide, LowRankGuide, full_rank, low_rank, mean_field
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator
from tests.inference.examples import Conjugate, built, expectation, measured, noise

EXACT = Conjugate(60, 2, 0.5, dtype=torch.float64)
KINDS = {"low_rank": low_rank(2), "full_rank": full_rank}


def model_of(likelihood=None, prior=None):
    net = built(lambda: networks.mlp(3, (4,), 1, activation="tanh")).double()
    return BayesianNetwork(net, prior or priors.Normal(), likelihood or likelihoods.Normal(scale=0.3))


def some_guide(kind, model, seed=0):
    """A guide with parameters that are all different."""
    guide = KINDS[kind](model)
    with torch.no_grad():
        for number, parameter in enumerate(guide.parameters()):
            parameter.copy_(0.3 * noise(seed + number, *parameter.shape))
    return guide


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_of_itself_what_its_law_says(kind):
    guide = some_guide(kind, model_of())
    law = guide.law()
    torch.testing.assert_close(guide.entropy(), law.entropy(), rtol=1e-10, atol=0)
    torch.testing.assert_close(guide.marginal_scale(), law.stddev, rtol=1e-10, atol=0)
    eps = noise(5, 20_000, guide.num_noise)
    with torch.no_grad():
        draws = torch.vmap(guide.transform)(eps)
    covariance = law.covariance_matrix
    # The standard error of an empirical covariance is at most sqrt(2 c_ii c_jj / n).
    error = (2 * covariance.diag()[:, None] * covariance.diag() / len(eps)).sqrt()
    assert ((draws.T.cov() - covariance).abs() < 5 * error).all()


@pytest.mark.parametrize("kind", KINDS)
def test_without_correlations_it_is_mean_field(kind):
    model = model_of()
    guide, plain = some_guide(kind, model), mean_field(model)
    with torch.no_grad():
        guide.factor.zero_()
        plain.loc.copy_(guide.loc)
        plain.log_scale.copy_(guide.log_scale)
    objective = CorrelatedObjective(model, guide, 10, 1, 1.0)
    expected = Divergence.of(model, plain).value(plain.loc, plain.log_scale, plain.log_scale.exp())
    torch.testing.assert_close(objective.divergence(), expected, rtol=1e-10, atol=0)


def test_at_the_exact_posterior_the_loss_is_minus_the_log_evidence():
    """Its expectation over draws, by quadrature, which is exact for the quadratic likelihood."""
    guide = exact_guide()
    objective = CorrelatedObjective(EXACT.model, guide, 60, 1, 1.0)

    def log_likelihood(eps):
        with torch.no_grad():
            flat = torch.stack([guide.transform(one) for one in eps])
            f = EXACT._design(EXACT.data.x) @ flat.T
        return torch.distributions.Normal(f, 0.5).log_prob(EXACT.data.y).sum(dim=0)

    loss = objective.divergence().detach() - expectation(log_likelihood, 3, num_nodes=5)
    torch.testing.assert_close(loss, -EXACT.log_evidence, rtol=1e-10, atol=0)


def exact_guide():
    root = torch.linalg.cholesky(EXACT.precision.inverse())
    scale = root.diag()
    return FullRankGuide(EXACT.model, EXACT.mean, scale.log(), (root / scale[:, None]).tril(-1))


def test_at_the_exact_posterior_every_importance_ratio_is_the_log_evidence():
    posterior = variational.fit(EXACT.model, EXACT.data, guide=variational.full_rank, num_epochs=60, seed=0)
    guide = exact_guide()
    for name in ("loc", "log_scale", "factor"):
        getattr(posterior, name).copy_(getattr(guide, name).detach())
    ratios = posterior.log_importance_ratios(EXACT.data, num_samples=20, seed=0)
    torch.testing.assert_close(ratios, EXACT.log_evidence.expand(20), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"prior": priors.Laplace(scale=0.5)},
        {"likelihood": likelihoods.Normal(scale="learned")},
        {"likelihood": likelihoods.Normal(scale=priors.HalfNormal(scale=1.0))},
    ],
    ids=["normal", "laplace prior", "learned noise", "inferred noise"],
)
def test_the_gradient_is_that_of_the_plain_formula(kind, parts):
    model, data = model_of(**parts), measured(12)
    guide = some_guide(kind, model)
    objective = CorrelatedObjective(model, guide, 50, 2, 1.0)
    batch = Batch(data.x, data.y, None)
    value = objective.loss_and_grads(batch, generator(7))
    found = [parameter.grad.clone() for parameter in guide.parameters()]
    found += [vector.grad.clone() for vector in objective.points.values()]

    draws = generator(7)
    points = {name: leaf for vector in objective.points.values() for name, leaf in vector.theta().items()}
    plain = -guide.entropy()
    for _ in range(2):
        eps = torch.randn(guide.num_noise, generator=draws, dtype=torch.float64)
        flat = guide.transform(eps)
        theta = guide.layout.split(flat) | points
        log_joint = model.log_joint(theta, batch.x, batch.y, num_data=50)
        plain = plain - (log_joint + guide.layout.log_abs_det_jacobian(flat)) / 2
    leaves = [leaf for vector in objective.points.values() for leaf in vector.leaves.values()]
    expected = torch.autograd.grad(plain, [*guide.parameters(), *leaves])
    if kind == "full_rank":
        expected = [g.tril(-1) if g.shape == guide.factor.shape else g for g in expected]
    # The loss has the prior's expectation in closed form, the formula its value at the draws: they differ in both, so
    # that only where no prior is normal are they the same number. Elsewhere their means over many draws agree.
    if "prior" in parts:
        torch.testing.assert_close(value, plain.detach(), rtol=1e-9, atol=0)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.reshape(-1), other.reshape(-1), rtol=1e-7, atol=1e-9)
    else:
        energy = objective.prior.normal_energy(guide.loc, guide.marginal_scale())
        drawn = generator(7)
        for _ in range(2):
            flat = guide.transform(torch.randn(guide.num_noise, generator=drawn, dtype=torch.float64))
            energy = energy - objective.prior.normal_energy(flat) / 2
        torch.testing.assert_close(value, (plain + energy).detach(), rtol=1e-9, atol=0)
        moved = torch.autograd.grad(energy, list(guide.parameters()))
        for one, other, extra in zip(found, expected, moved, strict=False):
            torch.testing.assert_close(one, other + extra, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_pyro_guide_with_a_site_for_each(kind):
    model = model_of(likelihood=likelihoods.Normal(scale=priors.HalfNormal(scale=1.0)))
    guide = some_guide(kind, model)
    with pyro.get_param_store().scope():  # its parameters stay in no other test's store
        trace = poutine.trace(guide).get_trace(measured().x, None)
    assert {name for name in trace.nodes if name in model.laws} == set(model.laws)
    flat = trace.nodes["_flat"]["value"]
    expected = guide.law().log_prob(flat) - guide.layout.log_abs_det_jacobian(flat)
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-10, atol=0)
    for name, value in guide.layout.split(flat).items():
        assert torch.equal(trace.nodes[name]["value"], value)


@pytest.mark.parametrize("guide", [low_rank(3), full_rank], ids=["low rank", "full rank"])
def test_the_fit_finds_a_correlated_posterior(guide):
    conjugate = Conjugate(60, 2, 0.5)
    posterior = variational.fit(conjugate.model, conjugate.data, guide=guide, num_epochs=250, num_draws=2, seed=0)
    assert isinstance(posterior, CorrelatedPosterior)
    exact = conjugate.precision.inverse()
    law = posterior.guide().law()
    deviations = (law.mean.detach().double() - conjugate.mean) / exact.diag().sqrt()
    assert deviations.abs().max() < 0.2  # Adam's last steps: gradient noise of four draws
    torch.testing.assert_close(
        law.covariance_matrix.detach().double(), exact, rtol=0.15, atol=0.15 * float(exact.diag().max())
    )
    assert posterior.scale_movement > 0.1


def test_correlations_raise_the_elbo():
    """KL(q || p) of the best mean field is half log det of the correlation matrix; the full rank has none."""
    conjugate = Conjugate(40, 2, 0.5)
    correlated = conjugate.precision.inverse()
    correlation = correlated / correlated.diag().sqrt().outer(correlated.diag().sqrt())
    assert -0.5 * correlation.logdet() > 0.01
    gaps = []
    for guide in (variational.mean_field, full_rank):
        fit = variational.fit(conjugate.model, conjugate.data, guide=guide, num_epochs=200, num_draws=2, seed=0)
        gaps.append(float(conjugate.log_evidence - fit.log_importance_ratios(conjugate.data, seed=0).mean()))
    assert gaps[1] < gaps[0]


def test_a_low_rank_guide_stores_little():
    guide = low_rank(2)(BayesianNetwork(nn.Linear(100, 10), priors.Normal(), likelihoods.Categorical()))
    assert isinstance(guide, LowRankGuide)
    assert sum(parameter.numel() for parameter in guide.parameters()) == 1010 * 4


@pytest.mark.parametrize(("rank", "error"), [(0, ValueError), (1.5, TypeError), (math.nan, TypeError)])
def test_a_rank_below_one_is_refused(rank, error):
    with pytest.raises(error, match="`rank`"):
        low_rank(rank)
