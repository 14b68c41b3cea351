import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.freshness import not_fresh
from bayesuq.models.initialisation import reinitialised, started
from bayesuq.randomness import isolated
from tests.zoo.pretrained import ConvNext, VisionTransformer, adapted, start_adapters


class Attention(nn.Module):
    """Attention sets the bias of a linear layer of its own to zero, after that layer's own initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.attention(x, x, x, need_weights=False)[0].mean(dim=1)))


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.first(x)


class Own(Bare):
    def reset_parameters(self) -> None:
        nn.init.normal_(self.gain, 5.0)


class Shared(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(3, 3)
        self.body = nn.Sequential(layer, nn.Tanh(), layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


class Doubled(nn.Module):
    """A parametrization without an inverse: the parameter is what was there."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def layered(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(3, 4)), nn.Tanh(), wrap(nn.Linear(4, 2)))


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "spectral norm": parametrizations.spectral_norm,
    "one without an inverse": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
    "weight norm, by a hook": nn.utils.weight_norm,
    "spectral norm, by a hook": nn.utils.spectral_norm,
}


class Forgetful(nn.Linear):
    """Resets its bias alone, and writes into a copy of its weight."""

    def reset_parameters(self) -> None:
        self.bias.data.zero_()
        nn.init.normal_(self.weight.detach().clone())


BUILDERS = {
    "mlp": lambda: networks.mlp(5, (7, 6), 3, 0.1, batch_norm=True),
    "convnet": lambda: networks.convnet(1, 3, channels=(2, 3), hidden=4, batch_norm=True),
    "attention": Attention,
    "recurrent": lambda: nn.GRU(3, 4),
    "embedding": lambda: nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 2)),
    "shared layer": Shared,
}


@pytest.mark.parametrize("runs_before", [False, True])
@pytest.mark.parametrize("wrap", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_weights_that_are_computed_are_fresh_too(wrap: Callable[[nn.Module], nn.Module], runs_before: bool) -> None:
    with isolated(3):
        net = layered(wrap).eval()
    if runs_before:
        net(torch.ones(1, 3))
    x = torch.eye(3)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal())
    one, again, other = (model.reinitialise(seed).net.eval() for seed in (1, 1, 2))
    with torch.no_grad():
        first, second, before = (each[0](x) - each[0].bias for each in (one, other, net))  # the weights
        assert torch.equal(one(x), again(x))
    assert float((first - second).abs().max()) > 0.01
    assert float((first - before).abs().max()) > 0.01


def test_a_weight_norm_starts_where_building_it_under_the_seed_does() -> None:
    with isolated(5):
        built = layered(parametrizations.weight_norm)
    assert_same(state(reinitialised(layered(parametrizations.weight_norm), 5)), state(built))


@pytest.mark.parametrize("initialise", ["reset", "last_layer"])
def test_parameters_that_a_reset_leaves_as_they_are_are_named(initialise: str) -> None:
    net = nn.Sequential(nn.Linear(3, 4), Forgetful(4, 2))
    with pytest.raises(ValueError, match=r"1\.weight"):
        started(net, 0, initialise)  # type: ignore[arg-type]


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_fresh_weights_are_those_of_building_the_network_under_the_seed(build: Callable[[], nn.Module]) -> None:
    net = build()
    for parameter in net.parameters():
        nn.init.constant_(parameter, 9.0)
    for seed in (0, 11):
        with isolated(seed):
            built = build()
        assert_same(state(reinitialised(net, seed)), state(built))


def test_the_seed_decides_and_the_global_state_stays() -> None:
    net = networks.mlp(3, (4,), 2)
    before, found = state(net), torch.get_rng_state()
    first, again, other = (reinitialised(net, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), found)
    assert_same(state(first), state(again))
    assert all(not torch.equal(value, state(other)[name]) for name, value in state(first).items())
    assert_same(state(net), before)


def test_weights_fill_the_range_of_torchs_own_initialisation() -> None:
    layer = reinitialised(nn.Linear(100, 200), 0)
    bound = 0.1  # 1 / sqrt(inputs), for weights and biases
    for values in (layer.weight.detach().flatten(), layer.bias.detach()):
        assert values.abs().max() <= bound
        # The variance of n uniform draws on (-b, b) is b^2 / 3, with relative standard error sqrt(0.8 / n).
        assert abs(float(values.var()) / (bound**2 / 3) - 1) < 4.5 * (0.8 / len(values)) ** 0.5


def test_frozen_layers_stay_as_they_are_with_their_statistics() -> None:
    net = networks.mlp(3, (4, 4), 2, batch_norm=True)
    net(torch.randn(30, 3))
    for layer in (net[1], net[2]):
        layer.requires_grad_(False)
    net[4].bias.requires_grad_(False)
    before, after = state(net), state(reinitialised(net, 3))
    kept = {"1.weight", "1.bias", "4.bias", *(name for name in before if name.startswith("2."))}
    assert_same({name: after[name] for name in kept}, {name: before[name] for name in kept})
    for name in ("4.weight", "7.weight", "7.bias"):
        assert not torch.equal(after[name], before[name])
    assert (after["5.running_mean"] == 0).all()  # the statistics of the old weights


