"""One joint density in two readings, both held to a third that is written out here."""

import copy
import math
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.ops.stats import effective_sample_size
from torch import Tensor, nn
from torch.nn import functional

from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.likelihoods.noisy_logits import base_noise
from tests.models import formulas

N = 5  # rows of a batch
CLASS_WEIGHTS = (0.2, 1.5, 3.1)
Formula = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _own_parameter_store() -> Iterator[None]:
    with pyro.get_param_store().scope():
        yield


def gaussian(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def labels(num_classes: int, *shape: int) -> Tensor:
    return torch.arange(math.prod(shape)).mul(7).remainder(num_classes).reshape(shape)


def perceptron(outputs: int) -> nn.Module:
    return networks.mlp(3, (4,), outputs, dropout=0.5, activation="tanh").double()


def perceptron_outputs(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    hidden = torch.tanh(x @ theta["1.weight"].T + theta["1.bias"])
    return hidden @ theta["4.weight"].T + theta["4.bias"]


def per_pixel(outputs: int) -> nn.Module:
    return nn.Conv2d(2, outputs, 3, padding=1).double()


def per_pixel_outputs(theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return functional.conv2d(x, theta["weight"], theta["bias"], padding=1)


def random_theta(model: BayesianNetwork) -> dict[str, Tensor]:
    """A value for every site, away from where fits start; positive where it must be."""
    drawn = {name: 0.7 * torch.randn_like(value) for name, value in model.initial().items()}
    return {name: value.abs() if name.startswith("likelihood") else value for name, value in drawn.items()}


def at(model: BayesianNetwork, theta: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """The Pyro program with its sites conditioned on theta and its learned values put to theta."""
    conditioned = poutine.condition(model, data={name: theta[name] for name in model.laws})
    return poutine.substitute(conditioned, data={name: theta[name] for name in model.points})


def traced(program: Callable[..., Tensor], *data: object) -> Tensor:
    """The program's own log density."""
    return poutine.trace(program).get_trace(*data).log_prob_sum()


def assert_equal(found: Tensor, expected: Tensor, rtol: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-12)


@dataclass(frozen=True)
class Case:
    """A likelihood, the log p of each target by formula, and the log prior of what it infers, by formula."""

    likelihood: likelihoods.Likelihood
    outputs: int
    terms: Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
    num_classes: int | None = None
    pixels: bool = False
    log_prior: Mapping[str, Formula] = field(default_factory=dict)

    def model(self, prior: priors.Prior, random: str = "all") -> BayesianNetwork:
        net = per_pixel(self.outputs) if self.pixels else perceptron(self.outputs)
        return BayesianNetwork(net, prior, self.likelihood, random=random)

    def data(self) -> tuple[Tensor, Tensor]:
        x = gaussian(N, 2, 2, 3) if self.pixels else gaussian(N, 3)
        if self.num_classes is not None:
            return x, labels(self.num_classes, N, *x.shape[2:])
        if isinstance(self.likelihood, likelihoods.Poisson):
            return x, labels(5, N, self.outputs).double()
        columns = self.outputs // 2 if isinstance(self.likelihood, likelihoods.HeteroscedasticNormal) else self.outputs
        return x, gaussian(N, columns)

    def f(self, theta: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return per_pixel_outputs(theta, x) if self.pixels else perceptron_outputs(theta, x)


def class_weighted(terms: Tensor, y: Tensor, weights: tuple[float, ...]) -> Tensor:
    return terms * torch.tensor(weights, dtype=torch.float64)[y]


def void_is_nothing(f: Tensor, y: Tensor, _theta: object, void: int, weights: tuple[float, ...] | None) -> Tensor:
    kept = torch.where(y == void, 0, y)
    terms = formulas.categorical(f, kept)
    terms = terms if weights is None else class_weighted(terms, kept, weights)
    return torch.where(y == void, 0.0, terms)


def noisy_categorical(f: Tensor, y: Tensor, num_noise_draws: int) -> Tensor:
    mean, scale = f[:, : f.shape[1] // 2], f[:, f.shape[1] // 2 :].exp().sqrt()
    shape = (1, -1, *[1] * (f.ndim - 2))
    probs = [
        formulas.categorical(mean + scale * torch.tensor(eps).reshape(shape), y).exp()
        for eps in base_noise(num_noise_draws, mean.shape[1])
    ]
    return torch.log(sum(probs) / num_noise_draws)


def heteroscedastic(f: Tensor, y: Tensor, floor: float) -> Tensor:
    columns = f.shape[1] // 2
    return formulas.normal(y, f[:, :columns], (f[:, columns:].exp() + floor**2).sqrt())


def inferred(prior: priors.Prior, log_prior: Formula) -> Case:
    return Case(
        likelihoods.Normal(scale=prior),
        2,
        lambda f, y, theta: formulas.normal(y, f, theta["likelihood.scale"]),
        log_prior={"likelihood.scale": log_prior},
    )


LIKELIHOODS = {
    "categorical": Case(likelihoods.Categorical(), 3, lambda f, y, _: formulas.categorical(f, y), 3),
    "categorical, class weights": Case(
        likelihoods.Categorical(CLASS_WEIGHTS),
        3,
        lambda f, y, _: class_weighted(formulas.categorical(f, y), y, CLASS_WEIGHTS),
        3,
    ),
    "categorical, ignored label": Case(
        likelihoods.Categorical(ignore_index=2), 3, lambda f, y, _: void_is_nothing(f, y, _, 2, None), 3
    ),
    "categorical pixels": Case(
        likelihoods.Categorical(), 3, lambda f, y, _: formulas.categorical(f, y), 3, pixels=True
    ),
    "categorical pixels, class weights, ignored label": Case(
        likelihoods.Categorical(CLASS_WEIGHTS, ignore_index=3),
        3,
        lambda f, y, _: void_is_nothing(f, y, _, 3, CLASS_WEIGHTS),
        4,
        pixels=True,
    ),
    "noisy logits": Case(likelihoods.HeteroscedasticCategorical(8), 4, lambda f, y, _: noisy_categorical(f, y, 8), 2),
    "noisy logits of pixels, class weights": Case(
        likelihoods.HeteroscedasticCategorical(8, (0.3, 1.7)),
        4,
        lambda f, y, _: class_weighted(noisy_categorical(f, y, 8), y, (0.3, 1.7)),
        2,
        pixels=True,
    ),
    "bernoulli": Case(likelihoods.Bernoulli(), 1, lambda f, y, _: formulas.bernoulli(f[:, 0], y), 2),
    "bernoulli, class weights": Case(
        likelihoods.Bernoulli((0.3, 1.7)),
        1,
        lambda f, y, _: class_weighted(formulas.bernoulli(f[:, 0], y), y, (0.3, 1.7)),
        2,
    ),
    "bernoulli pixels": Case(
        likelihoods.Bernoulli(), 1, lambda f, y, _: formulas.bernoulli(f[:, 0], y), 2, pixels=True
    ),
    "bernoulli pixels, class weights": Case(
        likelihoods.Bernoulli((0.3, 1.7)),
        1,
        lambda f, y, _: class_weighted(formulas.bernoulli(f[:, 0], y), y, (0.3, 1.7)),
        2,
        pixels=True,
    ),
    "normal, one column": Case(likelihoods.Normal(scale=0.6), 1, lambda f, y, _: formulas.normal(y, f, 0.6)),
    "normal, fixed scale": Case(likelihoods.Normal(scale=0.6), 2, lambda f, y, _: formulas.normal(y, f, 0.6)),
    "normal, learned scale": Case(
        likelihoods.Normal(), 2, lambda f, y, theta: formulas.normal(y, f, theta["likelihood.scale"])
    ),
    "normal, half-normal scale": inferred(priors.HalfNormal(0.8), lambda s: formulas.half_normal(s, 0.8)),
    "normal, half-Cauchy scale": inferred(priors.HalfCauchy(0.8), lambda s: formulas.half_cauchy(s, 0.8)),
    "normal, log-normal scale": inferred(priors.LogNormal(-1.0, 0.8), lambda s: formulas.log_normal(s, -1.0, 0.8)),
    "normal, gamma scale": inferred(priors.Gamma(2.5, 1.7), lambda s: formulas.gamma(s, 2.5, 1.7)),
    "heteroscedastic": Case(
        likelihoods.HeteroscedasticNormal(maximum_scale=None), 4, lambda f, y, _: heteroscedastic(f, y, 0.0)
    ),
    "student": Case(likelihoods.StudentT(df=3.5, scale=0.6), 2, lambda f, y, _: formulas.student_t(y, 3.5, f, 0.6)),
    "student, learned scale": Case(
        likelihoods.StudentT(), 1, lambda f, y, theta: formulas.student_t(y, 4.0, f, theta["likelihood.scale"])
    ),
    "student, learned df and inferred scale": Case(
        likelihoods.StudentT(df="learned", scale=priors.HalfNormal(0.8)),
        2,
        lambda f, y, theta: formulas.student_t(y, theta["likelihood.df"], f, theta["likelihood.scale"]),
        log_prior={"likelihood.scale": lambda s: formulas.half_normal(s, 0.8)},
    ),
    "student, inferred df": Case(
        likelihoods.StudentT(df=priors.Gamma(2.0, 0.1), scale=0.5),
        2,
        lambda f, y, theta: formulas.student_t(y, theta["likelihood.df"], f, 0.5),
        log_prior={"likelihood.df": lambda df: formulas.gamma(df, 2.0, 0.1)},
    ),
    "poisson": Case(likelihoods.Poisson(), 2, lambda f, y, _: formulas.poisson(f, y)),
    "heteroscedastic, minimum scale": Case(
        likelihoods.HeteroscedasticNormal(0.4), 2, lambda f, y, _: heteroscedastic(f, y, 0.4)
    ),
}
each_likelihood = pytest.mark.parametrize("case", LIKELIHOODS.values(), ids=LIKELIHOODS)


@each_likelihood
@pytest.mark.parametrize("weighting", ["unweighted", "rows", "targets"])
@pytest.mark.parametrize("num_data", [None, 17])
def test_log_joint_is_the_traced_program_and_the_formula_for_every_likelihood(
    case: Case, weighting: str, num_data: int | None
) -> None:
    model, (x, y) = case.model(priors.Normal(0.2, 1.3)), case.data()
    theta = random_theta(model)
    weight = {"unweighted": None, "rows": torch.rand(N).double(), "targets": torch.rand(y.shape).double()}[weighting]

    terms = case.terms(case.f(theta, x), y, theta)
    if weight is not None:
        terms = terms * (weight if weighting == "targets" else weight.reshape(-1, *[1] * (terms.ndim - 1)))
    log_prior = sum(formulas.normal(theta[name], 0.2, 1.3).sum() for name, _ in model.net.named_parameters())
    log_prior = log_prior + sum(formula(theta[name]) for name, formula in case.log_prior.items())
    expected = log_prior + (1.0 if num_data is None else num_data / N) * terms.sum()

    assert_equal(model.log_joint(theta, x, y, num_data, weight), expected)
    assert_equal(traced(at(model, theta), x, y, num_data, weight), expected)


MIXTURE = ((1.0, 0.1), (0.75, 0.25))
PRIORS: dict[str, tuple[object, str, dict[str, Formula]]] = {
    "normal": (priors.Normal(0.2, 1.3), "all", {"*": lambda w: formulas.normal(w, 0.2, 1.3)}),
    "laplace": (priors.Laplace(0.1, 0.6), "all", {"*": lambda w: formulas.laplace(w, 0.1, 0.6)}),
    "student_t": (priors.StudentT(3.5, 0.1, 0.7), "all", {"*": lambda w: formulas.student_t(w, 3.5, 0.1, 0.7)}),
    "scale mixture": (priors.ScaleMixture(*MIXTURE), "all", {"*": lambda w: formulas.scale_mixture(w, *MIXTURE)}),
    "horseshoe": (priors.Horseshoe(0.7), "all", {"*": lambda w: formulas.horseshoe(w, 0.7)}),
    "fan-in of a normal": (
        priors.FanIn(priors.Normal(scale=1.4)),
        "all",
        {
            "1.weight": lambda w: formulas.normal(w, 0.0, 1.4 / math.sqrt(3)),
            "4.weight": lambda w: formulas.normal(w, 0.0, 1.4 / math.sqrt(4)),
            "*": lambda w: formulas.normal(w, 0.0, 1.4),
        },
    ),
    "fan-in of a scale mixture": (
        priors.FanIn(priors.ScaleMixture(*MIXTURE)),
        "all",
        {
            "1.weight": lambda w: formulas.scale_mixture(w, (1 / math.sqrt(3), 0.1 / math.sqrt(3)), MIXTURE[1]),
            "4.weight": lambda w: formulas.scale_mixture(w, (0.5, 0.05), MIXTURE[1]),
            "*": lambda w: formulas.scale_mixture(w, *MIXTURE),
        },
    ),
    "mapping of rules": (
        {"*.bias": priors.Laplace(), "last_layer": priors.StudentT(), nn.Linear: priors.Normal(scale=2.0)},
        "all",
        {
            "1.bias": lambda w: formulas.laplace(w, 0.0, 1.0),
            "4.bias": lambda w: formulas.laplace(w, 0.0, 1.0),
            "4.weight": lambda w: formulas.student_t(w, 3.0, 0.0, 1.0),
            "1.weight": lambda w: formulas.normal(w, 0.0, 2.0),
        },
    ),
    "last layer random": (
        priors.Normal(scale=0.8),
        "last_layer",
        {
            "4.weight": lambda w: formulas.normal(w, 0.0, 0.8),
            "4.bias": lambda w: formulas.normal(w, 0.0, 0.8),
            "*": torch.zeros_like,
        },
    ),
    "weights random, rules": (
        {"1.*": priors.Laplace(scale=0.3), "*": priors.Normal()},
        "*.weight",
        {
            "1.weight": lambda w: formulas.laplace(w, 0.0, 0.3),
            "4.weight": lambda w: formulas.normal(w, 0.0, 1.0),
            "*": torch.zeros_like,
        },
    ),
}
each_prior = pytest.mark.parametrize(("prior", "random", "formula_of"), PRIORS.values(), ids=PRIORS)


@each_prior
@pytest.mark.parametrize("likelihood", ["categorical, class weights", "normal, learned scale"])
def test_log_joint_is_the_traced_program_and_the_formula_for_every_prior(
    prior: priors.Prior, random: str, formula_of: dict[str, Formula], likelihood: str
) -> None:
    case = LIKELIHOODS[likelihood]
    model, (x, y) = case.model(prior, random), case.data()
    theta = random_theta(model)
    log_prior = sum(
        formula_of.get(name, formula_of.get("*", torch.zeros_like))(theta[name]).sum()
        for name, _ in model.net.named_parameters()
    )
    expected = log_prior + 17 / N * case.terms(case.f(theta, x), y, theta).sum()
    assert_equal(model.log_prior(theta), log_prior)
    assert_equal(model.log_joint(theta, x, y, 17), expected)
    assert_equal(traced(at(model, theta), x, y, 17), expected)


@each_likelihood
def test_minibatches_average_to_the_log_joint_of_all_data(case: Case) -> None:
    model = case.model(priors.Laplace())
    parts = [case.data() for _ in range(4)]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    theta, weight = random_theta(model), torch.rand(4 * N, dtype=torch.float64)
    expected = model.log_joint(theta, x, y, weight=weight)
    for sizes in ([N] * 4, [1] * 4 * N, [2, 7, 1, 10]):
        batches = zip(x.split(sizes), y.split(sizes), weight.split(sizes), strict=True)
        values = [model.log_joint(theta, xs, ys, 4 * N, ws) * len(xs) / len(x) for xs, ys, ws in batches]
        assert_equal(torch.stack(values).sum(), expected)  # a row's batch is drawn in proportion to its size


@each_likelihood
def test_order_and_repetition_of_rows_count_as_they_should(case: Case) -> None:
    model, (x, y) = case.model(priors.Normal()), case.data()
    theta, order = random_theta(model), torch.tensor([3, 0, 4, 1, 2])
    assert_equal(model.log_joint(theta, x[order], y[order]), model.log_joint(theta, x, y))
    weight = torch.tensor([2.0, 1.0, 0.0, 3.0, 1.0])
    rows = torch.tensor([0, 0, 1, 3, 3, 3, 4])  # weight 2 is the row twice, weight 0 the row left out
    assert_equal(model.log_joint(theta, x, y, weight=weight), model.log_joint(theta, x[rows], y[rows]))


@dataclass
class Conjugate:
    """Bayesian linear regression with known noise: the posterior is Gaussian, its moments and evidence exact."""

    x: Tensor
    y: Tensor
    loc: float = 0.3
    scale: float = 1.2
    noise: float = 0.4
    model: BayesianNetwork = field(init=False)

    def __post_init__(self) -> None:
        net = networks.mlp(self.x.shape[1], (), 1).double()
        self.model = BayesianNetwork(net, priors.Normal(self.loc, self.scale), likelihoods.Normal(scale=self.noise))

    @property
    def design(self) -> Tensor:
        return torch.cat([self.x, torch.ones(len(self.x), 1).double()], dim=1)

    @property
    def precision(self) -> Tensor:
        return self.design.T @ self.design / self.noise**2 + torch.eye(self.design.shape[1]).double() / self.scale**2

    @property
    def mean(self) -> Tensor:
        """The ridge solution."""
        right = self.design.T @ self.y / self.noise**2 + self.loc / self.scale**2
        return torch.linalg.solve(self.precision, right)[:, 0]

    @property
    def log_evidence(self) -> Tensor:
        covariance = self.noise**2 * torch.eye(len(self.x)).double() + self.scale**2 * self.design @ self.design.T
        residual = self.y[:, 0] - self.loc * self.design.sum(dim=1)
        quadratic = residual @ torch.linalg.solve(covariance, residual)
        return -0.5 * (quadratic + torch.logdet(covariance) + len(self.x) * math.log(2 * math.pi))

    def theta(self, flat: Tensor) -> dict[str, Tensor]:
        return {"1.weight": flat[None, :-1], "1.bias": flat[-1:]}

    def log_joint(self, flat: Tensor) -> Tensor:
        return self.model.log_joint(self.theta(flat), self.x, self.y)


@pytest.fixture
def conjugate() -> Conjugate:
    x = gaussian(12, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]]).double()
    return Conjugate(x, x @ torch.tensor([[1.0], [-0.5]]).double() + 0.2 + 0.4 * gaussian(12, 1))


def test_log_joint_of_a_linear_model_is_the_exact_quadratic(conjugate: Conjugate) -> None:
    mean = conjugate.mean
    gradient = torch.func.grad(conjugate.log_joint)(mean)
    torch.testing.assert_close(gradient, torch.zeros_like(mean), rtol=0.0, atol=1e-10)
    assert_equal(torch.autograd.functional.hessian(conjugate.log_joint, mean), -conjugate.precision)
    # Gaussian: log evidence = log joint at the mode + P / 2 log 2 pi - 1/2 log det precision.
    at_mode = conjugate.log_joint(mean) + 1.5 * math.log(2 * math.pi) - 0.5 * torch.logdet(conjugate.precision)
    assert_equal(at_mode, conjugate.log_evidence)


def run_svi(svi: SVI, steps: int, *data: object) -> Tensor:
    return torch.tensor([svi.step(*data) for _ in range(steps)])


def test_stock_svi_finds_the_mode_of_a_linear_model(conjugate: Conjugate) -> None:
    guide = AutoDelta(conjugate.model)
    losses = run_svi(
        SVI(conjugate.model, guide, pyro.optim.ClippedAdam({"lr": 0.1, "lrd": 0.97}), Trace_ELBO()),
        200,
        conjugate.x,
        conjugate.y,
    )
    found = torch.cat([guide.median()["1.weight"][0], guide.median()["1.bias"]])
    torch.testing.assert_close(found, conjugate.mean, rtol=0.0, atol=1e-3)  # the last steps are below 0.1 * 0.97^200
    assert float(losses[-1]) == pytest.approx(-float(conjugate.log_joint(conjugate.mean)), abs=1e-3)


def test_stock_svi_lowers_the_loss_and_stays_above_minus_the_log_evidence(conjugate: Conjugate) -> None:
    model = conjugate.model
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = run_svi(svi, 200, conjugate.x, conjugate.y)
    last = losses[-100:]
    error = float(last.std()) / 10
    assert float(last.mean()) < float(losses[:5].mean()) - 4.5 * error
    assert float(last.mean()) > -float(conjugate.log_evidence) - 4.5 * error


@each_prior
def test_stock_svi_trains_under_every_prior(prior: priors.Prior, random: str, formula_of: object) -> None:  # noqa: ARG001
    model = LIKELIHOODS["normal, learned scale"].model(prior, random)
    x = gaussian(30, 3)
    y = torch.stack([x[:, 0], x[:, 1] - 1], dim=1) + 0.1 * gaussian(30, 2)
    svi = SVI(model, AutoNormal(model, init_scale=0.02), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = run_svi(svi, 22, x, y)
    start = model.initial() | {"likelihood.scale": torch.tensor(1.0)}
    for name in model.points:  # learned by value
        assert not torch.equal(pyro.param(name), start[name])
    assert (pyro.param("likelihood.scale") < 1.0).all()
    errors = (losses[:10].var() + losses[-10:].var()).sqrt() / 10**0.5
    assert float(losses[-10:].mean()) < float(losses[:10].mean()) - 4.5 * float(errors)


@pytest.mark.slow
def test_stock_nuts_samples_the_exact_posterior() -> None:
    x = gaussian(8, 1)
    conjugate = Conjugate(x, 0.7 * x - 0.2 + 0.4 * gaussian(8, 1))
    mcmc = MCMC(NUTS(conjugate.model), num_samples=120, warmup_steps=60, disable_progbar=True)
    mcmc.run(x, conjugate.y)
    draws = mcmc.get_samples()
    flat = torch.cat([draws["1.weight"][:, 0], draws["1.bias"]], dim=1)
    covariance = torch.linalg.inv(conjugate.precision)
    standardised = (flat - conjugate.mean) / covariance.diag().sqrt()
    size = effective_sample_size(standardised[None]).clamp(max=len(flat))
    assert (standardised.mean(dim=0).abs() < 4.5 / size.sqrt()).all()
    squares = standardised.square()  # of variance 2 where the draws are standard normal
    size = effective_sample_size(squares[None]).clamp(max=len(flat))
    assert ((squares.mean(dim=0) - 1).abs() < 4.5 * (2 / size).sqrt()).all()


def test_stock_predictive_draws_from_the_prior_predictive() -> None:
    count = 1000
    x = torch.tensor([[1.0, 2.0], [0.0, -1.0]]).double()
    conjugate = Conjugate(x, x[:, :1])
    y = Predictive(conjugate.model, num_samples=count)(x)["y"]
    assert y.shape == (count, 2, 1)
    # y = w1 x1 + w2 x2 + b + noise, with independent terms.
    mean = 0.3 * conjugate.design.sum(dim=1)
    variance = 1.2**2 * conjugate.design.square().sum(dim=1) + 0.4**2
    assert ((y[..., 0].mean(dim=0) - mean).abs() < 4.5 * (variance / count).sqrt()).all()
    assert ((y[..., 0].var(dim=0) / variance - 1).abs() < 4.5 * (2 / count) ** 0.5).all()


@each_likelihood
def test_stock_predictive_draws_targets_of_the_right_shape(case: Case) -> None:
    model, (x, y) = case.model(priors.Normal()), case.data()
    drawn = Predictive(model, num_samples=3)(x)["y"]
    column = (1,) if isinstance(case.likelihood, likelihoods.Bernoulli) else ()
    assert drawn.shape == (3, N, *column, *y.shape[1:])
    case.likelihood.targets(drawn[0].reshape(y.shape), num_outputs=case.outputs)  # raises outside the support


@each_likelihood
@pytest.mark.parametrize("weighted", [False, True])
def test_conditioning_on_targets_is_passing_them(case: Case, weighted: bool) -> None:
    model, (x, y) = case.model(priors.Normal()), case.data()
    theta, weight = random_theta(model), torch.rand(N).double() if weighted else None
    aligned = case.likelihood.align(model.forward(theta, x), y)
    conditioned = poutine.condition(at(model, theta), data={"y": aligned})
    assert_equal(traced(conditioned, x, None, 17, weight), model.log_joint(theta, x, y, 17, weight))


def test_scaling_the_program_scales_the_log_joint() -> None:
    case = LIKELIHOODS["normal, half-normal scale"]
    model, (x, y) = case.model(priors.Normal()), case.data()
    theta = random_theta(model)
    scaled = poutine.scale(at(model, theta), 0.25)
    assert_equal(traced(scaled, x, y, 17), 0.25 * model.log_joint(theta, x, y, 17))


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (networks.convnet(1, 1, channels=(2, 2), hidden=3), (1, 8, 8)),
        (nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 1))), (4,)),
        (nn.Linear(4, 1, bias=False), (4,)),
    ],
)
@pytest.mark.parametrize("batch", [1, 4])
def test_sites_are_named_as_the_parameters_then_the_likelihoods(
    net: nn.Module, shape: tuple[int, ...], batch: int
) -> None:
    names = [name for name, _ in net.named_parameters()]
    x = torch.randn(batch, *shape)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=priors.Gamma()))
    assert list(model.laws) == [*names, "likelihood.scale"]
    trace = poutine.util.prune_subsample_sites(poutine.trace(model).get_trace(x, torch.zeros(batch, 1), 20))
    assert trace.stochastic_nodes == [*names, "likelihood.scale"]
    assert trace.observation_nodes == ["y"]
    assert trace.param_nodes == []
    site = trace.nodes["y"]
    assert [(frame.name, frame.size, frame.full_size) for frame in site["cond_indep_stack"]] == [("data", batch, 20)]
    assert site["scale"] == 20 / batch
    assert all(trace.nodes[name]["scale"] == 1 for name in trace.stochastic_nodes)


