import copy
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.records import BUILDERS, LAYERS, PARTS, NoRecordError, build_model, model_record
from bayesuq.models.scaled_logits import ScaledLogits

PRIORS = [
    priors.Normal(0.1, 0.7),
    priors.Laplace(-0.1, 0.7),
    priors.StudentT(4.0, 0.1, 0.7),
    priors.ScaleMixture((1.0, 0.3, 0.01), (0.5, 0.25, 0.25)),
    priors.FanIn(priors.StudentT(5.0)),
    priors.Horseshoe(0.3),
    priors.FanIn(priors.ScaleMixture()),
    {"*.bias": priors.Normal(scale=3.0), nn.Linear: priors.FanIn(priors.Laplace()), "*": priors.Normal()},
]
LABELS = [
    likelihoods.Categorical(),
    likelihoods.Categorical((0.1, 1.0, 2.5), ignore_index=255),
    likelihoods.Categorical(torch.tensor([0.5, 1.0, 2.0]), ignore_index=-1),
    ScaledLogits(likelihoods.Categorical(ignore_index=3), (0.5,)),
    ScaledLogits(
        likelihoods.Categorical(), (0.5, 1.0, 2.0), (0.0,), ((0.0, 0.1, 0.2), (0.3, 0.0, -0.4), (0.5, 0.6, 0.0))
    ),
    ScaledLogits(ScaledLogits(likelihoods.Categorical(), (0.5, 1.0, 2.0), (0.1, 0.2, 0.3)), (2.0,)),
]
NOISY = [
    likelihoods.HeteroscedasticCategorical(),
    likelihoods.HeteroscedasticCategorical(8, (0.1, 2.5), ignore_index=255, minimum_scale=0.1),
    ScaledLogits(ScaledLogits(likelihoods.HeteroscedasticCategorical(16), (0.5,)), (2.0, 1.0), (0.3,)),
]
BINARY = [likelihoods.Bernoulli(), likelihoods.Bernoulli((0.3, 1.7))]
REAL = [
    likelihoods.Normal(scale=0.3),
    likelihoods.Normal(initial_scale=0.2),
    likelihoods.Normal(scale=priors.HalfNormal(0.4), initial_scale=0.3),
    likelihoods.Normal(scale=priors.HalfCauchy(0.4)),
    likelihoods.Normal(scale=priors.LogNormal(-1.0, 0.5)),
    likelihoods.Normal(scale=priors.Gamma(2.0, 3.0)),
    likelihoods.HeteroscedasticNormal(),
    likelihoods.HeteroscedasticNormal(minimum_scale=0.05),
    likelihoods.Laplace(scale=0.3),
    likelihoods.SoftCategorical(),
    likelihoods.StudentT(),
    likelihoods.StudentT(df=5.0, scale=0.3),
    likelihoods.StudentT(df="learned", scale=priors.HalfNormal(0.4), initial_df=7.0, initial_scale=0.2),
    likelihoods.StudentT(df=priors.Gamma(2.0, 0.1), scale="learned"),
    likelihoods.Poisson(),
]


def linear(outputs: int = 2) -> networks.Network:
    return networks.mlp(3, (4,), outputs, dropout=0.25, activation="silu", batch_norm=True)


def model_of(
    net: nn.Module | None = None,
    prior: Any = None,
    likelihood: likelihoods.Likelihood | None = None,
    random: Any = "all",
) -> BayesianNetwork:
    return BayesianNetwork(
        linear() if net is None else net,
        priors.Normal() if prior is None else prior,
        likelihoods.Categorical() if likelihood is None else likelihood,
        random=random,
    )


def round_trip(model: BayesianNetwork) -> BayesianNetwork:
    return build_model(json.loads(json.dumps(model_record(model), allow_nan=False)))


