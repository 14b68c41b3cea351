"""A last linear layer alone: sums and derivatives in closed form, which cost no backward pass for each class."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bayesuq.data import Dataset
from bayesuq.inference import laplace
from bayesuq.inference.adoption import adopt
from bayesuq.inference.laplace.fitting import Structure
from bayesuq.inference.laplace.linearisation import Linearisation
from bayesuq.inference.laplace.posterior import LaplacePosterior
from bayesuq.inference.laplace.structures import NormalWeights
from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.models.likelihoods.counts import Poisson
from bayesuq.models.likelihoods.labels import Categorical
from tests.inference.examples import NO_MODE, built, noise
from tests.zoo.computed_numbers import ComputedNumbers

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
def test_work_grows_as_classes_do_and_not_as_their_square() -> None:
    """With a root's columns, 400 classes would take a hundred times as many numbers as 40; the factor here is 16."""

    def numbers(num_classes: int) -> int:
        net = built(lambda: nn.Linear(16, num_classes))
        adopted, data = adopt(net, Categorical()), Dataset(noise(1, 60, 16), torch.arange(60) % num_classes)
        with ComputedNumbers() as computed:
            laplace.fit(adopted, data, structure="diagonal")
        return computed.count

    assert numbers(400) < 20 * numbers(40)


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.parametrize("bias", [True, False])
def test_shortcuts_of_a_kronecker_head_are_the_general_way(bias: bool) -> None:
    posterior = fitted("kronecker", Categorical(), bias=bias)
    law, linear = posterior.law, posterior._linear()
    _, derivatives = linear.derivatives(noise(1, 5, 3))
    z = noise(2, 7, law.layout.size)
    general = NormalWeights.pushed(law, derivatives, z)
    torch.testing.assert_close(law.pushed(derivatives, z), general, rtol=1e-9, atol=1e-9)
    covariance = law.output_covariance(derivatives)
    torch.testing.assert_close(law.output_variance(derivatives), covariance.diagonal(dim1=1, dim2=2))
    vector = law.layout.split(z[0])
    own = linear.as_derivatives(vector)
    torch.testing.assert_close(law.square(vector, lambda: own), law.output_covariance(own).sum())


class Rows(TorchDispatchMode):
    """Counts rows that go through the activation of a body."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += len(args[0]) if function is torch.ops.aten.tanh.default else 0
        return function(*args, **(kwargs or {}))


@pytest.mark.filterwarnings(NO_MODE)
@pytest.mark.parametrize("likelihood", [Categorical(), Poisson()])
def test_a_fit_around_a_mode_runs_the_body_once(likelihood: Likelihood) -> None:
    net = built(lambda: nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)))
    adopted = adopt(net, likelihood)
    y = torch.arange(400) % 2
    data = Dataset(noise(0, 400, 3), y if isinstance(likelihood, Categorical) else torch.stack([y, y], 1))
    with Rows() as rows:
        laplace.fit(adopted, data)
    assert 400 <= rows.count < 440  # a few rows are looked at before
