"""Guides of a network: a Gaussian over the flat vector of its random sites, and Pyro's autoguides at a good start."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide, init_to_value
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayesuq.arrays import check_positive
from bayesuq.inference.weights import Layout
from bayesuq.models.bnn import BayesianNetwork

INITIAL_SCALE = 0.05  # of the prior's scale: small enough to train at once, large enough to be learned


class MeanFieldGuide(PyroModule):
    """q = N(loc, diag scale^2) on the flat vector of a model's random sites; a Pyro guide with a site for each.

    A site whose support is not the real line is the image of its normal under the support's bijection.

    Attributes:
        loc: Means, (R,).
        log_scale: Logarithms of the standard deviations, (R,).
    """

    def __init__(self, model: BayesianNetwork, loc: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.layout = Layout.of(model, model.laws)
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(log_scale)

    def laws(self) -> dict[str, Any]:
        """The law of each site, by name, on its own support."""
        locs = self.loc.split(self.layout.sizes)
        scales = self.log_scale.exp().split(self.layout.sizes)
        laws = {}
        for (name, shape), loc, scale in zip(self.layout.shapes.items(), locs, scales, strict=True):
            law = dist.Normal(loc.view(shape), scale.view(shape))
            if name in self.layout.transforms:
                law = dist.TransformedDistribution(law, self.layout.transforms[name])
            laws[name] = law.to_event(len(shape))
        return laws

    def forward(self, *_args: Any, **_kwargs: Any) -> dict[str, Tensor]:
        """Sample every site (the Pyro program of the guide)."""
        return {name: pyro.sample(name, law) for name, law in self.laws().items()}


def mean_field(model: BayesianNetwork, *, initial_scale: float = INITIAL_SCALE) -> MeanFieldGuide:
    """The factorised Gaussian guide where a fit starts it.

    Its means are the network's own weights, its scales a share of the prior's.

    Args:
        model: The joint density.
        initial_scale: Starting standard deviations, as a share of the prior's (of 1 where that has none).

    Raises:
        ValueError: `initial_scale` not above 0.
    """
    check_positive(initial_scale, "initial_scale")
    layout = Layout.of(model, model.laws)
    scales = torch.ones(layout.size, dtype=model.dtype, device=model.device)
    for name, where in layout.slices().items():
        variance = model.laws[name].variance.reshape(-1) if name not in layout.transforms else scales[where]
        usable = variance.isfinite() & (variance > 0)
        scales[where] = torch.where(usable, variance, 1.0).sqrt()
    return MeanFieldGuide(model, layout.join(model.initial()), (initial_scale * scales).log())


def autoguide(kind: Callable[..., AutoGuide], **options: Any) -> Callable[[BayesianNetwork], AutoGuide]:
    """One of Pyro's autoguides, its means starting at the network's own weights.

    An autoguide alone starts near the prior's median, where all units of a layer are nearly the same and a network
    hardly trains.

    Args:
        kind: Such as `pyro.infer.autoguide.AutoLowRankMultivariateNormal`; it must take `init_loc_fn`.
        **options: Passed to it.

    Returns:
        For `variational.fit(guide=...)`.
    """

    def build(model: BayesianNetwork) -> AutoGuide:
        return kind(model, init_loc_fn=init_to_value(values=model.initial()), **options)

    return build
