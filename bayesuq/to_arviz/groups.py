"""A posterior for ArviZ: what a method tells of its draws, made into the groups that ArviZ's users expect.

A draw is a set of weights, and so a function of x. Under permutations of its units a network has many sets of weights
for one function, which is why the functions' values come first: E[y* | x, draw] at every point is a variable of its
own, `mu` for real targets and counts, `p` for class probabilities, beside the weights.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count, to_tensor
from bayesuq.inputs import Inputs, checked, named_leaves
from bayesuq.predictive.base import PredictiveDistribution, RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.randomness import derive_seed, resolve_seed
from bayesuq.to_arviz.container import Array, Attributes, Container, Variable, build

OBSERVED = "y"
Y_DRAWS, PRIOR, PRIOR_Y_DRAWS = range(3)  # what the seed is split into
Predict = Callable[[Any], PredictiveDistribution]


@runtime_checkable
class MarkovChains(Protocol):
    """A posterior whose members are the draws of chains, one chain after another.

    Attributes:
        num_chains: C.
        statistics: Of each draw, (C, D), by ArviZ's names.
        warmup_statistics: Of the warm-up, (C, W).
    """

    num_chains: int
    statistics: Mapping[str, Tensor]
    warmup_statistics: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Wanted:
    """What `to_arviz` was asked for, checked.

    Attributes:
        x: Inputs of observed rows, (N, ...), or None.
        y: Their targets, or None.
        new_x: Inputs of further rows, or None.
        num_samples: Draws at most; None leaves it to the posterior.
        seed: Of all draws.
        num_prior_samples: Draws from the prior; 0 for none.
        include_weights: Whether the draws of the weights are told, too.
    """

    x: Inputs | None
    y: ArrayLike | None
    new_x: Inputs | None
    num_samples: int | None
    seed: int
    num_prior_samples: int
    include_weights: bool

    @classmethod
    def of(
        cls,
        x: ArrayLike | None,
        y: ArrayLike | None,
        *,
        new_x: ArrayLike | None,
        num_samples: int | None,
        seed: int | None,
        num_prior_samples: int,
        include_weights: bool,
    ) -> "Wanted":
        """Check the arguments of `Posterior.to_arviz`; its errors are told there."""
        if y is not None and x is None:
            raise ValueError("`y` needs the inputs that it was observed at; pass `x`, too.")
        if y is None and x is not None:
            if new_x is not None:
                raise ValueError("`x` without `y` are new inputs, as `new_x` are; pass one of the two.")
            x, new_x = None, x
        if num_samples is not None:
            check_count(num_samples, "num_samples")
        check_count(num_prior_samples, "num_prior_samples", minimum=0)
        observed, new = (None if each is None else checked(each) for each in (x, new_x))
        return cls(observed, y, new, num_samples, resolve_seed(seed), num_prior_samples, include_weights)


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawn:
    """S draws of a posterior, and of its prior.

    Attributes:
        method: The posterior's class.
        weights: Every site at each draw, (S, ...); empty where no set of weights goes with a draw.
        predict: From inputs to the predictive of these draws, in the same order, each of them kept.
        prior: From a number and a seed to as many draws of the random sites.
        prior_predict: From inputs, a number and a seed to the predictive of these draws of the prior.
        points: Parameters that have one value, on their own support, (1, ...), such as a process' lengthscales.
        num_chains: C, whose draws stand one after another; None where draws are independent.
        statistics: Of each draw of chains, (C, D).
        warmup_statistics: Of the warm-up, (C, W).
        sites: Names of what is observed; where there are several, both predictives take one of them as `site`.
    """

    method: str
    weights: Mapping[str, Tensor]
    predict: Callable[..., PredictiveDistribution]
    prior: Callable[[int, int], Mapping[str, Tensor]]
    prior_predict: Callable[..., PredictiveDistribution]
    points: Mapping[str, Tensor] = field(default_factory=dict)
    num_chains: int | None = None
    statistics: Mapping[str, Tensor] | None = None
    warmup_statistics: Mapping[str, Tensor] | None = None
    sites: tuple[str, ...] = (OBSERVED,)

    def named(self) -> dict[str, dict[str, str]]:
        """The sites, each with what its predictive is asked for by."""
        return {site: {"site": site} if len(self.sites) > 1 else {} for site in self.sites}


def number_of_draws(posterior: Any, num_samples: int | None) -> int | None:
    """What to ask a posterior for, so that all of its chains stay equally long; at least one draw of each."""
    if num_samples is None or not isinstance(posterior, MarkovChains):
        return num_samples
    return max(1, num_samples // posterior.num_chains) * posterior.num_chains


def chain_facts(posterior: Any, num_samples: int | None) -> dict[str, Any]:
    """The fields of `Drawn` that chains have, thinned as their draws are; none of another posterior."""
    if not isinstance(posterior, MarkovChains):
        return {}
    count = posterior.num_chains
    statistics = posterior.statistics
    if num_samples is not None and statistics:
        length = next(iter(statistics.values())).shape[1]
        kept = min(length, num_samples // count)
        # The draws that an even thinning of all members takes are those of an even thinning of each chain.
        chosen = [(2 * place + 1) * length // (2 * kept) for place in range(kept)]
        statistics = {name: values[:, chosen] for name, values in statistics.items()}
    return {"num_chains": count, "statistics": statistics, "warmup_statistics": posterior.warmup_statistics}


def export(drawn: Drawn, wanted: Wanted) -> Container:
    """The groups of `Posterior.to_arviz`, and what they are marked with."""
    groups: dict[str, dict[str, Variable]] = {"posterior": {}}
    chains = drawn.num_chains or 1
    if wanted.include_weights:
        groups["posterior"] |= {name: _site(name, draws, chains) for name, draws in drawn.weights.items()}
    marks = {"function_values": ""}
    taken = set(drawn.weights)
    if wanted.x is not None and wanted.y is not None:
        for names in ("posterior_predictive", "log_likelihood", "observed_data"):
            groups[names] = {}
        for place, (site, option) in enumerate(drawn.named().items()):
            predictive, y = drawn.predict(wanted.x, **option), _targets_of(wanted.y, place, len(drawn.sites))
            function = _function_values(predictive, chains, taken=taken, site=site, several=len(drawn.sites) > 1)
            groups["posterior"] |= function
            marks["function_values"] = marks["function_values"] or f"posterior/{next(iter(function))}"
            seed = derive_seed(wanted.seed, Y_DRAWS, 0, *([place] if place else []))
            groups["posterior_predictive"][site] = _y_draws(predictive, chains, seed, site)
            groups["log_likelihood"][site] = _log_likelihood(predictive, y, chains, site)
            groups["observed_data"][site] = _observed(predictive, y, site)
        groups["constant_data"] = _inputs(wanted.x)
    if wanted.new_x is not None:
        groups["predictions"], marks["function_values"] = {}, ""
        for place, (site, option) in enumerate(drawn.named().items()):
            predictive = drawn.predict(wanted.new_x, **option)
            function = _function_values(predictive, chains, taken=set(), site=site, several=len(drawn.sites) > 1)
            seed = derive_seed(wanted.seed, Y_DRAWS, 1, *([place] if place else []))
            groups["predictions"] |= {site: _y_draws(predictive, chains, seed, site)} | function
            marks["function_values"] = marks["function_values"] or f"predictions/{next(iter(function))}"
        groups["predictions_constant_data"] = _inputs(wanted.new_x)
    if not any(groups.values()):
        raise ValueError(f"Nothing of a {drawn.method} can be told without inputs: its draws are no sets of weights.")
    groups |= _statistics(drawn) | _prior(drawn, wanted)
    if drawn.points:  # one value each, of which no draw says more
        marks["hyperparameters"] = json.dumps({name: value[0].tolist() for name, value in drawn.points.items()})
    return build(groups, attributes={**_attributes(drawn, wanted), **marks})


def _attributes(drawn: Drawn, wanted: Wanted) -> Attributes:
    independent = drawn.num_chains is None
    return {
        "method": drawn.method,
        "sampler": "independent draws" if independent else "markov chains",
        "independent_draws": int(independent),
        "seed": wanted.seed,
    }


def _site(name: str, draws: Tensor, chains: int) -> Variable:
    dims = tuple(f"{name}_dim_{place}" for place in range(draws.ndim - 1))
    return Variable.of_draws(_numbers(draws), chains, dims)


def _targets_of(y: ArrayLike, place: int, number: int) -> ArrayLike:
    """The targets of one site: its column, where several sites share them."""
    return y if number == 1 else to_tensor(y, "y")[:, place]


def _function_values(
    predictive: PredictiveDistribution,
    chains: int,
    *,
    taken: set[str],
    site: str = OBSERVED,
    several: bool = False,
) -> dict[str, Variable]:
    """E[y* | x, draw], under a name that no site has."""
    places: dict[str, Sequence[str]] = {}
    if isinstance(predictive, CategoricalPredictive):
        name, values, kind = "p", _numbers(predictive.samples), "class"
        places = {} if predictive.names is None else {kind: predictive.names}
    elif isinstance(predictive, RealPredictive):
        name, values, kind = "mu", _one_column(_numbers(predictive.component_means)), "output"
    else:
        raise TypeError(f"ArviZ is told of labels, real targets and counts; got a {type(predictive).__name__}.")
    dims = ("point", kind, *_further(site, values.ndim - 3))[: values.ndim - 1]
    plain = name not in taken and not several
    return {name if plain else f"{site}_{name}": Variable.of_draws(values, chains, dims, places)}


def _y_draws(predictive: PredictiveDistribution, chains: int, seed: int, site: str = OBSERVED) -> Variable:
    """One y* from each draw."""
    values = _targets(predictive, predictive.component_sample(seed=seed))
    return Variable.of_draws(values, chains, _target_dims(predictive, values.ndim - 1, site))


def _log_likelihood(predictive: PredictiveDistribution, y: ArrayLike, chains: int, site: str) -> Variable:
    values = _numbers(predictive.component_log_prob(y))
    return Variable.of_draws(values, chains, ("point", *_further(site, values.ndim - 2)))


def _observed(predictive: Any, y: ArrayLike, site: str) -> Variable:
    checked = predictive.labels(y) if isinstance(predictive, CategoricalPredictive) else predictive.targets(y)
    values = _targets(predictive, checked.unsqueeze(0))[0]
    return Variable(values, _target_dims(predictive, values.ndim, site))


def _targets(predictive: PredictiveDistribution, values: Tensor) -> Array:
    """Of (S, N, D), a single column without its dimension, as the log likelihood has none."""
    numbers = _numbers(values)
    return numbers if isinstance(predictive, CategoricalPredictive) else _one_column(numbers)


def _target_dims(predictive: PredictiveDistribution, ndim: int, site: str) -> tuple[str, ...]:
    further = _further(site, ndim - 1) if isinstance(predictive, CategoricalPredictive) else ("output",)
    return ("point", *further)[:ndim]


def _inputs(x: Inputs) -> dict[str, Variable]:
    """Each part under its name."""
    if isinstance(x, Tensor) and x.ndim == 2:
        return {"x": Variable(_numbers(x), ("point", "feature"))}
    leaves = named_leaves(x).items()
    return {name: Variable(_numbers(leaf), ("point", *_further(name, leaf.ndim - 1))) for name, leaf in leaves}


def _further(name: str, number: int) -> tuple[str, ...]:
    """Names for the dimensions of an image."""
    return tuple(f"{name}_dim_{place}" for place in range(1, number + 1))


def _one_column(values: Array) -> Array:
    return values[..., 0] if values.shape[-1] == 1 else values


def _numbers(values: Tensor) -> Array:
    return np.ascontiguousarray(values.detach().cpu().numpy())


def _statistics(drawn: Drawn) -> dict[str, dict[str, Variable]]:
    given = {"sample_stats": drawn.statistics, "warmup_sample_stats": drawn.warmup_statistics}
    return {
        group: {name: Variable(_numbers(values), ("chain", "draw")) for name, values in statistics.items()}
        for group, statistics in given.items()
        if statistics
    }


def _prior(drawn: Drawn, wanted: Wanted) -> dict[str, dict[str, Variable]]:
    number, seed = wanted.num_prior_samples, derive_seed(wanted.seed, PRIOR)
    if number == 0:
        return {}
    groups: dict[str, dict[str, Variable]] = {"prior": {}}
    if wanted.include_weights:
        try:
            draws = drawn.prior(number, seed)
        except ValueError as error:  # a flat prior has none
            warnings.warn(f"There are no draws of the prior: {error}", UserWarning, stacklevel=4)
            return {}
        groups["prior"] = {name: _site(name, values, 1) for name, values in draws.items()}
    x = wanted.x if wanted.x is not None else wanted.new_x
    for place, (site, option) in enumerate(drawn.named().items() if x is not None else ()):
        try:
            predictive = drawn.prior_predict(x, number, seed, **option)
        except ValueError as error:  # a wide prior over many weights can give functions that no float holds
            warnings.warn(f"There is no prior predictive: {error}", UserWarning, stacklevel=4)
            return groups
        several = len(drawn.sites) > 1
        groups["prior"] |= _function_values(predictive, 1, taken=set(drawn.weights), site=site, several=several)
        key = derive_seed(wanted.seed, PRIOR_Y_DRAWS, *([place] if place else []))
        groups.setdefault("prior_predictive", {})[site] = _y_draws(predictive, 1, key, site)
    return groups
