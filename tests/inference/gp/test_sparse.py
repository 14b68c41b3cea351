"""Sparse Gaussian processes: the exact one where there is one, expectations, natural gradients, and what they learn."""

import math
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bayesuq import datasets
from bayesuq.data import Batch, Dataset
from bayesuq.evaluation.scores import accuracy
from bayesuq.inference.gp import expectations
from bayesuq.inference.gp.data import units_of
from bayesuq.inference.gp.fitting import fit
from bayesuq.inference.gp.hyperparameters import HyperparameterVector
from bayesuq.inference.gp.inducing import inducing_points
from bayesuq.inference.gp.sparse import SparseObjective
from bayesuq.inference.gp.sparse_posterior import SparseGpPosterior, SparseProcess
from bayesuq.inference.training.options import Progress
from bayesuq.models import gp, likelihoods, networks
from tests.inference.examples import built, labelled, noise

X, NEW_X = noise(0, 30, 2), noise(1, 9, 2)
Y = torch.sin(X.sum(dim=1)) + 0.1 * noise(2, 30)
DATA = Dataset(X, Y)
KERNEL = gp.Scale(gp.Matern(1.5, lengthscale=0.8), variance=1.5)
STILL = {"learning_rate": 1e-12, "schedule": "constant", "seed": 0}  # nothing moves but q


def known(likelihood: Any = None, **parts: Any) -> gp.GaussianProcess:
    return gp.GaussianProcess(KERNEL, gp.ZeroMean(), likelihood or likelihoods.Normal(scale=0.2), **parts)


def test_inducing_points_at_all_inputs_give_the_exact_process_in_one_natural_step() -> None:
    exact = fit(known(), DATA, approximation="exact")
    sparse = fit(known(), DATA, approximation="sparse", natural_rate=1, num_epochs=2, **STILL)
    assert len(sparse.inducing_points) == 30
    one, other = (posterior.predict(NEW_X) for posterior in (sparse, exact))
    # The jitter of the inducing points, 1e-8 of the prior variance, is far below the noise.
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(one.function_variance, other.function_variance, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(sparse.joint(NEW_X), exact.joint(NEW_X), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert -30 * sparse.history.loss[1] == pytest.approx(exact.log_marginal_likelihood, abs=1e-4)


def test_the_bound_of_few_inducing_points_is_titsias_bound() -> None:
    """Titsias 2009, eq. (9): log N(y; 0, Q + s^2 I) - tr(K - Q) / (2 s^2), with Q = K_nm K_mm^-1 K_mn."""
    posterior = fit(known(), DATA, approximation="sparse", num_inducing=8, natural_rate=1, num_epochs=2, **STILL)
    assert len(posterior.inducing_points) <= 8
    prior, z = posterior.prior, posterior.inducing_points
    gram, cross, inner = prior.covariance(X)[0], prior.covariance(z, X)[0], prior.covariance(z)[0]
    nystrom = cross.T @ torch.linalg.solve(inner, cross)
    law = torch.distributions.MultivariateNormal(torch.zeros(30, dtype=X.dtype), nystrom + 0.04 * torch.eye(30))
    bound = float(law.log_prob(Y) - (gram - nystrom).trace() / (2 * 0.04))
    assert -30 * posterior.history.loss[1] == pytest.approx(bound, abs=1e-4)


def test_the_collapsed_q_is_the_optimum_of_the_bound_by_minibatches() -> None:
    posterior = fit(known(), DATA, approximation="collapsed", num_inducing=8, seed=0)
    prior, z = posterior.prior, posterior.inducing_points
    gram, cross, inner = prior.covariance(X)[0], prior.covariance(z, X)[0], prior.covariance(z)[0]
    nystrom = cross.T @ torch.linalg.solve(inner, cross)
    law = torch.distributions.MultivariateNormal(torch.zeros(30, dtype=X.dtype), nystrom + 0.04 * torch.eye(30))
    bound = float(law.log_prob(Y) - (gram - nystrom).trace() / (2 * 0.04))  # Titsias 2009, eq. (9)
    assert -30 * posterior.history.loss[-1] == pytest.approx(bound, abs=1e-3)
    weights = torch.linalg.solve(inner + cross @ cross.T / 0.04, cross @ Y / 0.04)
    torch.testing.assert_close(posterior.marginals(X)[0][0], cross.T @ weights, rtol=1e-4, atol=1e-5)
    # L-BFGS moves the inducing points too: no bound at the clusters' centres is better.
    still = fit(known(), DATA, approximation="sparse", num_inducing=8, natural_rate=1, num_epochs=2, **STILL)
    assert posterior.history.loss[-1] < still.history.loss[1]


def test_a_collapsed_fit_with_inducing_points_at_all_inputs_is_exact() -> None:
    model = gp.GaussianProcess(gp.Scale(gp.RBF()))
    weighted = Dataset(X, Y, torch.rand(30, generator=torch.Generator().manual_seed(0)) + 0.5)
    for data in (DATA, weighted):
        exact = fit(model, data, approximation="exact", seed=0)
        collapsed = fit(model, data, approximation="collapsed", num_inducing=30, seed=0)
        assert -30 * collapsed.history.loss[-1] == pytest.approx(exact.log_marginal_likelihood, abs=2e-3)
        ours, theirs = collapsed.predict(X), exact.predict(X)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=2e-3)
        torch.testing.assert_close(ours.total, theirs.total, rtol=2e-2, atol=0)


def test_collapsed_outputs_share_inducing_points_and_keep_their_own_means() -> None:
    both = Dataset(X, torch.stack([Y, -2 * Y], dim=1))
    posterior = fit(gp.GaussianProcess(gp.Scale(gp.RBF())), both, approximation="collapsed", num_inducing=15, seed=0)
    mean = posterior.predict(X).mean
    assert mean.shape == (30, 2)
    assert torch.corrcoef(mean.T)[0, 1] < -0.99


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (gp.GaussianProcess(likelihood=likelihoods.Bernoulli()), "Collapsed inference needs normal noise"),
        (gp.GaussianProcess(gp.Deep(torch.nn.Linear(2, 1), gp.RBF())), "does not take a Deep kernel"),
    ],
)
def test_collapsed_fits_are_refused_where_they_have_no_closed_form(model: gp.GaussianProcess, message: str) -> None:
    data = DATA if isinstance(model.likelihood, likelihoods.Normal) else Dataset(X, (Y > 0).long())
    with pytest.raises(ValueError, match=message):
        fit(model, data, approximation="collapsed")


