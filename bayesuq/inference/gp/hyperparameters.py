"""The hyperparameters of a built process as one flat vector: where it starts, and its log prior.

Positive ones are held as logarithms. A start is the built value in the data's units; a further start has other
lengthscales and another share of noise, since the marginal likelihood often has one optimum that explains all by noise
and one that explains all by a wiggly function.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayesuq.inference.gp.data import NOISE_SHARE
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.identity import digest
from bayesuq.models.gp.hyperparameters import Hyperparameter, declared, natural
from bayesuq.models.gp.process import FunctionPrior
from bayesuq.models.gp.units import Units
from bayesuq.randomness import generator, isolated

STARTS = ((1.0, NOISE_SHARE), (0.3, 0.01), (3.0, 0.5))  # (factor on lengthscales, the noise's share of the variance)
NOISE_REACH = 8.0  # below its start, a ten-thousandth of the targets' spread: less is lost in rounding
WEAK = 1.5  # spread of a learned hyperparameter's weak prior, in nats of its logarithm
NUM_FOR_MEDIAN = 1001  # draws
FOREIGN_STEP = 0.5  # spread of further starts of a foreign kernel's hyperparameters, as it stores them
COUNTED = "counted in the data's units"  # what a checkpoint says of a fit that is
REACH = 14.0  # an optimiser may go a factor of e^14, a million, from the start


@dataclass(frozen=True, eq=False)
class Leaf:
    """One learnable parameter.

    Attributes:
        name: In the built process.
        value: The parameter.
        module: That holds it.
        own_name: There.
        told: What is known of it; None of a network's weights and of a foreign kernel's hyperparameters.
    """

    name: str
    value: nn.Parameter
    module: nn.Module
    own_name: str
    told: Hyperparameter | None

    @property
    def site(self) -> str:
        """The name that a user knows it by."""
        return self.name.replace("raw_", "").replace("log_unknowns.", "likelihood.")

    @property
    def is_logarithm(self) -> bool:
        """Whether it is stored as a logarithm."""
        return self.told is not None and self.told.unit not in ("location", "gradients")

    @property
    def is_of_network(self) -> bool:
        """Whether it is a weight of a deep kernel's network."""
        return self.name.startswith("kernel.net.")

    def support_of(self, stored: Tensor) -> Tensor:
        """Values on its own support of values as a state holds them, of any leading shape."""
        if self.name.startswith("log_unknowns."):
            return stored.exp()
        return natural(self.module, self.own_name, stored)


def counts_in_units(checkpoint: Checkpoint | None) -> bool:
    """Whether a fit that writes to this file counts in the data's units: not one that an earlier version began."""
    told = {} if checkpoint is None else checkpoint.told()
    return not told or COUNTED in told or COUNTED in told.get("model", "")


