"""Models that users wrote with GPyTorch: our predictive is GPyTorch's own, and they are fitted and conditioned."""

from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.data import Batch
from bayesuq.inference import gp
from bayesuq.inference.gp.collapsed import CollapsedBound
from bayesuq.inference.gp.foreign import GpytorchPosterior
from bayesuq.inference.gp.marginal_likelihood import Observations
from bayesuq.inference.gp.sparse_posterior import SparseProcess

EXACT = {"rtol": 1e-6, "atol": 1e-6}


def rows(number: int, seed: int) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    x = torch.rand(number, 2, generator=noise, dtype=torch.float64) * 3
    y = (x[:, 0] * 2).sin() + 0.3 * x[:, 1] + 0.1 * torch.randn(number, generator=noise, dtype=torch.float64)
    return x, y


X, Y = rows(30, 0)
NEW, NEW_Y = rows(7, 1)


class Exact(gpytorch.models.ExactGP):
    def __init__(self, likelihood: Any, x: Tensor | None = X, y: Tensor | None = Y) -> None:
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.LinearMean(2)
        inner = gpytorch.kernels.MaternKernel(ard_num_dims=2) * gpytorch.kernels.RBFKernel(active_dims=[1])
        self.covar_module = gpytorch.kernels.ScaleKernel(inner)

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class OnFeatures(Exact):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.square())


class Tasks(gpytorch.models.ExactGP):
    def __init__(self, likelihood: Any) -> None:
        super().__init__(X, torch.stack([Y, -Y], dim=1), likelihood)
        self.mean_module = gpytorch.means.MultitaskMean(gpytorch.means.ConstantMean(), num_tasks=2)
        self.covar_module = gpytorch.kernels.MultitaskKernel(gpytorch.kernels.RBFKernel(), num_tasks=2)

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultitaskMultivariateNormal(self.mean_module(x), self.covar_module(x))


class Sparse(gpytorch.models.ApproximateGP):
    def __init__(self) -> None:
        law = gpytorch.variational.CholeskyVariationalDistribution(8)
        super().__init__(gpytorch.variational.VariationalStrategy(self, X[:8].clone(), law))
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def moved(module: Any, seed: int = 0) -> Any:
    """With hyperparameters that nobody would guess."""
    noise = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=noise, dtype=torch.float64))
    return module


def noisy(model: Any, likelihood: Any, x: Tensor, **options: Any) -> Any:
    with torch.no_grad():
        model.eval()
        likelihood.eval()
        found = likelihood(model(x), **options)
        model.train()
        return found


def own_of(model: Any, x: Tensor) -> Any:
    with torch.no_grad():
        model.eval()
        found = model(x)
        _ = found.covariance_matrix
        model.train()
        return found


@pytest.mark.parametrize("kind", [Exact, OnFeatures])
def test_an_exact_model_predicts_what_gpytorch_does(kind: type[Any]) -> None:
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = moved(kind(likelihood))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    posterior = bq.adopt(model)
    assert all(part.training for part in (model, likelihood))  # as it was, whatever the copy needs
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert isinstance(posterior, gp.ExactGpPosterior) == (kind is Exact)
    predictive, expected = posterior.predict(NEW), noisy(model, likelihood, NEW)
    torch.testing.assert_close(predictive.mean.squeeze(1), expected.mean, **EXACT)
    torch.testing.assert_close(predictive.total.squeeze(1), expected.variance, **EXACT)
    torch.testing.assert_close(predictive.epistemic.squeeze(1), own_of(model, NEW).variance, **EXACT)
    draws = posterior.sample_functions(NEW, 4000, seed=0).squeeze(2)
    covariance = own_of(model, NEW).covariance_matrix
    scale = covariance.diagonal().sqrt()
    assert float(((torch.cov(draws.T) - covariance) / torch.outer(scale, scale)).abs().max()) < 6 * (2 / 4000) ** 0.5
    assert bq.evaluation.report.evaluate(predictive, NEW_Y)["crps"].value > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # Further rows: GPyTorch with all rows, at these hyperparameters.
    further, further_y = rows(5, 2)
    longer = posterior.condition(further, further_y)
    model.set_train_data(torch.cat([X, further]), torch.cat([Y, further_y]), strict=False)
    expected = noisy(model, likelihood, NEW)
    torch.testing.assert_close(longer.predict(NEW).mean.squeeze(1), expected.mean, **EXACT)
    torch.testing.assert_close(longer.predict(NEW).total.squeeze(1), expected.variance, **EXACT)