def assert_same_model(found: BayesianNetwork, expected: BayesianNetwork, x: Tensor, y: Tensor) -> None:
    """The same sites, laws, program and record; the same density at the same theta and buffers."""
    assert model_record(found) == model_record(expected)
    assert (list(found.laws), list(found.points)) == (list(expected.laws), list(expected.points))
    assert repr(found.net) == repr(expected.net)
    assert found.dtype == expected.dtype
    found.net.load_state_dict(expected.net.state_dict())
    theta = {name: 0.5 * torch.randn_like(value) for name, value in expected.initial().items()}
    theta |= {name: value.abs() for name, value in theta.items() if name.startswith("likelihood")}
    for name, law in expected.laws.items():
        torch.testing.assert_close(found.laws[name].log_prob(theta[name]), law.log_prob(theta[name]), rtol=0, atol=0)
    torch.testing.assert_close(found.log_joint(theta, x, y, 50), expected.log_joint(theta, x, y, 50), rtol=0, atol=0)


def inputs(model: BayesianNetwork, *shape: int) -> Tensor:
    return torch.randn(5, *shape, dtype=model.dtype)


@pytest.mark.parametrize("prior", PRIORS, ids=str)
@pytest.mark.parametrize("random", ["all", "last_layer", "*.weight", nn.Linear])
def test_every_prior_and_rule_survives_the_record(prior: Any, random: Any) -> None:
    if isinstance(prior, dict) and random in ("last_layer", "*.weight", nn.Linear):
        prior = {"*": prior["*.bias"]}  # the other rules would match no random parameter
    model = model_of(prior=prior, random=random)
    assert_same_model(round_trip(model), model, inputs(model, 3), torch.tensor([0, 1, 1, 0, 1]))


@pytest.mark.parametrize("likelihood", LABELS + NOISY + BINARY + REAL, ids=str)
def test_every_likelihood_survives_the_record(likelihood: likelihoods.Likelihood) -> None:
    outputs = 3 if likelihood in LABELS else 4 if likelihood in NOISY else 1 if likelihood in BINARY else 2
    y = torch.tensor([0, 1, 1, 0, 1]) if likelihood in LABELS + NOISY + BINARY else torch.randn(5, outputs)
    if isinstance(likelihood, likelihoods.HeteroscedasticNormal):
        y = y[:, :1]
    model = model_of(linear(outputs), likelihood=likelihood)
    assert_same_model(round_trip(model), model, inputs(model, 3), y)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (networks.mlp(3, (), 2), (3,)),
        (networks.mlp(3, (5, 4), 2, activation="gelu"), (3,)),
        (networks.mlp(3, (5, 4), 2).double(), (3,)),
        (networks.mlp(np.int64(12), [np.int64(4)], np.int64(2)), (3, 2, 2)),
        (networks.convnet(1, 2), (1, 8, 8)),
        (networks.convnet(2, 2, 0.3, channels=(3, 5), hidden=6, batch_norm=True), (2, 9, 8)),
    ],
    ids=["linear", "mlp", "float64", "numpy's numbers", "convnet", "convnet with options"],
)
def test_both_builders_survive_the_record(net: nn.Module, shape: tuple[int, ...]) -> None:
    model = model_of(net)
    assert_same_model(round_trip(model), model, inputs(model, *shape), torch.tensor([0, 1, 1, 0, 1]))


def test_frozen_layers_survive_the_record() -> None:
    net = linear()
    net[1].requires_grad_(False)
    net[5].bias.requires_grad_(False)
    model = model_of(net)
    assert list(model.laws) == ["2.weight", "2.bias", "5.weight"]
    assert_same_model(round_trip(model), model, inputs(model, 3), torch.tensor([0, 1, 1, 0, 1]))


def test_numbers_of_other_types_are_recorded_as_plain_ones() -> None:
    prior = priors.Normal(np.float32(0.5), np.int64(2))
    record = model_record(model_of(prior=prior, likelihood=likelihoods.Normal(scale=torch.tensor(0.5))))
    assert record["prior"] == {"part": "priors.Normal", "loc": 0.5, "scale": 2}
    assert record["likelihood"] == {
        "part": "likelihoods.Normal",
        "scale": 0.5,
        "initial_scale": 1.0,
        "per_column": False,
    }
    json.dumps(record)


