"""Several raters of the same images: their shares as targets, and their disagreement as the truth of a map.

Where raters disagree nobody can know, and no data make it known: their entropy at a pixel is what an aleatoric map
should be. Shares are the targets of `likelihoods.SoftCategorical`.

Reference:
    Jungo et al. 2018, On the effect of inter-observer variability for a reliable estimation of uncertainty of medical
    image segmentation; Kohl et al. 2018, A probabilistic U-Net.
"""

import torch
from torch import Tensor

from bayesuq.arrays import ArrayLike, as_labels, check_count
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report
from bayesuq.evaluation.segmentation.masks import check_regions
from bayesuq.evaluation.segmentation.measures import rank_correlation
from bayesuq.evaluation.standard_errors import closed_form
from bayesuq.predictive.categorical import CategoricalPredictive


def rater_shares(masks: ArrayLike, num_classes: int, *, ignore_index: int | None = None) -> Tensor:
    """Share of the raters who give a pixel each class, (N, C, ...), float32; NaN at pixels without a rater.

    In a Dataset of such shares the weight of what has none is 0: `Dataset(x, shares, weight=~shares.isnan())`.

    Args:
        masks: Labels of R raters, (R, N, ...).
        num_classes: C.
        ignore_index: The label of pixels, or of whole images, that a rater has not seen: shares are of the others.

    Raises:
        TypeError: Labels that are not whole numbers.
        ValueError: A label outside the classes; no rater.

    Example:
        >>> rater_shares([[[0, 1]], [[1, 1]]], 2)  # two raters of one image of two pixels
        tensor([[[0.5000, 0.0000],
                 [0.5000, 1.0000]]])
    """
    labels = as_labels(masks)
    as_labels(labels[labels != ignore_index], num_classes=check_count(num_classes, "num_classes", minimum=2))
    if labels.ndim < 3 or labels.numel() == 0:
        raise ValueError(f"`masks` must have shape (R, N, ...) of R raters; got {tuple(labels.shape)}.")
    counts = labels.new_zeros(num_classes, *labels.shape[1:], dtype=torch.float32)
    for k in range(num_classes):
        counts[k] = (labels == k).sum(dim=0)
    return (counts / counts.sum(dim=0)).movedim(0, 1)


def rater_entropy(masks: ArrayLike, num_classes: int, *, ignore_index: int | None = None) -> Tensor:
    """Entropy of the raters' labels at each pixel, in nats, (N, ...): 0 where they agree. See `rater_shares`."""
    return torch.special.entr(rater_shares(masks, num_classes, ignore_index=ignore_index).double()).sum(dim=1)


def rater_agreement(predictive: CategoricalPredictive, masks: ArrayLike, *, ignore_index: int | None = None) -> Report:
    """How a predictive's uncertainties order the pixels of an image, against the entropy of its raters.

    Rank correlations over the pixels of an image, then the mean over images whose raters disagree more on some pixels
    than on others. A map that is constant over an image orders nothing: that image is left out of its mean, and the
    remark tells how many are in it.

    Args:
        predictive: Of the pixels of N images, with a mean (N, C, ...).
        masks: Labels of R raters, (R, N, ...).
        ignore_index: The label of what a rater has not seen; pixels without a rater count nowhere.

    Raises:
        TypeError: Labels that are not whole numbers.
        ValueError: Masks of other images; raters who agree, or disagree alike, everywhere.

    Example:
        >>> p = torch.tensor([[[0.99, 0.6, 0.1], [0.01, 0.4, 0.9]]])
        >>> found = rater_agreement(CategoricalPredictive.from_probs(p[None]), [[[0, 0, 1]], [[0, 1, 1]]])
        >>> found["aleatoric_rank_correlation"].value > 0.8
        True
    """
    mean = predictive.mean
    entropy = rater_entropy(masks, mean.shape[1], ignore_index=ignore_index).to(mean.device)
    if entropy.shape != predictive.entropy_sum.shape:
        raise ValueError(
            f"`masks` must have images of {tuple(predictive.entropy_sum.shape)} of each rater; got "
            f"{tuple(entropy.shape)}."
        )
    order = [n for n, truth in enumerate(entropy) if len(truth[~truth.isnan()].unique()) > 1]
    if not order:
        raise ValueError(
            "The raters agree on every pixel, or disagree alike on all, so that there is nothing to order pixels by."
        )
    measures = []
    for name in ("total", "aleatoric", "epistemic"):
        maps = getattr(predictive, name)
        found = torch.stack([_of_seen(maps[n], entropy[n]) for n in order])
        found = found[~found.isnan()]
        if len(found):
            left_out = f" ({len(found)} of {len(order)} images; constant in others)" if len(found) < len(order) else ""
            remark = f"with the entropy of raters; 1 is their order{left_out}"
            error = closed_form.of_mean(found)
            measures.append(Measure.of(f"{name}_rank_correlation", found.mean(), error, "", remark))
    return Report(tuple(measures), len(order), predictive.num_samples)


def _of_seen(values: Tensor, entropy: Tensor) -> Tensor:
    """The rank correlation over the pixels of an image that have a rater."""
    seen = ~entropy.isnan()
    return rank_correlation(values[seen], entropy[seen])


def region(predictive: CategoricalPredictive, k: int) -> CategoricalPredictive:
    """One of K regions that may overlap, (N, 2, ...), for measures whose region is class 1.

    Args:
        predictive: Of K labels a pixel, with a mean (N, 2, K, ...), as `likelihoods.Bernoulli` gives.
        k: Which, from 0.

    Raises:
        ValueError: A predictive of one label a pixel; a region that is not there.
    """
    check_regions(predictive, k)
    small, draws = predictive.small_log_sum, predictive.draws
    return CategoricalPredictive(
        probability_sum=predictive.probability_sum[:, :, k],
        entropy_sum=predictive.entropy_sum[:, k],
        votes=predictive.votes[:, :, k],
        num_draws=predictive.num_draws,
        draws=None if draws is None else draws[:, :, :, k],
        small_log_sum=None if small is None else small[:, :, k],
    )