def test_an_adopted_exact_model_has_gpytorchs_evidence_and_is_saved(tmp_path: Any) -> None:
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = moved(Exact(likelihood))
    posterior = bq.adopt(model)
    model.train()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    with torch.no_grad():
        assert posterior.log_marginal_likelihood == pytest.approx(float(evidence(model(X), Y)) * len(X), rel=1e-6)
    with pytest.warns(UserWarning, match="pass the same process"):
        posterior.save(tmp_path / "gp.bin")
    again = bq.load(tmp_path / "gp.bin", model=posterior.model)
    assert torch.equal(again.predict(NEW).mean, posterior.predict(NEW).mean)


def test_known_noise_of_each_row_and_outputs_side_by_side() -> None:
    known = 0.01 + 0.2 * torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise=known, learn_additional_noise=True)
    model = moved(Exact(likelihood))
    predictive = bq.adopt(model).predict(NEW)
    expected = noisy(model, likelihood, NEW)
    torch.testing.assert_close(predictive.mean.squeeze(1), expected.mean, **EXACT)
    torch.testing.assert_close(predictive.total.squeeze(1), expected.variance, **EXACT)

    tasks = gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=2)
    coupled = moved(Tasks(tasks))
    posterior = bq.adopt(coupled)
    expected = noisy(coupled, tasks, NEW)
    torch.testing.assert_close(posterior.predict(NEW).mean, expected.mean, **EXACT)
    torch.testing.assert_close(posterior.predict(NEW).total, expected.variance, **EXACT)
    draws = posterior.sample_functions(NEW, 3000, seed=0)
    own = own_of(coupled, NEW)
    assert draws.shape == (3000, 7, 2)
    cross = torch.cov(draws[:, 0].T)[0, 1] / own.variance[0].prod().sqrt()
    assert float(cross) == pytest.approx(float(own.covariance_matrix[0, 1] / own.variance[0].prod().sqrt()), abs=0.1)


def test_an_approximate_model_predicts_what_gpytorch_does() -> None:
    model = moved(Sparse())
    _ = own_of(model, NEW)  # GPyTorch fills in the law at the inducing points
    normal = gpytorch.likelihoods.GaussianLikelihood().double()
    posterior = bq.adopt(model, normal)
    assert isinstance(posterior, GpytorchPosterior)
    told = posterior.summary()["covar_module.base_kernel.lengthscale"].mean  # softplus of what the module stores
    assert told == pytest.approx(model.covar_module.base_kernel.lengthscale.item())
    expected = noisy(model, normal, NEW)
    torch.testing.assert_close(posterior.predict(NEW).mean.squeeze(1), expected.mean, **EXACT)
    torch.testing.assert_close(posterior.predict(NEW).total.squeeze(1), expected.variance, **EXACT)
    coin = gpytorch.likelihoods.BernoulliLikelihood().double()
    labels = bq.adopt(model, coin).predict(NEW)
    torch.testing.assert_close(labels.mean[:, 1], noisy(model, coin, NEW).probs, rtol=0, atol=1e-5)
    assert bq.evaluation.report.evaluate(labels, (NEW_Y > 0).long())["brier_score"].value >= 0
    student = gpytorch.likelihoods.StudentTLikelihood().double()
    heavy = bq.adopt(model, student).predict(NEW, num_samples=50, seed=0)
    spread = heavy.epistemic.squeeze(1) / own_of(model, NEW).variance  # of 50 draws: .2 of it by chance
    assert 0.3 < float(spread.min()) <= float(spread.max()) < 2.5
    assert bq.evaluation.report.evaluate(heavy, NEW_Y)["crps"].value > 0
    assert torch.equal(heavy.mean, bq.adopt(model, student).predict(NEW, num_samples=50, seed=0).mean)
    with pytest.raises(NotImplementedError, match=r"`bayesuq.adopt` the model"):
        posterior.save("nowhere")
    with pytest.raises(TypeError, match=r"adopt\(model, likelihood\)"):
        bq.adopt(model)


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_an_untrained_exact_model_is_fitted_from_where_it_stands() -> None:
    model = Exact(gpytorch.likelihoods.GaussianLikelihood(), None, None)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    posterior = gp.fit(model, bq.Dataset(X, Y), num_restarts=1, max_iterations=15, seed=0)
    start = bq.adopt(Exact(gpytorch.likelihoods.GaussianLikelihood()))
    assert posterior.log_marginal_likelihood > start.log_marginal_likelihood + 5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(TypeError, match=r"adopt\(model, likelihood\)"):
        gp.fit(Sparse(), bq.Dataset(X, Y))
    with pytest.raises(ValueError, match="no training data"):
        bq.adopt(model)


