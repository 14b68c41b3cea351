"""Models as JSON and back: what bayesuq's own parts are made of, by allow-listed names.

A record names a part and the arguments that build it. Nothing is imported or called by a name from a file unless it
stands in `PARTS`, `BUILDERS` or `LAYERS` below; a model with parts of the user's own has no record, and is passed
to `bayesuq.load`.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bayesuq.models import likelihoods, networks, priors, scaled_logits
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.layers import has_hooks
from bayesuq.models.running import running_of, with_running
from bayesuq.randomness import isolated

PRIORS = "Normal Laplace StudentT ScaleMixture Horseshoe FanIn HalfNormal HalfCauchy LogNormal Gamma"
LIKELIHOODS = (
    "Categorical Bernoulli Normal HeteroscedasticNormal HeteroscedasticCategorical Laplace SoftCategorical StudentT "
    "Poisson"
)
PARTS: dict[str, type] = {
    **{f"priors.{name}": getattr(priors, name) for name in PRIORS.split()},
    **{f"likelihoods.{name}": getattr(likelihoods, name) for name in LIKELIHOODS.split()},
    "scaled_logits.ScaledLogits": scaled_logits.ScaledLogits,
}
BEFORE: dict[str, dict[str, Any]] = {  # what parts did before they had these arguments, which old records lack
    "likelihoods.HeteroscedasticNormal": {"maximum_scale": None},
}
NAMES: dict[type, str] = {kind: name for name, kind in PARTS.items()}
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": networks.mlp,
    "convnet": networks.convnet,
    "unet": networks.unet,
}
OF_TORCH = "Linear Conv1d Conv2d Conv3d ConvTranspose2d BatchNorm1d BatchNorm2d GroupNorm"
LAYERS: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in OF_TORCH.split()}
SMALL = 2**12  # sizes that any network may have, whatever its weights
DEEPEST = 32  # levels of a U-Net


class NoRecordError(TypeError):
    """A model has a part that is not bayesuq's own."""


def model_record(model: BayesianNetwork) -> dict[str, Any]:
    """The record of a model, plain JSON data.

    Raises:
        NoRecordError: A part of the user's own: a network without recipe, or one that was changed after it was built; a
            prior or likelihood class, or a rule, that is not bayesuq's.
    """
    recipe = getattr(model.net, "recipe", None)
    if not isinstance(recipe, networks.Recipe) or recipe.builder not in BUILDERS:
        raise NoRecordError(f"the network {type(model.net).__name__} was not built by bayesuq")
    with torch.device("meta"):  # without memory, and without drawing weights
        unchanged = BUILDERS[recipe.builder](**recipe.arguments)
    if _layout(unchanged) != _layout(model.net):
        raise NoRecordError("the network was changed after it was built")
    if any(map(has_hooks, model.net.modules())):
        raise NoRecordError("the network has hooks, which change what it computes")
    frozen = [name for name, parameter in model.net.named_parameters() if not parameter.requires_grad]
    return {
        "net": {"builder": recipe.builder, "arguments": dict(recipe.arguments), "frozen": frozen} | _running(model.net),
        **laws_record(model),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _running(net: nn.Module) -> dict[str, str]:
    """The precision that a network runs in; whether it is compiled is a matter of the machine that it was on."""
    running = running_of(net)
    if running is None or running.autocast is None:
        return {}
    return {"autocast": str(running.autocast).removeprefix("torch.")}


def laws_record(model: BayesianNetwork) -> dict[str, Any]:
    """The record of all of a model but its network.

    Raises:
        NoRecordError: A prior or likelihood class, or a rule, that is not bayesuq's.
    """
    prior = model.prior
    rules = [[_rule(rule), _part(value)] for rule, value in prior.items()] if isinstance(prior, Mapping) else None
    return {
        "prior": _part(prior) if rules is None else rules,
        "likelihood": _part(model.likelihood),
        "random": _rule(model.random),
    }


def build_model(record: Mapping[str, Any], state: Mapping[str, Tensor] | None = None) -> BayesianNetwork:
    """The model that a record describes, at weights and buffers of a file, or at the initial ones of a fixed seed.

    No memory is asked for on a record's word: a network has the tensors of the file, or is refused.

    Args:
        record: What `model_record` gave.
        state: The weights and buffers by name, which the network then has; None is for records that are trusted.

    Raises:
        ValueError: A record of another form, with a name that is not on the lists, or of another network than that of
            the state.
    """
    try:
        builder, arguments = BUILDERS[record["net"]["builder"]], record["net"]["arguments"]
        dtype = {"float32": torch.float32, "float64": torch.float64}[record["dtype"]]
        if state is None:
            with isolated(0):
                net = builder(**arguments).to(dtype)
        else:
            net = build_on_meta(builder, arguments, state).to(dtype)
            check_same(net, state)
            net.load_state_dict(dict(state), assign=True)
        precision = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}
        with_running(net, autocast=precision[record["net"].get("autocast")])
        frozen = set(record["net"]["frozen"])
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return model_around(net, record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"The file describes a model that this version of bayesuq cannot build: {error!r}.") from error