def test_learned_values_are_parameters_of_the_program() -> None:
    model = LIKELIHOODS["normal, learned scale"].model(priors.Normal(), "last_layer")
    trace = poutine.trace(model).get_trace(gaussian(N, 3))
    assert trace.param_nodes == ["1.weight", "1.bias", "likelihood.scale"]
    assert trace.nodes["likelihood.scale"]["kwargs"]["constraint"] is torch.distributions.constraints.positive
    for name, start in model.initial().items():
        assert name in model.laws or torch.equal(trace.nodes[name]["value"], start)


def test_supports_are_where_values_may_lie() -> None:
    model = LIKELIHOODS["normal, learned scale"].model(priors.Normal(), "last_layer")
    positive = BayesianNetwork(perceptron(1), priors.Normal(), likelihoods.Normal(scale=priors.HalfNormal()))
    for support in (model.support("likelihood.scale"), positive.support("likelihood.scale")):
        assert support.check(torch.tensor(0.5))
        assert not support.check(torch.tensor(-0.5))
    for name in ("1.weight", "4.weight"):
        assert model.support(name).check(-torch.ones_like(model.initial()[name])).all()


def test_initial_values_are_the_networks_weights_and_the_likelihoods_start() -> None:
    net = perceptron(1)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(initial_scale=0.25), random="last_layer")
    initial = model.initial()
    assert list(initial) == [*dict(net.named_parameters()), "likelihood.scale"]
    for name, parameter in net.named_parameters():
        assert_equal(initial[name], parameter.detach(), rtol=0.0)
    assert initial["likelihood.scale"] == 0.25
    initial["1.weight"].zero_()  # a copy
    assert (model.initial()["1.weight"] != 0).any()


