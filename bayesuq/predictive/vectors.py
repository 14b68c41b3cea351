"""The predictive of targets whose columns are one vector: shares of a whole, counts of a total, correlated numbers.

A Pyro program that observes rows of a Dirichlet, a Multinomial, a MultivariateStudentT or another law of vectors gives
one of these. The density is of whole rows; means, variances, quantiles and intervals are of single columns, as of any
real targets. Distribution functions of columns are those of draws.

Letters: S draws, N points, D numbers of a vector.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution

from bayesuq.arrays import ArrayLike, check_count, check_finite
from bayesuq.predictive.components import DRAWS, ComponentsPredictive
from bayesuq.predictive.laws import parts, unwrapped
from bayesuq.randomness import isolated, resolve_seed

OUTER = 2  # dimensions: draws, points
WITH_MOMENTS = ("Dirichlet", "Multinomial", "DirichletMultinomial", "OneHotCategorical", "MultivariateStudentT")


@dataclass(frozen=True, eq=False, init=False, repr=False)
class VectorPredictive(ComponentsPredictive):
    """The equal mixture of S laws of vectors of one family, one a draw.

    Attributes:
        components: The draws' laws, a torch distribution of batch shape (S, N) and event shape (D,), float64.

    Example:
        >>> shares = VectorPredictive(torch.distributions.Dirichlet(torch.tensor([[[1.0, 3.0]], [[3.0, 1.0]]])))
        >>> shares.mean, shares.log_prob([[0.5, 0.5]]).exp()
        (tensor([[0.5000, 0.5000]], dtype=torch.float64), tensor([0.7500], dtype=torch.float64))
    """

    components: Any

    def __init__(self, components: Distribution) -> None:
        """Check the components and take them in float64.

        Args:
            components: A torch distribution of vectors, of batch shape (S, N) and event shape (D,).

        Raises:
            TypeError: Not a distribution, or none that its parameters make.
            ValueError: Another shape, an empty dimension, or parameters that are not finite.
        """
        if not isinstance(components, Distribution):
            raise TypeError(f"`components` must be a torch distribution of vectors; got {type(components).__name__}.")
        law = unwrapped(components)
        if len(law.batch_shape) != OUTER or len(law.event_shape) != 1 or 0 in law.batch_shape:
            raise ValueError(
                "`components` must have batch and event shape (S, N, D) with no empty dimension, of which (D,) is the "
                f"event; got {tuple(law.batch_shape)} and {tuple(law.event_shape)} of {type(law).__name__}. Give one "
                "draw a leading dimension of 1."
            )
        apart = parts(law, law.batch_shape)
        for name, value in apart.named_tensors().items():
            check_finite(value, name)
        try:
            self._hold(apart)
        except TypeError as error:
            raise TypeError(
                f"A {apart.family} is not made by the parameters that it names, {', '.join(apart.tensors) or 'none'}, "
                f"so that its draws cannot be put together: {error}. Take draws of the program by "
                "pyro.infer.Predictive, and `EmpiricalPredictive.from_draws`."
            ) from error

    def log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density or log probability of the mixture, of whole vectors, (N,), in nats.

        Args:
            y: Vectors, (N, D).
            observed: Refused where some are not: a law of vectors has one density of all of its numbers.

        Raises:
            TypeError: See `bayesuq.arrays.to_tensor`.
            ValueError: Another shape than (N, D); NaN; a vector outside the family's support.
        """
        return self.component_log_prob(y, observed=observed).logsumexp(dim=0) - math.log(self.num_samples)

    def component_log_prob(self, y: ArrayLike, *, observed: Tensor | None = None) -> Tensor:
        """log density of each component, (S, N), in nats; see `log_prob` for the rest."""
        target = self.targets(y)
        if observed is not None and not bool(observed.all()):
            raise ValueError(
                f"A {self._law.family} has one density of all {self.shape[2]} numbers of a row; some are missing."
            )
        if not bool(self.components.support.check(target).all()):
            raise ValueError(f"`y` must lie in the support of {self._law.family}, {self.components.support}.")
        found: Tensor = self.components.log_prob(target)
        return found

    def cdf(self, y: ArrayLike) -> Tensor:
        """P(y* <= y) column by column, (N, D), of 4,000 draws of y."""
        return self._drawn.cdf(self.targets(y))

    def transform_ends(self, y: ArrayLike) -> tuple[Tensor, Tensor]:
        """See `RealPredictive.transform_ends`."""
        return self._drawn.transform_ends(y)

    @property
    def has_steps(self) -> bool:
        """Yes: the cdf is that of draws."""
        return True

    def interval_remark(self, level: float) -> str:  # noqa: ARG002 - of any level
        """Where the quantiles are from."""
        return f"by {DRAWS} draws of y"

    def quantile(self, level: float) -> Tensor:
        """See `RealPredictive.quantile`; of 4,000 draws of y.

        Raises:
            ValueError: `level` outside (0, 1).
        """
        return self._drawn.quantile(level)

    def marginal_sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Vectors, (num_samples, N, D), float64, each of a component of its own: points are independent."""
        check_count(num_samples, "num_samples")
        with isolated(resolve_seed(seed)):
            chosen = torch.randint(self.num_samples, (num_samples, self.shape[1]), device=self.device)
            rows = torch.arange(self.shape[1], device=self.device)

            def pick(_: str, value: Tensor) -> Tensor:
                return value if len(value) == 1 else value[chosen, rows if value.shape[1] > 1 else 0 * rows]

            return self._changed(pick, chosen.shape)._sampled()

    def _sampled(self) -> Tensor:
        found: Tensor = self.components.sample()
        return found.double()

    def rescale(self, loc: Tensor, scale: Tensor) -> Self:
        """The predictive of loc + scale * y*; `loc` and `scale` are () or (D,), in the new unit.

        Raises:
            ValueError: Vectors without a unit, such as shares and counts; another number of columns.
        """
        held = self._law.tensors
        if not {"loc", "scale_tril"} <= held.keys():
            raise ValueError(
                f"Targets of {self._law.family} cannot be rescaled: they have no unit. Fit them as they are, and "
                "standardise the inputs alone."
            )
        self.check_columns(loc, scale)
        loc, scale = (each.to(self.device, torch.float64) for each in (loc, scale))
        moved = {
            "loc": loc + scale * held["loc"],
            "scale_tril": scale.expand(self.shape[2:]).unsqueeze(-1) * held["scale_tril"],
        }
        return self._changed(lambda name, value: moved.get(name, value), self._law.shape)

    @property
    def _closed_moments(self) -> tuple[Tensor, Tensor] | None:
        return (self.components.mean, self.components.variance) if self._law.family in WITH_MOMENTS else None