class HyperparameterVector:
    """All learnable parameters of a built process.

    Attributes:
        process: Whose they are.
        units: The data's.
        counts: Whether those that are no logarithms are held in these units. Fits of earlier versions, which a
            checkpoint may go on with, held them in the units of x and y.
        leaves: In order.
        start: The first start, by name.
        widths: Spread of the weak prior of each leaf, as stored.
    """

    def __init__(self, process: FunctionPrior, units: Units, *, counts: bool = True) -> None:
        self.process, self.units, self.counts = process, units, counts
        if counts:
            process.count(units)
        self.leaves = [
            Leaf(name, module.get_parameter(own), module, own, told) for name, module, own, told in declared(process)
        ]
        with torch.no_grad():
            for leaf in self.leaves:
                _into_units(leaf, units, counts=counts)
        self.start = {leaf.name: leaf.value.detach().clone() for leaf in self.leaves}
        self.widths = {leaf.name: _width(leaf, units, counts=counts) for leaf in self.leaves}
        self._laws: dict[str, Any] = {}

    def start_by_network(self) -> dict[str, Tensor]:
        """The starts, where a deep kernel's network decides on them by the weights that it happens to have; else none.

        What it makes of the inputs has units of its own, in which other hyperparameters start.
        """
        return dict(self.start) if any(leaf.is_of_network for leaf in self.leaves) else {}

    def contents(self) -> dict[str, str]:
        """What no start shows, to tell fits apart by: the units in which slopes along the features are held."""
        slopes = any(leaf.told is not None and leaf.told.unit == "gradients" for leaf in self.leaves)
        return {"units of the features": digest({"": self.units.inputs})} if slopes and self.counts else {}

    def append(self, name: str, value: nn.Parameter) -> None:
        """Take in a parameter of no module, such as inducing points: without prior, bounds or further starts."""
        self.leaves.append(Leaf(name, value, nn.Module(), name, None))
        self.start[name] = value.detach().clone()

    def begin(self, number: int, seed: int) -> None:
        """Put the leaves at start number `number`; from the fourth on they are random."""
        noise = generator(seed, number)
        factor, share = STARTS[number] if number < len(STARTS) else _random_start(noise)
        with torch.no_grad():
            for leaf in self.leaves:
                leaf.value.copy_(self.start[leaf.name])
                if leaf.told is None:
                    if number and not leaf.is_of_network:
                        eps = torch.randn(leaf.value.shape, generator=noise, dtype=torch.float64)
                        leaf.value.add_(eps.to(leaf.value.device), alpha=FOREIGN_STEP)
                elif leaf.told.unit in ("inputs", "rates"):
                    leaf.value.add_(math.log(factor) if leaf.told.unit == "inputs" else -math.log(factor))
                elif leaf.told.unit == "noise":
                    leaf.value.add_(0.5 * math.log(share / NOISE_SHARE))

    def flat(self) -> Tensor:
        """All values, (P,)."""
        parts = [leaf.value.detach().reshape(-1) for leaf in self.leaves]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def put(self, values: Tensor) -> None:
        """The inverse of `flat`."""
        sizes = [leaf.value.numel() for leaf in self.leaves]
        with torch.no_grad():
            for leaf, part in zip(self.leaves, values.split(sizes), strict=True):
                leaf.value.copy_(part.view_as(leaf.value))

    def gradient(self) -> Tensor:
        """What a backward pass left in the leaves, (P,), which are then without."""
        parts = []
        for leaf in self.leaves:
            grad = leaf.value.grad
            parts.append((torch.zeros_like(leaf.value) if grad is None else grad).reshape(-1).detach())
            leaf.value.grad = None
        return torch.cat(parts)

    def bounds(self) -> list[tuple[float | None, float | None]]:
        """Of each entry of `flat`: an optimiser that leaves them would overflow."""
        found: list[tuple[float | None, float | None]] = []
        for leaf in self.leaves:
            centre = self.start[leaf.name].reshape(-1).tolist()
            below = NOISE_REACH if leaf.told is not None and leaf.told.unit == "noise" else REACH
            found += [(at - below, at + REACH) if leaf.is_logarithm else (None, None) for at in centre]
        return found

    def log_penalty(self) -> Tensor:
        """log density, on their own support, of those that have a prior, in nats."""
        terms: list[Tensor] = [
            self._law(leaf).log_prob(leaf.support_of(leaf.value))
            for leaf in self.leaves
            if leaf.told is not None and leaf.told.prior is not None
        ]
        return torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64)

    def log_prior(self) -> Tensor:
        """log density of all of them as they are stored, the Jacobian inside, in nats.

        What has no prior has a weak one: a normal law of width 1.5 around its start, of the logarithm where it is
        positive; that of a mean's level at the centre of the inputs is as wide as the targets are.
        """
        terms: list[Tensor] = []
        for leaf in self.leaves:
            if leaf.told is not None and leaf.told.prior is not None:
                value = leaf.support_of(leaf.value)
                terms.append(self._law(leaf).log_prob(value) + leaf.value.sum())  # value = exp(stored)
            else:
                law: Any = torch.distributions.Normal(self.start[leaf.name], self.widths[leaf.name])
                terms.append(law.log_prob(leaf.value).sum())
        return torch.stack(terms).sum()

    def _law(self, leaf: Leaf) -> Any:
        """The prior of one that has some: made once, for it is asked at every step."""
        if leaf.name not in self._laws:
            self._laws[leaf.name] = leaf.told.prior.distribution(leaf.value.detach())  # type: ignore[union-attr]
        return self._laws[leaf.name]

    def values(self) -> dict[str, Tensor]:
        """Where they are, on their own support, in units of x and y, by name."""
        state = self.process.natural({leaf.name: leaf.value.detach() for leaf in self.leaves})
        return {leaf.name: leaf.support_of(state[leaf.name]) for leaf in self.leaves}

    def draw_prior(self, seed: int) -> None:
        """Put the leaves at a draw from `log_prior`'s law."""
        for place, leaf in enumerate(self.leaves):
            with torch.no_grad(), isolated(seed, place):
                if leaf.told is not None and leaf.told.prior is not None:
                    leaf.value.copy_(leaf.told.prior.distribution(leaf.value).sample().log())
                else:
                    leaf.value.copy_(torch.normal(self.start[leaf.name], self.widths[leaf.name]))


