"""A posterior as BoTorch's model, so that its acquisition functions and their optimisers work on it.

What BoTorch asks of a model is joint: q points go together in a batch. A process, or a linearised network, answers with
the normal law of its functions; any other method with its draws, the same ones at every call, so that an acquisition
function is smooth and deterministic in its inputs.
"""

import warnings
from typing import Any, Self

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.functions import Functions
from bayesuq.posterior import Posterior
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.randomness import resolve_seed

try:
    from botorch.exceptions import UnsupportedError
    from botorch.models.model import Model
    from botorch.posteriors import GPyTorchPosterior
    from botorch.posteriors.ensemble import EnsemblePosterior
    from botorch.sampling.get_sampler import GetSampler
    from botorch.sampling.index_sampler import IndexSampler
    from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
except ImportError as error:
    raise ImportError(
        f"`as_botorch` needs BoTorch, which cannot be imported: {error}. `pip install botorch`."
    ) from error

__all__ = ["as_botorch"]
__dir__ = __all__.copy

MOST_TOGETHER = 128  # rows times columns, whose joint law is asked for at once


def as_botorch(
    posterior: Posterior, *, num_outputs: int = 1, num_samples: int | None = None, seed: int | None = 0
) -> "PosteriorModel":
    """The posterior as a model of BoTorch's, of E[y | x] in units of y, with gradients in x.

    Args:
        posterior: Of real targets, by any method. Of dropout each draw is one mask at all points.
        num_outputs: D, its target columns.
        num_samples: Draws of a method without a closed form, as for `Posterior.predict`.
        seed: Of these draws, which are the same at every call; None takes one from torch's global generator, once.

    Raises:
        TypeError: No posterior; counts that are not whole.
        ValueError: Counts below 1.

    Example:
        >>> from bayesuq.data import Dataset
        >>> from bayesuq.inference import gp
        >>> from bayesuq.models.gp import GaussianProcess
        >>> from botorch.acquisition import LogExpectedImprovement
        >>> fitted = gp.fit(GaussianProcess(), Dataset([[0.0], [0.5], [1.0]], [0.0, 1.0, 0.5]), seed=0)
        >>> improvement = LogExpectedImprovement(as_botorch(fitted), best_f=1.0)
        >>> improvement(torch.tensor([[[0.7]], [[5.0]]], dtype=torch.float64)).shape
        torch.Size([2])
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(f"`posterior` must be a fitted one; got {type(posterior).__name__}. Pass what a fit gives.")
    check_count(num_outputs, "num_outputs")
    if num_samples is not None:
        check_count(num_samples, "num_samples")
    return PosteriorModel(posterior, num_outputs, num_samples, resolve_seed(seed))


class PosteriorModel(Model):
    """BoTorch's model of a posterior of ours.

    Attributes:
        fitted: The posterior.
    """

    def __init__(self, fitted: Posterior, num_outputs: int, num_samples: int | None, seed: int) -> None:
        super().__init__()
        self.fitted, self._columns, self._num_samples, self._seed = fitted, num_outputs, num_samples, seed
        self._has_law: bool | None = None  # whether functions have a closed form; None until it was asked for

    @property
    def num_outputs(self) -> int:
        """D, the target columns."""
        return self._columns

    @property
    def batch_shape(self) -> torch.Size:
        """None: it is one model."""
        return torch.Size([])

    def posterior(
        self,
        X: Tensor,  # noqa: N803 - BoTorch's name
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,
        posterior_transform: Any = None,
        **_: Any,
    ) -> Any:
        """The law of E[y | x] at q points together: normal where it has a closed form, else of draws.

        Args:
            X: Points, (..., q, d).
            output_indices: Target columns; None takes all.
            observation_noise: Only False: acquisition is of the function.
            posterior_transform: BoTorch's, applied at the end.

        Raises:
            UnsupportedError: Observation noise.
            ValueError: Another number of target columns than the model was made for; see `Posterior.predict`.

        Warns:
            UserWarning: The posterior is one function, which is sure of everything.
        """
        if observation_noise is not False:
            raise UnsupportedError(
                "`observation_noise` is not offered: the model is of E[y | x]. `posterior.predict(x)` has the noise."
            )
        shape, points = X.shape[:-1], X.reshape(-1, *X.shape[-2:])
        found: Any = self._normal(points) if len(points) else None
        columns = list(range(self._columns)) if output_indices is None else output_indices
        if found is not None:
            mean, covariance = found[0][..., columns], found[1][:, :, columns][..., columns]
            law = _normal_law(*(part.reshape(*shape[:-1], *part.shape[1:]) for part in (mean, covariance)))
        else:
            law = FunctionsPosterior(
                self._draws(points)[..., columns].reshape(*shape[:-1], -1, shape[-1], len(columns))
            )
        return law if posterior_transform is None else posterior_transform(law)

    def _normal(self, points: Tensor) -> tuple[Tensor, Tensor] | None:
        """Means (B, q, D) and covariances (B, q, D, q, D) where they have a closed form."""
        if self._has_law is None:
            self._has_law = self._functions(points[0, :1], num_samples=1).covariance is not None
        if not self._has_law:
            return None
        if points.shape[1] == 1:
            return self._apart(points)
        number = max(1, MOST_TOGETHER // (points.shape[1] * self._columns))
        laws = [self._together(part) for part in points.split(number)]
        found = [law for law in laws if law is not None]
        if len(found) < len(laws):  # too large for one point more
            return None
        means, covariances = zip(*found, strict=True)
        return torch.cat(means).to(points), torch.cat(covariances).to(points)

    def _together(self, points: Tensor) -> tuple[Tensor, Tensor] | None:
        """The same of a few, whose law is asked for at once: a call costs more than a point."""
        law = self._functions(points.flatten(0, 1), num_samples=1)
        if law.covariance is None:
            return None
        own, shape = torch.arange(len(points)), points.shape[:2]
        blocks = law.covariance.unflatten(2, shape).unflatten(0, shape)
        return law.mean.unflatten(0, shape), blocks[own, :, :, own]

    def _apart(self, points: Tensor) -> tuple[Tensor, Tensor] | None:
        """The same where each point is by itself, of all at once."""
        rows = points[:, 0]
        predictive = self.fitted.predict(rows, seed=self._seed, differentiable=rows.requires_grad)
        if not isinstance(predictive, GaussianPredictive) or predictive.num_samples != 1:
            return None
        mean, variance = predictive.component_means[0], predictive.function_variance[0]
        covariance = torch.diag_embed(variance.expand_as(mean))
        if predictive.function_covariance is not None:
            covariance = predictive.function_covariance[0]
        return mean.unsqueeze(1).to(points), covariance[:, None, :, None, :].to(points)

    def _draws(self, points: Tensor) -> Tensor:
        """Values of every draw, (B, S, q, D)."""
        found = self._functions(points.flatten(0, 1), num_samples=self._num_samples).draws
        if len(found) == 1:
            warnings.warn(
                f"A {type(self.fitted).__name__} is one function, which is sure of everything: an acquisition function "
                "explores nothing by it. Take `ensemble`, `laplace`, `gp` or another method with draws.",
                UserWarning,
                stacklevel=4,
            )
        return found.unflatten(1, points.shape[:2]).transpose(0, 1).to(points)

    def _functions(self, rows: Tensor, *, num_samples: int | None) -> Functions:
        found = self.fitted.functions(rows, num_samples=num_samples, seed=self._seed, differentiable=rows.requires_grad)
        if found.draws.shape[2] != self._columns:
            raise ValueError(
                f"The posterior has {found.draws.shape[2]} target columns; say so: `as_botorch(posterior, "
                f"num_outputs={found.draws.shape[2]})`."
            )
        return found

    def condition_on_observations(self, X: Tensor, Y: Tensor, **_: Any) -> Self:  # noqa: N803
        """The model given further rows too, where its method conditions in closed form.

        Raises:
            UnsupportedError: It has to be fitted again; batches of rows.
        """
        condition = getattr(self.fitted, "condition", None)
        if condition is None or X.ndim != 2:
            raise UnsupportedError(
                f"A {type(self.fitted).__name__} takes further rows by a new fit; only exact Gaussian processes are "
                "conditioned, on one set of rows (n, d) at a time."
            )
        return type(self)(condition(X, Y), self._columns, self._num_samples, self._seed)

    def fantasize(self, X: Tensor, *_: Any, **__: Any) -> Any:  # noqa: ARG002, N803
        """Not offered.

        Raises:
            UnsupportedError: Always.
        """
        raise UnsupportedError(
            "Fantasies need a model that is conditioned on batches of made-up rows. Choose an acquisition function "
            "without them, such as qLogExpectedImprovement or qUpperConfidenceBound."
        )


class FunctionsPosterior(EnsemblePosterior):
    """BoTorch's posterior of draws of functions."""


