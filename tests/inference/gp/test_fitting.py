"""Exact Gaussian processes: the closed form, the marginal likelihood, hyperparameters found, and what goes wrong."""

import logging
import math
from typing import Any

import gpytorch
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Dataset
from bayesuq.inference.gp import algebra as gp_algebra
from bayesuq.inference.gp.convergence import warn_of_end
from bayesuq.inference.gp.exact import ExactGpPosterior
from bayesuq.inference.gp.fitting import fit
from bayesuq.inference.gp.marginal_likelihood import MarginalLikelihood, Observations, hyperparameters_of
from bayesuq.inference.gp.sparse import default_inducing
from bayesuq.inference.gp.sparse_posterior import SparseGpPosterior
from bayesuq.inference.posteriors.saved import load
from bayesuq.models import gp, likelihoods, networks, priors
from tests.inference.examples import built, labelled, measured, noise
from tests.posterior_contract import tensors_of
from tests.zoo.modules import ALWAYS_RANDOM, STATEFUL

X, NEW_X = noise(0, 20, 2), noise(1, 9, 2)
Y = torch.sin(X.sum(dim=1)) + 0.1 * noise(2, 20)
DATA = Dataset(X, Y)
EXACT = {"rtol": 1e-9, "atol": 1e-9}
KNOWN = {"kernel": gp.Scale(gp.RBF(lengthscale=0.8), variance=1.5), "mean": gp.ZeroMean()}

CLASSES = likelihoods.Categorical()


def known(noise_scale: float = 0.2, **parts: Any) -> gp.GaussianProcess:
    return gp.GaussianProcess(**{**KNOWN, "likelihood": likelihoods.Normal(scale=noise_scale), **parts})


def rbf(x: Tensor, z: Tensor, lengthscale: float = 0.8, variance: float = 1.5) -> Tensor:
    return variance * torch.exp(-(x[:, None] - z[None]).square().sum(dim=2) / (2 * lengthscale**2))


