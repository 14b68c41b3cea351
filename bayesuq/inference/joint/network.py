"""Flat vectors that a network trains on directly: its parameters are views of them, and its gradients gather in them.

The network then runs as plain PyTorch runs it, with nothing of ours in the forward or backward pass, while all that is
elementwise (noise, scales, priors, the optimiser) is one kernel over P numbers instead of one a layer.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bayesuq.data import Batch
from bayesuq.inference.joint.constant import best_constant
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.masks import Stream, check_streams, only_layers, with_masks
from bayesuq.inputs import apply, arguments, output, with_scales
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, share_tensors
from bayesuq.models.copies import deep_copy
from bayesuq.models.layers import is_frozen
from bayesuq.models.precision import raised
from bayesuq.models.training_mode import TrainingMode, observe, training_mode, with_own_buffers
from bayesuq.predictive.laws import unchecked
from bayesuq.randomness import OwnGenerators

SHORT = 2**16  # numbers of vectors whose gradients are set to zero and added to, not written


class FlatVector:
    """An unconstrained vector (P,) and its gradient, which sites share by name.

    Attributes:
        layout: Where each site stands.
        values: The vector; writing to it in place moves the sites.
        leaves: A leaf parameter for each site, a view of `values`; its `.grad` is a view of `values.grad`.
    """

    def __init__(self, layout: Layout, values: Tensor) -> None:
        self.layout = layout
        self.values = values.detach().clone()
        self.values.grad = torch.zeros_like(values)
        self.leaves: dict[str, nn.Parameter] = {}
        for (name, shape), where in zip(layout.shapes.items(), layout.slices().values(), strict=True):
            self.leaves[name] = nn.Parameter(self.values[where].view(shape))
            self.leaves[name].grad = self.values.grad[where].view(shape)

    @property
    def grad(self) -> Tensor:
        """The gradient, (P,), which backward passes add to."""
        if self.values.grad is None:
            raise RuntimeError("the gradient of a flat vector was set to None; zero it in place instead")
        return self.values.grad

    def theta(self) -> dict[str, Tensor]:
        """The sites by name, on their own support, as functions of the leaves."""
        transforms = self.layout.transforms
        return {name: transforms[name](leaf) if name in transforms else leaf for name, leaf in self.leaves.items()}


def write_gradients(loss: Tensor, written: Sequence[FlatVector], beginning: Tensor | None = None) -> None:
    """Put the gradient of a loss into that of some flat vectors, and add it to that of all other leaves.

    A backward pass adds: a gradient that is to be new must be set to zero first, and both go through memory once more.
    It costs less than to write where the vectors are so short that a cache holds them.

    Args:
        loss: A 0-d tensor.
        written: Vectors whose gradient becomes that of the loss, whatever it was.
        beginning: Factor of the loss, 0-d; None is one.
    """
    if sum(len(vector.values) for vector in written) < SHORT:
        for vector in written:
            vector.grad.zero_()
        torch.autograd.backward(loss, beginning)
        return
    leaves = [leaf for vector in written for leaf in vector.leaves.values()]
    places = [cast(Tensor, leaf.grad) for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None  # so that the pass leaves what it has found, where it would have added
    try:
        torch.autograd.backward(loss, beginning)
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        torch._foreach_copy_(places, found)
    finally:
        for leaf, place in zip(leaves, places, strict=True):
            leaf.grad = place


def point_vectors(model: BayesianNetwork, names: list[str]) -> dict[str, FlatVector]:
    """Sites that move as point values, at their start: "weights" and the likelihood's "unknowns", where there are any.

    Apart, because the unknowns are positive: they move on the log scale, and so over larger distances than weights.
    """
    kinds = {
        "weights": [name for name in names if not name.startswith(LIKELIHOOD)],
        "unknowns": [name for name in names if name.startswith(LIKELIHOOD)],
    }
    layouts = {kind: Layout.of(model, chosen) for kind, chosen in kinds.items() if chosen}
    initial = model.initial()
    return {kind: FlatVector(layout, layout.join(initial)) for kind, layout in layouts.items()}


class TrainingNetwork:
    """A copy of a model's network on the leaves of flat vectors, with buffers of its own.

    Attributes:
        training: To train on: in training mode, but that statistics of frozen modules are held, and that what draws
            evaluates where it is not to act. Before the first pass, or `prepare`, it evaluates as a whole.
        evaluation: The same weights and buffers in evaluation mode.
        buffers: The buffers, by name.
    """

    def __init__(self, model: BayesianNetwork, vectors: Mapping[str, FlatVector], *, dropout: bool) -> None:
        self.model = model
        self.vectors = vectors
        self.dropout = dropout
        self.training = deep_copy(model.net).eval()
        leaves = {name: leaf for vector in vectors.values() for name, leaf in vector.leaves.items()}
        _install(self.training, leaves)
        self.evaluation = share_tensors(self.training)
        self.buffers = dict(self.training.named_buffers())
        self.dtype = model.dtype
        self._parameters = dict(self.training.named_parameters())
        self._stream = Stream()
        self._mode: TrainingMode | None = None
        self._by_layers = True

    def prepare(self, x: Tensor) -> None:
        """Put the modules into their modes, by what a pass over some rows does.

        Raises:
            ValueError: See `bayesuq.models.training_mode.training_mode`; draws that no generator can be given to; a
                module that keeps statistics as it draws, where it is not to draw.
        """
        mode = self._mode = training_mode(self.model, x)
        self.training.train()
        for path in mode.moving:
            if is_frozen(self.training, path):
                self.training.get_submodule(path).training = False
        if self.dropout:
            check_streams(mode)
            self._by_layers = only_layers(self.training, mode)
            if self._by_layers:
                with_masks(self.training, self._stream)
            return
        self.set_drawing(False)
        if mode.calls:
            self._check_quiet(x)

    def prepare_once(self, x: Tensor) -> None:
        """As `prepare`, unless that was done."""
        if self._mode is None:
            self.prepare(x)

    def statistics(self, x: Tensor) -> list[Tensor]:
        """Buffers that passes over such rows in training mode move, but for counts."""
        self.prepare_once(x)
        moving = () if self._mode is None else self._mode.moving
        paths = [path for path in moving if self.training.get_submodule(path).training]
        found = [buffer for name, buffer in self.buffers.items() if name.rpartition(".")[0] in paths]
        return [buffer for buffer in found if buffer.is_floating_point()]

    @property
    def is_random(self) -> bool:
        """Whether passes in training mode draw; known once the modules are in their modes."""
        return self.dropout and self._mode is not None and bool(self._mode.calls)

    def set_drawing(self, on: bool) -> None:
        """Whether what draws in training mode does, once the modules are in their modes."""
        for path in () if self._mode is None else self._mode.drawing:
            self.training.get_submodule(path).training = on

    def run(self, x: Tensor, noise: torch.Generator | None = None) -> Tensor:
        """f (N, C, ...) in training mode; draws come from `noise`."""
        self.prepare_once(x)
        self._stream.noise = noise
        if self._by_layers or noise is None:
            f = self._apply(self.training, x)
        else:
            with OwnGenerators(noise):
                f = self._apply(self.training, x)
        if self._mode is not None and self._mode.assigned:
            self._keep_assigned()
        return f

    def evaluate(self, x: Tensor) -> Tensor:
        """f (N, C, ...) in evaluation mode, in the model's own precision."""
        return raised(self._apply(self.evaluation, x), self.dtype)

    def _apply(self, tree: nn.Module, x: Tensor) -> Tensor:
        """f of one of the trees, with the rows of padding that the model holds, whatever the vectors have there."""
        padded = self.model.padded(self._parameters)
        if not padded:
            return apply(tree, x)
        args, named = arguments(tree, x)
        return with_scales(output(functional_call(tree, padded, args, named, tie_weights=False)), x)

    def _keep_assigned(self) -> None:
        """Put the values of buffers that were assigned anew into the buffers, which others hold."""
        for name, buffer in self.buffers.items():
            path, _, attribute = name.rpartition(".")
            module = self.training.get_submodule(path)
            now = module._buffers[attribute]
            if now is not None and now is not buffer:
                with torch.no_grad():
                    buffer.copy_(now)
                module._buffers[attribute] = buffer

    def _check_quiet(self, x: Tensor) -> None:
        """Refuse a module that goes on drawing, or whose statistics stop moving with its draws."""
        mode = self._mode
        quiet = observe(with_own_buffers(self.training), x)
        stopped = set(mode.moving) & set(mode.drawing) if mode is not None else set()
        if quiet.calls or stopped:
            path = next(iter(quiet.drawing or stopped))
            raise ValueError(
                f"`net.{path}` draws in training mode, which this method must not let it, and keeps statistics too, or "
                "does not heed `self.training`. Put the two into modules of their own, or use `dropout` or "
                "`map_estimate`."
            )

    def theta(self) -> dict[str, Tensor]:
        """All sites by name, on their own support."""
        return {name: value for vector in self.vectors.values() for name, value in vector.theta().items()}

    def log_prob(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """log p(y | x, theta) of each row in evaluation mode, (N,), in nats, at the weights that the vectors hold."""
        return self.model.likelihood_given(theta).log_prob(self.evaluate(x), y, weight)

    def total_log_prob(self, theta: Mapping[str, Tensor], batch: Batch, noise: torch.Generator | None = None) -> Tensor:
        """Its sum over rows in training mode, a 0-d tensor; what the network draws comes from `noise`."""
        f = raised(self.run(batch.x, noise), self.dtype)
        return self.model.likelihood_given(theta).total_log_prob(f, batch.y, batch.weight)

    def row_log_prob(self, theta: Mapping[str, Tensor], batch: Batch, noise: torch.Generator | None = None) -> Tensor:
        """As `total_log_prob`, of each row, (N,), in nats."""
        f = raised(self.run(batch.x, noise), self.dtype)
        return self.model.likelihood_given(theta).log_prob(f, batch.y, batch.weight)

    def log_constant(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """As `log_prob`, with the network's outputs replaced by the constant that fits these rows best."""
        with torch.no_grad():
            f = self.evaluate(x)
        return best_constant(self.model.likelihood_given(theta), f, y, weight)

    def culprits(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> list[str]:
        """Sites whose values or log prior densities are not finite, then `y`."""
        laws = self.model.laws

        def fails(name: str, value: Tensor) -> bool:
            return not value.isfinite().all() or (name in laws and not unchecked(laws[name]).log_prob(value).isfinite())

        with torch.no_grad():
            names = [name for name, value in theta.items() if fails(name, value)]
            return names if self.log_prob(theta, x, y, weight).isfinite().all() else [*names, "y"]


def _install(net: nn.Module, leaves: Mapping[str, nn.Parameter]) -> None:
    """Put the leaves in the places of the parameters they are named after, tied places included."""
    originals = dict(net.named_parameters())
    replacement = {id(originals[name]): leaf for name, leaf in leaves.items() if name in originals}
    for module in net.modules():
        for attribute, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in replacement:
                setattr(module, attribute, replacement[id(parameter)])
