"""BoTorch's acquisition functions on our posteriors, against what they are by definition."""

from importlib import import_module
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayesuq.bridges import as_botorch
from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, gp, laplace, map_estimate, variational
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp import RBF, GaussianProcess, Scale
from bayesuq.posterior import Posterior
from tests.inference.examples import SHORT_FIT, built, noise

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore::UserWarning:botorch", "ignore:.*known numerical issues")

X = noise(0, 12, 2).sigmoid()
ONE = Dataset(X, -(X - 0.3).square().sum(dim=1) / 0.1)
TWO = Dataset(X, torch.stack([ONE.y[:, 0], X[:, 0] + 0.1 * noise(1, 12)], dim=1))
NEW = noise(2, 3, 4, 2).sigmoid()  # batches of q = 4 points
BEST = float(ONE.y.max())


@pytest.fixture(scope="module")
def botorch() -> ModuleType:
    """Loaded by the process that runs these tests, and not by each that collects them."""
    for part in ("acquisition.objective", "exceptions", "optim"):
        import_module(f"botorch.{part}")
    return import_module("botorch")


def network(num_outputs: int = 1) -> BayesianNetwork:
    net = built(lambda: nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, num_outputs)).double())
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.3))


def fitted(name: str, data: Dataset = ONE) -> Posterior:
    if name == "gp":
        return gp.fit(GaussianProcess(Scale(RBF())), data, seed=0, num_restarts=1)
    method: Any = {"laplace": laplace, "dropout": dropout, "ensemble": ensemble, "variational": variational}[name]
    options: dict[str, Any] = {"num_members": 3} if name == "ensemble" else {}
    return method.fit(network(data.y.shape[1]), data, num_epochs=40, seed=0, **options)


def normal_pdf(z: Tensor) -> Tensor:
    return (-z.square() / 2).exp() / (2 * torch.pi) ** 0.5


@pytest.mark.parametrize("name", ["gp", "laplace"])
def test_expected_improvement_is_its_closed_form_where_functions_are_normal(name: str, botorch: Any) -> None:
    posterior = fitted(name)
    predictive = posterior.predict(NEW[:, 0])
    mean, sd = predictive.mean[:, 0].double(), predictive.epistemic[:, 0].sqrt()
    z = (mean - BEST) / sd
    expected = sd * (normal_pdf(z) + z * torch.special.ndtr(z))
    found = botorch.acquisition.ExpectedImprovement(as_botorch(posterior), best_f=BEST)(NEW[:, :1])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["gp", "laplace"])
