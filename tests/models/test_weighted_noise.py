"""beta-NLL: gradients are those of the formula, values those of the density, and a loss has no posterior."""

from typing import Any

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, hmc, ivon, laplace, map_estimate, microcanonical, sgmcmc, swag
from bayesuq.inference import variational as vi
from bayesuq.models import gp, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.real import HeteroscedasticNormal
from bayesuq.models.records import _built, _part
from tests.inference.examples import built, noise

X = noise(0, 60, 1)
DATA = Dataset(X, torch.sin(2 * X) + 0.1 * noise(1, 60, 1))
WEIGHTED = HeteroscedasticNormal(beta=0.5)


def model(likelihood: HeteroscedasticNormal, **options: Any) -> BayesianNetwork:
    return BayesianNetwork(built(lambda: networks.mlp(1, (8,), 2, **options)), priors.Normal(), likelihood)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("minimum_scale", [0.0, 0.3])
def test_gradients_are_those_of_the_formula_and_values_of_the_density(beta: float, minimum_scale: float) -> None:
    y, weight = noise(2, 7, 2), torch.linspace(0.5, 2, 7).double()
    f = noise(3, 7, 4).double().requires_grad_()
    own = HeteroscedasticNormal(minimum_scale, None, beta=beta).total_log_prob(f, y.double(), weight)
    mean, variance = f[:, :2], f[:, 2:].exp() + minimum_scale**2
    density = torch.distributions.Normal(mean, variance.sqrt()).log_prob(y.double()) * weight[:, None]
    (found,) = torch.autograd.grad(own, f)
    (right,) = torch.autograd.grad((variance.detach() ** beta * density).sum(), f)  # eq. (5)
    torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(own, density.sum(), rtol=1e-12, atol=0)


def test_at_one_the_mean_descends_squared_errors() -> None:
    f, y = noise(3, 7, 2).double().requires_grad_(), noise(2, 7, 1).double()
    (slope,) = torch.autograd.grad(HeteroscedasticNormal(beta=1.0).total_log_prob(f, y), f)
    torch.testing.assert_close(slope[:, :1], y - f[:, :1].detach())


def test_methods_that_descend_take_it_and_give_another_fit_of_the_same_density() -> None:
    options: dict[str, Any] = {"num_epochs": 5, "seed": 0}
    for fit, more in ((map_estimate.fit, {}), (ensemble.fit, {"num_members": 2}), (dropout.fit, {})):
        dropped = {"dropout": 0.1} if fit is dropout.fit else {}
        one = fit(model(WEIGHTED, **dropped), DATA, **options, **more)
        other = fit(model(HeteroscedasticNormal(), **dropped), DATA, **options, **more)
        assert not torch.equal(one.predict(X, seed=0).mean, other.predict(X, seed=0).mean)
        assert torch.isfinite(one.predict(X, seed=0).log_prob(DATA.y)).all()


@pytest.mark.parametrize("fit", [hmc.fit, ivon.fit, laplace.fit, microcanonical.fit, sgmcmc.fit, swag.fit, vi.fit])
def test_methods_of_a_posterior_refuse_a_loss_before_they_begin(fit: Any) -> None:
    with pytest.raises(ValueError, match=r"beta=0\.5.* no density .*Take `map_estimate`"):
        fit(model(WEIGHTED), DATA, seed=0)


def test_a_process_refuses_it_and_records_keep_it() -> None:
    with pytest.raises(ValueError, match="no density"):
        gp.GaussianProcess(likelihood=WEIGHTED)
    assert _built(_part(WEIGHTED)) == WEIGHTED
    with pytest.raises(ValueError, match="`beta` must be between 0"):
        HeteroscedasticNormal(beta=1.5)


def test_laplace_around_a_fit_of_the_loss_is_refused() -> None:
    mode = map_estimate.fit(BayesianNetwork(nn.Linear(1, 2), priors.Normal(), WEIGHTED), DATA, num_epochs=5, seed=0)
    with pytest.raises(ValueError, match="no density"):
        laplace.fit(mode, DATA)
