"""One program by every word: the same names, exact answers where there are some, files, resumed fits, and refusals."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayesuq.data import Dataset
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import ensemble, hmc, ivon, laplace, map_estimate, microcanonical, sgmcmc, swag, variational
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.training.checkpoint import Checkpoint
from tests.inference.examples import noise
from tests.inference.hmc.test_programs import DATA, NOISE, SCHOOLS, X, eight_schools, exact, line

FITS = {
    "variational": lambda **o: variational.fit(line, DATA, num_epochs=100, guide=variational.full_rank, **o),
    "hmc": lambda **o: hmc.fit(line, DATA, num_samples=20, num_warmup=30, num_chains=2, **o),
    "map_estimate": lambda **o: map_estimate.fit(line, DATA, num_epochs=50, **o),
    "laplace": lambda **o: laplace.fit(line, DATA, num_epochs=50, **o),
    "sgmcmc": lambda **o: sgmcmc.fit(line, DATA, num_samples=30, num_warmup=50, thinning=3, num_chains=2, **o),
    "microcanonical": lambda **o: microcanonical.fit(line, DATA, num_members=2, num_samples=20, num_warmup=200, **o),
    "ensemble": lambda **o: ensemble.fit(line, DATA, num_members=2, num_epochs=20, bootstrap=True, **o),
}


@pytest.fixture(scope="module")
def posteriors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return {name: fit(seed=0) for name, fit in FITS.items()}


def classes(x, y=None):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(2, 3), 1.0).to_event(2))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Categorical(logits=x[:, :2] @ weights), obs=y)


@pytest.mark.parametrize("method", [variational, hmc, map_estimate, laplace, sgmcmc, microcanonical, ensemble])
def test_labels_that_are_none_of_a_programs_classes_are_refused(method):
    labels = torch.arange(len(X)) % 3
    with pytest.raises(ValueError, match="labels from 0 to 2; got 1 to 3"):
        method.fit(classes, Dataset(X, labels + 1), seed=0)
    with pytest.raises(TypeError, match="whole-number labels; got fractions"):
        method.fit(classes, Dataset(X, labels + 0.5), seed=0)


@pytest.mark.filterwarnings("ignore:A model of your own cannot be recorded:UserWarning")
@pytest.mark.parametrize("name", FITS)
def test_every_word_gives_a_posterior_that_predicts_is_saved_and_told(name, posteriors, tmp_path):
    posterior = posteriors[name]
    mean, covariance = exact()
    slope = posterior.sample_weights(20, seed=0)["slope"]
    assert slope.shape[1:] == (2,)
    assert ((slope.mean(dim=0) - mean) / covariance.diag().sqrt()).abs().max() < 2.5
    posterior.save(tmp_path / name)
    loaded = load(tmp_path / name, model=line)
    one, other = (each.predict(X, num_samples=10, seed=3) for each in (posterior, loaded))
    assert torch.equal(one.mean, other.mean)
    assert float((one.mean[:, 0] - DATA.y[:, 0]).square().mean().sqrt()) < 1.3 * NOISE
    told = loaded.to_arviz(X, DATA.y, num_samples=8, num_prior_samples=3)
    assert told["log_likelihood"]["y"].shape[-1] == len(DATA)
    assert told["posterior"]["slope"].shape[-1] == 2


@pytest.mark.parametrize("name", [name for name in FITS if name != "hmc"])
def test_a_fit_made_twice_and_one_resumed_have_the_same_bits(name, posteriors, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        FITS[name](seed=0, checkpoint=Checkpoint(tmp_path / "fit", every_steps=7))
        again = FITS[name](seed=0, checkpoint=tmp_path / "fit")
    for mine, other in zip(*(p.sample_weights(5, seed=1).values() for p in (again, posteriors[name])), strict=True):
        assert torch.equal(mine, other)


def test_mode_law_and_evidence_of_a_conjugate_program_are_exact(posteriors):
    mean, covariance = exact()
    law = posteriors["laplace"]
    torch.testing.assert_close(posteriors["map_estimate"].values["slope"].double(), mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(law.mean.double(), mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(law.factor @ law.factor.T, covariance, rtol=1e-4, atol=1e-7)
    x = X.double()
    marginal = torch.distributions.MultivariateNormal(torch.zeros(40).double(), x @ x.T + NOISE**2 * torch.eye(40))
    assert law.log_marginal_likelihood == pytest.approx(float(marginal.log_prob(DATA.y[:, 0].double())), abs=1e-3)
    evidence = law.log_importance_ratios(DATA, num_samples=5, seed=1)  # of the exact law, a constant
    torch.testing.assert_close(evidence, marginal.log_prob(DATA.y[:, 0].double()).expand(5), rtol=0, atol=1e-2)
    diagonal = laplace.fit(line, DATA, structure="diagonal", num_epochs=50, seed=0)
    torch.testing.assert_close(diagonal.covariance, covariance.inverse().diag().reciprocal().diag(), rtol=1e-4, atol=0)


def test_minibatches_find_the_mode_and_the_law():
    mean, covariance = exact()
    mode = map_estimate.fit(line, DATA, batch_size=10, num_epochs=60, learning_rate=0.05, seed=0)
    torch.testing.assert_close(mode.values["slope"].double(), mean, rtol=0, atol=1e-3)
    chains = sgmcmc.fit(line, DATA, batch_size=20, num_samples=120, num_warmup=80, thinning=3, num_chains=2, seed=0)
    slope = chains.sample_weights()["slope"].double()
    assert ((slope.mean(dim=0) - mean) / covariance.diag().sqrt()).abs().max() < 0.4
    torch.testing.assert_close(slope.std(dim=0), covariance.diag().sqrt(), rtol=0.3, atol=0)


def test_a_mode_is_that_on_the_latents_own_support_and_laplaces_that_on_the_real_line():
    def rates(x, y=None):
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        with pyro.plate("data", len(x)):
            return pyro.sample("count", dist.Poisson(rate + 0 * x[:, 0]), obs=y)

    counts = torch.poisson(torch.full((40,), 2.0), generator=torch.Generator().manual_seed(0))
    data, total = Dataset(X, counts), float(counts.sum())
    mode = map_estimate.fit(rates, data, num_epochs=20, seed=0)
    assert float(mode.values["rate"]) == pytest.approx((total + 2) / 42, rel=1e-4)
    law = laplace.fit(rates, data, num_epochs=20, seed=0)
    assert float(law.mean.exp()) == pytest.approx((total + 3) / 42, rel=1e-3)  # in float32
    assert float(law.factor) == pytest.approx((total + 3) ** -0.5, rel=1e-3)


def heavy_tails(x, y=None):
    place = pyro.sample("place", dist.StudentT(1.0, 0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(0.01 * place + 0 * x[:, 0], 1.0), obs=y)


def centred(x, y=None):
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("groups", 8):
        theta = pyro.sample("theta", dist.Normal(0.0, tau))
    return pyro.sample("y", dist.Normal(theta + 0 * x[:, 0], 15.0).to_event(1), obs=y)


def test_laplace_says_when_its_law_is_wrong_or_there_is_no_mode():
    with pytest.warns(ConvergenceWarning, match=r"Pareto k .*hmc"):
        laplace.fit(heavy_tails, DATA, num_epochs=50, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with pytest.raises(ValueError, match=r"has no mode.*hmc.fit"):
            laplace.fit(centred, Dataset(torch.zeros(8, 1), 0.1 * noise(0, 8).float()), num_epochs=50, seed=0)


def schools_in_a_plate(sigma, effects=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25.0))
    with pyro.plate("schools", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        return pyro.sample("obs", dist.Normal(mu + tau * eta, sigma), obs=effects)


def test_guides_fit_sites_of_any_name_several_inputs_and_latents_of_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior = variational.fit(schools_in_a_plate, SCHOOLS, num_epochs=400, seed=0)
    assert posterior.observed == ("obs",)
    assert posterior.local == ("eta",)
    draws = posterior.sample_weights(200, seed=0)
    assert float(draws["mu"].mean()) == pytest.approx(7.5, abs=2.0)
    assert posterior.predict(SCHOOLS.x, num_samples=10).mean.shape == (8, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: map_estimate.fit(eight_schools, SCHOOLS, observed="y"), "observes no site 'y'|no site"),
        (lambda: map_estimate.fit(line, DATA, adversarial=True), "`adversarial`.*leave it out"),
        (lambda: laplace.fit(line, DATA, structure="kronecker"), "one of 'full', 'plates'"),
        (lambda: laplace.fit(line, DATA, subset="last_layer"), "are for networks"),
        (lambda: sgmcmc.fit(line, DATA, vectorised=True), "one after another"),
        (lambda: ensemble.fit(line, DATA, initialise="keep"), "are for networks"),
        (lambda: microcanonical.fit(line, DATA, validation=DATA), "begin without training"),
    ],
)
def test_what_a_program_does_not_have_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("fit", [ivon.fit, swag.fit])
def test_a_method_of_networks_alone_names_those_of_programs(fit):
    with pytest.raises(TypeError, match=r"A Pyro program is fitted by variational, laplace, .* microcanonical"):
        fit(line, DATA)


def scale_before_targets(x, scale=0.5, y=None):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(level, scale).expand([len(x)]), obs=y)


def scale_alone(x, scale=0.5):
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(level, scale).expand([len(x)]))


@pytest.mark.parametrize("program", [scale_before_targets, scale_alone])
@pytest.mark.parametrize("method", [laplace, variational])
def test_targets_never_go_into_an_argument_with_a_value_of_its_own(program, method):
    """Positive targets would do as scales, without a word."""
    y = torch.linspace(1.0, 2.0, 10)
    posterior = method.fit(program, Dataset(torch.zeros(10, 1), y), num_epochs=100, seed=0, progress=False)
    level = posterior.sample_weights(400, seed=0)["level"]
    precision = 10 / 0.5**2 + 1
    assert float(level.mean()) == pytest.approx(60 / precision, abs=5 * (400 * precision) ** -0.5)
    assert float(level.std()) == pytest.approx(precision**-0.5, rel=0.15)  # .035 by chance
