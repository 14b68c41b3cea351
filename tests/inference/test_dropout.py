"""MC dropout: masks of the right law, for each input and layer, and nothing else that is random."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesuq.data import Dataset
from bayesuq.inference import dropout
from bayesuq.inference.dropout import DropoutPosterior
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.masks import BLOCK, Masks
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.inference.examples import built, measured, noise

NUM_DRAWS = 1000


def at_hand(net: nn.Module, x: Tensor) -> DropoutPosterior:
    """The posterior of the network with the very weights and statistics that it has now."""
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
    num_outputs = model.net(x[:2]).shape[1]
    data = Dataset(x[:2], torch.zeros(len(x[:2]), num_outputs))
    fitted = dropout.fit(model, data, num_epochs=1, learning_rate=1e-9, seed=0)
    buffers = {name: value.clone() for name, value in model.net.named_buffers()}
    return dataclasses.replace(fitted, values=Layout.of(model).join(model.initial()), buffers=buffers)


def outputs(net: nn.Module, x: Tensor, num_samples: int = NUM_DRAWS, seed: int = 0) -> Tensor:
    """f of every draw, (S, N, C)."""
    predictive = at_hand(net, x).predict(x, num_samples=num_samples, seed=seed)
    assert isinstance(predictive, GaussianPredictive)
    return predictive.component_means


def identity(size: int) -> nn.Linear:
    layer = nn.Linear(size, size, bias=False, dtype=torch.float64)
    nn.init.eye_(layer.weight)
    return layer


def assert_moments(f: Tensor, mean: Tensor, variance: Tensor, fourth: Tensor) -> None:
    """The moments of S draws are within 4.5 standard errors of these, the last one being E (f - mean)^4."""
    number = len(f)
    assert ((f.mean(dim=0) - mean).abs() <= 4.5 * (variance / number).sqrt() + 1e-9).all()
    error = ((fourth - variance**2) / number).sqrt()
    assert ((f.var(dim=0) - variance).abs() <= 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_linear_layer_has_the_closed_form_mean_and_variance(p):
    net = built(lambda: nn.Sequential(nn.Dropout(p), nn.Linear(4, 1, dtype=torch.float64)))
    x = noise(0, 3, 4)
    f = outputs(net, x)[..., 0]
    weight, bias = net[1].weight.detach()[0], net[1].bias.detach()
    terms = (x * weight) ** 2  # each kept with probability 1 - p and then divided by it
    variance = terms.sum(dim=1) * p / (1 - p)
    # The fourth cumulant of a centred Bernoulli(1 - p) over 1 - p: p q (1 - 6 p q) / q^4, q = 1 - p.
    q = 1 - p
    fourth = 3 * variance**2 + (terms**2).sum(dim=1) * p * q * (1 - 6 * p * q) / q**4
    assert_moments(f, x @ weight + bias, variance, fourth)


@pytest.mark.parametrize("p", [0.2, 0.6])
def test_a_hidden_layer_has_the_moments_of_the_sum_over_all_masks(p):
    net = built(lambda: networks.mlp(2, (3, 2), 1, dropout=p, activation="tanh").double())
    x = noise(0, 4, 2)
    first, second, last = (layer for layer in net if isinstance(layer, nn.Linear))
    values, chances = [], []
    with torch.no_grad():
        for bits in itertools.product([0.0, 1.0], repeat=5):
            keep = torch.tensor(bits, dtype=torch.float64)
            hidden = first(x).tanh() * keep[:3] / (1 - p)
            values.append(last(second(hidden).tanh() * keep[3:] / (1 - p))[:, 0])
            chances.append((1 - p) ** keep.sum() * p ** (1 - keep).sum())
    f, chance = torch.stack(values), torch.stack(chances)[:, None]
    mean = (chance * f).sum(dim=0)
    variance, fourth = ((chance * (f - mean) ** power).sum(dim=0) for power in (2, 4))
    assert_moments(outputs(net, x)[..., 0], mean, variance, fourth)


def test_the_predictive_is_the_mixture_over_masks():
    net = nn.Sequential(nn.Dropout(0.5), identity(1))
    x = torch.ones(1, 1, dtype=torch.float64)
    predictive = at_hand(net, x).predict(x, num_samples=NUM_DRAWS, seed=0)
    # f is 0 or 2 with equal chances: variance 1 beside the noise's 0.01
    assert float(predictive.aleatoric) == pytest.approx(0.01)
    assert float(predictive.epistemic) == pytest.approx(1, abs=5 / NUM_DRAWS**0.5)
    assert set(predictive.component_means.unique().tolist()) == {0.0, 2.0}


def test_rows_and_units_have_masks_of_their_own():
    x = torch.ones(2 * BLOCK + 9, 5, dtype=torch.float64)  # in three blocks
    kept = outputs(nn.Sequential(nn.Dropout(0.5), identity(5)), x, num_samples=400) / 2
    sums = kept.flatten(1)  # (S, rows x units), standard deviation 1/2 each
    correlation = torch.corrcoef(sums.T)
    off = correlation[~torch.eye(len(correlation), dtype=torch.bool)]
    # 235,000 pairs of 400 draws: a standard error of 1/20 each; exceeding 6 of them has probability 2e-9.
    assert off.abs().max() < 6 / 400**0.5
    assert abs(float(off.square().mean()) - 1 / 399) < 0.05 / 399
    assert (kept.mean() - 0.5).abs() < 4.5 * 0.5 / kept.numel() ** 0.5


def test_draws_and_seeds_have_masks_of_their_own():
    net, x = nn.Sequential(nn.Dropout(0.5), identity(64)), torch.ones(1, 64, dtype=torch.float64)
    masks = torch.cat([outputs(net, x, num_samples=20, seed=seed)[:, 0] for seed in range(3)])
    assert len(masks.unique(dim=0)) == 60


@pytest.mark.parametrize(
    "build",
    [
        lambda drop: nn.Sequential(identity(1), drop, identity(1), drop),
        lambda drop: nn.Sequential(nn.Sequential(drop, identity(1)), nn.Sequential(drop, nn.Flatten())),
        lambda drop: nn.Sequential(identity(1), nn.Sequential(drop, drop)),
    ],
)
def test_a_layer_in_two_places_drops_in_both_by_itself(build):
    x = torch.ones(1, 1, dtype=torch.float64)
    f = outputs(build(nn.Dropout(0.5)), x).flatten()
    assert set(f.unique().tolist()) == {0.0, 4.0}
    assert abs(float((f == 4).double().mean()) - 0.25) < 4.5 * (0.25 * 0.75 / NUM_DRAWS) ** 0.5


class ReusedInForward(nn.Module):
    """One layer, called twice."""

    def __init__(self):
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), identity(1)

    def forward(self, x):
        return self.last(self.drop(self.drop(x)))


def test_a_layer_called_twice_has_two_masks():
    f = outputs(ReusedInForward(), torch.ones(1, 1, dtype=torch.float64)).flatten()
    assert set(f.unique().tolist()) == {0.0, 4.0}
    assert abs(float((f == 4).double().mean()) - 0.25) < 4.5 * (0.25 * 0.75 / NUM_DRAWS) ** 0.5


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Dropout1d, (2, 6)), (nn.Dropout2d, (2, 2, 3)), (nn.Dropout3d, (2, 1, 2, 3))]
)
def test_channel_dropout_drops_whole_channels(layer, shape):
    net = nn.Sequential(layer(0.5), nn.Flatten(), identity(12))
    x = torch.ones(3, *shape, dtype=torch.float64)
    f = outputs(net, x, num_samples=500).reshape(500, 3, 2, 6)
    assert set(f.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(f, f[..., :1].expand_as(f))
    channels = f[..., 0].reshape(500, -1)
    assert (channels.mean(dim=0) - 1).abs().max() < 4.5 / 500**0.5
    assert len(channels.unique(dim=0)) == 2**6  # all combinations of three rows and two channels


def test_plain_dropout_of_an_image_drops_single_pixels():
    net = nn.Sequential(nn.Dropout(0.5), nn.Flatten(), identity(12))
    f = outputs(net, torch.ones(1, 2, 2, 3, dtype=torch.float64), num_samples=50)
    assert 0.3 < (f != f[..., :1]).double().mean() < 0.6


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_alpha_dropout_keeps_mean_0_and_variance_1(p):
    x = noise(0, 5000, 4)
    f = outputs(nn.Sequential(nn.AlphaDropout(p), identity(4)), x, num_samples=1)
    assert f.mean().abs() < 4.5 / f.numel() ** 0.5
    # The square has a kurtosis of at most 3 here.
    assert (f.var() - 1).abs() < 4.5 * (2 / f.numel()) ** 0.5
    _, counts = f.flatten().unique(return_counts=True)
    share = float(counts.max()) / f.numel()  # one value stands for all that is dropped
    assert abs(share - p) < 4.5 * (p * (1 - p) / f.numel()) ** 0.5


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_alpha_dropout_takes_the_values_of_torchs_own(p):
    x = torch.zeros(200, 1, dtype=torch.float64)
    f = outputs(nn.Sequential(nn.AlphaDropout(p), identity(1)), x, num_samples=1).flatten().unique()
    expected = functional.alpha_dropout(x, p, training=True).flatten().unique()
    torch.testing.assert_close(f, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_feature_alpha_dropout_drops_whole_channels_and_keeps_the_moments(p):
    x = noise(0, 2500, 2, 4)
    net = nn.Sequential(nn.FeatureAlphaDropout(p), nn.Flatten(), identity(8))
    f = outputs(net, x, num_samples=1).reshape(2500, 2, 4)
    dropped = (f == f[..., :1]).all(dim=2)
    assert abs(float(dropped.double().mean()) - p) < 4.5 * (p * (1 - p) / 5000) ** 0.5
    assert f.mean().abs() < 4.5 * (4 / f.numel()) ** 0.5  # four equal values a dropped channel
    assert (f.var() - 1).abs() < 4.5 * (8 / f.numel()) ** 0.5


def test_everything_dropped_gives_zero_as_torchs_own_layer_does():
    x = noise(0, 3, 2)
    net = nn.Sequential(nn.Dropout(1.0), nn.Linear(2, 1, dtype=torch.float64))
    torch.testing.assert_close(outputs(net, x, num_samples=2), net[1].bias.detach().expand(2, 3, 1))


def test_layers_that_drop_nothing_are_the_identity():
    x = noise(0, 4, 3)
    f = outputs(nn.Sequential(nn.Dropout(0.0), identity(3), nn.Dropout(0.5), identity(3)), x, num_samples=50)
    kept = f[f != 0]
    assert set(kept.round(decimals=9).tolist()) <= set((2 * x).flatten().round(decimals=9).tolist())


def test_batch_norm_uses_its_statistics_while_masks_are_random():
    net = built(lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1)).double())
    with torch.no_grad():
        net[0].running_mean += torch.tensor([1.0, -1.0, 2.0])
        net[0].running_var *= 4
    x = 5 + noise(0, 6, 3)  # a batch whose own mean and variance are far from the statistics
    f = outputs(net, x)[..., 0]
    expected = net.eval()(x).detach()[:, 0]
    assert ((f.mean(dim=0) - expected) / (f.std(dim=0) / NUM_DRAWS**0.5)).abs().max() < 4.5


class ColumnsFirst(nn.Module):
    """Drops with another dimension in the place of the rows."""

    def __init__(self):
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), identity(3)

    def forward(self, x):
        return self.last(self.drop(x.T).T)


def test_rows_that_do_not_come_first_have_masks_of_their_own():
    x = noise(0, 2 * BLOCK, 3)
    f = outputs(ColumnsFirst(), x, num_samples=50)
    dropped = (f == 0).double()
    assert abs(float(dropped.mean()) - 0.5) < 4.5 * 0.5 / dropped.numel() ** 0.5
    few = outputs(ColumnsFirst(), x[: BLOCK + 5], num_samples=50)
    assert torch.equal(few, f[:, : BLOCK + 5])


@pytest.mark.parametrize("net", [networks.mlp(3, (4,), 1), nn.Sequential(nn.Dropout(0.0), nn.Linear(3, 1))], ids=str)
def test_a_network_that_drops_nothing_is_refused(net):
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.1))
    with pytest.raises(ValueError, match="needs a network with dropout layers"):
        dropout.fit(model, measured(), num_epochs=1, seed=0)


def test_the_unknown_noise_is_learned_as_a_point():
    net = built(lambda: networks.mlp(3, (4,), 1, dropout=0.1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale="learned"))
    posterior = dropout.fit(model, measured(), num_epochs=200, learning_rate=1e-2, seed=0)
    variances = posterior.predict(measured().x, num_samples=5, seed=0).noise_variance
    assert len(variances.unique()) == 1
    assert 0.05 < float(variances[0, 0, 0]) ** 0.5 < 0.8  # it started at 1


def test_the_states_of_blocks_cost_a_time_linear_in_their_number():
    masks, made, sizes = Masks(torch.device("cpu")), None, []
    for number in range(1, 1001):
        states = masks._states_of(7, 3, number)
        if states is not made:
            made, sizes = states, [*sizes, len(states)]
    assert sum(sizes) < 4 * 1000
    expected = np.random.SeedSequence(7, spawn_key=(3, 0)).generate_state(1000, np.uint64)
    np.testing.assert_array_equal(made[:1000], expected)
