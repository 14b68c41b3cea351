"""Chains that go on, and chains that begin at given values."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import bayesuq as bq
from bayesuq.inference import hmc

DATA = bq.Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])


def line(x: Tensor, y: Tensor | None = None) -> Any:
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.Gamma(2.0, 2.0))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", dist.Normal(slope * x[:, 0], scale), obs=y)


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_more_draws_of_a_program_are_those_of_a_run_that_was_longer_from_the_start(tmp_path: Any) -> None:
    options: dict[str, Any] = {"num_warmup": 20, "num_chains": 2, "seed": 0}
    hmc.fit(line, DATA, num_samples=10, checkpoint=tmp_path / "chain", **options)
    longer = hmc.fit(line, DATA, num_samples=25, checkpoint=tmp_path / "chain", **options)
    whole = hmc.fit(line, DATA, num_samples=25, **options)
    assert all(torch.equal(longer.draws[name], whole.draws[name]) for name in whole.draws)
    assert torch.equal(longer.inverse_mass, whole.inverse_mass)


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_chains_of_a_program_and_of_a_network_begin_at_given_values() -> None:
    """With steps so small that nothing moves."""
    still: dict[str, Any] = {"num_samples": 1, "num_warmup": 0, "num_chains": 2, "step_size": 1e-9, "seed": 0}
    still |= {"kernel": "hmc", "num_steps": 1}
    values = {"slope": torch.tensor([0.5, -1.5]), "scale": torch.tensor([0.2, 3.0])}
    found = hmc.fit(line, DATA, start=bq.from_samples(line, values, DATA), **still)
    for name, value in values.items():
        torch.testing.assert_close(found.draws[name].squeeze(1), value, rtol=1e-5, atol=1e-6)
    net = bq.models.networks.mlp(1, (2,), 1)
    model = bq.models.BayesianNetwork(net, bq.models.priors.Normal(), bq.models.likelihoods.Normal(scale=0.5))
    weights = {name: torch.stack([value, 0.1 + value]).detach() for name, value in model.initial().items()}
    chains = hmc.fit(model, DATA, start=bq.from_samples(model, weights), **still)
    for name, value in chains.sample_weights().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-5, atol=1e-6)


NETWORK = bq.models.BayesianNetwork(
    bq.models.networks.mlp(1, (2,), 1, seed=0), bq.models.priors.Normal(), bq.models.likelihoods.Normal(scale="learned")
)
MODE = bq.inference.map_estimate.fit(NETWORK, DATA, num_epochs=5, seed=0)
OPTIONS: dict[str, dict[str, Any]] = {
    "a program by NUTS": {"thinning": 2},
    "a network by NUTS": {"start": MODE, "max_tree_depth": 4},
    "a network's chains together": {"start": MODE, "kernel": "hmc", "num_steps": 3, "chain_method": "vectorised"},
    "dense masses": {"mass": "dense", "num_warmup": 60},
    "trajectories of a length": {"kernel": "hmc", "trajectory_length": 0.5, "step_size": 0.1},
}


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning", "ignore:A model of your own:UserWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_chains_that_ended_go_on_with_the_bits_of_a_longer_run_saved_and_loaded_in_between(
    name: str, tmp_path: Any
) -> None:
    model = NETWORK if "start" in OPTIONS[name] else line
    options: dict[str, Any] = {"num_warmup": 15, "num_chains": 2, "seed": 3, **OPTIONS[name]}
    whole = hmc.fit(model, DATA, num_samples=12, **options)
    hmc.fit(model, DATA, num_samples=5, **options).save(tmp_path / "chains")
    loaded: Any = bq.load(tmp_path / "chains", model=None if model is NETWORK else line)
    longer = hmc.extend(hmc.extend(loaded, DATA, num_samples=4), DATA, num_samples=3)
    draws, others = whole.sample_weights(), longer.sample_weights()
    assert all(torch.equal(draws[site], others[site]) for site in draws)
    assert all(torch.equal(table, longer.statistics[key]) for key, table in whole.statistics.items())
    assert torch.equal(whole.ends["noise"], longer.ends["noise"])


@pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")
def test_chains_go_on_with_their_own_data_alone_and_those_of_other_samplers_do_not() -> None:
    options: dict[str, Any] = {"num_samples": 10, "num_warmup": 20, "seed": 0}
    chains = hmc.fit(line, DATA, num_chains=1, **options)
    with pytest.raises(ValueError, match="are not those that were fitted"):
        hmc.extend(chains, bq.Dataset(DATA.x, DATA.y + 0.5), num_samples=1)
    with pytest.raises(TypeError, match=r"must be what `hmc\.fit` gave"):
        hmc.extend(MODE, DATA)
    drawn = bq.from_samples(line, {"slope": torch.randn(4), "scale": torch.rand(4)}, DATA)
    with pytest.raises(ValueError, match="do not hold where they ended"):
        hmc.extend(drawn, DATA)
