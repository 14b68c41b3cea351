"""Gradients of predictions in their inputs, for every posterior: against finite differences, in float64."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gpytorch
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.evaluation.streaming.states import top_label_reliability
from bayesuq.inference import (
    confidence,
    dropout,
    ensemble,
    gp,
    hmc,
    laplace,
    local_temperature,
    map_estimate,
    quantile_calibration,
    swag,
    temperature,
    variational,
)
from bayesuq.inference.adoption import adopt
from bayesuq.inference.variational.guides import autoguide
from bayesuq.loaders import Loader
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp import combined, kernels
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.posterior import Posterior
from tests.inference.examples import built, noise
from tests.zoo import architectures, modules

X = noise(0, 14, 2)
REAL = Dataset(X, X.sin().sum(dim=1) + 0.1 * noise(1, 14))
LABELS = Dataset(X, (X.sum(dim=1) > 0).long() + (X[:, 0] > 1).long())
TWO = Dataset(X, torch.stack([REAL.y[:, 0], X[:, 0] + 0.1 * noise(2, 14)], dim=1))
NEW = X[:5] + 0.1
SHORT: dict[str, Any] = {"num_epochs": 2, "seed": 0}
STEP = 1e-5
SHORT_FITS = ("ignore::UserWarning", "error:Converting a tensor with requires_grad")  # which have not converged


@pytest.fixture(autouse=True)
def _every_warning() -> Iterator[None]:
    """torch tells of some things once in a process."""
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(False)


def network(num_outputs: int, *, drop: float = 0.0) -> nn.Module:
    return built(
        lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Dropout(drop), nn.Linear(5, num_outputs)).double()
    )


def model(likelihood: Likelihood, num_outputs: int, *, drop: float = 0.0) -> BayesianNetwork:
    return BayesianNetwork(network(num_outputs, drop=drop), priors.Normal(), likelihood)


def real() -> BayesianNetwork:
    return model(likelihoods.Normal(scale=0.5), 1)


def labels() -> BayesianNetwork:
    return model(likelihoods.Categorical(), 3)


def process_of_labels() -> GaussianProcess:
    return GaussianProcess(likelihood=likelihoods.Categorical())


def program(x: Tensor, y: Tensor | None = None) -> Tensor:
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal((x * w).sum(dim=-1).sin(), 0.5), obs=y)


class Sparse(gpytorch.models.ApproximateGP):
    """A sparse process of GPyTorch's that has not been trained."""

    def __init__(self) -> None:
        law = gpytorch.variational.CholeskyVariationalDistribution(4)
        strategy = gpytorch.variational.VariationalStrategy(self, X[:4].clone(), law)
        super().__init__(strategy)
        self.mean_module, self.covar_module = gpytorch.means.ConstantMean(), gpytorch.kernels.RBFKernel()
        self.double()

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


class Case(NamedTuple):
    """What is fitted to which data, and what rounding leaves of a finite difference."""

    fit: Callable[[], Posterior]
    data: Dataset
    tolerance: float = 1e-5
    step: float = STEP


def of_labels(fit: Callable[..., Posterior], **options: Any) -> Case:
    return Case(lambda: fit(labels(), LABELS, **options), LABELS)


def mean_field() -> Posterior:
    return variational.fit(labels(), LABELS, **SHORT)


