"""Chains that predict the rows that they were fitted to much worse than can be are told of, and right ones are not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.inference import hmc, map_estimate, sgmcmc
from bayesuq.inference.chains.descent import MOST_STEPS, SHARE, Descent
from bayesuq.inference.chains.potential import NetworkPotential
from bayesuq.inference.chains.scores import warn_unless_scored
from bayesuq.inference.posteriors.chains import ChainPosterior
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import Conjugate, built, recorded_warnings

EXACT = Conjugate(60, 8, 0.5)
ROWS = Source(NetworkReader(EXACT.model), EXACT.data, 60).rows


def chains(*draws: Tensor) -> ChainPosterior:
    return ChainPosterior(
        model=EXACT.model,
        draws=torch.stack([one.to(EXACT.model.dtype) for one in draws]),
        buffers={},
        statistics={},
        warmup_statistics={},
    )


def told(posterior: ChainPosterior, start: object = None, descent: Descent | None = None) -> list[str]:
    with recorded_warnings() as record:
        warn_unless_scored(posterior, ROWS, start, descent)
    return [str(one.message) for one in record]


def around(centre: Tensor, spread: float = 1.0, seed: int = 0) -> Tensor:
    noise = torch.randn(40, len(centre), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return centre.double() + spread * EXACT.scale.double() * noise


def test_draws_of_the_posterior_are_no_worse_than_its_mode():
    mode = map_estimate.fit(EXACT.model, EXACT.data, num_epochs=300, learning_rate=0.03, seed=0)
    assert told(chains(around(EXACT.mean), around(EXACT.mean, seed=1)), mode) == []


def test_a_chain_that_lags_behind_another_is_told_with_both_scores():
    far = EXACT.mean + 60 * EXACT.scale
    (message,) = told(chains(around(EXACT.mean), around(far)))
    assert "1 of 2 chains" in message
    assert "much worse than the best of them" in message
    assert "chain 1 is" in message


def test_chains_that_all_lag_behind_are_told_by_what_they_began_at_or_by_a_constant():
    far = chains(around(EXACT.mean + 60 * EXACT.scale), around(EXACT.mean + 60 * EXACT.scale, seed=1))
    mode = map_estimate.fit(EXACT.model, EXACT.data, num_epochs=300, learning_rate=0.03, seed=0)
    assert "2 of 2 chains predict" in told(far, mode)[0]
    assert "than what they began at" in told(far, mode)[0]
    assert "than a constant" in told(chains(around(EXACT.mean + 1e4 * EXACT.scale)))[0]


@pytest.mark.parametrize(
    ("fit", "options"),
    [
        (sgmcmc.fit, {"step_size": 1e-7}),  # which moves nowhere
        (hmc.fit, {"kernel": "hmc", "num_steps": 1, "step_size": 1e-7, "num_warmup": 0}),
    ],
)
def test_both_samplers_judge_their_own_predictions(fit: Any, options: dict[str, Any]):
    far = map_estimate.fit(EXACT.model, EXACT.data, num_epochs=1, seed=0)
    far = replace(far, values=far.values + 1e3)
    with recorded_warnings() as record:
        fit(EXACT.model, EXACT.data, start=far, num_samples=10, num_chains=2, seed=0, **{"num_warmup": 1, **options})
    assert any(
        "2 of 2 chains predict the rows that they were fitted to much worse" in str(one.message) for one in record
    )


POTENTIAL = NetworkPotential(EXACT.model, ROWS)
BEHIND = EXACT.mean + 5 * EXACT.scale  # 5^2 * 8 / (2 * 60) = 1.7 nats a row: less than a constant loses


def descent(num_gradients: int) -> Descent:
    return Descent.after(num_gradients, lambda flat: POTENTIAL.at(flat)[1], POTENTIAL.layout)


def test_chains_that_lag_alike_are_told_by_where_a_descent_leads_and_draws_of_the_posterior_are_not():
    lagging = chains(around(BEHIND, 0.01), around(BEHIND, 0.01, seed=1))
    assert told(lagging) == []
    (message,) = told(lagging, descent=descent(10_000))
    assert "2 of 2 chains predict" in message
    assert "than what 200 steps down from the last draw of the best of them reach" in message
    assert told(chains(around(EXACT.mean), around(EXACT.mean, seed=1)), descent=descent(10_000)) == []


@pytest.mark.parametrize(("num_gradients", "num_steps"), [(100, 0), (5_000, 100), (10**6, MOST_STEPS)])
def test_a_descent_takes_a_fiftieth_of_the_chains_gradients(num_gradients: int, num_steps: int):
    asked = []

    def gradient(flat: Tensor) -> Tensor:
        asked.append(1)
        return POTENTIAL.at(flat)[1]

    Descent.after(num_gradients, gradient, POTENTIAL.layout).end(EXACT.mean.to(EXACT.model.dtype))
    assert len(asked) == num_steps <= SHARE * num_gradients


def test_a_descent_leaves_the_noise_and_point_values_where_they_are():
    net = built(lambda: networks.mlp(8, (), 1))
    model = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=priors.HalfNormal()))
    potential = NetworkPotential(model, ROWS)
    flat = torch.cat([0.5 * torch.ones(potential.layout.size, dtype=model.dtype), torch.tensor([7.0])])
    end = Descent.after(5_000, lambda at: potential.at(at)[1], potential.layout).end(flat)
    held = potential.layout.slices()["likelihood.scale"]
    assert end[held] == flat[held]
    assert end[-1] == 7
    assert (end != flat).sum() == potential.layout.size - 1


@pytest.mark.parametrize(
    ("fit", "options"),
    [
        (sgmcmc.fit, {"step_size": 1e-7, "num_warmup": 600}),
        (hmc.fit, {"kernel": "hmc", "num_steps": 20, "step_size": 1e-7, "num_warmup": 0}),
    ],
)
def test_both_samplers_look_where_a_descent_leads(fit: Any, options: dict[str, Any]):
    behind = map_estimate.fit(EXACT.model, EXACT.data, num_epochs=1, seed=0)
    behind = replace(behind, values=BEHIND.to(behind.values.dtype))
    with recorded_warnings() as record:
        fit(EXACT.model, EXACT.data, start=behind, num_samples=60, num_chains=2, seed=0, **options)
    assert any("steps down from the last draw" in str(one.message) for one in record)


def test_a_sampler_that_has_arrived_is_not_told_of_a_descent():
    with recorded_warnings() as record:
        hmc.fit(EXACT.model, EXACT.data, num_samples=60, num_warmup=100, num_chains=2, seed=0)
    assert not any("steps down" in str(one.message) for one in record)
