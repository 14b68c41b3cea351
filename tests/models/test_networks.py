import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parameters_to_vector

from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.networks import Network, Recipe, convnet, mlp, unet


def kinds(net: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in net]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"]),
        ({"activation": "tanh"}, ["Flatten", "Linear", "Tanh", "Linear", "Tanh", "Linear"]),
        ({"activation": "silu"}, ["Flatten", "Linear", "SiLU", "Linear", "SiLU", "Linear"]),
        ({"activation": "gelu"}, ["Flatten", "Linear", "GELU", "Linear", "GELU", "Linear"]),
        ({"dropout": 0.2}, ["Flatten", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]),
        (
            {"dropout": 0.2, "batch_norm": True},
            ["Flatten", *2 * ["Linear", "BatchNorm1d", "ReLU", "Dropout"], "Linear"],
        ),
    ],
)
def test_layers_of_a_perceptron_stand_in_order(options: dict[str, object], expected: list[str]) -> None:
    assert kinds(mlp(3, (5, 4), 2, **options)) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {},
            [*2 * ["Conv2d", "ReLU", "MaxPool2d"], "AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU", "Linear"],
        ),
        (
            {"dropout": 0.3, "batch_norm": True},
            [
                *2 * ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Dropout2d"],
                *["AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU", "Dropout", "Linear"],
            ],
        ),
    ],
)
def test_layers_of_a_convnet_stand_in_order(options: dict[str, object], expected: list[str]) -> None:
    assert kinds(convnet(1, 10, **options)) == expected


@pytest.mark.parametrize("net", [mlp(4, (3, 3, 3), 2, 0.25), convnet(1, 2, 0.25)])
def test_dropout_layers_have_the_given_probability(net: Network) -> None:
    dropped = [layer.p for layer in net if isinstance(layer, nn.Dropout | nn.Dropout2d)]
    assert dropped == [0.25, 0.25, 0.25]


def test_a_perceptron_computes_what_its_formula_says() -> None:
    net = mlp(4, (3,), 2, activation="tanh")
    w = dict(net.named_parameters())
    x = torch.randn(6, 4)
    expected = torch.tanh(x @ w["1.weight"].T + w["1.bias"]) @ w["3.weight"].T + w["3.bias"]
    torch.testing.assert_close(net(x), expected)


def test_a_perceptron_without_hidden_layers_is_linear() -> None:
    net = mlp(4, (), 2)
    assert [name for name, _ in net.named_parameters()] == ["1.weight", "1.bias"]
    x = torch.randn(6, 4)
    torch.testing.assert_close(net(x), x @ net[1].weight.T + net[1].bias)


def test_a_perceptron_flattens_images() -> None:
    net, images = mlp(24, (3,), 2), torch.randn(5, 2, 3, 4)
    torch.testing.assert_close(net(images), net(images.reshape(5, 24)))


def test_a_convnet_computes_what_its_formula_says() -> None:
    net = convnet(2, 3, channels=(4, 5), hidden=6)
    w = dict(net.named_parameters())
    x = torch.randn(2, 2, 16, 16)
    h = functional.max_pool2d(functional.conv2d(x, w["0.weight"], w["0.bias"], padding=2).clamp(min=0), 2)
    h = functional.max_pool2d(functional.conv2d(h, w["3.weight"], w["3.bias"], padding=2).clamp(min=0), 2)
    h = (h.flatten(1) @ w["8.weight"].T + w["8.bias"]).clamp(min=0)  # 16 / 4 = 4: the pooled grid is the image's own
    torch.testing.assert_close(net(x), h @ w["10.weight"].T + w["10.bias"])


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (28, 28), (33, 20)])
def test_a_convnet_takes_images_of_any_size(size: tuple[int, int]) -> None:
    f = convnet(1, 10, channels=(2, 3), hidden=4)(torch.randn(3, 1, *size))
    assert f.shape == (3, 10)
    assert f.isfinite().all()


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: mlp(2, (3,), 1, 0.1), ["1.weight", "1.bias", "4.weight", "4.bias"]),
        (
            lambda: convnet(1, 2, 0.1),
            [f"{layer}.{kind}" for layer in (0, 4, 10, 13) for kind in ("weight", "bias")],
        ),
    ],
)
def test_parameters_have_the_same_names_every_time(build: object, names: list[str]) -> None:
    for _ in range(2):
        assert [name for name, _ in build().named_parameters()] == names


WHOLE = [0, -1, 1.5, "3", None, True]


