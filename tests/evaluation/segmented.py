"""Segmented images with known truth, for the tests of pixel measures."""

import torch
from torch import Tensor

from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.examples import noise

VOID = 7


def segmented(
    seed: int, *, num_images: int = 5, num_classes: int = 3, size: tuple[int, int] = (6, 7), num_draws: int = 3
) -> tuple[CategoricalPredictive, Tensor]:
    """Images whose labels are drawn from the predictive, a tenth of the pixels void."""
    logits = noise(seed, num_draws, num_images, num_classes, *size) + 2 * noise(
        seed + 1, num_images, num_classes, *size
    )
    predictive = CategoricalPredictive.from_logits(logits, keep_samples=False)
    void = torch.rand(num_images, *size, generator=torch.Generator().manual_seed(seed)) < 0.1
    return predictive, predictive.sample(1, seed=seed)[0].masked_fill(void, VOID)


def part(predictive: CategoricalPredictive, rows: slice) -> CategoricalPredictive:
    """Some of its images."""
    return CategoricalPredictive.from_sums(
        probability_sum=predictive.probability_sum[rows],
        entropy_sum=predictive.entropy_sum[rows],
        votes=predictive.votes[rows],
        num_draws=predictive.num_draws,
    )
