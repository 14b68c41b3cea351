"""Fits inside of the caller's `torch.no_grad()`, as of a decorated function, and of `torch.inference_mode()`."""

from functools import partial

import pytest
import torch

from bayesuq.inference import gp, hmc, map_estimate, microcanonical, sgmcmc
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.gp.process import GaussianProcess
from tests.inference.examples import measured

CHAINS = {"num_samples": 2, "num_warmup": 2, "seed": 0}
NETWORK = BayesianNetwork(networks.mlp(3, (3,), 1, seed=0), priors.Normal(), likelihoods.Normal(scale=0.5))
FITS = {
    "map": partial(map_estimate.fit, NETWORK, num_epochs=1, seed=0),
    "sgmcmc": partial(sgmcmc.fit, NETWORK, num_chains=1, **CHAINS),
    "hmc": partial(hmc.fit, NETWORK, num_chains=1, **CHAINS),
    "microcanonical": partial(microcanonical.fit, NETWORK, num_members=2, num_epochs=1, thinning=1, **CHAINS),
    "process": partial(gp.fit, GaussianProcess(), seed=0),
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_has_its_gradients_where_the_caller_has_none(name: str) -> None:
    data = measured()
    expected = FITS[name](data=data).predict(data.x[:2], seed=0).mean
    with torch.no_grad():
        found = FITS[name](data=data).predict(data.x[:2], seed=0).mean
        assert not torch.is_grad_enabled()
    assert torch.equal(found, expected)


def test_inference_mode_is_refused_with_where_to_call() -> None:
    data = measured()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"inference_mode\(\) have none. Call `fit` outside"):
        FITS["map"](data=data)
