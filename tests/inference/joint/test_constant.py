"""The best constant: class shares, means and rates, weighted, whatever outputs the search starts from."""

import pytest
import torch
from torch import Tensor

from bayesuq.inference.joint.constant import best_constant
from bayesuq.models import likelihoods
from tests.inference.examples import noise

WEIGHT = torch.linspace(0.2, 2.0, 50, dtype=torch.float64)
LABELS = torch.arange(50).square() % 7 % 3
COUNTS = torch.arange(50).square() % 11
REAL = 3.0 + 2.0 * noise(1, 50)


def mean(values: Tensor) -> Tensor:
    return (WEIGHT * values.double()).sum() / WEIGHT.sum()


@pytest.mark.parametrize(
    ("likelihood", "y", "num_outputs", "exact"),
    [
        (likelihoods.Categorical(), LABELS, 3, torch.stack([mean(k == LABELS) for k in range(3)]).log()),
        (likelihoods.Poisson(), COUNTS.unsqueeze(1), 1, mean(COUNTS).log().reshape(1)),
        (likelihoods.Normal(scale=0.5), REAL.unsqueeze(1), 1, mean(REAL).reshape(1)),
    ],
    ids=["labels", "counts", "real"],
)
def test_it_is_as_good_as_the_closed_form(
    likelihood: likelihoods.Likelihood, y: Tensor, num_outputs: int, exact: Tensor
) -> None:
    found = best_constant(likelihood, 3.0 * noise(2, 50, num_outputs), y, WEIGHT)
    expected = likelihood.log_prob(exact.expand(50, -1), y, WEIGHT)
    # A hundredth of the .02 nats a row that tell a signal from none.
    assert 0 <= float(expected.sum() - found.sum()) / 50 + 1e-12 < 2e-4
