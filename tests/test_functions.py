"""Draws of functions: their joint laws against closed forms, their masks, their gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset, Standardizer
from bayesuq.functions import Functions
from bayesuq.inference import dropout, ensemble, gp, laplace, map_estimate
from bayesuq.inference.automatic.posterior import AutomaticPosterior
from bayesuq.inference.posteriors.units import in_units
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp import RBF, GaussianProcess, Scale
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.inference.examples import SHORT_FIT, built, noise

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore:.*no mode")

X = noise(0, 20, 2)
TWO = Dataset(X, torch.stack([X.sum(dim=1), X[:, 0].sin()], dim=1) + 0.1 * noise(1, 20, 2))
NEW = noise(2, 4, 2)


def network(*layers: nn.Module) -> BayesianNetwork:
    net = built(lambda: nn.Sequential(*layers).double())
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))


def linear() -> BayesianNetwork:
    return network(nn.Linear(2, 2))


def inputs(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)


def test_a_linear_networks_covariance_is_that_of_bayesian_regression() -> None:
    found = laplace.fit(linear(), TWO, structure="full", num_epochs=2, seed=0).functions(NEW, num_samples=2, seed=0)
    design, new = inputs(X), inputs(NEW)
    each = new @ torch.linalg.inv(design.T @ design / 0.25 + torch.eye(3, dtype=torch.float64)) @ new.T
    expected = torch.einsum("nm,cd->ncmd", each, torch.eye(2, dtype=torch.float64))
    assert found.covariance is not None
    torch.testing.assert_close(found.covariance, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
def test_draws_have_the_covariance_that_is_told(structure: Any) -> None:
    net = network(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    posterior = laplace.fit(net, TWO, structure=structure, num_epochs=50, seed=0)
    number = 4000
    found = posterior.functions(NEW, num_samples=number, seed=0)
    assert found.covariance is not None
    away = (found.draws - found.mean).flatten(1)
    expected = found.covariance.reshape(8, 8)
    sd = expected.diagonal().sqrt()
    # A product of two normals has at most twice the variance of independent ones: five errors over 64 entries.
    allowed = 5 * (2 / number) ** 0.5 * sd[:, None] * sd
    assert ((away.T @ away / number - expected).abs() <= allowed).all()


def test_a_process_is_told_by_its_kernel_and_far_rows_are_apart() -> None:
    posterior = gp.fit(GaussianProcess(Scale(RBF())), TWO, seed=0, num_restarts=1)
    far = torch.tensor([[1e3, 0.0], [1e3, 1e-3], [-1e3, 0.0]], dtype=torch.float64)
    found = posterior.functions(torch.cat([NEW, far]), num_samples=3, seed=0)
    predictive = posterior.predict(torch.cat([NEW, far]))
    assert found.covariance is not None
    torch.testing.assert_close(found.mean, predictive.mean)
    variances = torch.stack([found.covariance[n, :, n].diagonal() for n in range(7)])
    torch.testing.assert_close(variances, predictive.epistemic)
    outputscale = variances[4:]
    torch.testing.assert_close(found.covariance[4, :, 5].diagonal(), outputscale[0], rtol=1e-4, atol=0)
    assert found.covariance[4, :, 6].abs().max() < 1e-9
    assert found.covariance[:, 0, :, 1].abs().max() == 0  # columns are independent processes


def test_a_mask_is_that_of_all_rows_whatever_the_batch() -> None:
    net = network(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))
    posterior = dropout.fit(net, TWO, num_epochs=5, seed=0)
    whole = posterior.functions(torch.cat([NEW, NEW]), num_samples=20, seed=0).draws
    assert torch.equal(whole[:, :4], whole[:, 4:])
    torch.testing.assert_close(posterior.functions(NEW[:2], num_samples=20, seed=0).draws, whole[:, :2])
    values = posterior.predict(NEW, num_samples=300, seed=1)
    many = posterior.functions(NEW, num_samples=300, seed=1)
    error = (values.epistemic / 300).sqrt()
    assert ((many.mean - values.mean).abs() < 5 * 2**0.5 * error).all()
    apart = posterior.predict(torch.cat([NEW, NEW]), num_samples=20, seed=0, keep_samples=True)
    assert isinstance(apart, GaussianPredictive)
    assert not torch.equal(apart.component_means[:, :4], apart.component_means[:, 4:])  # there each row has its own


@pytest.mark.parametrize("method", ["laplace", "dropout", "ensemble", "gp"])
def test_gradients_are_those_of_finite_differences(method: str) -> None:
    net = network(nn.Linear(2, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 2))
    if method == "gp":
        posterior: Any = gp.fit(GaussianProcess(Scale(RBF())), TWO, seed=0, num_restarts=1)
    elif method == "ensemble":
        posterior = ensemble.fit(net, TWO, num_epochs=5, num_members=2, seed=0)
    else:
        posterior = {"laplace": laplace, "dropout": dropout}[method].fit(net, TWO, num_epochs=5, seed=0)

    def total(x: Tensor, *, differentiable: bool = False) -> Tensor:
        draws = posterior.functions(x, num_samples=3, seed=0, differentiable=differentiable).draws
        return draws.square().sum()

    x, step, direction = NEW.clone().requires_grad_(), 1e-6, noise(5, 4, 2)
    (gradient,) = torch.autograd.grad(total(x, differentiable=True), x)
    slope = (total(NEW + step * direction) - total(NEW - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-6)
    assert not total(NEW).requires_grad


def test_functions_of_labels_are_probabilities() -> None:
    labels = Dataset(X, (X.sum(dim=1) > 0).long())
    net = built(lambda: nn.Linear(2, 2).double())
    mode = map_estimate.fit(
        BayesianNetwork(net, priors.Normal(), likelihoods.Categorical()), labels, num_epochs=5, seed=0
    )
    for posterior in (mode, laplace.fit(mode.model, labels, mode=mode)):
        found = posterior.functions(NEW, num_samples=5, seed=0)
        torch.testing.assert_close(found.draws.sum(dim=2), torch.ones(found.draws.shape[:2]).to(found.draws))
        assert found.covariance is None


def test_a_predictive_without_draws_is_refused() -> None:
    with pytest.raises(ValueError, match="keep_samples"):
        Functions.of(CategoricalPredictive.from_probs([[[0.5, 0.5]]], keep_samples=False))


def test_functions_of_which_the_data_leave_nothing_are_drawn_all_the_same() -> None:
    exact = Dataset(X, X.sum(dim=1))  # no noise: rounding is larger than what is left of the variance
    posterior = gp.fit(GaussianProcess(Scale(RBF())), exact, seed=0, num_restarts=1)
    found = posterior.functions(X[:8], num_samples=200, seed=0)
    assert found.covariance is not None
    spread = found.covariance[:, 0, :, 0].diagonal().clamp(min=0).sqrt()
    assert (found.draws[:, :, 0] - found.mean[:, 0]).abs().max() < 5 * spread.max()
    torch.testing.assert_close(found.mean[:, 0], exact.y[:8, 0], rtol=0, atol=1e-2)


def test_what_was_chosen_by_itself_has_the_functions_of_what_it_chose() -> None:
    data = Dataset(1e3 * X, 50 + 1e2 * X[:, :1].sin())
    units = Standardizer.fit(data)
    inner = map_estimate.fit(network(nn.Linear(2, 1)), units.transform(data), num_epochs=2, seed=0)
    chosen = AutomaticPosterior(posterior=in_units(inner, units), labels=(), candidates=(), remarks=())
    found, expected = chosen.functions(1e3 * NEW), chosen.predict(1e3 * NEW)
    torch.testing.assert_close(found.mean, expected.mean)
