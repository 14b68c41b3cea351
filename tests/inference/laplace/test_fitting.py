"""Laplace: exact for linear regression, the Hessian where that is Gauss-Newton, the best prior, and the readings."""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Batch, Dataset
from bayesuq.inference import dropout, ensemble, laplace, map_estimate, temperature
from bayesuq.inference.adoption import adopt
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.laplace import linearisation as curvature_layers
from bayesuq.inference.laplace import posterior as laplace_posterior
from bayesuq.inference.laplace.posterior import LaplacePosterior
from bayesuq.inference.posteriors.saved import load
from bayesuq.loaders import Loader
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import NO_MODE, Conjugate, built, expectation, labelled, measured, noise, recorded_steps

pytestmark = pytest.mark.filterwarnings(NO_MODE)
STRUCTURES = ["diagonal", "kronecker", "full"]
EXACT = {"rtol": 1e-6, "atol": 1e-6}
MODES: dict[tuple[object, ...], map_estimate.MapPosterior] = {}


def mode_of(model: BayesianNetwork, data: Dataset, num_epochs: int = 600) -> map_estimate.MapPosterior:
    """To the mode: full batches, and a rate that falls to nothing. Modes of the same model and data are found once."""
    parts = [*model.net.state_dict().values(), data.x, data.y, *([] if data.weight is None else [data.weight])]
    key = (repr(model), num_epochs, *(part.numpy().tobytes() for part in parts))
    if key not in MODES:
        MODES[key] = map_estimate.fit(
            model, data, num_epochs=num_epochs, batch_size=len(data), learning_rate=0.05, seed=0
        )
    return MODES[key]


def fit(model: BayesianNetwork, data: Dataset, *, subset: Any = "all", **options) -> LaplacePosterior:
    mode = options.pop("mode", None) or mode_of(model, data)
    return laplace.fit(model, data, subset=subset, mode=mode, seed=0, **options)


def covariance(posterior: LaplacePosterior) -> Tensor:
    """Of the weights approximated, (R, R)."""
    size = sum(value.numel() for value in posterior.law.prior.values())
    root = posterior.law.deviation(torch.eye(size, dtype=torch.float64))
    return root.T @ root


def hessian(posterior: LaplacePosterior, data: Dataset) -> Tensor:
    """Of minus the log joint at the mode, by autograd, over the weights approximated."""
    model = posterior.model
    theta = Layout.of(model).split(posterior.values)
    layout = Layout.of(model, posterior.names)

    def loss(flat: Tensor) -> Tensor:
        return -model.log_joint({**theta, **layout.split(flat)}, data.x, data.y, weight=data.weight)

    return jacrev(jacrev(loss))(layout.join(theta))


@cache
def tanh_model(num_outputs: int = 1, likelihood=None, **options) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (4,), num_outputs, activation="tanh").double())
    likelihood = likelihood or (likelihoods.Normal(scale=0.3) if num_outputs == 1 else likelihoods.Categorical())
    return BayesianNetwork(net, priors.Normal(), likelihood, **options)


# Linear regression, of which all is known


@pytest.mark.parametrize("structure", ["full", "kronecker"])
@pytest.mark.parametrize("bias", [True, False])
def test_laplace_is_exact_for_linear_regression(structure, bias):
    case = Conjugate(30, 3, 0.5, 0.7, bias=bias, dtype=torch.float64)
    options = {"num_epochs": 600, "batch_size": 30, "learning_rate": 0.05, "seed": 0}
    posterior = laplace.fit(case.model, case.data, structure=structure, **options)
    exact = torch.linalg.inv(case.precision)
    torch.testing.assert_close(posterior.values, case.mean, **EXACT)
    torch.testing.assert_close(covariance(posterior), exact, **EXACT)
    assert posterior.log_marginal_likelihood == pytest.approx(float(case.log_evidence), rel=1e-6)
    x = noise(9, 20, 3)
    design = torch.cat([x, torch.ones(20, 1)], dim=1) if bias else x
    predictive = posterior.predict(x, seed=0)
    torch.testing.assert_close(predictive.mean[:, 0], design @ case.mean, **EXACT)
    variance = torch.einsum("ni,ij,nj->n", design, exact, design)
    torch.testing.assert_close(predictive.epistemic[:, 0], variance, **EXACT)
    torch.testing.assert_close(predictive.aleatoric, torch.full((20, 1), 0.25, dtype=torch.float64), **EXACT)


def test_the_diagonal_is_that_of_the_precision():
    case = Conjugate(30, 3, 0.5, 0.7, dtype=torch.float64)
    posterior = fit(case.model, case.data, structure="diagonal")
    torch.testing.assert_close(covariance(posterior), (1 / case.precision.diag()).diag(), **EXACT)
    design = torch.cat([case.data.x, torch.ones(30, 1)], dim=1)
    epistemic = posterior.predict(case.data.x).epistemic[:, 0]
    torch.testing.assert_close(epistemic, design.square() @ (1 / case.precision.diag()), **EXACT)


