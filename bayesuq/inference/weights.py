"""Weights as one flat vector, and the one forward pass over S draws of them.

A `Layout` is the bijection between named sites, each on its own support, and one unconstrained vector of P numbers. A
`WeightPosterior` is any posterior that can name draws of that vector; predicting with it is written here, once:

    draws (S, P) -> named weights (S, ...) -> f (S, N, C, ...) -> likelihood.predictive(f)
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, pairwise
from os import PathLike
from typing import Any, ClassVar, Self

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import biject_to
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.export import Drawn, Wanted, chain_facts, number_of_draws
from bayesuq.inference.packing import move, save
from bayesuq.inference.prediction import draw_indices, predict_in_chunks
from bayesuq.inference.prior_draws import prior_of
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.precision import full_precision
from bayesuq.models.spectral import with_exact_norms
from bayesuq.posterior import Posterior
from bayesuq.predictive import PredictiveDistribution
from bayesuq.randomness import resolve_seed

VECTORISED_BUDGET = 2**21  # numbers in weights and activations that fit the cache: so many draws run together
FEWEST_TOGETHER = 4  # fewer gain less than stacking their weights costs


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
        others: The laws of the sites that are not normal.
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
                others[name] = law
        return cls(_scalar_if_constant(loc), _scalar_if_constant(precision), log_normaliser, others)

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

    def add_normal_gradient(self, flat: Tensor, gradient: Tensor, weight: float = 1.0) -> None:
        """Add `weight` times the gradient of `normal_energy`, precision (flat - loc), in place."""
        if isinstance(self.precision, float):
            gradient.add_(self._centred(flat), alpha=weight * self.precision)
        else:
            gradient.addcmul_(self._centred(flat), self.precision, value=weight)

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


class WeightPosterior(Posterior):
    """A posterior approximation over weights: it names draws of the flat vector, and this class predicts with them."""

    model: BayesianNetwork
    buffers: Mapping[str, Tensor]
    is_mode: ClassVar[bool] = False  # whether it is the very weights that the buffers were trained with

    @property
    @abstractmethod
    def num_members(self) -> int | None:
        """M, the number of stored members; None where draws are without end."""

    @abstractmethod
    def draw(self, index: int, seed: int) -> Tensor:
        """The flat vector (P,) of draw number `index`; it depends on `index` and `seed` alone."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def to(self, device: torch.device | str) -> Self:
        """The same posterior on another device."""
        return move(self, device)

    def save(self, path: "str | PathLike[str]") -> None:
        """Write it to one file: see `Posterior.save`."""
        save(self, path)

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D): see `Posterior.predict`."""
        indices = draw_indices(num_samples, self.num_members)
        key = resolve_seed(seed)
        layout = Layout.of(self.model)
        tree = share_tensors(self.model.net)
        if not self.is_mode:
            with_exact_norms(tree)

        def parts(rows: Tensor, start: int, width: int) -> Iterator[PredictiveDistribution]:  # noqa: ARG001
            together = VECTORISED_BUDGET // (layout.size + len(rows) * width)
            together = together if together >= FEWEST_TOGETHER else 1
            for first in range(0, len(indices), together):
                theta = layout.split(self._draws(indices[first : first + together], key))
                f = self._outputs(theta, rows, tree)
                yield self.model.likelihood_given(theta).predictive(f, keep_samples=keep_samples)

        return predict_in_chunks(self.model, x, tree, parts)

    def sample_weights(self, num_samples: int | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of every site by name, (S, ...), on its own support; parameters learned as point values repeat.

        Args:
            num_samples: S, as for `predict`.
            seed: As for `predict`; the same seed gives the same draws there.
        """
        indices = draw_indices(num_samples, self.num_members)
        key = resolve_seed(seed)
        return Layout.of(self.model).split(self._draws(indices, key))

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of."""
        number = number_of_draws(self, wanted.num_samples)
        weights = self.sample_weights(number, seed=wanted.seed)
        return Drawn(
            method=type(self).__name__,
            weights=weights,
            predict=partial(self.predict, num_samples=number, seed=wanted.seed, keep_samples=True),
            **prior_of(self.model, weights, self.buffers),
            **chain_facts(self, number),
        )

    def _draws(self, indices: Sequence[int], seed: int) -> Tensor:
        """Several draws, (S, P)."""
        with full_precision():
            if len(indices) == 1:
                return self.draw(indices[0], seed).unsqueeze(0)  # for a large network, stacking would be one copy more
            return torch.stack([self.draw(index, seed) for index in indices])

    def _outputs(self, theta: Mapping[str, Tensor], rows: Tensor, tree: nn.Module) -> Tensor:
        """f (S, N, C, ...) at one chunk of rows."""

        def run(one: Mapping[str, Tensor]) -> Tensor:
            return self.model.forward(one, rows, net=tree, buffers=self.buffers)

        num_draws = len(next(iter(theta.values())))
        if num_draws > 1:
            try:
                return torch.func.vmap(run)(dict(theta))
            except RuntimeError:  # a module that vmap cannot follow, such as one that branches on its values
                pass
            return torch.stack([run({name: value[s] for name, value in theta.items()}) for s in range(num_draws)])
        return run({name: value[0] for name, value in theta.items()}).unsqueeze(0)


def _base_constraint(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _scalar_if_constant(values: Tensor) -> Tensor | float:
    if values.numel() == 0:
        return 0.0
    first = float(values[0])
    return first if bool((values == values[0]).all()) and math.isfinite(first) else values
