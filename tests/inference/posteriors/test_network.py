"""Every posterior moves, is saved and tells its network in the one way that is written for all."""

from dataclasses import dataclass, fields, replace

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import confidence, ensemble, laplace, local_temperature, map_estimate, temperature
from bayesuq.inference.posteriors.network import NetworkPosterior, StoredPosterior, over_network
from bayesuq.inference.posteriors.saved import CLASSES
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.posterior import Posterior
from tests.inference.examples import SHORT_FIT, labelled

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)
SHORT = {"num_epochs": 1, "seed": 0}


@pytest.mark.parametrize("name", list(CLASSES))
def test_moving_and_saving_are_written_once(name):
    kind = CLASSES[name]
    assert kind.to is StoredPosterior.to
    assert kind.save is StoredPosterior.save
    names = {item.name for item in fields(kind)}
    assert issubclass(kind, NetworkPosterior) == ({"model", "buffers"} <= names)


@pytest.fixture(scope="module")
def mode():
    model = BayesianNetwork(networks.mlp(3, (4,), 3), priors.Normal(), likelihoods.Categorical())
    return map_estimate.fit(model, labelled(), **SHORT)


@pytest.mark.filterwarnings("ignore:The held-out labels")  # of a network trained for one epoch
def test_a_posterior_tells_the_network_that_it_stands_on(mode):
    members = ensemble.EnsemblePosterior.of([mode, replace(mode)])
    linear = laplace.fit(mode.model, labelled(), subset="all", mode=mode)
    around = temperature.fit(members, labelled(), num_samples=2, seed=0)
    trusted = confidence.fit(around, labelled(), hidden=(4,), num_fine_tuning_epochs=0, **SHORT)
    assert over_network(mode) is mode
    assert over_network(members) is members.members[0]
    assert over_network(linear.sampled).model is mode.model
    assert over_network(trusted) is trusted.posterior.posterior.members[0]
    assert over_network(trusted).likelihood == trusted.model.likelihood


class Foreign(Posterior):
    """A posterior of the user's own that is no dataclass."""

    device = torch.device("cpu")
    predict = drawn = to = save = None


def test_a_foreign_posterior_is_over_no_network():
    assert over_network(Foreign()) is None


def test_void_pixels_are_those_of_the_network_underneath():
    images, labels = torch.rand(4, 1, 8, 8), torch.randint(2, (4, 8, 8))
    labels[:, :4] = 7
    net, likelihood = networks.unet(1, 2, depth=1, width=2), likelihoods.Categorical(ignore_index=7)
    mapped = map_estimate.fit(BayesianNetwork(net, priors.Normal(), likelihood), Dataset(images, labels), **SHORT)
    scaled = ensemble.EnsemblePosterior.of([mapped])
    once, twice = (local_temperature.fit(one, Dataset(images, labels), **SHORT) for one in (mapped, scaled))
    assert once.negative_log_likelihood == twice.negative_log_likelihood


@dataclass(frozen=True, eq=False)
class Holding(StoredPosterior):
    """A posterior with a program of the user's own."""

    program: nn.Module

    device = torch.device("cpu")
    predict = drawn = None


def test_a_program_that_is_a_module_moves_without_the_users_own():
    program = nn.BatchNorm1d(1)
    moved = Holding(program).to("meta")
    assert moved.program.running_mean.device.type == "meta"
    assert program.running_mean.device.type == "cpu"
