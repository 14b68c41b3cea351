"""How a mean-field fit starts by default, and what is said of units that did not live to see the noise fall."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from bayesuq import ConvergenceWarning
from bayesuq.data import Dataset
from bayesuq.inference import sequential, variational
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.inference.training.options import Training
from bayesuq.inference.variational.defaults import default_estimator, default_weight
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from tests.inference.examples import SHORT_FIT, measured, recorded_warnings

BEFORE = {"kl_weight": 1.0, "estimator": "weights"}
NOISE = 0.1
TRAINING = Training(3, 128, 0.05)


def waves() -> Dataset:
    """A wave and a slope under little noise, y in standard units."""
    x = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    y = (2 * x[:, 0]).sin() + x[:, 1] + NOISE * torch.randn(100, generator=torch.Generator().manual_seed(1))
    return Dataset(x, (y - y.mean()) / y.std())


def model(likelihood=None, num_outputs: int = 1, prior=None, **options) -> BayesianNetwork:
    net = networks.mlp(2, (50,), num_outputs, seed=0, **options)
    return BayesianNetwork(net, prior or priors.Normal(), likelihood or likelihoods.Normal(scale="learned"))


@pytest.mark.usefixtures("every_look")
def test_units_live_until_the_noise_has_fallen_and_a_fit_whose_units_died_says_so() -> None:
    """By the settings of before all of the signal became noise."""
    with recorded_warnings() as found:
        fitted = variational.fit(model(), waves(), num_epochs=300, seed=0)
    assert not any("units are alive" in str(one.message) for one in found)
    with pytest.warns(ConvergenceWarning, match=r"^[0-5] of 50 hidden units are alive, and the noise has \d+% of"):
        pruned = variational.fit(model(), waves(), num_epochs=300, seed=0, **BEFORE)
    scales = [float(one.sample_weights(1)["likelihood.scale"]) for one in (fitted, pruned)]
    assert scales[0] < 0.5 < 0.8 < scales[1]


HALF = priors.Normal(0.5, 1.0)
CASES = {
    "learned noise": (partial(model), "local", True),
    "noise as output": (partial(model, likelihoods.HeteroscedasticNormal(), 2), "local", True),
    "known noise": (partial(model, likelihoods.Normal(scale=0.1)), "weights", False),
    "labels": (partial(model, likelihoods.Categorical(), 3), "weights", False),
    "counts": (partial(model, likelihoods.Poisson()), "weights", False),
    "a prior that knows": (partial(model, prior=HALF), "local", False),
    "a prior without closed form": (partial(model, prior=priors.Laplace()), "weights", True),
    "a layer that mixes rows": (partial(model, batch_norm=True), "weights", True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_start_follows_the_model(case: str) -> None:
    build, estimator, anneals = CASES[case]
    density = build()
    rows = Dataset(torch.randn(8, 2), torch.ones(8, dtype=torch.int64) if case == "labels" else torch.ones(8))
    assert default_estimator(density, Source(NetworkReader(density), rows, batch_size=4)) == estimator
    assert callable(default_weight(density, TRAINING)) is anneals
    assert default_weight(density, replace(TRAINING, schedule="constant")) == 1.0


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_yesterdays_posterior_is_not_forgotten_first() -> None:
    monday = variational.fit(model(), waves(), num_epochs=2, seed=0)
    assert default_weight(sequential.updated_model(monday), TRAINING) == 1.0


@pytest.mark.filterwarnings(*SHORT_FIT)
def test_a_stopped_fit_of_before_is_told_to_be_another_one_and_goes_on_by_its_options(tmp_path) -> None:
    net = BayesianNetwork(networks.mlp(3, (4,), 1, seed=0), priors.Normal(), likelihoods.Normal())
    there = Checkpoint(tmp_path / "state")
    options = {"num_epochs": 4, "seed": 0, "checkpoint": there}
    before = variational.fit(net, measured(), **BEFORE, **options)
    with pytest.raises(ValueError, match="its estimator is 'weights', this one's 'local'"):
        variational.fit(net, measured(), **options)
    assert torch.equal(variational.fit(net, measured(), **BEFORE, **options).loc, before.loc)
