"""Exact Gaussian-process regression: the log marginal likelihood, its maximum, and the posterior in closed form.

    f(x*) | D ~ N(m* + k*^T S^-1 (y - m), k** - k*^T S^-1 k*),   S = K + noise

What all rows but one say of that one needs no other factor: with alpha = S^-1 (y - m),

    y_i | x, all other y ~ N(y_i - alpha_i / [S^-1]_ii, 1 / [S^-1]_ii).

Reference:
    Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, section 2.2 and chapter 5; eq. (5.12).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.gradients import unless_kept
from bayesuq.inference.gp.algebra import log_density, solve, stable_cholesky
from bayesuq.inference.gp.conjugate_gradients import iterated_solve
from bayesuq.inference.gp.convergence import warn_of_nothing_left, warn_of_strangers
from bayesuq.inference.gp.marginal_likelihood import (
    MarginalLikelihood,
    Observations,
    further_targets,
    hyperparameters_of,
    likelihood_scale,
    uses_cholesky,
    without_missing,
)
from bayesuq.inference.gp.posterior import GpPosterior
from bayesuq.inference.gp.search import Search, maximise
from bayesuq.inference.training.history import History
from bayesuq.models.gp.combined import CoregionalisedKernel
from bayesuq.models.gp.process import FunctionPrior, GaussianProcess
from bayesuq.predictive.covariances import positive_part
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.subnormals import flushed


def fit_exact(model: GaussianProcess, data: Observations, search: Search, *, kind: str) -> "ExactGpPosterior":
    """The posterior at the hyperparameters of the largest log marginal likelihood over all starts."""
    prior = model.build(data.x, len(data.y))
    if search.counts:
        prior.standardise(data.x, data.weight_of_rows)
    vector = hyperparameters_of(model, prior, data, counts=search.counts)
    evidence = MarginalLikelihood(model, prior, data)
    history = maximise(evidence, vector, search, search.record(evidence, vector, data))
    with torch.no_grad():
        value = float(evidence())
    warn_of_nothing_left(prior, vector, data)
    warn_of_strangers(prior, data.x)
    return condition(model, prior, data, value, history, kind)


def log_evidence(model: GaussianProcess, prior: FunctionPrior, x: Tensor, y: Tensor, noise: Tensor) -> float:
    """log p(y | x) at the hyperparameters that the process has and these noise variances, in nats.

    Args:
        model: The process.
        prior: As built, at its hyperparameters.
        x: Inputs, (N, ...).
        y: Targets, (C, N).
        noise: Noise variances, (C, N); infinite where a target is missing.
    """
    missing = noise.isinf()
    weight = (~missing).to(y) if bool(missing.any()) else None
    with torch.no_grad():
        rows = Observations(x, y, weight, torch.where(missing, 1.0, noise))
        return float(MarginalLikelihood(model, prior, rows)())


def condition(
    model: GaussianProcess, prior: FunctionPrior, data: Observations, value: float, history: History, kind: str
) -> "ExactGpPosterior":
    """The posterior at the hyperparameters that the process has."""
    with torch.no_grad():
        noise = data.noise_variance(likelihood_scale(model, prior, data)).expand_as(data.y).clone()
        if data.present is not None:
            noise.masked_fill_(~data.present, torch.inf)
    return ExactGpPosterior(
        model=model,
        hyperparameters=prior.state(),
        x=data.x,
        y=data.y,
        noise=noise,
        log_marginal_likelihood=value,
        history=history,
        approximation=kind,
    )


class _Solved(NamedTuple):
    """The linear algebra of a posterior.

    Attributes:
        features: Of its rows, (N, K).
        root: The factor of S, (C or 1, N, N); by conjugate gradients S itself.
        alpha: S^-1 (y - m), (C, N).
        log_evidence: log p(y | x), in nats; NaN by conjugate gradients.
    """

    features: Tensor
    root: Tensor
    alpha: Tensor
    log_evidence: float


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ExactGpPosterior(GpPosterior):
    """The exact posterior over functions, at point values of the hyperparameters.

    Attributes:
        model: The prior over functions and the likelihood.
        hyperparameters: As GPyTorch's modules store them, by name, float64.
        x: Inputs that it was fitted to, (N, ...).
        y: Their targets, (C, N); any finite number where one is missing.
        noise: Noise variances of these, (C, N), in units of y squared; infinite where one is missing.
        log_marginal_likelihood: log p(y | x) at these hyperparameters, in nats.
        history: The course of L-BFGS: a loss for each iteration of the best run.
        approximation: "exact", or "dirichlet" for labels.
    """

    model: GaussianProcess
    hyperparameters: Mapping[str, Tensor]
    x: Tensor
    y: Tensor
    noise: Tensor
    log_marginal_likelihood: float
    history: History
    approximation: str = "exact"

    def __post_init__(self) -> None:
        _ = self.prior  # refuses another model's hyperparameters

    def __repr__(self) -> str:
        return f"ExactGpPosterior({self.approximation}, {self.solver}, {len(self.x)} rows, on {self.device})"

    @cached_property
    def prior(self) -> FunctionPrior:
        """The built process at the fitted hyperparameters."""
        built = self.model.build(self.x, len(self.y)).load(dict(self.hyperparameters))
        return built.requires_grad_(False)

    def condition(self, x: ArrayLike, y: ArrayLike, *, noise_scale: ArrayLike | None = None) -> "ExactGpPosterior":
        """The posterior given further rows too, at the same hyperparameters; O(N^3) time, and none again to predict.

        Args:
            x: Inputs of the further rows, (N, ...).
            y: Their targets, (N, D), or (N,) for D = 1.
            noise_scale: Known standard deviations of their noise beside the likelihood's, (N,) or (N, D); None is 0.

        Raises:
            NotImplementedError: A posterior of labels, whose noise depends on them all.
            TypeError: See `predict`.
            ValueError: See `predict`; targets that do not fit x, or are not finite.
        """
        if self.approximation != "exact":
            raise NotImplementedError(
                "Only a posterior of real targets is conditioned on further rows; fit labels anew."
            )
        rows = self.cast(x)
        targets, noise = further_targets(self.model, self.prior, rows, y, noise_scale, len(self.y))
        x_all, y_all = torch.cat([self.x, rows]), torch.cat([self.y, targets], dim=1)
        noises = torch.cat([self.noise, noise], dim=1)
        return evaluated(replace(self, x=x_all, y=y_all, noise=noises))

    def leave_one_out(self) -> GaussianPredictive:
        """Each fitted number as all the others predict it, at the same hyperparameters, by eq. (5.12); O(N^3) time.

        Returns:
            One Gaussian a row, in the order of the fit, (1, N, C), in units of y.

        Raises:
            NotImplementedError: Labels; coregionalised outputs, of which a row has several numbers; so many rows that
                there is no Cholesky factor.
            ValueError: Missing targets.

        Example:
            >>> from bayesuq.data import Dataset
            >>> from bayesuq.inference import gp
            >>> from bayesuq.models.gp import GaussianProcess
            >>> fitted = gp.fit(GaussianProcess(), Dataset([[0.0], [1.0], [2.0]], [0.0, 0.5, 0.9]), seed=0)
            >>> fitted.leave_one_out().mean.shape
            torch.Size([3, 1])
        """
        if self.approximation != "exact" or isinstance(self.prior.kernel, CoregionalisedKernel):
            raise NotImplementedError("One number is left out of independent outputs with normal noise only.")
        if self._present is not None:
            raise ValueError("`leave_one_out` is of rows that have all targets; fit without those that lack one.")
        _, factor, alpha, _ = self._solved
        if not uses_cholesky(alpha):
            raise NotImplementedError(f"Of {len(self.x)} rows there is no Cholesky factor; hold some out instead.")
        precision = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)  # of y_i given the others, (C or 1, N)
        mean, variance = self.y - alpha / precision, (1 / precision).expand_as(self.y)
        function = (variance - self.noise).clamp(min=0)
        return GaussianPredictive(
            mean=mean.mT.unsqueeze(0),
            noise_variance=self.noise.mT.unsqueeze(0),
            function_variance=function.mT.unsqueeze(0),
        )

    @property
    def row_shape(self) -> torch.Size:
        """Of one row of inputs."""
        return self.x.shape[1:]

    @property
    def width(self) -> int:
        """Numbers that predicting one row holds in memory: covariances with all rows, their solves, and a margin."""
        return 4 * self.y.numel()

    @property
    def solver(self) -> str:
        """How S^-1 is applied, as its size decides."""
        return "Cholesky" if uses_cholesky(self._column) else "conjugate gradients"

    @property
    def _column(self) -> Tensor:
        """The targets as exact inference sees them: coregionalised outputs make one long column."""
        return self.y.reshape(1, -1) if isinstance(self.prior.kernel, CoregionalisedKernel) else self.y

    @cached_property
    def _solved(self) -> "_Solved":
        """What all predictions need, at O(N^3) time."""
        with torch.no_grad():
            features = self.prior.features(self.x)
            covariance, residual = self.prior.covariance(features), self.y - self.prior.mean_at(features)
            residual, noise = (part.reshape(self._column.shape) for part in (residual, self.noise))
            if len(covariance) == 1 and bool((noise == noise[:1]).all()):
                noise = noise[:1]  # one factor serves all outputs
            present = self._present
            covariance, residual, added = without_missing(covariance, residual, noise, present)
            if not uses_cholesky(residual):
                alpha = iterated_solve(covariance, residual.unsqueeze(-1)).squeeze(-1)
                return _Solved(features, covariance, alpha, math.nan)
            factor = stable_cholesky(covariance)
            alpha = solve(factor, residual)
            # What stands for missing numbers is of each factor, and is as often in the density as outputs share one.
            repeats = len(residual) // len(factor)
            return _Solved(features, factor, alpha, float(log_density(factor, alpha, residual) + repeats * added))

    @cached_property
    def _present(self) -> Tensor | None:
        """Which numbers of the column are not missing, (C or 1, N); None where all are there."""
        noise = self.noise.reshape(self._column.shape)
        present = noise[: 1 if bool((noise == noise[:1]).all()) else len(noise)].isfinite()
        return None if bool(present.all()) else present

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of f at rows (N, ...), (C, N) each."""
        with unless_kept():
            features = self.prior.features(x)
            mean, left, right = self._halves(features)
            variance = (self.prior.variance(features) - (left * right).sum(dim=1)).clamp(min=0)
        shape = (len(self.y), len(x))
        same = variance.numel() == mean.numel()
        return mean.reshape(shape), variance.reshape(shape) if same else variance.expand(shape)

    def coupled(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Means (N, C) and covariances (N, C, C) of coregionalised outputs at each row: see `GpPosterior.coupled`."""
        kernel = self.prior.kernel
        if not isinstance(kernel, CoregionalisedKernel):
            return None
        with unless_kept():
            features = self.prior.features(x)
            shape = (len(self.y), len(x))
            mean, left, right = self._halves(features)
            left, right = (part.reshape(-1, *shape) for part in (left, right))
            # k(x, x) B: the variances of an output are its entry of B's diagonal times the kernel's.
            between = kernel.output_covariance()
            rows = self.prior.variance(features).reshape(shape)[0] / between[0, 0]
            covariance = rows[:, None, None] * between - torch.einsum("mcn,mdn->ncd", left, right)
        return mean.reshape(shape).mT, positive_part(covariance)

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and covariances of f: see `GpPosterior.joint`."""
        with unless_kept():
            features = self.prior.features(x)
            mean, left, right = self._halves(features)
            return mean, self.prior.covariance(features) - left.mT @ right

    @flushed()
    def _halves(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Posterior means (C, N*), and two parts (C or 1, N, N*) whose product is k*^T S^-1 k*."""
        own, root, alpha, _ = self._solved
        cross = self.prior.covariance(own, features)
        if self._present is not None:
            cross = cross * self._present.unsqueeze(2)
        prior_mean = self.prior.mean_at(features).reshape(len(alpha), -1)
        mean = prior_mean + (alpha.unsqueeze(1) @ cross).squeeze(1)
        cross = cross.expand(len(root), -1, -1)
        if not uses_cholesky(alpha):
            return mean, cross, iterated_solve(root, cross)
        half = torch.linalg.solve_triangular(root, cross, upper=False)
        return mean, half, half


def evaluated(posterior: ExactGpPosterior) -> ExactGpPosterior:
    """One that was just made, with its log p(y | x) put in; where there is a factor, predictions then have it."""
    if uses_cholesky(posterior._column):
        value = posterior._solved.log_evidence
    else:
        value = log_evidence(posterior.model, posterior.prior, posterior.x, posterior.y, posterior.noise)
    object.__setattr__(posterior, "log_marginal_likelihood", value)
    return posterior
