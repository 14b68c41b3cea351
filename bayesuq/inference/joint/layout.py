"""Weights as one flat vector: where each site stands in it, and the prior read from it.

A `Layout` is the bijection between named sites, each on its own support, and one unconstrained vector of P numbers.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to

from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.laws import unchecked


@dataclass(frozen=True)
class Layout:
    """Where each site stands in the flat vector.

    Attributes:
        shapes: Shape of each site, in order.
        transforms: From the real line to the support, for the sites whose support is another.
    """

    shapes: Mapping[str, torch.Size]
    transforms: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, model: BayesianNetwork, names: Iterable[str] | None = None) -> "Layout":
        """Of the sites named, by default all: the random ones, then those learned as point values."""
        initial = model.initial()
        chosen = [*model.laws, *model.points] if names is None else list(names)
        supports = {name: _base_constraint(model.support(name)) for name in chosen}
        return cls(
            shapes={name: initial[name].shape for name in chosen},
            transforms={
                name: biject_to(support) for name, support in supports.items() if support is not constraints.real
            },
        )

    @property
    def sizes(self) -> list[int]:
        """Numbers in each site."""
        return [shape.numel() for shape in self.shapes.values()]

    @property
    def size(self) -> int:
        """P, numbers in all."""
        return sum(self.sizes)

    def slices(self) -> dict[str, slice]:
        """Where each site stands."""
        edges = pairwise(accumulate(self.sizes, initial=0))
        return {name: slice(*edge) for name, edge in zip(self.shapes, edges, strict=True)}

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """Named sites on their own support, (..., *shape), of flat vectors (..., P); views of them where it is real."""
        parts = flat.split(self.sizes, dim=-1)
        leading = flat.shape[:-1]
        theta = {
            name: part.view(leading + shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }
        for name, transform in self.transforms.items():
            theta[name] = transform(theta[name])
        return theta

    def join(self, theta: Mapping[str, Tensor]) -> Tensor:
        """The flat vectors (..., P) of named sites (..., *shape); the inverse of `split`."""
        parts = []
        for name, shape in self.shapes.items():
            value = theta[name]
            if name in self.transforms:
                value = self.transforms[name].inv(value)
            parts.append(value.reshape(*value.shape[: value.ndim - len(shape)], -1))
        return torch.cat(parts, dim=-1)

    def log_abs_det_jacobian(self, flat: Tensor) -> Tensor:
        """log |d theta / d flat|, (...,): what a density of theta gains when it is read as one of the flat vector."""
        total = flat.new_zeros(flat.shape[:-1])
        slices = self.slices()
        for name, transform in self.transforms.items():
            part = flat[..., slices[name]]
            total = total + transform.log_abs_det_jacobian(part, transform(part)).sum(dim=-1)
        return total


@dataclass(frozen=True, eq=False)
class FlatPrior:
    """log p(theta) read from the flat vector: the normal sites in one kernel, the others site by site.

    Attributes:
        loc: Prior means of the normal entries; a number where they are all the same.
        precision: Their inverse variances, 0 at all other entries; a number where they are all the same.
        log_normaliser: Sum of log N(loc; loc, scale^2) over the normal entries, in nats.
        others: The laws of the sites that are not normal, which take any values.
    """

    loc: Tensor | float
    precision: Tensor | float
    log_normaliser: float
    others: Mapping[str, Any]

    @classmethod
    def of(cls, model: BayesianNetwork, layout: Layout) -> "FlatPrior":
        """Of the sites in a layout; sites learned as point values have no prior."""
        loc = torch.zeros(layout.size, dtype=model.dtype, device=model.device)
        precision = torch.zeros_like(loc)
        log_normaliser = 0.0
        others = {}
        for name, where in layout.slices().items():
            law = model.laws.get(name)
            base = normal_base(law)
            if base is not None:
                loc[where] = base.loc.reshape(-1)
                precision[where] = base.scale.reshape(-1) ** -2
                log_normaliser += float(base.log_prob(base.loc).double().sum())
            elif law is not None:
                others[name] = unchecked(law)
        return cls(_scalar_if_constant(loc), _scalar_if_constant(precision), log_normaliser, others)

    def part(self, where: slice) -> "FlatPrior":
        """Of the normal entries in a stretch of the vector; the constant, and all other sites, stay with the whole."""

        def cut(values: Tensor | float) -> Tensor | float:
            return values if isinstance(values, float) else values[where]

        return FlatPrior(cut(self.loc), cut(self.precision), 0.0, {})

    def normal_energy(self, flat: Tensor, scale: Tensor | None = None) -> Tensor:
        """sum precision ((flat - loc)^2 + scale^2) / 2 over the normal entries, in nats.

        Minus their log density at `flat`, up to `log_normaliser`; with a scale, its mean under N(flat, scale^2).
        """
        if isinstance(self.precision, float) and self.precision == 0:
            return flat.new_zeros(())  # no normal entry; 0 times an overflowing square would be NaN
        centred = self._centred(flat)
        if isinstance(self.precision, float):
            squares = centred.dot(centred) if scale is None else centred.dot(centred) + scale.dot(scale)
            return squares * (0.5 * self.precision)
        squares = centred.square() if scale is None else centred.square() + scale.square()
        return 0.5 * self.precision.dot(squares)

    def add_normal_gradient(
        self, flat: Tensor, gradient: Tensor, weight: float = 1.0, out: Tensor | None = None
    ) -> None:
        """Add `weight` times the gradient of `normal_energy`, precision (flat - loc), in place or put into `out`."""
        out = gradient if out is None else out
        if isinstance(self.precision, float):
            torch.add(gradient, self._centred(flat), alpha=weight * self.precision, out=out)
        else:
            torch.addcmul(gradient, self._centred(flat), self.precision, value=weight, out=out)

    def _centred(self, flat: Tensor) -> Tensor:
        return flat if isinstance(self.loc, float) and self.loc == 0 else flat - self.loc

    def log_prob(self, flat: Tensor, theta: Mapping[str, Tensor]) -> Tensor:
        """log p in nats, a 0-d tensor; `theta` is `flat` split."""
        total = self.log_normaliser - self.normal_energy(flat)
        for name, law in self.others.items():
            total = total + law.log_prob(theta[name])
        return total


def normal_base(law: Any) -> Any | None:
    """The normal law of single entries inside `law`, or None where it is of another family."""
    while isinstance(law, dist.Independent):
        law = law.base_dist
    return law if isinstance(law, dist.Normal) else None


def _base_constraint(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _scalar_if_constant(values: Tensor) -> Tensor | float:
    if values.numel() == 0:
        return 0.0
    first = float(values[0])
    return first if bool((values == values[0]).all()) and math.isfinite(first) else values
