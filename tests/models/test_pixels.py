"""Likelihoods of a label for each pixel: class weights, weight maps and ignored labels, pixel by pixel."""

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import map_estimate
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.randomness import isolated

VOID = 3


def maps(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """f of three classes, labels with void, weights; (2, 3, 4, 5), (2, 4, 5), (2, 4, 5)."""
    noise = torch.Generator().manual_seed(seed)
    f = torch.randn(2, 3, 4, 5, generator=noise, dtype=torch.float64)
    return f, torch.randint(4, (2, 4, 5), generator=noise), torch.rand(2, 4, 5, generator=noise, dtype=torch.float64)


def test_categorical_pixels_add_up_one_by_one() -> None:
    f, y, weight = maps()
    likelihood = likelihoods.Categorical(class_weights=(0.5, 1.0, 3.0), ignore_index=VOID)
    expected = torch.zeros(2, dtype=torch.float64)
    for n, i, j in ((n, i, j) for n in range(2) for i in range(4) for j in range(5)):
        label = int(y[n, i, j])
        if label != VOID:
            log_p = f[n, :, i, j].log_softmax(0)[label]
            expected[n] += weight[n, i, j] * (0.5, 1.0, 3.0)[label] * log_p
    torch.testing.assert_close(likelihood.log_prob(f, y, weight), expected)


@pytest.mark.parametrize("with_channel", [True, False])
def test_bernoulli_pixels_add_up_one_by_one(with_channel: bool) -> None:
    f, y, weight = maps()
    f, y = f[:, :1], (y > 1).long()
    likelihood = likelihoods.Bernoulli(class_weights=(0.5, 2.0))
    p = f[:, 0].sigmoid()
    terms = torch.where(y == 1, 2.0 * p.log(), 0.5 * (1 - p).log())
    given = (y[:, None], weight[:, None]) if with_channel else (y, weight)
    torch.testing.assert_close(likelihood.log_prob(f, *given), (weight * terms).flatten(1).sum(dim=1))


def test_binary_pixels_of_weight_0_do_not_count_whatever_their_label() -> None:
    f, y, weight = maps()
    f, y, weight = f[:, :1].requires_grad_(), (y > 1).long(), (weight > 0.5).double()
    flipped = torch.where(weight == 0, 1 - y, y)
    likelihood = likelihoods.Bernoulli()
    torch.testing.assert_close(likelihood.log_prob(f, y, weight), likelihood.log_prob(f, flipped, weight))
    (gradient,) = torch.autograd.grad(likelihood.log_prob(f, y, weight).sum(), f)
    assert (gradient[:, 0][weight == 0] == 0).all()


def test_pixels_that_are_ignored_leave_no_gradient() -> None:
    f, y, _ = maps()
    f.requires_grad_()
    (gradient,) = torch.autograd.grad(likelihoods.Categorical(ignore_index=VOID).log_prob(f, y).sum(), f)
    assert ((gradient == 0).all(dim=1) == (y == VOID)).all()


def test_a_fit_does_not_see_what_is_under_the_weights() -> None:
    """The same bits whether the pixels of weight 0 hold one label or the other."""
    noise = torch.Generator().manual_seed(1)
    x = torch.rand(4, 1, 6, 6, generator=noise)
    y, weight = (x[:, 0] > 0.5).long(), (torch.rand(4, 6, 6, generator=noise) > 0.3).float()
    with isolated(0):
        net = networks.unet(1, 1, depth=1, width=2)
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Bernoulli())
    hidden = torch.where(weight == 0, 1 - y, y)
    fits = [map_estimate.fit(model, Dataset(x, labels, weight), num_epochs=2, seed=0) for labels in (y, hidden)]
    assert torch.equal(fits[0].values, fits[1].values)


@pytest.mark.parametrize("kind", ["classes", "two classes", "shares", "heights"])
def test_the_likelihood_decides_what_whole_numbers_are(kind: str) -> None:
    """Masks as reals are labels where labels belong; shares and heights that happen to be whole are what they are."""
    _, y, weight = maps()
    x = torch.randn(2, 1, 4, 5, generator=torch.Generator().manual_seed(1))
    hot = torch.nn.functional.one_hot(y, 4).movedim(-1, 1)
    likelihood, num_outputs, whole = {
        "classes": (likelihoods.Categorical(ignore_index=VOID), 3, y),
        "two classes": (likelihoods.Bernoulli(), 1, (y > 1).long()),
        "shares": (likelihoods.SoftCategorical(), 4, hot),
        "heights": (likelihoods.Normal(), 1, y[:, None]),
    }[kind]
    with isolated(0):
        model = BayesianNetwork(nn.Conv2d(1, num_outputs, 1), priors.Normal(), likelihood)
    given = None if kind == "shares" else weight
    fits = [map_estimate.fit(model, Dataset(x, each, given), num_epochs=2, seed=0) for each in (whole, whole.float())]
    assert torch.equal(fits[0].values, fits[1].values)
