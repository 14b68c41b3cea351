"""Stochastic gradient chains: their stationary laws in closed form, what they keep, and where they stop."""

import itertools
import math
from functools import cache

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.data import Batch, Dataset
from bayesuq.inference import map_estimate, sgmcmc
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.sgmcmc import run as sgmcmc_run
from bayesuq.inference.sgmcmc.langevin import Chains, Sghmc, Sgld
from bayesuq.inference.sgmcmc.potential import MinibatchPotential
from bayesuq.inference.sgmcmc.run import Plan
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import generator
from tests.inference.examples import Conjugate, built, measured, noise
from tests.inference.swag.test_fitting import shifts
from tests.posterior_contract import tensors_of

KERNELS = {"sgld": Sgld(), "sghmc": Sghmc(0.1), "sghmc, all friction": Sghmc(1.0)}


def mlp_model(likelihood=None, *, prior=None, dtype=torch.float64, **options):
    net = built(lambda: networks.mlp(3, (6,), 1, activation="tanh")).to(dtype)
    return BayesianNetwork(net, prior or priors.Normal(), likelihood or likelihoods.Normal(scale=0.2), **options)


@cache
def usual_model():
    return mlp_model()


def fit(model=None, data=None, **options):
    options = {
        "num_samples": 6,
        "num_warmup": 10,
        "thinning": 2,
        "num_chains": 2,
        "batch_size": 16,
        "seed": 1,
    } | options
    return sgmcmc.fit(usual_model() if model is None else model, measured() if data is None else data, **options)


# The law of a step: read off the code itself, then solved


def linear_map(kernel, step_size, scales):
    """How (u, r) after a step depends on (u, r), on the gradient, and on the noise: three matrices."""
    size = len(scales)

    def moved(u, r, gradient, xi):
        chains = Chains(u[None].clone(), r[None].clone(), scales[None], ())
        object.__setattr__(chains, "draw", lambda given: given.copy_(xi[None]))
        kernel.step(chains, gradient[None], step_size, 1.0)
        return torch.cat([chains.positions[0], chains.momenta[0]])

    zero, units = torch.zeros(size, dtype=torch.float64), torch.eye(size, dtype=torch.float64)
    columns = [[moved(*(unit if k == place else zero for k in range(4))) for unit in units] for place in range(4)]
    u, r, gradient, xi = (torch.stack(column, dim=1).numpy() for column in columns)
    return np.hstack([u, r]), gradient, xi


def stationary_covariance(kernel, step_size, precision, scales):
    """Of u, where the gradient is precision @ u, by the discrete Lyapunov equation."""
    state, gradient, xi = linear_map(kernel, step_size, scales)
    size = len(precision)
    if isinstance(kernel, Sgld):  # which never moves the momenta
        transition, spread = state[:size, :size] + gradient[:size] @ precision, xi[:size]
    else:
        transition = state + gradient @ np.hstack([precision, np.zeros_like(precision)])
        spread = xi
    return scipy.linalg.solve_discrete_lyapunov(transition, spread @ spread.T)[:size, :size]


@pytest.fixture
def precision():
    root = noise(0, 5, 3)
    return (root.T @ root + torch.eye(3, dtype=torch.float64)).numpy()


SCALES = [torch.ones(3, dtype=torch.float64), torch.tensor([0.4, 1.0, 1.6], dtype=torch.float64)]