@pytest.mark.parametrize("structure", ["full", "kronecker"])
def test_weights_of_rows_and_priors_of_several_scales_stay_exact(structure):
    x, weight = noise(0, 25, 2), noise(1, 25).abs()
    y = x @ torch.tensor([1.0, -2.0], dtype=torch.float64) + 0.3 * noise(2, 25)
    net = built(lambda: nn.Linear(2, 1, dtype=torch.float64))
    prior = {"weight": priors.Normal(loc=0.5, scale=0.4), "bias": priors.Normal(scale=2.0)}
    data = Dataset(x, y, weight=weight)
    posterior = fit(BayesianNetwork(net, prior, likelihoods.Normal(scale=0.5)), data, structure=structure)
    design = torch.cat([x, torch.ones(25, 1)], dim=1)
    scale = torch.tensor([0.4, 0.4, 2.0], dtype=torch.float64)
    precision = design.T @ (weight[:, None] * design) / 0.25 + (scale**-2).diag()
    torch.testing.assert_close(covariance(posterior), torch.linalg.inv(precision), **EXACT)
    # log int N(theta; loc, scale^2) prod N(y; x theta, s^2)^w, by completing the square
    loc = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    residual = y - design @ loc
    shift = design.T @ (weight * residual) / 0.25
    quadratic = 0.5 * shift @ torch.linalg.solve(precision, shift) - 0.5 * (weight * residual**2).sum() / 0.25
    volume = -0.5 * torch.logdet(precision) - scale.log().sum() - 0.5 * weight.sum() * math.log(math.tau * 0.25)
    assert posterior.log_marginal_likelihood == pytest.approx(float(quadratic + volume), rel=1e-6)


@pytest.mark.parametrize("structure", ["full", "kronecker"])
def test_targets_of_several_columns_have_independent_posteriors_of_one_covariance(structure):
    x, y = noise(0, 25, 2), noise(1, 25, 2)
    net = built(lambda: nn.Linear(2, 2, bias=False, dtype=torch.float64))
    posterior = fit(
        BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5)), Dataset(x, y), structure=structure
    )
    one = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(2)).contiguous()
    torch.testing.assert_close(covariance(posterior), torch.kron(torch.eye(2, dtype=torch.float64), one), **EXACT)
    variance = torch.einsum("ni,ij,nj->n", x, one, x)
    torch.testing.assert_close(posterior.predict(x).epistemic, variance[:, None].expand(25, 2), **EXACT)


# Curvature of other models


