"""Known noise of each row: against closed forms, and the same posterior as weights of 1 / noise^2 in every method."""

from functools import cache, partial
from typing import Any

import pytest
import torch
from pyro.distributions import MultivariateNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import bayesuq as bq
from bayesuq.inference import dropout, ensemble, gp, hmc, laplace, map_estimate, sgmcmc, swag, variational
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork

GIVEN = likelihoods.Normal(scale="given")
ONE = likelihoods.Normal(scale=1.0)
SHORT: dict[str, Any] = {"num_epochs": 2, "batch_size": 6, "seed": 0}
CHAIN: dict[str, Any] = {"num_samples": 4, "num_warmup": 6, "thinning": 1, "seed": 0, "progress": False}
METHODS = {
    "map_estimate": partial(map_estimate.fit, **SHORT),
    "dropout": partial(dropout.fit, **SHORT),
    "ensemble, one by one": partial(ensemble.fit, num_members=2, vectorised=False, **SHORT),
    "ensemble": partial(ensemble.fit, num_members=2, **SHORT),
    "laplace, full": partial(laplace.fit, structure="full", **SHORT),
    "laplace, kronecker": partial(laplace.fit, **SHORT),
    "laplace, diagonal": partial(laplace.fit, structure="diagonal", **SHORT),
    "laplace, last layer": partial(laplace.fit, subset="last_layer", **SHORT),
    "swag": partial(swag.fit, num_epochs=16, batch_size=6, seed=0),
    "variational": partial(variational.fit, **SHORT),
    "variational, local": partial(variational.fit, estimator="local", **SHORT),
    "variational, flipout": partial(variational.fit, estimator="flipout", **SHORT),
    "variational, full rank": partial(variational.fit, guide=variational.full_rank, **SHORT),
    "hmc": partial(hmc.fit, num_chains=1, max_tree_depth=3, **CHAIN),
    "hmc, chains together": partial(hmc.fit, num_chains=2, max_tree_depth=3, **CHAIN),
    "sgmcmc": partial(sgmcmc.fit, batch_size=6, **CHAIN),
}
KRONECKER = ("laplace, kronecker", "laplace, last layer")


