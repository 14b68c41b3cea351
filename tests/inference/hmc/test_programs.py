"""Chains on Pyro programs: exact moments, data and sites of any kind, files, resumed runs, ArviZ, and refusals."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from bayesuq.data import Dataset
from bayesuq.evaluation.diagnostics.leave_one_out import loo
from bayesuq.evaluation.simulation import calibrate
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import hmc, laplace, variational
from bayesuq.inference.chains.program_starts import program_starts
from bayesuq.inference.joint.program_potential import ProgramPotential
from bayesuq.inference.posteriors.program import ProgramChains
from bayesuq.inference.posteriors.program_reader import ProgramRows
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive
from bayesuq.randomness import globally_isolated
from tests.inference.examples import noise

UNRECORDED = pytest.mark.filterwarnings("ignore:A model of your own cannot be recorded:UserWarning")
NOISE = 0.4
X = noise(0, 40, 2).float()
DATA = Dataset(X, X @ torch.tensor([1.0, -0.5]) + NOISE * noise(1, 40).float())
SCHOOLS = Dataset(
    (torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),),
    torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
)


def line(x, y=None, num_data=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.Normal(x @ slope, NOISE), obs=y)


def eight_schools(sigma):
    """Pyro's example examples/eight_schools/mcmc.py, which is conditioned from outside."""
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)))
    tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)))
    theta = mu + tau * eta
    return pyro.sample("obs", dist.Normal(theta, sigma))


def exact():
    """Mean and covariance of the slope."""
    x = DATA.x.double()
    covariance = (x.T @ x / NOISE**2 + torch.eye(2)).inverse()
    return covariance @ x.T @ DATA.y[:, 0].double() / NOISE**2, covariance


@pytest.fixture(scope="module")
def chains():
    return hmc.fit(line, DATA, num_samples=250, num_warmup=100, num_chains=2, seed=0)


def test_nuts_has_the_exact_moments_of_a_conjugate_program_and_predicts_with_them(chains):
    mean, covariance = exact()
    draws = chains.sample_weights()["slope"].double()
    assert isinstance(chains, ProgramChains)
    assert draws.shape == (500, 2)
    assert chains.num_divergences == 0
    scales = covariance.diag().sqrt()
    assert ((draws.mean(dim=0) - mean) / scales).abs().max() < 0.22  # five standard errors of 500 draws
    torch.testing.assert_close(draws.std(dim=0), scales, rtol=0.12, atol=0)  # nearly four: .032 each
    predictive = chains.predict(DATA.x)
    assert isinstance(predictive, GaussianPredictive)
    assert predictive.num_samples == 500
    spread = (DATA.x.double() @ covariance * DATA.x).sum(dim=1)
    torch.testing.assert_close(predictive.epistemic[:, 0], spread, rtol=0.25, atol=0)
    torch.testing.assert_close(predictive.aleatoric, torch.full_like(predictive.aleatoric, NOISE**2))


def test_plain_trajectories_agree_with_nuts(chains):
    plain = hmc.fit(line, DATA, kernel="hmc", num_steps=8, num_samples=200, num_warmup=100, num_chains=2, seed=1)
    one, other = (each.sample_weights()["slope"] for each in (chains, plain))
    assert ((one.mean(dim=0) - other.mean(dim=0)) / one.std(dim=0)).abs().max() < 0.25


@UNRECORDED
def test_it_is_saved_loaded_and_told_to_arviz(chains, tmp_path):
    chains.save(tmp_path / "chains")
    loaded = load(tmp_path / "chains", model=line)
    one, other = (each.predict(DATA.x, num_samples=20, seed=0).component_means for each in (chains, loaded))
    assert torch.equal(one, other)
    told = loaded.to_arviz(DATA.x, DATA.y, num_prior_samples=5)
    assert told["posterior"]["slope"].shape == (2, 250, 2)
    assert {"energy", "diverging", "tree_depth", "lp"} <= set(told["sample_stats"].data_vars)
    assert np.isfinite(loo(told).elpd)
    density = dist.Normal(DATA.x.double() @ chains.draws["slope"][1, 3].double(), NOISE).log_prob(DATA.y[:, 0].double())
    np.testing.assert_allclose(told["log_likelihood"]["y"].values[1, 3], density, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["sequential", "parallel"])
def test_a_stopped_fit_goes_on_with_the_same_bits(method, tmp_path):
    class StopError(Exception):
        pass

    options = {"num_warmup": 40, "num_chains": 2, "seed": 0}
    path = tmp_path / "fit"
    hmc.fit(line, DATA, num_samples=20, checkpoint=Checkpoint(path, every_steps=10), chain_method=method, **options)
    longer = hmc.fit(line, DATA, num_samples=60, checkpoint=path, chain_method="sequential", **options)
    whole = hmc.fit(line, DATA, num_samples=60, **options)
    assert torch.equal(longer.draws["slope"], whole.draws["slope"])
    with pytest.raises(ValueError, match=r"another fit|not this one's"):
        hmc.fit(eight_schools, SCHOOLS, observed="obs", num_samples=60, checkpoint=path, **options)


