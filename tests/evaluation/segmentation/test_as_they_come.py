"""Images and masks as others have them: the same numbers whatever their type, or an error that says what to pass."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.evaluation.segmentation.reporting import evaluate_segmentation
from bayesuq.inference import map_estimate
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.models import BayesianNetwork, likelihoods, priors
from tests.inference.examples import NO_MODE, built, noise

pytestmark = [pytest.mark.filterwarnings(NO_MODE), pytest.mark.filterwarnings("ignore::UserWarning")]

VOID = 255
X = noise(0, 4, 1, 5, 6).float()
Y = (X[:, 0] + 0.3 * noise(1, 4, 5, 6) > 0).long()


def fitted(y: Any, likelihood: Any, num_outputs: int, x: Any = X, **weight: Any) -> MapPosterior:
    net = built(lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, num_outputs, 1)))
    model = BayesianNetwork(net, priors.Normal(), likelihood)
    return map_estimate.fit(model, Dataset(x, y, **weight), num_epochs=2, batch_size=2, seed=0)


def with_void(y: Tensor) -> Tensor:
    voids = y.clone()
    voids[:, :2], voids[1] = VOID, VOID
    return voids


@pytest.mark.parametrize(
    ("kind", "has_void"),
    [
        *((torch.bool, False), (torch.float32, False), (np.bool_, False)),
        *((torch.uint8, True), (torch.int32, True), (torch.float32, True), (np.uint8, True), (np.uint16, True)),
    ],
)
def test_masks_of_any_type_are_the_same_labels(kind: Any, has_void: bool) -> None:
    y, options = (with_void(Y), {"ignore_index": VOID}) if has_void else (Y, {})
    given = y.to(kind) if isinstance(kind, torch.dtype) else y.numpy().astype(kind)
    one, other = (fitted(each, likelihoods.Categorical(**options), 2) for each in (y, given))
    assert torch.equal(one.values, other.values)
    predictive = one.predict(X)
    found = [evaluate_segmentation(predictive, each, **options).report for each in (y, given)]
    assert [m.value for m in found[0].measures] == pytest.approx([m.value for m in found[1].measures], nan_ok=True)


def test_void_pixels_of_binary_masks_have_weight_0() -> None:
    known = with_void(Y) != VOID
    one, other = (fitted(y * known, likelihoods.Bernoulli(), 1, weight=known) for y in (Y, with_void(Y)))
    assert torch.equal(one.values, other.values)
    assert not torch.equal(one.values, fitted(Y, likelihoods.Bernoulli(), 1).values)


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (lambda: fitted(with_void(Y), likelihoods.Bernoulli(), 1), r"got 0 to 255.*weight 0.*Dataset\(x, y \* known"),
        (lambda: fitted(with_void(Y), likelihoods.Categorical(), 2), "got 0 to 255.*`ignore_index`"),
        (lambda: fitted(nn.functional.one_hot(Y).movedim(-1, 1), likelihoods.Categorical(), 2), r"y.argmax\(1\)"),
        (lambda: fitted(Y, likelihoods.Categorical(), 2, X.movedim(1, -1)), r"channels come last.*x.movedim\(-1, 1\)"),
        (lambda: fitted(Y, likelihoods.Categorical(), 2, X[:, 0]), r"x.unsqueeze\(1\)"),
    ],
)
def test_what_is_laid_out_otherwise_is_told_how_to_come(fit: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit()


def test_one_hot_truth_is_told_how_to_come() -> None:
    predictive = fitted(Y, likelihoods.Categorical(), 2).predict(X)
    with pytest.raises(ValueError, match=r"Of one-hot labels pass `y.argmax\(1\)`"):
        evaluate_segmentation(predictive, nn.functional.one_hot(Y).movedim(-1, 1))