@pytest.mark.parametrize(
    ("likelihood", "num_outputs"),
    [
        (likelihoods.Categorical(), 3),
        (likelihoods.Categorical(class_weights=(1.0, 2.0, 0.5)), 3),
        (likelihoods.Categorical(ignore_index=1), 3),
        (likelihoods.Bernoulli(class_weights=(0.5, 2.0)), 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_gauss_newton_is_the_hessian_of_logistic_regression(likelihood, num_outputs, weighted):
    data = labelled(30)
    y = data.y if num_outputs == 3 else data.y.clamp(max=1)
    data = Dataset(data.x, y, weight=noise(3, 30).abs() if weighted else None)
    net = built(lambda: nn.Linear(3, num_outputs, dtype=torch.float64))
    model = BayesianNetwork(net, priors.Normal(scale=2.0), likelihood)
    posterior = fit(model, data, structure="full", mode=mode_of(model, data, 50))
    exact = torch.linalg.inv(hessian(posterior, data))
    torch.testing.assert_close(covariance(posterior), exact, rtol=1e-9, atol=1e-12)
    evidence = float(
        posterior.model.log_joint(
            Layout.of(posterior.model).split(posterior.values), data.x, data.y, weight=data.weight
        )
        + 0.5 * len(exact) * math.log(math.tau)
        + 0.5 * torch.logdet(exact)
    )
    assert posterior.log_marginal_likelihood == pytest.approx(evidence, rel=1e-12)


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_gauss_newton_is_the_hessian_of_the_network_made_linear(num_outputs):
    data = measured(20) if num_outputs == 1 else labelled(20)
    model = tanh_model(num_outputs)
    posterior = fit(model, data, structure="full", mode=mode_of(model, data, 50))
    theta, layout = Layout.of(model).split(posterior.values), Layout.of(model)
    start = layout.join(theta)

    def f(flat: Tensor) -> Tensor:
        return model.forward(layout.split(flat), data.x)

    jacobian = jacrev(f)(start)

    def loss(flat: Tensor) -> Tensor:
        linear = f(start).detach() + jacobian @ (flat - start)
        terms = model.likelihood.log_prob(linear, data.y)
        return -terms.sum() - model.log_prior(layout.split(flat))

    exact = torch.linalg.inv(jacrev(jacrev(loss))(start))
    torch.testing.assert_close(covariance(posterior), exact, rtol=1e-9, atol=1e-12)
    assert (torch.linalg.inv(hessian(posterior, data)) - exact).abs().max() > 1e-3  # it is not the Hessian


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_batches_and_chunks_change_nothing(structure, num_outputs, monkeypatch):
    data = measured() if num_outputs == 1 else labelled()
    data = Dataset(data.x, data.y, weight=noise(4, len(data)).abs())
    model = tanh_model(num_outputs)
    mode = mode_of(model, data, 20)
    whole = fit(model, data, structure=structure, mode=mode, batch_size=len(data))
    loader = DataLoader(TensorDataset(data.x, data.y, data.weight), batch_size=7, shuffle=True)
    loader = Loader(loader, batch=lambda item: Batch(*item))
    variants = [
        fit(model, data, structure=structure, mode=mode, batch_size=5),
        fit(model, loader, structure=structure, mode=mode),
    ]
    monkeypatch.setattr(curvature_layers, "BUDGET", 500)
    variants.append(fit(model, data, structure=structure, mode=mode))
    for other in variants:
        assert other.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-12)
        for name, value in whole.curvature.items():
            torch.testing.assert_close(other.curvature[name], value, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_row_of_weight_two_counts_as_two_rows(structure):
    data, model = labelled(20), tanh_model(3)
    mode = mode_of(model, data, 20)
    weighted = Dataset(data.x, data.y, weight=1 + (torch.arange(20) < 5).double())
    twice = Dataset(torch.cat([data.x, data.x[:5]]), torch.cat([data.y, data.y[:5]]))
    one, other = (fit(model, rows, structure=structure, mode=mode) for rows in (weighted, twice))
    torch.testing.assert_close(covariance(one), covariance(other), rtol=1e-10, atol=1e-12)
    assert one.log_marginal_likelihood == pytest.approx(other.log_marginal_likelihood, rel=1e-12)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_order_of_the_classes_does_not_matter(structure):
    data, order = labelled(), torch.tensor([2, 0, 1])
    model = tanh_model(3)
    mode = mode_of(model, data, 50)
    permuted_net = built(lambda: networks.mlp(3, (4,), 3, activation="tanh").double())
    theta = {name: value[0] for name, value in mode.sample_weights().items()}
    theta |= {name: theta[name][order] for name in ("3.weight", "3.bias")}
    permuted = replace(mode, values=Layout.of(model).join(theta))
    relabelled = Dataset(data.x, torch.argsort(order)[data.y])
    assert permuted_net is not model.net
    one = fit(model, data, structure=structure, mode=mode)
    other = fit(model, relabelled, structure=structure, mode=permuted)
    assert one.log_marginal_likelihood == pytest.approx(other.log_marginal_likelihood, rel=1e-10)
    x = noise(5, 10, 3)
    probabilities = [posterior.probit.predict(x).mean for posterior in (one, other)]
    torch.testing.assert_close(probabilities[0][:, order], probabilities[1], rtol=1e-9, atol=1e-12)


# Subsets


CLASSES = torch.arange(6) % 3


@pytest.mark.parametrize(
    ("likelihood", "width", "y", "is_whole"),
    [
        (likelihoods.Categorical(), 3, CLASSES, False),
        (likelihoods.Categorical(ignore_index=1), 3, CLASSES, False),
        (likelihoods.HeteroscedasticCategorical(), 6, CLASSES, False),
        (likelihoods.SoftCategorical(), 3, nn.functional.one_hot(CLASSES, 3).double(), False),
        (likelihoods.Bernoulli(), 1, CLASSES % 2, False),
        (likelihoods.Poisson(), 1, CLASSES, True),
        (likelihoods.Normal(), 1, CLASSES.double(), True),
    ],
    ids=repr,
)
def test_by_default_labels_have_the_last_layer_and_all_else_all_weights(likelihood, width, y, is_whole) -> None:
    net = networks.mlp(2, (3,), width, seed=0).double()
    data, brief = Dataset(noise(0, 6, 2), y), {"num_epochs": 1, "seed": 0}
    mode = map_estimate.fit(BayesianNetwork(net, priors.Normal(), likelihood), data, **brief)
    every = tuple(name for name, _ in net.named_parameters())
    for fitted in (mode, mode.model):
        assert laplace.fit(fitted, data, **brief).names == (every if is_whole else every[2:])
    assert laplace.fit(mode, data, subset="all").names == every
    assert laplace.fit(adopt(net, likelihood, random="all"), data).names == every  # said of the network itself
    chosen = BayesianNetwork(net, priors.Normal(), likelihood, random="*.weight")
    assert laplace.fit(chosen, data, **brief).names == every[::2]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_last_layer_is_the_model_whose_other_weights_are_frozen(structure):
    data, model = labelled(), tanh_model(3)
    mode = mode_of(model, data, 50)
    last = fit(model, data, structure=structure, subset="last_layer", mode=mode)
    assert last.names == ("3.weight", "3.bias")
    net = built(lambda: networks.mlp(3, (4,), 3, activation="tanh").double())
    net.load_state_dict({name: value[0] for name, value in mode.sample_weights().items()})
    net[1].requires_grad_(False)
    frozen = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    whole = laplace.fit(frozen, data, structure=structure, num_epochs=1, learning_rate=1e-15, seed=0)
    torch.testing.assert_close(covariance(last), covariance(whole), rtol=1e-9, atol=1e-12)
    assert last.log_marginal_likelihood == pytest.approx(whole.log_marginal_likelihood, rel=1e-9)
    one, other = (posterior.predict(noise(5, 10, 3), num_samples=5, seed=0).mean for posterior in (last, whole))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", ["learned", priors.HalfNormal(1.0)], ids=str)
def test_all_but_the_weights_approximated_stays_at_the_mode(scale):
    data = measured()
    model = tanh_model(likelihood=likelihoods.Normal(scale=scale), random="3.*")
    posterior = fit(model, data, mode=mode_of(model, data, 100))
    at_mode = map_estimate.MapPosterior.sample_weights(
        map_estimate.MapPosterior(model=posterior.model, values=posterior.values, buffers={}, history=posterior.history)
    )
    draws = posterior.sampled.sample_weights(5, seed=0)
    assert posterior.names == ("3.weight", "3.bias")
    for name, value in draws.items():
        assert torch.equal(value, at_mode[name].expand_as(value)) == (name not in posterior.names)
    noise_scale = float(at_mode["likelihood.scale"])
    aleatoric = posterior.predict(data.x).aleatoric
    torch.testing.assert_close(aleatoric, torch.full_like(aleatoric, noise_scale**2))


# The evidence and the prior


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_one_factor_is_the_best_on_a_grid(structure, num_outputs):
    data = measured() if num_outputs == 1 else labelled()
    model = tanh_model(num_outputs)
    posterior = fit(model, data, structure=structure, mode=mode_of(model, data, 200))

    def evidence(factor: float) -> float:
        return replace(posterior, prior_factors=(factor,) * 4).log_marginal_likelihood

    tuned = fit(model, data, structure=structure, prior_factors="one", mode=mode_of(model, data, 200))
    best = tuned.prior_factors[0]
    assert tuned.prior_factors == (best,) * 4
    assert tuned.log_marginal_likelihood == pytest.approx(evidence(best), rel=1e-12)
    for ratio in torch.logspace(-2, 2, 21).tolist():
        assert evidence(best * ratio) <= evidence(best) + 1e-9
    assert evidence(best * 1.01) < evidence(best)
    assert evidence(best / 1.01) < evidence(best)
    assert tuned.log_marginal_likelihood > posterior.log_marginal_likelihood + 1e-3


@pytest.mark.parametrize("structure", STRUCTURES)
def test_each_factor_is_stationary_and_better_than_one(structure):
    data, model = labelled(), tanh_model(3)
    posterior = fit(model, data, structure=structure, mode=mode_of(model, data, 200))
    tuned = posterior.tuned("each")
    assert tuned.log_marginal_likelihood > posterior.tuned("one").log_marginal_likelihood
    for number in range(4):
        for ratio in (0.5, 0.99, 1.01, 2.0):
            factors = [factor * (ratio if number == n else 1) for n, factor in enumerate(tuned.prior_factors)]
            assert replace(tuned, prior_factors=tuple(factors)).log_marginal_likelihood < tuned.log_marginal_likelihood
    # MacKay's condition: R - t tr(Sigma P) = t sum P (theta* - loc)^2 for each parameter
    layout, variance = Layout.of(model, posterior.names), covariance(tuned).diag()
    theta = Layout.of(model).split(tuned.values)
    for name, where in layout.slices().items():
        precision = tuned.prior_precision()[name].flatten()
        determined = len(precision) - (precision * variance[where]).sum()
        misfit = (precision * theta[name].flatten().square()).sum()
        torch.testing.assert_close(determined, misfit, rtol=1e-5, atol=1e-5)


def test_the_prior_scale_of_linear_regression_is_found():
    # Weights of scale 0.3, hardly blurred by noise: their mean square is what is found, to 2 %.
    x, truth = noise(0, 400, 100), 0.3 * noise(1, 100)
    net = nn.Linear(100, 1, bias=False, dtype=torch.float64)
    model = BayesianNetwork(net, priors.Normal(scale=1.0), likelihoods.Normal(scale=0.1))
    data = Dataset(x, x @ truth + 0.1 * noise(2, 400))
    ridge = torch.linalg.solve(x.T @ x + 0.01 * torch.eye(100), x.T @ data.y[:, 0])
    mode = replace(mode_of(model, data, 1), values=ridge)
    posterior = fit(model, data, structure="full", prior_factors="one", mode=mode)
    found = posterior.prior_factors[0] ** -0.5
    assert found == pytest.approx(float(truth.square().mean().sqrt()), rel=0.02)


def test_weights_that_the_data_say_nothing_of_are_told():
    net = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(net.weight)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=1.0))
    posterior = fit(model, Dataset(noise(0, 9, 2), torch.zeros(9)))
    with pytest.warns(UserWarning, match=r"outside \[1e-8, 1e8\].* set to the bound") as record:
        tuned = posterior.tuned("one")
    assert record[0].filename == __file__
    assert tuned.prior_factors == pytest.approx((1e8,))


# Readings


def test_draws_of_outputs_have_the_covariance_of_the_linear_network():
    data, model = labelled(), tanh_model(3)
    posterior = fit(model, data, structure="full", mode=mode_of(model, data, 50))
    x, num_samples = noise(5, 2, 3), 20_000
    flat = posterior.values
    layout = Layout.of(model)
    jacobian = jacrev(lambda values: model.forward(layout.split(values), x))(flat)
    expected = jacobian @ covariance(posterior) @ jacobian.mT
    draws = posterior.predict(x, num_samples=num_samples, seed=0, keep_samples=True).draws
    centred = draws - model.forward(layout.split(flat), x)
    found = torch.einsum("snk,snl->nkl", centred, centred) / num_samples
    # The variance of a product of normal numbers is s_kk s_ll + s_kl^2.
    scales = expected.diagonal(dim1=1, dim2=2)
    error = ((scales.unsqueeze(1) * scales.unsqueeze(2) + expected.square()) / num_samples).sqrt()
    assert ((found - expected) / error).abs().max() < 4.5
    assert (centred.mean(dim=0) / (scales / num_samples).sqrt()).abs().max() < 4.5
    # A draw is a function: rows covary as J_n Sigma J_m^T says.
    across = torch.einsum("kp,pq,lq->kl", jacobian[0], covariance(posterior), jacobian[1])
    found = centred[:, 0].T @ centred[:, 1] / num_samples
    error = ((torch.outer(scales[0], scales[1]) + across.square()) / num_samples).sqrt()
    assert ((found - across) / error).abs().max() < 4.5
    assert (across / error).abs().max() > 20


def test_draws_and_probit_are_the_integral_over_the_outputs():
    data = labelled()
    data = Dataset(data.x, data.y.clamp(max=1))
    model = tanh_model(likelihood=likelihoods.Bernoulli())
    posterior = fit(model, data, structure="full", mode=mode_of(model, data, 50))
    x = 3 * noise(5, 20, 3)
    linear = posterior._linear()
    f, derivatives = linear.derivatives(x)
    scale = posterior.law.output_covariance(derivatives)[:, 0, 0].sqrt()
    assert scale.max() > 2
    exact = torch.stack(
        [expectation(lambda eps, n=n: (f[n] + scale[n] * eps[:, 0]).sigmoid(), 1, 100) for n in range(20)]
    )
    num_samples = 5000
    drawn = posterior.predict(x, num_samples=num_samples, seed=0)
    assert (drawn.mean[:, 1] - exact).abs().max() < 4.5 * 0.5 / num_samples**0.5
    probit = posterior.probit.predict(x)
    torch.testing.assert_close(probit.mean[:, 1], (f[:, 0] / (1 + math.pi / 8 * scale**2).sqrt()).sigmoid())
    assert (probit.mean[:, 1] - exact).abs().max() < 0.02  # of the probit approximation, whatever mean and variance
    assert probit.num_samples == 1
    torch.testing.assert_close(probit.epistemic, torch.zeros_like(probit.epistemic))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_sampled_weights_have_the_mean_and_covariance_of_the_law(structure):
    data, model = labelled(), tanh_model(3)
    posterior = fit(model, data, structure=structure, mode=mode_of(model, data, 50))
    num_samples = 1000
    draws = Layout.of(model).join(posterior.sampled.sample_weights(num_samples, seed=0)) - posterior.values
    expected = covariance(posterior)
    found = draws.T @ draws / num_samples
    error = ((expected.diag()[:, None] * expected.diag() + expected.square()) / num_samples).sqrt()
    # The largest of 496 standard normal numbers exceeds 5 in one of 3,500 cases.
    assert ((found - expected) / error).abs().max() < 5
    assert (draws.mean(dim=0) / (expected.diag() / num_samples).sqrt()).abs().max() < 5


@pytest.mark.parametrize("structure", STRUCTURES)
def test_draws_of_weights_are_had_by_name_and_saved(structure, tmp_path):
    data = measured()
    model = tanh_model(likelihood=likelihoods.Normal(scale="learned"))
    posterior = fit(model, data, structure=structure, subset="last_layer", mode=mode_of(model, data, 50))
    num_samples = 1000
    draws = posterior.sample_weights(num_samples, seed=0)
    at_mode = Layout.of(model).split(posterior.values)
    assert list(draws) == list(at_mode)
    for name, value in draws.items():
        assert value.shape == (num_samples, *at_mode[name].shape)
        assert torch.equal(value, at_mode[name].expand_as(value)) == (name not in posterior.names)
    layout = Layout.of(model, posterior.names)
    away = layout.join(draws) - layout.join(at_mode)
    expected = covariance(posterior)
    error = ((expected.diag()[:, None] * expected.diag() + expected.square()) / num_samples).sqrt()
    assert ((away.T @ away / num_samples - expected) / error).abs().max() < 5  # 15 standard normal numbers
    posterior.save(tmp_path / "posterior")
    again = load(tmp_path / "posterior").sample_weights(3, seed=0)
    assert all(torch.equal(value, draws[name][:3]) for name, value in again.items())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_network_that_is_linear_in_its_weights_is_the_same_in_both_readings(structure):
    data, model = labelled(), tanh_model(3)
    posterior = fit(model, data, structure=structure, subset="last_layer", mode=mode_of(model, data, 50))
    x = noise(5, 10, 3)
    one, other = (p.predict(x, num_samples=7, seed=0, keep_samples=True).draws for p in (posterior, posterior.sampled))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert one.std(dim=0).min() > 0.1


def test_unequal_noise_is_that_of_the_mode_and_the_variance_that_of_the_mean():
    data = measured()
    model = tanh_model(2, likelihoods.HeteroscedasticNormal(minimum_scale=0.05))
    posterior = fit(model, data, structure="full", mode=mode_of(model, data, 50))
    x = noise(5, 10, 3)
    predictive = posterior.predict(x, num_samples=7)
    at_mode = model.likelihood.predictive(model.forward(Layout.of(model).split(posterior.values), x)[None])
    layout = Layout.of(model)
    jacobian = jacrev(lambda flat: model.forward(layout.split(flat), x)[:, 0])(posterior.values)
    variance = torch.einsum("np,pq,nq->n", jacobian, covariance(posterior), jacobian)
    torch.testing.assert_close(predictive.aleatoric, at_mode.noise_variance[0])
    torch.testing.assert_close(predictive.mean, at_mode.mean)
    torch.testing.assert_close(predictive.epistemic[:, 0], variance)
    assert predictive.num_samples == 1


@pytest.mark.parametrize("structure", STRUCTURES)
def test_draws_in_groups_and_rows_in_chunks_are_the_same(structure, monkeypatch):
    data, model = labelled(), tanh_model(3)
    posterior = fit(model, data, structure=structure, mode=mode_of(model, data, 50))
    whole = posterior.predict(data.x, num_samples=11, seed=0, keep_samples=True).draws
    size = Layout.of(model).size
    monkeypatch.setattr(laplace_posterior, "DEVIATIONS_BUDGET", 4 * size)
    monkeypatch.setattr(laplace_posterior, "BUDGET", 3 * size)
    monkeypatch.setattr(curvature_layers, "BUDGET", 500)
    parts = posterior.predict(data.x, num_samples=11, seed=0, keep_samples=True).draws
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)


