"""HMC and NUTS draw from posteriors that are known, the same ones however the chains are run, stopped and resumed."""

import math
import warnings
from functools import cache

import pytest
import torch
from pyro.infer.mcmc.util import initialize_model
from torch import nn

from bayesuq.data import Batch, Dataset
from bayesuq.inference import hmc, map_estimate
from bayesuq.inference.chains import processes as chain_methods
from bayesuq.inference.chains import run as chain_run
from bayesuq.inference.chains import warmup as adaptation
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.chains.processes import num_cores
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.randomness import isolated
from tests.inference.chains.targets import distances, standard_errors, worst_moment
from tests.inference.examples import Conjugate, built, measured, noise
from tests.posterior_contract import tensors_of

FAR = 4.5  # standard errors: 20 moments exceed it with a probability of 2e-4
SHORT = {"num_samples": 6, "num_warmup": 12, "num_chains": 2, "max_tree_depth": 3, "seed": 1}
CALM = (
    "ignore:.* of the trajectories had the greatest length:UserWarning",
    "ignore:.* draws follow a trajectory that diverged:UserWarning",
)
MANY = {"num_chains": 16, "num_samples": 100}  # chains that move together
LINEAR = Conjugate(40, 3, 0.5, dtype=torch.float64)
KERNELS = {
    "nuts": {"kernel": "nuts", "chain_method": "sequential"},
    "hmc": {"kernel": "hmc", "num_steps": 6, "chain_method": "sequential"},
    "vectorised": {"kernel": "hmc", "num_steps": 6, "chain_method": "vectorised"},
}


@cache
def regression(*, batch_norm=False, scale=0.2, **options):
    net = built(lambda: networks.mlp(3, (6,), 1, activation="tanh", batch_norm=batch_norm))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=scale), **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


def quiet_fit(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return hmc.fit(*args, **{**SHORT, **options})


# Known posteriors


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), [("nuts", {"num_chains": 2, "num_samples": 300}), ("vectorised", MANY)])
def test_linear_regression_has_its_exact_mean_and_covariance(name, options):
    posterior = hmc.fit(LINEAR.model, LINEAR.data, num_warmup=150, seed=0, **options, **KERNELS[name])
    assert worst_moment(posterior.draws, LINEAR.mean, LINEAR.precision.inverse()) < FAR
    # And these errors are small: each mean is known to a tenth of its scale.
    assert (standard_errors(posterior.draws) < 0.1 * LINEAR.precision.inverse().diag().sqrt()).all()
    x = noise(8, 3, 3)
    design = torch.cat([x, torch.ones(3, 1, dtype=torch.float64)], dim=1)
    exact = ((design @ LINEAR.precision.inverse()) * design).sum(dim=1)
    torch.testing.assert_close(posterior.predict(x).epistemic[:, 0], exact, rtol=0.2, atol=0)


def scale_on_a_grid(data, prior):
    """E and Var of (w, log s) under y ~ N(w x, s^2), w ~ N(0, 1), s ~ prior, by sums over a fine grid."""
    w, log_s = torch.linspace(-1, 3, 801).double(), torch.linspace(-3.5, 1.5, 801).double()
    s = log_s.exp()
    residuals = (data.y - data.x * w).square().sum(dim=0)  # (W,)
    log_density = -0.5 * residuals[:, None] / s**2 - len(data) * log_s - 0.5 * w[:, None] ** 2
    log_density = log_density + prior.entry(torch.zeros((), dtype=torch.float64)).log_prob(s) + log_s  # ds = s dlog s
    share = (log_density - log_density.logsumexp(dim=(0, 1))).exp()
    grid = torch.stack(torch.meshgrid(w, log_s, indexing="ij"), dim=-1)
    mean = (share[..., None] * grid).sum(dim=(0, 1))
    return mean, torch.einsum("ab,abi,abj->ij", share, grid - mean, grid - mean)


SCALE_CASES = {
    "nuts": (priors.HalfNormal(0.3), {"num_chains": 2, "num_samples": 250}),
    "vectorised": (priors.HalfCauchy(0.5), MANY),
}


def one_slope_with_noise(prior):
    x = noise(0, 6, 1)
    net = built(lambda: nn.Linear(1, 1, bias=False, dtype=torch.float64))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=prior))
    return model, Dataset(x, x[:, 0] + 0.5 * noise(1, 6))


