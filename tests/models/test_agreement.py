"""Two models agree where nothing but the weights that their fits start from differs."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.agreement import differ_in_start_only
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built


class Attributes(nn.Module):
    """A module with all that a module can have besides weights."""

    def __init__(self, power: int = 1, function: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.layer, self.frozen = nn.Linear(3, 2), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)
        self.register_buffer("shift", torch.zeros(2))
        self.power, self.function, self.options = power, function, {"kept": (1, [2.0])}

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.frozen(self.layer(x))) ** self.power + self.shift


def model(change: Callable[[nn.Module], object] | None = None, **options) -> BayesianNetwork:
    net = options.pop("net", None) or built(Attributes)
    if change is not None:
        change(net)
    options = {"prior": priors.Normal(), "likelihood": likelihoods.Normal(scale=0.1)} | options
    return BayesianNetwork(net, options["prior"], options["likelihood"], random=options.get("random", "all"))


@torch.no_grad()
def fill(value: Tensor) -> None:
    value.fill_(0.5)


DIFFERENT = {
    "frozen weights": model(lambda net: fill(net.frozen.weight)),
    "what is frozen": model(lambda net: net.frozen.requires_grad_()),
    "buffers": model(lambda net: fill(net.shift)),
    "attributes": model(net=built(lambda: Attributes(power=2))),
    "attributes of attributes": model(lambda net: net.options["kept"][1].append(3.0)),
    "functions": model(net=built(lambda: Attributes(function=torch.sin))),
    "functions with arguments": model(net=built(lambda: Attributes(function=functools.partial(torch.clamp, min=0.1)))),
    "the likelihood": model(likelihood=likelihoods.Normal(scale=0.2)),
    "the likelihood's unknowns": model(likelihood=likelihoods.Normal(scale="learned")),
    "the prior": model(prior=priors.Normal(scale=2.0)),
    "what is random": model(random="*.weight"),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_whatever_a_prediction_depends_on_tells_models_apart(name):
    assert not differ_in_start_only(model(), DIFFERENT[name])
    assert not differ_in_start_only(DIFFERENT[name], model())


def test_starts_do_not_tell_models_apart():
    one = model()
    for other in (
        model(net=built(Attributes, 1), change=lambda net: net.frozen.load_state_dict(one.net.frozen.state_dict())),
        one.with_likelihood(likelihoods.Normal(scale=0.1)),
        one.to("cpu"),
    ):
        assert differ_in_start_only(one, other)


@pytest.mark.parametrize(
    "prior", [priors.Horseshoe(), priors.ScaleMixture((1.0, 0.1), (0.5, 0.5)), priors.StudentT(3.0)]
)
def test_every_prior_agrees_with_itself(prior):
    one = BayesianNetwork(networks.convnet(1, 3), {"*.bias": priors.Normal(), "*": prior}, likelihoods.Categorical())
    assert differ_in_start_only(one, one.reinitialise(3))


def test_weights_that_are_shared_in_other_places_tell_models_apart():
    def network(*, tied: bool) -> nn.Module:
        net = built(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        if tied:
            net[1].weight = net[0].weight
        return net

    assert not differ_in_start_only(model(net=network(tied=True)), model(net=network(tied=False)))
