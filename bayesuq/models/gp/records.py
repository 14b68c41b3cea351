"""Gaussian processes as JSON and back, by allow-listed names: see `bayesuq.models.records`.

A kernel of GPyTorch's, or a network of the user's own in a deep kernel, has no record: the process is passed to
`bayesuq.load` again.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor, nn

from bayesuq.models.gp.combined import Coregionalised, Deep, Product, Scale, Sum
from bayesuq.models.gp.kernels import RBF, Linear, Matern, Periodic, RationalQuadratic, SpectralMixture
from bayesuq.models.gp.means import ConstantMean, LinearMean, ZeroMean
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.models.networks import Recipe
from bayesuq.models.records import BUILDERS, DEEPEST, PARTS, SMALL, NoRecordError, build_on_meta
from bayesuq.randomness import isolated

KERNELS = (RBF, Matern, RationalQuadratic, Periodic, Linear, SpectralMixture, Scale, Sum, Product, Deep, Coregionalised)
MEANS = (ZeroMean, ConstantMean, LinearMean)
ALLOWED: dict[str, type] = PARTS | {f"gp.{kind.__name__}": kind for kind in (*KERNELS, *MEANS)}
NAMES = {kind: name for name, kind in ALLOWED.items()}


def process_record(model: GaussianProcess) -> dict[str, Any]:
    """The record of a process, plain JSON data.

    Raises:
        NoRecordError: A part of the user's own.
    """
    return {item.name: _record(getattr(model, item.name)) for item in fields(model)}


def build_process(record: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> GaussianProcess:
    """The process that a record describes.

    Args:
        record: What `process_record` gave.
        tensors: Those of its file, which bound what its networks may ask for; None is for records that are trusted.

    Raises:
        ValueError: A record of another form, with a name that is not on the lists, or with larger parts than the
            file's tensors allow.
    """
    if tensors is not None and _depth(record) > DEEPEST:
        raise ValueError(f"The file describes a process whose parts stand in each other more than {DEEPEST} deep.")
    try:
        return GaussianProcess(**{name: _built(value, tensors) for name, value in record.items()})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"The file describes a process that this version of bayesuq cannot build: {error!r}."
        ) from error


def _record(value: Any) -> Any:
    if isinstance(value, nn.Module) and not isinstance(value, gpytorch.kernels.Kernel | gpytorch.means.Mean):
        return _network_record(value)
    if is_dataclass(value) and not isinstance(value, type):
        if type(value) not in NAMES:
            raise NoRecordError(f"{type(value).__name__} is not one of bayesuq's parts of a process")
        return {"part": NAMES[type(value)]} | {item.name: _record(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_record(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise NoRecordError(f"{type(value).__name__} is not one of bayesuq's parts of a process")


def _network_record(net: nn.Module) -> dict[str, Any]:
    recipe = getattr(net, "recipe", None)
    if not isinstance(recipe, Recipe) or recipe.builder not in BUILDERS:
        raise NoRecordError(f"{type(net).__name__} was not built by bayesuq")
    with torch.device("meta"):
        unchanged = BUILDERS[recipe.builder](**recipe.arguments)
    if repr(unchanged) != repr(net):
        raise NoRecordError("the network was changed after it was built")
    return {"net": recipe.builder, "arguments": dict(recipe.arguments)}


def _built(record: Any, tensors: Mapping[str, Tensor] | None) -> Any:
    if isinstance(record, list):
        return tuple(_built(item, tensors) for item in record)
    if not isinstance(record, Mapping):
        if tensors is not None and isinstance(record, int) and record > _largest(tensors):
            raise ValueError(
                f"The file describes a process with a size of {record}, for which its tensors are too small."
            )
        return record
    if "net" in record and "part" not in record:
        if tensors is not None:
            _check_network(record, tensors)
        with isolated(0):
            return BUILDERS[record["net"]](**record["arguments"])
    return ALLOWED[record["part"]](**{name: _built(value, tensors) for name, value in record.items() if name != "part"})


def _depth(record: Any) -> int:
    """How many containers stand in each other."""
    depth, layer = 0, [record]
    while layer:
        containers = [list(item.values()) if isinstance(item, Mapping) else item for item in layer]
        layer = [inner for item in containers if isinstance(item, list) for inner in item]
        depth += bool(layer)
    return depth


def _largest(tensors: Mapping[str, Tensor]) -> int:
    return max([SMALL, *(value.numel() for value in tensors.values())])


def _check_network(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError where a deep kernel's network has more weights than the file has numbers."""
    net = build_on_meta(BUILDERS[record["net"]], record["arguments"], tensors)
    if sum(value.numel() for value in net.parameters()) > sum(value.numel() for value in tensors.values()):
        raise ValueError("The file describes a network that is larger than its tensors.")