def build_on_meta(
    builder: Callable[..., nn.Module], arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """A network without memory, whose arguments are not larger than the tensors that it shall have.

    Raises:
        ValueError: They are, or they describe no network.
    """
    largest = max([SMALL, *(value.numel() for value in tensors.values())])
    for name, value in arguments.items():
        sizes = value if isinstance(value, list | tuple) else [value]
        bound = DEEPEST if name == "depth" else largest
        if len(sizes) > len(tensors) or any(isinstance(size, int) and size > bound for size in sizes):
            raise ValueError(f"The file describes a network whose `{name}` is larger than its weights allow.")
    try:
        with torch.device("meta"):
            return builder(**arguments)
    except (RuntimeError, OverflowError) as error:
        raise ValueError(f"The file describes no network that can be built: {error}.") from error


def check_same(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Raise a ValueError unless a network has the tensors of a state, in names, shapes and dtypes."""
    expected = {name: (tuple(value.shape), value.dtype) for name, value in net.state_dict().items()}
    found = {name: (tuple(value.shape), value.dtype) for name, value in state.items()}
    if expected != found:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        name = differing[0]
        raise ValueError(
            f"The model is not the file's: {len(differing)} tensors differ, the first is {name!r}: expected "
            f"{expected.get(name, 'none')}, the file has {found.get(name, 'none')}."
        )


def model_around(net: nn.Module, record: Mapping[str, Any]) -> BayesianNetwork:
    """The model that `laws_record` describes, of a network.

    Raises:
        KeyError, TypeError, AttributeError: A record of another form, or with a name that is not on the lists.
        ValueError: Scales for more columns than the network can have.
    """
    _check_columns(net, record["likelihood"])
    prior = record["prior"]
    built = {_built_rule(rule): _built(value) for rule, value in prior} if isinstance(prior, list) else _built(prior)
    return BayesianNetwork(net, built, _built(record["likelihood"]), random=_built_rule(record["random"]))


def _check_columns(net: nn.Module, likelihood: Mapping[str, Any]) -> None:
    """Raise a ValueError where a record asks for scales of more columns than the network has weights."""
    number = likelihood.get("per_column")
    if isinstance(number, int) and number > max([SMALL, *(value.numel() for value in net.parameters())]):
        raise ValueError(f"The file describes a likelihood of {number} columns, more than its network can have.")


def _layout(net: nn.Module) -> tuple[str, list[str]]:
    """Its layers with their options, and the names of its parameters (one that is shared has one name) and buffers."""
    return repr(net), [name for name, _ in (*net.named_parameters(), *net.named_buffers())]


def _part(value: Any) -> Any:
    """A prior or likelihood as {"part": name, field: value, ...}; plain values as they are."""
    if is_dataclass(value) and not isinstance(value, type):
        name = NAMES.get(type(value))
        if name is None:
            raise NoRecordError(f"{type(value).__name__} is not one of bayesuq's priors and likelihoods")
        return {"part": name} | {item.name: _part(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_part(item) for item in value]
    if isinstance(value, Tensor | np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise NoRecordError(f"{value!r} is not one of bayesuq's priors and likelihoods")


def _built(record: Any) -> Any:
    if isinstance(record, Mapping):
        arguments = BEFORE.get(record["part"], {}) | {k: _built(v) for k, v in record.items() if k != "part"}
        return PARTS[record["part"]](**arguments)
    return tuple(_built(item) for item in record) if isinstance(record, list) else record


def _rule(rule: Any) -> dict[str, str]:
    if isinstance(rule, str):
        return {"name": rule}
    if isinstance(rule, type) and rule in LAYERS.values():
        return {"layer": rule.__name__}
    raise NoRecordError(f"the rule {rule!r} is neither a name pattern nor one of torch's layers")


def _built_rule(record: Mapping[str, str]) -> Any:
    return record["name"] if "name" in record else LAYERS[record["layer"]]