def test_every_part_that_a_record_may_name_is_recorded_here() -> None:
    parts: set[str] = set()

    def collect(record: Any) -> None:
        if isinstance(record, dict):
            parts.update([record["part"]] if "part" in record else [])
            record = list(record.values())
        if isinstance(record, list):
            for item in record:
                collect(item)

    for prior in PRIORS:
        collect(model_record(model_of(prior=prior)))
    for likelihood in LABELS + NOISY + BINARY + REAL:
        collect(model_record(model_of(likelihood=likelihood)))
    assert parts == set(PARTS)
    assert set(BUILDERS) == {"mlp", "convnet", "unet"}


def test_recording_and_building_leave_the_global_state_and_the_model() -> None:
    model = model_of()
    before, state = torch.get_rng_state(), copy.deepcopy(model.net.state_dict())
    record = model_record(model)
    built = build_model(record)
    assert torch.equal(torch.get_rng_state(), before)
    torch.testing.assert_close(dict(model.net.state_dict()), dict(state), rtol=0.0, atol=0.0)
    assert all(parameter.device.type == "cpu" for parameter in built.net.parameters())
    again = build_model(record)
    torch.testing.assert_close(dict(again.net.state_dict()), dict(built.net.state_dict()), rtol=0.0, atol=0.0)


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@dataclass(frozen=True)
class Normal(priors.Normal):
    """A user's prior, in a file of the user's that is called priors too."""


Normal.__module__ = "mine.priors"


class Plain(priors.Prior):
    def entry(self, like: Tensor) -> Any:
        return priors.Normal().entry(like)


@dataclass(frozen=True)
class MyCategorical(likelihoods.Categorical):
    pass


def replaced() -> nn.Module:
    net = linear()
    net[3] = nn.Tanh()
    return net


def widened() -> nn.Module:
    net = linear()
    net[5] = nn.Linear(4, 3)
    return net


def tied() -> nn.Module:
    net = networks.mlp(3, (3, 3), 2)
    net[3].weight = net[1].weight
    return net


def reparametrised() -> nn.Module:
    net = linear()
    nn.utils.parametrizations.weight_norm(net[5])
    return net


def foreign_recipe() -> nn.Module:
    net = Mine()
    net.recipe = networks.Recipe("mlp", {"in_features": 3, "hidden": [], "out_features": 2})
    return net


def unknown_builder() -> nn.Module:
    return networks.Network(nn.Linear(3, 2), recipe=networks.Recipe("os.system", {"command": "true"}))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"net": Mine()}, "the network Mine was not built by bayesuq"),
        ({"net": nn.Linear(3, 2)}, "the network Linear was not built by bayesuq"),
        ({"net": linear()[:6]}, "the network Network was not built by bayesuq"),
        ({"net": unknown_builder()}, "the network Network was not built by bayesuq"),
        ({"net": replaced()}, "the network was changed after it was built"),
        ({"net": widened()}, "the network was changed after it was built"),
        ({"net": linear().append(nn.Identity())}, "the network was changed after it was built"),
        ({"net": tied()}, "the network was changed after it was built"),
        ({"net": reparametrised()}, "the network was changed after it was built"),
        ({"net": foreign_recipe()}, "the network was changed after it was built"),
        ({"prior": Normal()}, "Normal is not one of bayesuq's priors and likelihoods"),
        ({"prior": Plain()}, "is not one of bayesuq's priors and likelihoods"),
        ({"prior": {"*.bias": priors.Normal(), "*": Plain()}}, "is not one of bayesuq's priors and likelihoods"),
        ({"prior": priors.FanIn(Normal())}, "Normal is not one of bayesuq's priors and likelihoods"),
        ({"likelihood": MyCategorical()}, "MyCategorical is not one of bayesuq's priors and likelihoods"),
        ({"random": lambda name, _parameter: "weight" in name}, "the rule .* is neither a name pattern nor one of"),
        ({"prior": {lambda _name, _parameter: True: priors.Normal()}}, "is neither a name pattern nor one of"),
        ({"random": nn.Module}, "the rule .* is neither a name pattern nor one of torch's layers"),
    ],
)
def test_parts_of_the_users_own_have_no_record_and_the_reason_is_told(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoRecordError, match=reason):
        model_record(model_of(**arguments))


