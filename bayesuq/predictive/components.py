"""What equal mixtures of S laws of one family share, whether the laws are of single numbers or of vectors.

Moments are split by the law of total variance. Where a family's own are not known, and where its distribution function
is not, they are those of draws.
"""

from abc import abstractmethod
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.empirical import EmpiricalPredictive
from bayesuq.randomness import isolated, resolve_seed

DRAWS = 4000  # of y, where the family's distribution function is not known
MOMENT_DRAWS = 1000  # of each component, where its moments are not
MOST_DRAWN = 2**22  # numbers at a time


class ComponentsPredictive(RealPredictive):
    """The equal mixture of S laws of one family, one a draw.

    Attributes:
        components: The draws' laws, a torch distribution over (S, N, D), float64.
    """

    components: Any

    @property
    @abstractmethod
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each component, (S, N, D) each."""

    @abstractmethod
    def _sampled(self) -> Tensor:
        """Targets, one from each component, (S, N, D), float64, by the global generator."""

    @property
    def is_discrete(self) -> bool:
        """Whether targets are counts."""
        return bool(self.components.support.is_discrete)

    @property
    def component_means(self) -> Tensor:
        """Mean of each component, (S, N, D)."""
        return self._moments[0]

    @property
    def component_variances(self) -> Tensor:
        """Variance of each component, (S, N, D)."""
        return self._moments[1]

    @property
    def mean(self) -> Tensor:
        """E[y*], (N, D), in units of y."""
        return self.component_means.mean(dim=0)

    @property
    def aleatoric(self) -> Tensor:
        """Mean of the components' variances, (N, D), in units of y squared."""
        return self.component_variances.mean(dim=0)

    @property
    def epistemic(self) -> Tensor:
        """Variance of the components' means (ddof 0, as the identity needs), (N, D), in units of y squared."""
        return self.component_means.var(dim=0, correction=0)

    def sample(self, num_samples: int, *, seed: int | None = None) -> Tensor:
        """Targets, (num_samples, N, D), float64; each sample takes one component for all points."""
        check_count(num_samples, "num_samples")
        with isolated(resolve_seed(seed)):  # torch's distributions know the global generator only
            chosen = torch.randint(self.num_samples, (num_samples,), device=self.device)
            return self.components_at(chosen)._sampled()

    def component_sample(self, *, seed: int | None = None) -> Tensor:
        """Targets, one from each component, (S, N, D), float64."""
        with isolated(resolve_seed(seed)):
            return self._sampled()

    def _moments_by_draws(self) -> tuple[Tensor, Tensor]:
        """The same noise in every call; sums of centred draws."""
        total, square = (torch.zeros(self.shape, dtype=torch.float64, device=self.device) for _ in range(2))
        with isolated(0):
            centre = self._sampled()
            for _ in range(MOMENT_DRAWS):
                away = self._sampled() - centre
                total += away
                square += away.square()
        mean = total / MOMENT_DRAWS
        variance = (square / MOMENT_DRAWS - mean.square()) * (MOMENT_DRAWS / (MOMENT_DRAWS - 1))
        return centre + mean, variance.clamp(min=0.0)

    @cached_property
    def _drawn(self) -> EmpiricalPredictive:
        """Draws in place of a distribution function."""
        width = max(1, MOST_DRAWN // (DRAWS * self.shape[2]))
        blocks = [self.at(slice(start, start + width)) for start in range(0, self.shape[1], width)]
        draws = [block.marginal_sample(DRAWS, seed=number) for number, block in enumerate(blocks)]
        return EmpiricalPredictive.from_draws(torch.cat(draws, dim=1), is_discrete=self.is_discrete)
