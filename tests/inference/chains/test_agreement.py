"""Chains that predict different things are told of; chains that differ in weights alone, or in nothing, are not."""

from dataclasses import replace

import arviz
import numpy as np
import pytest
import torch

from bayesuq.data import Batch, Dataset
from bayesuq.inference import hmc, sgmcmc
from bayesuq.inference.chains.agreement import (
    disagreement,
    split_r_hat,
    warn_of_few_draws,
    warn_unless_agreed,
)
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import Conjugate, built, labelled, noise, recorded_warnings

EXACT = Conjugate(30, 3, 0.5)


@pytest.fixture(scope="module")
def chains() -> hmc.HmcPosterior:
    with recorded_warnings() as record:
        posterior = hmc.fit(EXACT.model, EXACT.data, num_samples=200, num_warmup=100, num_chains=2, seed=0)
    assert record == []  # chains of a linear model agree
    return posterior


def rows(data: Dataset) -> Batch:
    return Batch(data.x.float(), data.y.float() if data.y.is_floating_point() else data.y, None)


@pytest.mark.oracle
def test_split_r_hat_is_arviz_own():
    draws = noise(0, 4, 100, 5) + torch.linspace(0, 1, 4, dtype=torch.float64)[:, None, None] * torch.arange(5)
    expected = [float(arviz.rhat(np.asarray(draws[:, :, m]), method="split")) for m in range(5)]
    assert split_r_hat(draws)[0].tolist() == pytest.approx(expected, rel=1e-9)


def test_a_chain_elsewhere_and_a_chain_that_drifts_are_told_of(chains):
    elsewhere = chains.draws.clone()
    elsewhere[1] += 0.5
    drifting = chains.draws + torch.linspace(0, 1, 200)[None, :, None]
    for draws in (elsewhere, drifting):
        with pytest.warns(UserWarning, match=r"largest R-hat of E\[y\* \| x, draw\].* Raise `num_warmup`") as record:
            warn_unless_agreed(replace(chains, draws=draws), rows(EXACT.data))
        assert record[0].filename == __file__


def test_hmc_tells_that_its_chains_have_not_met():
    options = {"kernel": "hmc", "num_steps": 1, "step_size": 1e-6, "num_warmup": 0, "start": "prior", "seed": 0}
    with pytest.warns(UserWarning, match=r"largest R-hat of E\[y\* \| x, draw\]"):
        hmc.fit(EXACT.model, EXACT.data, num_samples=10, num_chains=2, **options)


def test_a_difference_that_no_prediction_shows_is_none(chains):
    apart = 1e-3 * torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    still = chains.draws[:1, :1] + apart.expand(2, 200, 4)  # of no variance within, but alike
    assert disagreement(replace(chains, draws=still), rows(EXACT.data)) == (1.0, 0.0)


def test_chains_that_permute_hidden_units_agree():
    net = built(lambda: networks.mlp(3, (4,), 3))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    data = labelled(40)
    with recorded_warnings():
        posterior = sgmcmc.fit(model, data, num_samples=20, num_warmup=20, thinning=2, num_chains=1, seed=0)
    first = posterior.draws[0, -1]
    parts = first.split([12, 4, 12, 3])
    order = torch.tensor([2, 0, 3, 1])
    permuted = torch.cat(
        [
            parts[0].view(4, 3)[order].reshape(-1),
            parts[1][order],
            parts[2].view(3, 4)[:, order].reshape(-1),
            parts[3],
        ]
    )
    jitter = 1e-2 * torch.randn(2, 20, len(first), generator=torch.Generator().manual_seed(0))
    both = torch.stack([first, permuted])[:, None] + jitter
    assert disagreement(replace(posterior, draws=both), rows(data))[0] < 1.2


def test_sgmcmc_tells_that_its_chains_have_not_met():
    net = built(lambda: networks.mlp(3, (50, 50), 3))
    model = BayesianNetwork(net, priors.Normal(scale=3.0), likelihoods.Categorical())
    with recorded_warnings() as record:
        sgmcmc.fit(model, labelled(100), num_samples=20, num_warmup=20, thinning=1, seed=0)
    assert any("The chains disagree" in str(one.message) for one in record)


@pytest.mark.parametrize("number", [1, 5])
def test_few_draws_of_chains_that_have_not_arrived_are_told_of_twice(number):
    """Draws too few for R-hat, and scores of fitted rows below what a constant has."""
    options = {"num_samples": number, "num_warmup": 0, "thinning": 1, "step_size": 1e-7, "start": "prior", "seed": 0}
    net = built(lambda: networks.mlp(3, (20,), 3))
    data = labelled(60)
    with recorded_warnings() as record:
        sgmcmc.fit(BayesianNetwork(net, priors.Normal(scale=3.0), likelihoods.Categorical()), data, **options)
    told = " ".join(str(one.message) for one in record)
    assert "of each chain: whether chains agree is not to be seen in fewer than 8" in told
    assert "much worse than a constant" in told
    with recorded_warnings() as record:
        warn_of_few_draws(8)
    assert record == []
