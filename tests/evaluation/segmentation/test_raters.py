"""Several raters, and regions that overlap: exact as targets, and what maps of uncertainty are held against."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.evaluation.segmentation.pixel_counts import PixelCounts
from bayesuq.evaluation.segmentation.raters import rater_agreement, rater_entropy, rater_shares, region
from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation
from bayesuq.inference import laplace, map_estimate
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.inference.examples import NO_MODE, built, noise

pytestmark = [pytest.mark.filterwarnings(NO_MODE), pytest.mark.filterwarnings("ignore::UserWarning")]


def rated(num_raters: int = 3) -> tuple[Tensor, Tensor]:
    """Images and the masks of their raters, who disagree."""
    x = noise(0, 4, 1, 5, 6)
    masks = torch.stack(
        [(x[:, 0] + 0.4 * noise(r + 1, 4, 5, 6)).clamp(-1.49, 1.49).add(1).round() for r in range(num_raters)]
    )
    return x, masks.clamp(0, 2).long()


def model(likelihood: Any, num_outputs: int = 3) -> BayesianNetwork:
    net = built(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, num_outputs, 1)).double())
    return BayesianNetwork(net, priors.Normal(), likelihood)


def test_shares_of_raters_are_a_row_for_each_of_them() -> None:
    """In the density, its gradient, and the curvature at one mode."""
    x, masks = rated()
    soft, hard = model(likelihoods.SoftCategorical()), model(likelihoods.Categorical())
    shares = rater_shares(masks, 3).double()
    rows = Dataset(x.repeat(3, 1, 1, 1), masks.flatten(0, 1), torch.full((12,), 1 / 3).double())
    theta = {name: value.requires_grad_() for name, value in soft.initial().items()}
    one = soft.log_joint(theta, x, soft.likelihood.targets(shares))
    other = hard.log_joint(theta, rows.x, rows.y, weight=rows.weight)
    torch.testing.assert_close(one, other)
    for a, b in zip(*(torch.autograd.grad(each, list(theta.values())) for each in (one, other)), strict=True):
        torch.testing.assert_close(a, b)
    mode = map_estimate.fit(soft, Dataset(x, shares), num_epochs=2, seed=0)
    assert mode.predict(x).mean.shape == (4, 3, 5, 6)
    at_one = laplace.fit(soft, Dataset(x, shares), mode=mode, subset="last_layer", structure="full")
    at_other = laplace.fit(hard, rows, mode=mode, subset="last_layer", structure="full")
    torch.testing.assert_close(at_one.curvature["full"], at_other.curvature["full"])
    assert at_one.log_likelihood == pytest.approx(at_other.log_likelihood)


def test_raters_who_have_not_seen_a_pixel_count_nowhere_in_it() -> None:
    x, masks = rated()
    masks[1, 2], masks[0, 0, :, :2], masks[:, 3, 1, 1] = 255, 255, 255
    shares, entropy = rater_shares(masks, 3, ignore_index=255), rater_entropy(masks, 3, ignore_index=255)
    for n, i, j in ((2, 0, 0), (0, 3, 1), (0, 3, 2), (3, 0, 0)):
        seen = masks[:, n, i, j][masks[:, n, i, j] != 255]
        torch.testing.assert_close(shares[n, :, i, j], torch.bincount(seen, minlength=3) / len(seen))
    assert shares[3, :, 1, 1].isnan().all()
    assert int(entropy.isnan().sum()) == 1
    data = Dataset(x, shares.double(), weight=~shares.isnan())
    soft = model(likelihoods.SoftCategorical())
    one = soft.log_joint(soft.initial(), x, data.y, weight=data.weight)
    other = soft.log_joint(soft.initial(), x, data.y.clone().index_fill_(0, torch.tensor([3]), 0.0))
    lost = soft.log_joint(soft.initial(), x[3:], data.y[3:], weight=data.weight[3:]) - soft.log_prior(soft.initial())
    torch.testing.assert_close(one, other + lost)
    predictive = CategoricalPredictive.from_logits(noise(5, 2, 4, 3, 5, 6))
    whole = rater_agreement(predictive, masks, ignore_index=255)["total_rank_correlation"].value
    keep = ~entropy.flatten(1).isnan()
    pairs = zip(predictive.total.flatten(1), entropy.flatten(1), keep, strict=True)
    of_images = [stats.spearmanr(map_[kept], truth[kept]).statistic for map_, truth, kept in pairs]
    assert whole == pytest.approx(sum(of_images) / 4)


def test_the_entropy_of_raters_is_that_of_their_labels() -> None:
    _, masks = rated()
    found = rater_entropy(masks, 3)
    for place in ((0, 0, 0), (1, 2, 3), (3, 4, 5)):
        counts = torch.bincount(masks[(slice(None), *place)], minlength=3)
        assert float(found[place]) == pytest.approx(stats.entropy(counts.numpy()))


def test_maps_are_ordered_as_the_raters_entropy_orders_pixels() -> None:
    x, masks = rated()
    masks[:, 1] = masks[:1, 1]  # raters of one image agree
    predictive = map_estimate.fit(
        model(likelihoods.SoftCategorical()), Dataset(x, rater_shares(masks, 3).double()), num_epochs=2, seed=0
    ).predict(x)
    found, entropy = rater_agreement(predictive, masks), rater_entropy(masks, 3)
    expected = [stats.spearmanr(predictive.total[n].flatten(), entropy[n].flatten()).statistic for n in (0, 2, 3)]
    assert found["total_rank_correlation"].value == pytest.approx(sum(expected) / 3)
    assert found.num_points == 3
    shares = CategoricalPredictive.from_probs(rater_shares(masks, 3).double()[None])
    assert rater_agreement(shares, masks)["aleatoric_rank_correlation"].value == pytest.approx(1.0)


def test_images_that_say_nothing_of_an_order_are_in_no_mean_and_no_number() -> None:
    _, masks = rated()
    masks[0, 1], masks[1:, 1] = 0, 1  # raters of one image disagree alike on every pixel
    probs = noise(5, 2, 4, 3, 5, 6).softmax(dim=2)
    probs[:, 2] = probs[:, 2, :, :1, :1]  # and of another one the maps are constant
    predictive = CategoricalPredictive.from_probs(probs)
    found, entropy = rater_agreement(predictive, masks), rater_entropy(masks, 3)
    expected = [stats.spearmanr(predictive.total[n].flatten(), entropy[n].flatten()).statistic for n in (0, 3)]
    assert found["total_rank_correlation"].value == pytest.approx(sum(expected) / 2)
    assert "(2 of 3 images; constant in others)" in found["total_rank_correlation"].remark
    assert found.num_points == 3
    with pytest.raises(ValueError, match="disagree alike"):
        rater_agreement(predictive, masks[:, [1, 1, 1, 1]])


def test_sigmoids_of_regions_are_read_as_they_are() -> None:
    probs = torch.rand(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    y = (torch.rand(2, 4, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5).long()
    predictive = CategoricalPredictive.from_probs(probs, kind="bernoulli")
    f = probs.logit()
    torch.testing.assert_close(predictive.total, likelihoods.Bernoulli().predictive(f).total)
    for k in range(4):
        alone, own = region(predictive, k), CategoricalPredictive.from_probs(probs[:, :, k : k + 1], kind="bernoulli")
        for part in ("mean", "total", "epistemic"):
            torch.testing.assert_close(getattr(alone, part), getattr(own, part))
        torch.testing.assert_close(alone.samples, own.samples)
        said = probs[:, :, k].mean(dim=0) > 0.5
        dice = PixelCounts.of(alone, y[:, k]).dice
        both = (said & (y[:, k] == 1)).flatten(1).sum(dim=1)
        torch.testing.assert_close(
            dice, 2 * both / (said.flatten(1).sum(dim=1) + y[:, k].flatten(1).sum(dim=1)).double()
        )
    assert evaluate_segmentation(region(predictive, 0), y[:, 0]).report["dice"].remark == "of class 1"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: likelihoods.SoftCategorical().targets([[0.2, 0.2]]), "sums that are off by 0.6"),
        (lambda: likelihoods.SoftCategorical().targets([[0.5, 0.5]], num_outputs=3), "shares of 3 classes"),
        (lambda: rater_shares([[0, 1]], 2), r"\(R, N, ...\)"),
        (lambda: CategoricalPredictive.from_probs([[[1.2]]], kind="bernoulli"), r"must lie in \[0, 1\]"),
        (lambda: CategoricalPredictive.from_probs([[[0.2]]], kind="binary"), "'categorical', 'bernoulli'"),
        (lambda: region(CategoricalPredictive.from_probs([[[0.2, 0.8]]]), 0), "K > 0 labels a pixel"),
    ],
)
def test_what_are_no_shares_or_regions_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