@pytest.mark.slow
@pytest.mark.filterwarnings(*CALM)
@pytest.mark.parametrize("name", SCALE_CASES)
def test_a_noise_scale_under_a_prior_is_that_of_a_grid(name):
    prior, options = SCALE_CASES[name]
    model, data = one_slope_with_noise(prior)
    posterior = hmc.fit(model, data, num_warmup=150, seed=2, **options, **KERNELS[name])
    assert worst_moment(posterior.draws, *scale_on_a_grid(data, prior)) < FAR
    assert (standard_errors(posterior.draws) < 0.06).all()
    scale = posterior.sample_weights()["likelihood.scale"]
    torch.testing.assert_close(scale.log().mean(), posterior.draws[..., 1].mean(), rtol=1e-12, atol=0)


@pytest.mark.oracle
def test_its_target_is_pyros_potential_of_the_traced_model():
    """What Pyro's NUTS would move over; that chains draw from it, the grid above says."""
    model, data = one_slope_with_noise(priors.HalfNormal())
    ours = NetworkPotential(model, Batch(data.x, data.y, None))
    with isolated(0):
        _, theirs, _, _ = initialize_model(model, (data.x, data.y))
    for w, log_scale in noise(3, 5, 2):
        value, _ = ours.at(torch.stack([w, log_scale]))
        expected = theirs({"weight": w.reshape(1, 1), "likelihood.scale": log_scale})
        assert value == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.slow
def test_without_data_to_speak_of_it_draws_from_the_prior():
    data = Dataset(noise(0, 5, 3), noise(1, 5), weight=torch.full((5,), 1e-12))
    model = BayesianNetwork(
        nn.Linear(3, 1, dtype=torch.float64), priors.Laplace(), likelihoods.Normal(scale=priors.LogNormal())
    )
    options = {"num_samples": 150, "num_warmup": 150, "num_chains": 16, "seed": 0}
    posterior = hmc.fit(model, data, kernel="hmc", num_steps=8, **options)
    assert distances(posterior.draws, torch.zeros(5)).max() < FAR
    variances = torch.tensor([2.0, 2.0, 2.0, 2.0, 1.0], dtype=torch.float64)
    assert distances(posterior.draws.square(), variances).max() < FAR


# However the chains are run


@pytest.mark.slow
@pytest.mark.filterwarnings(*CALM)
@pytest.mark.parametrize("kernel", ["nuts", "hmc"])
def test_chains_in_processes_are_chains_one_after_another(kernel):
    class Scaled(nn.Module):  # a class that only this function knows
        def __init__(self, factor):
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.scaled = lambda value: factor * value

        def forward(self, x):
            return self.scaled(self.linear(x))

    model = BayesianNetwork(built(lambda: Scaled(2.0)), priors.Normal(), likelihoods.Normal(scale=priors.HalfNormal()))
    one, other = (
        hmc.fit(model, measured(), **{**SHORT, "num_chains": 3}, kernel=kernel, chain_method=method)
        for method in ("sequential", "parallel")
    )
    assert same(one, other)


@pytest.mark.filterwarnings(*CALM)
def test_a_chain_is_the_same_whatever_their_number():
    few, more = (hmc.fit(regression(), measured(), **{**SHORT, "num_chains": number}) for number in (1, 3))
    assert torch.equal(few.draws[0], more.draws[0])
    assert not torch.equal(more.draws[0], more.draws[1])


@pytest.mark.filterwarnings(*CALM)
def test_the_number_of_threads_changes_no_bit_of_a_chain():
    before = torch.get_num_threads()
    fits = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            fits.append(hmc.fit(regression(), measured(2000), **SHORT))
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(before)
    assert same(*fits)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        f = self.linear(x)
        return f if f.sum() > 1e9 else f + 0


