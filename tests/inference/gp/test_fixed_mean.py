"""Processes around a trained network: exactly the process of its residuals, and the network's own far from the data."""

import copy

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import features, gp
from bayesuq.inference.adoption import adopt
from bayesuq.models import likelihoods
from bayesuq.models.gp import RBF, Deep, FixedMean, GaussianProcess, Scale, ZeroMean
from tests.inference.examples import built, noise


def test_it_is_the_process_of_the_residuals() -> None:
    net = built(lambda: nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double())
    before = copy.deepcopy(net.state_dict())
    x, new = noise(0, 30, 2), noise(1, 7, 2)
    y = net(x).detach() + 0.3 * x[:, :1].sin() + 0.05 * noise(2, 30, 1)
    kernel = Scale(RBF(lengthscale=1.0), 0.25)

    def predicted(mean: object, targets: torch.Tensor) -> object:
        process = GaussianProcess(kernel=kernel, mean=mean, likelihood=likelihoods.Normal(scale=0.1))
        return gp.fit(process, Dataset(x, targets), approximation="exact").predict(new)

    ours, residual = predicted(FixedMean(net), y), predicted(ZeroMean(), y - net(x).detach())
    torch.testing.assert_close(ours.mean, residual.mean + net(new).detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.total, residual.total, rtol=1e-6, atol=1e-8)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_on_features_of_labels_it_begins_at_the_networks_own_logits() -> None:
    net = built(lambda: nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)))
    x = noise(0, 60, 2).float()
    adopted = adopt(net, likelihoods.Categorical())
    taken = features.take(adopted, Dataset(x, net(x).argmax(dim=1)))
    process = GaussianProcess(
        kernel=Scale(RBF(lengthscale=1.0), 1e-6), mean=FixedMean(net[2]), likelihood=likelihoods.Categorical()
    )
    data = Dataset(taken.features, taken.labels)
    posterior = gp.fit(process, data, approximation="sparse", num_inducing=10, num_epochs=3, seed=0)
    found = posterior.predict(taken.features, num_samples=20, seed=0).mean
    torch.testing.assert_close(found, adopted.predict(x).mean, rtol=0.02, atol=0.005)


@pytest.mark.parametrize("num_given", [1, 3])
def test_a_network_of_other_outputs_than_the_targets_is_told(num_given: int) -> None:
    process = GaussianProcess(kernel=RBF(1.0), mean=FixedMean(built(lambda: nn.Linear(2, num_given))))
    with pytest.raises(ValueError, match=rf"must give \(3, 2\) numbers.*got \(3, {num_given}\)"):
        gp.fit(process, Dataset(noise(0, 5, 2), noise(1, 5, 2)))


def test_beside_a_deep_kernel_it_is_refused_for_it_would_see_features() -> None:
    net = built(lambda: nn.Linear(2, 2))
    with pytest.raises(ValueError, match="A FixedMean is of the inputs"):
        GaussianProcess(kernel=Deep(net, RBF()), mean=FixedMean(net))
