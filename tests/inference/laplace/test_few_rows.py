"""Outputs of a last layer drawn at few rows have the law of those that draws of its weights give."""

import pytest
import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.inference import laplace
from bayesuq.inference.adoption import adopt
from bayesuq.inference.laplace import posterior as laplace_posterior
from bayesuq.inference.laplace.fitting import Structure
from bayesuq.inference.laplace.posterior import LaplacePosterior
from bayesuq.models.likelihoods import Categorical
from bayesuq.randomness import isolated

NUM_CLASSES, NUM_DRAWS = 5, 4000
pytestmark = pytest.mark.filterwarnings("ignore::bayesuq.ConvergenceWarning")


def fitted(structure: Structure, *, bias: bool = True) -> tuple[LaplacePosterior, Tensor]:
    """Of a small network in float64, and six rows of which two are the same."""
    with isolated(0):
        net = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, NUM_CLASSES, bias=bias)).double()
        x = torch.randn(30, 3, dtype=torch.float64)
    posterior = laplace.fit(adopt(net, Categorical()), Dataset(x, torch.arange(30) % NUM_CLASSES), structure=structure)
    assert isinstance(posterior, LaplacePosterior)
    return posterior, torch.cat([x[:5], x[:1]])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_the_joint_covariance_over_rows_and_outputs_is_that_of_the_weights(structure: Structure, bias: bool) -> None:
    posterior, x = fitted(structure, bias=bias)
    _, derivatives = posterior._linear().derivatives(x)
    weights = torch.eye(posterior.law.layout.size, dtype=torch.float64)  # both maps of noise are linear
    of_weights = posterior.law.layout.split(posterior.law.deviation(weights))
    expected = derivatives.pushed(of_weights).flatten(1)  # (R, N C)
    outputs = posterior.law.outputs_at(derivatives)
    assert outputs is not None
    noise = torch.eye(NUM_CLASSES * len(x), dtype=torch.float64).view(-1, NUM_CLASSES, len(x))
    found = outputs.draws(noise).flatten(1)
    torch.testing.assert_close(found.T @ found, expected.T @ expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("structure", ["kronecker", "diagonal"])
def test_few_rows_are_predicted_by_the_same_law(monkeypatch: pytest.MonkeyPatch, structure: Structure) -> None:
    posterior, x = fitted(structure)
    by_weights = posterior.predict(x, num_samples=NUM_DRAWS, seed=0, keep_samples=True)
    monkeypatch.setattr(laplace_posterior, "MANY_WEIGHTS", 1)
    by_outputs = posterior.predict(x, num_samples=NUM_DRAWS, seed=1, keep_samples=True)
    one, other = by_weights.draws, by_outputs.draws  # type: ignore[attr-defined]
    centred = [draws - draws.mean(dim=2, keepdim=True) for draws in (one, other)]  # of softmax up to a constant
    first, second = (draws.flatten(1) for draws in centred)
    error = (first.var(dim=0) + second.var(dim=0)).div(NUM_DRAWS).sqrt()
    assert ((first.mean(dim=0) - second.mean(dim=0)).abs() < 5 * error).all()
    # Of two samples of S normal draws a correlation differs by at most sqrt(2 / S) in standard error.
    between = (torch.corrcoef(first.T) - torch.corrcoef(second.T)).abs().max()
    assert between < 5 * (2 / NUM_DRAWS) ** 0.5
    assert torch.allclose(other[:, 0], other[:, 5], atol=1e-4)  # the same row twice: a draw is a function


def test_no_more_is_drawn_than_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, x = fitted("kronecker")
    shapes: list[tuple[int, ...]] = []
    original = LaplacePosterior._noise

    def recorded(self: LaplacePosterior, *args: object) -> Tensor:
        noise = original(self, *args)  # type: ignore[arg-type]
        shapes.append(tuple(noise.shape))
        return noise

    monkeypatch.setattr(LaplacePosterior, "_noise", recorded)
    before = posterior.predict(x, num_samples=3, seed=0).mean
    monkeypatch.setattr(laplace_posterior, "MANY_WEIGHTS", 3 * posterior.law.layout.size)
    found = posterior.predict(x, num_samples=3, seed=0).mean
    assert shapes == [(3, posterior.law.layout.size), (3, NUM_CLASSES, len(x))]
    assert not torch.equal(before, found)
    assert torch.equal(posterior.predict(x, num_samples=3, seed=0).mean, found)
    many = posterior.predict(x.repeat(6, 1), num_samples=3, seed=0).mean  # as draws of weights, which are functions
    torch.testing.assert_close(many[: len(x)], before)
    posterior.to_arviz(x, num_samples=3, seed=0)  # whose draws of outputs are those of its weights
    assert shapes[-1] == (3, posterior.law.layout.size)