@pytest.mark.parametrize("scales", SCALES, ids=["plain", "preconditioned"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("friction", [0.01, 0.1, 0.5, 1.0])
def test_sghmcs_stationary_covariance_on_a_gaussian_is_the_posteriors_at_any_stable_step(
    precision, friction, share, scales
):
    top = np.linalg.eigvalsh(scales.numpy()[:, None] * precision * scales.numpy()).max()
    found = stationary_covariance(Sghmc(friction), share * 2 / math.sqrt(top), precision, scales)
    np.testing.assert_allclose(found, np.linalg.inv(precision), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scales", SCALES, ids=["plain", "preconditioned"])
@pytest.mark.parametrize("share", [0.05, 0.25, 0.9])
def test_sglds_stationary_covariance_on_a_gaussian_is_too_wide_by_the_stated_factor(precision, share, scales):
    root = np.diag(scales.numpy())
    whitened = root @ precision @ root
    step_size = share * 2 / math.sqrt(np.linalg.eigvalsh(whitened).max())
    found = stationary_covariance(Sgld(), step_size, precision, scales)
    factor = np.linalg.inv(np.eye(3) - step_size**2 / 4 * whitened)
    expected = root @ np.linalg.inv(whitened) @ factor @ root
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    assert np.linalg.eigvalsh(factor).max() == pytest.approx(1 / (1 - share**2), rel=1e-8)


def test_the_splitting_is_better_than_eulers_step_of_the_paper(precision):
    # Chen, Fox & Guestrin 2014, eq. (15): v <- (1 - a) v - eta H u + N(0, 2 a eta), u <- u + v.
    top = np.linalg.eigvalsh(precision).max()
    friction, step_size = 0.1, 1.0 / math.sqrt(top)
    eye, eta = np.eye(3), step_size**2
    velocity = np.hstack([-eta * precision, (1 - friction) * eye])
    transition = np.vstack([np.hstack([eye, 0 * eye]) + velocity, velocity])
    spread = np.vstack([eye, eye]) * math.sqrt(2 * friction * eta)
    euler = scipy.linalg.solve_discrete_lyapunov(transition, spread @ spread.T)[:3, :3]
    worst = np.linalg.eigvalsh(euler @ precision @ euler).max() / np.linalg.eigvalsh(euler).max()
    assert np.abs(np.linalg.eigvals(euler @ precision).real - 1).max() > 0.1
    assert worst > 0
    ours = stationary_covariance(Sghmc(friction), step_size, precision, SCALES[0])
    assert np.abs(np.linalg.eigvals(ours @ precision).real - 1).max() < 1e-8


# Known posteriors, sampled


def along_eigenvectors(draws, case):
    """Variances (C, P) of each chain's draws along the posterior's axes around its mean, and the curvatures there."""
    curvatures, axes = torch.linalg.eigh(case.precision)
    return ((draws - case.mean) @ axes).square().mean(dim=1), curvatures


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["sgld", "sghmc"])
def test_full_batches_sample_linear_regression_with_the_law_of_their_step(sampler):
    case = Conjugate(60, 2, 0.5, dtype=torch.float64)
    step_size = 1.1 / float(torch.linalg.eigvalsh(case.precision).max().sqrt())
    rows = DataLoader(TensorDataset(case.data.x, case.data.y), batch_size=60)  # read once for all chains
    posterior = fit(
        case.model,
        rows,
        sampler=sampler,
        step_size=step_size,
        friction=0.2,
        num_chains=48,
        num_samples=100,
        num_warmup=60,
        thinning=3,
    )
    variances, curvatures = along_eigenvectors(posterior.draws, case)
    expected = 1 / curvatures
    if sampler == "sgld":
        expected = expected / (1 - step_size**2 * curvatures / 4)
        assert float(expected[-1] * curvatures[-1]) == pytest.approx(1 / (1 - 1.1**2 / 4))  # 43 % too wide
    ratios = variances / expected
    error = ratios.std(dim=0) / math.sqrt(48)
    assert error.max() < 0.09  # sgld is 43 % too wide along the steepest axis
    assert ((ratios.mean(dim=0) - 1).abs() < 4 * error).all()
    means = (posterior.draws.mean(dim=1) - case.mean).mean(dim=0)
    assert (means.abs() < 4 * posterior.draws.mean(dim=1).std(dim=0) / math.sqrt(48)).all()


def epoch_variance(kernel, step_size, precision, batch_variance, num_batches):
    """Mean over an epoch of u's stationary variance, where minibatches without replacement add noise to H u.

    Their noises have equal variances and sum to 0 over the epoch.
    """
    state, gradient, xi = linear_map(kernel, step_size, torch.ones(1, dtype=torch.float64))
    size = 1 if isinstance(kernel, Sgld) else 2
    state, gradient, xi = state[:size, :size], gradient[:size], xi[:size]
    transition = state + gradient @ np.array([[precision, 0.0]])[:, :size]
    powers = [np.linalg.matrix_power(transition, k) for k in range(num_batches + 1)]
    shared = batch_variance * (np.eye(num_batches) * num_batches - 1) / max(num_batches - 1, 1)

    def added(k):
        """By k steps."""
        kicks = np.hstack([powers[k - 1 - j] @ gradient for j in range(k)]) if k else np.zeros((size, 0))
        heat = sum((powers[j] @ xi @ xi.T @ powers[j].T for j in range(k)), np.zeros((size, size)))
        return kicks @ shared[:k, :k] @ kicks.T + heat

    start = scipy.linalg.solve_discrete_lyapunov(powers[-1], added(num_batches))
    return np.mean([(powers[k] @ start @ powers[k].T + added(k))[0, 0] for k in range(num_batches)])


@pytest.mark.parametrize(("sampler", "share", "bias"), [("sgld", 0.3, 0.25), ("sghmc", 0.3, 0.7), ("sghmc", 0.1, 0.03)])
def test_minibatches_sample_a_gaussian_mean_with_the_law_of_their_noise(sampler, share, bias):
    # 100 conjugate problems side by side: y_j ~ N(s theta_j, 1), theta_j ~ N(0, 1).
    num_columns, num_data, batch_size, s = 100, 32, 8, 0.5
    model, data = shifts(torch.full((num_columns,), s, dtype=torch.float64), num_data, prior_scale=1.0)
    precision = num_data * s**2 + 1
    step_size = share * 2 / math.sqrt(precision)
    posterior = fit(
        model,
        data,
        sampler=sampler,
        friction=0.3,
        step_size=step_size,
        num_chains=1,
        num_samples=800,
        num_warmup=100,
        thinning=1,
        batch_size=batch_size,
    )
    mode = num_data * s * data.y.mean(dim=0) / precision
    variances = (posterior.draws[0] - mode).square().mean(dim=0)
    spread = data.y.var(dim=0) * (1 - batch_size / num_data) / batch_size * (num_data * s) ** 2
    kernel = Sgld() if sampler == "sgld" else Sghmc(0.3)
    num_batches = num_data // batch_size
    expected = np.array([epoch_variance(kernel, step_size, precision, float(one), num_batches) for one in spread])
    ratios = variances.numpy() / expected
    error = ratios.std() / math.sqrt(num_columns)
    assert error < 0.05
    assert abs(ratios.mean() - 1) < 4 * error
    assert 0 < (expected * precision - 1).mean() < bias  # how much too wide, by discretisation and minibatches


@pytest.mark.slow
def test_minibatches_with_small_steps_come_near_the_posterior_of_a_linear_regression():
    case = Conjugate(100, 2, 0.5, dtype=torch.float64)
    step_size = 0.15 / float(torch.linalg.eigvalsh(case.precision).max().sqrt())
    options = {"num_chains": 64, "num_samples": 30, "num_warmup": 80, "thinning": 10, "friction": 0.1}
    posterior = fit(case.model, case.data, step_size=step_size, batch_size=25, **options)
    variances, curvatures = along_eigenvectors(posterior.draws, case)
    ratios = variances * curvatures
    error = ratios.std(dim=0) / 8
    assert error.max() < 0.12
    assert ((ratios.mean(dim=0) - 1).abs() < 0.1 + 4 * error).all()


# The potential


LIKELIHOODS = [likelihoods.Normal(scale=0.5), likelihoods.Normal(scale=priors.Gamma(3.0, 2.0))]


@pytest.mark.parametrize(
    "prior", [priors.Normal(0.1, 0.7), priors.Laplace(), {"*.bias": priors.StudentT(), "*": priors.Normal()}], ids=str
)
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_potential_is_minus_the_log_joint_of_the_flat_vector(prior, likelihood, weighted):
    model, rows = mlp_model(likelihood, prior=prior), measured(10)
    layout = Layout.of(model)
    positions = noise(5, 3, layout.size)
    weight = noise(6, 10).square() if weighted else None
    batches = [Batch(rows.x + c, rows.y, weight) for c in range(3)]
    potential = MinibatchPotential(model, 70, {}, {})
    expected, gradients = [], []
    for position, batch in zip(positions, batches, strict=True):
        flat = position.clone().requires_grad_()
        joint = model.log_joint(layout.split(flat), batch.x, batch.y, 70, batch.weight)
        value = -joint - layout.log_abs_det_jacobian(flat)
        gradients.append(torch.autograd.grad(value, flat)[0])
        expected.append(value.detach())
    for found in (potential.at(positions, batches), potential.at_rows(positions, batches)):
        torch.testing.assert_close(found[0], torch.stack(expected), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found[1], torch.stack(gradients), rtol=1e-9, atol=1e-9)


def test_lp_is_the_log_density_at_the_draw():
    model, data = mlp_model(likelihoods.Normal(scale=priors.Gamma(3.0, 2.0))), measured()
    posterior = fit(model, data, batch_size=len(data))
    layout = Layout.of(model)
    for chain, number in itertools.product(range(2), (0, 3, 5)):
        flat = posterior.draws[chain, number]
        expected = model.log_joint(layout.split(flat), data.x, data.y) + layout.log_abs_det_jacobian(flat)
        assert float(posterior.statistics["lp"][chain, number]) == pytest.approx(float(expected), rel=1e-9)


# The course of a run


def test_draws_are_kept_after_the_warm_up_of_each_cycle():
    plan = Plan(6, 5, 3, 2, cyclical=True, step_size=1.0, preconditioned=False)
    assert (plan.length, plan.num_steps) == (14, 28)
    kept = {step: plan.kept_as(step) for step in range(28) if plan.kept_as(step) is not None}
    assert kept == {7: 0, 10: 1, 13: 2, 21: 3, 24: 4, 27: 5}
    assert [plan.temperature(step) for step in (0, 4, 5, 13, 14, 18, 19)] == [0, 0, 1, 1, 0, 0, 1]
    assert plan.factor(0) == plan.factor(14) == 1
    assert plan.factor(7) ** 2 == pytest.approx(0.5)  # epsilon = h^2 is what follows the cosine
    constant = Plan(6, 5, 3, 1, cyclical=False, step_size=1.0, preconditioned=False)
    assert constant.num_steps == 23
    assert {constant.factor(step) for step in range(23)} == {constant.temperature(step) for step in range(23)} == {1.0}


def test_cycles_shrink_their_steps_and_explore_without_noise():
    posterior = fit(num_samples=8, num_cycles=2, schedule="cyclical", step_size=0.01, num_chains=1)
    sizes = posterior.statistics["step_size"][0].reshape(2, 4)
    assert (sizes.diff(dim=1) < 0).all()
    torch.testing.assert_close(sizes[0], sizes[1])
    # Where nothing but the noise tells chains apart, they are one until the first cycle has explored.
    options = {"schedule": "cyclical", "num_cycles": 1, "start": "network", "batch_size": 99, "sampler": "sgld"}
    together = fit(num_samples=1, thinning=1, step_size=0.01, **options).draws
    torch.testing.assert_close(together[0], together[1], rtol=0, atol=1e-9)  # rows are summed in another order
    apart = fit(num_samples=2, thinning=1, step_size=0.01, **options).draws
    assert (apart[0, 1] - apart[1, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("num_warmup", [0, 25])
def test_the_default_step_size_is_a_quarter_of_the_largest_stable_one(num_warmup):
    case = Conjugate(50, 3, 0.5, dtype=torch.float64)
    posterior = fit(case.model, case.data, batch_size=50, num_warmup=num_warmup)
    stable = 2 / float(torch.linalg.eigvalsh(case.precision).max().sqrt())
    sizes = posterior.statistics["step_size"]
    assert len(sizes.unique()) == 1  # kept, once the draws begin
    assert 0.25 * stable * (1 - 1e-9) < float(sizes[0, 0]) < 0.25 * stable * 1.1
    assert posterior.warmup_statistics["step_size"].shape == (2, num_warmup)


@pytest.mark.parametrize(("options", "warmth"), [({"sampler": "sgld"}, 4.0), ({"friction": 0.3}, 1 - 0.7**2)])
def test_minibatches_make_the_default_step_smaller(options, warmth):
    model, data = shifts(torch.full((3,), 0.5, dtype=torch.float64), 160, prior_scale=1.0)
    posterior = fit(model, data, batch_size=4, **options)  # 40 minibatches, of the same curvature
    expected = math.sqrt(0.5 * warmth / 40 / (160 * 0.25 + 1))
    assert float(posterior.statistics["step_size"][0, 0]) == pytest.approx(expected, rel=1e-6)


def test_scales_are_learned_in_the_warm_up_and_then_kept():
    model, data = shifts(torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64), prior_scale=1.0)
    short, long = (fit(model, data, preconditioning="rmsprop", num_warmup=60, num_samples=n).scales for n in (1, 40))
    assert torch.equal(short, long)
    torch.testing.assert_close(short.mean(dim=1), torch.ones(2, dtype=torch.float64))
    assert (short.diff(dim=1) > 0).all()  # the steeper, the smaller
    assert torch.equal(fit().scales, torch.ones(2, 31, dtype=torch.float64))


def test_a_chain_does_not_depend_on_how_many_others_there_are():
    three, one = (fit(num_chains=n, vectorised=False, step_size=0.01).draws for n in (3, 1))
    assert torch.equal(three[0], one[0])
    assert not torch.equal(three[0], three[1])


def test_one_pass_for_all_chains_gives_the_same_numbers_to_rounding():
    """The measured step size, too, which is that of the chain where the curvature is largest."""
    options = {"start": "prior", "num_chains": 3, "num_warmup": 5}
    together, apart = (fit(vectorised=choice, **options) for choice in (True, False))
    torch.testing.assert_close(together.draws, apart.draws, rtol=1e-9, atol=1e-9)
    for name in ("lp", "step_size"):
        torch.testing.assert_close(together.statistics[name], apart.statistics[name], rtol=1e-9, atol=1e-9)


# Where chains start


def test_chains_start_at_the_network_at_the_prior_or_at_a_posterior():
    model = mlp_model()
    still = {"num_warmup": 0, "num_samples": 1, "thinning": 1, "step_size": 1e-9, "num_chains": 3}
    own = Layout.of(model).join(model.initial())
    assert torch.equal(fit(model, start="network", **still).draws[:, 0], own.expand(3, -1))
    mode = map_estimate.fit(model, measured(), num_epochs=2, seed=0)
    assert torch.equal(fit(model, start=mode, **still).draws[:, 0], mode.values.expand(3, -1))
    prior = fit(model, start="prior", **still).draws[:, 0]
    assert prior.std(dim=0).min() > 0
    assert 0.7 < float(prior.std()) < 1.3


def test_chains_that_are_not_told_where_begin_as_members_of_an_ensemble_or_at_trained_weights():
    still = {"num_warmup": 0, "num_samples": 1, "thinning": 1, "step_size": 1e-9, "num_chains": 3}
    model = mlp_model()
    fresh = fit(model, **still).draws[:, 0]
    assert torch.equal(fresh, fit(model, start="reset", **still).draws[:, 0])
    assert (fresh.std(dim=0) > 0).all()
    assert float(fresh.std()) < 0.6  # as layers initialise themselves, narrower than the prior
    trained = mlp_model()
    with torch.no_grad():
        for parameter in trained.net.parameters():
            parameter.add_(10.0)
    own = Layout.of(trained).join(trained.initial())
    assert torch.equal(fit(trained, **still).draws[:, 0], own.expand(3, -1))
    with pytest.raises(ValueError, match=r"`start` must be .*'reset'.*got 'random'"):
        fit(model, start="random")


def test_a_run_that_was_begun_by_default_goes_on_from_where_it_began(tmp_path):
    for name, model in (("reset", mlp_model()), ("prior", mlp_model())):
        told = {} if name == "reset" else {"start": "prior"}  # the default of before
        first = fit(model, checkpoint=tmp_path / name, **told)
        assert torch.equal(fit(model, checkpoint=tmp_path / name).draws, first.draws)


@pytest.mark.parametrize("start", ["prior", "network", "reset"])
def test_point_values_need_a_posterior_to_stand_at(start):
    model = mlp_model(likelihoods.Normal(scale="learned"), random="last_layer")
    with pytest.raises(ValueError, match="pass a fitted posterior as `start`"):
        fit(model, start=start)
    mode = map_estimate.fit(model, measured(), num_epochs=20, seed=0)
    posterior = fit(model, start=mode)
    draws, fixed = posterior.sample_weights(), mode.sample_weights()
    for name in model.points:
        assert torch.equal(draws[name], fixed[name].expand_as(draws[name]))
    assert all(draws[name].std(dim=0).min() > 0 for name in model.laws)
    lp = posterior.statistics["lp"]  # the likelihood was read at those values
    flat = Layout.of(model).join({name: value[0] for name, value in draws.items()})
    assert torch.equal(flat[: len(flat) - 25], posterior.draws[0, 0, : len(flat) - 25])
    assert lp.isfinite().all()


# Stops


CASES = {
    "sghmc": {},
    "sgld, cyclical, preconditioned": {
        "sampler": "sgld", "schedule": "cyclical", "num_cycles": 2, "preconditioning": "rmsprop"
    },
    "one after another": {"vectorised": False},
    "loader": {"loader": True},
}  # fmt: skip


class StoppedError(Exception):
    """As if the power had failed."""


def options_and_data(case):
    options, data = dict(CASES[case]), measured()
    if options.pop("loader", False):
        data = DataLoader(TensorDataset(data.x, data.y), batch_size=16, shuffle=True)
    return options, data


@cache
def uninterrupted_fit(case):
    """Fitted once for all the moments at which others are stopped."""
    options, data = options_and_data(case)
    return fit(None, data, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_after", [1, 13])
def test_a_stopped_run_goes_on_to_the_same_bits(case, stop_after, tmp_path, monkeypatch):
    options, data = options_and_data(case)
    uninterrupted = uninterrupted_fit(case)
    steps, original = itertools.count(), sgmcmc_run.Run._step

    def step(self):
        if next(steps) == stop_after:
            raise StoppedError
        original(self)

    monkeypatch.setattr(sgmcmc_run.Run, "_step", step)
    checkpoint = Checkpoint(tmp_path / "state", every_steps=1)
    with pytest.raises(StoppedError):
        fit(None, data, checkpoint=checkpoint, **options)
    monkeypatch.setattr(sgmcmc_run.Run, "_step", original)
    torch.rand(3)  # whatever happened in between
    resumed = fit(None, data, checkpoint=checkpoint.path, seed=None, **options)  # which writes at the end alone
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(resumed), tensors_of(uninterrupted), strict=True))


@pytest.mark.parametrize("options", [{"friction": 0.2}, {"num_samples": 3}, {"sampler": "sgld"}, {"batch_size": 8}])
def test_a_checkpoint_of_another_run_is_refused(options, tmp_path):
    fit(checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match="belongs to another fit"):
        fit(checkpoint=tmp_path / "state", **options)


@pytest.mark.parametrize("own", [{"start": "network"}, {"preconditioning": "rmsprop"}], ids=["network", "scales"])
def test_a_longer_run_goes_on_to_the_bits_of_one_that_was_longer_from_the_start(own, tmp_path):
    fit(checkpoint=tmp_path / "state", **own)
    longer = fit(num_samples=9, checkpoint=tmp_path / "state", **own)
    assert all(
        torch.equal(a, b) for a, b in zip(tensors_of(longer), tensors_of(fit(num_samples=9, **own)), strict=True)
    )


def test_a_run_in_cycles_cannot_be_made_longer(tmp_path):
    cycles = {"schedule": "cyclical", "num_cycles": 2}
    fit(checkpoint=tmp_path / "state", **cycles)
    with pytest.raises(ValueError, match="since the cycles of its step size would be longer"):
        fit(num_samples=8, checkpoint=tmp_path / "state", **cycles)


def test_a_network_that_was_built_without_a_seed_goes_on_from_the_file(tmp_path):
    first = fit(start="network", checkpoint=tmp_path / "state")
    other = mlp_model().reinitialise(5)
    with pytest.warns(UserWarning, match="began at other weights than the network has"):
        again = fit(other, start="network", checkpoint=tmp_path / "state")
    assert torch.equal(again.draws, first.draws)


def test_a_table_of_forty_rows_whose_noise_falls_is_fitted_by_the_defaults_step_size():
    """Curvatures grow a hundredfold within twenty steps, long before the first tenth of the warm-up is over."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=noise)
    data = Dataset(x, x[:, 0].sin() + 0.1 * torch.randn(40, generator=noise))
    scale = priors.HalfNormal()
    model = BayesianNetwork(networks.mlp(2, (16,), 1, seed=0), priors.Normal(), likelihoods.Normal(scale=scale))
    posterior = sgmcmc.fit(model, data, num_warmup=250, num_samples=1, num_chains=2, seed=0, progress=False)
    told = posterior.warmup_statistics["step_size"][0]
    assert told[0] > 3 * told[24]
    assert posterior.draws.isfinite().all()


@pytest.mark.parametrize("vectorised", [True, False])
def test_a_chain_that_diverges_is_told_with_its_step_size(vectorised):
    case = Conjugate(50, 3, 0.1)
    with pytest.raises(FloatingPointError, match=r"chain \d.* at step \d+, with step size 3. Lower `step_size`"):
        fit(case.model, case.data, step_size=3.0, vectorised=vectorised, num_warmup=200)


class Branching(nn.Module):
    """A network that vmap cannot follow."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x) if x.sum() < 1e9 and self.layer.weight.sum() < 1e9 else x[:, :1]


def test_networks_that_vmap_cannot_follow_run_one_after_another():
    model = BayesianNetwork(built(Branching), priors.Normal(), likelihoods.Normal(0.5))
    assert fit(model).draws.isfinite().all()
    with pytest.raises(ValueError, match="cannot move together"):
        fit(model, vectorised=True)


def test_weights_of_rows_count():
    data = measured(8)
    weight = torch.tensor([2.0, 0.0] * 4, dtype=torch.float64)
    doubled = Dataset(data.x, data.y, weight)
    chosen = data.rows(torch.arange(0, 8, 2).repeat_interleave(2))
    one, other = (fit(None, rows, batch_size=8, step_size=1e-3).draws for rows in (doubled, chosen))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_noise_comes_from_the_chains_own_generators():
    chains = Chains.at(torch.zeros(2, 4), [generator(3), generator(4)])
    expected = torch.randn(4, generator=generator(4))
    assert torch.equal(chains.momenta[1], expected)
