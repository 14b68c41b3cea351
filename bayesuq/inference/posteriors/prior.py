"""Draws from a network's prior, and the predictive of the functions that they are: what the model says before data."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.network_inputs import cast_inputs
from bayesuq.models.spectral import with_exact_norms
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.randomness import isolated


def prior_draws(model: BayesianNetwork, number: int, seed: int) -> dict[str, Tensor]:
    """Draws of every random site, (S, *shape), on its own support."""
    with isolated(seed):
        return {name: law.sample((number,)) for name, law in model.laws.items()}


def prior_predictive(
    model: BayesianNetwork,
    fitted: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    x: Tensor,
    number: int,
    seed: int,
) -> PredictiveDistribution:
    """The predictive of S draws from the prior, each kept; dropout layers are the identity.

    Args:
        model: The joint density.
        fitted: Draws of all sites of a posterior, (M, *shape): sites without a prior take its values, in turn.
        buffers: For the network's, as fitted.
        x: Inputs, (N, ...).
        number: S.
        seed: As for `prior_draws`, which gives the same draws.

    Raises:
        ValueError: The network does not take `x`; its outputs under a wide prior overflow.
    """
    rows, tree = cast_inputs(model, x), with_exact_norms(share_tensors(model.net))
    theta = prior_draws(model, number, seed)
    for name in model.points:
        theta[name] = fitted[name][torch.arange(number) % len(fitted[name])]
    with torch.no_grad():
        outputs = [
            model.forward({name: value[s] for name, value in theta.items()}, rows, net=tree, buffers=buffers)
            for s in range(number)
        ]
        return model.likelihood_given(theta).predictive(torch.stack(outputs)).to(x.device)


def prior_of(model: BayesianNetwork, fitted: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields of `to_arviz.groups.Drawn` that tell of the prior; the arguments are those of `prior_predictive`."""
    return {
        "prior": partial(prior_draws, model),
        "prior_predict": partial(prior_predictive, model, fitted, buffers),
    }