def test_maps_of_labels_are_drawn_and_counted_by_the_pixel():
    net = built(lambda: nn.Conv2d(1, 2, 3, padding=1, dtype=torch.float64))
    x = noise(0, 6, 1, 3, 4)
    y = (x[:, 0] > 0).long()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical(ignore_index=5))
    y[0, 0] = 5
    data = Dataset(x, y)
    posterior = fit(model, data, structure="full")
    torch.testing.assert_close(covariance(posterior), torch.linalg.inv(hessian(posterior, data)), **EXACT)
    predictive = posterior.predict(x, num_samples=10, seed=0)
    assert predictive.mean.shape == (6, 2, 3, 4)
    assert predictive.log_prob(y.clamp(max=1)).mean() > -0.4  # 0.69 would be a coin's


def test_temperature_and_saving_take_every_reading(tmp_path):
    data, model = labelled(), tanh_model(3)
    posterior = fit(model, data, prior_factors="each", mode=mode_of(model, data, 50))
    wrong = Dataset(data.x, data.y.roll(1))
    for reading in (posterior, posterior.probit, posterior.sampled):
        scaled = temperature.fit(reading, wrong, num_samples=20, seed=0)
        scaled.save(tmp_path / "posterior")
        again = load(tmp_path / "posterior")
        one, other = (p.predict(data.x, num_samples=20, seed=0).mean for p in (scaled, again))
        assert torch.equal(one, other)
        assert (one - reading.predict(data.x, num_samples=20, seed=0).mean).abs().max() > 1e-3


