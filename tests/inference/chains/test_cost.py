"""A gradient is timed once, for the choice of how chains run and for the warning of how long they will."""

import pytest
import torch

from bayesuq.data import Dataset
from bayesuq.inference import hmc
from bayesuq.inference.chains import processes
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors


def test_a_gradient_is_timed_once_for_the_choice_and_the_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the chains begin there are one gradient at each start, and two of which the second is timed."""
    taken = []
    at = NetworkPotential.at
    monkeypatch.setattr(NetworkPotential, "at", lambda *given: taken.append(0) or at(*given))
    monkeypatch.setattr(processes, "num_cores", lambda: 2)
    monkeypatch.setattr(processes, "LARGEST_TOGETHER", 0)
    begun = []

    def run_chains(job, positions, _, potential, workers):
        begun.append(len(taken))
        return run(job, positions, "sequential", potential, workers)

    run = processes.run_chains
    monkeypatch.setattr("bayesuq.inference.hmc.fitting.run_chains", run_chains)
    model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.5))
    data = Dataset(torch.arange(3.0).unsqueeze(1), torch.arange(3.0))
    hmc.fit(model, data, num_samples=5, num_warmup=5, num_chains=2, seed=0, start="prior")
    assert begun == [2 + 2]
