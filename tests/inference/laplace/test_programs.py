"""Structures of a program's Laplace approximation against the whole Hessian, and against exact posteriors."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.inference import laplace
from bayesuq.inference.laplace import program_structures
from bayesuq.inference.posteriors.saved import load

SHORT: Any = {"num_epochs": 3, "seed": 0}
GROUPS, ITEMS = 5, 3
X = torch.arange(60.0).unsqueeze(1)
GROUP, ITEM = torch.arange(60) % GROUPS, torch.arange(60) // GROUPS % ITEMS
DATA = Dataset(X, torch.randn(60, generator=torch.Generator().manual_seed(3)))


def apart(x: Tensor, y: Tensor | None = None) -> None:
    """Two sites that the data know by rows of their own; the numbers of each go together."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    level = pyro.sample("level", dist.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])))
    is_first = x[:, 0] < 20
    mean = torch.where(is_first, slope[0] + slope[1] * x[:, 0] / 10, level[0])
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def together(x: Tensor, y: Tensor | None = None) -> None:
    """Two sites that the same rows know, up to their sum."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(level + slope[0] + slope[1] * x[:, 0] / 60, 0.5), obs=y)


def schools(x: Tensor, y: Tensor | None = None) -> None:
    """Levels and scales of groups, around a common level."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", GROUPS):
        level = pyro.sample("level", dist.Normal(mean, 0.5))
        shares = pyro.sample("shares", dist.Dirichlet(torch.full((3,), 9.0)))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(level[GROUP] + shares[GROUP, 0], noise), obs=y)


def nested(x: Tensor, y: Tensor | None = None) -> None:
    """Items within groups."""
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", GROUPS, dim=-1):
        group = pyro.sample("group", dist.Normal(mean, 0.5))
        with pyro.plate("items", ITEMS, dim=-2):
            item = pyro.sample("item", dist.Normal(group, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(item[ITEM, GROUP], 0.5), obs=y)


def crossed(x: Tensor, y: Tensor | None = None) -> None:
    """Groups that all meet all items: either kind is independent given the other."""
    with pyro.plate("groups", GROUPS):
        group = pyro.sample("group", dist.Normal(0.0, 0.5))
    with pyro.plate("items", ITEMS):
        item = pyro.sample("item", dist.Normal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(group[GROUP] + item[ITEM], 0.5), obs=y)


def walk(x: Tensor, y: Tensor | None = None) -> None:
    """Members of a plate that a factor makes follow each other."""
    with pyro.plate("times", len(x)):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(level, 0.5), obs=y)
    pyro.factor("steps", -0.5 * (level[1:] - level[:-1]).square().sum())


@pytest.mark.parametrize("program", [schools, nested, crossed], ids=lambda program: program.__name__)
def test_plates_are_the_whole_law_in_less_room(program: Callable[..., Any]) -> None:
    full, plates = (laplace.fit(program, DATA, structure=structure, **SHORT) for structure in ("full", "plates"))
    assert len(plates.factor) < len(full.factor)
    scale = full.covariance.diagonal().sqrt()
    torch.testing.assert_close((plates.mean - full.mean) / scale, 0 * scale, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        plates.covariance / torch.outer(scale, scale), full.covariance / torch.outer(scale, scale), rtol=0, atol=1e-4
    )
    assert plates.log_marginal_likelihood == pytest.approx(full.log_marginal_likelihood, abs=1e-3)


def test_sites_that_are_independent_given_the_data_have_the_whole_law() -> None:
    full, sites = (laplace.fit(apart, DATA, structure=structure, **SHORT) for structure in ("full", "sites"))
    assert full.covariance[0, 1].abs() > 1e-3
    torch.testing.assert_close(sites.covariance, full.covariance, rtol=1e-5, atol=1e-7)
    assert sites.log_marginal_likelihood == pytest.approx(full.log_marginal_likelihood, abs=1e-4)


@pytest.mark.filterwarnings("ignore::bayesuq.fit_warnings.ConvergenceWarning")
def test_sites_that_are_not_have_the_inverse_of_their_blocks_of_the_exact_precision() -> None:
    design = torch.cat([torch.ones_like(X), X / 60, torch.ones_like(X)], dim=1).double()  # of slope and level
    precision = torch.eye(3).double() + design.T @ design / 0.25
    sites, diagonal = (laplace.fit(together, DATA, structure=structure, **SHORT) for structure in ("sites", "diagonal"))
    expected = torch.block_diag(precision[:2, :2].inverse(), precision[2:, 2:].inverse())
    torch.testing.assert_close(sites.covariance, expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(diagonal.covariance, (1 / precision.diagonal()).diag(), rtol=1e-4, atol=1e-7)


def test_plates_that_are_none_are_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match=r"depend on other members.*structure='full'"):
        laplace.fit(walk, DATA, structure="plates", **SHORT)
    with pytest.raises(ValueError, match=r"No latent of the program stands in a plate.*'sites'"):
        laplace.fit(together, DATA, structure="plates", **SHORT)
    with pytest.raises(ValueError, match=r"one of 'full', 'plates', 'sites', 'diagonal'; got 'kronecker'"):
        laplace.fit(together, DATA, structure="kronecker", **SHORT)


def test_a_plate_of_more_members_than_a_matrix_holds_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """y_i ~ N(a_i, 1), a_i ~ N(mu, 1), mu ~ N(0, 10): mu | y ~ N(sum y / (n + .02), 1 / (n / 2 + .01))."""
    number = 1000
    monkeypatch.setattr(program_structures, "LARGEST_FULL", 500)
    y = torch.randn(number, generator=torch.Generator().manual_seed(4))

    def many(x: Tensor, y: Tensor | None = None) -> None:  # noqa: ARG001
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("members", number):
            level = pyro.sample("level", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    data = Dataset(torch.zeros(number, 1), y)
    with pytest.raises(ValueError, match=r"1001 latent numbers.*'plates'"):
        laplace.fit(many, data, **SHORT)
    law = laplace.fit(many, data, structure="plates", **SHORT)
    variance = 1 / (number / 2 + 0.01)
    assert float(law.factor.squeeze() ** 2) == pytest.approx(variance, rel=1e-5)
    assert float(law.mean[0]) == pytest.approx(float(y.double().sum()) / 2 * variance, abs=0.1 * variance**0.5)
    torch.testing.assert_close(
        law.blocks["0.factor"].square(), torch.full((number, 1, 1), 0.5).double(), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("structure", ["plates", "sites"])
@pytest.mark.filterwarnings("ignore::bayesuq.fit_warnings.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore:A model of your own:UserWarning")
def test_a_law_in_blocks_is_saved_and_has_the_spread_of_its_draws(structure: str, tmp_path: Any) -> None:
    law = laplace.fit(nested, DATA, structure=structure, **SHORT)
    law.save(tmp_path / "law")
    loaded = load(tmp_path / "law", model=nested)
    torch.testing.assert_close(
        loaded.predict(X, num_samples=3, seed=1).mean, law.predict(X, num_samples=3, seed=1).mean, rtol=0, atol=0
    )
    draws = loaded.sample_weights(200, seed=2)
    levels = torch.cat([draws[name].reshape(200, -1) for name in ("mean", "group", "item")], dim=1).double()
    expected = law.covariance
    scale = expected.diagonal().sqrt()
    gap = (torch.cov(levels.T) - expected) / torch.outer(scale, scale)
    assert gap.abs().max() < 5 * (2 / 200) ** 0.5