def _into_units(leaf: Leaf, units: Units, *, counts: bool) -> None:
    """Move the built value into the data's units; what has a prior starts at about its median.

    A mean that counts in these units is there already.
    """
    told, value = leaf.told, leaf.value.detach()  # in place, of the same memory
    if told is None:
        return
    if told.prior is not None:
        with isolated(0):
            value.fill_(told.prior.entry(value.cpu()).sample((NUM_FOR_MEDIAN,)).median().log())
        return
    columns = getattr(leaf.module, "active_dims", None)
    inputs, square = (
        part if columns is None else part[columns.to(part.device)] for part in (units.inputs, units.square)
    )
    if told.unit in ("inputs", "rates"):
        spread = inputs if value.shape[-1] == len(inputs) else inputs.square().mean().sqrt()
        value.add_(spread.log() if told.unit == "inputs" else -spread.log())
    elif told.unit == "targets":
        value.add_(_per_output(units.variance, value).log())
    elif told.unit == "factors":
        num_inputs = leaf.module.get_parameter("raw_mixture_means").shape[-1]
        value.add_(_per_output(units.variance, value).log() / num_inputs)
    elif told.unit == "slopes":
        size = square if value.shape[-1] == len(square) else square.sum()
        value.add_((_per_output(units.variance, value) / size).log())
    elif told.unit == "location" and not counts:
        value.add_(units.location.reshape(-1, *[1] * (value.ndim - 1)))
    elif told.unit == "noise":
        value.copy_(0.5 * (NOISE_SHARE * _per_output(units.variance, value)).log())


def _per_output(variance: Tensor, value: Tensor) -> Tensor:
    """(C,) in the shape of a parameter, whose first dimension is C, or 1 where outputs share it."""
    if value.ndim == 0 or value.shape[0] != len(variance):
        return variance.mean()
    return variance.reshape(-1, *[1] * (value.ndim - 1))


def _width(leaf: Leaf, units: Units, *, counts: bool) -> Tensor:
    if leaf.told is None or leaf.is_logarithm:
        return torch.full_like(leaf.value.detach(), WEAK)
    if counts:
        return torch.ones_like(leaf.value.detach())
    scale = units.variance.sqrt().reshape(-1, *[1] * (leaf.value.ndim - 1))
    if leaf.told.unit == "gradients":
        scale = scale / units.inputs[:, None]
    return scale.expand_as(leaf.value).clone()


def _random_start(noise: torch.Generator) -> tuple[float, float]:
    first, second = torch.rand(2, generator=noise, dtype=torch.float64).tolist()
    return 10 ** (2 * first - 1), 10 ** (-3 * second)
