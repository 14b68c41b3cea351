"""One pass of a trained network over rows, from which its features are kept: what its last layer gets.

taken = take(bq.adopt(net, likelihood), data)
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.data import Dataset
from bayesuq.inference.features.taken import Features
from bayesuq.inference.posteriors.network import NetworkPosterior, at_values
from bayesuq.inference.posteriors.prediction import activations_per_row, batches_of, rows_at_a_time
from bayesuq.inference.posteriors.row_store import RowStore
from bayesuq.inference.posteriors.wrapping import WrappingPosterior
from bayesuq.inputs import Inputs, checked
from bayesuq.loaders import Data, Loader
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.likelihoods.base import LOGITS, Likelihood
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.posterior import Posterior
from bayesuq.randomness import isolated

MEMORY = 2**30  # bytes
PARAMETRISED = "parametrizations"  # torch's name for the modules that compute a layer's parameters


def take(posterior: Posterior, data: "Data | ArrayLike", *, layer: str | None = None, memory: int = MEMORY) -> Features:
    """The features of rows by a trained network, with its logits, the labels that come with them, and the last layer.

    Logits, and the layer that gives them, are of classes: one that is the logit of label 1 has a 0 beside it, and
    outputs that are something else, such as means, log rates or logits of labels that do not exclude each other, are
    left out.

    Args:
        posterior: One network: of `bayesuq.adopt`, `map_estimate.fit`, or what stands on such a mode.
        data: A Dataset or a loader, whose labels are kept where the likelihood is of labels; or inputs alone. A loader
            is read once, a batch at a time; with `shuffle=True` it must have labels, and its rows come in the data
            set's order.
        layer: The path of the module whose inputs are the features. None takes the last one that has parameters.
        memory: Bytes of features, and of logits, that are held; beyond them they go to a temporary file that the
            result reads as it needs them.

    Raises:
        TypeError: No posterior of one network; data of another kind.
        ValueError: A layer that is not there, or is not run once on inputs of shape (N, D); rows that the network does
            not take.

    Example:
        >>> from bayesuq.inference.adoption import adopt
        >>> from bayesuq.models.likelihoods import Categorical
        >>> net = nn.Sequential(nn.Linear(2, 50), nn.Tanh(), nn.Linear(50, 3))
        >>> take(adopt(net, Categorical()), torch.ones(4, 2))
        Features(4 rows of 50 features, 1 MB at most, with logits, weight, bias)
    """
    return taken_of(posterior, data, layer=layer, memory=memory, leaves_void_out=False)


def taken_of(
    posterior: Posterior, data: "Data | ArrayLike", *, layer: str | None, memory: int, leaves_void_out: bool
) -> Features:
    """As `take`, of the labelled rows that count if the others are to be left out."""
    network = FeatureNetwork.of(posterior, layer)
    check_count(memory, "memory")
    features, logits, labels = RowStore(memory), RowStore(memory), RowStore(memory)
    is_linear, of_classes = True, _are_logits(network.model.likelihood)
    with torch.no_grad(), isolated(0):
        for x, y in _batches(network.model, posterior.by_name(data), leaves_void_out=leaves_void_out):
            for rows in network.chunks(posterior.as_fitted(x)):
                some, f = network(rows)
                is_linear = is_linear and network.is_linear(some, f)
                has_one = network.model.likelihood.has_one_logit
                of_classes = of_classes and f.ndim == 2 and not (has_one and f.shape[1] > 1)
                features.add(some)
                logits.add(_beside_zero(f) if f.shape[1] == 1 else f)
            if y is not None:
                labels.add(y)
    found = labels.whole() if labels.is_filled else None
    if not of_classes:
        return Features(features.whole(), None, found)
    weight, bias = network.last_layer if is_linear else (None, None)
    if weight is not None and len(weight) == 1:
        weight, bias = _beside_zero(weight, dim=0), None if bias is None else _beside_zero(bias, dim=0)
    return Features(features.whole(), logits.whole(), found, weight, bias)


def _are_logits(likelihood: Likelihood) -> bool:
    """Whether outputs are logits of classes, or of labels of a likelihood that does not say what else they are."""
    kinds = getattr(likelihood, "base", likelihood).output_kinds
    return likelihood.outputs_are_logits or kinds == (LOGITS,) or (not kinds and likelihood.has_labels)


def _beside_zero(values: Tensor, dim: int = 1) -> Tensor:
    """A logit of label 1, or what gives it, beside that of label 0."""
    return torch.cat([torch.zeros_like(values), values], dim=dim)


class FeatureNetwork:
    """One network, and the layer whose inputs are its features.

    Attributes:
        model: The joint density.
        path: Of the layer.
    """

    def __init__(
        self, model: BayesianNetwork, theta: Mapping[str, Tensor], buffers: Mapping[str, Tensor], path: str
    ) -> None:
        self.model, self.path = model, path
        self._theta, self._buffers = theta, buffers
        self._tree = share_tensors(model.net)
        self._layer = self._tree.get_submodule(path)
        self._weights: tuple[Tensor, Tensor | None] | None = None

    @classmethod
    def of(cls, posterior: Posterior, layer: str | None = None) -> "FeatureNetwork":
        """From a posterior of one network.

        Raises:
            TypeError: Another one.
            ValueError: No such layer.
        """
        inner = posterior
        while isinstance(inner, WrappingPosterior):
            inner = inner.posterior
        theta = at_values(inner) if isinstance(inner, NetworkPosterior) else None
        if not isinstance(inner, NetworkPosterior) or theta is None:
            raise TypeError(
                "Features are of one network, such as `bayesuq.adopt` and `map_estimate.fit` give; got "
                f"{type(posterior).__name__}. Of an ensemble take one member, `posterior.members[0]`, and of a method "
                "that started from a network that network."
            )
        net = inner.model.net
        if layer is not None and layer not in dict(net.named_modules(remove_duplicate=False)):
            raise ValueError(
                f"The network has no layer {layer!r}. Name another, such as one of {', '.join(_linear(net))}."
            )
        return cls(inner.model, theta, inner.buffers, last_layer(net) if layer is None else layer)

    def chunks(self, x: Any) -> Iterator[Inputs]:
        """Checked rows as the network takes them, as many at a time as memory has room for their activations."""
        inputs = cast_inputs(self.model, checked(x))
        width = activations_per_row(self.model, inputs, self._tree)
        yield from inputs.split(rows_at_a_time(self.model.device, width))

    def __call__(self, rows: Inputs) -> tuple[Tensor, Tensor]:
        """The features, (N, D), and the outputs f, (N, C, ...).

        Raises:
            ValueError: The layer is not run once on inputs of that shape.
        """
        seen: list[Any] = []

        def record(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.append(args[0].detach().clone() if args else next(iter(named.values())).detach().clone())
            if self._weights is None and isinstance(self._layer, nn.Linear):  # as they are while it runs
                weight, bias = self._layer.weight, self._layer.bias
                self._weights = weight.detach().clone(), None if bias is None else bias.detach().clone()

        handle = self._layer.register_forward_pre_hook(record, with_kwargs=True)
        try:
            f = self.model.forward(self._theta, rows, net=self._tree, buffers=self._buffers)
        finally:
            handle.remove()
        shapes = [tuple(one.shape) for one in seen]
        if len(seen) != 1 or seen[0].ndim != 2 or len(seen[0]) != len(rows):
            raise ValueError(
                f"The layer {self.path!r} must get features of shape (N, D) once a pass; for {len(rows)} rows it got "
                f"{shapes[0] if len(shapes) == 1 else shapes}. Name another by `layer=`, such as one of "
                f"{', '.join(_linear(self._tree)[-5:]) or 'your own'}."
            )
        return seen[0], f

    def is_linear(self, features: Tensor, f: Tensor) -> bool:
        """Whether the outputs are those of a linear layer on the features."""
        if self._weights is None or f.ndim != 2:
            return False
        weight, bias = self._weights
        expected = nn.functional.linear(features.to(weight.dtype), weight, bias)
        return expected.shape == f.shape and torch.allclose(expected.to(f.dtype), f, rtol=1e-4, atol=1e-4)

    def is_end(self, features: Tensor, f: Tensor) -> bool:
        """Whether the outputs are what the layer gives, to the last bit."""
        own = {
            name: self._theta.get(f"{self.path}.{name}" if self.path else name)
            for name, _ in self._layer.named_parameters(recurse=False)
        }
        values = {name: value for name, value in own.items() if value is not None}
        again = torch.func.functional_call(self._layer, values, (features,))
        return isinstance(again, Tensor) and again.dtype == f.dtype and torch.equal(again, f)

    @property
    def last_layer(self) -> tuple[Tensor, Tensor | None]:
        """Its weight (C, D) and bias (C,), also where they are computed, as weight norms do, from a pass on.

        Raises:
            ValueError: Another layer than a linear one, or one that has not run.
        """
        if self._weights is None:
            raise ValueError(f"The layer {self.path!r} has not run yet, or is no linear one.")
        return self._weights


def last_layer(net: nn.Module) -> str:
    """The path of the last module that has parameters of its own, frozen ones too; parametrised ones are a layer's."""
    path = [path for path, module in net.named_modules() if any(True for _ in module.parameters(recurse=False))][-1]
    parts = path.split(".")
    return ".".join(parts[: parts.index(PARAMETRISED)]) if PARAMETRISED in parts else path


