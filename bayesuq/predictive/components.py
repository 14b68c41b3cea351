"""What equal mixtures of S laws of one family share, whether the laws are of single numbers or of vectors.

Moments are split by the law of total variance. Where a family's own are not known, and where its distribution function
is not, they are those of draws.
"""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_count
from bayesuq.predictive import broadcasts
from bayesuq.predictive.base import RealPredictive, chosen_points
from bayesuq.predictive.empirical import EmpiricalPredictive
from bayesuq.predictive.laws import Change, Law
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
    _law: Law  # the same in parts

    def _hold(self, law: Law) -> None:
        object.__setattr__(self, "_law", law)
        object.__setattr__(self, "components", law.build())

    @classmethod
    def _over(cls, law: Law) -> Self:
        """Of a law in parts, which has been checked."""
        made = cls.__new__(cls)
        made._hold(law)
        return made

    def _changed(self, change: Change, shape: Sequence[int]) -> Self:
        return self._over(self._law.changed(change, shape))

    @property
    @abstractmethod
    def _closed_moments(self) -> tuple[Tensor, Tensor] | None:
        """Mean and variance of each component, (S, N, D) each, where the family's are known."""

    @abstractmethod
    def _sampled(self) -> Tensor:
        """Targets, one from each component, (S, N, D), float64, by the global generator."""

    @property
    def shape(self) -> torch.Size:
        """(S, N, D): laws, points, and target columns or numbers of a vector."""
        return torch.Size(self.components.batch_shape + self.components.event_shape)

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return next(iter(self._law.named_tensors().values())).device

    @property
    def moments_basis(self) -> str:
        """How the moments come about."""
        return "" if self._closed_moments else f"from {MOMENT_DRAWS} draws of y from each component"

    def at(self, points: slice | ArrayLike) -> Self:
        """The predictive at some of its points: see `RealPredictive.at`."""
        draws, number, *rest = self._law.shape
        chosen = chosen_points(points, number, self.device)
        shape = (draws, len(torch.arange(number, device=self.device)[chosen]), *rest)
        return self._changed(lambda _, value: value[:, chosen] if value.shape[1] > 1 else value, shape)

    def components_at(self, chosen: Tensor) -> Self:
        """The mixture of the components of these numbers."""
        shape = (len(chosen), *self._law.shape[1:])
        return self._changed(lambda _, value: value[chosen] if len(value) > 1 else value, shape)

    def to(self, device: torch.device | str) -> Self:
        """The same predictive on another device."""
        return self._changed(lambda _, value: value.to(device), self._law.shape)

    @classmethod
    def joined(cls, parts: Sequence[Self], dim: int) -> Self:
        """See `RealPredictive.joined`; the parts must be of one family."""
        each = [part._law.named_tensors() for part in parts]
        if len({(part._law.family, str(part._law.fixed), *held) for part, held in zip(parts, each, strict=True)}) != 1:
            met = ", ".join(sorted({part._law.family for part in parts}))
            raise ValueError(f"Only predictives of one family join; got {met}.")
        first, sizes = parts[0], [part.shape[dim] for part in parts]
        shape = [*first._law.shape]
        shape[dim] = sum(sizes)

        def together(name: str, _: Tensor) -> Tensor:
            """What is one number for all points, such as the degrees of freedom, stays one."""
            return broadcasts.joined([one[name] for one in each], sizes, dim)

        return first._changed(together, shape)

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

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each component, (S, N, D) each."""
        return self._closed_moments or self._moments_by_draws()

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
