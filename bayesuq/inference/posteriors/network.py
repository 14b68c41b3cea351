"""What posteriors share that are frozen dataclasses of a model, tensors and plain values: they move, and are saved."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor

from bayesuq.columns import ordered
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors.packing import move, save, within
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.rules import trainable_parameters
from bayesuq.posterior import Posterior


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class StoredPosterior(Posterior):
    """A posterior that is no more than its fields, of the kinds that `bayesuq.inference.posteriors.packing` knows.

    Attributes:
        feature_names: Of the columns that were fitted, where they came as a data frame; else None.
    """

    feature_names: tuple[str, ...] | None = None

    def by_name(self, x: Any) -> Any:
        """Inputs, or a Dataset, in the fitted order of columns, here or in what it is made of: see `Posterior`."""
        if isinstance(x, Tensor):  # whose columns have no names
            return x
        if self.feature_names is None:
            inner = next(within(self), None)
            return x if inner is None else inner.by_name(x)
        return ordered(x, self.feature_names)

    def as_fitted(self, x: Any) -> Any:
        """Inputs as the first posterior that it is made of, or stands on, was fitted to them: see `Posterior`."""
        inner = next(within(self), None)
        return self.by_name(x) if inner is None else inner.as_fitted(self.by_name(x))

    def to(self, device: torch.device | str) -> Self:
        """The same posterior on another device."""
        return move(self, device)

    def save(self, path: "str | PathLike[str]") -> None:
        """Write it to one file: see `Posterior.save`."""
        self.save_around(self, path)

    def save_around(self, outer: Posterior, path: "str | PathLike[str]") -> None:
        """Write a posterior that stands on this one, with the model of this one."""
        save(outer, path)


@dataclass(frozen=True, eq=False)
class NormalMarginals:
    """A factorised normal law of all random sites.

    Attributes:
        theta: Every site at the law's mean, by name, on its own support.
        loc: Means of each random site, by name, on the unconstrained scale.
        scale: Standard deviations, likewise.
    """

    theta: Mapping[str, Tensor]
    loc: Mapping[str, Tensor]
    scale: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: BayesianNetwork, values: Tensor, scale: Tensor) -> "NormalMarginals":
        """From flat vectors: the means of every site, (P,), and deviations of the random ones, (R,)."""
        layout = Layout.of(model)
        places = {name: where for name, where in layout.slices().items() if name in model.laws}
        loc, scales = (
            {name: flat[where].view(layout.shapes[name]) for name, where in places.items()} for flat in (values, scale)
        )
        return cls(layout.split(values), loc, scales)


class NetworkPosterior(StoredPosterior):
    """A posterior over one network, whatever is random in it.

    Attributes:
        model: The joint density.
        buffers: The network's buffers as trained.
    """

    model: BayesianNetwork
    buffers: Mapping[str, Tensor]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    def facts(self) -> dict[str, str]:
        """What a notebook shows of it, by name."""
        return model_facts(self.model) | super().facts()

    @property
    def likelihood(self) -> Likelihood:
        """That of the model, which may have unknowns that each draw gives a value."""
        return self.model.likelihood

    def marginals(self) -> NormalMarginals | None:
        """The law itself where it is a factorised normal one, as a next model's prior can be; by default None."""
        return None


def at_values(posterior: NetworkPosterior | None) -> dict[str, Tensor] | None:
    """Every site, by name, of a posterior with one flat vector of `values`; None of any other."""
    values = getattr(posterior, "values", None)
    return Layout.of(posterior.model).split(values) if posterior is not None and isinstance(values, Tensor) else None


def check_same_sites(posterior: NetworkPosterior, model: BayesianNetwork, option: str) -> None:
    """Refuse a posterior of another model, by the names and shapes of all sites.

    Args:
        posterior: What was passed.
        model: That it must be one of.
        option: How it was passed.

    Raises:
        ValueError: They differ.
    """
    if Layout.of(posterior.model).shapes != Layout.of(model).shapes:
        raise ValueError(f"`{option}` must be of the same model: names or shapes of its sites differ. Fit it again.")


def model_facts(model: BayesianNetwork) -> dict[str, str]:
    """What a notebook shows of a network with its prior and likelihood, by name."""
    weights = trainable_parameters(model.net)
    return {
        "network": type(model.net).__name__,
        "random weights": f"{sum(weights[name].numel() for name in weights if name in model.laws):,}",
        "prior": repr(model.prior),
        "likelihood": repr(model.likelihood),
    }


def over_network(posterior: Posterior) -> NetworkPosterior | None:
    """The posterior itself where it is one over a network, else the first one that it is made of or stands on."""
    if isinstance(posterior, NetworkPosterior):
        return posterior
    return next((inner for inner in within(posterior) if isinstance(inner, NetworkPosterior)), None)
