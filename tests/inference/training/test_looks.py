"""Looks at the loss under the same masks: what they cost, that they change nothing, and that checkpoints hold them."""

import numpy as np
import pytest
import torch
from torch import nn

from bayesuq.data import Dataset
from bayesuq.inference import dropout, map_estimate
from bayesuq.inference.posteriors.network_mode import ModeObjective
from bayesuq.inference.training import looks
from bayesuq.inference.training.minibatches import NetworkReader, Source
from bayesuq.inference.training.trend import paired_trend
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import built, noise, recorded_warnings


def data(num_rows: int = 60) -> Dataset:
    x = noise(0, num_rows, 1)
    return Dataset(x, torch.sin(2 * x[:, 0]) + 0.1 * noise(1, num_rows), torch.linspace(0.5, 1.5, num_rows))


def model(*, drops: float = 0.2) -> BayesianNetwork:
    net = built(
        lambda: nn.Sequential(nn.Linear(1, 20), nn.BatchNorm1d(20), nn.Tanh(), nn.Dropout(drops), nn.Linear(20, 1))
    )
    return BayesianNetwork(net, priors.StudentT(df=3.0), likelihoods.Normal(scale="learned"))


def looked(num_rows: int, batch_size: int, num_steps: int, num_weights: int) -> looks.Looks:
    net = BayesianNetwork(networks.mlp(1, (5,), 1), priors.Normal(), likelihoods.Normal())
    source = Source(NetworkReader(net), data(num_rows), batch_size)
    leaves = {"weights": torch.zeros(num_weights)}
    return looks.Looks(lambda batch, _: batch.y[:, 0], leaves, {}, source, num_steps, 0)


@pytest.mark.parametrize("num_steps", [500, 20_000])
@pytest.mark.parametrize("num_rows", [60, 3000])
def test_looks_are_half_a_hundredth_of_the_rows_that_a_fit_passes(num_rows, num_steps):
    taken = looked(num_rows, 128, num_steps, num_weights=10**6)
    assert len(taken.steps) == looks.MOST_LOOKS
    for step in taken.steps:
        taken.after(step)
    num_passes = sum(one.numel() for one in taken.seen)
    assert num_passes <= 0.005 * looks.BACKWARD * num_steps * min(num_rows, 128)
    assert {one.shape for one in taken.seen} == {taken.seen[0].shape}


def test_a_large_network_that_is_trained_for_a_few_steps_is_not_looked_at():
    assert looked(3000, 32, 30, num_weights=10**8).steps == []
    assert len(looked(3000, 32, 600, num_weights=1000).steps) == looks.MOST_LOOKS


@pytest.mark.parametrize("num_steps", [5, 40, 60, 100, 320])
@pytest.mark.parametrize("num_rows", [60, 3000])
def test_a_short_fit_takes_few_looks_at_few_rows(num_rows, num_steps):
    taken = looked(num_rows, 128, num_steps, num_weights=1000)
    assert len(taken.steps) <= max(4, num_steps / 50)  # a look is half a step, and a fit's other work 30 of them
    assert len(set(taken.steps)) == len(taken.steps)
    assert bool(taken.steps) == (num_steps >= 50)
    assert not taken.steps or sum(len(part) for part in taken._parts) <= 128


def test_the_mean_over_rows_and_masks_estimates_the_loss_of_steps():
    rows, joint = data(), ModeObjective(model(drops=0.1), 60)
    batch = Source(NetworkReader(joint.model), rows, 60).rows
    steps = torch.stack([joint.loss_and_grads(batch, torch.Generator().manual_seed(seed)) for seed in range(20)]) / 60
    seen = torch.stack([joint.row_losses(batch, torch.Generator().manual_seed(seed)).detach() for seed in range(20)])
    assert torch.allclose(steps, seen.mean(dim=1), rtol=1e-5)


def test_a_fit_without_masks_is_not_looked_at():
    joint = ModeObjective(model(drops=0.0), 60)
    batch = Source(NetworkReader(joint.model), data(), 60).rows
    joint.loss_and_grads(batch, torch.Generator())
    assert joint.row_losses(batch, torch.Generator()) is None


@pytest.mark.parametrize("fit", [dropout.fit, map_estimate.fit])
def test_looks_change_no_bit_of_the_fit(fit, monkeypatch):
    def fitted():
        with recorded_warnings() as record:
            posterior = fit(model(), data(), num_epochs=20, batch_size=20, learning_rate=1e-3, seed=0)
        return posterior, any("still falling" in str(one.message) for one in record)

    seen, is_told = fitted()
    monkeypatch.setattr(looks, "FEWEST_ROWS", 10**9)
    monkeypatch.setattr(looks, "CHEAP_WORK", 0)
    monkeypatch.setattr(looks, "SHARE", 0.0)
    blind, is_told_blindly = fitted()
    assert torch.equal(seen.values, blind.values)
    assert all(torch.equal(buffer, blind.buffers[name]) for name, buffer in seen.buffers.items())
    assert is_told
    assert not is_told_blindly


class StopError(Exception):
    pass


@pytest.mark.parametrize("epoch", [4, 15])
def test_a_fit_that_was_stopped_tells_what_it_would_have_told(epoch, tmp_path):
    def stop(progress):
        if progress.epoch == epoch:
            raise StopError

    def told(**options):
        with recorded_warnings() as record:
            dropout.fit(model(), data(), num_epochs=20, batch_size=20, learning_rate=1e-3, seed=0, **options)
        return [str(one.message) for one in record]

    with pytest.raises(StopError):
        told(checkpoint=tmp_path / "fit", callbacks=[stop])
    again = told(checkpoint=tmp_path / "fit")
    assert any("still falling" in one for one in again)
    assert again == told()


def test_a_file_without_looks_ends_them():
    taken = looked(60, 60, 500, num_weights=100)
    taken.resume({}, taken.steps[2])
    assert taken.trend("cosine") is None
    assert taken.steps == []
    early = looked(60, 60, 500, num_weights=100)
    early.resume({}, early.steps[0] - 1)
    assert len(early.steps) == looks.MOST_LOOKS


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_fall_is_told_whatever_the_number_of_steps_and_rest_is_not(schedule):
    rows = 0.1 * noise(5, 1, 2, 30).numpy()
    for num_steps in range(50, 300, 7):
        steps = looks.steps_of_looks(num_steps)
        times = np.array(steps) / num_steps
        left = 1 - times if schedule == "constant" else 1 - (times + np.sin(np.pi * times) / np.pi)
        own = 0.001 * noise(num_steps, len(steps), 2, 30).numpy()  # that a row's loss moves by from look to look
        for fall in (0.0, 1.0):
            found = paired_trend(rows + own + fall * left[:, None, None], times, 60, schedule)
            assert found is not None
            assert found.exceeds(0.01) == (fall > 0), num_steps
    assert looks.steps_of_looks(49) == []
