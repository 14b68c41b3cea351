"""Hyperparameters drawn by NUTS: against a grid, the prior, and what the mixture and ArviZ are told. And Dirichlet."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.data import Batch, Dataset
from bayesuq.inference.gp.dirichlet import CONCENTRATION, dirichlet_observations
from bayesuq.inference.gp.fitting import fit
from bayesuq.inference.gp.marginal_likelihood import MarginalLikelihood, Observations, hyperparameters_of
from bayesuq.inference.gp.sampled import SampledGpPosterior
from bayesuq.inference.gp.sampling import HyperparameterPotential
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import gp, likelihoods, priors
from bayesuq.to_arviz.container import group
from tests.inference.examples import labelled, noise
from tests.posterior_contract import assert_same_draws

X = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None]
Y = torch.sin(2 * X[:, 0]) + 0.2 * noise(2, 8)
DATA = Dataset(X, Y)
NEW_X = torch.tensor([[-2.5], [0.3], [4.0]], dtype=torch.float64)
LENGTHSCALE, VARIANCE = priors.LogNormal(0.0, 0.7), priors.Gamma(2.0, 2.0)
MODEL = gp.GaussianProcess(
    gp.Scale(gp.RBF(lengthscale=LENGTHSCALE), variance=VARIANCE), gp.ZeroMean(), likelihoods.Normal(scale=0.2)
)


def kernel(lengthscale: Tensor, variance: Tensor, x: Tensor) -> Tensor:
    """Between the rows and x, (..., 8, M), for hyperparameters of any shape (...)."""
    return variance[..., None, None] * torch.exp(-(X - x.T).square() / (2 * lengthscale[..., None, None] ** 2))


def log_joint(lengthscale: Tensor, variance: Tensor) -> Tensor:
    """log p(y | h) + log p(h), written out."""
    gram = kernel(lengthscale, variance, X) + 0.04 * torch.eye(8, dtype=X.dtype)
    law = torch.distributions.MultivariateNormal(torch.zeros(8, dtype=X.dtype), gram)
    of_lengthscale, of_variance = (each.entry(X) for each in (LENGTHSCALE, VARIANCE))
    return law.log_prob(Y) + of_lengthscale.log_prob(lengthscale) + of_variance.log_prob(variance)


def test_the_potential_is_the_log_joint_with_the_jacobian_of_the_logarithms() -> None:
    data = Observations(X, Y[None])
    prior = MODEL.build(X, 1)
    vector = hyperparameters_of(MODEL, prior, data)
    potential = HyperparameterPotential(MarginalLikelihood(MODEL, prior, data), vector)
    names = [leaf.name for leaf in vector.leaves]
    at = torch.tensor([0.3, -0.4], dtype=torch.float64)
    order = [names.index("kernel.base_kernel.raw_lengthscale"), names.index("kernel.raw_outputscale")]
    value, gradient = potential.at(at)
    inputs = at.clone().requires_grad_()
    expected = -(log_joint(inputs[order[0]].exp(), inputs[order[1]].exp()) + inputs.sum())
    expected.backward()
    assert value == pytest.approx(float(expected.detach()), abs=1e-8)
    torch.testing.assert_close(gradient, inputs.grad, rtol=1e-7, atol=1e-7)


@pytest.mark.slow
def test_nuts_agrees_with_a_grid_over_the_hyperparameters() -> None:
    grid = torch.linspace(-3.5, 3.0, 50, dtype=torch.float64)
    a, b = torch.meshgrid(grid, grid, indexing="ij")
    logs = log_joint(a.exp(), b.exp()) + a + b
    shares = (logs - logs.logsumexp(dim=(0, 1))).exp()
    at = {"kernel.base_kernel.lengthscale": (shares.sum(dim=1), grid), "kernel.outputscale": (shares.sum(dim=0), grid)}
    posterior = fit(MODEL, DATA, hyperparameters="sample", num_samples=60, num_warmup=50, num_chains=2, seed=0)
    draws = posterior.sample_weights()
    for name, (marginal, values) in at.items():
        mean = float(marginal @ values)
        deviation = math.sqrt(float(marginal @ values.square()) - mean**2)
        found = draws[name].log().flatten()
        # 120 draws that count for 40 or more: four standard errors.
        assert float(found.mean()) == pytest.approx(mean, abs=4 * deviation / 40**0.5), name
        assert float(found.std()) == pytest.approx(deviation, rel=4 / 80**0.5), name
    # The predictive is the mixture of exact ones: its mean by the grid.
    gram = kernel(a.exp(), b.exp(), X) + 0.04 * torch.eye(8)
    weights = torch.linalg.solve(gram, Y.expand(50, 50, 8))
    expected = torch.einsum("ab,abnm,abn->m", shares, kernel(a.exp(), b.exp(), NEW_X), weights)
    predictive = posterior.predict(NEW_X)
    spread = predictive.component_means[..., 0].std(dim=0)
    assert ((predictive.mean[:, 0] - expected).abs() < 4 * spread / 40**0.5 + 1e-3).all()
    assert predictive.num_samples == 120


SHORT = {"hyperparameters": "sample", "num_samples": 5, "num_warmup": 4, "num_chains": 2, "seed": 0}


def short_fit(**options: Any) -> SampledGpPosterior:
    return fit(gp.GaussianProcess(gp.Scale(gp.RBF())), DATA, **{**SHORT, **options})


@pytest.fixture(scope="module")
def posterior() -> SampledGpPosterior:
    return short_fit()


def test_few_draws_are_members_that_save_and_tell_arviz(posterior: SampledGpPosterior, tmp_path: Any) -> None:
    before = torch.get_rng_state()
    again = short_fit()
    assert torch.equal(torch.get_rng_state(), before)
    assert_same_draws(posterior.predict(NEW_X), again.predict(NEW_X))
    assert posterior.predict(NEW_X, num_samples=3).num_samples == 3
    assert posterior.predict(NEW_X).num_samples == posterior.num_members == 10
    assert posterior.sample_functions(NEW_X, 4, seed=0).shape == (4, 3, 1)
    with pytest.raises(ValueError, match="`num_samples` must be at least 1"):
        posterior.sample_functions(NEW_X, 0)
    posterior.save(tmp_path / "p")
    assert_same_draws(load(tmp_path / "p").predict(NEW_X), posterior.predict(NEW_X))
    told = posterior.to_arviz(X, Y, num_prior_samples=3, seed=0)
    values = group(told, "posterior")["likelihood.scale"].values
    assert values.shape == (2, 5)
    assert (values > 0).all()
    assert group(told, "prior")["likelihood.scale"].shape == (1, 3)
    assert group(told, "log_likelihood")["y"].shape == (2, 5, 8)
    assert group(told, "sample_stats")["tree_depth"].shape == (2, 5)


def test_chains_that_were_stopped_go_on_from_their_files(posterior: SampledGpPosterior, tmp_path: Any) -> None:
    short_fit(checkpoint=tmp_path / "file")
    again = short_fit(checkpoint=tmp_path / "file")
    assert_same_draws(again.predict(NEW_X), posterior.predict(NEW_X))
    without_seed = short_fit(checkpoint=tmp_path / "file", seed=None)  # takes the file's
    assert_same_draws(without_seed.predict(NEW_X), posterior.predict(NEW_X))


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (gp.GaussianProcess(), {"hyperparameters": "guess"}, "must be 'optimise' or 'sample'"),
        (gp.GaussianProcess(), {"hyperparameters": "sample", "approximation": "sparse"}, "with exact inference"),
        (gp.GaussianProcess(likelihood=likelihoods.StudentT()), {"hyperparameters": "sample"}, "needs normal noise"),
        (
            gp.GaussianProcess(gp.RBF(lengthscale=1.0), gp.ZeroMean(), likelihoods.Normal(scale=0.2)),
            {"hyperparameters": "sample"},
            "All hyperparameters are fixed",
        ),
        (gp.GaussianProcess(), {"hyperparameters": "sample", "num_chains": 0}, "`num_chains` must be at least 1"),
        (gp.GaussianProcess(), {"hyperparameters": "sample", "num_warmup": -1}, "`num_warmup` must be at least 0"),
        (gp.GaussianProcess(), {"approximation": "dirichlet"}, "needs a Categorical likelihood"),
    ],
)
def test_what_cannot_be_sampled_is_refused(model: gp.GaussianProcess, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit(model, DATA, seed=0, **options)


# Dirichlet classification


def test_dirichlet_columns_match_the_moments_of_gamma_variables() -> None:
    rows = dirichlet_observations(Batch(X[:2], torch.tensor([1, 0]), None), 3)
    for column, row in ((0, 0), (1, 0), (2, 1), (0, 1)):
        alpha = CONCENTRATION + (row == 1 - column if column < 2 else False)
        mean = rows.y[column, row] + rows.noise[column, row] / 2  # log E of the log-normal
        assert float(mean.exp()) == pytest.approx(alpha)  # E Gamma(alpha, 1) = alpha
        variance = (rows.noise[column, row].exp() - 1) * (2 * mean).exp()
        assert float(variance) == pytest.approx(alpha)  # and so is its variance


def test_dirichlet_classification_is_exact_regression_and_learns_classes() -> None:
    train, test = labelled(150, num_features=2), labelled(500, num_features=2, seed=10)
    model = gp.GaussianProcess(gp.Scale(gp.RBF()), likelihood=likelihoods.Categorical())
    posterior = fit(model, train, approximation="dirichlet", seed=0)
    assert posterior.approximation == "dirichlet"
    observed = dirichlet_observations(Batch(train.x.double(), train.y, None), 3)
    prior = posterior.prior
    for c in range(3):
        gram = prior.covariance(observed.x)[0] + observed.noise[c].diag()
        centre = prior.mean_at(observed.x)[c]
        cross = prior.covariance(observed.x, test.x.double())[0]
        mean = prior.mean_at(test.x.double())[c] + cross.T @ torch.linalg.solve(gram, observed.y[c] - centre)
        torch.testing.assert_close(posterior.marginals(test.x.double())[0][c], mean, rtol=1e-7, atol=1e-7)
    predictive = posterior.predict(test.x, seed=0)
    assert (predictive.mean.argmax(dim=1) == test.y).double().mean() > 0.9
    assert predictive.log_prob(test.y).mean() > -0.35
    with pytest.raises(ValueError, match="takes no weights"):
        fit(model, Dataset(train.x, train.y, torch.ones(150)), approximation="dirichlet", seed=0)