CASES = {
    "map": Case(lambda: map_estimate.fit(real(), REAL, **SHORT), REAL),
    "heteroscedastic": Case(
        lambda: map_estimate.fit(model(likelihoods.HeteroscedasticNormal(), 2), REAL, **SHORT), REAL
    ),
    "student t": Case(lambda: map_estimate.fit(model(likelihoods.StudentT(df=4.0, scale=0.5), 1), REAL, **SHORT), REAL),
    "noisy logits": Case(
        lambda: variational.fit(model(likelihoods.HeteroscedasticCategorical(), 6), LABELS, **SHORT), LABELS
    ),
    "variational": Case(lambda: variational.fit(real(), REAL, **SHORT), REAL),
    "variational, labels": Case(mean_field, LABELS),
    "guide": of_labels(variational.fit, guide=autoguide(AutoNormal), **SHORT),
    "ensemble": of_labels(ensemble.fit, num_members=2, **SHORT),
    "dropout": Case(lambda: dropout.fit(model(likelihoods.Categorical(), 3, drop=0.2), LABELS, **SHORT), LABELS),
    "swag": of_labels(swag.fit, num_epochs=8, seed=0),
    "hmc": Case(
        lambda: hmc.fit(
            real(), REAL, num_samples=4, num_warmup=4, num_chains=1, max_tree_depth=3, progress=False, seed=0
        ),
        REAL,
    ),
    "laplace": Case(lambda: laplace.fit(real(), REAL, structure="full", **SHORT), REAL),
    "laplace, last layer": Case(lambda: laplace.fit(real(), REAL, subset="last_layer", **SHORT), REAL),
    "laplace, labels": of_labels(laplace.fit, structure="kronecker", subset="all", **SHORT),
    "laplace, last layer of labels": of_labels(laplace.fit, subset="last_layer", **SHORT),
    "laplace, probit": Case(lambda: laplace.fit(labels(), LABELS, subset="all", **SHORT).probit, LABELS),
    "laplace, sampled": Case(lambda: laplace.fit(labels(), LABELS, subset="all", **SHORT).sampled, LABELS),
    "adopted": Case(lambda: adopt(network(3), likelihoods.Categorical()), LABELS),
    "adopted, laplace": Case(lambda: laplace.fit(adopt(network(3), likelihoods.Categorical()), LABELS), LABELS),
    # which computes in float32
    "program": Case(lambda: variational.fit(program, REAL, guide=AutoNormal, **SHORT), REAL, 2e-2, 1e-2),
    "program, chains": Case(
        lambda: hmc.fit(
            program, REAL, num_samples=4, num_warmup=4, num_chains=1, max_tree_depth=3, progress=False, seed=0
        ),
        REAL,
        2e-2,
        1e-2,
    ),
    "gpytorch": Case(
        lambda: adopt(Sparse(), gpytorch.likelihoods.BernoulliLikelihood()), Dataset(X, LABELS.y.clamp(max=1))
    ),
    "gp": Case(lambda: gp.fit(GaussianProcess(), REAL, num_restarts=1, seed=0), REAL),
    "gp, coregionalised": Case(
        lambda: gp.fit(GaussianProcess(combined.Coregionalised(kernels.RBF(), rank=1)), TWO, num_restarts=1, seed=0),
        TWO,
    ),
    "gp, sparse": Case(
        lambda: gp.fit(
            GaussianProcess(likelihood=likelihoods.Categorical()),
            LABELS,
            approximation="sparse",
            num_inducing=5,
            **SHORT,
        ),
        LABELS,
    ),
    "gp, dirichlet": Case(
        lambda: gp.fit(
            GaussianProcess(likelihood=likelihoods.Categorical()), LABELS, approximation="dirichlet", seed=0
        ),
        LABELS,
    ),
    "temperature": Case(lambda: temperature.fit(mean_field(), LABELS, num_samples=4, seed=0), LABELS),
    "temperature of laplace": Case(
        lambda: temperature.fit(laplace.fit(labels(), LABELS, subset="all", **SHORT), LABELS, num_samples=4, seed=0),
        LABELS,
    ),
    "local temperature": Case(
        lambda: local_temperature.fit(mean_field(), LABELS, num_epochs=2, num_samples=4, seed=0), LABELS, 2e-2, 1e-2
    ),
    "quantile calibration": Case(
        lambda: quantile_calibration.fit(
            variational.fit(real(), REAL, **SHORT), REAL, num_pieces=4, num_samples=4, seed=0
        ),
        REAL,
    ),
    "confidence": Case(
        lambda: confidence.fit(
            map_estimate.fit(labels(), LABELS, **SHORT),
            LABELS,
            hidden=(3,),
            num_epochs=1,
            num_fine_tuning_epochs=0,
            seed=0,
        ),
        LABELS,
    ),
}


def quantities(posterior: Posterior, x: Tensor, y: Tensor | None, **options: Any) -> dict[str, Tensor]:
    predictive = posterior.predict(x, num_samples=4, seed=0, **options)
    found = {name: getattr(predictive, name) for name in ("mean", "total", "aleatoric", "epistemic")}
    return found if y is None else {**found, "log_prob": predictive.log_prob(y)}


def assert_slopes(
    posterior: Posterior, x: Tensor, y: Tensor | None = None, *, tolerance: float = 1e-5, step: float = STEP
) -> None:
    """Along a direction, of a sum of every quantity's entries that no symmetry takes away."""
    at = x.clone().requires_grad_()
    direction = noise(9, *x.shape)
    above, below = (quantities(posterior, x + sign * step * direction, y) for sign in (1, -1))
    plain = quantities(posterior, x, y)
    for name, value in quantities(posterior, at, y, differentiable=True).items():
        assert not plain[name].requires_grad, name
        torch.testing.assert_close(value.detach(), plain[name], rtol=1e-5, atol=1e-8, msg=name)
        weight = torch.linspace(1, 2, value.numel(), dtype=torch.float64).view(value.shape)
        expected = float(((above[name] - below[name]) * weight).sum()) / (2 * step)
        if not value.requires_grad:  # a noise that is the same everywhere
            assert expected == 0, name
            continue
        (slope,) = torch.autograd.grad((value * weight).sum(), at, retain_graph=True, materialize_grads=True)
        assert float((slope * direction).sum()) == pytest.approx(expected, rel=tolerance, abs=1e-3 * tolerance), name


@pytest.mark.filterwarnings(*SHORT_FITS)
@pytest.mark.parametrize("name", CASES)
def test_what_is_predicted_has_the_slope_of_its_finite_differences(name: str) -> None:
    case = CASES[name]
    assert_slopes(case.fit(), NEW, case.data.y[:5], tolerance=case.tolerance, step=case.step)


