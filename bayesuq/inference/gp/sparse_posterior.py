"""The posterior of a sparse variational Gaussian process: a normal law over f at M inducing points.

q(f(x)) = N(m(x) + a^T mean, k(x, x) - a^T a + a^T S a),   a = L^-1 k(Z, x),   L L^T = k(Z, Z)
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike
from bayesuq.gradients import unless_kept
from bayesuq.inference.gp.algebra import stable_cholesky
from bayesuq.inference.gp.data import units_of
from bayesuq.inference.gp.hyperparameters import HyperparameterVector
from bayesuq.inference.gp.inducing import inducing_points, some_rows
from bayesuq.inference.gp.marginal_likelihood import further_targets
from bayesuq.inference.gp.posterior import GpPosterior
from bayesuq.inference.training.history import History
from bayesuq.inference.training.minibatches import Source
from bayesuq.models.gp.combined import Deep
from bayesuq.models.gp.process import FunctionPrior, GaussianProcess
from bayesuq.models.gp.units import channel_moments
from bayesuq.models.likelihoods.real import Normal
from bayesuq.subnormals import flushed

TIE = 1e-6  # relative difference of distances that counts as none
JITTER = 1e-8  # of the prior variance at an inducing point: clusters may lie close together


class SparseProcess:
    """The process, its inducing points, and where features fall among them.

    Attributes:
        model: As given.
        prior: As built; its parameters move.
        inducing: Z, as features (M, K), or as inputs (M, ...), less a centre and in a spread where `unit` is given.
        vector: Of the prior's hyperparameters.
        are_inputs: Whether Z are inputs. While a deep kernel is fitted they are, so that they stay among the data
            wherever its network moves the features of both.
        unit: Centre and spread that `inducing` counts from and in, so that an optimiser's steps are of its size.
    """

    def __init__(
        self,
        model: GaussianProcess,
        prior: FunctionPrior,
        inducing: Tensor,
        vector: HyperparameterVector,
        *,
        are_inputs: bool = False,
        unit: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Take the inducing points as they are, in the units of x."""
        self.model, self.prior, self.vector = model, prior, vector
        self.are_inputs, self.unit = are_inputs, unit
        self.inducing = inducing if unit is None else (inducing - unit[0]) / unit[1]

    @classmethod
    def start(
        cls,
        model: GaussianProcess,
        source: Source,
        num_outputs: int,
        num_inducing: int,
        seed: int,
        *,
        counts: bool = True,
    ) -> "SparseProcess":
        """With hyperparameters in the data's units, and inducing points among the data.

        Args:
            model: The process.
            source: The rows.
            num_outputs: C.
            num_inducing: M, at most.
            seed: Of which rows are looked at, and of their clusters.
            counts: See `HyperparameterVector`; of the inducing points, too.
        """
        rows = some_rows(source, seed)
        prior = model.build(rows.x, num_outputs)
        if counts:
            prior.standardise(rows.x, rows.weight)
        with torch.no_grad():
            features = prior.features(rows.x)
        units = units_of(model, features, rows.y, num_outputs, rows.weight)
        vector = HyperparameterVector(prior, units, counts=counts)
        unit, is_deep = (units.centre, units.inputs), isinstance(model.kernel, Deep)
        inducing = inducing_points(features, unit[1], num_inducing, seed, centre=unit[0] if counts else 0.0)
        if is_deep:
            nearest = _nearest(inducing / units.inputs, features / units.inputs)
            inducing, unit = rows.x[nearest].clone(), channel_moments(rows.x, rows.weight)
        process = cls(model, prior, inducing, vector, are_inputs=is_deep, unit=unit if counts else None)
        process.inducing.requires_grad_()
        return process

    def places(self) -> Tensor:
        """Z as features, (M, K)."""
        z = self.inducing if self.unit is None else self.unit[0] + self.unit[1] * self.inducing
        return self.prior.features(z) if self.are_inputs else z

    @flushed()
    def project(self, features: Tensor) -> Tensor:
        """a = L^-1 k(Z, x), (C or 1, M, N)."""
        places = self.places()
        cross = self.prior.covariance(places, features)
        return torch.linalg.solve_triangular(factor_at(places, self.prior), cross, upper=False)

    def posterior(self, mean: Tensor, scale: Tensor, example: Tensor, history: History) -> "SparseGpPosterior":
        """What is fitted, as a value of its own; the arguments are its attributes."""
        places, mean, scale = (
            part.detach().clone(memory_format=torch.contiguous_format) for part in (self.places(), mean, scale)
        )
        return SparseGpPosterior(
            model=self.model,
            hyperparameters=self.prior.state(),
            inducing_points=places,
            inducing_mean=mean,
            inducing_scale=scale,
            example=example,
            history=history,
        )


def factor_at(places: Tensor, prior: FunctionPrior) -> Tensor:
    """L at Z as features, (C or 1, M, M)."""
    covariance = prior.covariance(places)
    size = covariance.diagonal(dim1=1, dim2=2).detach()
    return stable_cholesky(covariance + torch.diag_embed(JITTER * size))


def _nearest(centres: Tensor, rows: Tensor) -> Tensor:
    """Numbers of the rows (N, K) that are nearest to centres (M, K), in order, each once.

    Two rows are as far from their centre: rounding must not choose between them.
    """
    distances = torch.cdist(centres, rows)
    is_nearest = distances <= distances.amin(dim=1, keepdim=True) * (1 + TIE)
    return is_nearest.int().argmax(dim=1).unique()