@pytest.mark.filterwarnings(*CALM)
def test_the_method_follows_from_kernel_size_and_cores(monkeypatch):
    asked = []

    def note(job, positions, method, potential, workers):
        asked.append(method)
        return original(job, positions, "sequential", potential, workers)

    original = chain_methods.run_chains
    monkeypatch.setattr("bayesuq.inference.hmc.fitting.run_chains", note)
    branching = BayesianNetwork(Branching(), priors.Normal(), likelihoods.Normal(scale=0.2))

    def chosen(model=None, data=None, **options):
        hmc.fit(model or regression(), data or measured(), **{**SHORT, **options})
        return asked.pop()

    hmc_options = {"kernel": "hmc", "num_steps": 1}
    monkeypatch.setattr(chain_methods, "PROCESSES_PAY", 3600.0)  # of an estimate by the clock, which others slow down
    assert chosen() == "sequential"
    assert chosen(**hmc_options) == "vectorised"
    assert chosen(**hmc_options, num_chains=1) == "sequential"
    assert chosen(branching, **hmc_options) == "sequential"
    assert chosen(data=measured(30_000), num_warmup=1, num_samples=1, **hmc_options) == "sequential"
    monkeypatch.setattr(chain_methods, "PROCESSES_PAY", 0.0)
    assert chosen() == ("parallel" if num_cores() > 1 else "sequential")
    assert chosen(num_chains=1) == "sequential"
    monkeypatch.setattr(chain_methods, "num_cores", lambda: 1)
    assert chosen() == "sequential"
    with pytest.raises(ValueError, match="branches on values"):
        hmc.fit(branching, measured(), **SHORT, kernel="hmc", chain_method="vectorised")


# What is kept


@pytest.mark.parametrize("name", KERNELS)
def test_statistics_have_arviz_names_and_a_value_for_each_draw(name):
    posterior = quiet_fit(regression(), measured(), **KERNELS[name])
    names = {"lp", "energy", "acceptance_rate", "n_steps", "step_size", "diverging"}
    assert set(posterior.statistics) == names | ({"tree_depth"} if name == "nuts" else set())
    assert {value.shape for value in posterior.statistics.values()} == {(2, 6)}
    assert {value.shape for value in posterior.warmup_statistics.values()} == {(2, 12)}
    assert set(posterior.warmup_statistics) == set(posterior.statistics)
    assert (posterior.warmup_statistics["step_size"].diff(dim=1) != 0).any()
    assert (posterior.statistics["step_size"].diff(dim=1) == 0).all()  # adapted, then fixed
    assert (posterior.statistics["step_size"][0] == posterior.statistics["step_size"][1]).all() == (
        name == "vectorised"
    )
    assert posterior.draws.shape == (2, 6, 31)
    assert posterior.inverse_mass.shape == (2, 31)
    model, data = regression(), measured().to("cpu")
    theta = Layout.of(model).split(posterior.draws[1, 4])
    truth = model.log_joint(theta, data.x.float(), data.y.float())
    assert float(posterior.statistics["lp"][1, 4]) == pytest.approx(float(truth), rel=1e-5)


def test_the_statistics_of_the_warmup_can_be_left_out():
    lean, whole = (quiet_fit(regression(), measured(), keep_warmup_statistics=keep) for keep in (False, True))
    assert lean.warmup_statistics == {}
    assert torch.equal(lean.draws, whole.draws)


@pytest.mark.parametrize("name", KERNELS)
def test_thinning_keeps_every_third_draw_and_adds_up_its_steps(name):
    whole = quiet_fit(regression(), measured(), **{**KERNELS[name], "num_samples": 12})
    thin = quiet_fit(regression(), measured(), **{**KERNELS[name], "num_samples": 4}, thinning=3)
    assert torch.equal(thin.draws, whole.draws[:, 2::3])
    for statistic, value in whole.statistics.items():
        groups = value.unflatten(1, (4, 3))
        merged = {"n_steps": groups.sum(2), "acceptance_rate": groups.double().mean(2), "diverging": groups.any(2)}
        torch.testing.assert_close(thin.statistics[statistic], merged.get(statistic, value[:, 2::3]).to(value.dtype))


# Where the chains begin


@pytest.mark.filterwarnings(*CALM)
def test_chains_begin_at_draws_from_the_prior_and_do_not_move_far_in_no_steps():
    model = BayesianNetwork(nn.Linear(3, 40), priors.Normal(0.5, 2.0), likelihoods.Normal(scale=1e3))
    data = Dataset(noise(0, 5, 3), noise(1, 5, 40))
    posterior = hmc.fit(
        model, data, num_samples=1, num_warmup=0, step_size=1e-9, num_chains=50, max_tree_depth=1, seed=0
    )
    starts = posterior.draws.flatten()
    assert len(starts) == 8000
    assert float(starts.mean()) == pytest.approx(0.5, abs=4 * 2 / math.sqrt(8000))
    assert float(starts.std()) == pytest.approx(2.0, rel=4 / math.sqrt(2 * 8000))