class EvenSampler(IndexSampler):
    """Takes each draw as often as any other, to within one, and the same ones in every batch.

    BoTorch's own draws their numbers with replacement, anew in every batch, which makes an acquisition function depend
    on where in a batch a point stands.
    """

    def forward(self, posterior: FunctionsPosterior) -> Tensor:
        """Values of the draws, (*sample_shape, ..., q, D)."""
        number = self.sample_shape.numel()
        chosen = torch.arange(number) * posterior.ensemble_size // number
        chosen = chosen.reshape(*self.sample_shape, *[1] * len(posterior.batch_shape))
        chosen = chosen.expand(*self.sample_shape, *posterior.batch_shape).to(posterior.device)
        return posterior.rsample_from_base_samples(self.sample_shape, chosen)


@GetSampler.register(FunctionsPosterior)  # type: ignore[untyped-decorator]
def _sampler_of(_: FunctionsPosterior, sample_shape: torch.Size, *, seed: int | None = None) -> EvenSampler:
    return EvenSampler(sample_shape=sample_shape, seed=seed)


def _normal_law(mean: Tensor, covariance: Tensor) -> Any:
    """Of means (..., q, D) and covariances (..., q, D, q, D)."""
    num_points, num_columns = mean.shape[-2:]
    matrix = covariance.reshape(*mean.shape[:-2], num_points * num_columns, num_points * num_columns)
    # Rows that are equal make it singular; the share of the largest variance is that of the processes' own draws.
    largest = matrix.diagonal(dim1=-2, dim2=-1).amax(dim=-1).clamp(min=1e-300)[..., None, None]
    matrix = matrix + 1e-9 * largest * torch.eye(matrix.shape[-1]).to(matrix)
    if num_columns == 1:
        return GPyTorchPosterior(MultivariateNormal(mean.squeeze(-1), matrix))
    return GPyTorchPosterior(MultitaskMultivariateNormal(mean, matrix))
