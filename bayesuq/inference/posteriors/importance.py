"""Importance ratios p(theta, y | x) / q(theta) at draws of a posterior q: what PSIS judges a variational fit by."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bayesuq.inference.training.minibatches import Data, NetworkReader, Source
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.spectral import with_exact_norms

CHUNK = 4096  # rows


def log_joints(
    model: BayesianNetwork, theta: Mapping[str, Tensor], data: Data, buffers: Mapping[str, Tensor]
) -> Tensor:
    """log p(theta, y | x) of all data at S draws, (S,), float64, in nats, on the sites' own support.

    Args:
        model: The joint density.
        theta: Draws by name, (S, ...).
        data: All rows.
        buffers: Of the network, as trained.
    """
    source = Source(NetworkReader(model), data, CHUNK)
    tree = with_exact_norms(share_tensors(model.net))
    with torch.no_grad():
        draws = [dict(zip(theta, values, strict=True)) for values in zip(*theta.values(), strict=True)]
        total = torch.stack([model.log_prior(draw) for draw in draws]).double()
        for batch in source.complete():
            terms = [
                model.likelihood_given(draw).log_prob(
                    model.forward(draw, batch.x, net=tree, buffers=buffers), batch.y, batch.weight
                )
                for draw in draws
            ]
            total += torch.stack([one.double().sum() for one in terms])
    return total
