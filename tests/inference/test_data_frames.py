"""Fits read data sets by the names of their columns, and keep these."""

from typing import Any

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import bayesuq as bq
from bayesuq.data import Dataset
from bayesuq.inference import hmc, laplace, map_estimate, sgmcmc, stacking, temperature, variational
from bayesuq.models import likelihoods, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, labelled, measured
from tests.posterior_contract import NAMES, framed, network

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)
BRIEF = {"num_epochs": 2, "seed": 0}
BACKWARDS = NAMES[::-1]


def model(num_outputs: int = 1) -> BayesianNetwork:
    likelihood = likelihoods.Normal(scale=0.2) if num_outputs == 1 else likelihoods.Categorical()
    return BayesianNetwork(network(num_outputs, dropout=0.0), priors.Normal(), likelihood)


def in_order(data: Dataset, names: list[str]) -> Dataset:
    return Dataset(framed(data.x)[names], data.y)


def program(x: Any, y: Any = None) -> None:
    import pyro
    import pyro.distributions as dist

    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ slope, 0.2), obs=None if y is None else y.flatten())


@pytest.mark.parametrize("names", [NAMES, BACKWARDS])
def test_rows_to_validate_on_are_read_in_the_order_of_those_to_fit(names: list[str]) -> None:
    data, watched = in_order(measured(), NAMES), measured(20, seed=4)
    one = map_estimate.fit(model(), data, validation=in_order(watched, names), **BRIEF)
    other = map_estimate.fit(model(), measured(), validation=watched, **BRIEF)
    assert one.history.validation_loss == other.history.validation_loss
    assert torch.equal(one.values, other.values)
    assert one.feature_names == tuple(NAMES)


def test_rows_are_read_in_the_order_of_the_posterior_that_a_fit_stands_on() -> None:
    held_out = labelled(40, seed=4)
    posterior = map_estimate.fit(model(3), in_order(labelled(), NAMES), num_epochs=60, learning_rate=0.05, seed=0)
    one, other = (temperature.fit(posterior, rows) for rows in (in_order(held_out, BACKWARDS), held_out))
    assert one.temperature == other.temperature
    moved = framed(held_out.x)[BACKWARDS]
    assert torch.equal(one.predict(moved).mean, other.predict(held_out.x).mean)
    again = laplace.fit(model(3), in_order(labelled(), BACKWARDS), mode=posterior, subset="last_layer", seed=0)
    assert again.feature_names == tuple(NAMES)
    assert torch.equal(again.predict(moved, seed=0).mean, again.predict(held_out.x, seed=0).mean)


def test_stacked_posteriors_judge_rows_by_the_names_of_their_columns() -> None:
    judged = measured(20, seed=4)
    members = [map_estimate.fit(model(), in_order(measured(), names), **BRIEF) for names in (NAMES, BACKWARDS)]
    one = stacking.fit(members, in_order(judged, BACKWARDS), seed=0)
    scores = [member.predict(framed(judged.x)).log_prob(judged.y).double() for member in members]
    weights = stacking.stacking_weights(torch.stack(scores))
    assert one.weights == pytest.approx(weights.tolist(), abs=0.002)
    assert min(one.weights) > 0.05
    one, other = (one.predict(framed(judged.x)[names], seed=0).mean for names in (NAMES, BACKWARDS))
    assert torch.equal(one, other)


@pytest.mark.parametrize("method", [hmc, sgmcmc, variational])
def test_programs_read_data_frames_by_the_names_of_their_columns(method: Any) -> None:
    options = {"num_epochs": 2} if method is variational else {"num_samples": 4, "num_warmup": 4, "num_chains": 1}
    posterior = method.fit(program, in_order(measured(), NAMES), seed=0, **options)
    x = measured(5, seed=4).x
    assert torch.equal(posterior.predict(framed(x)[BACKWARDS], seed=0).mean, posterior.predict(x, seed=0).mean)


def test_units_and_all_that_stands_on_them_read_data_frames_by_the_names_of_their_columns() -> None:
    data = in_order(measured(), NAMES)
    units = bq.Standardizer.fit(data)
    posterior = bq.in_units(map_estimate.fit(model(), units.transform(data), **BRIEF), units)
    x = measured(5, seed=4).x
    told = [posterior.to_arviz(rows, num_prior_samples=0, seed=0) for rows in (x, framed(x)[BACKWARDS])]
    one, other = (bq.to_arviz.container.group(each, "predictions")["mu"].values for each in told)
    assert (one == other).all()


def test_a_fit_without_names_reads_data_frames_by_their_places() -> None:
    for data in (measured(), DataLoader(torch.utils.data.TensorDataset(measured().x, measured().y), batch_size=24)):
        posterior = map_estimate.fit(model(), data, **BRIEF)
        x = measured(5, seed=4).x
        assert torch.equal(posterior.predict(pd.DataFrame(x.numpy())).mean, posterior.predict(x).mean)
