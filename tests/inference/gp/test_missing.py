"""Weights of single targets: 0 is a target that is not there, and another weight is so many of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.inference.gp.fitting import fit
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import gp, likelihoods
from tests.inference.examples import noise

X, NEW_X = noise(0, 14, 2), noise(1, 6, 2)
Y = torch.stack([torch.sin(X.sum(dim=1)), torch.cos(X[:, 0])], dim=1) + 0.1 * noise(2, 14, 2)
WEIGHT = torch.ones(14, 2, dtype=torch.float64)
WEIGHT[:4, 0], WEIGHT[3:9, 1] = 0.0, 0.0  # row 3 has no target at all
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def known(kernel: gp.Kernel | None = None, **parts: Any) -> gp.GaussianProcess:
    kernel = kernel or gp.Scale(gp.RBF(lengthscale=0.8), variance=1.5)
    return gp.GaussianProcess(kernel, gp.ZeroMean(), likelihoods.Normal(scale=0.2), **parts)


@pytest.mark.parametrize("shares_kernel", [False, True])
def test_each_output_is_that_of_its_own_rows(shares_kernel: bool) -> None:
    together = fit(known(shares_kernel=shares_kernel), Dataset(X, Y, WEIGHT), seed=0)
    alone = [fit(known(), Dataset(X[kept], Y[kept, c]), seed=0) for c, kept in enumerate(WEIGHT.T > 0)]
    predictive, parts = together.predict(NEW_X), [each.predict(NEW_X) for each in alone]
    torch.testing.assert_close(predictive.mean, torch.cat([part.mean for part in parts], dim=1), **EXACT)
    torch.testing.assert_close(predictive.total, torch.cat([part.total for part in parts], dim=1), **EXACT)
    total = sum(each.log_marginal_likelihood for each in alone)
    assert together.log_marginal_likelihood == pytest.approx(total, abs=1e-9)


def test_coregionalised_outputs_fill_each_others_gaps() -> None:
    posterior = fit(known(gp.Coregionalised(gp.RBF(lengthscale=0.8))), Dataset(X, Y, WEIGHT), seed=0)
    outputs, prior = posterior.prior.kernel.output_covariance(), posterior.prior
    seen = WEIGHT.T.reshape(-1) > 0
    gram = prior.covariance(X)[0][seen][:, seen] + 0.04 * torch.eye(int(seen.sum()), dtype=X.dtype)
    cross, y = prior.covariance(X, NEW_X)[0][seen], Y.T.reshape(-1)[seen]
    mean = cross.T @ torch.linalg.solve(gram, y)
    left = prior.covariance(NEW_X)[0] - cross.T @ torch.linalg.solve(gram, cross)
    predictive = posterior.predict(NEW_X)
    torch.testing.assert_close(predictive.mean, mean.reshape(2, -1).T, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(predictive.epistemic, left.diagonal().reshape(2, -1).T, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(posterior.joint(NEW_X)[1][0], left, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(
        predictive.function_covariance[0, :, 0, 1], left[:6, 6:].diagonal(), rtol=1e-6, atol=1e-7
    )
    law = torch.distributions.MultivariateNormal(torch.zeros_like(y), gram)
    assert posterior.log_marginal_likelihood == pytest.approx(float(law.log_prob(y)), abs=1e-8)
    assert outputs[0, 1].abs() > 0  # else there is nothing to fill with


@pytest.mark.parametrize("kernel", [gp.Scale(gp.RBF()), gp.Coregionalised(gp.RBF())], ids=["own", "together"])
def test_weights_of_targets_are_repeats(kernel: gp.Kernel) -> None:
    """Whole weights against rows that are repeated with targets missing."""
    weight = WEIGHT.clone()
    weight[10, 0], weight[11, 1] = 2.0, 3.0
    rows = torch.cat([torch.arange(14), torch.tensor([10, 11, 11])])
    once = WEIGHT[rows]
    once[14:] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    model = gp.GaussianProcess(kernel, gp.ConstantMean())
    weighted, repeated = (fit(model, data, num_restarts=1, seed=0)
                          for data in (Dataset(X, Y, weight), Dataset(X[rows], Y[rows], once)))  # fmt: skip
    torch.testing.assert_close(weighted.predict(NEW_X).mean, repeated.predict(NEW_X).mean, rtol=0, atol=2e-3)
    expected = repeated.log_marginal_likelihood
    assert weighted.log_marginal_likelihood == pytest.approx(expected, abs=1e-3)


def test_inducing_points_at_all_inputs_give_the_exact_bound_with_gaps() -> None:
    model, data = gp.GaussianProcess(gp.Scale(gp.RBF()), shares_kernel=True), Dataset(X, Y, WEIGHT)
    exact = fit(model, data, seed=0)
    collapsed = fit(model, data, approximation="collapsed", num_inducing=30, seed=0)
    count = float((WEIGHT > 0).sum())
    assert -count * collapsed.history.loss[-1] == pytest.approx(exact.log_marginal_likelihood, abs=1e-3)
    torch.testing.assert_close(collapsed.predict(NEW_X).mean, exact.predict(NEW_X).mean, rtol=0, atol=5e-3)


SHORT = {"num_inducing": 6, "num_epochs": 4, "batch_size": 5, "num_restarts": 1, "seed": 0, "progress": False}
SAMPLED = {"hyperparameters": "sample", "num_samples": 2, "num_warmup": 2, "num_chains": 1}


@pytest.mark.filterwarnings("ignore:.* draws follow a trajectory that diverged:UserWarning")
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (gp.Scale(gp.RBF()), {"approximation": "exact"}),
        (gp.Coregionalised(gp.RBF()), {"approximation": "exact"}),
        (gp.Scale(gp.RBF()), {"approximation": "collapsed"}),
        (gp.Scale(gp.RBF()), {"approximation": "sparse"}),
        (gp.Coregionalised(gp.RBF()), SAMPLED),
    ],
    ids=["exact", "coregionalised", "collapsed", "sparse", "sampled"],
)
def test_the_number_in_place_of_a_missing_target_does_not_matter(
    kernel: gp.Kernel, options: dict[str, Any], tmp_path: Any
) -> None:
    def fitted(number: float) -> Any:
        y = torch.where(WEIGHT > 0, Y, number)
        return fit(gp.GaussianProcess(kernel), Dataset(X, y, WEIGHT), **{**SHORT, **options})

    one, other = fitted(0.0), fitted(1e6)
    assert_same(one.predict(NEW_X).mean, other.predict(NEW_X).mean)
    assert_same(one.predict(NEW_X).total, other.predict(NEW_X).total)
    one.save(tmp_path / "file")
    assert torch.equal(load(tmp_path / "file").predict(NEW_X).mean, one.predict(NEW_X).mean)


def assert_same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