def test_a_copy_of_a_network_is_recorded_as_its_original() -> None:
    net = linear()
    assert model_record(model_of(copy.deepcopy(net))) == model_record(model_of(net))


def changed(path: str, value: Any) -> Any:
    """A good record with the value at a path, such as net.builder, replaced; without it, where that is `Ellipsis`."""
    record = model_record(model_of(random="last_layer", likelihood=likelihoods.Normal(scale=priors.HalfNormal())))
    *way, last = path.split(".")
    inner = record
    for key in way:
        inner = inner[key]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return json.loads(json.dumps(record))


NAMES = ["os.system", "bayesuq.models.networks.mlp", "networks.mlp", "__import__", "eval", "", None, 3, [], {}, ["mlp"]]


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("net.builder", [*NAMES, "Network"]),
        ("net.arguments", [None, [], "x", {"in_features": 3}, {"command": "true"}, ...]),
        ("net.arguments.in_features", [0, -1, "3", None, 1.5, [3]]),
        ("net.arguments.activation", ["eval", "os.system", 3, None]),
        ("net.frozen", [None, 3, ...]),
        ("net", [None, [], "mlp", 3, {}, ...]),
        ("prior.part", [*NAMES, "likelihoods.Normal", "priors.Prior", "priors.NormalScaleMixture", "priors.os", ...]),
        ("prior.scale", [0, -1, "1", None, [1.0], {"part": "priors.Normal"}, math.nan]),
        ("prior.unknown", [1.0]),
        ("prior", [None, "priors.Normal", 3, [], {}, [["*"]], [[{"name": "*"}, 3]], [[{"name": 3}, {}]], ...]),
        ("likelihood.part", [*NAMES, "priors.Normal", "likelihoods.Likelihood", ...]),
        ("likelihood.scale.part", ["os.system", "priors.Normal", "likelihoods.Normal"]),
        ("likelihood", [None, "likelihoods.Normal", 3, [], {}, ...]),
        ("random.name", ["nothing", 3, None, [], ...]),
        ("random", [None, "all", 3, [], {}, {"layer": "os.system"}, {"layer": "Module"}, {"layer": None}, ...]),
        ("dtype", ["float16", "os.system", 64, None, [], ...]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_record_with_a_foreign_name_or_value_raises_and_runs_nothing(
    path: str, values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []
    monkeypatch.setattr("os.system", lambda *command: ran.append(command))
    monkeypatch.setattr("builtins.eval", lambda *command: ran.append(command))
    monkeypatch.setattr("builtins.__import__", _refusing(ran, __import__))
    for value in values:
        record = changed(path, value)
        with pytest.raises(ValueError, match=r"."):
            build_model(record)
    assert ran == []


def _refusing(ran: list[object], original: Any) -> Any:
    """`__import__` that notes imports of names that only a record holds."""

    def importing(name: str, *arguments: Any, **options: Any) -> Any:
        if name in ("os.system", "command"):
            ran.append(name)
        return original(name, *arguments, **options)

    return importing


@pytest.mark.parametrize("record", [None, [], "mlp", 3, {}])
def test_what_is_no_record_raises(record: Any) -> None:
    with pytest.raises(ValueError, match="this version of bayesuq cannot build"):
        build_model(record)


def test_layers_that_a_rule_may_name_are_torchs_own() -> None:
    for name, kind in LAYERS.items():
        assert getattr(nn, name) is kind
