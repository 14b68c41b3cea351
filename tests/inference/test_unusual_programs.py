"""Programs in forms that people give them, by several words: right, or refused by name with a remedy."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.reparam import LocScaleReparam

from bayesuq.inference import hmc, laplace, map_estimate, sgmcmc, variational
from bayesuq.to_arviz.container import group_names
from tests.zoo.unusual_programs import (
    NO_DENSITY,
    RIGHT,
    ROWS,
    USUAL,
    Case,
    X,
    draws_by_numpy,
    of_so_many_rows,
    targets_nowhere,
)

BY_ANOTHER_READER = ("columns", "of_so_many_rows", "inputs_by_name", "targets_by_name", "whatever_comes")
WORDS = {
    "laplace": lambda program: laplace.fit(program, ROWS, num_epochs=2, seed=0),
    "variational": lambda program: variational.fit(program, ROWS, num_epochs=2, seed=0),
    "an autoguide": lambda program: variational.fit(program, ROWS, guide=AutoNormal, num_epochs=2, seed=0),
    "hmc": lambda program: hmc.fit(program, ROWS, num_samples=5, num_warmup=5, num_chains=1, seed=0),
    "map_estimate": lambda program: map_estimate.fit(program, ROWS, num_epochs=2, seed=0),
    "sgmcmc": lambda program: sgmcmc.fit(program, ROWS, num_samples=5, num_warmup=5, thinning=2, num_chains=1, seed=0),
}


def moments(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the level."""
    precision, total = case.exact
    return total.double() / precision, torch.tensor(precision**-0.5).double()


@pytest.mark.parametrize("name", RIGHT)
def test_a_program_of_any_form_has_its_posterior(name: str) -> None:
    """All are conjugate, so that Laplace's law is exact."""
    case = RIGHT[name]
    law = laplace.fit(case.program, case.data, num_epochs=20, seed=0)
    mean, spread = moments(case)
    torch.testing.assert_close(law.mean.double(), mean.reshape(-1), rtol=0, atol=1e-4)
    torch.testing.assert_close(law.factor.double(), spread * torch.eye(mean.numel()).double(), rtol=1e-3, atol=1e-6)
    if not case.predicts:
        with pytest.raises(ValueError, match=r"observes no site.*Sample them: `pyro.sample"):
            law.predict(case.data.x)
        return
    predicted, drawn = law.predict(case.data.x, num_samples=3, seed=0).mean, law.sample_weights(3, seed=0)["level"]
    torch.testing.assert_close(predicted, drawn.double().mean(dim=0).expand(predicted.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BY_ANOTHER_READER)
def test_a_guide_finds_it_too(name: str) -> None:
    case = RIGHT[name]
    posterior = variational.fit(case.program, case.data, guide=variational.full_rank, num_epochs=60, seed=0)
    draws = posterior.sample_weights(100, seed=0)["level"].double()
    mean, spread = moments(case)
    assert bool(((draws.mean(dim=0) - mean).abs() < 0.8 * spread).all())  # five errors of 100 draws, and the fit's
    torch.testing.assert_close(draws.std(dim=0), spread.expand(draws.shape[1:]), rtol=0.45, atol=0)  # six


@pytest.mark.parametrize("program", NO_DENSITY, ids=lambda program: program.__name__)
def test_a_program_that_is_no_density_is_refused(program) -> None:
    words = WORDS if program in (draws_by_numpy, targets_nowhere) else ("laplace", "variational", "an autoguide")
    for word in words:
        with pytest.raises(ValueError, match=NO_DENSITY[program]):
            WORDS[word](program)


def test_rows_that_a_program_does_not_have_are_refused_when_they_are_predicted() -> None:
    posterior = laplace.fit(of_so_many_rows, ROWS, num_epochs=20, seed=0)
    with pytest.raises(ValueError, match=r"inside plate\(.data.\) at site y dim -1, 12 vs 3"):
        posterior.predict(X[:3])


def test_a_program_that_looks_at_its_targets_says_what_predicting_needs() -> None:
    def looks(x, y=None):
        mean = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", y.shape[0]):
            return pyro.sample("y", dist.Normal(mean + 0 * x[:, 0], 1.0), obs=y)

    posterior = laplace.fit(looks, ROWS, num_epochs=20, seed=0)
    with pytest.raises(ValueError, match=r"does not run without targets.*y=None"):
        posterior.predict(X)


def reparametrised(x, y=None):
    with poutine.reparam(config={"level": LocScaleReparam(0.0)}):
        mean = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("y", dist.Normal(mean + 0 * x[:, 0], 1.0), obs=y)


def test_what_a_reparametrisation_leaves_in_place_of_a_latent_is_no_data() -> None:
    law = laplace.fit(reparametrised, ROWS, num_epochs=2, seed=0)
    precision, total = USUAL
    assert law.observed == ("y",)
    torch.testing.assert_close(law.mean.double(), (total / precision).double().reshape(1), rtol=0, atol=1e-4)
    drawn = law.sample_weights(3, seed=0)["level_decentered"].double().mean()
    torch.testing.assert_close(law.predict(X, num_samples=3, seed=0).mean, drawn.expand(len(X), 1), rtol=0, atol=1e-5)
    guided = variational.fit(reparametrised, ROWS, guide=AutoNormal, num_epochs=2, seed=0)
    assert guided.predict(X, num_samples=3, seed=0).mean.shape == (len(X), 1)


def test_a_site_for_each_time_is_fitted_and_told_and_where_it_predicts_not_says_so() -> None:
    """y_t ~ N(a y_{t-1}, 1): the program looks at its targets, and has a site for each of them."""

    def series(x, y=None):
        share = pyro.sample("time/share", dist.Normal(0.0, 1.0))
        for t in range(1, len(x)):
            pyro.sample(f"y_{t}", dist.Normal(share * y[t - 1], 1.0), obs=y[t])

    law = laplace.fit(series, ROWS, num_epochs=2, seed=0)
    before, after = ROWS.y[:-1, 0].double(), ROWS.y[1:, 0].double()
    precision = 1 + before.square().sum()
    torch.testing.assert_close(law.mean.double(), ((before @ after) / precision).reshape(1), rtol=0, atol=1e-4)
    told = law.summary(num_samples=400, seed=0)["time/share"]
    assert abs(told.mean - float(law.mean)) < 5 * float(precision * 400) ** -0.5
    container = law.to_arviz(num_samples=4, num_prior_samples=0)
    assert container["posterior"]["time.share"].shape == (1, 4)  # a slash would be a group of its own
    with pytest.raises(ValueError, match=r"does not run without targets"):
        law.predict(X, site="y_1")


def test_a_flat_prior_without_draws_is_left_out_of_what_arviz_is_told() -> None:
    def improper(x, y=None):
        mean = pyro.sample("level", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(mean + 0 * x[:, 0], 1.0), obs=y)

    law = laplace.fit(improper, ROWS, num_epochs=2, seed=0)
    with pytest.warns(UserWarning, match="no draws of the prior.*ImproperUniform"):
        told = law.to_arviz(X, ROWS.y, num_samples=4)
    assert told["log_likelihood"]["y"].shape == (1, 4, len(X))
    assert "prior" not in group_names(told)