def test_missing_values_are_named() -> None:
    model = LIKELIHOODS["normal, learned scale"].model(priors.Normal())
    theta = model.initial()
    del theta["1.bias"], theta["likelihood.scale"]
    with pytest.raises(ValueError, match=r"`theta` lacks a value for 1.bias, likelihood.scale"):
        model.log_joint(theta, gaussian(N, 3), gaussian(N, 2))


def test_targets_that_would_broadcast_are_refused_by_both_readings() -> None:
    model = LIKELIHOODS["normal, fixed scale"].model(priors.Normal())
    for y in (gaussian(N), gaussian(N, 1), gaussian(1, 2)):
        with pytest.raises(ValueError, match=r"`y` must have shape \(5, 2\)"):
            model.log_joint(model.initial(), gaussian(N, 3), y)
        with pytest.raises(ValueError, match=r"`y` must have shape \(5, 2\)"):
            model(gaussian(N, 3), y)


def busy_network() -> networks.Network:
    """In training mode, with dropout, statistics and a frozen layer."""
    net = networks.mlp(3, (4, 4), 2, dropout=0.5, batch_norm=True)
    net(torch.randn(20, 3))  # statistics of its own
    net[1].requires_grad_(False)
    return net.train()


def fingerprint(net: nn.Module) -> dict[str, object]:
    return {
        "state": {name: value.clone() for name, value in net.state_dict().items()},
        "gradients": {name: parameter.grad for name, parameter in net.named_parameters()},
        "trainable": {name: parameter.requires_grad for name, parameter in net.named_parameters()},
        "modes": {name: module.training for name, module in net.named_modules()},
    }