def test_further_rows_are_those_of_a_fit_to_all_at_these_hyperparameters() -> None:
    model = bq.models.gp.GaussianProcess(bq.models.gp.Scale(bq.models.gp.RBF()))
    y = torch.stack([Y, 2 * Y.cos()], dim=1)
    fitted = gp.fit(model, bq.Dataset(X, y), num_restarts=1, seed=0)
    part = gp.fit(model, bq.Dataset(X[:20], y[:20]), num_restarts=1, max_iterations=1, seed=0)
    at = type(part)(**{**vars_of(part), "hyperparameters": fitted.hyperparameters, "noise": fitted.noise[:, :20]})
    longer = at.condition(X[20:], y[20:])
    torch.testing.assert_close(longer.predict(NEW).mean, fitted.predict(NEW).mean, **EXACT)
    torch.testing.assert_close(longer.predict(NEW).total, fitted.predict(NEW).total, **EXACT)
    assert longer.log_marginal_likelihood == pytest.approx(fitted.log_marginal_likelihood, rel=1e-9)
    assert len(at.x) == 20
    with pytest.raises(ValueError, match="must have 3 rows"):
        at.condition(X[:3], y[:2])


def test_a_sparse_law_given_further_rows_is_the_best_one_of_all_rows() -> None:
    model = bq.models.gp.GaussianProcess(bq.models.gp.Scale(bq.models.gp.RBF()))
    y = torch.stack([Y, 2 * Y.cos()], dim=1).double()
    fitted = gp.fit(
        model, bq.Dataset(X, y), approximation="collapsed", num_inducing=10, max_iterations=5, num_restarts=1, seed=0
    )

    def best(number: int) -> Any:
        vector: Any = None  # of what moves, and nothing does
        process = SparseProcess(fitted.model, fitted.prior, fitted.inducing_points, vector)
        rows = Observations.of(Batch(X[:number].double(), y[:number], None), None)
        return CollapsedBound(process, rows).posterior(fitted.history)

    longer, whole = best(20).condition(X[20:], y[20:]), best(len(X))
    torch.testing.assert_close(longer.inducing_mean, whole.inducing_mean, **EXACT)
    torch.testing.assert_close(longer.inducing_scale, whole.inducing_scale, **EXACT)
    counts = gp.fit(
        bq.models.gp.GaussianProcess(likelihood=bq.models.likelihoods.Poisson()),
        bq.Dataset(X[:9], torch.arange(9)),
        num_inducing=3,
        num_epochs=1,
    )
    with pytest.raises(NotImplementedError, match=r"likelihood is Poisson\(\)\. Fit all rows"):
        counts.condition(X[:1], [2])


