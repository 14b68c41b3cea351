"""Flat vectors that a network trains on directly: its parameters are views of them, and its gradients gather in them.

The network then runs as plain PyTorch runs it, with nothing of ours in the forward or backward pass, while all that is
elementwise (noise, scales, priors, the optimiser) is one kernel over P numbers instead of one a layer.
"""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayesuq.inference.constant import best_constant
from bayesuq.inference.weights import Layout
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, share_tensors
from bayesuq.models.precision import raised

NORMALISATION = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


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
        training: To train on: normalisation layers learn their statistics, dropout acts where asked, the rest
            evaluates.
        evaluation: The same weights and buffers in evaluation mode.
        buffers: The buffers, by name.
    """

    def __init__(self, model: BayesianNetwork, vectors: Mapping[str, FlatVector], *, dropout: bool) -> None:
        self.model = model
        self.vectors = vectors
        self.training = copy.deepcopy(model.net).eval()
        leaves = {name: leaf for vector in vectors.values() for name, leaf in vector.leaves.items()}
        _install(self.training, leaves)
        self.evaluation = share_tensors(self.training)
        for module in self.training.modules():
            if learns_statistics(module) or (dropout and is_dropout(module)):
                module.train()
        self.buffers = dict(self.training.named_buffers())
        self.dtype = model.dtype

    def theta(self) -> dict[str, Tensor]:
        """All sites by name, on their own support."""
        return {name: value for vector in self.vectors.values() for name, value in vector.theta().items()}

    def log_prob(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """log p(y | x, theta) of each row in evaluation mode, (N,), in nats, at the weights that the vectors hold."""
        return self.model.likelihood_given(theta).log_prob(raised(self.evaluation(x), self.dtype), y, weight)

    def total_log_prob(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """Its sum over rows in training mode, a 0-d tensor."""
        return self.model.likelihood_given(theta).total_log_prob(raised(self.training(x), self.dtype), y, weight)

    def log_constant(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        """As `log_prob`, with the network's outputs replaced by the constant that fits these rows best."""
        with torch.no_grad():
            f = self.evaluation(x)
        return best_constant(self.model.likelihood_given(theta), f, y, weight)

    def culprits(self, theta: Mapping[str, Tensor], x: Tensor, y: Tensor, weight: Tensor | None) -> list[str]:
        """Sites whose values or log prior densities are not finite, then `y`."""
        laws = self.model.laws

        def fails(name: str, value: Tensor) -> bool:  # a law refuses NaN, so it comes second
            return not value.isfinite().all() or (name in laws and not laws[name].log_prob(value).isfinite())

        with torch.no_grad():
            names = [name for name, value in theta.items() if fails(name, value)]
            return names if self.log_prob(theta, x, y, weight).isfinite().all() else [*names, "y"]


def is_dropout(module: nn.Module) -> bool:
    """Whether a layer drops units at random."""
    return isinstance(module, DROPOUT) and module.p > 0


def learns_statistics(module: nn.Module) -> bool:
    """Whether a layer takes statistics of its batches; one whose parameters are all frozen keeps those it has."""
    frozen = [not parameter.requires_grad for parameter in module.parameters()]
    return isinstance(module, NORMALISATION) and not (frozen and all(frozen))


def _install(net: nn.Module, leaves: Mapping[str, nn.Parameter]) -> None:
    """Put the leaves in the places of the parameters they are named after, tied places included."""
    originals = dict(net.named_parameters())
    replacement = {id(originals[name]): leaf for name, leaf in leaves.items() if name in originals}
    for module in net.modules():
        for attribute, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if id(parameter) in replacement:
                setattr(module, attribute, replacement[id(parameter)])