def test_an_ensemble_of_laplace_approximations_is_their_mixture():
    data, model = measured(), tanh_model()
    options = {"num_epochs": 20, "learning_rate": 0.05, "seed": 0}
    posterior = ensemble.fit(model, data, num_members=3, member_fit=laplace.fit, **options)
    x = noise(5, 10, 3)
    mixture, members = posterior.predict(x), [member.predict(x) for member in posterior.members]
    means, variances = (torch.stack([getattr(one, name) for one in members]) for name in ("mean", "epistemic"))
    torch.testing.assert_close(mixture.epistemic, variances.mean(dim=0) + means.var(dim=0, correction=0))
    assert mixture.num_samples == 3
    assert variances.min() > 1e-6


def test_far_from_the_data_the_uncertainty_is_the_priors():
    # Features that no row has: nothing is learned of their weights.
    x = torch.cat([noise(0, 40, 2), torch.zeros(40, 1, dtype=torch.float64)], dim=1)
    net = built(lambda: nn.Linear(3, 1, bias=False, dtype=torch.float64))
    model = BayesianNetwork(net, priors.Normal(scale=0.6), likelihoods.Normal(scale=0.1))
    for structure in STRUCTURES:
        posterior = fit(model, Dataset(x, x[:, 0]), structure=structure)
        unseen = torch.tensor([[0.0, 0.0, 2.0]], dtype=torch.float64)
        assert float(posterior.predict(unseen).epistemic) == pytest.approx((2 * 0.6) ** 2, rel=1e-9)