def problem(num_rows: int = 14, num_columns: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and the scales, (N, D), of a line in two inputs."""
    torch.manual_seed(0)
    x = torch.randn(num_rows, 2, dtype=torch.float64)
    scale = torch.empty(num_rows, num_columns, dtype=torch.float64).uniform_(0.2, 1.5)
    y = x @ torch.randn(2, num_columns, dtype=torch.float64) + 0.5 + scale * torch.randn_like(scale)
    return x, y, scale


def linear_model(likelihood: likelihoods.Likelihood = GIVEN) -> BayesianNetwork:
    """A line under N(0, 1) weights."""
    return BayesianNetwork(nn.Sequential(nn.Linear(2, 1)).double(), priors.Normal(), likelihood, seed=0)


def small_model(likelihood: likelihoods.Likelihood = GIVEN, num_columns: int = 2) -> BayesianNetwork:
    """A network with dropout."""
    net = networks.mlp(2, (5,), num_columns, dropout=0.2).double()
    return BayesianNetwork(net, priors.Normal(), likelihood, seed=0)


def exact(x: Tensor, y: Tensor, scale: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of the line at new inputs, (N,), and log p(y): Bishop 2006, eqs. (3.50) to (3.58)."""
    design, at = (torch.cat([part, torch.ones_like(part[:, :1])], dim=1) for part in (x, new))
    prior_predictive = design @ design.T + scale.flatten().square().diag()
    gain = at @ design.T @ prior_predictive.inverse()
    variance = (at @ at.T - gain @ design @ at.T).diagonal()
    evidence = MultivariateNormal(torch.zeros_like(y[:, 0]), prior_predictive).log_prob(y[:, 0])
    return gain @ y[:, 0], variance, evidence


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
class TestAgainstTheClosedForm:
    def test_laplace_is_exact_for_a_line_with_known_noise_of_each_row(self) -> None:
        x, y, scale = problem()
        new, new_scale = torch.randn(5, 2, dtype=torch.float64), torch.linspace(0.1, 2, 5, dtype=torch.float64)
        mean, variance, evidence = exact(x, y, scale, new)
        data = bq.Dataset(x, y, scale=scale)
        found = laplace.fit(linear_model(), data, structure="full", num_epochs=500, learning_rate=0.05, seed=0)
        predictive = found.predict(bq.Given(new, new_scale))
        torch.testing.assert_close(predictive.mean[:, 0], mean, atol=1e-5, rtol=0)
        torch.testing.assert_close(predictive.epistemic[:, 0], variance)
        torch.testing.assert_close(predictive.aleatoric[:, 0], new_scale.square())
        assert found.log_marginal_likelihood == pytest.approx(float(evidence), abs=1e-6)
        targets = torch.randn(5, 1, dtype=torch.float64)
        law = torch.distributions.Normal(mean, (variance + new_scale.square()).sqrt())
        torch.testing.assert_close(predictive.log_prob(targets), law.log_prob(targets[:, 0]), atol=1e-5, rtol=0)

    def test_hmc_draws_from_the_exact_posterior(self) -> None:
        x, y, scale = problem(6)
        new = torch.randn(4, 2, dtype=torch.float64)
        mean, variance, _ = exact(x, y, scale, new)
        found = hmc.fit(
            linear_model(), bq.Dataset(x, y, scale=scale), num_samples=120, num_warmup=80, num_chains=2, seed=0
        )
        predictive = found.predict(bq.Given(new, torch.ones(4)))
        error = (variance / 120).sqrt()  # of 240 draws, at least half of whose number is effective
        assert ((predictive.mean[:, 0] - mean).abs() < 4 * error).all()
        assert ((predictive.epistemic[:, 0] / variance - 1).abs() < 4 * (2 / 120) ** 0.5).all()

    def test_the_log_joint_is_that_of_the_pyro_program_and_of_columns(self) -> None:
        x, y, scale = problem(num_columns=2)
        model = small_model()
        theta = model.initial()
        found = model.log_joint(theta, bq.Given(x, scale), y) - model.log_prior(theta)
        f = model.net(x)
        expected = torch.distributions.Normal(f, scale).log_prob(y).sum()
        torch.testing.assert_close(found, expected)

    def test_student_targets_have_the_scales_of_their_rows(self) -> None:
        x, y, scale = problem()
        model = linear_model(likelihoods.StudentT(df=5.0, scale="given"))
        f = model.forward(model.initial(), bq.Given(x, scale))
        law = torch.distributions.StudentT(5.0, model.net(x), scale)
        torch.testing.assert_close(model.likelihood.log_prob(f, y), law.log_prob(y)[:, 0])
        found = laplace.fit(model, bq.Dataset(x, y, scale=scale), structure="full", **SHORT)
        predictive = found.predict(bq.Given(x, 3 * scale), num_samples=3)
        torch.testing.assert_close(predictive.aleatoric, 9 * scale.square() * 5 / 3)


@cache
def fitted(method: str) -> Any:
    """Fitted once for all that is asked of it."""
    x, y, scale = problem(num_columns=2)
    fit: Any = METHODS[method]
    return fit(small_model(), bq.Dataset(x, y, scale=scale))


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning", "ignore::UserWarning")
@pytest.mark.parametrize("method", METHODS)
class TestInEveryMethod:
    def test_the_posterior_is_that_of_weights_of_one_over_the_variance(self, method: str) -> None:
        x, y, scale = problem(num_columns=2)
        fit: Any = METHODS[method]
        found = fitted(method)
        weighted = fit(small_model(ONE), bq.Dataset(x, y, weight=scale**-2))
        draws = {"num_samples": 3, "seed": 1}
        new_scale = torch.full((14, 2), 0.3)
        predictive, expected = found.predict(bq.Given(x, new_scale), **draws), weighted.predict(x, **draws)
        torch.testing.assert_close(predictive.mean, expected.mean, rtol=1e-6, atol=1e-6)
        if method not in KRONECKER:  # where weights act in both factors of a layer, precisions in one
            torch.testing.assert_close(predictive.epistemic, expected.epistemic, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(predictive.aleatoric, torch.full_like(y, 0.09))

    def test_a_saved_posterior_predicts_the_same_and_asks_for_the_scales(self, method: str, tmp_path: Any) -> None:
        x, _, scale = problem(num_columns=2)
        found = fitted(method)
        found.save(tmp_path / "posterior.bq")
        again = bq.load(tmp_path / "posterior.bq")
        at = bq.Given(x, scale[:, 0])
        assert torch.equal(again.predict(at, num_samples=2, seed=0).mean, found.predict(at, num_samples=2, seed=0).mean)
        with pytest.raises(ValueError, match=r"each row's own noise scale.*predict at bayesuq.Given\(x, scale\)"):
            again.predict(x)


class Rows(Dataset[Any]):
    """Rows as a user's own data set gives them."""

    def __init__(self, x: Tensor, y: Tensor, scale: Tensor) -> None:
        self.x, self.y, self.scale = x, y, scale

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, place: int) -> tuple[bq.Given, Tensor]:
        return bq.Given(self.x[place], self.scale[place]), self.y[place]


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
class TestData:
    def test_loaders_bring_scales_as_a_dataset_does(self) -> None:
        x, y, scale = problem()
        loader = DataLoader(Rows(x, y, scale), batch_size=14)
        options: dict[str, Any] = {"num_epochs": 3, "seed": 0}
        found = laplace.fit(linear_model(), loader, **options)
        expected = laplace.fit(linear_model(), bq.Dataset(x, y, scale=scale), **options)
        torch.testing.assert_close(found.values, expected.values)
        by_loader, at_once = found.predict(loader), expected.predict(bq.Given(x, scale))
        torch.testing.assert_close(by_loader.mean, at_once.mean)
        torch.testing.assert_close(by_loader.aleatoric, scale.square())

    def test_rows_and_parts_of_a_data_set_keep_their_scales(self) -> None:
        x, y, scale = problem()
        data = bq.Dataset(x, y, scale=scale[:, 0])
        chosen = data.rows([3, 1]).concatenate(data.rows([0]))
        assert torch.equal(chosen.x.scale, scale[[3, 1, 0], 0])
        assert torch.equal(chosen.x.x, x[[3, 1, 0]])

    def test_standard_units_hold_for_scales_too(self) -> None:
        x, y, scale = problem(num_columns=2)
        data = bq.Dataset(10 * x + 3, 100 * y - 7, scale=100 * scale)
        units = bq.Standardizer.fit(data)
        found = laplace.fit(small_model(), units.transform(data), **SHORT)
        predictive = units.inverse(found.predict(units.transform(data).x))
        torch.testing.assert_close(predictive.aleatoric, (100 * scale).square())

    def test_missing_wrong_and_unwanted_scales_are_refused_by_name(self) -> None:
        x, y, scale = problem()
        data = bq.Dataset(x, y, scale=scale)
        with pytest.raises(ValueError, match=r"own noise scale .*Fit to bayesuq.Dataset\(x, y, scale=scale\)"):
            map_estimate.fit(linear_model(), bq.Dataset(x, y))
        with pytest.raises(ValueError, match=r"does not take. Give the model likelihoods.Normal\(scale='given'\)"):
            map_estimate.fit(linear_model(ONE), data)
        with pytest.raises(ValueError, match=r"`scale` must be positive; 1 of 14 rows .*row 2"):
            bq.Dataset(x, y, scale=torch.ones(14).index_fill(0, torch.tensor([2]), 0.0))
        with pytest.raises(ValueError, match=r"`scale` must have shape \(N,\) or \(N, D\)"):
            map_estimate.fit(linear_model(), bq.Dataset(x, y, scale=scale.expand(14, 3)))
        with pytest.raises(ValueError, match="same N rows"):
            bq.Dataset(x, y, scale=scale[:-1])
        with pytest.raises(ValueError, match="leave `per_column` out"):
            likelihoods.Normal(scale="given", per_column=True)

    def test_processes_name_their_own_way_of_taking_scales(self) -> None:
        x, y, scale = problem()
        with pytest.raises(ValueError, match=r"gp.fit\(model, data, noise_scale=scale\)"):
            bq.models.gp.GaussianProcess(likelihood=GIVEN)
        with pytest.raises(TypeError, match=r"`gp.fit` takes them as `noise_scale`"):
            gp.fit(bq.models.gp.GaussianProcess(), bq.Dataset(x, y, scale=scale))
