"""The log marginal likelihood of a Gaussian process with normal noise, and what it conditions on.

    S = K + noise,   log p(y) = sum_c log N(y_c; mean_c, S_c)

A row of weight w has noise variance scale^2 / w, and the normaliser that makes it w rows exactly.

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. (2.30).
"""

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.conjugate_gradients import estimated_log_marginal
from bayesuq.inference.gp_algebra import log_marginal
from bayesuq.inference.gp_data import Units
from bayesuq.inference.gp_hyperparameters import HyperparameterVector
from bayesuq.models.gp.combined import CoregionalisedKernel
from bayesuq.models.gp.process import FunctionPrior, GaussianProcess

CHOLESKY_LIMIT = 10_000  # rows, whose covariance takes 800 MB


@dataclass(frozen=True, eq=False)
class Observations:
    """What exact inference conditions on: C columns of N numbers with normal noise.

    Attributes:
        x: Inputs, (N, ...).
        y: (C, N).
        weight: (N,), positive; None is 1.
        noise: Known noise variances (C, N); None where the likelihood's scale is the noise.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None
    noise: Tensor | None = None

    @classmethod
    def of(cls, rows: Batch) -> Self:
        """Of real targets; rows of weight 0 are left out.

        Raises:
            ValueError: A weight for each target, no row of positive weight.
        """
        if rows.weight is None:
            return cls(rows.x, rows.y.mT.contiguous())
        if rows.weight.ndim > 1 and rows.weight.shape[1] > 1:
            raise ValueError("Exact inference takes a weight for each row, not for each target; use 'sparse'.")
        weight = rows.weight.reshape(-1)
        kept = weight > 0
        if not kept.any():
            raise ValueError("`weight` must be above 0 for at least one row.")
        return cls(rows.x[kept], rows.y[kept].mT.contiguous(), weight[kept])

    def rows(self, chosen: Tensor) -> "Observations":
        """Some of the rows, by index."""
        weight = None if self.weight is None else self.weight[chosen]
        noise = None if self.noise is None else self.noise[:, chosen]
        return Observations(self.x[chosen], self.y[:, chosen], weight, noise)

    def noise_variance(self, scale: Tensor) -> Tensor:
        """Of each number, (1, N) or (C, N), at the likelihood's noise scale."""
        if self.noise is not None:
            return self.noise
        square = scale.square().expand(1, len(self.x))
        return square if self.weight is None else square / self.weight

    def log_normaliser(self, scale: Tensor) -> Tensor | float:
        """What makes N(y; f, scale^2 / w) the w-th power of N(y; f, scale^2), in nats."""
        if self.weight is None or self.noise is not None:
            return 0.0
        w, log_variance = self.weight, (2 * math.pi * scale.square()).log()
        return 0.5 * len(self.y) * ((1 - w) * log_variance - w.log()).sum()


def uses_cholesky(residual: Tensor) -> bool:
    """Whether N is small enough for a factor, (C, N) being given; a longer one takes conjugate gradients."""
    return residual.shape[1] <= CHOLESKY_LIMIT


class Evidence(Protocol):
    """What hyperparameters are chosen by: log p(y | x, hyperparameters), or a bound of it, in nats."""

    @property
    def data(self) -> Observations:
        """What is conditioned on."""

    def __call__(self) -> Tensor:
        """In nats, 0-d."""


class MarginalLikelihood:
    """log p(y | x, hyperparameters) of a built process, O(N^3) time and O(N^2) memory.

    Attributes:
        prior: The process, whose parameters it reads.
        data: What is conditioned on.
    """

    def __init__(self, model: GaussianProcess, prior: FunctionPrior, data: Observations) -> None:
        self.model, self.prior, self.data = model, prior, data

    def __call__(self) -> Tensor:
        """In nats, 0-d."""
        covariance, residual, scale = gram(self.model, self.prior, self.data)
        of_normal = log_marginal if uses_cholesky(residual) else estimated_log_marginal
        return of_normal(covariance, residual) + self.data.log_normaliser(scale)


def gram(model: GaussianProcess, prior: FunctionPrior, data: Observations) -> tuple[Tensor, Tensor, Tensor]:
    """S (C or 1, N, N), the residuals (C, N), and the noise scale; coregionalised outputs make one long column."""
    features = prior.features(data.x)
    covariance = prior.covariance(features)
    residual = data.y - prior.mean_at(features)
    scale = noise_scale(model, prior, data)
    noise = data.noise_variance(scale)
    if isinstance(prior.kernel, CoregionalisedKernel):
        residual = residual.reshape(1, -1)
        noise = noise.expand(len(data.y), -1).reshape(1, -1)
    return covariance + torch.diag_embed(noise), residual, scale


def noise_scale(model: GaussianProcess, prior: FunctionPrior, data: Observations) -> Tensor:
    """The likelihood's noise scale, 0-d; 1 where the noise is known without it."""
    given = model.likelihood.given(prior.unknowns())
    value = getattr(given, "scale", 1.0)
    return torch.as_tensor(value, dtype=torch.float64, device=data.x.device)


def hyperparameters_of(model: GaussianProcess, prior: FunctionPrior, data: Observations) -> HyperparameterVector:
    """The learnable hyperparameters, started from the data."""
    with torch.no_grad():
        features = prior.features(data.x)
    return HyperparameterVector(prior, Units.of(model, features, data.y.mT, len(data.y)))
