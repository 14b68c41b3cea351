"""Fitted posteriors as tensors and JSON, and on another device.

A posterior is a frozen dataclass whose fields are its model, tensors, mappings from names to tensors, its `History`, a
`Standardizer`, the `Columns` of a table, members that are posteriors themselves, or plain values. Each kind of field is
handled here, once for all methods.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, fields, is_dataclass
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bayesuq.arrays import check_device
from bayesuq.data import Standardizer
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.joint.programs import correlated, factorised
from bayesuq.inference.training.history import History
from bayesuq.models.agreement import differ_in_start_only, have_same_laws
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.parts import check_layers, check_told, layers_of, told_of
from bayesuq.models.program import Program
from bayesuq.models.records import NoRecordError, build_model, check_same, laws_record, model_around, model_record
from bayesuq.options import shortened
from bayesuq.posterior import Posterior
from bayesuq.storage import below, write
from bayesuq.tables.encoding import Columns

FORMAT = 1
LAWS = ("prior", "likelihood")  # of a network's model, which its weights do not tell
ARGUMENTS = {"program": "model", "build": "guide"}  # fields that are functions, and what `load` calls them
KNOWN = {factorised.__name__: factorised, correlated.__name__: correlated}  # functions that a file can name
PosteriorT = TypeVar("PosteriorT", bound=Posterior)


def move(posterior: PosteriorT, device: torch.device | str) -> PosteriorT:
    """The same posterior on another device.

    Raises:
        ValueError: A device that this machine does not have.
    """
    device = check_device(device)
    return type(posterior)(**{item.name: _moved(getattr(posterior, item.name), device) for item in fields(posterior)})  # type: ignore[arg-type]


def read_through(posterior: PosteriorT, change: Callable[[Likelihood], Likelihood]) -> PosteriorT:
    """The same posterior, its members included, with another likelihood over the same outputs or functions."""

    def changed(value: Any) -> Any:
        if hasattr(value, "with_likelihood"):
            return value.with_likelihood(change(value.likelihood))
        if isinstance(value, Posterior):
            return read_through(value, change)
        return tuple(changed(item) for item in value) if isinstance(value, tuple) else value

    return type(posterior)(**{item.name: changed(getattr(posterior, item.name)) for item in fields(posterior)})  # type: ignore[arg-type]


def within(posterior: Posterior) -> Iterator[Posterior]:
    """The posteriors that one is made of or stands on, each before those that it is made of itself."""
    values: list[Any] = [getattr(posterior, item.name) for item in fields(posterior)] if is_dataclass(posterior) else []
    for value in values:
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Posterior):
                yield inner
                yield from within(inner)


def save(posterior: Posterior, path: str | PathLike[str], beside: Mapping[str, Any] | None = None) -> None:
    """Write a posterior to one file: see `Posterior.save`.

    Args:
        posterior: To write.
        path: The file.
        beside: Further entries of the header, such as the record of a process that some member has.
    """
    model: BayesianNetwork | None = getattr(posterior, "model", None)
    body, tensors = pack(posterior, model)
    header: dict[str, Any] = {"format": FORMAT, "model": None, "sites": None, "posterior": body, **(beside or {})}
    if model is not None:
        try:
            header["model"] = model_record(model)
        except NoRecordError as reason:
            _tell(f"{reason}; pass the same model to `bayesuq.load(path, model=...)`.")
            header["told"] = {name: told_of(getattr(model, name)) for name in LAWS}
        header["sites"], header["layers"] = _sites(model), layers_of(model.net)
        tensors |= {f"model.{name}": value for name, value in model.net.state_dict().items()}
    header["families"] = next((found for inner in (posterior, *within(posterior)) if (found := _families(inner))), {})
    for name in sorted(_passed(body)):
        _tell(f"A {name} of your own cannot be recorded; pass it to `bayesuq.load(path, {name}=...)`.")
    write(path, header, tensors)


def _families(posterior: Posterior) -> dict[str, str]:
    """The class of the law of each site of the program that a posterior is of, where it has one that tells."""
    told: Callable[[], dict[str, str]] | None = getattr(posterior, "families", None)
    return {} if told is None else told()


def _tell(message: str) -> None:
    warn_of_fit(message, UserWarning)


def _passed(body: Mapping[str, Any]) -> set[str]:
    """Names of `load`'s arguments that a packed posterior needs."""
    names: set[str] = set()
    for entry in body["fields"].values():
        if entry["kind"] == "function" and entry["name"] is None:
            names.add(entry["argument"])
        for inner in [entry["posterior"]] if entry["kind"] == "posterior" else entry.get("members", []):
            names |= _passed(inner)
    return names


