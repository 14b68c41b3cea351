"""Programs of Pyro's regression and hierarchical tutorials and examples, with their own names, run by our words.

Each is as Pyro 1.9 prints it: https://pyro.ai/examples (bayesian_regression, bayesian_regression_ii, gmm),
`examples/baseball.py` and `examples/lkj.py`; the hierarchical regression is NumPyro's tutorial, in Pyro.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn
from torch.distributions import constraints

from bayesuq.data import Dataset
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import hmc, laplace, variational
from tests.inference.examples import noise

RUGGED = noise(0, 40).float().abs() * 2
AFRICA = (torch.arange(40) % 3 == 0).float()
LOG_GDP = 9.2 - 1.9 * AFRICA - 0.2 * RUGGED + 0.4 * AFRICA * RUGGED + 0.9 * noise(1, 40).float()
AT_BATS = torch.full((18,), 45.0)
HITS = torch.tensor([18.0, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
PAIRS = noise(2, 50, 3).float() * torch.tensor([0.5, 1.0, 2.0])
WHO = torch.arange(30) % 5


class BayesianRegression(PyroModule):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](in_features, out_features)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([out_features, in_features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([out_features]).to_event(1))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


def rugged(is_cont_africa: Tensor, ruggedness: Tensor, log_gdp: Tensor | None = None) -> Any:
    a = pyro.sample("a", dist.Normal(0.0, 10.0))
    b_a = pyro.sample("bA", dist.Normal(0.0, 1.0))
    b_r = pyro.sample("bR", dist.Normal(0.0, 1.0))
    b_ar = pyro.sample("bAR", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
    mean = a + b_a * is_cont_africa + b_r * ruggedness + b_ar * is_cont_africa * ruggedness
    with pyro.plate("data", len(ruggedness)):
        return pyro.sample("obs", dist.Normal(mean, sigma), obs=log_gdp)


def custom_guide(is_cont_africa: Tensor, ruggedness: Tensor, log_gdp: Tensor | None = None) -> None:  # noqa: ARG001
    a_loc = pyro.param("a_loc", torch.tensor(0.0))
    a_scale = pyro.param("a_scale", torch.tensor(1.0), constraint=constraints.positive)
    sigma_loc = pyro.param("sigma_loc", torch.tensor(1.0), constraint=constraints.positive)
    weights_loc = pyro.param("weights_loc", torch.zeros(3))
    weights_scale = pyro.param("weights_scale", torch.ones(3), constraint=constraints.positive)
    pyro.sample("a", dist.Normal(a_loc, a_scale))
    pyro.sample("bA", dist.Normal(weights_loc[0], weights_scale[0]))
    pyro.sample("bR", dist.Normal(weights_loc[1], weights_scale[1]))
    pyro.sample("bAR", dist.Normal(weights_loc[2], weights_scale[2]))
    pyro.sample("sigma", dist.Normal(sigma_loc, torch.tensor(0.05)))


def fully_pooled(at_bats: Tensor, hits: Tensor) -> Any:
    phi_prior = dist.Uniform(torch.tensor(0.0), torch.tensor(1.0))
    phi = pyro.sample("phi", phi_prior)
    num_players = at_bats.shape[0]
    with pyro.plate("num_players", num_players):
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


def not_pooled(at_bats: Tensor, hits: Tensor) -> Any:
    num_players = at_bats.shape[0]
    with pyro.plate("num_players", num_players):
        phi_prior = dist.Uniform(torch.tensor(0.0), torch.tensor(1.0))
        phi = pyro.sample("phi", phi_prior)
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


def partially_pooled(at_bats: Tensor, hits: Tensor) -> Any:
    num_players = at_bats.shape[0]
    m = pyro.sample("m", dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)))
    kappa = pyro.sample("kappa", dist.Pareto(torch.tensor(1.0), torch.tensor(1.5)))
    with pyro.plate("num_players", num_players):
        phi_prior = dist.Beta(m * kappa, (1 - m) * kappa)
        phi = pyro.sample("phi", phi_prior)
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


def partially_pooled_with_logit(at_bats: Tensor, hits: Tensor) -> Any:
    num_players = at_bats.shape[0]
    loc = pyro.sample("loc", dist.Normal(torch.tensor(-1.0), torch.tensor(1.0)))
    scale = pyro.sample("scale", dist.HalfCauchy(scale=torch.tensor(1.0)))
    with pyro.plate("num_players", num_players):
        alpha = pyro.sample("alpha", dist.Normal(loc, scale))
        return pyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)


def correlated(y: Tensor) -> Any:
    d, number = y.shape[1], y.shape[0]
    options = {"dtype": y.dtype, "device": y.device}
    theta = pyro.sample("theta", dist.HalfCauchy(torch.ones(d, **options)))
    concentration = torch.ones((), **options)
    l_omega = pyro.sample("L_omega", dist.LKJCholesky(d, concentration))
    l_Omega = torch.mm(torch.diag(theta.sqrt()), l_omega)
    mu = torch.zeros(d, **options)
    with pyro.plate("observations", number):
        return pyro.sample("obs", dist.MultivariateNormal(mu, scale_tril=l_Omega), obs=y)


def hierarchical(code: Tensor, weeks: Tensor, fvc: Tensor | None = None) -> Any:
    mu_a = pyro.sample("mu_a", dist.Normal(0.0, 5.0))
    sigma_a = pyro.sample("sigma_a", dist.HalfNormal(1.0))
    mu_b = pyro.sample("mu_b", dist.Normal(0.0, 5.0))
    sigma_b = pyro.sample("sigma_b", dist.HalfNormal(1.0))
    with pyro.plate("plate_i", 5):
        a = pyro.sample("a", dist.Normal(mu_a, sigma_a))
        b = pyro.sample("b", dist.Normal(mu_b, sigma_b))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(code)):
        return pyro.sample("obs", dist.Normal(a[code] + b[code] * weeks, sigma), obs=fvc)


TUTORIALS: dict[str, tuple[Any, Dataset, dict[str, tuple[int, ...]]]] = {
    "Bayesian regression": (
        lambda: BayesianRegression(3, 1),
        Dataset(torch.stack([AFRICA, RUGGED, AFRICA * RUGGED], dim=1), LOG_GDP),
        {"linear.weight": (1, 3), "linear.bias": (1,), "sigma": ()},
    ),
    "Bayesian regression II": (
        lambda: rugged,
        Dataset((AFRICA, RUGGED), LOG_GDP),
        {"a": (), "bA": (), "bR": (), "bAR": (), "sigma": ()},
    ),
    "baseball, fully pooled": (lambda: fully_pooled, Dataset((AT_BATS,), HITS), {"phi": ()}),
    "baseball, not pooled": (lambda: not_pooled, Dataset((AT_BATS,), HITS), {"phi": (18,)}),
    "baseball, partially pooled": (
        lambda: partially_pooled,
        Dataset((AT_BATS,), HITS),
        {"m": (), "kappa": (), "phi": (18,)},
    ),
    "baseball, logits": (
        lambda: partially_pooled_with_logit,
        Dataset((AT_BATS,), HITS),
        {"loc": (), "scale": (), "alpha": (18,)},
    ),
    "LKJ": (lambda: correlated, Dataset(PAIRS, PAIRS), {"theta": (3,), "L_omega": (3, 3)}),
    "hierarchical regression": (
        lambda: hierarchical,
        Dataset((WHO, RUGGED[:30]), 2 + 0.5 * WHO + RUGGED[:30] + noise(3, 30).float()),
        {"mu_a": (), "sigma_a": (), "mu_b": (), "sigma_b": (), "a": (5,), "b": (5,), "sigma": ()},
    ),
}


@pytest.mark.filterwarnings("ignore::bayesuq.fit_warnings.ConvergenceWarning")
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorials_program_runs_unchanged_and_predicts_its_own_site(name: str) -> None:
    build, data, shapes = TUTORIALS[name]
    chains = hmc.fit(
        build(), data, observed="obs", num_samples=20, num_warmup=60, num_chains=1, max_tree_depth=5, seed=0
    )
    assert {site: tuple(draws.shape[2:]) for site, draws in chains.draws.items()} == shapes
    assert all(bool(draws.isfinite().all()) for draws in chains.draws.values())
    predictive = chains.predict(data.x, num_samples=10, seed=0)
    assert bool(torch.as_tensor(predictive.log_prob(data.y)).isfinite().all())
    off = (predictive.mean.reshape(-1) - data.y.reshape(-1)).square().mean().sqrt()
    assert off < 1.2 * data.y.std()


def by_hand(data: Dataset) -> Any:
    return variational.fit(rugged, data, observed="obs", guide=lambda _: custom_guide, num_epochs=15, seed=0)


WORDS: dict[str, Callable[[Dataset], Any]] = {
    "the tutorial's guide": by_hand,
    "Laplace": lambda data: laplace.fit(rugged, data, observed="obs", num_epochs=20, seed=0),
}


@pytest.mark.parametrize("word", WORDS)
def test_the_regression_tutorial_by_other_words(word: str) -> None:
    data = Dataset((AFRICA, RUGGED), LOG_GDP)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        posterior = WORDS[word](data)
    assert set(posterior.sample_weights(3, seed=0)) == {"a", "bA", "bR", "bAR", "sigma"}
    assert np.isfinite(posterior.predict(data.x, num_samples=5, seed=0).mean.numpy()).all()


def test_the_mixture_tutorial_is_refused_with_what_to_write() -> None:
    @config_enumerate
    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])
    with pytest.raises(ValueError, match=r"latents assignment are discrete.*MixtureSameFamily"):
        hmc.fit(model, Dataset((data,), data), observed="obs")


def point_values_beside_latents(x: Tensor, rating: Tensor | None = None) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    scale = pyro.param("scale", lambda: torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("rating", dist.Normal(level, scale), obs=rating)


@pytest.mark.filterwarnings("ignore::bayesuq.fit_warnings.ConvergenceWarning")
def test_point_values_beside_latents_are_learned_where_the_refusal_of_others_says_so() -> None:
    y = 1.5 + 2.0 * noise(4, 30).float()
    data = Dataset(torch.zeros(30, 1), y)
    with pytest.raises(ValueError, match=r"learns point values \(scale\).*or take `variational.fit`"):
        hmc.fit(point_values_beside_latents, data, observed="rating")
    posterior = variational.fit(
        point_values_beside_latents, data, observed="rating", num_epochs=150, learning_rate=0.1, seed=0
    )
    # the guide holds the posterior, so that the scale is where log p(y | scale), of N(0, scale^2 I + 1), is largest
    scales = torch.linspace(1.0, 4.0, 301)
    covariances = scales.square()[:, None, None] * torch.eye(30) + torch.ones(30, 30)
    best = float(scales[dist.MultivariateNormal(torch.zeros(30), covariances).log_prob(y).argmax()])
    found = posterior.predict(data.x, num_samples=50, seed=0)
    assert float(found.aleatoric.mean().sqrt()) == pytest.approx(best, rel=0.05)
    precision = 30 / best**2 + 1
    assert float(found.mean.mean()) == pytest.approx(
        float(y.sum() / best**2 / precision), abs=4 * (50 * precision) ** -0.5
    )


def test_counts_of_unlike_totals_are_taken_where_the_law_is_told_not_to_check_them() -> None:
    """As the tutorial of logistic growth has its lineages: Multinomial's own total is 1."""
    counts = torch.tensor([[8.0, 2.0, 1.0], [7.0, 3.0, 2.0], [5.0, 6.0, 3.0], [3.0, 9.0, 5.0]])

    def growth(counts: Tensor, *, checked: bool | None = False) -> None:
        with pyro.plate("lineages", 3, dim=-1):
            rate, init = (pyro.sample(name, dist.Normal(0, 1)) for name in ("rate", "init"))
        logits = init + rate * torch.arange(4.0)[:, None]
        with pyro.plate("time", 4, dim=-2):
            law = dist.Multinomial(logits=logits.unsqueeze(-2), validate_args=checked)
            pyro.sample("obs", law, obs=counts.unsqueeze(-2))

    data = Dataset((counts,), counts)
    mode = laplace.fit(growth, data, observed="obs", num_epochs=30, seed=0)
    assert set(mode.sample_weights(2, seed=0)) == {"rate", "init"}
    with pytest.raises(ValueError, match="no values of 'obs': the support of its Multinomial"):
        laplace.fit(lambda counts: growth(counts, checked=None), data, observed="obs", num_epochs=1)
