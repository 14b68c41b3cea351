"""A last linear layer alone: sums and derivatives in closed form, which cost no backward pass for each class."""

import time

import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import laplace
from bayesuq.inference.adoption import adopt
from bayesuq.inference.laplace.fitting import Structure
from bayesuq.inference.laplace.linearisation import Linearisation
from bayesuq.inference.laplace.posterior import LaplacePosterior
from bayesuq.models.likelihoods.labels import Categorical
from tests.inference.examples import NO_MODE, built, noise

NUM_CLASSES = 4


def fitted(structure: Structure, likelihood: Categorical, *, bias: bool) -> LaplacePosterior:
    net = built(
        lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, NUM_CLASSES, bias=bias)).double(), seed=1
    )
    x, y = noise(1, 30, 3), torch.arange(30) % NUM_CLASSES
    data = Dataset(x, y, torch.linspace(0.0, 2.0, 30))
    return laplace.fit(adopt(net, likelihood), data, structure=structure, batch_size=7)


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.parametrize("structure", ["diagonal", "kronecker", "full"])
@pytest.mark.parametrize(
    ("likelihood", "bias"),
    [
        (Categorical(), True),
        (Categorical(), False),
        (Categorical(ignore_index=2, class_weights=(1.0, 2.0, 1.0, 0.5)), True),
    ],
)
def test_closed_forms_are_what_backward_passes_give(
    structure: Structure, likelihood: Categorical, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = noise(2, 5, 3)
    ours = fitted(structure, likelihood, bias=bias)
    predictions = [ours.predict(x, num_samples=9, seed=0), ours.probit.predict(x)]
    monkeypatch.setattr(Linearisation, "is_head", lambda _self, _rows: False)
    theirs = fitted(structure, likelihood, bias=bias)
    for name, value in theirs.curvature.items():
        torch.testing.assert_close(ours.curvature[name], value, rtol=1e-12, atol=1e-12)
    for mine, other in zip(
        predictions, [theirs.predict(x, num_samples=9, seed=0), theirs.probit.predict(x)], strict=True
    ):
        torch.testing.assert_close(mine.mean, other.mean, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings(NO_MODE)
def test_time_grows_as_classes_do_and_not_as_their_square() -> None:
    """With a root's columns, 400 classes would take a hundred times as long as 40; the factor here is two or three."""

    def seconds(num_classes: int) -> float:
        net = built(lambda: nn.Linear(16, num_classes))
        adopted, data = adopt(net, Categorical()), Dataset(noise(1, 60, 16), torch.arange(60) % num_classes)
        start = time.process_time()
        laplace.fit(adopted, data, structure="diagonal")
        return time.process_time() - start

    seconds(40)
    assert min(seconds(400) for _ in range(3)) < 20 * min(seconds(40) for _ in range(3))
