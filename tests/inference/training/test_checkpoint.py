"""A fit that was stopped, at any step and in any way, ends with the same bits as one that was not."""

import hashlib
import itertools
import os
import random
import signal
import time
import tracemalloc
from functools import cache, partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

from bayesuq.inference import dropout, ensemble, map_estimate, variational
from bayesuq.inference.training import loop as optimize
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.identity import digest
from bayesuq.inference.variational.guides import autoguide
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, measured
from tests.posterior_contract import tensors_of

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)

NUM_STEPS = 6  # three epochs of two steps


@cache
def regression(*, share=0.0, batch_norm=False, seed=0):
    net = built(lambda: networks.mlp(3, (6,), 1, dropout=share, batch_norm=batch_norm), seed)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale="learned"))


def program(x, y=None, num_data=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x))):
        return pyro.sample("y", dist.Normal(x @ slope, 0.2), obs=y)


def shuffled():
    """A loader that draws its order from torch's global generator."""
    return DataLoader(TensorDataset(measured().x, measured().y), batch_size=24, shuffle=True)


def shuffled_by_its_own():
    """And one that draws it from a generator of its own."""
    rows = TensorDataset(measured().x, measured().y)
    return DataLoader(rows, batch_size=24, shuffle=True, generator=torch.Generator().manual_seed(3))


CASES = {
    "map": (map_estimate.fit, regression, measured, {}),
    "map with dropout": (map_estimate.fit, partial(regression, share=0.3), measured, {}),
    "batch norm": (map_estimate.fit, partial(regression, batch_norm=True), measured, {}),
    "validation": (map_estimate.fit, regression, measured, {"validation": measured(20, seed=5)}),
    "clipped": (map_estimate.fit, regression, measured, {"max_grad_norm": 0.1, "schedule": "constant"}),
    "adversarial": (map_estimate.fit, regression, measured, {"adversarial": True}),
    "dropout": (dropout.fit, partial(regression, share=0.3), measured, {}),
    "variational": (variational.fit, regression, measured, {}),
    "variational, validation": (variational.fit, regression, measured, {"validation": measured(20, seed=5)}),
    "low rank": (variational.fit, regression, measured, {"guide": variational.low_rank(2)}),
    "annealed": (variational.fit, regression, measured, {"kl_weight": variational.annealed()}),
    "guide": (variational.fit, regression, measured, {"guide": autoguide(AutoNormal)}),
    "program": (variational.fit, lambda: program, measured, {}),
    "loader": (map_estimate.fit, partial(regression, share=0.3), shuffled, {}),
    "loader with a generator": (variational.fit, regression, shuffled_by_its_own, {}),
    "ensemble": (ensemble.fit, regression, measured, {"num_members": 2, "vectorised": False}),
    "ensemble, together": (ensemble.fit, regression, measured, {"num_members": 2, "vectorised": True}),
    "ensemble, bootstrap": (ensemble.fit, regression, measured, {"num_members": 2, "bootstrap": True}),
    "ensemble of variational": (ensemble.fit, regression, measured, {"num_members": 2, "member_fit": variational.fit}),
}


class StoppedError(Exception):
    """As if the power had failed."""


def fit(case, *, stop_after=None, monkeypatch=None, **options):
    """One of the cases; stopped once so many steps were made (and noted down) in this call."""
    method, model, data, own = CASES[case]
    steps = itertools.count()
    original = optimize._Run._step

    def step(self, batch):
        if stop_after is not None and next(steps) == stop_after:
            raise StoppedError
        original(self, batch)

    if monkeypatch is not None:
        monkeypatch.setattr(optimize._Run, "_step", step)
    everything = {"num_epochs": 3, "seed": 1, "learning_rate": 0.01, "batch_size": 24} | own | options
    try:
        return method(model(), data(), **everything)
    finally:
        if monkeypatch is not None:
            monkeypatch.setattr(optimize._Run, "_step", original)


