"""Runs of a known number of steps tell how long they take, by their first steps."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from bayesuq.inference import microcanonical, sgmcmc
from bayesuq.inference.training.stepping import NUM_TIMED
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from tests.inference.examples import measured

ENDLESS = 10**10  # steps of a microsecond would take hours


@pytest.mark.filterwarnings("error:The chains have some:UserWarning")
@pytest.mark.parametrize(
    ("fit", "told"),
    [(partial(microcanonical.fit, num_members=2, num_epochs=1), "two gradients"), (sgmcmc.fit, "a minibatch")],
)
def test_hours_of_steps_are_told_after_the_first_ones(fit: Callable[..., Any], told: str) -> None:
    model = BayesianNetwork(networks.mlp(3, (4,), 1, seed=0), priors.Normal(), likelihoods.Normal(0.5))
    with pytest.raises(UserWarning, match=rf"some [\d.]+ h to go: \d+ steps of {told} .* ms each\. Lower"):
        fit(model, measured(), num_samples=2, num_warmup=20, thinning=ENDLESS, seed=0, progress=False)


@pytest.mark.filterwarnings("error:The chains have some:UserWarning")
def test_the_sampler_alone_tells_too_and_a_short_run_says_nothing() -> None:
    def density(x: torch.Tensor) -> torch.Tensor:
        return -0.5 * x.dot(x)

    start = torch.zeros(2, 3)
    microcanonical.sample(density, start, num_samples=2, num_warmup=2 * NUM_TIMED, seed=0)
    with pytest.raises(UserWarning, match="h to go"):
        microcanonical.sample(density, start, num_samples=2, num_warmup=2, thinning=ENDLESS, seed=0)
