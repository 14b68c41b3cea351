"""A last layer as a network of its own, and fits of it on what it gets, computed once.

Where everything before the last layer is a constant, a fit needs no more of it than its outputs at the rows.
`on_features` makes a `fit` compute them once, in one pass, and fit the layer alone: the same numbers to rounding, at
the layer's cost.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from bayesuq.data import Batch, Dataset
from bayesuq.inference.posteriors.prediction import activations_per_row, rows_at_a_time
from bayesuq.inference.posteriors.row_store import RowStore
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.column_scales import warn_of_scales
from bayesuq.inputs import apply, as_rows, checked
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, copied, share_tensors
from bayesuq.models.layers import is_frozen
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.models.precision import DEVICES
from bayesuq.models.running import running_of
from bayesuq.models.training_mode import training_mode, with_own_buffers
from bayesuq.options import shortened
from bayesuq.posterior import Posterior
from bayesuq.randomness import isolated

P = ParamSpec("P")
R = TypeVar("R")
FEWEST_CONSTANTS = 2**14  # numbers before the last layer, below which a pass of all costs little more than one of it
MEMORY = 2**30  # bytes of features, beyond which they go to a temporary file
FEW_ROWS = 3  # that tell what a network does
GUIDES = ("mean_field", "low_rank", "full_rank")
OTHER_OPTIONS = ("guide", "adversarial", "observed", "data_parallel")  # where given, a fit is of the whole network


class Head(nn.Module):
    """A layer at a path that it has in a larger network."""

    def __init__(self, path: str, layer: nn.Module) -> None:
        super().__init__()
        self._path, place = path, self
        *names, last = path.split(".")
        for name in names:
            place.add_module(name, nn.Module())
            place = place.get_submodule(name)  # type: ignore[assignment]
        place.add_module(last, layer)

    def forward(self, features: Tensor) -> Any:
        """The layer's outputs."""
        return self.get_submodule(self._path)(features)


def head_of(model: BayesianNetwork, path: str) -> BayesianNetwork:
    """The layer at a path alone, under the same prior and likelihood; its weights keep their names."""
    net = Head(path, copied(model.net.get_submodule(path))) if path else model.net
    return BayesianNetwork(net, model.prior, model.likelihood)


def grown(value: Any, head: BayesianNetwork, whole: BayesianNetwork, buffers: Mapping[str, Tensor]) -> Any:
    """A posterior of a head as one of the whole network; of a tuple of them likewise, and other values as they are.

    Raises:
        TypeError: A posterior that is not over weights.
        ValueError: One of another model.
    """
    if isinstance(value, BayesianNetwork):
        if list(value.laws) != list(head.laws):
            raise ValueError(f"The posterior must be one of `head.model`; its sites are {shortened(list(value.laws))}.")
        return whole if value.likelihood == whole.likelihood else whole.with_likelihood(value.likelihood)
    if isinstance(value, tuple):
        return tuple(grown(one, head, whole, buffers) for one in value)
    if not isinstance(value, Posterior):
        return value
    if "program" in vars(value) or not (hasattr(value, "model") and isinstance(value.model, BayesianNetwork)):
        raise TypeError(f"Only posteriors over the weights of the last layer grow; got {type(value).__name__}.")
    parts = {item.name: grown(getattr(value, item.name), head, whole, buffers) for item in fields(value)}  # type: ignore[arg-type]
    if "buffers" in parts:
        parts["buffers"] = buffers
    return type(value)(**parts)