KINDS = {**architectures.ARCHITECTURES, **modules.STATEFUL}


@pytest.mark.filterwarnings(*SHORT_FITS, "ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["transformer", "lstm", "group norm", "spectral norm", "batch norm", "experts"])
def test_networks_of_every_kind_have_slopes(name: str) -> None:
    """A Jacobian has one more derivative than a network, which fused kernels do not have, or have wrong."""
    kind = KINDS[name]
    data = Dataset(kind.x(6).double(), noise(3, 6))
    fitted = laplace.fit(
        adopt(kind.net().double(), likelihoods.Normal(scale=0.5), random="all"), data, structure="full"
    )
    for posterior in (fitted, fitted.sampled):
        assert_slopes(posterior, kind.x(4).double())


class Maps(nn.Module):
    """A convolutional network with both norms, from (N, 1, 4, 4) to two classes a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.groups, self.layers = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
            nn.LayerNorm([4, 4, 4]),
        )
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(self.groups(self.first(x)).tanh()).tanh())


@pytest.mark.filterwarnings(*SHORT_FITS)
@pytest.mark.parametrize("random", ["all", "last_layer"])
def test_large_maps_have_slopes(random: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesuq.inference.laplace.linearisation.EXACT_OUTPUTS", 16)
    monkeypatch.setattr("bayesuq.inference.laplace.posterior.VARIANCE_DRAWS", 4)
    x = noise(4, 3, 1, 4, 4)
    data = Dataset(x, (x[:, 0] > 0).long())
    net = built(Maps).double()
    fitted = laplace.fit(adopt(net, likelihoods.Categorical(), random=random), data, structure="diagonal")
    for posterior in (fitted, fitted.probit):
        assert_slopes(posterior, x)


def test_a_process_of_many_rows_has_the_slopes_of_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = gp.fit(GaussianProcess(), REAL, num_restarts=1, seed=0)
    slopes = []
    for limit in (1000, 3):  # by a factor, and by conjugate gradients to 1e-4
        monkeypatch.setattr("bayesuq.inference.gp.marginal_likelihood.CHOLESKY_LIMIT", limit)
        again, x = posterior.to("cpu"), NEW.clone().requires_grad_()
        predictive = again.predict(x, differentiable=True)
        slopes.append(torch.autograd.grad((predictive.mean + predictive.total).sum(), x)[0])
    torch.testing.assert_close(slopes[1], slopes[0], rtol=1e-2, atol=1e-2)
    assert not torch.equal(slopes[1], slopes[0])


@pytest.mark.filterwarnings(*SHORT_FITS)
def test_parts_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of whole numbers has no gradient; chunks change none; no weight has one."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.last = nn.Embedding(4, 2), nn.Linear(4, 3)

        def forward(self, word: Tensor, x: Tensor) -> Tensor:
            return self.last(torch.cat([self.table(word), x], dim=1))

    net = built(Parts).double()
    posterior = laplace.fit(adopt(net, likelihoods.Categorical()), Dataset((torch.arange(14) % 4, X), LABELS.y))
    slopes = []
    for budget in (2**26, 30):
        monkeypatch.setattr("bayesuq.inference.posteriors.prediction.ACTIVATION_BUDGET", budget)
        x = X.clone().requires_grad_()
        predictive = posterior.predict((torch.arange(14) % 4, x), num_samples=3, seed=0, differentiable=True)
        predictive.total.sum().backward()
        slopes.append(x.grad)
    torch.testing.assert_close(slopes[0], slopes[1])
    assert all(parameter.grad is None for one in (net, posterior.model.net) for parameter in one.parameters())


@pytest.mark.filterwarnings(*SHORT_FITS)
def test_what_is_measured_keeps_no_graph_and_takes_none_away() -> None:
    x, adopted = X.clone().requires_grad_(), adopt(network(3), likelihoods.Categorical())
    predictive = adopted.predict(x, differentiable=True)
    assert evaluate(predictive, LABELS.y)["accuracy"].value > 0
    state = top_label_reliability().update(predictive, LABELS.y)
    assert not any(value.requires_grad for value in vars(state.summary).values())
    assert predictive.total.requires_grad
    calibrated = quantile_calibration.fit(map_estimate.fit(real(), REAL, **SHORT), REAL, num_pieces=3, seed=0)
    levels = calibrated.predict(x, seed=0, differentiable=True)
    assert evaluate(levels, REAL.y)["crps"].value > 0
    assert levels.total.requires_grad


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (NEW, ValueError, "requires_grad_"),
        (NEW.numpy(), ValueError, "requires_grad_"),
        (Loader(torch.utils.data.DataLoader(NEW)), TypeError, "tensors"),
    ],
)
def test_inputs_without_gradients_are_refused(x: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        adopt(network(3), likelihoods.Categorical()).predict(x, differentiable=True)