def assert_unchanged(net: nn.Module, before: dict[str, object]) -> None:
    after = fingerprint(net)
    assert {name: after[name] for name in ("gradients", "trainable", "modes")} == {
        name: before[name] for name in ("gradients", "trainable", "modes")
    }
    torch.testing.assert_close(after["state"], before["state"], rtol=0.0, atol=0.0)


def test_the_network_passed_in_and_the_models_own_stay_as_they_were() -> None:
    net = busy_network()
    before = fingerprint(net)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical(), random="last_layer")
    own, points = fingerprint(model.net), copy.deepcopy(model.points)
    x, y = torch.randn(N, 3), labels(2, N)
    theta = {name: value.requires_grad_() for name, value in model.initial().items()}
    model.log_joint(theta, x, y, 50).backward()
    model(x, y)
    model(x)
    model.forward(theta, x, buffers={"2.running_mean": torch.ones(4)})
    model.reinitialise(seed=3)
    run_svi(SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()), 3, x, y)
    assert_unchanged(net, before)
    assert_unchanged(model.net, own)
    torch.testing.assert_close(model.points, points, rtol=0.0, atol=0.0)
    assert not any(module.training for module in model.net.modules())


def test_changing_the_network_afterwards_does_not_reach_the_model() -> None:
    net = busy_network()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    before = fingerprint(model.net)
    nn.init.zeros_(net[9].weight)
    net[2].running_mean.zero_()
    net[1].requires_grad_(True)
    assert_unchanged(model.net, before)