def test_pyros_own_example_of_schools_runs_unchanged_with_its_local_latents():
    posterior = hmc.fit(eight_schools, SCHOOLS, observed="obs", num_samples=150, num_warmup=100, num_chains=2, seed=0)
    assert posterior.local == ("eta",)
    draws = posterior.sample_weights()
    theta = (draws["mu"] + draws["tau"] * draws["eta"]).mean(dim=0)
    # Gelman et al. 2013, table 5.3, by the flat prior of tau: 11, 7, 6, 7, 5, 6, 10, 8.
    assert (theta - torch.tensor([11.0, 7.0, 6.0, 7.0, 5.0, 6.0, 10.0, 8.0])).abs().max() < 2.0
    assert posterior.predict(SCHOOLS.x, num_samples=20).mean.shape == (8, 1)
    with pytest.raises(ValueError, match=r"eta belong to single rows.*8 rows.*got 3 rows"):
        posterior.predict((torch.ones(3),))


def counts_and_sizes(x, y=None):
    rate = pyro.sample("rate", dist.Normal(0.0, 1.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("count", dist.Poisson((rate + 0 * x[:, 0]).exp()), obs=None if y is None else y[:, 0])
        pyro.sample("size", dist.Gamma(2.0, spread + 0 * x[:, 0]), obs=None if y is None else y[:, 1])


def test_each_of_several_observed_sites_is_predicted_and_told():
    y = torch.stack([torch.poisson(torch.full((40,), 2.0)), noise(2, 40).float().abs() + 0.1], dim=1)
    data = Dataset(X, y)
    names = ("count", "size")
    posterior = hmc.fit(counts_and_sizes, data, observed=names, num_samples=50, num_warmup=60, num_chains=2, seed=0)
    assert posterior.observed == names
    with pytest.raises(ValueError, match="`site` must name one of the program's observed sites: 'count', 'size'"):
        posterior.predict(X)
    for place, name in enumerate(names):
        predictive = posterior.predict(X, site=name, num_samples=50)
        assert isinstance(predictive, MixturePredictive)
        assert float(predictive.mean.mean()) == pytest.approx(float(y[:, place].mean()), rel=0.3)
    told = posterior.to_arviz(X, y, num_prior_samples=5)
    for group in ("log_likelihood", "observed_data", "posterior_predictive", "prior_predictive"):
        assert set(names) <= set(told[group].data_vars)
    assert all(np.isfinite(loo(told, site=name).elpd) for name in names)
    with pytest.raises(ValueError, match="several observed sites, 'count', 'size': name one"):
        loo(told)
    rate = posterior.draws["rate"][0, 5].exp()
    np.testing.assert_allclose(
        told["log_likelihood"]["count"].values[0, 5], dist.Poisson(rate).log_prob(y[:, 0]), rtol=1e-4
    )


def test_labels_under_a_name_of_their_own():
    def program(x, labels=None):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
        with pyro.plate("data", len(x)):
            return pyro.sample("kind", dist.Categorical(logits=x @ slope), obs=labels)

    data = Dataset(X, (X @ torch.tensor([[2.0, 0.0, -2.0], [0.0, 2.0, -2.0]])).argmax(dim=1))
    posterior = hmc.fit(program, data, num_samples=60, num_warmup=60, num_chains=1, seed=0)
    predictive = posterior.predict(X)
    assert isinstance(predictive, CategoricalPredictive)
    assert (predictive.mean.argmax(dim=1) == data.y).double().mean() > 0.8


def test_chains_apart_are_told_by_the_latents_name():
    def two_places(x, y=None):
        place = pyro.sample("place", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(place.square(), 0.1), obs=y)

    data = Dataset(X, torch.full((40,), 4.0))
    with pytest.warns(ConvergenceWarning, match=r"chains disagree.*place \("):
        hmc.fit(two_places, data, num_samples=50, num_warmup=100, num_chains=4, seed=1)


def draws_beside_its_sites(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(slope * torch.nn.functional.dropout(x[:, 0]), 1.0), obs=y)


def positive_only(x, y=None):
    rate = pyro.sample("rate", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Exponential(rate + 0 * x[:, 0]), obs=y)


@pytest.mark.parametrize(
    ("program", "options", "error", "message"),
    [
        (line, {"observed": "z"}, ValueError, "observes no site 'z'; it observes y, and samples slope"),
        (line, {"observed": 3}, TypeError, "`observed` must be the name"),
        (line, {"start": "mode"}, ValueError, "`start` must be 'uniform', 'prior' or a posterior"),
        (line, {"chain_method": "vectorised", "kernel": "hmc"}, ValueError, "cannot be vectorised"),
        (draws_beside_its_sites, {}, ValueError, "draws numbers beside its sites"),
        (positive_only, {}, ValueError, "no values of 'y': the support of its Exponential"),
        (torch.nn.Linear(2, 1), {}, TypeError, "or a Pyro program with an observed site; got Linear"),
    ],
)
def test_what_cannot_be_sampled_is_refused_by_name(program, options, error, message):
    with pytest.raises(error, match=message):
        hmc.fit(program, DATA, num_samples=10, num_warmup=10, num_chains=1, **options)


def test_a_draw_of_the_prior_or_of_a_posterior_is_a_start(chains):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for start in ("prior", chains):
            posterior = hmc.fit(
                line, DATA, start=start, num_samples=5, num_warmup=0, num_chains=1, seed=0, step_size=1e-6
            )
            first = posterior.draws["slope"][0, 0]
            near = chains.draws["slope"].flatten(0, 1)
            distance = (near - first).norm(dim=1).min()
            assert (distance < 1e-3) == (start is chains)


def located(scale):
    def program(x, y=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean + 0 * x[:, 0], scale), obs=y)

    return program


def counted(x, y=None):
    """Few counts under a wide prior: log(rate) for rate, or the prior left out, is another law by far."""
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Poisson(rate + 0 * x[:, 0]), obs=y)


