"""Known noise of each target, beside the likelihood's."""

from typing import Any

import pytest
import torch

from bayesuq.data import Dataset
from bayesuq.inference.gp.fitting import fit
from bayesuq.models import gp, likelihoods
from tests.inference.examples import noise

X, NEW_X = noise(0, 15, 2), noise(1, 6, 2)
Y = torch.sin(X.sum(dim=1)) + 0.1 * noise(2, 15)
OWN = torch.linspace(0.0, 0.6, 15, dtype=torch.float64)
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def known(kernel: gp.Kernel | None = None) -> gp.GaussianProcess:
    kernel = kernel or gp.Scale(gp.RBF(lengthscale=0.8), variance=1.5)
    return gp.GaussianProcess(kernel, gp.ZeroMean(), likelihoods.Normal(scale=0.2))


def test_variances_add_and_new_rows_have_the_likelihoods_noise() -> None:
    posterior = fit(known(), Dataset(X, Y), noise_scale=OWN, seed=0)
    prior, variance = posterior.prior, 0.04 + OWN.square()
    gram, cross = prior.covariance(X)[0] + variance.diag(), prior.covariance(X, NEW_X)[0]
    predictive = posterior.predict(NEW_X)
    torch.testing.assert_close(predictive.mean[:, 0], cross.T @ torch.linalg.solve(gram, Y), **EXACT)
    left = prior.variance(NEW_X)[0] - (cross * torch.linalg.solve(gram, cross)).sum(dim=0)
    torch.testing.assert_close(predictive.epistemic[:, 0], left, **EXACT)
    torch.testing.assert_close(predictive.aleatoric, torch.full((6, 1), 0.04, dtype=torch.float64), **EXACT)
    law = torch.distributions.MultivariateNormal(torch.zeros_like(Y), gram)
    assert posterior.log_marginal_likelihood == pytest.approx(float(law.log_prob(Y)), abs=1e-9)


def test_weights_of_rows_are_repeats_of_rows_with_their_noise() -> None:
    weight = torch.ones(15)
    weight[3:6], weight[6:9] = 2.0, 0.0
    rows = [*range(6), *range(3, 6), *range(9, 15)]
    weighted = fit(known(), Dataset(X, Y, weight), noise_scale=OWN, seed=0)
    repeated = fit(known(), Dataset(X[rows], Y[rows]), noise_scale=OWN[rows], seed=0)
    torch.testing.assert_close(weighted.predict(NEW_X).mean, repeated.predict(NEW_X).mean, **EXACT)
    assert weighted.log_marginal_likelihood == pytest.approx(repeated.log_marginal_likelihood, abs=1e-9)


def test_inducing_points_at_all_inputs_and_columns_with_noise_of_their_own() -> None:
    data = Dataset(X, torch.stack([Y, Y.flip(0)], dim=1))
    own = torch.stack([OWN, OWN.flip(0)], dim=1)
    apart = [fit(known(), Dataset(X, data.y[:, c]), noise_scale=own[:, c], seed=0) for c in range(2)]
    together = fit(known(), data, noise_scale=own, seed=0)
    total = sum(each.log_marginal_likelihood for each in apart)
    assert together.log_marginal_likelihood == pytest.approx(total, abs=1e-9)
    collapsed = fit(known(), data, noise_scale=own, approximation="collapsed", num_inducing=30, seed=0)
    assert -30 * collapsed.history.loss[-1] == pytest.approx(total, abs=1e-4)  # the inducing points' jitter
    assert fit(known(gp.Coregionalised(gp.RBF(lengthscale=0.8))), data, noise_scale=own, seed=0).noise.shape == (2, 15)


@pytest.mark.parametrize(
    ("noise_scale", "options", "says"),
    [
        (OWN[:3], {}, r"must have shape \(15,\), a number for each row, or \(15, 1\)"),
        (-OWN, {}, "finite numbers of at least 0"),
        (OWN, {"approximation": "sparse"}, "got approximation 'sparse'. Pass approximation='collapsed'"),
        (OWN, {"hyperparameters": "sample"}, "got hyperparameters='sample'"),
    ],
)
def test_what_cannot_be_known_is_refused(noise_scale: Any, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit(known(), Dataset(X, Y), noise_scale=noise_scale, seed=0, **options)