def on_features(*, drops: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a method's `fit` run everything before a last linear layer once, where that is a constant.

    That is so of a network that `bayesuq.adopt` made random in its last layer, and of any whose other parameters are
    frozen. It is done for Datasets, whose rows are the same in every epoch; a loader may change them.

    Args:
        drops: Whether dropout acts while the method fits: a network that draws is then run each time.
    """

    def decorated(fit: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(fit)
        def on_head(*args: P.args, **kwargs: P.kwargs) -> R:
            given: tuple[Any, ...] = args
            options: dict[str, Any] = kwargs
            if len(given) == 2 and isinstance(given[0], BayesianNetwork) and isinstance(given[1], Dataset):
                body = Body.of(*given, options, drops=drops)
                if body is not None:
                    return cast(R, body.fitted(fit, given[1], options))
            return fit(*args, **kwargs)

        return on_head

    return decorated


@dataclass(frozen=True, eq=False)
class Body:
    """All of a network but its last layer.

    Attributes:
        model: The whole.
        path: Of the last layer.
        head: That layer alone.
    """

    model: BayesianNetwork
    path: str
    head: BayesianNetwork

    @classmethod
    def of(cls, model: BayesianNetwork, data: Dataset, options: Mapping[str, Any], *, drops: bool) -> "Body | None":
        """The body where a fit can do with its outputs; None where it cannot."""
        path = _only_layer(model)
        rows = [rows for rows in (data, options.get("validation")) if rows is not None]
        others = any(options.get(name) for name in OTHER_OPTIONS if not _is_own_guide(name, options))
        if path is None or others or callable(options.get("initialise")) or model.likelihood.takes_scale:
            return None
        if not all(isinstance(each, Dataset) for each in rows) or _is_lowered(model):
            return None
        if any(not _is_convertible(options.get(name), model) for name in ("start", "mode")) or _is_under_way(options):
            return None
        if options.get("device") is not None:
            model = model.to(options["device"])
        found = cls(model, path, head_of(model, path))
        try:
            return found if found._is_constant(cast_inputs(model, as_rows(data.x)[:FEW_ROWS]), drops=drops) else None
        except (RuntimeError, ValueError, TypeError, IndexError):  # which the fit of the whole tells of
            return None

    def fitted(self, fit: Callable[..., Any], data: Dataset, options: Mapping[str, Any]) -> Any:
        """What a fit gives, on features, as of the whole network."""
        warn_of_scales(self.model.likelihood, Batch(cast_inputs(self.model, checked(data.x)), data.y, data.weight))
        changed = dict(options)
        if options.get("validation") is not None:
            changed["validation"] = self.features(options["validation"])
        for name in ("start", "mode"):
            if isinstance(options.get(name), Posterior):
                changed[name] = replace(options[name], model=self.head, buffers={})
        file = Checkpoint.of(options.get("checkpoint"))
        if file is not None:
            changed["checkpoint"] = file.of_part("features")
        found = fit(self.head, self.features(data), **changed)
        return grown(found, self.head, self.model, _buffers(self.model))

    def features(self, data: Dataset) -> Dataset:
        """Rows by what the last layer gets."""
        inputs, tree, store = cast_inputs(self.model, checked(data.x)), share_tensors(self.model.net), RowStore(MEMORY)
        width = activations_per_row(self.model, inputs, tree)
        with torch.no_grad(), isolated(0):
            for rows in inputs.split(rows_at_a_time(self.model.device, width)):
                store.add(self._run(tree, rows)[0].to(data.y.device))
        return Dataset(store.whole(), data.y, data.weight)

    def _run(self, tree: nn.Module, rows: Any) -> tuple[Tensor, Any]:
        """What the last layer gets, and the outputs of the whole.

        Raises:
            ValueError: It is not run once a pass, on features (N, D).
        """
        seen: list[Tensor] = []
        layer = tree.get_submodule(self.path)
        handle = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].detach().clone()))
        try:
            f = apply(tree, rows)
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != len(rows):
            raise ValueError("the last layer must get features (N, D) once a pass")
        return seen[0], f

    def _is_constant(self, rows: Any, *, drops: bool) -> bool:
        """Whether the network ends in its last layer, and its body does the same in a fit as when it evaluates."""
        mode = training_mode(self.model, rows)
        if (drops and mode.calls) or any(not is_frozen(self.model.net, path) for path in mode.moving):
            return False
        training = with_own_buffers(self.model.net).train()
        for path in (*mode.moving, *mode.drawing):
            training.get_submodule(path).training = False
        with torch.no_grad(), isolated(0):
            features, f = self._run(share_tensors(self.model.net), rows)
            again, _ = self._run(training, rows)
            ends = torch.equal(self.head.forward(self.head.initial(), features), f)
        return ends and torch.allclose(again, features, rtol=1e-4, atol=1e-5)


def _only_layer(model: BayesianNetwork) -> str | None:
    """The path of the linear layer that all random weights are in, all else being frozen; None without one."""
    moving = [name for name in (*model.laws, *model.points) if not name.startswith(LIKELIHOOD)]
    paths = {name.rpartition(".")[0] for name in moving}
    if len(paths) != 1 or "" in paths or any(not name.startswith(LIKELIHOOD) for name in model.points):
        return None
    (path,) = paths
    constants = sum(value.numel() for value in model.net.parameters() if not value.requires_grad)
    layer = model.net.get_submodule(path)
    is_whole = all(parameter.requires_grad for parameter in layer.parameters())
    return path if type(layer) is nn.Linear and is_whole and constants >= FEWEST_CONSTANTS else None


def _is_lowered(model: BayesianNetwork) -> bool:
    """Whether products of matrices are taken in another precision than the weights', or the pass is compiled."""
    return running_of(model.net) is not None or any(torch.is_autocast_enabled(device) for device in DEVICES)


def _is_own_guide(name: str, options: Mapping[str, Any]) -> bool:
    """Whether an option is one of bayesuq's Gaussian guides, which are functions of any model."""
    if name != "guide" or name not in options:
        return False
    guide = getattr(options[name], "func", options[name])  # of a `functools.partial`
    where = getattr(guide, "__module__", "").startswith("bayesuq.inference.variational")
    return where and getattr(guide, "__qualname__", "").partition(".")[0] in GUIDES


def _is_convertible(start: Any, model: BayesianNetwork) -> bool:
    """Whether where a fit starts can be that of the last layer: a name, or one set of weights beside these buffers."""
    if not isinstance(start, Posterior):
        return True
    names: set[str] = {item.name for item in fields(start)} if is_dataclass(start) else set()
    own = getattr(start, "buffers", None)
    if not {"model", "values", "buffers"} <= names or not isinstance(own, Mapping):
        return False
    expected = _buffers(model)
    return own.keys() == expected.keys() and all(torch.equal(own[name], value) for name, value in expected.items())


def _is_under_way(options: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of the whole network is there, as a version of before wrote it."""
    file = Checkpoint.of(options.get("checkpoint"))
    return file is not None and file.path.exists()


def _buffers(model: BayesianNetwork) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.net.named_buffers()}
