"""From the law that a Pyro program observes a site by, at N rows, to the predictive of one draw."""

from typing import Any

import pyro.distributions as dist
import torch

from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.laws import single_column, unwrapped
from bayesuq.predictive.mixture import MixturePredictive
from bayesuq.predictive.vectors import VectorPredictive

COLUMNS = 2  # dimensions of what is observed, at most: rows and columns


def predictive_of(law: Any, *, keep_samples: bool, site: str = "y") -> PredictiveDistribution:
    """The predictive of one draw, from the law of a site at N rows.

    Raises:
        TypeError: A law of all rows at once, or of matrices.
        ValueError: A law of more dimensions than rows and columns.
    """
    base, shape = unwrapped(law), law.batch_shape + law.event_shape
    if isinstance(base, dist.Categorical | dist.Bernoulli):
        return _of_labels(base, shape, keep_samples=keep_samples)
    if isinstance(base, dist.MultivariateNormal | dist.LowRankMultivariateNormal) and len(law.batch_shape) == 1:
        return GaussianPredictive.with_noise_covariance(base.mean.unsqueeze(0), base.covariance_matrix.unsqueeze(0))
    if base.event_shape and not base.batch_shape:
        raise TypeError(
            f"The program observes {site!r} from one {type(base).__name__} of all rows, which depend on each other, so "
            "that new rows have no law of their own. Take `gp.fit` for a process, or let single rows be independent "
            "given a latent function."
        )
    if len(base.event_shape) == 1 and len(base.batch_shape) == 1:
        return VectorPredictive(base.expand(torch.Size((1, *base.batch_shape))))
    if base.event_shape:
        raise TypeError(
            f"The program observes {site!r} from a {type(base).__name__} of event shape {tuple(base.event_shape)} in "
            f"each of {tuple(base.batch_shape)}; predictives are of numbers, or of a vector in each row. Take draws of "
            "the program by pyro.infer.Predictive."
        )
    if len(shape) > COLUMNS:
        raise ValueError(f"The site {site!r} must have rows, or rows and columns; it has shape {tuple(shape)}.")
    if isinstance(base, dist.Normal):
        mean, scale = (value.expand(shape).reshape(1, shape[0], -1) for value in (base.loc, base.scale))
        return GaussianPredictive(mean=mean, noise_variance=scale.square())
    expanded = base.expand(torch.Size((1, *shape)))
    return MixturePredictive(expanded if len(shape) == COLUMNS else single_column(expanded))


def _of_labels(base: Any, shape: torch.Size, *, keep_samples: bool) -> CategoricalPredictive:
    if isinstance(base, dist.Categorical):
        logits = base.logits.expand(*shape, -1).movedim(-1, 1)
    else:
        logit = base.logits.expand(shape)
        logit = logit if len(shape) > 1 and shape[1] == 1 else logit.unsqueeze(1)
        logits = torch.cat([torch.zeros_like(logit), logit], dim=1)
    return CategoricalPredictive.from_logits(logits.unsqueeze(0), keep_samples=keep_samples)
