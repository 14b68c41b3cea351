"""Modes of a program's density: the heaviest is found from any start, and others that hold a share are told of."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayesuq.data import Dataset
from bayesuq.fit_warnings import ConvergenceWarning
from bayesuq.inference import laplace, variational

ROWS = Dataset(torch.zeros(2, 1), torch.zeros(2))


def two_modes(share: float):
    """A density with so much of its mass at -1.5, and the rest at 1.5; the rows say nothing."""

    def program(x, y=None):
        where = pyro.sample("where", dist.Normal(0.0, 1.0).mask(False))
        places = dist.Normal(torch.tensor([-1.5, 1.5]), torch.tensor([0.1, 0.3])).log_prob(where)
        pyro.factor("places", (places + torch.tensor([share, 1 - share]).log()).logsumexp(dim=0))
        with pyro.plate("data", len(x)):
            return pyro.sample("y", dist.Normal(torch.zeros(len(x)), 1.0), obs=y)

    return program


def words(fit) -> tuple[torch.Tensor, str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        posterior = fit()
    told = [str(one.message) for one in caught if issubclass(one.category, ConvergenceWarning)]
    return posterior.sample_weights(200, seed=0)["where"], " ".join(told)


@pytest.mark.parametrize("seed", range(4))
def test_laplace_stands_at_the_mode_with_most_mass_wherever_its_search_began(seed):
    draws, told = words(lambda: laplace.fit(two_modes(0.2), ROWS, num_epochs=50, seed=seed, progress=False))
    assert float(draws.mean()) == pytest.approx(1.5, abs=0.1)  # 1 of 4 seeds begins nearer to the other
    assert "several modes" in told
    assert "some 20% of the posterior" in told


@pytest.mark.parametrize("guide", [variational.mean_field, variational.full_rank])
def test_normal_guides_begin_there_and_tell_of_the_others(guide):
    program = two_modes(0.2)
    draws, told = words(lambda: variational.fit(program, ROWS, guide=guide, num_epochs=300, seed=0, progress=False))
    assert float(draws.mean()) == pytest.approx(1.5, abs=0.1)
    assert "several modes" in told


def test_a_mode_of_next_to_nothing_is_not_told_of():
    draws, told = words(lambda: laplace.fit(two_modes(0.001), ROWS, num_epochs=50, seed=0, progress=False))
    assert float(draws.mean()) == pytest.approx(1.5, abs=0.1)
    assert not told
