"""Importance ratios p(theta, y | x) / q(theta) at draws of a posterior q: what PSIS judges a variational fit by."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bayesuq.inference.joint.energy import JointFunction
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.loaders import Data
from bayesuq.models.bnn import BayesianNetwork, share_tensors
from bayesuq.models.spectral import with_exact_norms

CHUNK = 4096  # rows


def log_joints(model: BayesianNetwork, flat: Tensor, data: Data, buffers: Mapping[str, Tensor]) -> Tensor:
    """log p(theta, y | x) of all data at S draws, (S,), float64, in nats, on the sites' own support.

    Args:
        model: The joint density.
        flat: Draws of the flat vector of every site, (S, P).
        data: All rows.
        buffers: Of the network, as trained.
    """
    source = Source(NetworkReader(model), data, CHUNK)
    joint = JointFunction(model, {"all": Layout.of(model)}, with_exact_norms(share_tensors(model.net)), buffers=buffers)
    draws = [{"all": one} for one in flat]
    with torch.no_grad():
        total = torch.stack([joint.log_prior(draw) for draw in draws]).double()
        for batch in source.complete():
            total += torch.stack([joint.log_probs(draw, batch).double().sum() for draw in draws])
    return total
