"""Sequential updating: yesterday's posterior as today's prior.

    p(theta | D_1, D_2) is proportional to p(D_2 | theta) p(theta | D_1), and q_1(theta) stands for p(theta | D_1)

A factorised normal q_1 becomes a normal prior of its own for every weight, so that the divergence of the next fit stays
in closed form. What q_1 leaves out (correlations, above all) is lost at every step.

Reference:
    Nguyen et al. 2018, Variational Continual Learning, eq. (2), without coresets.
"""

import copy
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor, nn

from bayesuq.inference.posteriors.network import NetworkPosterior, NormalMarginals
from bayesuq.models.bnn import LIKELIHOOD, BayesianNetwork
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.priors import EntrywiseNormal, LogNormal, Prior
from bayesuq.models.rules import Rule

__all__ = ["updated_model"]
__dir__ = __all__.copy


def updated_model(posterior: NetworkPosterior) -> BayesianNetwork:
    """The model whose prior is a fitted posterior, for the next data; its network starts at the posterior's means.

    What the likelihood infers (a noise scale) gets a log-normal prior, what it or the network learns as point values
    starts where it ended, and BatchNorm's statistics are those of the fit. Let a variational fit start its scales at
    the new prior's: `guide=functools.partial(variational.mean_field, initial_scale=1.0)`.

    Args:
        posterior: From `variational.fit` with the mean-field guide, or from `laplace.fit(structure="diagonal")` of all
            random weights; or one of your own whose `marginals` are such a law.

    Raises:
        TypeError: A posterior that is no factorised normal law.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.inference import variational
        >>> from bayesuq.models import likelihoods, networks, priors
        >>> model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
        >>> monday = variational.fit(model, Dataset([[0.0], [1.0]], [0.0, 1.0]), num_epochs=500, seed=0)
        >>> tuesday = variational.fit(updated_model(monday), Dataset([[2.0]], [2.1]), num_epochs=500, seed=0)
        >>> bool((tuesday.scale < monday.scale).all())
        True
    """
    law = posterior.marginals() if isinstance(posterior, NetworkPosterior) else None
    if law is None:
        raise TypeError(
            "`posterior` must be a factorised normal law of all random sites, from `variational.fit` with the "
            f"mean-field guide or `laplace.fit(structure='diagonal')`; got {type(posterior).__name__}."
        )
    model = posterior.model
    prior: dict[Rule, Prior] = {
        name: EntrywiseNormal(loc.clone(), law.scale[name].clone())
        for name, loc in law.loc.items()
        if not name.startswith(LIKELIHOOD)
    }
    net = _at(model, law.theta, posterior.buffers)
    return BayesianNetwork(net, prior, _continued(model.likelihood, law), random=model.random)


def _continued(likelihood: Likelihood, law: NormalMarginals) -> Likelihood:
    """The likelihood with log-normal priors for what it infers, starting where it ended."""
    options = {field.name for field in fields(likelihood)}  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, unknown in likelihood.unknowns.items():
        if isinstance(unknown.initial, tuple) and unknown.prior is not None:
            raise ValueError(
                "A noise scale for each column cannot be continued: its columns have several posteriors and the next "
                "prior is one. Use scale='learned', or one scale for all columns."
            )
        if f"initial_{name}" in options:
            changes[f"initial_{name}"] = _plain(law.theta[LIKELIHOOD + name])
        if unknown.prior is not None:  # its unconstrained value is its logarithm
            changes[name] = LogNormal(float(law.loc[LIKELIHOOD + name]), float(law.scale[LIKELIHOOD + name]))
    return replace(likelihood, **changes) if changes else likelihood  # type: ignore[type-var]


def _plain(value: Tensor) -> float | tuple[float, ...]:
    return tuple(value.tolist()) if value.ndim else float(value)


def _at(model: BayesianNetwork, theta: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> nn.Module:
    """A network of its own at these weights and buffers."""
    net = copy.deepcopy(model.net)
    weights = {name: value for name, value in theta.items() if not name.startswith(LIKELIHOOD)}
    net.load_state_dict({**weights, **buffers}, strict=False)
    return net
