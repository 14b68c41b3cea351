"""The log marginal likelihood of a Gaussian process with normal noise, and what it conditions on.

    S = K + noise,   log p(y) = sum_c log N(y_c; mean_c, S_c)

A number of weight w has noise variance scale^2 / w, and the normaliser that makes it w numbers exactly. One of weight
0 is missing, and counts for nothing. Known noise of a number adds its variance to the likelihood's scale^2.

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. (2.30).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_targets, to_floating
from bayesuq.data import Batch
from bayesuq.inference.gp.algebra import LOG_TWO_PI, log_marginal
from bayesuq.inference.gp.conjugate_gradients import estimated_log_marginal
from bayesuq.inference.gp.data import units_of
from bayesuq.inference.gp.hyperparameters import HyperparameterVector
from bayesuq.models.gp.combined import CoregionalisedKernel
from bayesuq.models.gp.process import FunctionPrior, GaussianProcess
from bayesuq.models.gp.units import Units

CHOLESKY_LIMIT = 10_000  # rows, whose covariance takes 800 MB


@dataclass(frozen=True, eq=False)
class Observations:
    """What exact inference conditions on: C columns of N numbers with normal noise.

    Attributes:
        x: Inputs, (N, ...).
        y: (C, N); any finite number where it is missing.
        weight: Of the rows (N,), or of the numbers (C, N), which are missing where it is 0; None is 1.
        noise: Noise variances (C, N) in place of the likelihood's; None where its scale is the noise.
        known: Known noise variances (C, N) beside it; None is 0.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None
    noise: Tensor | None = None
    known: Tensor | None = None

    @classmethod
    def of(cls, rows: Batch, noise_scale: Tensor | None = None) -> Self:
        """Of real targets; rows without any of positive weight are left out.

        Args:
            rows: The rows.
            noise_scale: Known standard deviations of their noise, (N,) or (N, C).

        Raises:
            ValueError: No row of positive weight; noise of another shape.
        """
        y = rows.y.mT.contiguous()
        known = None if noise_scale is None else _known_variance(noise_scale, y)
        if rows.weight is None:
            return cls(rows.x, y, known=known)
        weight = rows.weight.reshape(len(rows.x), -1).mT.contiguous()
        weight = weight[0] if len(weight) == 1 or bool((weight == weight[0]).all()) else weight
        kept = torch.atleast_2d(weight > 0).any(dim=0)
        if not kept.any():
            raise ValueError("`weight` must be above 0 for at least one row.")
        return cls(rows.x[kept], y[:, kept], weight[..., kept], known=None if known is None else known[:, kept])

    def rows(self, chosen: Tensor) -> "Observations":
        """Some of the rows, by index."""
        weight = None if self.weight is None else self.weight[..., chosen]
        noise, known = (None if part is None else part[:, chosen] for part in (self.noise, self.known))
        return Observations(self.x[chosen], self.y[:, chosen], weight, noise, known)

    @cached_property
    def present(self) -> Tensor | None:
        """Which of the numbers are not missing, (C, N); None where all are there."""
        if self.weight is None or bool((self.weight > 0).all()):
            return None
        return (self.weight > 0).expand_as(self.y)

    @cached_property
    def counts(self) -> Tensor:
        """Numbers that are not missing of each column, (C,)."""
        return torch.ones_like(self.y).sum(dim=1) if self.present is None else self.present.double().sum(dim=1)

    @property
    def weight_of_rows(self) -> Tensor | None:
        """Weights as a Dataset has them, (N,) or (N, C)."""
        return self.weight if self.weight is None or self.weight.ndim == 1 else self.weight.mT

    def units(self, model: GaussianProcess, features: Tensor) -> Units:
        """What hyperparameters are counted in; of features (N, K)."""
        return units_of(model, features, self.y.mT, len(self.y), self.weight_of_rows)

    def noise_variance(self, scale: Tensor) -> Tensor:
        """Of each number, (1, N) or (C, N), at the likelihood's noise scale, () or (C,); any where it is missing."""
        if self.noise is not None:
            return self.noise
        variance = self._unweighted(scale)
        return variance if self.weight is None else variance / self._weight_or_one

    def log_normaliser(self, scale: Tensor) -> Tensor | float:
        """What makes N(y; f, scale^2 / w) the w-th power of N(y; f, scale^2), in nats."""
        if self.weight is None or self.noise is not None:
            return 0.0
        w, log_variance = self._weight_or_one, (2 * math.pi * self._unweighted(scale)).log()
        return 0.5 * ((1 - w) * log_variance - w.log()).expand_as(self.y).sum()

    def _unweighted(self, scale: Tensor) -> Tensor:
        """Noise variances where all weights are 1, (1 or C, N)."""
        square = scale.square().reshape(-1, 1).expand(-1, len(self.x))
        return square if self.known is None else square + self.known

    @property
    def _weight_or_one(self) -> Tensor:
        """Weights with 1 in place of 0: what is missing has no part, and its gradient must be finite."""
        if self.weight is None:
            return self.y.new_ones(())
        return torch.where(self.weight > 0, self.weight, 1.0)


