"""A fully Bayesian Gaussian process: exact posteriors at draws of the hyperparameters.

    p(y* | x*, D) = int p(y* | x*, D, h) p(h | D) dh,      p(h | D) ~ p(y | x, h) p(h)

Reference:
    Lalchand & Rasmussen 2020, Approximate Inference for Fully Bayesian Gaussian Process Regression.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.functions import Functions
from bayesuq.inference.gp.exact import ExactGpPosterior, condition
from bayesuq.inference.gp.hyperparameters import HyperparameterVector
from bayesuq.inference.gp.marginal_likelihood import Observations, hyperparameters_of
from bayesuq.inference.gp.posterior import draw_from
from bayesuq.inference.gp.saving import ProcessPosterior
from bayesuq.inference.posteriors.prediction import differentiated, draw_indices, mixed
from bayesuq.inference.training.history import UNTRAINED
from bayesuq.models.gp.process import FunctionPrior, GaussianProcess
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.randomness import derive_seed, resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted, chain_facts, number_of_draws
from bayesuq.windows import WindowOptions, refuse_windows

CACHED = 2**27  # numbers in Cholesky factors that a posterior keeps between predictions: a gibibyte


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SampledGpPosterior(ProcessPosterior):
    """Exact posteriors over functions at draws of the hyperparameters: a mixture of Gaussians.

    Attributes:
        model: The prior over functions and the likelihood.
        hyperparameters: Draws of each as it is stored, by name, (C, D, *shape) for C chains of D draws; of a deep
            kernel also what its network sees the inputs in, which all draws share.
        x: Inputs that it was fitted to, (N, ...).
        y: Their targets, one row for each output.
        weight: Of the rows, (N,), or of the targets, one row for each output.
        statistics: Of each draw, (C, D), by ArviZ's names.
        warmup_statistics: The same of the warm-up, (C, W).
    """

    model: GaussianProcess
    hyperparameters: Mapping[str, Tensor]
    x: Tensor
    y: Tensor
    weight: Tensor
    statistics: Mapping[str, Tensor]
    warmup_statistics: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        self.member(0)  # refuses another model's hyperparameters

    def __repr__(self) -> str:
        return f"SampledGpPosterior({self.num_chains} chains, {self.num_members} draws, on {self.device})"

    @property
    def num_chains(self) -> int:
        """C."""
        return len(next(iter(self.hyperparameters.values())))

    @property
    def num_members(self) -> int:
        """C D."""
        return self.num_chains * next(iter(self.hyperparameters.values())).shape[1]

    @property
    def num_divergences(self) -> int:
        """Draws whose trajectories diverged."""
        return int(self.statistics["diverging"].sum())

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.x.device

    @cached_property
    def _kept(self) -> dict[int, ExactGpPosterior]:
        return {}

    def member(self, index: int) -> ExactGpPosterior:
        """The exact posterior at draw number `index`, in the order of the chains, one after another."""
        found = self._kept.get(index)
        if found is None:
            prior = self._prior(index)
            found = condition(self.model, prior, self._data, math.nan, UNTRAINED, "exact")
            if self.num_members * len(self.x) ** 2 * len(self.y) <= CACHED:
                self._kept[index] = found
        return found

    @property
    def _data(self) -> Observations:
        return Observations(self.x, self.y, self.weight)

    def _prior(self, index: int) -> FunctionPrior:
        """The built process at draw number `index`."""
        prior = self.model.build(self.x, len(self.y))
        drawn = {name: v[divmod(index, v.shape[1])] for name, v in self.hyperparameters.items()}
        return prior.load(prior.state() | drawn)

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
        """The mixture over draws of the hyperparameters: see `Posterior.predict`."""
        refuse_windows(self, windows)
        x, indices, key = self.by_name(x), draw_indices(num_samples, self.num_members), resolve_seed(seed)
        parts = (self.member(index).predict(x, seed=key, keep_samples=keep_samples) for index in indices)
        with differentiated(x, differentiable=differentiable):
            return mixed(parts, keep_samples=keep_samples)

    def sample_functions(self, x: ArrayLike, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Joint draws of f, each at a draw of the hyperparameters of its own: see `GpPosterior.sample_functions`."""
        x, key = self.by_name(x), resolve_seed(seed)
        check_count(num_samples, "num_samples")
        chosen = [(2 * s + 1) * self.num_members // (2 * num_samples) for s in range(num_samples)]
        draws = [
            self.member(index).sample_functions(x, 1, seed=derive_seed(key, place))
            for place, index in enumerate(chosen)
        ]
        return torch.cat(draws)

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Joint draws, each at a draw of the hyperparameters of its own: see `Posterior.functions`."""
        x, indices, key = self.by_name(x), draw_indices(num_samples, self.num_members), resolve_seed(seed)
        with differentiated(x, differentiable=differentiable):
            found = [
                self.member(index).functions(x, num_samples=1, seed=derive_seed(key, place))
                for place, index in enumerate(indices)
            ]
        return Functions(torch.cat([one.draws for one in found]), torch.stack([one.mean for one in found]).mean(dim=0))

    def sample_weights(self, num_samples: int | None = None, *, seed: int | None = None) -> dict[str, Tensor]:  # noqa: ARG002
        """Draws of the hyperparameters on their own support, by name, (S, *shape); stored ones, whatever the seed."""
        indices = list(draw_indices(num_samples, self.num_members))
        leaves = {leaf.name: leaf for leaf in self._vector().leaves}
        drawn = {name: draws.flatten(0, 1)[indices] for name, draws in self.hyperparameters.items() if name in leaves}
        return {leaves[name].site: leaves[name].support_of(draws) for name, draws in drawn.items()}

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: the hyperparameters on their own support, and the mixture's components."""
        number = number_of_draws(self, wanted.num_samples)

        def predict(x: Tensor) -> PredictiveDistribution:
            return self.predict(x, num_samples=number, seed=wanted.seed, keep_samples=True)

        return Drawn(
            method=type(self).__name__,
            weights=self.sample_weights(number),
            predict=predict,
            prior=self._prior_draws,
            prior_predict=self._prior_predict,
            **chain_facts(self, number),
        )

    def _vector(self) -> HyperparameterVector:
        """The hyperparameters with their prior, at its centre."""
        prior, drawn = self.model.build(self.x, len(self.y)), self._prior(0)
        return hyperparameters_of(self.model, prior.load(prior.state() | drawn.input_units()), self._data)

    def _prior_draws(self, number: int, seed: int) -> dict[str, Tensor]:
        """Draws from the prior over hyperparameters, by the names of `sample_weights`."""
        vector = self._vector()
        sites = {leaf.name: leaf.site for leaf in vector.leaves}
        told: dict[str, list[Tensor]] = {}
        for index in range(number):
            vector.draw_prior(derive_seed(seed, index))
            for name, value in vector.values().items():
                told.setdefault(sites[name], []).append(value.clone())
        return {name: torch.stack(values) for name, values in told.items()}

    def _prior_predict(self, x: Tensor, number: int, seed: int) -> PredictiveDistribution:
        """The predictive of functions from the prior, at hyperparameters from theirs."""
        vector, parts = self._vector(), []
        prior = vector.process
        for index in range(number):
            vector.draw_prior(derive_seed(seed, index))
            with torch.no_grad():
                f = draw_from(prior, self.member(0).cast(x), 1, derive_seed(seed, index, 1))
                parts.append(self.model.likelihood.given(prior.unknowns()).predictive(f).to(x.device))
        return mixed(parts)