@pytest.mark.parametrize(
    ("truth", "fitted", "is_right"),
    [(located(1.0), located(1.0), True), (counted, counted, True), (located(1.0), located(0.3), False)],
    ids=["normal", "counts", "another noise"],
)
def test_ranks_of_the_truth_are_uniform_for_the_program_that_made_the_data_alone(truth, fitted, is_right):
    x = torch.zeros(2 if truth is counted else 5, 1)

    def simulate(seed):
        with globally_isolated(seed):
            trace = pyro.poutine.trace(truth).get_trace(x)
        name = "rate" if truth is counted else "mean"
        return {name: trace.nodes[name]["value"]}, Dataset(x, trace.nodes["y"]["value"])

    def fit(data, seed):
        return hmc.fit(fitted, data, num_samples=9, thinning=2, num_warmup=25, num_chains=1, seed=seed)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Of 40 the test tells laws that are half as wide as they should be; a third as wide, by 20.
        ranks = calibrate(simulate, fit, num_simulations=40 if is_right else 20, num_draws=9, seed=0)
    assert (ranks.p_value() > 0.01) == is_right


def test_chains_of_a_recursion_that_runs_off_begin_where_it_does_not() -> None:
    """Residuals of y under e_t = y_t - theta e_(t-1): of the uniform starts, half have |theta| > 1, and up to 1e60."""

    def recursion(x, y=None):
        theta = pyro.sample("theta", dist.Normal(0.0, 2.0))
        powers = (-theta) ** torch.arange(len(x), dtype=torch.float64)
        pyro.factor("y", dist.Normal(0.0, 0.1).log_prob(powers * y).sum())

    data = Dataset(torch.zeros(100, 1), torch.ones(100))
    reader = ProgramRows(recursion, None, None)
    rows = reader.open(data)
    potential = ProgramPotential(reader.joint, rows)
    starts = program_starts(potential, "uniform", 12, 0)
    assert all(potential.at(one)[0] < 1e10 for one in starts)
    assert starts.std() > 0.4  # of evenly drawn ones in -1 to 1: .58


def test_targets_behind_obs_mask_say_nothing_and_their_stand_ins_are_no_flat_dimensions() -> None:
    """Of 12 targets 4 are masked, and stand at 100: the posterior is that of the other 8."""
    given = torch.arange(12) < 8

    def program(x, y=None):
        level = pyro.sample("level", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(level, 1.0).expand([len(x)]), obs=y, obs_mask=given)

    y = torch.where(given, torch.arange(12.0), torch.tensor(100.0))
    posterior = laplace.fit(program, Dataset(torch.zeros(12, 1), y), num_epochs=50, seed=0, progress=False)
    draws = posterior.sample_weights(400, seed=0)
    precision = 8 + 0.01
    assert float(draws["level"].mean()) == pytest.approx(28 / precision, abs=4 * (precision * 400) ** -0.5)
    assert float(draws["level"].std()) == pytest.approx(precision**-0.5, rel=0.15)  # .035 of it by chance
    predicted = posterior.predict(torch.zeros(12, 1), num_samples=400, seed=0).mean
    torch.testing.assert_close(predicted, draws["level"].double().mean().expand(12, 1), rtol=0, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        guided = variational.fit(program, Dataset(torch.zeros(12, 1), y), num_epochs=2, seed=0, progress=False)
    assert guided.observed == ("y_observed",)
    assert guided.predict(torch.zeros(12, 1), num_samples=3, seed=0).mean.shape == (12, 1)
    chains = hmc.fit(
        program, Dataset(torch.zeros(12, 1), y), num_samples=40, num_warmup=60, num_chains=1, seed=0, progress=False
    )
    assert int(chains.statistics["tree_depth"].max()) < 6  # 10, the greatest, where the stand-ins are flat
