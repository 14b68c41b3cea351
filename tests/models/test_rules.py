from collections.abc import Callable

import pytest
import torch
from torch import nn

from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.rules import assign, matching_names, trainable_parameters


class Tied(nn.Module):
    """An autoencoder of one weight matrix, used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


def mlp() -> networks.Network:
    return networks.mlp(3, (4, 4), 2, batch_norm=True)


MLP = ["1.weight", "1.bias", "2.weight", "2.bias", "4.weight", "4.bias", "5.weight", "5.bias", "7.weight", "7.bias"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("all", MLP),
        ("*", MLP),
        ("last_layer", ["7.weight", "7.bias"]),
        ("*.bias", [name for name in MLP if name.endswith("bias")]),
        ("4.weight", ["4.weight"]),
        ("[14].*", ["1.weight", "1.bias", "4.weight", "4.bias"]),
        (nn.Linear, ["1.weight", "1.bias", "4.weight", "4.bias", "7.weight", "7.bias"]),
        (nn.BatchNorm1d, ["2.weight", "2.bias", "5.weight", "5.bias"]),
        (lambda _name, parameter: parameter.ndim == 2, ["1.weight", "4.weight", "7.weight"]),
        (lambda name, _parameter: name.startswith("5"), ["5.weight", "5.bias"]),
    ],
)
def test_a_rule_names_parameters_in_the_networks_order(rule: object, expected: list[str]) -> None:
    assert matching_names(mlp(), rule) == expected


@pytest.mark.parametrize(
    "rule",
    ["nothing", "*.WEIGHT", "weight", nn.Conv2d, nn.Sequential, lambda _name, _parameter: False],
    ids=["name", "case", "part of a name", "type", "container", "function"],
)
def test_a_rule_that_matches_nothing_raises_and_lists_the_names(rule: object) -> None:
    with pytest.raises(ValueError, match=r"matches no trainable parameter. The names are: 1.weight, 1.bias, 2.weight"):
        matching_names(mlp(), rule)


@pytest.mark.parametrize("rule", [3, None, int, ["*"], nn.Linear(1, 1).weight])
def test_rules_of_another_kind_are_refused(rule: object) -> None:
    with pytest.raises(TypeError, match="rule must be a name pattern, a module type or a function"):
        matching_names(mlp(), rule)


def frozen(net: nn.Module, *prefixes: str) -> nn.Module:
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))
    return net


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (networks.mlp(3, (), 2), ["1.weight", "1.bias"]),
        (networks.convnet(1, 3, 0.5, batch_norm=True), ["15.weight", "15.bias"]),
        (nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.1), nn.Softplus()), ["0.weight", "0.bias"]),
        (nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), ["1.1.weight", "1.1.bias"]),
        (frozen(networks.mlp(3, (4,), 2), "3"), ["1.weight", "1.bias"]),
        (frozen(networks.mlp(3, (4,), 2), "3.bias"), ["3.weight"]),
        (Tied(), ["encoder.weight", "decoder.bias"]),
        (nn.Linear(3, 2), ["weight", "bias"]),
    ],
    ids=["linear", "convnet", "layers after it", "nested", "frozen head", "half-frozen head", "tied", "one layer"],
)
def test_the_last_layer_is_the_last_that_has_something_to_train(net: nn.Module, expected: list[str]) -> None:
    assert matching_names(net, "last_layer") == expected


def test_frozen_parameters_match_no_rule() -> None:
    net = frozen(mlp(), "1", "7.bias")
    assert matching_names(net, "all") == [name for name in MLP if not name.startswith(("1", "7.bias"))]
    assert list(trainable_parameters(net)) == matching_names(net, lambda _name, _parameter: True)
    with pytest.raises(ValueError, match="matches no trainable parameter"):
        matching_names(net, "1.*")


@pytest.mark.parametrize("rule", ["all", nn.Linear, lambda _name, _parameter: True])
def test_tied_parameters_have_one_name(rule: object) -> None:
    assert matching_names(Tied(), rule) == ["encoder.weight", "encoder.bias", "decoder.bias"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"*": 0}, {"1.weight": 0, "1.bias": 0, "3.weight": 0, "3.bias": 0}),
        ({"*.bias": 1, "*": 0}, {"1.weight": 0, "1.bias": 1, "3.weight": 0, "3.bias": 1}),
        ({"3.*": 2, "*.bias": 1, "*": 0}, {"1.weight": 0, "1.bias": 1, "3.weight": 2, "3.bias": 2}),
        ({"last_layer": 2, nn.Linear: 1}, {"1.weight": 1, "1.bias": 1, "3.weight": 2, "3.bias": 2}),
        ({nn.Linear: 1, "*": 0}, {"1.weight": 1, "1.bias": 1, "3.weight": 1, "3.bias": 1}),  # nothing left for "*"
    ],
)
def test_the_first_rule_that_matches_decides(rules: dict[object, int], expected: dict[str, int]) -> None:
    net = networks.mlp(3, (4,), 2)
    assert assign(net, list(expected), rules) == expected


def test_every_random_parameter_needs_a_rule_and_every_rule_a_random_parameter() -> None:
    net = networks.mlp(3, (4,), 2)
    with pytest.raises(ValueError, match=r"No rule matches 1.bias, 3.bias"):
        assign(net, ["1.weight", "1.bias", "3.bias"], {"*.weight": 0})
    with pytest.raises(ValueError, match=r"No rule matches 1.weight"):
        assign(net, ["1.weight"], {})
    with pytest.raises(ValueError, match=r"'1.\*' matches no random parameter. Those are: 3.weight"):
        assign(net, ["3.weight"], {"1.*": 0, "*": 1})
    with pytest.raises(ValueError, match="matches no trainable parameter"):
        assign(net, ["3.weight"], {"hide": 0, "*": 1})


@pytest.mark.parametrize(
    ("net", "random", "laws", "points"),
    [
        (networks.mlp(3, (4,), 2), "all", ["1.weight", "1.bias", "3.weight", "3.bias"], []),
        (networks.mlp(3, (4,), 2), "last_layer", ["3.weight", "3.bias"], ["1.weight", "1.bias"]),
        (networks.mlp(3, (4,), 2), "*.weight", ["1.weight", "3.weight"], ["1.bias", "3.bias"]),
        (frozen(networks.mlp(3, (4,), 2), "1"), "all", ["3.weight", "3.bias"], []),
        (frozen(networks.mlp(3, (4,), 2), "1.weight"), "last_layer", ["3.weight", "3.bias"], ["1.bias"]),
        (Tied(), "all", ["encoder.weight", "encoder.bias", "decoder.bias"], []),
        (Tied(), "last_layer", ["encoder.weight", "decoder.bias"], ["encoder.bias"]),
    ],
    ids=["all", "last layer", "pattern", "frozen", "frozen and last layer", "tied", "tied and last layer"],
)
def test_a_parameter_is_random_or_a_point_or_frozen(
    net: nn.Module, random: str, laws: list[str], points: list[str]
) -> None:
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Categorical(), random=random)
    assert (list(model.laws), list(model.points)) == (laws, points)
    assert set(model.initial()) == set(laws + points)


def test_each_random_parameter_has_the_prior_of_its_rule() -> None:
    by_rule: dict[str | type | Callable, priors.Prior] = {
        "*.bias": priors.Laplace(scale=0.5),
        nn.Conv2d: priors.StudentT(df=4.0),
        lambda _name, parameter: parameter.shape[0] == 3: priors.Normal(scale=2.0),
        "*": priors.ScaleMixture(),
    }
    net = networks.convnet(1, 3, channels=(2, 2), hidden=4)
    model = BayesianNetwork(net, by_rule, likelihoods.Categorical())
    chosen = {name: type(law.base_dist).__name__ for name, law in model.laws.items()}
    assert chosen == {
        "0.weight": "StudentT",
        "0.bias": "Laplace",
        "3.weight": "StudentT",
        "3.bias": "Laplace",
        "8.weight": "NormalScaleMixture",
        "8.bias": "Laplace",
        "10.weight": "Normal",
        "10.bias": "Laplace",
    }
