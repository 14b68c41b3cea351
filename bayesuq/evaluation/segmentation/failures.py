"""Which images went wrong: an uncertainty of each whole image, against its Dice that needs the truth.

Pixels' uncertainties become one number an image in four ways, none of which sees the truth:

    mean          over all pixels, nats a pixel
    boundary      over the pixels at borders of the prediction, where most of the entropy is for good images, too
    foreground    over the pixels predicted to be foreground; where there are none, the largest of the image
    disagreement  1 - the smallest Dice of the foreground between two draws

    result = image_failures(predictions(partial(posterior.predict, keep_samples=True), x, y))
    print(result.report)

Reference:
    Roy et al. 2019, Bayesian QuickNAT, section 3.4, for draws against each other; DeVries & Taylor 2018; Jungo,
    Balsiger & Reyes 2020, section 2.5, for images found by their uncertainty.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, check_fraction
from bayesuq.evaluation import detection
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report
from bayesuq.evaluation.segmentation.masks import borders, region_by_region
from bayesuq.evaluation.segmentation.measures import rank_correlation
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts
from bayesuq.evaluation.segmentation.reporting import Batches, pairs
from bayesuq.evaluation.standard_errors import closed_form
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive

FAILED = 0.5  # Dice below which an image counts as failed


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageFailures:
    """Uncertainty and quality of N images.

    Attributes:
        dice: Of the foreground of each image, (N,); NaN without a labelled pixel.
        uncertainties: Of each image by name, (N,), larger where it is less sure.
        failed_below: Dice below which an image has failed.
        num_samples: S, draws in the predictives.
    """

    dice: Tensor
    uncertainties: Mapping[str, Tensor]
    failed_below: float
    num_samples: int

    @property
    def has_failed(self) -> Tensor:
        """Which images with a known Dice have failed, (M,), boolean."""
        return self.dice[~self.dice.isnan()] < self.failed_below

    @cached_property
    def report(self) -> Report:
        """Of each uncertainty, how well it finds failed images, with standard errors over images."""
        known = ~self.dice.isnan()
        risk, failed = (1 - self.dice[known]).clamp(min=0), self.has_failed
        told = f"Dice below {self.failed_below:g}"
        measures = [Measure("failed_images", float(failed.double().mean()), None, "fraction", told)]
        for name, values in self.uncertainties.items():
            scores = values[known]
            area, excess = detection.aurc(scores, risk), detection.excess_aurc(scores, risk)
            error, remark = closed_form.of_aurc(scores, risk), "of images kept, mean over coverages"
            measures.append(Measure.of(f"{name}_aurc", area, error, "1 - Dice", remark))
            measures.append(Measure.of(f"{name}_excess_aurc", excess, None, "1 - Dice", "above that of the best order"))
            if bool(failed.any()) and not bool(failed.all()):
                area, error = detection.auroc(scores, failed), closed_form.of_auroc(scores, failed)
                measures.append(Measure.of(f"{name}_auroc", area, error, "fraction", ""))
            correlation = rank_correlation(scores, self.dice[known])
            measures.append(Measure.of(f"{name}_rank_correlation", correlation, None, "", "with Dice; -1 is best"))
        return Report(tuple(measures), int(known.sum()), self.num_samples, num_missing=int((~known).sum()))


def image_failures(
    batches: PredictiveDistribution | Batches,
    y: ArrayLike | None = None,
    *,
    ignore_index: int | None = None,
    failed_below: float = FAILED,
) -> ImageFailures:
    """Hold each image's uncertainty against its Dice.

    Args:
        batches: As for `evaluate_segmentation`. Draws that were kept are held against each other.
        y: The truth of one predictive, (N, ...).
        ignore_index: The label of void pixels, which Dice leaves out.
        failed_below: Dice of the foreground below which an image counts as failed, strictly between 0 and 1.

    Raises:
        TypeError: See `evaluate_segmentation`.
        ValueError: See `evaluate_segmentation`; a Dice of 0 or less, or of 1 or more; batches of which some keep their
            draws; no image with a labelled pixel.

    Example:
        >>> said = torch.tensor([[0.99, 0.01], [0.6, 0.4]])  # of two images, the second unsure, and wrong
        >>> predictive = CategoricalPredictive.from_probs(torch.stack([1 - said, said], dim=1)[None])
        >>> found = image_failures(predictive, [[1, 0], [0, 1]])
        >>> found.dice, found.report["mean_auroc"].value
        (tensor([1., 0.], dtype=torch.float64), 1.0)
    """
    limit = check_fraction(failed_below, "failed_below")
    dice: list[Tensor] = []
    scores: dict[str, list[Tensor]] = {}
    num_samples = 0
    for predictive, truth in pairs(batches, y):
        dice.append(PixelCounts.of(predictive, truth, ignore_index=ignore_index).foreground_dice)  # type: ignore[arg-type]
        for name, values in image_uncertainties(predictive).items():  # type: ignore[arg-type]
            scores.setdefault(name, []).append(values)
        num_samples = predictive.num_samples
    if not dice:
        raise ValueError("`batches` must give at least one batch; it gave none. A generator can be used once only.")
    if not all(len(values) == len(dice) for values in scores.values()):
        raise ValueError("Batches must all keep their draws (`keep_samples=True`), or none of them.")
    if bool(torch.cat(dice).isnan().all()):
        raise ValueError("No image has a labelled pixel, so that it is not known which have failed.")
    return ImageFailures(
        dice=torch.cat(dice),
        uncertainties={name: torch.cat(values) for name, values in scores.items()},
        failed_below=limit,
        num_samples=num_samples,
    )


def image_uncertainties(predictive: CategoricalPredictive) -> dict[str, Tensor]:
    """An uncertainty of each image in each of the ways above, (N,), float64; `disagreement` of draws that were kept."""
    entropy, said = predictive.total, predictive.mean.max(dim=1).indices
    largest = entropy.flatten(1).amax(dim=1)
    edge = borders(region_by_region(predictive, said)).view(said.shape)
    found = {
        "mean": entropy.flatten(1).mean(dim=1),
        "boundary": _mean_where(entropy, edge, entropy.flatten(1).mean(dim=1)),
        "foreground": _mean_where(entropy, said > 0, largest),
    }
    if predictive.draws is not None and predictive.num_samples > 1:
        found["disagreement"] = 1 - least_dice_of_draws(predictive)
    return found


def least_dice_of_draws(predictive: CategoricalPredictive) -> Tensor:
    """The smallest Dice of the foreground between two draws, (N,), float64; two without any agree.

    O(S^2 N) numbers.

    Raises:
        ValueError: The draws were not kept.
    """
    said = (predictive.samples.max(dim=2).indices > 0).flatten(2).movedim(1, 0).double()  # (N, S, pixels)
    both, sizes = said @ said.mT, said.sum(dim=2)
    together = sizes.unsqueeze(1) + sizes.unsqueeze(2)
    return torch.where(together == 0, 1.0, 2 * both / together).flatten(1).amin(dim=1)


def _mean_where(values: Tensor, where: Tensor, otherwise: Tensor) -> Tensor:
    """Mean over some pixels of each image, (N,); `otherwise` in an image without any."""
    number = where.flatten(1).sum(dim=1)
    mean = torch.where(where, values, 0.0).flatten(1).sum(dim=1) / number.clamp(min=1)
    return torch.where(number > 0, mean, otherwise)