def _known_variance(noise_scale: Tensor, y: Tensor) -> Tensor:
    """Squares of noise scales, (C, N), for y of that shape.

    Raises:
        ValueError: Another shape, numbers below 0 or not finite.
    """
    shape = tuple(y.mT.shape)
    if noise_scale.shape not in (y.shape[1:], y.mT.shape):
        raise ValueError(
            f"`noise_scale` must have shape {shape[:1]}, a number for each row, or {shape} as `y`; got "
            f"{tuple(noise_scale.shape)}."
        )
    if not bool((noise_scale.isfinite() & (noise_scale >= 0)).all()):
        raise ValueError("`noise_scale` must hold finite numbers of at least 0; give a missing target weight 0.")
    return noise_scale.to(y).square().reshape(len(noise_scale), -1).mT.expand_as(y).contiguous()


def without_missing(
    covariance: Tensor, residual: Tensor, noise: Tensor, present: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | float]:
    """S (C or 1, N, N) and residuals (C, N) as if missing numbers were not there, and what that adds to log N, in nats.

    Rows and columns of missing numbers are taken out of S by making them those of a number that is independent of all
    others and has a residual of 0. Its variance is of the size of the others', for the sake of the factor.
    """
    if present is None:
        return covariance + torch.diag_embed(noise), residual, 0.0
    own = torch.where(present, noise, 0.0)
    size = (covariance.diagonal(dim1=1, dim2=2) + own).mean(dim=1, keepdim=True).detach()  # (C or 1, 1)
    here, own = present.to(covariance), torch.where(present, own, size)
    whole = covariance * (here.unsqueeze(1) * here.unsqueeze(2)) + torch.diag_embed(own)
    added = 0.5 * (size.log() + LOG_TWO_PI) * (1 - here)
    return whole, residual * here, added.sum()


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
        data, features = self.data, self.prior.features(self.data.x)
        residual = data.y - self.prior.mean_at(features)
        scale = likelihood_scale(self.model, self.prior, data)
        noise, present = data.noise_variance(scale), data.present
        if isinstance(self.prior.kernel, CoregionalisedKernel):  # whose outputs make one long column
            noise = noise.expand_as(data.y).reshape(1, -1)
            residual, present = residual.reshape(1, -1), None if present is None else present.reshape(1, -1)
        covariance, residual, added = without_missing(self.prior.covariance(features), residual, noise, present)
        of_normal = log_marginal if uses_cholesky(residual) else estimated_log_marginal
        return of_normal(covariance, residual) + added + data.log_normaliser(scale)


def likelihood_scale(model: GaussianProcess, prior: FunctionPrior, data: Observations) -> Tensor:
    """The likelihood's noise scale, () or (C,); 1 where the noise is known without it."""
    given = model.likelihood.given(prior.unknowns())
    value = getattr(given, "scale", 1.0)
    return torch.as_tensor(value, dtype=torch.float64, device=data.x.device)


def hyperparameters_of(
    model: GaussianProcess, prior: FunctionPrior, data: Observations, *, counts: bool = True
) -> HyperparameterVector:
    """The learnable hyperparameters, started from the data."""
    with torch.no_grad():
        features = prior.features(data.x)
    return HyperparameterVector(prior, data.units(model, features), counts=counts)


def further_targets(
    model: GaussianProcess,
    prior: FunctionPrior,
    x: Tensor,
    y: ArrayLike,
    noise_scale: ArrayLike | None,
    num_outputs: int,
) -> tuple[Tensor, Tensor]:
    """Targets of further rows and their noise variances, at the process's hyperparameters, (C, N) each.

    Args:
        model: The process.
        prior: As built, at its hyperparameters.
        x: Inputs of the rows, (N, ...), float64.
        y: Their targets, (N, D), or (N,) for D = 1.
        noise_scale: Known standard deviations of their noise beside the likelihood's, (N,) or (N, D); None is 0.
        num_outputs: C.

    Raises:
        ValueError: Targets that do not fit x, or are not finite.
    """
    targets = as_targets(y).to(x).mT
    if targets.shape != (num_outputs, len(x)):
        raise ValueError(
            f"`y` must have {len(x)} rows as `x`, and {num_outputs} columns; got {tuple(targets.mT.shape)}."
        )
    known = None if noise_scale is None else to_floating(noise_scale, "noise_scale").to(x)
    rows = Observations.of(Batch(x, targets.mT, None), known)
    with torch.no_grad():
        return targets, rows.noise_variance(likelihood_scale(model, prior, rows)).expand_as(targets)
