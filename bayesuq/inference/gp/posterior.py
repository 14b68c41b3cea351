"""What every posterior over functions does: predict from its marginals, and draw functions from its joint law.

    f(x*) | D ~ N(mean(x*), covariance(x*)),      p(y* | x*, D) = E p(y* | f(x*))

For a normal likelihood that is one Gaussian, in closed form; for others the mixture over draws of f. Draws of
`predict` are independent between rows, which is all that a predictive needs; `sample_functions` gives joint ones.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Unpack, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike, as_real, check_count, check_inputs
from bayesuq.functions import Functions
from bayesuq.gradients import unless_kept
from bayesuq.inference.gp.algebra import NotPositiveDefiniteError, stable_cholesky
from bayesuq.inference.gp.saving import ProcessPosterior
from bayesuq.inference.posteriors import prediction
from bayesuq.inference.posteriors.prediction import differentiated, draw_indices, predict_batches
from bayesuq.models.gp.hyperparameters import natural
from bayesuq.models.gp.process import FunctionPrior
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.real import Normal
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.covariances import correlated
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.randomness import generator, resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted
from bayesuq.waiting import Notes
from bayesuq.windows import WindowOptions, refuse_windows

BLOCK = 64  # rows whose draws come from one generator
ROUNDING = 1e-10  # of a prior variance: what subtracting may leave below 0


class GpPosterior(ProcessPosterior):
    """A posterior over C functions, at given hyperparameters."""

    hyperparameters: Mapping[str, Tensor]

    @property
    @abstractmethod
    def prior(self) -> FunctionPrior:
        """The built process at the fitted hyperparameters."""

    @property
    @abstractmethod
    def row_shape(self) -> torch.Size:
        """Of one row of inputs."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Numbers that predicting one row holds in memory."""

    @abstractmethod
    def marginals(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances of f at rows (N, ...), (C, N) each."""

    @abstractmethod
    def coupled(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Means (N, C) and covariances (N, C, C) of the outputs at each row, if coregionalised; else None."""

    @abstractmethod
    def joint(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means (C, N) and covariances (C, N, N) of f; of coregionalised outputs (1, C N) and (1, C N, C N)."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        some = next(iter(self.hyperparameters.values()), None)
        return torch.device("cpu") if some is None else some.device

    @property
    def likelihood(self) -> Likelihood:
        """The likelihood at its fitted parameters."""
        return self.model.likelihood.given({name: v.detach() for name, v in self.prior.unknowns().items()})

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
        **windows: Unpack[WindowOptions],
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D): see `Posterior.predict`.

        For a normal likelihood it is exact and has one component, whose function variance stands apart from the noise.
        """
        refuse_windows(self, windows)
        indices = draw_indices(num_samples, None)
        key = resolve_seed(seed)
        start = 0

        def chunks(batch: ArrayLike) -> Iterator[PredictiveDistribution]:
            nonlocal start
            with Notes() as notes:
                rows = self.cast(batch)
            for part in rows.split(prediction.rows_at_a_time(rows.device, self.width)):
                with notes:
                    mean, variance = self.coupled(part) or (each.mT for each in self.marginals(part))
                    predictive = self._predictive(mean, variance, len(indices), (key, start), keep_samples=keep_samples)
                notes.read()
                yield predictive
                start += len(part)

        with differentiated(x, differentiable=differentiable):
            return predict_batches(x, chunks, keep_samples=keep_samples)

    def _predictive(
        self, mean: Tensor, variance: Tensor, number: int, place: tuple[int, int], *, keep_samples: bool
    ) -> PredictiveDistribution:
        """Of rows from number `place[1]` on, from the mean of f, (N, C), and its variances (N, C) or covariances."""
        likelihood, coupled = self.likelihood, variance.ndim == 3
        if isinstance(likelihood, Normal):
            noise = cast(GaussianPredictive, likelihood.predictive(mean.unsqueeze(0))).noise_variance
            own = {"function_covariance" if coupled else "function_variance": variance.unsqueeze(0)}
            return GaussianPredictive(mean=mean.unsqueeze(0), noise_variance=noise, **own)
        draws = _noise(number, len(mean), mean.shape[1], *place, device=mean.device)
        draws = correlated(draws, variance) if coupled else draws.mul_(variance.sqrt())
        draws.add_(mean)
        return likelihood.predictive(draws, keep_samples=keep_samples)

    def sample_functions(self, x: ArrayLike, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Joint draws of f at the rows of x, (S, N, C), on x's device; O(N^3) time.

        Args:
            x: Inputs, (N, ...).
            num_samples: S.
            seed: The same seed gives the same draws.

        Raises:
            TypeError: See `predict`.
            ValueError: See `predict`.
        """
        check_count(num_samples, "num_samples")
        rows = self.cast(x)
        with torch.no_grad():
            draws = draw_jointly(*self.joint(rows), num_samples, resolve_seed(seed), self.prior.num_outputs)
        return draws.to(x.device if isinstance(x, Tensor) else "cpu")

    def functions(
        self, x: ArrayLike, *, num_samples: int | None = None, seed: int | None = None, differentiable: bool = False
    ) -> Functions:
        """Joint draws, with the covariance where y is the function and normal noise: see `Posterior.functions`."""
        number = len(draw_indices(num_samples, None))
        with differentiated(x, differentiable=differentiable), unless_kept():
            law = self.joint(self.cast(x))
            f = draw_jointly(*law, number, resolve_seed(seed), self.prior.num_outputs)
            if not isinstance(self.likelihood, Normal):
                return Functions.of(self.likelihood.predictive(f, keep_samples=True))
            return Functions(f, *by_rows(*law, self.prior.num_outputs))

    def cast(self, x: ArrayLike) -> Tensor:
        """Checked rows in float64, where it computes.

        Raises:
            ValueError: Rows of another shape than those of the fit.
        """
        inputs = check_inputs(self.by_name(x))
        if inputs.shape[1:] != self.row_shape:
            raise ValueError(
                f"The kernel does not take `x` of shape {tuple(inputs.shape)}; rows of the fit have shape "
                f"{tuple(self.row_shape)}."
            )
        return as_real(inputs, self.device, torch.float64)

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of: draws of the functions at the rows asked for, joint for a normal likelihood."""
        number = 100 if wanted.num_samples is None else wanted.num_samples

        def predict(x: Tensor) -> PredictiveDistribution:
            if not isinstance(self.likelihood, Normal):  # whose predictive is no mixture over draws
                return self.predict(x, num_samples=number, seed=wanted.seed, keep_samples=True)
            draws = self.sample_functions(x, number, seed=wanted.seed)
            return self.likelihood.predictive(draws.to(self.device)).to(x.device)

        def prior_predict(x: Tensor, count: int, seed: int) -> PredictiveDistribution:
            with torch.no_grad():
                return self.likelihood.predictive(draw_from(self.prior, self.cast(x), count, seed)).to(x.device)

        return Drawn(
            method=type(self).__name__,
            weights={},
            predict=predict,
            prior=no_sites,
            prior_predict=prior_predict,
            points=natural_values(self.prior, self.hyperparameters),
        )


def natural_values(prior: FunctionPrior, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Hyperparameters of a state on their own support, (1, ...) without dimensions of size 1, by a user's names."""
    found = {}
    for path, part in prior.named_modules():
        for name, _ in part.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if full in state:
                unknown = path == "log_unknowns"
                value = state[full].exp() if unknown else natural(part, name, state[full])
                told = full.replace("raw_", "").replace("log_unknowns.", "likelihood.")
                found[told] = value.squeeze().unsqueeze(0)
    return found


def by_rows(mean: Tensor, covariance: Tensor, num_outputs: int) -> tuple[Tensor, Tensor]:
    """A joint law as `draw_jointly` takes it, as mean (N, C) and covariance (N, C, N, C)."""
    means = mean.reshape(num_outputs, -1)
    num_rows = means.shape[1]
    if covariance.shape[1] == num_rows:  # each output by itself
        each = covariance.expand(num_outputs, num_rows, num_rows)
        return means.mT, torch.einsum("cnm,cd->ncmd", each, torch.eye(num_outputs).to(each))
    return means.mT, covariance.reshape(num_outputs, num_rows, num_outputs, num_rows).permute(1, 0, 3, 2)


def draw_jointly(
    mean: Tensor, covariance: Tensor, number: int, seed: int, num_outputs: int, *, is_posterior: bool = True
) -> Tensor:
    """Draws of N(mean, covariance), (S, N, C).

    Args:
        mean: (C, N), or (1, C N).
        covariance: (C or 1, N, N), or (1, C N, C N).
        number: S.
        seed: Of the noise.
        num_outputs: C.
        is_posterior: Whether the covariance is what data leave of a prior's, and not a prior's own, which a kernel may
            have made wrong.

    Raises:
        NotPositiveDefiniteError: A prior's covariance is none.
    """
    factor = _root(covariance, is_posterior=is_posterior)
    noise = torch.empty(number, *mean.shape, dtype=mean.dtype, device=mean.device)
    for index, one in enumerate(noise):
        one.normal_(generator=generator(seed, index, device=mean.device))
    draws = mean + (factor @ noise.unsqueeze(-1)).squeeze(-1)
    return draws.reshape(number, num_outputs, -1).mT


def draw_from(prior: FunctionPrior, x: Tensor, number: int, seed: int) -> Tensor:
    """Draws of functions from a prior at rows (N, ...), (S, N, C)."""
    features = prior.features(x)
    covariance = prior.covariance(features)
    mean = prior.mean_at(features).reshape(-1, covariance.shape[-1])
    return draw_jointly(mean, covariance, number, seed, prior.num_outputs, is_posterior=False)


def _root(covariance: Tensor, *, is_posterior: bool) -> Tensor:
    """A root L of covariances, L L^T, (..., N, N).

    A posterior's is singular where rows are close: a share of its largest variance keeps the factor. Where the data
    leave nearly nothing of the prior, rounding is a share of the prior's and may make eigenvalues negative: they are 0.
    """
    size = covariance.diagonal(dim1=1, dim2=2).amax(dim=1, keepdim=True).clamp(min=1e-300)
    try:
        return stable_cholesky(covariance + torch.diag_embed((1e-9 * size).expand(covariance.shape[:2])))
    except NotPositiveDefiniteError:
        if not is_posterior:
            raise
        values, vectors = torch.linalg.eigh(covariance)
        return vectors * values.clamp(min=0.0).sqrt().unsqueeze(-2)


def _noise(number: int, num_rows: int, num_columns: int, seed: int, start: int, *, device: torch.device) -> Tensor:
    """Standard normal (S, N, C) for rows from `start` on; a block of rows has a generator of its own."""
    first, last = start // BLOCK, (start + num_rows - 1) // BLOCK
    parts = []
    for block in range(first, last + 1):
        noise = generator(seed, block, device=device)
        part = torch.empty(number, BLOCK, num_columns, dtype=torch.float64, device=device)
        for one in part:  # draw by draw: fewer draws are the first of more
            one.normal_(generator=noise)
        parts.append(part)
    whole = torch.cat(parts, dim=1)
    return whole[:, start - first * BLOCK : start - first * BLOCK + num_rows]


def no_sites(number: int, seed: int) -> dict[str, Tensor]:  # noqa: ARG001 - the protocol's arguments
    """Point values have no prior draws."""
    return {}
