"""The validation loss: rows count by their weights in every method that watches rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal

from bayesuq.data import Batch, Dataset
from bayesuq.inference import dropout, gp, ivon, map_estimate, variational
from bayesuq.inference.training.watching import with_weights_apart
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, noise

X, Y = noise(0, 12, 2), noise(1, 12, 2)
HELD_OUT, FURTHER = noise(2, 8, 2), noise(3, 4, 2)
pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore:IVON")


def targets_of(x, seed):
    return x.sum(dim=1, keepdim=True) + 0.3 * noise(seed, len(x), 2)


def regression(x, y=None, num_data=None, weight=None):
    slope = pyro.sample("slope", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    times = torch.ones(len(x), 1) if weight is None else weight.reshape(len(x), -1)
    rows = pyro.plate("rows", num_data or len(x), subsample=torch.arange(len(x)), dim=-2)
    scaled = poutine.scale(scale=torch.where(times > 0, times, 1.0))
    with rows, pyro.plate("columns", 2), scaled, poutine.mask(mask=times > 0):
        return pyro.sample("y", dist.Normal((x @ slope)[:, None].expand(-1, 2), 1.0), obs=y)


def network() -> BayesianNetwork:
    net = built(lambda: networks.mlp(2, (3,), 2, activation="tanh", dropout=0.2).double())
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.5))


def process() -> Any:
    return processes.GaussianProcess(processes.RBF(), likelihood=likelihoods.StudentT(df=4.0, scale=0.5))


FITS: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "map_estimate": (network, map_estimate.fit),
    "dropout": (network, dropout.fit),
    "mean field": (network, partial(variational.fit, estimator="weights")),
    "full rank": (network, partial(variational.fit, guide=variational.full_rank)),
    "a guide of Pyro's": (network, partial(variational.fit, guide=variational.autoguide(AutoNormal))),
    "ivon": (network, ivon.fit),
    "a sparse process": (process, partial(gp.fit, approximation="sparse", num_inducing=4)),
    "mode of a program": (lambda: regression, map_estimate.fit),
    "normal law of a program": (lambda: regression, variational.fit),
    "a program by a guide of Pyro's": (
        lambda: regression,
        partial(variational.fit, guide=lambda model: AutoLowRankMultivariateNormal(model, rank=1)),
    ),
}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def watched(name: str, validation: Dataset) -> tuple[float, ...]:
    model, fit = FITS[name]
    data = Dataset(X, targets_of(X, 4))
    return fit(model(), data, validation=validation, num_epochs=2, batch_size=12, seed=0).history.validation_loss


@pytest.mark.parametrize("name", FITS)
def test_rows_of_weight_2_are_two_rows_and_those_of_weight_0_none(name):
    held_out = Dataset(HELD_OUT, targets_of(HELD_OUT, 5))
    plain = watched(name, held_out)
    heavy = watched(name, Dataset(held_out.x, held_out.y, torch.full((8,), 2.0)))
    assert heavy == pytest.approx(plain, rel=1e-12)
    x, y = torch.cat([HELD_OUT, FURTHER]), torch.cat([held_out.y, FURTHER + 1e3])
    more = watched(name, Dataset(x, y, torch.tensor([1.0] * 8 + [0.0] * 4)))
    draws_by_row = name == "a sparse process"  # whose 64 draws are others where there are further rows
    assert more == pytest.approx(plain, rel=0.1 if draws_by_row else 1e-12)


@pytest.mark.parametrize("name", FITS)
def test_what_stands_for_a_missing_target_does_not_matter(name):
    weight = torch.ones(8, 2)
    weight[:3, 1] = 0.0
    y = targets_of(HELD_OUT, 5)
    other = torch.where(weight > 0, y, 1e3)
    assert watched(name, Dataset(HELD_OUT, other, weight)) == pytest.approx(
        watched(name, Dataset(HELD_OUT, y, weight)), rel=1e-12
    )


def test_validation_rows_without_any_weight_are_refused():
    with pytest.raises(ValueError, match="`validation` must have a row of positive weight"):
        watched("map_estimate", Dataset(HELD_OUT, targets_of(HELD_OUT, 5), torch.zeros(8)))


def test_weights_of_single_targets_are_those_of_rows_where_they_are_alike():
    y, weight = torch.zeros(3, 2), torch.tensor([[2.0, 2.0], [0.0, 0.5], [0.0, 0.0]])
    rows, largest = with_weights_apart(Batch(torch.zeros(3, 1), y, weight))
    assert rows.weight is not None
    assert rows.weight.tolist() == [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]]
    assert largest is not None
    assert largest.tolist() == [2.0, 0.5, 0.0]
    assert with_weights_apart(Batch(torch.zeros(3, 1), y, None))[1] is None
