"""The one forward pass over S draws of the weights.

A `WeightPosterior` is any posterior that can name draws of the flat vector; predicting with it is written here, once:

    draws (S, P) -> named weights (S, ...) -> f (S, N, C, ...) -> likelihood.predictive(f)

Draws are made anew in each call: a posterior over half a million weights makes as many normal numbers a draw, which
costs more than a pass of a hundred rows. `FixedDraws` are draws that are kept.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.gradients import are_kept
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.joint.perceptrons import forward_together, is_perceptron, num_outputs, widest
from bayesuq.inference.posteriors.network import NetworkPosterior
from bayesuq.inference.posteriors.one_pass import FEWEST_FOR_ONE_PASS, Beginning
from bayesuq.inference.posteriors.prediction import differentiated, draw_indices, predict_in_chunks
from bayesuq.inference.posteriors.prior import prior_of
from bayesuq.inputs import named_leaves
from bayesuq.models.attention import PlainAttention
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork, share_tensors
from bayesuq.models.precision import DEVICES, full_precision
from bayesuq.models.running import running_of
from bayesuq.models.spectral import with_exact_norms
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.randomness import resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted, chain_facts, number_of_draws
from bayesuq.windows import WindowOptions, Windows

VECTORISED_BUDGET = 2**21  # numbers in weights and activations that fit the cache: so many draws run together
LAYER_BUDGET = 2**18  # of them that the layers of a perceptron have at once, whose outputs alone are kept
FEWEST_TOGETHER = 4  # fewer gain less than stacking their weights costs


class WeightPosterior(NetworkPosterior):
    """A posterior approximation over weights: it names draws of the flat vector, and this class predicts with them."""

    is_mode: ClassVar[bool] = False  # whether it is the very weights that the buffers were trained with

    @property
    @abstractmethod
    def num_members(self) -> int | None:
        """M, the number of stored members; None where draws are without end."""

    @abstractmethod
    def draw(self, index: int, seed: int) -> Tensor:
        """The flat vector (P,) of draw number `index`; it depends on `index` and `seed` alone."""

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D): see `Posterior.predict`."""
        cut = Windows.of(windows)
        indices = draw_indices(num_samples, self.num_members)
        key = resolve_seed(seed)
        layout = Layout.of(self.model)
        tree = share_tensors(self.model.net)
        if not self.is_mode:
            with_exact_norms(tree)

        steady = [name for name in self.steady_sites() if not name.startswith(LIKELIHOOD)]
        has_steady = bool(steady) or not all(parameter.requires_grad for parameter in tree.parameters())

        def parts(rows: Tensor, start: int, width: int) -> Iterator[PredictiveDistribution]:  # noqa: ARG001
            held: dict[str, Tensor] = {}
            beginning = None
            together, first = _together(layout.size, len(rows) * width), 0
            if has_steady and len(indices) >= FEWEST_FOR_ONE_PASS and cut is None:
                theta = self._sites(indices[:1], key, layout)
                held = {name: theta.pop(name)[0] for name in steady}
                leaves = [*named_leaves(rows).values(), *tree.parameters(), *tree.buffers(), *self.buffers.values()]
                run = partial(self._outputs, theta, rows, tree, held)
                beginning, f = Beginning.of(run, [*leaves, *held.values()])
                yield self.model.likelihood_given(theta).predictive(f, keep_samples=keep_samples)
                first = 1
                if beginning.is_of_use:
                    moving = layout.size - sum(value.numel() for value in held.values())
                    together = max(together, _together(moving, beginning.num_varying))
            elif _runs_by_layers(tree, rows):
                together = max(1, VECTORISED_BUDGET // (layout.size + len(rows) * num_outputs(tree)))
            for number in range(first, len(indices), together):
                theta = self._moving(indices[number : number + together], key, layout, held)
                if cut is not None:
                    yield cut.whole(rows, partial(self._kept, theta, tree), keep_samples=keep_samples)
                    continue
                with beginning if beginning is not None and beginning.is_of_use else nullcontext():
                    f = self._outputs(theta, rows, tree, held)
                yield self.model.likelihood_given(theta).predictive(f, keep_samples=keep_samples)

        with differentiated(x, differentiable=differentiable):
            return predict_in_chunks(
                self.model, self.by_name(x), tree, parts, num_draws=len(indices), keep_samples=keep_samples, windows=cut
            )

    def steady_sites(self) -> Collection[str]:
        """Sites that have one value in all draws, as far as is known before they are drawn: by default point values."""
        return self.model.points

    def stored_sites(self) -> Mapping[str, Tensor]:
        """All members by site, (M, *shape), or (1, *shape) of one value for all; nothing where members are drawn."""
        return {}

    def fixed_draws(self, num_samples: int | None = None, *, seed: int | None = None) -> "WeightPosterior":
        """Some draws, kept: see `Posterior.fixed_draws`. What has one network is returned itself.

        O(S P) memory for the weights that are random, and one value of each other.
        """
        if self.is_mode:
            return self
        indices, key, layout = draw_indices(num_samples, self.num_members), resolve_seed(seed), Layout.of(self.model)
        steady = set(self.steady_sites())
        sites: dict[str, Tensor] = {}
        for place, index in enumerate(indices):
            for name, value in self._sites([index], key, layout).items():
                if name not in sites:
                    number = 1 if name in steady else len(indices)
                    sites[name] = value.new_empty(number, *value.shape[1:])
                if place == 0 or name not in steady:
                    sites[name][place] = value[0]
        return FixedDraws(model=self.model, sites=sites, buffers=self.buffers, feature_names=self.feature_names)

    def sample_weights(self, num_samples: int | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of every site by name, (S, ...), on its own support; parameters learned as point values repeat.

        Args:
            num_samples: S, as for `predict`.
            seed: As for `predict`; the same seed gives the same draws there.
        """
        indices = draw_indices(num_samples, self.num_members)
        key = resolve_seed(seed)
        theta = self._sites(indices, key, Layout.of(self.model))
        return {name: value.clone() for name, value in theta.items()} if self.stored_sites() else theta

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

    def _sites(self, indices: Sequence[int], seed: int, layout: Layout) -> dict[str, Tensor]:
        """Several draws by site, (S, *shape), on their own support; views of those that are stored."""
        stored = self.stored_sites()
        if not stored:
            return layout.split(self._draws(indices, seed))
        number = len(indices)
        taken: Any = slice(indices[0], indices[-1] + 1) if indices[-1] - indices[0] == number - 1 else list(indices)
        return {
            name: value.expand(number, *value.shape[1:]) if len(value) == 1 else value[taken]
            for name, value in stored.items()
        }

    def _moving(self, indices: Sequence[int], seed: int, layout: Layout, held: dict[str, Tensor]) -> dict[str, Tensor]:
        """Several draws, (S, *shape) by site, without those held; one that a draw moves is held no longer."""
        if not held or self.stored_sites():
            theta = self._sites(indices, seed, layout)
            return {name: value for name, value in theta.items() if name not in held}
        parts: dict[str, list[Tensor]] = {name: [] for name in layout.shapes if name not in held}
        for number, index in enumerate(indices):
            one = layout.split(self._draws([index], seed)[0])
            for name in [name for name, value in held.items() if not torch.equal(one[name], value)]:
                parts[name] = [held.pop(name)] * number
            for name, values in parts.items():
                values.append(one[name].clone())  # of the whole draw no more is kept
        return {name: torch.stack(values) for name, values in parts.items()}

    def _kept(self, theta: Mapping[str, Tensor], tree: nn.Module, rows: Tensor) -> PredictiveDistribution:
        """The predictive of draws (S, *shape) by site, which are kept in it."""
        return self.model.likelihood_given(theta).predictive(self._outputs(theta, rows, tree, {}), keep_samples=True)

    def _outputs(
        self, theta: Mapping[str, Tensor], rows: Tensor, tree: nn.Module, held: Mapping[str, Tensor]
    ) -> Tensor:
        """f (S, N, C, ...) at one chunk of rows, of draws of some sites and the one value of those held."""

        def run(one: Mapping[str, Tensor]) -> Tensor:
            return self.model.forward({**one, **held}, rows, net=tree, buffers=self.buffers)

        num_draws = len(next(iter(theta.values())))
        if num_draws > 1:
            if not held and _runs_by_layers(tree, rows):
                return _by_layers(tree, theta, rows)
            try:
                with (
                    PlainAttention() if are_kept() else nullcontext()
                ):  # fused layers do not see what asks for gradients
                    return torch.func.vmap(run)(dict(theta))
            except RuntimeError:  # a module that vmap cannot follow, such as one that branches on its values
                pass
            return torch.stack([run({name: value[s] for name, value in theta.items()}) for s in range(num_draws)])
        return run({name: value[0] for name, value in theta.items()}).unsqueeze(0)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class FixedDraws(WeightPosterior):
    """S networks that were drawn once, as a posterior of its own: what `fixed_draws` of another one gives.

    Attributes:
        model: The joint density.
        sites: Each site on its own support, (S, *shape), or (1, *shape) where all draws have one value.
        buffers: The network's buffers as trained.
    """

    model: BayesianNetwork
    sites: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]

    @property
    def num_members(self) -> int:
        """S."""
        return max(len(value) for value in self.sites.values())

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        return super().facts() | {"draws": f"{self.num_members:,}"}

    def draw(self, index: int, seed: int) -> Tensor:  # noqa: ARG002 - draws are stored
        """Draw number `index`, as it was made."""
        layout = Layout.of(self.model)
        return layout.join({name: value[min(index, len(value) - 1)] for name, value in self.sites.items()})

    def steady_sites(self) -> list[str]:
        """Those of one value."""
        return [name for name, value in self.sites.items() if len(value) == 1]

    def stored_sites(self) -> Mapping[str, Tensor]:
        """All draws."""
        return self.sites


def _together(num_weights: int, num_activations: int) -> int:
    """How many draws run together."""
    number = VECTORISED_BUDGET // (num_weights + num_activations)
    return number if number >= FEWEST_TOGETHER else 1


def _runs_by_layers(tree: nn.Module, rows: Any) -> bool:
    """Whether several draws run as batched matrix products, layer by layer, which vmap need not follow."""
    lowered = running_of(tree) is not None or any(torch.is_autocast_enabled(device) for device in DEVICES)
    return isinstance(rows, Tensor) and not lowered and is_perceptron(tree, rows)


def _by_layers(tree: nn.Module, theta: Mapping[str, Tensor], rows: Tensor) -> Tensor:
    """f (S, N, C) of draws of all sites, by a perceptron, as many draws at a time as its layers' outputs fit."""
    num_draws = len(next(iter(theta.values())))
    together = max(1, LAYER_BUDGET // (len(rows) * widest(tree)))
    if together >= num_draws:
        return forward_together(tree, theta, rows, num_draws)
    memory: dict[str, Tensor] = {}  # fetched once: to come from the system anew takes as long as a product
    parts = []
    for first in range(0, num_draws, together):
        some = {name: value[first : first + together] for name, value in theta.items()}
        f = forward_together(tree, some, rows, min(together, num_draws - first), memory)
        parts.append(f if f.requires_grad else f.clone())
    return torch.cat(parts)