def bits(posterior):
    members = getattr(posterior, "members", (posterior,))
    return tensors_of(posterior), [member.history for member in members]


def assert_same(one, other):
    (tensors, histories), (others, other_histories) = bits(one), bits(other)
    assert len(tensors) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
    assert histories == other_histories


@cache
def uninterrupted_fit(case, **options):
    """Fitted once for all the moments at which others are stopped."""
    return fit(case, **options)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_stopped_fit_goes_on_to_the_same_bits(case, stop_after, tmp_path, monkeypatch):
    uninterrupted = uninterrupted_fit(case)
    checkpoint = Checkpoint(tmp_path / "state", every_steps=1)
    with pytest.raises(StoppedError):
        fit(case, stop_after=stop_after, monkeypatch=monkeypatch, checkpoint=checkpoint)
    torch.rand(3)  # whatever happened in between
    assert_same(fit(case, checkpoint=checkpoint), uninterrupted)


@pytest.mark.parametrize("case", ["dropout", "loader", "ensemble", "ensemble, together"])
def test_checkpoints_between_steps_lose_steps_and_nothing_else(case, tmp_path, monkeypatch):
    uninterrupted = uninterrupted_fit(case)
    checkpoint = Checkpoint(tmp_path / "state", every_steps=2)
    for stop_after in (3, 3, 1):
        with pytest.raises(StoppedError):
            fit(case, stop_after=stop_after, monkeypatch=monkeypatch, checkpoint=checkpoint)
    assert_same(fit(case, checkpoint=checkpoint), uninterrupted)


def test_early_stopping_remembers(tmp_path, monkeypatch):
    options = {"validation": measured(20, seed=5), "patience": 2, "num_epochs": 60, "learning_rate": 0.3}
    uninterrupted = fit("map", **options)
    stopped_at = len(uninterrupted.history.loss)
    assert uninterrupted.history.best_epoch < stopped_at - 1 < 59
    checkpoint = Checkpoint(tmp_path / "state", every_steps=1)
    with pytest.raises(StoppedError):
        fit("map", stop_after=2 * stopped_at - 1, monkeypatch=monkeypatch, checkpoint=checkpoint, **options)
    assert_same(fit("map", checkpoint=checkpoint, **options), uninterrupted)


@pytest.mark.parametrize("case", ["map", "ensemble"])
def test_a_finished_fit_returns_at_once(case, tmp_path, monkeypatch):
    first = fit(case, checkpoint=tmp_path / "state")
    again = fit(case, checkpoint=str(tmp_path / "state"), stop_after=0, monkeypatch=monkeypatch)
    assert_same(first, again)


