"""What the last operation of a network lets its outputs be, and a likelihood that takes them for any real number.

A network that ends in a sigmoid before a likelihood of logits trains and predicts, and no probability of it leaves
.5 to .73. Which operation comes last is read off autograd's graph, whether it is a layer or written in `forward`.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inputs import Inputs
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.base import MEANS
from bayesuq.models.likelihoods.labels import Categorical

MOVES = {  # by the names of their derivatives: what only moves numbers or copies them
    *("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Permute", "Transpose", "T", "Alias", "Clone"),
    *("ToCopy", "Slice", "Select", "Expand"),
}
JOINS = {"Cat", "Stack"}
SHIFTS = {"Add", "Sub"}  # of a constant, as where a floor is added
PROBABLE = 1e-4  # of a sum of probabilities
TOLD = 0.01  # of the first targets: fewer are noise around a mean at its bound


class End(NamedTuple):
    """An operation that nothing but moves comes after, and what its results are between."""

    name: str
    low: float
    high: float
    inverse: str = ""

    @property
    def remedy(self) -> str:
        """What to do about it."""
        undone = f", or undo it: `bayesuq.adopt(net, likelihood, output={self.inverse})`" if self.inverse else ""
        return f"Leave the last operation out{undone}."

    @property
    def range(self) -> str:
        """In words."""
        if math.isinf(self.high):
            return f"never below {self.low:g}"
        return f"never above {self.high:g}" if math.isinf(self.low) else f"between {self.low:g} and {self.high:g}"

    def holds(self, values: Tensor) -> bool:
        """Whether values are between them."""
        return bool((values >= self.low).all() and (values <= self.high).all())


ENDS: dict[str, End] = {  # the least and the largest that they give, and what undoes them
    "Sigmoid": End("a sigmoid", 0.0, 1.0, "torch.logit"),
    "Hardsigmoid": End("a sigmoid", 0.0, 1.0),
    "Softmax": End("a softmax", 0.0, 1.0),
    "Tanh": End("a tanh", -1.0, 1.0),
    "Relu": End("a ReLU", 0.0, math.inf),
    "Softplus": End("a softplus", 0.0, math.inf),
    "Exp": End("an exponential", 0.0, math.inf, "torch.log"),
    "Abs": End("absolute values", 0.0, math.inf),
    "LogSigmoid": End("a log sigmoid", -math.inf, 0.0),
}


class Traced(NamedTuple):
    """What a network gives for some rows, with the graph of its derivatives by all of its sites.

    Attributes:
        f: Outputs, (N, C, ...).
        theta: The sites that they were computed from, by name.
    """

    f: Tensor
    theta: dict[str, Tensor]

    def moves_with(self, names: Collection[str]) -> bool:
        """Whether any of the sites acts on the outputs, by a path that derivatives take."""
        wanted = {id(self.theta[name]) for name in names}
        return any(id(leaf) in wanted for leaf in self.leaves())

    def leaves(self) -> Iterator[Tensor]:
        """All numbers that the outputs have a derivative by."""
        waiting = [] if self.f.grad_fn is None else [self.f.grad_fn]
        seen = set(waiting)
        while waiting:
            node: Any = waiting.pop()
            if (leaf := getattr(node, "variable", None)) is not None:
                yield leaf
            fresh = [one for one in _nodes(node) if one not in seen]
            seen.update(fresh)
            waiting.extend(fresh)


def traced(model: BayesianNetwork, x: Inputs) -> Traced:
    """Run the network where it starts, with the graph of its derivatives.

    Args:
        model: The joint density.
        x: A row or two.
    """
    theta = {name: _differentiable(value) for name, value in model.initial().items()}
    with torch.enable_grad():
        return Traced(model.forward(theta, x), theta)


def warn_of_bounded_outputs(model: BayesianNetwork, f: Tensor) -> None:
    """Tell of a network whose outputs are bounded where its likelihood takes them for logits, log rates or log scales.

    Args:
        model: Its likelihood says what outputs are: see `Likelihood.output_kinds`.
        f: Its outputs at a row or two, with their graph.
    """
    if type(model.likelihood) is Categorical and f.shape[1] > 1 and _are_probabilities(f):
        warn_of_fit(
            "The outputs of the network are probabilities, each row sums to 1, and likelihoods.Categorical() takes the "
            "softmax of them again, which makes every prediction unsure. Leave the last softmax out, or take its "
            "logarithm: `bayesuq.adopt(net, likelihood, output=torch.log)`.",
            UserWarning,
        )
        return
    for kind, end in _ends(model, f):
        if kind != MEANS:
            _warn(model, kind, end)


def warn_of_targets_out_of_reach(model: BayesianNetwork, f: Tensor, y: Tensor) -> None:
    """Tell of a network that ends in an operation which never gives means like the targets.

    Args:
        model: As in `warn_of_bounded_outputs`.
        f: As in `warn_of_bounded_outputs`.
        y: Some targets, as the likelihood has them.
    """
    if MEANS not in model.likelihood.output_kinds:
        return
    for kind, end in _ends(model, f):
        outside = float(((y < end.low) | (y > end.high)).float().mean())
        if kind == MEANS and outside > TOLD:
            _warn(model, kind, end, f", while {outside:.0%} of the first targets are not")


def _differentiable(value: Tensor) -> Tensor:
    return value.detach().requires_grad_() if value.is_floating_point() else value


def _are_probabilities(f: Tensor) -> bool:
    return bool((f >= 0).all() and ((f.sum(dim=1) - 1).abs() < PROBABLE).all())


def _warn(model: BayesianNetwork, kind: str, end: End, targets: str = "") -> None:
    warn_of_fit(
        f"The network ends in {end.name}, and likelihoods.{type(model.likelihood).__name__} takes what it gives for "
        f"{kind}, which may be any real number: these are {end.range}{targets}. {end.remedy}",
        UserWarning,
    )


def _ends(model: BayesianNetwork, f: Tensor) -> Iterator[tuple[str, End]]:
    """The kinds of outputs that an operation bounds, of groups of columns that are as wide as each other."""
    kinds = model.likelihood.output_kinds
    if f.grad_fn is None or not kinds or f.shape[1] % len(kinds):
        return
    last = _behind_moves(f.grad_fn)
    parts = [_behind_moves(part) for part in _nodes(last)] if _name(last) in JOINS else [last] * len(kinds)
    each, left = divmod(len(parts), len(kinds))
    if left:
        return
    for place, (kind, columns) in enumerate(zip(kinds, f.detach().chunk(len(kinds), 1), strict=True)):
        names = {_name(part) for part in parts[place * each : (place + 1) * each]}
        end = ENDS.get(names.pop()) if len(names) == 1 else None
        if end is not None and end.holds(columns):
            yield kind, end


def _behind_moves(node: Any) -> Any:
    """The node behind those that move numbers, or add a constant to them."""
    while (inputs := list(_nodes(node))) and (_name(node) in MOVES or (_name(node) in SHIFTS and len(inputs) == 1)):
        node = inputs[0]
    return node


def _nodes(node: Any) -> Iterator[Any]:
    return (found for found, _ in node.next_functions if found is not None)


def _name(node: Any) -> str:
    return type(node).__name__.split("Backward")[0]