def closed_form(x: Tensor, y: Tensor, new: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean, covariance, log evidence (Rasmussen & Williams 2006, eq. 2.23, 2.24 and 2.30), by plain inverses."""
    gram, cross = rbf(x, x) + noise.diag(), rbf(x, new)
    inverse = torch.linalg.inv(gram)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(len(x), dtype=x.dtype), gram).log_prob(y)
    return cross.T @ inverse @ y, rbf(new, new) - cross.T @ inverse @ cross, float(evidence)


# Known hyperparameters


def test_known_hyperparameters_give_the_closed_form() -> None:
    posterior = fit(known(), DATA, seed=0)
    mean, covariance, evidence = closed_form(X, Y, NEW_X, torch.full((20,), 0.04, dtype=X.dtype))
    predictive = posterior.predict(NEW_X)
    torch.testing.assert_close(predictive.mean[:, 0], mean, **EXACT)
    torch.testing.assert_close(predictive.function_variance[0, :, 0], covariance.diagonal(), **EXACT)
    torch.testing.assert_close(predictive.noise_variance, torch.full_like(predictive.noise_variance, 0.04), **EXACT)
    assert posterior.log_marginal_likelihood == pytest.approx(evidence, abs=1e-9)
    torch.testing.assert_close(posterior.joint(NEW_X)[1][0], covariance, **EXACT)


def test_the_evidence_is_the_product_of_one_step_predictives() -> None:
    total = 0.0
    for number in range(20):
        if number == 0:
            law = torch.distributions.Normal(0 * Y[0], math.sqrt(1.5 + 0.04))
            total += float(law.log_prob(Y[0]))
            continue
        before = fit(known(), Dataset(X[:number], Y[:number]), seed=0)
        total += float(before.predict(X[number : number + 1]).log_prob(Y[number : number + 1]))
    assert fit(known(), DATA, seed=0).log_marginal_likelihood == pytest.approx(total, abs=1e-8)


def test_a_linear_kernel_is_bayesian_linear_regression() -> None:
    prior_scale, noise_scale = 0.7, 0.3
    model = gp.GaussianProcess(
        gp.Linear(variance=prior_scale**2), gp.ZeroMean(), likelihoods.Normal(scale=noise_scale)
    )  # fmt: skip
    predictive = fit(model, DATA, seed=0).predict(NEW_X)
    precision = X.T @ X / noise_scale**2 + torch.eye(2, dtype=X.dtype) / prior_scale**2
    mean = torch.linalg.solve(precision, X.T @ Y) / noise_scale**2
    torch.testing.assert_close(predictive.mean[:, 0], NEW_X @ mean, **EXACT)
    variance = (NEW_X * torch.linalg.solve(precision, NEW_X.T).T).sum(dim=1)
    torch.testing.assert_close(predictive.epistemic[:, 0], variance, **EXACT)


def test_a_row_of_weight_two_is_two_rows_and_one_of_weight_zero_is_none() -> None:
    weight = torch.ones(20)
    weight[:5], weight[5:8] = 2.0, 0.0
    weighted = fit(known(), Dataset(X, Y, weight), seed=0)
    kept = [*range(5), *range(5), *range(8, 20)]
    repeated = fit(known(), Dataset(X[kept], Y[kept]), seed=0)
    one, other = (posterior.predict(NEW_X) for posterior in (weighted, repeated))
    torch.testing.assert_close(one.mean, other.mean, **EXACT)
    torch.testing.assert_close(one.epistemic, other.epistemic, **EXACT)
    assert weighted.log_marginal_likelihood == pytest.approx(repeated.log_marginal_likelihood, abs=1e-8)


def test_the_order_of_the_rows_does_not_matter_and_units_cancel() -> None:
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    one, other = (fit(known(), data, seed=0).predict(NEW_X) for data in (DATA, Dataset(X[order], Y[order])))
    torch.testing.assert_close(one.mean, other.mean, **EXACT)
    # Learned hyperparameters follow the units of x and y.
    learned = gp.GaussianProcess(gp.Scale(gp.RBF()))
    plain = fit(learned, DATA, seed=0).predict(NEW_X)
    scaled = fit(learned, Dataset(1000 * X, 7 + 0.001 * Y), seed=0).predict(1000 * NEW_X)
    torch.testing.assert_close((scaled.mean - 7) / 0.001, plain.mean, rtol=0, atol=1e-2)
    torch.testing.assert_close(scaled.total / 1e-6, plain.total, rtol=0.05, atol=1e-3)


def test_far_from_the_data_it_is_the_prior_and_near_them_the_epistemic_part_vanishes() -> None:
    posterior = fit(known(noise_scale=1e-3), DATA, seed=0)
    far = posterior.predict(torch.full((1, 2), 1e6))
    assert float(far.mean) == 0
    torch.testing.assert_close(far.epistemic, torch.full((1, 1), 1.5, dtype=torch.float64), **EXACT)
    near = posterior.predict(X)
    assert near.epistemic.max() < 1e-5
    torch.testing.assert_close(near.mean[:, 0], Y, rtol=0, atol=1e-3)


def test_outputs_are_independent_processes() -> None:
    both = torch.stack([Y, 3 + noise(5, 20)], dim=1)
    together = fit(known(), Dataset(X, both), seed=0)
    for column in range(2):
        alone = fit(known(), Dataset(X, both[:, column]), seed=0).predict(NEW_X)
        torch.testing.assert_close(together.predict(NEW_X).mean[:, column], alone.mean[:, 0], **EXACT)
        torch.testing.assert_close(together.predict(NEW_X).epistemic[:, column], alone.epistemic[:, 0], **EXACT)


def test_coregionalised_outputs_are_one_process_over_rows_and_outputs() -> None:
    both = torch.stack([Y, 0.5 * Y + 0.1 * noise(5, 20)], dim=1)
    model = known(kernel=gp.Coregionalised(gp.RBF(lengthscale=0.8)))
    posterior = fit(model, Dataset(X, both), seed=0, max_iterations=500)
    outputs = posterior.prior.kernel.output_covariance()
    gram = torch.kron(outputs, rbf(X, X, variance=1.0)) + 0.04 * torch.eye(40, dtype=X.dtype)
    cross = torch.kron(outputs, rbf(X, NEW_X, variance=1.0))
    mean = cross.T @ torch.linalg.solve(gram, both.T.reshape(-1))
    left = torch.kron(outputs, rbf(NEW_X, NEW_X, variance=1.0)) - cross.T @ torch.linalg.solve(gram, cross)
    predictive = posterior.predict(NEW_X)
    torch.testing.assert_close(predictive.mean, mean.reshape(2, -1).T, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(predictive.epistemic, left.diagonal().reshape(2, -1).T, rtol=1e-7, atol=1e-7)
    assert outputs[0, 1] / (outputs[0, 0] * outputs[1, 1]).sqrt() > 0.8  # it has seen that they go together


def test_joint_draws_have_the_posteriors_mean_and_covariance() -> None:
    posterior = fit(known(), DATA, seed=0)
    mean, covariance, _ = closed_form(X, Y, NEW_X, torch.full((20,), 0.04, dtype=X.dtype))
    before = torch.get_rng_state()
    draws = posterior.sample_functions(NEW_X, 20_000, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert draws.shape == (20_000, 9, 1)
    assert torch.equal(draws[:5], posterior.sample_functions(NEW_X, 5, seed=3))
    # Five standard errors: of a mean sd / sqrt(S), of a covariance at most sqrt(2) sd sd' / sqrt(S).
    deviation = covariance.diagonal().sqrt()
    assert ((draws[..., 0].mean(dim=0) - mean).abs() < 5 * deviation / math.sqrt(20_000)).all()
    error = (draws[..., 0].T.cov() - covariance).abs()
    assert (error < 5 * math.sqrt(2 / 20_000) * deviation[:, None] * deviation[None] + 1e-8).all()


# The marginal likelihood


@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_the_gradient_written_by_hand_is_that_of_finite_differences(num_outputs: int, shared: bool) -> None:
    model = gp.GaussianProcess(gp.Scale(gp.RBF()), shares_kernel=shared)
    y = torch.stack([Y[:8], noise(5, 8)], dim=1)[:, :num_outputs]
    weight = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    prior = model.build(X[:8], num_outputs)
    evidence = MarginalLikelihood(model, prior, Observations(X[:8], y.T.contiguous(), weight))
    evidence().backward()
    for name, parameter in prior.named_parameters():
        for place in range(parameter.numel()):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    parameter.view(-1)[place] += step
                    values.append(float(evidence()))
                    parameter.view(-1)[place] -= step
            slope = (values[0] - values[1]) / 2e-5
            assert float(parameter.grad.view(-1)[place]) == pytest.approx(slope, rel=1e-5, abs=1e-6), name


class ByHand(gpytorch.models.ExactGP):
    """The same process as GPyTorch's users write it."""

    def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=x.shape[1]))

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.oracle
def test_it_is_what_gpytorch_gives_by_hand() -> None:
    posterior = fit(gp.GaussianProcess(gp.Scale(gp.RBF())), DATA, seed=0)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    hand = ByHand(X, Y, likelihood).double()
    hand.initialize(
        **{
            "likelihood.noise": posterior.noise[0, 0],
            "mean_module.constant": posterior.prior.mean.constant[0].detach(),
            "covar_module.outputscale": posterior.prior.kernel.outputscale[0],
            "covar_module.base_kernel.lengthscale": posterior.prior.kernel.base_kernel.lengthscale[0],
        }
    )
    with torch.no_grad():
        value = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, hand.train())(hand(X), Y) * 20
        law = likelihood(hand.eval()(NEW_X))
    assert posterior.log_marginal_likelihood == pytest.approx(float(value), rel=1e-5)
    predictive = posterior.predict(NEW_X)
    torch.testing.assert_close(predictive.mean[:, 0], law.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(predictive.total[:, 0], law.variance.detach(), rtol=1e-5, atol=1e-5)


def test_conjugate_gradients_give_what_a_cholesky_factor_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    data = measured(80)
    model = gp.GaussianProcess(
        gp.Scale(gp.RBF(lengthscale=1.0), variance=1.0), likelihood=likelihoods.Normal(scale=0.3)
    )
    factor = fit(model, data, seed=0)
    monkeypatch.setattr("bayesuq.inference.gp.marginal_likelihood.CHOLESKY_LIMIT", 10)
    before = torch.get_rng_state()
    iterated = fit(model, data, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert "conjugate gradients" in repr(iterated)
    x = noise(7, 30, 3)
    one, other = factor.joint(x), iterated.joint(x)
    torch.testing.assert_close(other[0], one[0], rtol=0, atol=0.02)  # the learned constant mean differs a little
    torch.testing.assert_close(other[1], one[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(iterated.marginals(x)[1][0], other[1][0].diagonal(), rtol=1e-3, atol=1e-3)
    # A log determinant by 64 probes: its relative error is of the order of 1 / sqrt(64 N).
    assert iterated.log_marginal_likelihood == pytest.approx(factor.log_marginal_likelihood, abs=3.0)


# Hyperparameters


def test_hyperparameters_are_at_a_maximum_and_no_start_reaches_a_higher_one() -> None:
    model = gp.GaussianProcess(gp.Scale(gp.RBF()))
    posterior = fit(model, DATA, seed=0, num_restarts=3)
    prior = posterior.prior.requires_grad_(True)
    evidence = MarginalLikelihood(model, prior, Observations(posterior.x, posterior.y))
    value = evidence()
    value.backward()
    assert float(value.detach()) == pytest.approx(posterior.log_marginal_likelihood, abs=1e-9)
    assert max(float(p.grad.abs().max()) for p in prior.parameters()) < 2e-3
    prior.requires_grad_(False)
    many = fit(model, DATA, seed=0, num_restarts=10)
    assert many.log_marginal_likelihood < posterior.log_marginal_likelihood + 1e-3


def test_the_law_that_drew_the_data_is_found() -> None:
    """Of 300 rows, the noise scale has a relative standard error of 1 / sqrt(600) = 4 %."""
    x = 4 * torch.rand(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = torch.linalg.cholesky(rbf(x, x, 0.5, 2.0) + 1e-8 * torch.eye(300, dtype=x.dtype))
    y = 5 + factor @ noise(1, 300) + 0.3 * noise(2, 300)
    posterior = fit(gp.GaussianProcess(gp.Scale(gp.RBF())), Dataset(x, y), seed=0)
    assert float(posterior.noise[0, 0].sqrt()) == pytest.approx(0.3, rel=0.15)
    assert float(posterior.prior.kernel.base_kernel.lengthscale) == pytest.approx(0.5, rel=0.3)


def test_a_prior_pulls_a_point_value_to_its_mode() -> None:
    strong = priors.LogNormal(math.log(0.3), 1e-3)
    posterior = fit(gp.GaussianProcess(gp.Scale(gp.RBF(lengthscale=strong))), DATA, seed=0)
    lengthscale = posterior.prior.kernel.base_kernel.lengthscale
    torch.testing.assert_close(lengthscale, torch.full_like(lengthscale, 0.3), rtol=1e-2, atol=0)


def test_an_input_without_effect_gets_a_long_lengthscale() -> None:
    data = Dataset(noise(0, 60, 2), torch.sin(2 * noise(0, 60, 2)[:, 0]))
    posterior = fit(gp.GaussianProcess(gp.Scale(gp.RBF())), data, seed=0)
    lengthscales = posterior.prior.kernel.base_kernel.lengthscale.flatten()
    assert lengthscales[1] > 20 * lengthscales[0]


def test_a_run_that_was_stopped_warns() -> None:
    with pytest.warns(UserWarning, match="had not converged after 2 iterations: the largest slope is") as record:
        fit(gp.GaussianProcess(), DATA, seed=0, max_iterations=2)
    assert record[0].filename == __file__


def test_a_search_that_rounding_ended_warns_with_its_slope() -> None:
    prior = gp.GaussianProcess().build(X, 1)
    vector = hyperparameters_of(gp.GaussianProcess(), prior, Observations(X, Y[None]))
    found = {"place": vector.flat(), "gradient": torch.full_like(vector.flat(), 0.02), "status": torch.tensor(2)}
    with pytest.warns(UserWarning, match=r"gave up after 7 iterations, .* still 2.0e-02 nats"):
        warn_of_end({**found, "num_iterations": torch.tensor(7)}, vector, 200)


@pytest.mark.parametrize("approximation", ["exact", "collapsed"])
def test_a_mean_that_passes_through_all_targets_is_told(approximation: str) -> None:
    line = Dataset(X[:3], Y[:3])  # as many rows as a line of two inputs has parameters
    with pytest.warns(UserWarning, match="of column 0, in 3 rows: .* Give the noise a number") as record:
        fit(gp.GaussianProcess(mean=gp.LinearMean()), line, approximation=approximation, num_restarts=1, seed=0)
    assert record[0].filename == __file__
    fit(gp.GaussianProcess(mean=gp.LinearMean(), likelihood=likelihoods.Normal(scale=0.1)), line, seed=0)  # silent


def test_a_kernel_that_no_two_rows_are_alike_under_is_told() -> None:
    """GPyTorch's kernels start at lengthscales of 0.7, whatever the inputs' unit."""
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    with pytest.warns(UserWarning, match="no two rows alike: the largest correlation .* is 0.0e"):
        fit(gp.GaussianProcess(kernel), Dataset(1e6 * X, Y), seed=0)


@pytest.mark.parametrize("approximation", ["exact", "sparse"])
@pytest.mark.parametrize(("of_x", "of_y", "name"), [(1e160, 1.0, "x"), (1.0, 1e-160, "y"), (1e-200, 1e300, "x")])
def test_spreads_without_a_square_are_refused(approximation: str, of_x: float, of_y: float, name: str) -> None:
    with pytest.raises(ValueError, match=f"spread of column 0 of `{name}` is .* Give it in another unit"):
        fit(gp.GaussianProcess(), Dataset(of_x * X, of_y * Y), approximation=approximation, seed=0)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_spreads_with_a_square_are_taken(unit: float) -> None:
    predictive = fit(gp.GaussianProcess(), Dataset(X / unit, unit * Y), num_restarts=1, seed=0).predict(NEW_X / unit)
    expected = fit(gp.GaussianProcess(), DATA, num_restarts=1, seed=0).predict(NEW_X)
    torch.testing.assert_close(predictive.mean / unit, expected.mean, rtol=1e-6, atol=1e-6)


def test_a_kernel_of_gpytorch_is_taken_left_alone_and_passed_again_to_load(tmp_path: Any) -> None:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))
    before = {name: value.clone() for name, value in kernel.state_dict().items()}
    own = fit(gp.GaussianProcess(kernel), DATA, seed=0, num_restarts=2)
    ours = fit(gp.GaussianProcess(gp.Scale(gp.RBF())), DATA, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in kernel.state_dict().items())
    assert own.log_marginal_likelihood == pytest.approx(ours.log_marginal_likelihood, abs=1e-2)
    with pytest.warns(UserWarning, match="ScaleKernel is not one of bayesuq's parts") as record:
        own.save(tmp_path / "p")
    assert record[0].filename == __file__
    with pytest.raises(ValueError, match=r"load\(path, model=model\)"):
        load(tmp_path / "p")
    loaded = load(tmp_path / "p", model=gp.GaussianProcess(kernel))
    assert torch.equal(loaded.predict(NEW_X).mean, own.predict(NEW_X).mean)
    other = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
    with pytest.raises(ValueError, match=r"its kernel.base_kernel.ard_num_dims is None, the file's is 2"):
        load(tmp_path / "p", model=gp.GaussianProcess(other))
    for wrong, says in {
        gp.GaussianProcess(kernel, gp.ZeroMean()): "its mean is ZeroMean, the file's is ConstantMean",
        gp.GaussianProcess(kernel, likelihood=likelihoods.StudentT()): "likelihood is StudentT, the file's is Normal",
        gp.GaussianProcess(gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(ard_num_dims=2))): "MaternKernel",
    }.items():
        with pytest.raises(ValueError, match=says):
            load(tmp_path / "p", model=wrong)
    ours.save(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"its kernel\.kernel is Matern, the file's is RBF"):
        load(tmp_path / "ours", model=gp.GaussianProcess())
    with pytest.raises(TypeError, match="must be a GaussianProcess"):
        load(tmp_path / "p", model=print)


@pytest.mark.filterwarnings("ignore:The hyperparameters had not converged:UserWarning")
def test_a_deep_kernel_learns_features_that_a_plain_one_does_not_have() -> None:
    """A step that a stationary kernel rounds off."""
    x = 2 * torch.rand(80, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    data = Dataset(x, torch.sign(x) + 0.02 * noise(1, 80, 1))
    net = built(lambda: networks.mlp(1, (20,), 1, activation="tanh"))
    deep = fit(gp.GaussianProcess(gp.Deep(net, gp.Scale(gp.RBF()))), data, seed=0, max_iterations=150, num_restarts=1)
    plain = fit(gp.GaussianProcess(gp.Scale(gp.RBF())), data, seed=0)
    assert deep.log_marginal_likelihood > plain.log_marginal_likelihood + 20


@pytest.mark.parametrize("name", ["spectral norm", "spectral norm, by a hook"])
@pytest.mark.filterwarnings("ignore:The hyperparameters had not converged:UserWarning")
def test_a_deep_kernel_holds_spectral_norms(name: str) -> None:
    net = STATEFUL[name].net(dtype=torch.float64)
    x = STATEFUL[name].x(40, dtype=torch.float64)
    data = Dataset(x, torch.sin(10 * x.sum(dim=1)))  # which a network of gain 1 would like to exceed
    model = gp.GaussianProcess(gp.Deep(net[:4], gp.Scale(gp.RBF(lengthscale=1.0))))
    posterior = fit(model, data, seed=0, max_iterations=40, num_restarts=1)
    seen: list[torch.Tensor] = []
    for layer in posterior.prior.kernel.net:
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_hook(lambda module, *_: seen.append(module.weight.detach()))
    posterior.predict(x)
    assert len(seen) >= 2
    assert all(abs(float(torch.linalg.matrix_norm(weight, 2)) - 1) < 1e-9 for weight in seen)


def test_a_deep_kernel_that_draws_or_is_wrapped_is_refused() -> None:
    x = ALWAYS_RANDOM.x(10)
    model = gp.GaussianProcess(gp.Deep(ALWAYS_RANDOM.net(), gp.RBF()))
    with pytest.raises(ValueError, match="same features for the same inputs in evaluation mode"):
        fit(model, Dataset(x, x.sum(dim=1)), seed=0, max_iterations=2)
    with pytest.raises(ValueError, match="wrapped in DataParallel"):
        gp.Deep(torch.nn.DataParallel(torch.nn.Linear(2, 1)), gp.RBF())


# What goes wrong


def test_one_row_constant_targets_and_repeated_rows_give_sensible_numbers() -> None:
    with pytest.warns(UserWarning, match="The mean alone passes through all targets of column 0, in 1 rows"):
        one = fit(gp.GaussianProcess(), Dataset([[1.0]], [3.0]), seed=0).predict([[1.0], [50.0]])
    assert one.mean.isfinite().all()
    assert one.total.isfinite().all()
    with pytest.warns(UserWarning, match="they are constant, or as few as the mean has parameters"):
        constant = fit(gp.GaussianProcess(), Dataset(X, torch.full((20,), 3.0)), seed=0).predict(NEW_X)
    torch.testing.assert_close(constant.mean, torch.full_like(constant.mean, 3.0), rtol=0, atol=1e-2)
    repeated = Dataset(X[:4].repeat(5, 1), Y)
    predictive = fit(gp.GaussianProcess(gp.Scale(gp.RBF())), repeated, seed=0).predict(X[:4])
    torch.testing.assert_close(predictive.mean[:, 0], Y.view(5, 4).mean(dim=0), rtol=0, atol=0.35)
    flat = Dataset(torch.cat([X, torch.ones(20, 1)], dim=1), Y)  # a constant feature
    assert fit(gp.GaussianProcess(), flat, seed=0).predict(flat.x).mean.isfinite().all()


def test_jitter_is_logged_and_a_singular_covariance_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    repeated, records = Dataset(X[:4].repeat(5, 1), Y), list[logging.LogRecord]()
    monkeypatch.setattr(gp_algebra.LOG, "handle", records.append)
    posterior = fit(known(noise_scale=1e-12, mean=gp.ConstantMean()), repeated, num_restarts=2, seed=0)
    (record,) = records  # of a fit of many factors
    assert "needed jitter" in record.getMessage()
    count, rows, largest = record.args
    assert (count > 2, rows, largest >= 1e-10) == (True, 20, True)
    assert posterior.predict(NEW_X).mean.isfinite().all()
    indefinite = torch.tensor([[[1.0, 2.0], [2.0, 1.0]]], dtype=torch.float64)
    with pytest.raises(FloatingPointError, match=r"kernel is not positive definite: .* eigenvalue of -1"):
        gp_algebra.stable_cholesky(indefinite)
    with pytest.raises(FloatingPointError, match="the kernel overflows"):
        gp_algebra.stable_cholesky(indefinite * torch.inf)


def test_a_singular_covariance_blames_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gp_algebra, "JITTERS", (0.0,))
    with pytest.raises(FloatingPointError, match="Raise the noise scale"):
        gp_algebra.stable_cholesky(torch.ones(1, 3, 3, dtype=torch.float64) - 1e-16 * torch.eye(3))


@pytest.mark.parametrize(
    ("model", "data", "options", "error", "says"),
    [
        (nn.Linear(2, 1), DATA, {}, TypeError, r"`model` must be a bayesuq\.models\.gp\.GaussianProcess; got Linear"),
        (known(), (X, Y), {}, TypeError, "Dataset or a DataLoader"),
        (known(), DATA, {"approximation": "exakt"}, ValueError, r"`approximation` must be one of 'exact'"),
        (known(likelihood=CLASSES), labelled(), {"approximation": "exact"}, ValueError, "needs normal"),
        (known(), labelled(), {"approximation": "exact"}, ValueError, None),
        (known(), DATA, {"num_restarts": 0}, ValueError, "`num_restarts` must be at least 1"),
        (known(), DATA, {"max_iterations": 0}, ValueError, "`max_iterations` must be at least 1"),
        (known(), DATA, {"num_inducing": 0}, ValueError, "`num_inducing` must be at least 1"),
        (known(), DATA, {"natural_rate": 1.5}, ValueError, "`natural_rate` must lie in"),
        (known(), DATA, {"validation": DATA}, ValueError, "`validation` is for sparse fits"),
        (known(), DATA, {"checkpoint": 3}, TypeError, "`checkpoint` must be a path"),
        (known(), DATA, {"callbacks": [print]}, ValueError, "`callbacks` are for sparse fits"),
        (known(), DATA, {"num_restart": 1}, TypeError, "did you mean 'num_restarts'"),
        (known(), Dataset(noise(0, 5, 2, 3), noise(1, 5)), {}, ValueError, "does not take `x` of shape"),
        (known(), Dataset(X, Y, torch.zeros(20)), {}, ValueError, "above 0 for at least one row"),
        (known(kernel=gp.Coregionalised(gp.RBF())), DATA, {"approximation": "sparse"}, ValueError, "for exact"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_cannot_be_fitted_is_refused(
    model: Any, data: Any, options: dict[str, Any], error: type[Exception], says: str | None
) -> None:
    if says is None:  # labels are whole numbers: real targets, too
        assert isinstance(fit(model, data, **options), ExactGpPosterior)
        return
    with pytest.raises(error, match=says):
        fit(model, data, **options)


def test_size_and_likelihood_choose_the_approximation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fit(known(), DATA, seed=0).approximation == "exact"
    labels = gp.GaussianProcess(likelihood=likelihoods.Categorical())
    short = {"num_epochs": 1, "num_inducing": 4, "seed": 0}
    assert fit(labels, labelled(), **short).approximation == "sparse"
    loader = DataLoader(TensorDataset(X, Y), batch_size=5)
    assert fit(known(), loader, **short).approximation == "sparse"
    by_loader = fit(known(), loader, approximation="exact", seed=0)
    torch.testing.assert_close(by_loader.predict(NEW_X).mean, fit(known(), DATA, seed=0).predict(NEW_X).mean, **EXACT)
    monkeypatch.setattr("bayesuq.inference.gp.fitting.EXACT_LIMIT", 10)
    assert fit(known(), DATA, **short).approximation == "sparse"


def test_chunks_of_rows_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = fit(known(), measured(60), seed=0)
    x = noise(7, 50, 3)
    whole = posterior.predict(x)
    monkeypatch.setattr("bayesuq.inference.posteriors.prediction.ACTIVATION_BUDGET", 1)
    chunked = posterior.predict(x)
    torch.testing.assert_close(chunked.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(chunked.total, whole.total, rtol=1e-12, atol=1e-12)


def test_the_course_of_the_fit_falls() -> None:
    history = fit(gp.GaussianProcess(), DATA, seed=0).history
    assert all(after <= before + 1e-9 for before, after in zip(history.loss, history.loss[1:], strict=False))
    assert np.isfinite(history.loss).all()


# On an accelerator

DEVICE_CASES: dict[str, tuple[gp.GaussianProcess, Dataset, dict[str, Any]]] = {
    "exact": (gp.GaussianProcess(), DATA, {"num_restarts": 2}),
    "collapsed": (gp.GaussianProcess(), DATA, {"approximation": "collapsed", "num_inducing": 5, "num_restarts": 1}),
    "sparse": (gp.GaussianProcess(), DATA, {"approximation": "sparse", "num_inducing": 5, "num_epochs": 3}),
    "sparse classes": (
        gp.GaussianProcess(likelihood=CLASSES),
        labelled(num_features=2),
        {"num_inducing": 5, "num_epochs": 3},
    ),
    "dirichlet": (gp.GaussianProcess(likelihood=CLASSES), labelled(num_features=2), {"approximation": "dirichlet"}),
    "sampled": (
        known(kernel=gp.Scale(gp.RBF(lengthscale=0.8))),
        DATA,
        {"hyperparameters": "sample", "num_samples": 3, "num_warmup": 5, "num_chains": 1},
    ),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", DEVICE_CASES)
def test_a_fit_on_a_gpu_stays_there_and_is_that_of_the_cpu(case: str) -> None:
    model, data, options = DEVICE_CASES[case]
    there = fit(model, data, device="cuda", seed=0, **options)
    assert there.device.type == "cuda"
    assert all(tensor.is_cuda for tensor in there.hyperparameters.values())
    if "classes" in case:  # draws of another generator
        assert torch.isfinite(there.predict(NEW_X, num_samples=5, seed=0).mean).all()
        return
    here = fit(model, data, seed=0, **options)
    if case == "dirichlet":
        one, other = (posterior.marginals(NEW_X.to(posterior.device))[0].cpu() for posterior in (there, here))
    else:
        one, other = (posterior.predict(NEW_X).mean.cpu() for posterior in (there, here))
    # L-BFGS stops where slopes are below 1e-5 nats a data point, from where rounding leads it.
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("approximation", ["exact", "collapsed", "sparse"])
def test_a_checkpoint_of_a_gpu_ends_with_the_same_bits(approximation: str, tmp_path: Any) -> None:
    options = {"approximation": approximation, "num_inducing": 5, "num_epochs": 3, "device": "cuda", "seed": 0}
    first, again = (fit(gp.GaussianProcess(), DATA, checkpoint=tmp_path / "file", **options) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(first), tensors_of(again), strict=True))


@pytest.mark.parametrize(
    ("likelihood", "options"), [(likelihoods.Normal(), {"max_iterations": 10**9}), (CLASSES, {"num_epochs": 10**9})]
)
def test_hours_of_a_fit_are_told_before_they_begin(likelihood: Any, options: dict[str, Any]) -> None:
    data = DATA if likelihood is not CLASSES else Dataset(X, (Y > 0).long())
    with pytest.raises(UserWarning, match=r"some [\d.]+ h to go: .* ms each\. Lower"):
        fit(gp.GaussianProcess(likelihood=likelihood), data, seed=0, **options)


def test_functions_of_many_outputs_share_what_inducing_points_cost() -> None:
    assert [default_inducing(outputs) for outputs in (1, 2, 9, 100)] == [512, 362, 171, 128]
    data = Dataset(noise(3, 200, 2), (torch.arange(200) % 9).long())
    model = gp.GaussianProcess(likelihood=CLASSES)
    told: list[dict[str, Any]] = [{}, {"num_inducing": 171}]
    chosen, asked = (fit(model, data, num_epochs=1, seed=0, **options) for options in told)
    assert isinstance(chosen, SparseGpPosterior)
    assert isinstance(asked, SparseGpPosterior)
    torch.testing.assert_close(chosen.inducing_points, asked.inducing_points, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ({"mean": gpytorch.means.LinearMean(3)}, r"mean does not take `x` of shape \(3, 2\)"),
        ({"mean": gpytorch.means.ZeroMean(batch_shape=torch.Size([2]))}, r"mean ZeroMean must give .*got \(2, 3\)"),
        ({"kernel": gpytorch.kernels.RBFKernel(ard_num_dims=5)}, r"kernel does not take `x` of shape \(3, 2\)"),
        ({"kernel": gpytorch.kernels.RBFKernel(active_dims=[4])}, r"kernel does not take `x` of shape \(3, 2\)"),
        ({"kernel": gpytorch.kernels.RBFKernel(batch_shape=torch.Size([4]))}, r"must give .*got \(4, 3, 3\)"),
        (
            {"kernel": gpytorch.kernels.MultitaskKernel(gpytorch.kernels.RBFKernel(), num_tasks=2)},
            r"got \(6, 6\).*Coregionalised",
        ),
    ],
)
@pytest.mark.parametrize("approximation", ["exact", "sparse"])
def test_parts_of_gpytorchs_that_do_not_fit_the_rows_are_told(
    parts: dict[str, Any], match: str, approximation: Any
) -> None:
    with pytest.raises(ValueError, match=match):
        fit(gp.GaussianProcess(**parts), DATA, approximation=approximation)