@pytest.mark.parametrize("bad", WHOLE)
@pytest.mark.parametrize(
    ("build", "argument"),
    [
        (lambda bad: mlp(bad, (3,), 1), "in_features"),
        (lambda bad: mlp(2, (3, bad), 1), "hidden"),
        (lambda bad: mlp(2, (3,), bad), "out_features"),
        (lambda bad: convnet(bad, 2), "in_channels"),
        (lambda bad: convnet(1, bad), "out_features"),
        (lambda bad: convnet(1, 2, channels=(3, bad)), "channels"),
        (lambda bad: convnet(1, 2, hidden=bad), "hidden"),
    ],
)
def test_sizes_that_are_not_whole_numbers_above_zero_are_refused_by_name(
    build: object, argument: str, bad: object
) -> None:
    with pytest.raises((ValueError, TypeError), match=f"`{argument}`"):
        build(bad)


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2, float("nan"), "0.1", None])
@pytest.mark.parametrize("build", [lambda bad: mlp(2, (3,), 1, bad), lambda bad: convnet(1, 2, bad)])
def test_dropout_outside_its_range_is_refused(build: object, bad: object) -> None:
    with pytest.raises((ValueError, TypeError), match="`dropout`"):
        build(bad)


def test_unknown_activations_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"`activation` must be one of 'relu', 'tanh', 'silu', 'gelu'; got 'relo'"):
        mlp(2, (3,), 1, activation="relo")


def test_one_number_for_the_hidden_layers_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"`hidden` must be a list, such as \[100\]; got 100"):
        mlp(2, 100, 1)


@pytest.mark.parametrize("change", [lambda net: net[:3], lambda net: net[1:], lambda net: net + net[:1]])
def test_a_part_of_a_network_or_a_longer_one_has_no_recipe(change: object) -> None:
    net = mlp(2, (3,), 1)
    changed = change(net)
    assert isinstance(changed, nn.Sequential)
    assert getattr(changed, "recipe", None) is None
    assert net.recipe is not None


def test_a_slice_of_a_network_computes_its_features() -> None:
    net, x = mlp(2, (3,), 1), torch.randn(4, 2)
    torch.testing.assert_close(net[3:](net[:3](x)), net(x))


@pytest.mark.parametrize("whole", [int, np.int64])
def test_a_recipe_holds_plain_numbers_that_build_the_network_again(whole: type) -> None:
    net = mlp(whole(4), [whole(3)], whole(2), np.float32(0.25))
    assert net.recipe == Recipe(
        "mlp",
        {
            "in_features": 4,
            "hidden": [3],
            "out_features": 2,
            "dropout": 0.25,
            "activation": "relu",
            "batch_norm": False,
        },
    )
    flat: list[object] = [*net.recipe.arguments.values(), *net.recipe.arguments["hidden"]]
    assert {type(value) for value in flat} <= {int, float, str, bool, list}
    assert repr(mlp(**net.recipe.arguments)) == repr(net)
    image = convnet(whole(1), whole(2), channels=(whole(3), whole(4)), hidden=whole(5))
    assert repr(convnet(**image.recipe.arguments)) == repr(image)


def test_a_copy_keeps_the_recipe_and_the_weights() -> None:
    net = mlp(2, (3,), 1)
    copied = copy.deepcopy(net)
    assert copied.recipe == net.recipe
    for (name, value), (other, found) in zip(net.state_dict().items(), copied.state_dict().items(), strict=True):
        assert name == other
        assert_equal(found, value)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda seed: mlp(3, (4,), 2, seed=seed),
        lambda seed: convnet(1, 2, channels=(2, 2), hidden=4, batch_norm=True, seed=seed),
        lambda seed: unet(1, 2, depth=1, width=2, norm="group", seed=seed),
        lambda seed: (
            BayesianNetwork(
                nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), priors.Normal(), likelihoods.Categorical(), seed=seed
            ).net
        ),
    ],
)
def test_a_seed_alone_decides_the_initial_weights_and_touches_no_global_generator(build):
    torch.manual_seed(1)
    first = parameters_to_vector(build(7).parameters())
    torch.manual_seed(2)
    build(0)  # whose own draws must not matter
    torch.manual_seed(3)
    before = torch.get_rng_state()
    mlp(3, (4,), 2, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(parameters_to_vector(build(7).parameters()), first)
    assert not torch.equal(parameters_to_vector(build(8).parameters()), first)


def test_a_seed_of_the_wrong_kind_is_refused():
    with pytest.raises(ValueError, match="`seed`"):
        mlp(3, (4,), 2, seed=-1)
    with pytest.raises(TypeError, match="`seed`"):
        convnet(1, 2, seed=0.5)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: convnet(1, 10, channels=8), "channels"),
        (lambda: unet(1, 2, spacing=5.0), "spacing"),
        (lambda: priors.ScaleMixture(scales=1.0), "scales"),
        (lambda: likelihoods.Categorical(class_weights=3), "class_weights"),
    ],
)
def test_one_number_in_the_place_of_several_is_refused_by_name(call: Callable[[], object], name: str) -> None:
    with pytest.raises(TypeError, match=f"`{name}` must be a list"):
        call()
