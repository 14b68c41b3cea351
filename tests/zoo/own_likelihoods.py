"""Likelihoods as a user writes them: what docs/extend.md asks for and nothing else, so that all else is derived."""

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
from torch import Tensor

from bayesuq.models import likelihoods
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.predictive.categorical import CategoricalPredictive


@dataclass(frozen=True, eq=False)
class Copy(Likelihood):
    """The law of another likelihood, of which methods are told no more than they must be."""

    of: Likelihood

    def targets(self, y: Any, *, num_outputs: int | None = None) -> Tensor:
        return self.of.targets(y, num_outputs=num_outputs)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        return self.of.align(f, y)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return self.of.elementwise_log_prob(f, y)

    def distribution(self, f: Tensor) -> Any:
        return self.of.distribution(f)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> Any:
        return self.of.predictive(f, keep_samples=keep_samples)


@dataclass(frozen=True)
class NoisyLabels(Likelihood):
    """That of docs/extend.md: a label is replaced by one drawn evenly from all with probability `share`."""

    share: float = 0.1
    clean = likelihoods.Categorical()

    def probabilities(self, f: Tensor, dim: int) -> Tensor:
        return (1 - self.share) * f.softmax(dim) + self.share / f.shape[dim]

    def targets(self, y: Any, *, num_outputs: int | None = None) -> Tensor:
        return self.clean.targets(y, num_outputs=num_outputs)

    def align(self, f: Tensor, y: Tensor) -> Tensor:
        return self.clean.align(f, y)

    def elementwise_log_prob(self, f: Tensor, y: Tensor) -> Tensor:
        return self.probabilities(f, dim=1).gather(1, y.unsqueeze(1)).squeeze(1).log()

    def distribution(self, f: Tensor) -> Any:
        return dist.Categorical(probs=self.probabilities(f, dim=1).movedim(1, -1)).to_event(f.ndim - 2)

    def predictive(self, f: Tensor, *, keep_samples: bool = True) -> CategoricalPredictive:
        return CategoricalPredictive.from_probs(self.probabilities(f, dim=2), keep_samples=keep_samples)