# Peers


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_laplace_torch_has_the_same_numbers(structure, num_outputs):
    peer = pytest.importorskip("laplace", reason="laplace-torch is not installed: its torchvision would replace torch")
    data = measured() if num_outputs == 1 else labelled()
    net = built(lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, num_outputs, bias=False)))
    model = BayesianNetwork(
        net.double(),
        priors.Normal(scale=0.8),
        likelihoods.Normal(scale=0.3) if num_outputs == 1 else likelihoods.Categorical(),
    )
    posterior = fit(model, data, structure=structure, mode=mode_of(model, data, 100))
    net.load_state_dict(dict(Layout.of(model).split(posterior.values)))
    other = peer.Laplace(
        net,
        "regression" if num_outputs == 1 else "classification",
        subset_of_weights="all",
        hessian_structure={"diagonal": "diag", "kronecker": "kron", "full": "full"}[structure],
        prior_precision=0.8**-2,
        sigma_noise=0.3 if num_outputs == 1 else 1.0,
    )
    other.fit(DataLoader(TensorDataset(data.x, data.y), batch_size=48))
    assert posterior.log_marginal_likelihood == pytest.approx(float(other.log_marginal_likelihood()), rel=1e-6)
    x = noise(5, 10, 3)
    _, variance = other._glm_predictive_distribution(x)
    _, derivatives = posterior._linear().derivatives(x)
    torch.testing.assert_close(posterior.law.output_covariance(derivatives), variance.double(), rtol=1e-6, atol=1e-9)