def test_dropout_is_the_identity_and_statistics_are_constants_in_both_readings() -> None:
    net = busy_network().double()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    x, y, theta = gaussian(N, 3), labels(2, N), random_theta(model)
    w = theta | {name: value for name, value in net.state_dict().items() if name not in theta}
    h = x
    for linear, norm in ((1, 2), (5, 6)):
        h = h @ w[f"{linear}.weight"].T + w[f"{linear}.bias"]
        h = (h - w[f"{norm}.running_mean"]) / (w[f"{norm}.running_var"] + 1e-5).sqrt()
        h = (h * w[f"{norm}.weight"] + w[f"{norm}.bias"]).clamp(min=0)
    f = h @ w["9.weight"].T + w["9.bias"]
    assert_equal(model.forward(theta, x), f)
    log_prior = sum(formulas.normal(value, 0.0, 1.0).sum() for value in theta.values())
    expected = log_prior + formulas.categorical(f, y).sum()
    assert_equal(model.log_joint(theta, x, y), expected)
    assert_equal(traced(at(model, theta), x, y), expected)


def test_given_buffers_stand_in_for_the_networks_own() -> None:
    net = networks.mlp(2, (3,), 1, batch_norm=True).double().eval()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=1.0))
    x, buffers = gaussian(N, 2), {"2.running_mean": gaussian(3), "2.running_var": gaussian(3).exp()}
    found = model.forward(model.initial(), x, buffers=buffers)
    net.load_state_dict(net.state_dict() | buffers)
    assert_equal(found, net(x).detach())


