"""Sparse Gaussian-process regression with all rows at once: q is taken out in closed form, and L-BFGS does the rest.

With normal noise of variance lambda_n, whitened a_n = L^-1 k(Z, x_n), L L^T = k(Z, Z), and r = y - m(x), the best q(v)
at M inducing points is

    N(B^-1 sum_n a_n r_n / lambda_n, B^-1),   B = I + sum_n a_n a_n^T / lambda_n,

and what is left to maximise over hyperparameters and inducing points is a bound of the log marginal likelihood,

    log N(y; m, A^T A + Lambda) - sum_n (k(x_n, x_n) - a_n^T a_n) / (2 lambda_n),   A = (a_1, ..., a_N).

O(N M^2) time and O(N M) memory. Hyperparameters start at the exact optimum on a part of the rows, where restarts cost
little.

Reference:
    Titsias 2009, Variational Learning of Inducing Variables in Sparse Gaussian Processes, eq. (9) and (10).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bayesuq.inference.gp.algebra import LOG_TWO_PI
from bayesuq.inference.gp.convergence import warn_of_nothing_left
from bayesuq.inference.gp.inducing import inducing_points
from bayesuq.inference.gp.marginal_likelihood import (
    MarginalLikelihood,
    Observations,
    hyperparameters_of,
    likelihood_scale,
)
from bayesuq.inference.gp.search import Search, maximise
from bayesuq.inference.gp.sparse_posterior import SparseGpPosterior, SparseProcess
from bayesuq.inference.training.history import History
from bayesuq.models.gp.combined import Coregionalised, Deep
from bayesuq.models.gp.process import GaussianProcess
from bayesuq.randomness import derive_seed, generator

START_ROWS = 1_000  # that an exact fit finds the start on


def fit_collapsed(
    model: GaussianProcess, data: Observations, search: Search, *, num_inducing: int
) -> SparseGpPosterior:
    """The sparse posterior at the hyperparameters and inducing points of the largest bound."""
    if isinstance(model.kernel, Coregionalised | Deep):
        raise ValueError(
            f"`approximation='collapsed'` does not take a {type(model.kernel).__name__} kernel; pass "
            "approximation='sparse' for a deep one, 'exact' for a coregionalised one."
        )
    prior = model.build(data.x, len(data.y))
    vector = hyperparameters_of(model, prior, data, counts=search.counts)
    some = MarginalLikelihood(model, prior, _some(data, search.seed))
    record = search.record(some, vector, data)
    maximise(some, vector, search, record, name="some rows", warns=False)  # a start need not have converged
    with torch.no_grad():
        features = prior.features(data.x)
    unit = (vector.units.centre, vector.units.inputs)
    places = inducing_points(features, unit[1], num_inducing, derive_seed(search.seed, 1), centre=unit[0])
    process = SparseProcess(model, prior, places, vector, unit=unit if search.counts else None)
    process.inducing = nn.Parameter(process.inducing)
    bound = CollapsedBound(process, data)
    vector.start = {leaf.name: leaf.value.detach().clone() for leaf in vector.leaves}
    vector.append("inducing points", process.inducing)
    history = maximise(bound, vector, replace(search, num_restarts=1), record, name="all rows")
    warn_of_nothing_left(prior, vector, data)
    return bound.posterior(history)


def _some(data: Observations, seed: int) -> Observations:
    """The rows that the start is found on."""
    return data.rows(torch.randperm(len(data.x), generator=generator(seed))[:START_ROWS].to(data.x.device))


@dataclass(frozen=True, eq=False)
class CollapsedBound:
    """The bound at where the hyperparameters and inducing points are.

    Attributes:
        process: What is fitted.
        data: What is conditioned on.
    """

    process: SparseProcess
    data: Observations

    def __call__(self) -> Tensor:
        """In nats, 0-d."""
        features, a, residual, noise, scale = self._parts()
        root, pull = _solved(a, residual, noise)
        left = self.process.prior.variance(features) - a.square().sum(dim=1)  # (C or 1, N)
        log_det = 2 * root.diagonal(dim1=1, dim2=2).log().sum() * (len(residual) / len(root))
        squares = (residual.square() / noise).sum() - pull.square().sum()
        of_each = (LOG_TWO_PI + noise.log() + left / noise).expand_as(residual)
        if self.data.present is not None:
            of_each = of_each * self.data.present
        whole = of_each.sum() + log_det + squares
        return -0.5 * whole + self.data.log_normaliser(scale)

    def posterior(self, history: History) -> SparseGpPosterior:
        """The best q, as a value of its own."""
        with torch.no_grad():
            _, a, residual, noise, _ = self._parts()
            root, pull = _solved(a, residual, noise)
            inverse = torch.cholesky_inverse(root)
            mean = torch.linalg.solve_triangular(root.mT, pull.unsqueeze(-1), upper=True).squeeze(-1)
            scale = torch.linalg.cholesky(inverse).expand(len(residual), -1, -1)
        return self.process.posterior(mean, scale, self.data.x[:1].clone(), history)

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Features, a (C or 1, M, N), residuals (C, N), noise variances (C or 1, N), and the noise scale.

        Missing numbers have neither part in q nor a residual.
        """
        prior, scale = self.process.prior, likelihood_scale(self.process.model, self.process.prior, self.data)
        features = prior.features(self.data.x)
        a, residual = self.process.project(features), self.data.y - prior.mean_at(features)
        if self.data.present is not None:
            a, residual = a * self.data.present.unsqueeze(1), residual * self.data.present
        return features, a, residual, self.data.noise_variance(scale), scale


def _solved(a: Tensor, residual: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of B, (C or 1, M, M), and root^-1 sum_n a_n r_n / lambda_n, (C, M)."""
    scaled = a / noise.sqrt().unsqueeze(1)
    eye = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    root = torch.linalg.cholesky(eye + scaled @ scaled.mT)  # its eigenvalues are at least 1
    pull = scaled @ (residual / noise.sqrt()).unsqueeze(-1)
    return root, torch.linalg.solve_triangular(root, pull, upper=False).squeeze(-1)