def pack(posterior: Posterior, shared: object = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Its class, fields and plain values as JSON data, and its tensors by name; the shared model aside.

    Args:
        posterior: To pack.
        shared: The model that the file holds once. A member's that differs from it in more than the weights that its
            fit started from is packed with the member; None leaves all models aside.

    Raises:
        ValueError: A member's own prior or likelihood that cannot be recorded.
    """
    body: dict[str, Any] = {"class": type(posterior).__name__, "fields": {}}
    tensors: dict[str, Tensor] = {}
    kind: dict[str, Any]
    for item in fields(posterior):  # type: ignore[arg-type]
        value = getattr(posterior, item.name)
        if isinstance(value, BayesianNetwork) or item.name == "model":  # a network's, or a process's
            kind, inner_tensors = _pack_model(value, shared)
            tensors |= {f"{item.name}.{name}": tensor for name, tensor in inner_tensors.items()}
        elif isinstance(value, Tensor):
            kind = {"kind": "tensor"}
            tensors[item.name] = value
        elif isinstance(value, Mapping):
            kind = {"kind": "tensors", "names": list(value)}
            tensors |= {f"{item.name}.{name}": tensor for name, tensor in value.items()}
        elif isinstance(value, Posterior):
            inner_body, inner_tensors = pack(value, shared)
            kind = {"kind": "posterior", "posterior": inner_body}
            tensors |= {f"{item.name}.{name}": tensor for name, tensor in inner_tensors.items()}
        elif isinstance(value, Standardizer):
            kind = {"kind": "standardizer", "clip": value.clip, "columns": value.columns}
            tensors |= {f"{item.name}.{name}": tensor for name, tensor in value.tensors().items()}
        elif isinstance(value, Columns):
            kind = {"kind": "columns", "record": value.to_record()}
        elif isinstance(value, History):
            kind = {"kind": "history", "value": asdict(value)}
        elif isinstance(value, tuple) and value and isinstance(value[0], Posterior):
            packed = [pack(member, shared) for member in value]
            kind = {"kind": "members", "members": [member for member, _ in packed]}
            tensors |= {f"{item.name}.{m}.{k}": v for m, (_, inner) in enumerate(packed) for k, v in inner.items()}
        elif callable(value):
            name = next((name for name, function in KNOWN.items() if function is value), None)
            kind = {"kind": "function", "argument": ARGUMENTS[item.name], "name": name}
        else:
            kind = {"kind": "value", "value": value}
        body["fields"][item.name] = kind
    return body, tensors


def _pack_model(model: object, shared: object) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Nothing of the shared model, or of a process beside it; all of another."""
    if isinstance(shared, BayesianNetwork) and not isinstance(model, BayesianNetwork):
        return {"kind": "process"}, {}
    if not isinstance(model, BayesianNetwork) or not isinstance(shared, BayesianNetwork):
        return {"kind": "model"}, {}
    if differ_in_start_only(model, shared):
        return {"kind": "model"}, {}
    kind: dict[str, Any] = {"kind": "own model", "model": None, "laws": None, "sites": _sites(model)}
    kind["layers"] = layers_of(model.net)
    with suppress(NoRecordError):
        kind["laws"] = laws_record(model)
        kind["model"] = model_record(model)
    if kind["laws"] is None and not have_same_laws(model, shared):
        raise ValueError(
            "A member's prior or likelihood is of your own and not that of the first member, so that no file can hold "
            "both. Save the members one by one."
        )
    return kind, dict(model.net.state_dict())


def unpack(
    body: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    given: Mapping[str, Any],
    classes: Mapping[str, type[Posterior]],
) -> Posterior:
    """The inverse of `pack`.

    Args:
        body: What it gave.
        tensors: What it gave.
        given: What is not in the file, by name: the "model", the "process" of a member, and the "guide", or None.
        classes: By name.

    Raises:
        ValueError: A class that is not among `classes`, fields that are not the class's, or something not given.
    """
    kind = classes.get(body["class"])
    if kind is None:
        raise ValueError(
            f"The file holds a {body['class']}, which this version of bayesuq does not have. If it is of your own, "
            f"pass it: `bayesuq.load(path, posteriors=[{body['class']}])`."
        )
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    needed = {item.name for item in fields(kind) if item.default is item.default_factory is MISSING}  # type: ignore[arg-type]
    if not needed <= set(body["fields"]) <= known:  # files of before lack what was added since, with a default
        raise ValueError(f"The file's fields of {body['class']} are not those of this version of bayesuq.")
    values: dict[str, Any] = {}
    for name, entry in body["fields"].items():
        if entry["kind"] == "model":
            values[name] = given["model"]
        elif entry["kind"] == "process":
            values[name] = given["process"]
        elif entry["kind"] == "own model":
            own = {f"model.{inner}": tensor for inner, tensor in below(f"{name}.", tensors).items()}
            values[name] = restore_model(entry, own, None if entry["model"] else given["model"])
        elif entry["kind"] == "tensor":
            values[name] = tensors[name]
        elif entry["kind"] == "tensors":
            values[name] = {inner: tensors[f"{name}.{inner}"] for inner in entry["names"]}
        elif entry["kind"] == "standardizer":
            own = below(f"{name}.", tensors)
            values[name] = Standardizer(**own, clip=entry["clip"], columns=_tuples(entry["columns"]))
        elif entry["kind"] == "columns":
            values[name] = Columns.from_record(entry["record"])
        elif entry["kind"] == "history":
            value = entry["value"]
            values[name] = History(tuple(value["loss"]), tuple(value["validation_loss"]), int(value["best_epoch"]))
        elif entry["kind"] == "posterior":
            values[name] = unpack(entry["posterior"], below(f"{name}.", tensors), given, classes)
        elif entry["kind"] == "members":
            parts = _by_number(below(f"{name}.", tensors))
            values[name] = tuple(
                unpack(member, parts.get(str(m), {}), given, classes) for m, member in enumerate(entry["members"])
            )
        elif entry["kind"] == "function":
            values[name] = _given(entry, given)
        else:
            values[name] = _tuples(entry["value"])
    return kind(**values)


def _given(entry: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
    """A function that was passed to `load`, or is in the list of known ones."""
    argument = entry["argument"]
    value = given[argument] if entry["name"] is None else KNOWN[entry["name"]]
    if value is None:
        raise ValueError(f"The file's {argument} is of your own. Pass it: `bayesuq.load(path, {argument}=...)`.")
    return value


def restore_model(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], model: BayesianNetwork | Program | None
) -> BayesianNetwork | Program:
    """The model of a file: rebuilt from its record, or the user's own, with the file's weights and buffers.

    A Pyro program has neither; a module is copied, since its parameters will be the file's.

    Raises:
        ValueError: No record and no model; names, shapes, dtypes, a prior or a likelihood that are not the file's.
    """
    if model is None and header["model"] is None:
        raise ValueError("The file's model has parts of your own. Pass it: `bayesuq.load(path, model=model)`.")
    if model is not None and not isinstance(model, BayesianNetwork):
        return copy.deepcopy(model) if isinstance(model, nn.Module) else model
    state = below("model.", tensors)
    if model is None:
        built = build_model(header["model"], state)
        net = built.net
    else:
        built = model
        check_same(built.net, state)
        if "layers" in header:  # files of before tell of none
            check_layers(header["layers"], built.net)
        net = copy.deepcopy(built.net)
        net.load_state_dict(state)
    laws = header.get("laws")  # of a member's own
    restored = (
        BayesianNetwork(net, built.prior, built.likelihood, random=built.random)
        if laws is None
        else model_around(net, laws)
    )
    if _sites(restored) != header["sites"]:  # the flat vectors would be read wrongly
        raise ValueError(
            f"The model is not the file's: which sites are random or learned differs. "
            f"{_difference(_sites(restored), header['sites'])}."
        )
    if model is not None:
        record = header["model"] or {}
        check_told(header.get("told", {name: record[name] for name in LAWS if name in record}), restored)
    return restored


def _sites(model: BayesianNetwork) -> list[list[Any]]:
    """Kind, name and shape of each site, in the order in which the flat vectors hold them."""
    shapes = {name: list(value.shape) for name, value in model.initial().items()}
    random = [["random", name, shapes[name]] for name in model.laws]
    return random + [["learned", name, shapes[name]] for name in model.points]


def _difference(own: list[list[Any]], given: list[list[Any]]) -> str:
    """How the sites of a model differ from a file's, in words, without those that both have."""
    (one, other) = (
        [f"{kind} {name} {tuple(shape)}" for kind, name, shape in some if [kind, name, shape] not in rest]
        for some, rest in ((own, given), (given, own))
    )
    if not one and not other:
        return "They stand in another order"
    return f"It has {shortened(one) or 'no other one'}, the file has {shortened(other) or 'no other one'}"


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _by_number(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each member, whose number their names begin with, in one pass."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        number, _, rest = name.partition(".")
        parts.setdefault(number, {})[rest] = value
    return parts


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, BayesianNetwork | Tensor | Posterior):
        return value.to(device)
    if isinstance(value, nn.Module):  # a program that is one; it is the user's
        return copy.deepcopy(value).to(device)
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_moved(item, device) for item in value)
    return value