def _linear(net: nn.Module) -> list[str]:
    return [repr(path) for path, module in net.named_modules() if isinstance(module, nn.Linear)]


def _batches(model: BayesianNetwork, data: Any, *, leaves_void_out: bool) -> Iterator[tuple[Any, Tensor | None]]:
    """Inputs, and labels where there are some."""
    loader = Loader.of(data)
    if isinstance(data, Dataset) or (loader is not None and _has_targets(loader)):
        for batch in [data] if loader is None else loader.complete():
            labels = _labels(model, batch)
            if labels is not None and leaves_void_out:
                counts = torch.ones_like(labels, dtype=torch.bool)
                if batch.weight is not None:
                    counts &= (batch.weight.reshape(len(labels), -1) > 0).any(dim=1).to(counts.device)
                if model.likelihood.ignore_index is not None:
                    counts &= labels != model.likelihood.ignore_index
                if not counts.any():
                    continue
                batch, labels = batch.rows(counts.cpu()), labels[counts]
            yield batch.x, labels
    else:
        for x in batches_of(data):
            yield x, None


def _has_targets(loader: Loader) -> bool:
    try:
        loader.first()
    except TypeError:
        return False
    return True


def _labels(model: BayesianNetwork, batch: Dataset) -> Tensor | None:
    """Labels (N,) of rows, where the likelihood is of such."""
    likelihood = model.likelihood
    if not likelihood.has_labels or batch.y.ndim > 1:
        return None
    return batch.y.to(model.device)