def updated_law(mean: Tensor, scale: Tensor, a: Tensor, residual: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The law of v ~ N(mean, scale scale^T) given y = a^T v + noise, as its mean and lower Cholesky factor.

    In units of the law, v = mean + scale w and b = scale^T a / noise scale: w has the precision B = I + b b^T.

    Args:
        mean: (C, M).
        scale: Lower triangular, (C, M, M).
        a: (C or 1, M, N).
        residual: y less its mean under the law, (C, N).
        noise: Variances, (C, N).
    """
    deviation = noise.sqrt()
    b = (scale.mT @ a) / deviation.unsqueeze(1)
    eye = torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
    root = torch.linalg.cholesky(eye + b @ b.mT)  # its eigenvalues are at least 1
    pull = torch.cholesky_solve((b @ (residual / deviation).unsqueeze(-1)), root)
    narrower = torch.linalg.solve_triangular(root, scale.mT, upper=False)  # root^-1 scale^T, a root of the covariance
    triangle = torch.linalg.qr(narrower).R.mT
    return mean + (scale @ pull).squeeze(-1), triangle * triangle.diagonal(dim1=1, dim2=2).sign().unsqueeze(1)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class SparseGpPosterior(GpPosterior):
    """A normal law over the functions' values at inducing points, at point values of the hyperparameters.

    Attributes:
        model: The prior over functions and the likelihood.
        hyperparameters: As GPyTorch's modules store them, by name, float64.
        inducing_points: Z, (M, D), for a deep kernel in its features.
        inducing_mean: Of the whitened values, (C, M).
        inducing_scale: The lower Cholesky factor of their covariance, (C, M, M).
        example: The first row of the data, (1, ...), for its shape.
        history: How the fit went: minus the ELBO per data point.
    """

    model: GaussianProcess
    hyperparameters: Mapping[str, Tensor]
    inducing_points: Tensor
    inducing_mean: Tensor
    inducing_scale: Tensor
    example: Tensor
    history: History

    def __post_init__(self) -> None:
        _ = self.prior  # refuses another model's hyperparameters

    def __repr__(self) -> str:
        return f"SparseGpPosterior({len(self.inducing_points)} inducing points, on {self.device})"

    def condition(self, x: ArrayLike, y: ArrayLike, *, noise_scale: ArrayLike | None = None) -> "SparseGpPosterior":
        """The posterior given further rows too, at the same hyperparameters and inducing points; O(M^2 N).

        It is the best law at these inducing points: where they are not among the further rows, little is learned.

        Args:
            x: Inputs of the further rows, (N, ...).
            y: Their targets, (N, D), or (N,) for D = 1.
            noise_scale: Known standard deviations of their noise beside the likelihood's, (N,) or (N, D); None is 0.

        Raises:
            NotImplementedError: Another likelihood than normal noise, under which the law is found by steps.
            TypeError: See `predict`.
            ValueError: See `predict`; targets that do not fit x, or are not finite.
        """
        if not isinstance(self.model.likelihood, Normal):
            raise NotImplementedError(
                f"Only a process with normal noise is conditioned on further rows, and the likelihood is "
                f"{self.model.likelihood!r}. Fit all rows: `gp.fit(posterior.model, data)`."
            )
        rows = self.cast(x)
        with torch.no_grad():
            targets, noise = further_targets(self.model, self.prior, rows, y, noise_scale, len(self.inducing_mean))
            a, mean, _ = self._parts(self.prior.features(rows))
            new_mean, new_scale = updated_law(self.inducing_mean, self.inducing_scale, a, targets - mean, noise)
        return replace(self, inducing_mean=new_mean, inducing_scale=new_scale)

    @property
    def approximation(self) -> str:
        """The name by which `gp.fit` knows it."""
        return "sparse"

    @cached_property
    def prior(self) -> FunctionPrior:
        """The built process at the fitted hyperparameters."""
        built = self.model.build(self.example, len(self.inducing_mean)).load(dict(self.hyperparameters))
        return built.requires_grad_(False)

    @cached_property
    def _factor(self) -> Tensor:
        """L, (C or 1, M, M)."""
        with torch.no_grad():
            return factor_at(self.inducing_points, self.prior)

    @property
    def row_shape(self) -> torch.Size:
        """Of one row of inputs."""
        return self.example.shape[1:]

    @property
    def width(self) -> int:
        """Numbers that predicting one row holds in memory."""
        return 4 * self.inducing_mean.numel() + self.example.numel()

    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of f at rows (N, ...), (C, N) each."""
        with unless_kept():
            features = self.prior.features(x)
            a, mean, spread = self._parts(features)
            variance = self.prior.variance(features) - a.square().sum(dim=1) + spread.square().sum(dim=1)
            return mean, variance.clamp(min=0)

    def coupled(self, x: Tensor) -> None:  # noqa: ARG002 - outputs are independent here
        """None: see `GpPosterior.coupled`."""
        return

    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and covariances of f: see `GpPosterior.joint`."""
        with unless_kept():
            features = self.prior.features(x)
            a, mean, spread = self._parts(features)
            return mean, self.prior.covariance(features) - a.mT @ a + spread.mT @ spread

    @flushed()
    def _parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a (C or 1, M, N), the means (C, N), and S^(T/2) a, (C, M, N)."""
        cross = self.prior.covariance(self.inducing_points, features)
        a = torch.linalg.solve_triangular(self._factor, cross, upper=False)
        mean = self.prior.mean_at(features) + (self.inducing_mean.unsqueeze(1) @ a).squeeze(1)
        return a, mean, self.inducing_scale.mT @ a