def test_a_tree_of_its_own_shares_every_tensor() -> None:
    net = busy_network()
    tree = share_tensors(net)
    assert not {id(module) for module in net.modules()} & {id(module) for module in tree.modules()}
    for mine, theirs in zip([*net.parameters(), *net.buffers()], [*tree.parameters(), *tree.buffers()], strict=True):
        assert mine is theirs


@pytest.mark.parametrize("make", [busy_network, lambda: nn.LSTM(2, 3)], ids=["busy", "lstm"])
def test_a_tree_of_its_own_shares_no_container(make: Callable[[], nn.Module]) -> None:
    net = make()
    net.register_forward_hook(lambda *_: None)
    tree = share_tensors(net)
    for mine, theirs in zip(net.modules(), tree.modules(), strict=True):
        assert vars(mine).keys() == vars(theirs).keys()
        for name, value in vars(mine).items():
            if isinstance(value, dict | list | set):
                assert type(value) is type(vars(theirs)[name])
                assert len(value) == len(vars(theirs)[name])
                assert value is not vars(theirs)[name]


def test_a_tree_of_its_own_takes_no_slow_copy_of_plain_modules() -> None:
    net, slow = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), 0

    def count(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal slow
        slow += event == "call" and frame.f_code.co_name == "_reconstruct"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        share_tensors(net)
    finally:
        sys.setprofile(before)
    assert slow == 0


@pytest.mark.parametrize("case", ["normal, half-Cauchy scale", "categorical", "bernoulli, class weights"])
def test_float64_networks_compute_in_float64_throughout(case: str) -> None:
    model, (x, y) = LIKELIHOODS[case].model(priors.FanIn(priors.Laplace())), LIKELIHOODS[case].data()
    assert model.dtype == torch.float64
    trace = poutine.trace(model).get_trace(x, y)
    values = [trace.nodes[name]["value"] for name in model.laws] + list(model.initial().values())
    assert {value.dtype for value in values} == {torch.float64}
    assert model.log_joint(model.initial(), x, y).dtype == torch.float64
    assert trace.log_prob_sum().dtype == torch.float64


def test_a_model_on_its_own_device_is_itself() -> None:
    model = LIKELIHOODS["categorical"].model(priors.Normal())
    assert model.to("cpu") is model
    assert model.to(torch.device("cpu")) is model
    assert model.device == torch.device("cpu")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_or_pickled_model_has_the_same_density(copied: Callable) -> None:
    case = LIKELIHOODS["normal, half-normal scale"]
    model, (x, y) = case.model(priors.ScaleMixture(), "last_layer"), case.data()
    theta = random_theta(model)
    assert_equal(copied(model).log_joint(theta, x, y), model.log_joint(theta, x, y), rtol=0.0)


def test_reinitialising_changes_the_weights_and_nothing_else() -> None:
    prior, likelihood = {"*.bias": priors.Normal(), "*": priors.Laplace()}, likelihoods.Normal(initial_scale=0.2)
    model = BayesianNetwork(perceptron(1), prior, likelihood, random="last_layer")
    fresh = model.reinitialise(seed=7)
    assert (fresh.prior, fresh.likelihood, fresh.random) == (prior, likelihood, "last_layer")
    assert (list(fresh.laws), list(fresh.points)) == (list(model.laws), list(model.points))
    assert fresh.dtype == torch.float64
    assert all(not torch.equal(fresh.initial()[name], model.initial()[name]) for name in ("1.weight", "4.weight"))
    assert torch.equal(fresh.points["1.weight"], fresh.initial()["1.weight"])


LINEAR = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((lambda x: x, priors.Normal(), likelihoods.Categorical()), "`net` must be a torch.nn.Module; got function"),
        ((nn.Linear, priors.Normal(), likelihoods.Categorical()), "`net` must be a torch.nn.Module; got type"),
        ((LINEAR, 1.0, likelihoods.Categorical()), r"such as priors.Normal\(\), or a mapping from rules to priors"),
        ((LINEAR, priors.Normal, likelihoods.Categorical()), r"`prior` must be a prior, such as priors.Normal\(\)"),
        ((LINEAR, {"*": 1.0}, likelihoods.Categorical()), "`prior` must be a prior"),
        ((LINEAR, torch.distributions.Normal(0, 1), likelihoods.Categorical()), "`prior` must be a prior"),
        ((LINEAR, priors.Normal(), likelihoods.Categorical), r"such as likelihoods.Categorical\(\)"),
        ((LINEAR, priors.Normal(), "categorical"), "`likelihood` must be a likelihood"),
        ((LINEAR, likelihoods.Categorical(), priors.Normal()), "`prior` must be a prior"),
    ],
)
def test_arguments_of_another_kind_are_refused_with_the_remedy(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        BayesianNetwork(*arguments)


class Named(nn.Module):
    """A module whose parameter is named as the caller wishes."""

    def __init__(self, name: str) -> None:
        super().__init__()
        first, _, rest = name.partition(".")
        if rest:
            self.add_module(first, Named(rest))
        else:
            self.register_parameter(first, nn.Parameter(torch.ones(1)))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2)), r"one dtype and one device. Call `net.float\(\)`"),
        (nn.Sequential(nn.LazyLinear(2)), "lazy layers without weights. Run it once"),
        (nn.Sequential(nn.ReLU()), "no trainable parameter"),
        (nn.Linear(2, 2, dtype=torch.complex64), "real numbers; 'weight' is torch.complex64.*torch.complex"),
        (nn.Linear(2, 2).requires_grad_(False), "no trainable parameter"),
        (Named("y"), "got y. Wrap it"),
        (Named("data"), "got data. Wrap it"),
        (Named("likelihood.scale"), "got likelihood.scale. Wrap it"),
        (Named("prior.scale"), "got prior.scale. Wrap it"),
    ],
    ids=lambda value: "" if isinstance(value, nn.Module) else value,
)
def test_networks_that_make_no_model_are_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