def test_adam_and_natural_gradients_reach_the_same_q() -> None:
    model = known(likelihoods.Bernoulli())
    data = Dataset(X, (Y > 0).long())
    natural = fit(model, data, num_inducing=10, natural_rate=0.5, num_epochs=60, **STILL)
    objective = objective_of(model, data, natural_rate=0.0, num_inducing=10)
    with torch.no_grad():
        objective.process.inducing.copy_(natural.inducing_points)
        objective.mean.copy_(natural.inducing_mean)
        objective.root.copy_(natural.inducing_scale)
    objective.loss_and_grads(Batch(X, data.y, None), torch.Generator())
    # At the optimum of one, the gradient of the other vanishes.
    assert objective.mean.grad.abs().max() < 1e-6
    assert objective.root.grad.tril().abs().max() < 1e-6


def objective_of(
    model: gp.GaussianProcess, data: Dataset, *, natural_rate: float | None, num_inducing: int = 10
) -> SparseObjective:
    outputs = model.outputs_for(data.y)
    prior = model.build(data.x.double(), outputs)
    z = inducing_points(data.x.double(), torch.ones(2, dtype=torch.float64), num_inducing, 0).requires_grad_()
    vector = HyperparameterVector(prior, units_of(model, data.x.double(), data.y, outputs))
    process = SparseProcess(model, prior, z, vector)
    return SparseObjective(process, len(data), num_draws=8, natural_rate=natural_rate)


def test_a_minibatch_estimates_the_bound_without_bias() -> None:
    objective = objective_of(known(), DATA, natural_rate=0.1)
    whole = objective.loss_and_grads(Batch(X, Y[:, None], None), torch.Generator())
    parts = [
        objective.loss_and_grads(Batch(X[rows], Y[rows, None], None), torch.Generator())
        for rows in torch.arange(30).split(10)
    ]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-10, atol=1e-10)