def test_a_frozen_feature_extractor_gives_every_member_the_same_features() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical())
    x, fresh = torch.randn(5, 3), model.reinitialise(1)
    torch.testing.assert_close(fresh.net[:2](x), net[:2](x))
    torch.testing.assert_close(model.forward(fresh.initial(), x), fresh.net(x).detach())


def test_parameters_that_nothing_resets_are_named_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"no layer resets 0\.gain\. Define `reset_parameters\(self\)`"):
        reinitialised(nn.Sequential(Bare()), 0)


def test_a_module_may_reset_its_own_parameters_or_freeze_them() -> None:
    fresh = reinitialised(Own(), 0)
    assert not torch.equal(fresh.gain, torch.ones(3))
    frozen = Bare()
    frozen.gain.requires_grad_(False)
    assert torch.equal(reinitialised(frozen, 0).gain, torch.ones(3))


# Other starts than fresh weights


@pytest.mark.parametrize("build", [VisionTransformer, ConvNext], ids=lambda build: build.__name__)
def test_what_nothing_resets_can_be_kept_under_a_fresh_last_layer(build: Callable[[], nn.Module]) -> None:
    net = build()
    with pytest.raises(ValueError, match=r"no layer resets .*`initialise`: 'last_layer' or 'keep' start"):
        started(net, 0)
    assert_same(state(started(net, 0, "keep")), state(net))
    first, again, other = (state(started(net, seed, "last_layer")) for seed in (5, 5, 6))
    assert_same(first, again)
    for name, value in state(net).items():
        assert torch.equal(first[name], value) == torch.equal(first[name], other[name]) == (not name.startswith("head"))
    assert first["head.weight"].abs().max() <= net.head.in_features**-0.5


def test_a_function_initialises_a_copy_under_the_seed() -> None:
    net = adapted()
    before, found = state(net), torch.get_rng_state()
    first, again, other = (started(net, seed, start_adapters) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), found)
    assert_same(state(net), before)
    assert_same(state(first), state(again))
    x = torch.randn(7, 3)
    for one in (first, other):
        torch.testing.assert_close(one(x), net(x), rtol=0.0, atol=0.0)  # adapters start at nothing
        assert not torch.equal(one[0].lora_A.weight, net[0].lora_A.weight)
    assert not torch.equal(first[0].lora_A.weight, other[0].lora_A.weight)


@pytest.mark.parametrize(
    ("initialise", "error", "says"),
    [
        ("fresh", ValueError, "must be one of 'reset', 'last_layer', 'keep', or a function of .* got 'fresh'"),
        (nn.Linear(1, 1), TypeError, "a word or a function of .*; got Linear"),
        (lambda net, _: net.state_dict(), TypeError, "must return the network, a torch.nn.Module; got OrderedDict"),
        (lambda net, _: net.append(nn.Linear(2, 2)), ValueError, r"must keep .*; 2\.bias, 2\.weight differ"),
        (lambda net, _: net.double(), ValueError, r"must keep .*; 0\.bias, 0\.weight differ"),
    ],
)
def test_other_starts_are_refused(initialise: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        started(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), 0, initialise)  # type: ignore[arg-type]


def test_a_last_layer_that_nothing_resets_is_named() -> None:
    net = Bare()
    net.first.requires_grad_(False)
    with pytest.raises(ValueError, match=r"The last layer, Bare with gain, has no `reset_parameters`.* 'keep', or a"):
        started(net, 0, "last_layer")


@pytest.mark.parametrize("num_resets", [1, 5])
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_fresh_weights_look_fresh(build: Callable[[], nn.Module], num_resets: int) -> None:
    for seed in range(3):
        with isolated(seed):
            net = build()
        assert not_fresh(net, [reinitialised(net, 10 + other) for other in range(num_resets)]) == []


def test_weights_that_are_not_fresh_are_named() -> None:
    def names(net: nn.Module, change: Callable[[nn.Module], object], num_resets: int = 5) -> list[str]:
        with torch.no_grad():
            change(net)
        return not_fresh(net, [reinitialised(net, other) for other in range(num_resets)])

    net = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 5))
    assert names(copy.deepcopy(net), lambda net: net[0].weight.mul_(1.5), 1) == ["0.weight"]
    assert names(copy.deepcopy(net), lambda net: net[0].weight.mul_(0.4)) == ["0.weight"]
    assert names(copy.deepcopy(net), lambda net: net[1].bias.add_(1e-3)) == ["1.bias"]
    assert names(copy.deepcopy(net), lambda net: nn.init.kaiming_normal_(net[0].weight)) == ["0.weight"]
    assert {"0.lora_B.weight", "2.lora_B.weight"} <= set(names(adapted(), lambda _: None))