@pytest.mark.parametrize("name", ["data.weight", "y.weight", "likelihoods.scale", "net.likelihood.scale"])
def test_names_that_only_look_like_other_sites_do(name: str) -> None:
    model = BayesianNetwork(Named(name), priors.Normal(), likelihoods.Categorical())
    assert list(model.laws) == [name]


def test_a_prior_that_excludes_where_a_fit_would_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"The prior of 1.weight gives no density .* GreaterThan"):
        BayesianNetwork(networks.mlp(3, (), 2), priors.HalfNormal(), likelihoods.Categorical())
    net = nn.Linear(3, 2)
    nn.init.uniform_(net.weight, 0.1, 1.0)
    nn.init.uniform_(net.bias, 0.1, 1.0)
    model = BayesianNetwork(net, priors.HalfNormal(), likelihoods.Categorical())
    assert model.log_prior(model.initial()).isfinite()
    nn.init.constant_(net.bias, math.nan)
    with pytest.raises(ValueError, match="The prior of bias gives no density"):
        BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())


class Listed(nn.Module):
    """Has layers in a container that torch does not look into."""

    def __init__(self, container: Any) -> None:
        super().__init__()
        self.last, self.layers = nn.Linear(2, 2), container


UNSEEN = {
    "modules": lambda: [nn.Linear(2, 3), nn.Tanh()],
    "by name": lambda: {"first": nn.Linear(2, 3)},
    "pairs": lambda: [(nn.Linear(2, 3), nn.Tanh())],
    "parameters": lambda: [nn.Parameter(torch.ones(9))],
}
SEEN = {
    "in a torch list": lambda: nn.ModuleList([nn.Linear(2, 3)]),
    "frozen": lambda: [nn.Linear(2, 3).requires_grad_(False)],
    "numbers": lambda: [1.0, 2.0],
}


@pytest.mark.parametrize("name", [*UNSEEN, *SEEN])
def test_weights_that_torch_does_not_see_are_told(name: str, recwarn: pytest.WarningsRecorder) -> None:
    warnings.simplefilter("always")
    BayesianNetwork(Listed((UNSEEN | SEEN)[name]()), priors.Normal(), likelihoods.Categorical())
    told = [str(warning.message) for warning in recwarn]
    assert len(told) == (name in UNSEEN)
    assert all(
        re.search(r"`net.layers` holds 9 trainable numbers that torch does not see.*ModuleList", t) for t in told
    )


def test_a_list_of_layers_that_are_registered_too_is_not_told() -> None:
    net = Listed(None)
    net.layers = [net.last]
    BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