# Weights that are no mode


@pytest.fixture(scope="module")
def found_mode():
    """By the minibatches of an ordinary fit."""
    data = labelled(200)
    model = BayesianNetwork(built(lambda: networks.mlp(3, (8,), 3)), priors.Normal(), likelihoods.Categorical())
    options = {"num_epochs": 120, "batch_size": 32, "learning_rate": 0.02, "seed": 0}
    return data, model, map_estimate.fit(model, data, **options)


@pytest.mark.filterwarnings("error:The weights are no mode:UserWarning")
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("subset", ["all", "last_layer"])
def test_weights_that_are_no_mode_are_told_and_modes_are_not(structure, subset, found_mode):
    data, model, mode = found_mode
    options = {"structure": structure, "subset": subset, "seed": 0}
    with pytest.warns(UserWarning, match=r"no mode, and .* Raise `num_epochs` \(5 were made\)") as record:
        laplace.fit(model, data, num_epochs=5, **options)
    assert record[0].filename == __file__
    laplace.fit(model, data, mode=mode, **options)  # nobody warns


@pytest.mark.filterwarnings("error:The weights are no mode:UserWarning")
@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_rise_that_is_told_is_that_of_the_log_joint(structure):
    """In linear regression by orthogonal inputs all is quadratic, the structures are exact, and the rise is known."""
    x = torch.linalg.qr(noise(0, 30, 3))[0] * 30**0.5
    data = Dataset(x, x @ noise(1, 3) + 0.5 * noise(2, 30))
    net = built(lambda: nn.Linear(3, 1, bias=False, dtype=torch.float64))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))
    best = mode_of(model, data)
    top = float(model.log_joint(Layout.of(model).split(best.values), data.x, data.y))
    laplace.fit(model, data, structure=structure, mode=best)  # nobody warns
    determined = 3 * (120 / 121) / 2  # nats: of precisions 30 / 0.25 and 1
    for away, warns in ((0.05, False), (0.15, True)):  # 0.5 * 121 * 3 * away^2 nats: 0.45 and 4.1
        beside = replace(best, values=best.values + away)
        rise = top - float(model.log_joint(Layout.of(model).split(beside.values), data.x, data.y))
        assert (rise > determined) == warns
        says = rf"still rises by {rise:.2g} nats \({rise / 30:.2g} a row\), where .* lie {determined:.2g} nats below"
        with pytest.warns(UserWarning, match=says) if warns else nullcontext():
            laplace.fit(model, data, structure=structure, mode=beside)