@pytest.mark.parametrize("data", [ONE, TWO])
def test_the_joint_law_of_a_batch_is_that_of_the_functions(
    name: str, data: Dataset, monkeypatch: pytest.MonkeyPatch, botorch: Any
) -> None:
    posterior, columns = fitted(name, data), data.y.shape[1]
    monkeypatch.setattr("bayesuq.bridges.botorch.MOST_TOGETHER", 8 * columns)  # two batches, and then the third
    law = as_botorch(posterior, num_outputs=columns).posterior(NEW)
    for batch, points in enumerate(NEW):
        own = posterior.functions(points)
        assert own.covariance is not None
        matrix = law.distribution.covariance_matrix[batch]
        torch.testing.assert_close(law.mean[batch], own.mean.double())
        expected = own.covariance.reshape(matrix.shape)
        torch.testing.assert_close(matrix, expected, rtol=1e-6, atol=1e-8 * float(expected.abs().max()))
    if columns == 2:
        weights = torch.tensor([0.5, 2.0], dtype=torch.float64)
        summed = as_botorch(posterior, num_outputs=2).posterior(
            NEW, posterior_transform=botorch.acquisition.objective.ScalarizedPosteriorTransform(weights)
        )
        torch.testing.assert_close(summed.mean[..., 0], law.mean @ weights)
        second = as_botorch(posterior, num_outputs=2).posterior(NEW, output_indices=[1])
        torch.testing.assert_close(second.variance[..., 0], law.variance[..., 1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["ensemble", "dropout", "variational"])
def test_expected_improvement_of_a_batch_is_the_mean_over_draws_of_functions(name: str, botorch: Any) -> None:
    posterior = fitted(name)
    found = botorch.acquisition.qExpectedImprovement(as_botorch(posterior, num_samples=8, seed=3), best_f=BEST)(
        NEW
    )  # of 512 = 64 x 8 draws
    draws = posterior.functions(NEW.flatten(0, 1), num_samples=8, seed=3).draws[..., 0].double().unflatten(1, (3, 4))
    shares = 1 if name != "ensemble" else torch.tensor([171, 171, 170], dtype=torch.float64)[:, None] * 3 / 512
    torch.testing.assert_close(found, ((draws.amax(dim=2) - BEST).clamp(min=0) * shares).mean(dim=0))


@pytest.mark.filterwarnings("ignore:Optimization failed")  # at the optimum itself, where rounding decides
@pytest.mark.parametrize("name", ["gp", "laplace", "dropout", "ensemble", "variational"])
def test_an_optimiser_follows_the_gradient_to_where_a_grid_is_best(name: str, botorch: Any) -> None:
    model = as_botorch(fitted(name), num_samples=16)
    kinds = botorch.acquisition
    kind = kinds.LogExpectedImprovement if name in ("gp", "laplace") else kinds.qExpectedImprovement
    improvement = kind(model, best_f=BEST if name in ("gp", "laplace") else -1.0)
    bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # From each start by itself: with SciPy 1.18, BoTorch 0.18 takes the starts of a batch for one problem, whose
        # step is that of the steepest start; log improvements of -1e7 there take the others to a corner.
        point, value = botorch.optim.optimize_acqf(
            improvement, bounds, q=1, num_restarts=2, raw_samples=32, options={"batch_limit": 1}
        )
    side = torch.linspace(0, 1, 11, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).unsqueeze(1)
    with torch.no_grad():
        assert value >= improvement(grid).max() - 1e-9
    assert ((point >= 0) & (point <= 1)).all()


def test_an_exact_process_is_conditioned_on_further_rows_and_nothing_else_is(botorch: Any) -> None:
    posterior = fitted("gp")
    further = as_botorch(posterior).condition_on_observations(NEW[0], torch.zeros(4, 1, dtype=torch.float64))
    assert (further.posterior(NEW[0]).variance < as_botorch(posterior).posterior(NEW[0]).variance).all()
    network_model = as_botorch(fitted("ensemble"))
    for call in (
        lambda: network_model.condition_on_observations(NEW[0], torch.zeros(4, 1)),
        lambda: network_model.fantasize(NEW[0], None),
        lambda: network_model.posterior(NEW[0], observation_noise=True),
    ):
        with pytest.raises(botorch.exceptions.UnsupportedError, match=r"fit|acquisition function|predict"):
            call()


def test_wrong_calls_say_what_is_right() -> None:
    with pytest.raises(TypeError, match="must be a fitted one"):
        as_botorch(network())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"num_outputs=2\)"):
        as_botorch(fitted("ensemble", TWO)).posterior(NEW)
    alone = as_botorch(map_estimate.fit(network(), ONE, num_epochs=2, seed=0))
    with pytest.warns(UserWarning, match="is one function, which is sure of everything"):
        alone.posterior(NEW)


def test_botorchs_settings_leave_the_solver_of_large_processes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """BoTorch turns conjugate gradients off for all of GPyTorch as it is imported, which here decides memory."""
    posterior = fitted("gp")
    by_factor = posterior.to("cpu").predict(NEW[0]).mean
    monkeypatch.setattr("bayesuq.inference.gp.marginal_likelihood.CHOLESKY_LIMIT", 3)
    by_gradients = posterior.to("cpu").predict(NEW[0]).mean
    torch.testing.assert_close(by_gradients, by_factor, rtol=1e-2, atol=1e-2)
    assert not torch.equal(by_gradients, by_factor)