@pytest.mark.filterwarnings(*CALM)
def test_a_fitted_mode_gives_the_starts_the_buffers_and_the_point_values():
    model = regression(batch_norm=True, scale="learned", random="last_layer")
    mode = map_estimate.fit(model, measured(), num_epochs=2, seed=0)
    theta = Layout.of(model).split(mode.values)
    still = hmc.fit(model, measured(), **{**SHORT, "num_warmup": 0}, start=mode, step_size=1e-9)
    for name, value in still.sample_weights().items():
        torch.testing.assert_close(value, theta[name].expand_as(value), rtol=1e-5, atol=1e-6)
    moved = hmc.fit(model, measured(), **SHORT, start=mode)
    weights = moved.sample_weights()
    assert set(model.points) == {"1.weight", "1.bias", "2.weight", "2.bias", "likelihood.scale"}
    for name, value in weights.items():
        assert torch.equal(value, theta[name].expand_as(value)) == (name in model.points)
    assert all(torch.equal(value, mode.buffers[name]) for name, value in moved.buffers.items())
    assert not torch.equal(mode.buffers["2.running_mean"], model.net[2].running_mean)
    assert moved.inverse_mass.shape == (2, 7)


@pytest.mark.filterwarnings(*CALM)
def test_members_of_a_posterior_are_shared_out_as_starts():
    earlier = hmc.fit(regression(), measured(), **{**SHORT, "num_samples": 3, "num_chains": 1})
    later = hmc.fit(
        regression(), measured(), **{**SHORT, "num_chains": 4, "num_warmup": 0, "num_samples": 1}, start=earlier,
        step_size=1e-9,
    )  # fmt: skip
    expected = earlier.draws[0][[0, 1, 2, 0]]
    torch.testing.assert_close(later.draws[:, 0], expected, rtol=1e-5, atol=1e-6)


def test_point_values_without_a_posterior_to_take_them_from_are_refused():
    with pytest.raises(
        ValueError, match=r"cannot learn point values; the model has likelihood\.scale\. Give them a pr"
    ):
        hmc.fit(regression(scale="learned"), measured(), **SHORT)


def test_a_posterior_of_another_model_is_refused_as_a_start():
    mode = map_estimate.fit(regression(), measured(), num_epochs=1, seed=0)
    with pytest.raises(ValueError, match="must be of the same model"):
        hmc.fit(regression(scale=priors.HalfNormal()), measured(), **SHORT, start=mode)


def test_a_density_that_is_nowhere_finite_is_told():
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x) * torch.nan

    model = BayesianNetwork(Broken(3, 1), priors.Normal(), likelihoods.Normal(scale=1.0))
    with pytest.raises(ValueError, match="not finite at any of 100 starting points"):
        hmc.fit(model, measured(), **SHORT)


# Warnings


def test_divergences_are_warned_of_and_counted():
    net = nn.Linear(3, 1, dtype=torch.float64)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=1e-4))
    with pytest.warns(UserWarning, match="12 of 12 draws follow a trajectory that diverged") as record:
        posterior = hmc.fit(model, measured(), **{**SHORT, "num_warmup": 0}, step_size=1.0)
    assert record[0].filename == __file__
    assert posterior.num_divergences == 12


def test_trajectories_of_the_greatest_length_are_warned_of():
    with pytest.warns(UserWarning, match=r"100% of the trajectories had the greatest length, 2\^2 - 1 steps"):
        hmc.fit(
            LINEAR.model, LINEAR.data, **{**SHORT, "max_tree_depth": 2, "num_warmup": 0}, step_size=1e-3
        )  # fmt: skip


def test_chains_that_refuse_all_of_the_warmup_are_told_by_number():
    with pytest.warns(UserWarning, match="Chains 0, 1 of 2 refused all 12 transitions of the warm-up"):
        hmc.fit(LINEAR.model, LINEAR.data, **SHORT, step_size=1e30)


# Stopping and resuming


class StoppedError(Exception):
    """As if the power had failed."""