def test_an_approximate_model_given_the_rows_at_its_inducing_points_is_the_exact_one() -> None:
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    model, exact = Sparse().double(), Exact(likelihood, X[:8], Y[:8]).double()
    exact.mean_module, exact.covar_module = model.mean_module, model.covar_module
    model.mean_module.constant = 0.7
    sparse = bq.adopt(model, likelihood).condition(X[:5], Y[:5]).condition(X[5:8], Y[5:8])
    one, other = sparse.predict(NEW), bq.adopt(exact).predict(NEW)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-3, atol=1e-3)  # GPyTorch's jitter
    torch.testing.assert_close(one.total, other.total, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_an_approximate_model_is_trained_by_its_own_bound() -> None:
    model, likelihood = Sparse().double(), gpytorch.likelihoods.GaussianLikelihood().double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = bq.Dataset(X, Y)
    untrained = bq.adopt(model, likelihood)
    posterior = gp.fit(untrained, data, num_epochs=40, learning_rate=0.1, seed=0)
    assert posterior.reading.noise.item() < 0.9 * untrained.reading.noise.item()  # the likelihood's is learned too
    assert posterior.predict(X).log_prob(Y).mean() > untrained.predict(X).log_prob(Y).mean() + 0.3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = gp.fit(untrained, data, num_epochs=40, learning_rate=0.1, seed=0)
    assert torch.equal(again.predict(NEW).mean, posterior.predict(NEW).mean)
    labels = bq.Dataset(X, (Y > 0).long())
    signs = bq.adopt(Sparse().double(), gpytorch.likelihoods.BernoulliLikelihood())
    of_labels = gp.fit(signs, labels, num_epochs=30, learning_rate=0.1, seed=0)
    assert bq.evaluation.scores.accuracy(of_labels.predict(X), labels.y) > 0.8
    with pytest.raises(ValueError, match="inducing points and a likelihood of its own"):
        gp.fit(untrained, data, num_inducing=4)


def vars_of(posterior: Any) -> dict[str, Any]:
    return {name: getattr(posterior, name) for name in type(posterior).__dataclass_fields__}


class Batch2(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: Any) -> None:
        super().__init__(x, y, likelihood)
        shape = torch.Size([len(y)])
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
        self.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.RBFKernel(batch_shape=shape), batch_shape=shape
        )

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def test_outputs_with_inputs_of_their_own_are_told() -> None:
    likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=torch.Size([2]))
    with pytest.raises(ValueError, match="training inputs of their own"):
        bq.adopt(Batch2(torch.stack([X, X + 5]), torch.stack([Y, Y]), likelihood))


def test_known_noise_of_the_rows_fitted_is_not_that_of_as_many_new_ones() -> None:
    known = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(torch.full_like(Y, 0.5), learn_additional_noise=True)
    adopted = bq.adopt(moved(OnFeatures(known)))
    assert isinstance(adopted, GpytorchPosterior)
    new, _ = rows(30, 5)
    whole = adopted.predict(new)
    torch.testing.assert_close(whole.noise_variance, known.second_noise.detach().double().expand(1, 30, 1))
    torch.testing.assert_close(whole.total[:3], adopted.predict(new[:3]).total, **EXACT)


@pytest.mark.parametrize("learns", [False, True])
def test_a_dirichlet_process_gives_class_probabilities(learns: bool) -> None:
    labels = torch.arange(30) % 3
    options = {"learn_additional_noise": learns, "dtype": torch.float64, "batch_shape": torch.Size([3])}
    likelihood = gpytorch.likelihoods.DirichletClassificationLikelihood(labels, **options)
    model = moved(Batch2(X, likelihood.transformed_targets, likelihood))
    model.double().eval()
    with torch.no_grad():
        law = model(NEW)
        expected = law.sample(torch.Size([20_000])).softmax(dim=1).mean(dim=0).mT
    found = bq.adopt(model).predict(NEW, num_samples=20_000, seed=0).mean
    # Means of 20,000 draws in [0, 1]: 5 standard errors of the difference of two are at most 5 * .5 / 100.
    torch.testing.assert_close(found, expected.double(), rtol=0.0, atol=0.025)


def test_targets_that_gpytorch_marks_as_missing_count_for_nothing() -> None:
    model, present = moved(Exact(gpytorch.likelihoods.GaussianLikelihood())), torch.arange(30) != 4
    model.set_train_data(targets=torch.where(present, Y, torch.nan))
    found = bq.adopt(model).predict(NEW)
    model.set_train_data(X[present], Y[present], strict=False)
    expected = bq.adopt(model).predict(NEW)
    torch.testing.assert_close(found.mean, expected.mean, **EXACT)
    torch.testing.assert_close(found.total, expected.total, **EXACT)


@pytest.mark.parametrize(
    ("y", "match"), [([float("nan"), 1.0], "finite"), ([[1.0, 2.0]], r"shape \(2,\)"), (["a", "b"], "hold numbers")]
)
def test_further_targets_that_are_none_are_told(y: Any, match: str) -> None:
    adopted = bq.adopt(moved(OnFeatures(gpytorch.likelihoods.GaussianLikelihood())))
    with pytest.raises((TypeError, ValueError), match=match):
        adopted.condition(NEW[:2], y)