@pytest.mark.parametrize("case", ["map", "ensemble", "ensemble, together", "program"])
def test_without_a_seed_the_files_seed_is_taken(case, tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state", every_steps=1)
    with pytest.raises(StoppedError):
        fit(case, seed=None, stop_after=3, monkeypatch=monkeypatch, checkpoint=checkpoint)
    assert_same(fit(case, seed=None, checkpoint=checkpoint), fit(case, seed=checkpoint.seed()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_epochs": 5}, "its num_epochs is 3, this one's 5"),
        ({"learning_rate": 0.02}, "its learning_rate is 0.01"),
        ({"seed": 2}, "its seed is 1, this one's 2"),
        ({"batch_size": 8}, "its data is"),
        ({"adversarial": True}, "its loss at fixed weights is"),
        ({"validation": measured(20, seed=5)}, "its validation is None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_checkpoint_of_another_fit_is_refused(options, words, tmp_path):
    fit("map", checkpoint=tmp_path / "state")
    with pytest.raises(ValueError, match=f"belongs to another fit: {words}"):
        fit("map", checkpoint=tmp_path / "state", **options)


def test_other_data_priors_likelihoods_and_seeds_of_an_ensemble_are_refused(tmp_path):
    fit("map", checkpoint=tmp_path / "state")
    for model, data, words in (
        (regression(), measured(seed=1), "its data is"),
        (
            BayesianNetwork(regression().net, priors.Normal(scale=2.0), likelihoods.Normal("learned")),
            measured(),
            "its prior of 1.bias is not",
        ),
        (
            BayesianNetwork(regression().net, priors.Normal(), likelihoods.Normal(scale=0.2)),
            measured(),
            "learned sites",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            map_estimate.fit(
                model, data, num_epochs=3, batch_size=24, learning_rate=0.01, seed=1, checkpoint=tmp_path / "state"
            )
    fit("ensemble", checkpoint=tmp_path / "many")
    with pytest.raises(ValueError, match="its seed is 1, this one's 2"):
        fit("ensemble", checkpoint=tmp_path / "many", seed=2)


@pytest.mark.parametrize("case", ["map", "variational", "guide", "low rank", "loader", "ensemble, together"])
def test_a_network_that_was_built_without_a_seed_goes_on_from_the_weights_in_the_file(case, tmp_path, monkeypatch):
    method, _, data, own = CASES[case]
    options = {"num_epochs": 3, "seed": 1, "learning_rate": 0.01, "batch_size": 24} | own
    drops = {"share": 0.3} if case == "loader" else {}
    checkpoint = Checkpoint(tmp_path / "state", every_steps=1)
    with pytest.raises(StoppedError):
        fit(case, stop_after=3, monkeypatch=monkeypatch, checkpoint=checkpoint)
    model = regression(seed=8, **drops)
    if case == "ensemble, together":  # whose members begin where their seeds say
        again = method(model, data(), checkpoint=checkpoint, **options)
    else:
        with pytest.warns(UserWarning, match="began at other weights than the network has.*choose another path"):
            again = method(model, data(), checkpoint=checkpoint, **options)
    one, other = ({**vars(posterior), "model": None} for posterior in (again, uninterrupted_fit(case)))
    if case == "ensemble, together":
        one, other = ([vars(m) | {"model": None} for m in p["members"]] for p in (one, other))
    for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", ["map", "validation", "variational", "guide", "ensemble, together", "loader"])
@pytest.mark.parametrize("stop_after", [3, None])
def test_a_longer_fit_goes_on_to_the_bits_of_one_that_was_longer_from_the_start(
    case, stop_after, tmp_path, monkeypatch
):
    longer = uninterrupted_fit(case, schedule="constant", num_epochs=4)
    checkpoint = Checkpoint(tmp_path / "state", every_steps=1)
    if stop_after is None:
        fit(case, schedule="constant", checkpoint=checkpoint)
    else:
        with pytest.raises(StoppedError):
            fit(case, schedule="constant", stop_after=stop_after, monkeypatch=monkeypatch, checkpoint=checkpoint)
    assert_same(fit(case, schedule="constant", num_epochs=4, checkpoint=checkpoint), longer)
    with pytest.raises(ValueError, match="its num_epochs is 4, this one's 3"):
        fit(case, schedule="constant", checkpoint=checkpoint)


def test_a_file_of_other_versions_is_told_and_the_fit_goes_on(tmp_path, monkeypatch):
    versions = {"bayesuq": "0.0.1", "torch": "2.0.0"}
    with monkeypatch.context() as earlier:
        earlier.setattr("bayesuq.inference.training.identity.versions", lambda: versions)
        with pytest.raises(StoppedError):
            fit("map", stop_after=3, monkeypatch=earlier, checkpoint=Checkpoint(tmp_path / "state", every_steps=1))
    with pytest.warns(UserWarning, match=r"was written by bayesuq 0.0.1 \(now .*\) and torch 2.0.0 .*the fit goes on"):
        assert_same(fit("map", checkpoint=tmp_path / "state"), uninterrupted_fit("map"))


@pytest.mark.parametrize(
    ("case", "options", "words"),
    [
        ("map", {}, "its learning rate falls to 0 over all of them .a fit with schedule='constant'"),
        ("annealed", {"schedule": "constant"}, "since `kl_weight` changes with the share of the steps"),
    ],
)
def test_a_fit_whose_course_depends_on_its_length_cannot_be_made_longer(case, options, words, tmp_path):
    fit(case, checkpoint=tmp_path / "state", **options)
    with pytest.raises(ValueError, match=words):
        fit(case, checkpoint=tmp_path / "state", num_epochs=5, **options)


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_truncated_and_foreign_files_are_refused(length, tmp_path):
    path = tmp_path / "state"
    posterior = fit("map", checkpoint=path)
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    with pytest.raises(ValueError, match="not a complete file written by bayesuq"):
        fit("map", checkpoint=path)
    posterior.save(path)
    with pytest.raises(ValueError, match="is no checkpoint of this version"):
        fit("map", checkpoint=path)


@pytest.mark.parametrize(
    ("value", "error", "words"),
    [
        (3, TypeError, "`checkpoint` must be a path or a Checkpoint"),
        (partial(Checkpoint, "x", every_seconds=0.0), ValueError, "`every_seconds`"),
        (partial(Checkpoint, "x", every_steps=0), ValueError, "`every_steps`"),
    ],
    ids=["number", "seconds", "steps"],
)
def test_what_is_no_checkpoint_is_refused(value, error, words):
    with pytest.raises(error, match=words):
        fit("map", checkpoint=value() if callable(value) else value)


@pytest.mark.parametrize(("place", "error"), [("nowhere/state", FileNotFoundError), ("", IsADirectoryError)])
def test_a_place_that_cannot_be_written_is_told_before_the_first_step(tmp_path, place, error):
    steps = []
    with pytest.raises(error, match="folder"):
        fit("map", checkpoint=tmp_path / place, callbacks=[steps.append])
    assert steps == []


def test_time_decides_as_well_as_steps(tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(Checkpoint, "save", lambda _self, _fit, state: writes.append(state[0]["epoch"]))
    fit("map", checkpoint=Checkpoint(tmp_path / "state", every_seconds=1e-9))
    assert len(writes) == NUM_STEPS + 1
    writes.clear()
    fit("map", checkpoint=Checkpoint(tmp_path / "state", every_seconds=3600.0))
    assert writes == [3]  # the end


@pytest.mark.slow
def test_kill_9_at_random_moments(tmp_path):
    """Four times: a process that writes after every step is killed somewhere, and goes on to the same bits."""
    options = {"num_epochs": 60}
    uninterrupted = fit("dropout", **options)
    chance, interrupted = random.Random(0), 0
    for number in range(4):
        checkpoint = Checkpoint(tmp_path / str(number), every_steps=1)
        child = os.fork()
        if child == 0:
            try:
                fit("dropout", checkpoint=checkpoint, **options)
            finally:
                os._exit(0)
        while not checkpoint.path.exists():
            time.sleep(1e-3)
        time.sleep(chance.uniform(0.0, 0.2))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        interrupted += os.WIFSIGNALED(status)
        assert_same(fit("dropout", checkpoint=Checkpoint(checkpoint.path), **options), uninterrupted)
    assert interrupted >= 2  # else the moments were no test


def test_a_digest_depends_on_the_bits_and_needs_no_copy_of_the_data():
    data = torch.arange(3_000_000.0)  # 12 MB
    tracemalloc.start()
    known = digest({"x": data})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    plain = hashlib.sha256(f"x torch.float32 {tuple(data.shape)}".encode() + data.numpy().tobytes())
    assert known == plain.hexdigest()[:16]
    assert digest({"x": data.view(3, -1).T.contiguous().T}) == digest({"x": data.view(3, -1)})
    changed = data.clone()
    changed[2_999_999] += 1
    assert digest({"x": changed}) != known
    for small in (torch.tensor(3), torch.zeros(0, 4), torch.zeros(2, 0), torch.ones(3, dtype=torch.bfloat16)):
        assert digest({"x": small}) == digest({"x": small.clone()}) != known