def test_a_row_of_weight_two_is_two_rows() -> None:
    for likelihood, y in ((likelihoods.Normal(scale=0.2), Y), (likelihoods.Bernoulli(), (Y > 0).long())):
        weight = torch.ones(30)
        weight[:5] = 2
        model, options = known(likelihood), {"approximation": "sparse", "num_epochs": 15, "natural_rate": 0.5, **STILL}
        one = fit(model, Dataset(X, y, weight), **options)
        repeated = Dataset(torch.cat([X, X[:5]]), torch.cat([y, y[:5]]))
        other = fit(model, repeated, **options)
        for ours, theirs in zip(one.marginals(NEW_X), other.marginals(NEW_X), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


# Expectations over f


@pytest.mark.parametrize(
    ("likelihood", "y"),
    [
        (likelihoods.Normal(scale=0.4), torch.tensor([[0.3], [-1.0]])),
        (likelihoods.Bernoulli(), torch.tensor([1, 0])),
        (likelihoods.StudentT(df=4.0, scale=0.7), torch.tensor([[0.3], [-2.0]])),
        (likelihoods.Poisson(), torch.tensor([[2.0], [0.0]])),
        (likelihoods.Bernoulli((0.5, 2.0)), torch.tensor([1, 0])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_expectations_are_integrals(likelihood: Any, y: Tensor) -> None:
    mean, variance = torch.tensor([[0.2], [-0.7]]).double(), torch.tensor([[0.5], [1.1]]).double()
    y = y.double() if y.is_floating_point() else y
    grid = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    expected, density = [], []
    for row in range(2):
        law = torch.distributions.Normal(mean[row], variance[row].sqrt()).log_prob(grid).exp()
        terms = likelihood.log_prob(grid[:, None], y[row : row + 1].expand(len(grid), *y.shape[1:]))
        expected.append(torch.trapezoid(law * terms, grid))
        density.append(torch.trapezoid(law * terms.exp(), grid).log())
    weight = torch.tensor([1.0, 2.5]).double()
    found = expectations.expected_log_prob(likelihood, mean, variance, y, weight, torch.Generator(), 8)
    torch.testing.assert_close(found, expected[0] + 2.5 * expected[1], rtol=1e-3, atol=1e-3)
    ones = expectations.log_predictive(likelihood, mean, variance, y, None, torch.Generator())
    torch.testing.assert_close(ones, torch.stack(density), rtol=1e-2, atol=1e-2)


def test_the_expectation_of_two_functions_is_the_mean_over_draws() -> None:
    likelihood, y, weight = likelihoods.HeteroscedasticNormal(), noise(3, 2, 1), torch.tensor([1.0, 2.0]).double()
    mean, variance = noise(0, 2, 2), noise(1, 2, 2).square()
    found = expectations.expected_log_prob(likelihood, mean, variance, y, weight, torch.Generator(), 8)
    f = mean + variance.sqrt() * noise(4, 200_000, 2, 2)
    draws = torch.stack([likelihood.log_prob(f[:, row], y[row].expand(len(f), 1)) for row in range(2)], dim=1) @ weight
    assert abs(float(found - draws.mean())) < 5 * float(draws.std()) / 200_000**0.5


def test_draws_estimate_the_expectation_of_classes_and_its_curvature_is_the_second_derivative() -> None:
    likelihood, y = likelihoods.Categorical((0.5, 1.0, 2.0)), torch.tensor([0, 2])
    mean, variance = noise(0, 2, 3).requires_grad_(), noise(1, 2, 3).square()

    def expected(at: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return expectations.expected_log_prob(likelihood, at, variance, y, None, generator, 4000)

    # Price: d^2 / d mean^2 E l = E l'', with the same draws on both sides.
    second = torch.autograd.functional.hessian(expected, mean).reshape(6, 6).diagonal().view(2, 3)
    generator = torch.Generator().manual_seed(0)
    found = expectations.softmax_curvature(likelihood, mean.detach(), variance, y, generator, 4000)
    torch.testing.assert_close(found, second, rtol=1e-9, atol=1e-9)
    assert (found < 0).all()


# Against GPyTorch, written by hand


class ByHand(gpytorch.models.ApproximateGP):
    def __init__(self, z: Tensor) -> None:
        law = gpytorch.variational.CholeskyVariationalDistribution(len(z))
        super().__init__(gpytorch.variational.VariationalStrategy(self, z, law))
        self.mean_module = gpytorch.means.ZeroMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5))

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@pytest.mark.oracle
def test_bound_and_marginals_are_what_gpytorch_gives_by_hand() -> None:
    posterior = fit(known(), DATA, approximation="sparse", num_inducing=8, num_epochs=3, **STILL)
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    hand = ByHand(posterior.inducing_points).double()
    hand.initialize(
        **{"covar_module.outputscale": 1.5, "covar_module.base_kernel.lengthscale": 0.8}
    )  # fmt: skip
    likelihood.initialize(noise=0.04)
    strategy = hand.variational_strategy
    strategy.variational_params_initialized.fill_(1)
    law = strategy._variational_distribution
    with torch.no_grad():
        law.variational_mean.copy_(posterior.inducing_mean[0])
        law.chol_variational_covar.copy_(posterior.inducing_scale[0])
        bound = gpytorch.mlls.VariationalELBO(likelihood, hand.train(), num_data=30)(hand(X), Y)
        at_new = hand.eval()(NEW_X)
    objective = objective_of(known(), DATA, natural_rate=0.0, num_inducing=8)
    with torch.no_grad():
        for name, value in (("mean", posterior.inducing_mean), ("root", posterior.inducing_scale)):
            getattr(objective, name).copy_(value)
        objective.process.inducing.copy_(posterior.inducing_points)
    loss = objective.loss_and_grads(Batch(X, Y[:, None], None), torch.Generator())
    assert -float(loss) / 30 == pytest.approx(float(bound), rel=1e-5)
    mean, variance = posterior.marginals(NEW_X)
    torch.testing.assert_close(mean[0], at_new.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(variance[0], at_new.variance, rtol=1e-5, atol=1e-5)


# What it learns


def test_classes_are_learned_and_far_away_they_are_unknown() -> None:
    data = labelled(200, num_features=2)
    posterior = fit(
        gp.GaussianProcess(likelihood=likelihoods.Categorical()), data, num_inducing=20, num_epochs=60, seed=0
    )
    test = labelled(500, num_features=2, seed=10)
    predictive = posterior.predict(test.x, seed=0)
    assert (predictive.mean.argmax(dim=1) == test.y).double().mean() > 0.9
    far = posterior.predict(torch.full((1, 2), 1e4), seed=0, num_samples=1000)
    # Draws are then of the prior, in which the classes are alike: five standard errors of a probability's mean.
    torch.testing.assert_close(
        far.mean, torch.full((1, 3), 1 / 3, dtype=torch.float64), rtol=0, atol=5 * 0.5 / 1000**0.5
    )
    assert far.epistemic > predictive.epistemic.mean()


def test_a_noise_that_changes_is_found_by_a_second_function() -> None:
    generator = torch.Generator().manual_seed(0)
    x = 4 * torch.rand(400, 1, generator=generator, dtype=torch.float64) - 2
    scale = torch.exp(0.5 * x - 1)
    data = Dataset(x, torch.sin(2 * x) + scale * torch.randn(400, 1, generator=generator, dtype=torch.float64))
    model = gp.GaussianProcess(gp.Scale(gp.RBF()), likelihood=likelihoods.HeteroscedasticNormal())
    posterior = fit(model, data, num_inducing=20, num_epochs=140, seed=0)
    at = torch.tensor([[-1.5], [0.0], [1.5]], dtype=torch.float64)
    found = posterior.predict(at, seed=0, num_samples=1000).aleatoric.sqrt()
    # 100 rows within a lengthscale tell a scale to 1 / sqrt(200) = 7 %, three of those with room for smoothing.
    torch.testing.assert_close(found, torch.exp(0.5 * at - 1), rtol=0.25, atol=0)


def test_logits_may_have_noise_of_their_own() -> None:
    data = labelled(60, num_features=2)
    model = gp.GaussianProcess(likelihood=likelihoods.HeteroscedasticCategorical())
    posterior = fit(model, data, num_inducing=10, num_epochs=60, seed=0)
    assert posterior.inducing_mean.shape == (6, 10)  # a mean and a log variance for each of three logits
    assert (posterior.predict(data.x, seed=0).mean.argmax(dim=1) == data.y).double().mean() > 0.7


def test_outliers_pull_less_under_students_noise() -> None:
    truth = torch.sin(X.sum(dim=1))
    y = truth.clone()
    y[::10] += 20
    at = X[::10]  # where the outliers are
    options = {"approximation": "sparse", "num_epochs": 50, **STILL}
    errors = [
        (fit(known(one), Dataset(X, y), **options).marginals(at)[0][0] - truth[::10]).abs().max()
        for one in (likelihoods.StudentT(df=3.0, scale=0.2), likelihoods.Normal(scale=0.2))
    ]
    assert errors[0] < 2 < errors[1]


def test_a_deep_kernel_takes_images_and_a_loader() -> None:
    images = noise(0, 60, 1, 6, 6).float()
    labels = (images.mean(dim=(1, 2, 3)) > 0).long()
    net = built(lambda: networks.mlp(36, (16,), 2, activation="tanh"))
    model = gp.GaussianProcess(gp.Deep(net, gp.Scale(gp.RBF())), likelihood=likelihoods.Categorical())
    loader = DataLoader(TensorDataset(images, labels), batch_size=20)
    posterior = fit(model, loader, num_inducing=10, num_epochs=40, seed=0)
    assert (
        posterior.predict(images, seed=0).mean.argmax(dim=1) == labels
    ).double().mean() > 0.8  # chance gives half, with an error of .06
    assert not torch.equal(posterior.hyperparameters["kernel.net.1.weight"], net[1].weight.double())


@pytest.mark.parametrize("learning_rate", [0.01, 0.03])
def test_inducing_points_stay_among_the_data_while_a_network_moves_the_features(learning_rate: float) -> None:
    """Left behind in features, or far apart in lengthscales, they are none, and all labels are guessed."""
    split = datasets.load("digits")
    net = built(lambda: networks.mlp(64, (100, 100), 10))
    model = gp.GaussianProcess(gp.Deep(net, gp.Scale(gp.Matern())), likelihood=likelihoods.Categorical())
    options = {"num_inducing": 30, "num_epochs": 10, "batch_size": 50, "progress": False, "seed": 0}
    posterior = fit(model, split.train.rows(range(400)), approximation="sparse", learning_rate=learning_rate, **options)
    right = accuracy(posterior.predict(split.test.x, num_samples=20, seed=0), split.test.y)
    assert right > 0.9  # guessing gives a tenth
    assert posterior.inducing_points.shape == (30, 10)
    with torch.no_grad():
        features = posterior.prior.features(split.train.x[:400].double())
    apart = torch.cdist(posterior.inducing_points, features).amin(dim=1)
    assert apart.median() < features.std(dim=0).norm()


# How it runs


def test_inducing_points_are_centres_in_the_features_own_units_and_never_twice_the_same() -> None:
    x = torch.cat([noise(0, 500, 1) + 10 * (torch.arange(500)[:, None] % 5), 1e6 * noise(1, 500, 1)], dim=1)
    z = inducing_points(x, x.std(dim=0), 20, 0)
    assert len(torch.unique(z, dim=0)) == len(z) <= 20
    assert ((z >= x.amin(dim=0)) & (z <= x.amax(dim=0))).all()
    assert torch.equal(z, inducing_points(x, x.std(dim=0), 20, 0))
    assert len(inducing_points(x[:4].repeat(9, 1), x.std(dim=0), 20, 0)) == 4


def test_a_fit_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Any) -> None:
    model = gp.GaussianProcess(gp.Scale(gp.RBF()))
    options = {"approximation": "sparse", "num_inducing": 8, "num_epochs": 6, "batch_size": 10, "seed": 0}
    whole = fit(model, DATA, **options)

    def stop(progress: Progress) -> None:
        if progress.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, DATA, callbacks=[stop], checkpoint=tmp_path / "file", **options)
    from_file = fit(model, DATA, checkpoint=tmp_path / "file", **options)
    assert torch.equal(from_file.inducing_mean, whole.inducing_mean)
    assert torch.equal(from_file.inducing_scale, whole.inducing_scale)
    assert all(torch.equal(value, whole.hyperparameters[name]) for name, value in from_file.hyperparameters.items())


def test_validation_rows_keep_the_best_epoch() -> None:
    posterior = fit(
        known(),
        DATA,
        approximation="sparse",
        validation=Dataset(NEW_X, torch.sin(NEW_X.sum(dim=1))),
        num_epochs=5,
        seed=0,
    )
    assert len(posterior.history.validation_loss) == 5
    assert all(math.isfinite(loss) for loss in posterior.history.validation_loss)


def test_natural_gradients_are_refused_where_there_are_none() -> None:
    model, data = known(likelihoods.HeteroscedasticCategorical()), Dataset(X, (Y > 0).long())
    with pytest.raises(ValueError, match="Pass natural_rate=0"):
        fit(model, data, natural_rate=0.1, num_epochs=1, seed=0)
    assert isinstance(fit(model, data, num_epochs=1, seed=0), SparseGpPosterior)
