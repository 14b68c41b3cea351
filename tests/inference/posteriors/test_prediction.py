"""Which draws a prediction takes, and the networks, likelihoods and loaders that it serves."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bayesuq.data import Dataset
from bayesuq.inference import dropout, map_estimate, variational
from bayesuq.inference.adoption import adopt
from bayesuq.inference.posteriors import prediction, weights
from bayesuq.inference.posteriors.prediction import (
    DEFAULT_NUM_SAMPLES,
    activations_per_row,
    draw_indices,
    kept_activations_per_row,
)
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.inference.examples import SHORT_FIT, built, measured, noise

PROPERTY = settings(derandomize=True, deadline=None, max_examples=200)
SHORT = pytest.mark.filterwarnings(*SHORT_FIT)


# Which draws


@PROPERTY
@given(num_members=st.integers(1, 60), num_samples=st.integers(1, 60))
def test_thinning_is_even_and_without_replacement(num_members, num_samples):
    indices = list(draw_indices(num_samples, num_members))
    assert len(indices) == min(num_samples, num_members)
    assert indices == sorted(set(indices))
    assert 0 <= indices[0] <= indices[-1] < num_members
    gaps = {b - a for a, b in pairwise(indices)}
    assert not gaps or max(gaps) - min(gaps) <= 1
    spare = num_members - 1 - indices[-1] - indices[0]  # neither end is favoured
    assert abs(spare) <= 1


@pytest.mark.parametrize("num_members", [1, 5])
def test_all_members_are_taken_by_default_and_when_more_are_asked_for(num_members):
    assert list(draw_indices(None, num_members)) == list(range(num_members))
    assert list(draw_indices(99, num_members)) == list(range(num_members))


def test_draws_without_end_are_numbered():
    assert list(draw_indices(None, None)) == list(range(DEFAULT_NUM_SAMPLES)) == list(range(100))
    assert list(draw_indices(7, None)) == list(range(7))


# Chunks


def conv_model(likelihood=None, num_outputs: int = 3, **options) -> BayesianNetwork:
    net = built(lambda: networks.convnet(1, num_outputs, channels=(3, 4), hidden=8, **options))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Categorical() if likelihood is None else likelihood)


def test_activations_are_counted_for_one_row():
    net = networks.mlp(3, (8, 5), 2)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    rows = noise(0, 50, 3).float()
    assert activations_per_row(model, rows, model.net) == 8 + 8  # of the activation function of the widest layer
    # The inputs and their flattening, then two outputs a hidden layer (linear and activation), and the last layer's.
    assert kept_activations_per_row(model, rows, model.net) == 3 + 3 + 2 * (8 + 5) + 2
    assert all(not module._forward_hooks for module in model.net.modules())


@SHORT
@pytest.mark.parametrize("method", [map_estimate.fit, variational.fit, dropout.fit], ids=lambda f: f.__module__[18:])
def test_images_go_through_in_chunks_of_any_size(method, monkeypatch):
    x, y = noise(0, 20, 1, 8, 8), torch.arange(20) % 3
    posterior = method(
        conv_model(dropout=0.2, batch_norm=True), Dataset(x, y), num_epochs=1, learning_rate=1e-3, seed=0
    )
    whole = posterior.predict(x, num_samples=5, seed=0, keep_samples=True)
    for activations, vectorised in ((1, 1), (5000, 2**40)):
        monkeypatch.setattr(prediction, "ACTIVATION_BUDGET", activations)
        monkeypatch.setattr(weights, "VECTORISED_BUDGET", vectorised)
        chunked = posterior.predict(x, num_samples=5, seed=0, keep_samples=True)
        torch.testing.assert_close(chunked.samples, whole.samples, rtol=1e-4, atol=1e-5)


def test_a_chunk_holds_no_more_activations_than_the_budget(monkeypatch):
    sizes = []

    class Watched(nn.Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x)

    model = BayesianNetwork(Watched(3, 1), priors.Normal(), likelihoods.Normal(scale=0.1))
    posterior = map_estimate.fit(model, measured(), num_epochs=1, learning_rate=1e-3, seed=0)
    monkeypatch.setattr(prediction, "ACTIVATION_BUDGET", 4 * 10)  # ten rows of three inputs and an output
    sizes.clear()
    posterior.predict(noise(0, 25, 3))
    assert sizes == [1, 10, 10, 5]  # the first to count the activations of one row, once for rows of a shape
    sizes.clear()
    posterior.predict(noise(1, 25, 3))
    assert sizes == [10, 10, 5]


def test_no_tensor_of_a_chunk_is_so_large_that_the_system_gives_and_takes_it_each_time():
    """glibc asks the system for 32 MiB and more: 200,000 rows took 3.9 s where twice 100,000 took 1.3 s."""
    sizes = []

    class Watched(nn.Linear):
        def forward(self, x):
            sizes.append(len(x) * self.out_features * x.element_size())
            return super().forward(x)

    net = nn.Sequential(Watched(1, 64), nn.Linear(64, 1)).double()
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
    x = torch.zeros(2**17, 1, dtype=torch.float64)
    adopt(model.net, model.likelihood).predict(x)
    assert max(sizes) < 2**25 < 64 * 8 * len(x)


# Likelihoods and networks


@SHORT
def test_a_binary_network_predicts_two_classes():
    model = conv_model(likelihoods.Bernoulli(), num_outputs=1)
    x, y = noise(0, 20, 1, 8, 8), torch.arange(20) % 2
    posterior = variational.fit(model, Dataset(x, y), num_epochs=1, learning_rate=1e-3, seed=0)
    predictive = posterior.predict(x, num_samples=5, seed=0)
    assert isinstance(predictive, CategoricalPredictive)
    assert predictive.mean.shape == (20, 2)
    torch.testing.assert_close(predictive.mean.sum(dim=1), torch.ones(20, dtype=torch.float64))


def test_a_network_of_pixels_predicts_pixels():
    net = built(lambda: nn.Conv2d(2, 3, 1))
    x, y = noise(0, 6, 2, 4, 5), torch.arange(120).reshape(6, 4, 5) % 3
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    posterior = map_estimate.fit(model, Dataset(x, y), num_epochs=1, learning_rate=1e-3, seed=0)
    predictive = posterior.predict(x)
    assert predictive.mean.shape == (6, 3, 4, 5)
    assert predictive.log_prob(y).shape == (6, 4, 5)


def test_noise_that_the_network_gives_is_the_predictives():
    net = nn.Linear(1, 2, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0], [0.0]]))
        net.bias.copy_(torch.tensor([0.0, math.log(0.09)]))
    model = BayesianNetwork(net, priors.Normal(scale=1e9), likelihoods.HeteroscedasticNormal())
    posterior = map_estimate.fit(model, measured(num_features=1), num_epochs=1, learning_rate=1e-12, seed=0)
    predictive = posterior.predict([[1.0], [3.0]])
    torch.testing.assert_close(predictive.mean, torch.tensor([[2.0], [6.0]], dtype=torch.float64))
    torch.testing.assert_close(predictive.aleatoric, torch.full((2, 1), 0.09, dtype=torch.float64))


def test_bytes_and_whole_numbers_are_cast_with_their_scale_unchanged():
    model = BayesianNetwork(nn.Linear(1, 1), priors.Normal(), likelihoods.Normal(scale=0.1))
    posterior = map_estimate.fit(model, measured(num_features=1), num_epochs=1, learning_rate=1e-3, seed=0)
    whole = torch.tensor([[0], [255]], dtype=torch.uint8)
    assert torch.equal(posterior.predict(whole).mean, posterior.predict(whole.float()).mean)


# Loaders


class Stream(IterableDataset):
    """Rows of unknown number."""

    def __iter__(self):
        yield from noise(3, 23, 3).float()


@pytest.mark.parametrize(
    "dataset", [Stream(), TensorDataset(noise(3, 23, 3).float(), torch.zeros(23))], ids=["stream", "pairs"]
)
def test_rows_of_a_loader_come_in_order(dataset):
    posterior = map_estimate.fit(
        BayesianNetwork(built(lambda: nn.Linear(3, 1)), priors.Normal(), likelihoods.Normal(scale=0.1)),
        measured(),
        num_epochs=1,
        learning_rate=1e-3,
        seed=0,
    )
    expected = posterior.predict(noise(3, 23, 3)).mean
    torch.testing.assert_close(
        posterior.predict(DataLoader(dataset, batch_size=5)).mean, expected, rtol=1e-5, atol=1e-6
    )


def test_a_loader_is_left_as_it_was():
    posterior = map_estimate.fit(
        BayesianNetwork(built(lambda: nn.Linear(3, 1)), priors.Normal(), likelihoods.Normal(scale=0.1)),
        measured(),
        num_epochs=1,
        learning_rate=1e-3,
        seed=0,
    )
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(noise(3, 23, 3), batch_size=5, generator=own)
    before = own.get_state()
    posterior.predict(loader)
    assert loader.generator is own
    assert torch.equal(own.get_state(), before)