def test_what_moves_the_mode_is_named():
    net = built(lambda: networks.mlp(3, (20,), 3, dropout=0.3))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    with pytest.warns(UserWarning, match="kept by `validation` are no mode either.* Dropout moves the mode"):
        laplace.fit(model, labelled(), num_epochs=3, validation=labelled(seed=3), seed=0)


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"structure": "kron"}, ValueError, "`structure` must be one of 'diagonal', 'kronecker', 'full'; got 'kron'"),
        ({"subset": "first"}, ValueError, "`subset` must be one of 'all', 'last_layer'; got 'first'"),
        ({"prior_factors": "all"}, ValueError, "`prior_factors` must be one of 'one', 'each'; got 'all'"),
        ({"mode": 3}, TypeError, "`mode` must be a posterior of `map_estimate.fit`; got int"),
    ],
    ids=str,
)
def test_options_that_are_not_known_are_refused(options, error, says):
    with recorded_steps() as steps, pytest.raises(error, match=says):
        laplace.fit(tanh_model(), measured(), num_epochs=1, seed=0, **options)
    assert steps == []


def test_models_without_a_laplace_approximation_are_refused():
    net = built(lambda: networks.mlp(3, (4,), 1, dropout=0.1).double())
    data, normal = measured(), likelihoods.Normal(scale=0.3)
    mixed = BayesianNetwork(net, {"1.*": priors.Laplace(), "*": priors.Normal()}, normal)
    with recorded_steps() as steps:
        with pytest.raises(ValueError, match=r"needs normal priors; those of 1\.weight, 1\.bias are not"):
            laplace.fit(mixed, data, seed=0)
        with pytest.raises(ValueError, match=r"'last_layer' has no random weight; the model's are 1\.weight, 1\.bias"):
            laplace.fit(BayesianNetwork(net, priors.Normal(), normal, random="1.*"), data, subset="last_layer", seed=0)
        wide = BayesianNetwork(networks.mlp(200, (100,), 1), priors.Normal(), normal)
        with pytest.raises(ValueError, match=r"at most 20000 weights; got 20201\. Pass structure='kronecker' or"):
            laplace.fit(wide, measured(num_features=200), structure="full", seed=0)
    assert steps == []
    assert laplace.fit(mixed, data, subset="last_layer", num_epochs=1, seed=0).names == ("4.weight", "4.bias")


def test_a_mode_of_another_model_is_refused():
    model, data = tanh_model(), measured()
    mode = mode_of(tanh_model(2, likelihoods.HeteroscedasticNormal()), data, 1)
    with pytest.raises(ValueError, match="`mode` must be of the same model"):
        laplace.fit(model, data, mode=mode, seed=0)
    net = built(lambda: networks.mlp(3, (4,), 1, dropout=0.1).double())
    other = dropout.fit(BayesianNetwork(net, priors.Normal(), model.likelihood), data, num_epochs=1, seed=0)
    with pytest.raises(TypeError, match=r"`map_estimate\.fit`; got DropoutPosterior"):
        laplace.fit(model, data, mode=other, seed=0)  # type: ignore[arg-type]


def test_a_kronecker_structure_needs_a_layer():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale).sum(dim=1, keepdim=True)

    model = BayesianNetwork(Scaled(), priors.Normal(), likelihoods.Normal(scale=0.3))
    with pytest.raises(ValueError, match=r"needs a linear layer or a plain convolution .* structure='diagonal'"):
        laplace.fit(model, measured(), num_epochs=1, seed=0)
    posterior = laplace.fit(model, measured(), structure="full", num_epochs=1, seed=0)
    x = measured().x
    expected = torch.linalg.inv(x.T @ x / 0.09 + torch.eye(3))
    torch.testing.assert_close(covariance(posterior), expected, rtol=1e-5, atol=1e-7)  # of a float32 network


def test_the_network_is_not_used_outside_of_the_fit():
    model, data = tanh_model(3), labelled()
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    posterior = fit(model, data, mode=mode_of(model, data, 5))
    posterior.predict(data.x, num_samples=3, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.net.parameters())
    assert not any(module._forward_hooks for module in model.net.modules())