def stopped(monkeypatch, after, path, name, **options):
    """A fit that is stopped after so many transitions, of whichever chain, and then goes on."""
    count = 0
    original = chain_run._Run._move

    def move(self):
        nonlocal count
        count += 1
        if count > after:
            raise StoppedError
        original(self)

    file = Checkpoint(path, every_steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(chain_run._Run, "_move", move)
        with pytest.raises(StoppedError):
            quiet_fit(regression(), measured(), **KERNELS[name], **options, checkpoint=file)
    return quiet_fit(regression(), measured(), **KERNELS[name], **options, checkpoint=file)


WITH_A_WINDOW = {"num_warmup": 21, "thinning": 2, "num_samples": 4}  # and stops between kept draws


@cache
def whole_with_a_window(name):
    """Fitted once for all the moments at which others are stopped."""
    return quiet_fit(regression(), measured(), **KERNELS[name], **WITH_A_WINDOW)


@pytest.mark.parametrize("after", [3, 22, 33, 47])  # before a file, and in the phases of either chain
@pytest.mark.parametrize("name", KERNELS)
def test_a_stopped_fit_goes_on_to_the_same_bits(name, after, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptation, "SHORTEST", 20)
    if name == "vectorised" and after > 28:
        pytest.skip("all chains have 29 transitions")
    resumed = stopped(monkeypatch, after, tmp_path / "run", name, **WITH_A_WINDOW)
    assert same(whole_with_a_window(name), resumed)


@pytest.mark.parametrize("name", KERNELS)
def test_more_draws_are_those_of_a_run_that_was_longer_from_the_start(name, tmp_path, monkeypatch):
    options = {**KERNELS[name], "num_warmup": 4, "num_samples": 9, "thinning": 2}
    whole = quiet_fit(regression(), measured(), **options)
    stopped(monkeypatch, 11, tmp_path / "stopped", name, num_warmup=4, num_samples=5, thinning=2)
    for path, before in ((tmp_path / "stopped", 5), (tmp_path / "run", 1)):
        quiet_fit(regression(), measured(), **{**options, "num_samples": before}, checkpoint=path)
        assert same(whole, quiet_fit(regression(), measured(), **options, checkpoint=path))


def test_more_chains_leave_those_that_are_there(tmp_path):
    quiet_fit(regression(), measured(), chain_method="sequential", checkpoint=tmp_path / "run")
    options = {"num_chains": 3, "chain_method": "sequential"}
    whole = quiet_fit(regression(), measured(), **options)
    assert same(whole, quiet_fit(regression(), measured(), **options, checkpoint=tmp_path / "run"))


@pytest.mark.filterwarnings(*CALM)
def test_a_finished_fit_comes_back_at_once(tmp_path, monkeypatch):
    one = hmc.fit(regression(), measured(), **SHORT, checkpoint=tmp_path / "run")
    monkeypatch.setattr(chain_run._Run, "_move", None)
    assert same(one, hmc.fit(regression(), measured(), **{**SHORT, "seed": None}, checkpoint=tmp_path / "run"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 2}, "its seed is 1"),
        ({"num_samples": 3}, "its num_samples is .*, this one's 3"),
        ({"num_warmup": 7}, "its num_warmup is"),
        ({"max_tree_depth": 2}, "its kernel is"),
        ({"data": measured(seed=9)}, "its data is"),
        ({"model": regression(scale=0.3)}, "its log joint at fixed weights is"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_checkpoint_of_another_fit_is_refused(change, says, tmp_path):
    quiet_fit(regression(), measured(), checkpoint=tmp_path / "run")
    options = {"model": regression(), "data": measured(), **change}
    with pytest.raises(ValueError, match=says):
        quiet_fit(options.pop("model"), options.pop("data"), **options, checkpoint=tmp_path / "run")


def test_a_truncated_checkpoint_is_refused(tmp_path):
    quiet_fit(regression(), measured(), checkpoint=tmp_path / "run")
    part = tmp_path / "run.chain-1"
    part.write_bytes(part.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a complete file"):
        quiet_fit(regression(), measured(), checkpoint=tmp_path / "run")


def test_a_bar_shows_phase_step_size_and_divergences(capsys):
    quiet_fit(regression(), measured(), progress=True)
    shown = capsys.readouterr().err
    assert "chain-1" in shown
    assert "18/18" in shown
    assert "divergences=" in shown
