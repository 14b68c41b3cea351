"""Modules that compute something else than their class says: a `forward` put in its place, and functions in hooks."""

import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.inference.joint.perceptrons import is_perceptron
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, noise

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)
X = noise(0, 10, 3)
DATA = Dataset(X, X.sum(dim=1))


def plain() -> nn.Sequential:
    return built(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double())


def by_a_hook() -> nn.Module:
    net = plain()
    net[0].register_forward_hook(lambda _module, _inputs, output: 2 * output + 1)
    return net


def by_a_layers_own_forward() -> nn.Module:
    net = plain()

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        return 2 * nn.functional.linear(x, self.weight, self.bias) + 1

    net[0].forward = types.MethodType(forward, net[0])
    return net


def by_an_activations_own_forward() -> nn.Module:
    net = plain()
    net[1].forward = lambda x: x.clamp(-1, 0.5)
    return net


def by_its_own_forward() -> nn.Module:
    net = plain()
    net.forward = types.MethodType(lambda self, x: 7 + self[2](self[1](self[0](x))), net)
    return net


CHANGED: dict[str, Callable[[], nn.Module]] = {
    "hook": by_a_hook,
    "layer": by_a_layers_own_forward,
    "activation": by_an_activations_own_forward,
    "network": by_its_own_forward,
}


def model(net: nn.Module) -> BayesianNetwork:
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))


@pytest.mark.parametrize("build", CHANGED.values(), ids=CHANGED)
def test_predictions_of_several_draws_are_those_of_the_network(build):
    net = build()
    assert is_perceptron(plain(), X)
    assert not is_perceptron(net, X)
    fitted = variational.fit(model(net), DATA, num_epochs=1, estimator="weights", seed=0)
    draws = fitted.sample_weights(4, seed=0)
    one_by_one = [fitted.model.forward({name: value[place] for name, value in draws.items()}, X) for place in range(4)]
    torch.testing.assert_close(fitted.predict(X, num_samples=4, seed=0).mean, torch.stack(one_by_one).mean(dim=0))


@pytest.mark.parametrize("build", [by_a_hook, by_a_layers_own_forward])
def test_noise_in_outputs_is_refused_where_a_layer_makes_more_of_them(build):
    with pytest.raises(ValueError, match=r"estimator='local' is exact for linear layers alone; 0\.weight"):
        variational.fit(model(build()), DATA, num_epochs=1, estimator="local", seed=0)


def with_a_forward_of_the_original(*, frozen: bool = False) -> nn.Module:
    net = plain()
    before = net[0].forward
    net[0].forward = lambda x: 2 * before(x)
    return net if not frozen else frozen_first(net)


class Scaled(nn.Module):
    """An attribute refers to the module that it was made in."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.gain = nn.Parameter(torch.ones(1))
        self.last = lambda x: self.gain * x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(x))


def with_a_hook_of_the_original(*, frozen: bool = False) -> nn.Module:
    net = plain()
    first = net[0]
    net[1].register_forward_hook(lambda _module, _inputs, output: output + first.bias)
    return net if not frozen else frozen_first(net)


def frozen_first(net: nn.Sequential) -> nn.Module:
    net[0].requires_grad_(False)
    return net


@pytest.mark.parametrize(
    "build", [with_a_forward_of_the_original, with_a_hook_of_the_original, lambda: built(lambda: Scaled().double())]
)
def test_functions_that_refer_to_the_weights_of_the_original_are_refused(build):
    with pytest.raises(ValueError, match="trainable numbers that are no weights of the copy that is fitted"):
        map_estimate.fit(model(build()), DATA, num_epochs=1, seed=0)


@pytest.mark.parametrize("build", [with_a_forward_of_the_original, with_a_hook_of_the_original])
def test_functions_that_refer_to_frozen_weights_are_taken(build):
    map_estimate.fit(model(build(frozen=True)), DATA, num_epochs=1, seed=0)


class Force(nn.Module):
    """Minus the derivative of an energy, as of molecules: its pass makes inputs that it takes a derivative by."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            places = x.detach().requires_grad_()
            return -torch.autograd.grad(self.energy(places).sum(), places, create_graph=True)[0]


def test_inputs_that_a_pass_takes_a_derivative_by_are_no_weights_of_another_network():
    fitted = map_estimate.fit(
        model(built(lambda: Force().double())), Dataset(X, -X), num_epochs=200, learning_rate=0.03, seed=0
    )
    assert (fitted.predict(X).mean + X).abs().mean() < 0.5 * X.abs().mean()


class Locked(nn.Dropout):
    """Drops the same units at all places of a row."""

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.functional.dropout(x.new_ones(len(x), x.shape[-1]), self.p, self.training)
        return mask.unsqueeze(1) * x


class Tripled(nn.Dropout):
    """Does more than drop."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


class Triple(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


class Placewise(nn.Module):
    """Two places of a row, (N, 2, 3) to (N, 2)."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), dropout, nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(2)


def tripled_by_itself() -> nn.Module:
    layer = nn.Dropout(1e-12)
    layer.forward = lambda x: 3 * x
    return layer


def tripled_by_a_hook() -> nn.Module:
    layer = nn.Dropout(1e-12)
    layer.register_forward_hook(lambda _module, _inputs, output: 3 * output)
    return layer


def test_dropout_layers_of_ones_own_share_their_masks_as_they_say():
    net = built(lambda: Placewise(Locked(0.5)).double())
    alike = X.unsqueeze(1).expand(-1, 2, -1).contiguous()
    data = Dataset(alike, X[:, :2])
    means = dropout.fit(model(net), data, num_epochs=1, seed=0).predict(alike, num_samples=5, seed=0).component_means
    assert float(means.std(dim=0).min()) > 0
    torch.testing.assert_close(means[..., 0], means[..., 1])


@pytest.mark.parametrize(
    "build", [lambda: Tripled(1e-12), tripled_by_itself, tripled_by_a_hook], ids=["class", "itself", "hook"]
)
@pytest.mark.parametrize("method", [dropout, map_estimate, ensemble])
def test_dropout_layers_that_do_more_than_drop_do_it_in_fits_and_predictions(method, build):
    def predicted(layer: nn.Module) -> Tensor:
        net = built(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), layer, nn.Linear(4, 1)).double())
        options = {"num_members": 2} if method is ensemble else {}
        return method.fit(model(net), DATA, num_epochs=2, seed=0, **options).predict(X, num_samples=3, seed=0).mean

    expected = predicted(nn.Sequential(nn.Dropout(1e-12), Triple()))
    torch.testing.assert_close(predicted(build()), expected)
