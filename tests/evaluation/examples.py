"""Predictives with known truth, for the tests of every measure."""

import torch
from torch import Tensor

from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled(
    seed: int, *, num_draws: int = 4, num_points: int = 200, num_classes: int = 5, sharpness: float = 1.0
) -> tuple[CategoricalPredictive, Tensor]:
    """A predictive and labels drawn from it, so calibrated at sharpness 1; a larger one makes it overconfident."""
    logits = noise(seed, num_draws, num_points, num_classes) + 2 * noise(seed + 1, num_points, num_classes)
    y = CategoricalPredictive.from_logits(logits, keep_samples=False).sample(1, seed=seed)[0]
    return CategoricalPredictive.from_logits(sharpness * logits), y


def measured(
    seed: int, *, num_draws: int = 4, num_points: int = 200, num_columns: int = 1
) -> tuple[GaussianPredictive, Tensor]:
    """A predictive with unequal components, and targets drawn from it point by point."""
    means = noise(seed, num_draws, num_points, num_columns)
    predictive = GaussianPredictive(
        mean=means,
        noise_variance=0.1 + noise(seed + 1, *means.shape).square(),
        function_variance=0.2 * noise(seed + 2, *means.shape).square(),
    )
    chosen = torch.randint(num_draws, means.shape[1:], generator=torch.Generator().manual_seed(seed))[None]
    loc, variance = means.gather(0, chosen)[0], predictive.component_variances.gather(0, chosen)[0]
    return predictive, loc + variance.sqrt() * noise(seed + 3, *loc.shape)


def sure(*probs: list[float]) -> CategoricalPredictive:
    """One draw with these probabilities at the points, in float64."""
    return CategoricalPredictive.from_probs(torch.tensor([probs], dtype=torch.float64))
