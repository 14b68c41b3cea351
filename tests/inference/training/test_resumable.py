"""Loops that are interrupted at any moment, whose disk is full, whose path is another's, whose parent is no more."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bayesuq.inference import ensemble, gp, hmc, map_estimate, sgmcmc, variational
from bayesuq.inference.chains import processes as chain_processes
from bayesuq.inference.training import bars
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.inference.training.interruptions import ASKED_TO_END, Interruptions
from bayesuq.inference.training.locks import locked
from bayesuq.inference.training.resumable import Resumable
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from tests.inference.examples import SHORT_FIT, built, measured
from tests.posterior_contract import tensors_of

pytestmark = [
    pytest.mark.filterwarnings(
        *SHORT_FIT, "ignore:.*diverged", "ignore:.*greatest length", "ignore:The hyperparameters had not converged"
    ),
]


def regression(scale: Any = 0.2) -> BayesianNetwork:
    net = built(lambda: networks.mlp(3, (6,), 1, batch_norm=True))
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=scale))


def of(fit: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    return partial(fit, regression(), measured(), seed=1, progress=False, **options)


DELAYS = (2e-5, 3e-4, 1e-3, 4e-3)  # seconds
CHAINS = {"num_warmup": 20, "num_chains": 1}
FITS = {
    "map": of(map_estimate.fit, num_epochs=15, batch_size=16, schedule="constant"),
    "variational": of(variational.fit, num_epochs=15, batch_size=16),
    "ensemble": of(ensemble.fit, num_epochs=10, batch_size=16, num_members=2, vectorised=False),
    "sgmcmc": of(sgmcmc.fit, num_samples=20, thinning=2, batch_size=16, **CHAINS),
    "hmc": of(hmc.fit, num_samples=15, kernel="hmc", num_steps=5, chain_method="sequential", **CHAINS),
    "process": partial(
        gp.fit,
        processes.GaussianProcess(processes.Scale(processes.RBF())),
        measured(60),
        approximation="exact",
        seed=1,
        num_restarts=3,
    ),
}


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts() -> Iterator[None]:
    """As on a terminal: a process in the background starts with a Ctrl-C that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupter:
    """Ctrl-C at a chosen time after a chosen number of steps, wherever the code then is; and counts the steps."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.count, self.at, self.delay, self.own = 0, -1, 0.0, Resumable.note
        patch.setattr(Resumable, "note", lambda *place, **told: self.note(*place, **told))

    def note(self, *place: Any, **told: Any) -> None:
        self.count += 1
        if self.count == self.at:
            signal.setitimer(signal.ITIMER_REAL, self.delay)
        self.own(*place, **told)

    @contextmanager
    def after(self, steps: int, delay: float) -> Iterator[None]:
        self.count, self.at, self.delay = 0, steps, delay
        before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", FITS)
def test_an_interrupted_fit_has_written_what_it_knew_and_goes_on_to_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, checkpoint = FITS[name], Checkpoint(tmp_path / "state", every_seconds=3600.0)
    interrupter, handler = Interrupter(monkeypatch), signal.getsignal(signal.SIGINT)
    whole = fit(checkpoint=Checkpoint(tmp_path / "state.whole", every_seconds=3600.0))
    steps, made, interruptions, found = interrupter.count, 0, 0, None
    while found is None:
        try:
            with interrupter.after(steps // 4, DELAYS[interruptions % len(DELAYS)]):
                found = fit(checkpoint=checkpoint)
        except KeyboardInterrupt:
            interruptions += 1
            assert all(path.name.startswith("state") for path in tmp_path.iterdir())  # no lock, nothing half written
        made += interrupter.count
        assert signal.getsignal(signal.SIGINT) is handler
    assert interruptions >= 2
    assert made == steps  # none is made twice
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(found), tensors_of(whole), strict=True))


def test_ctrl_c_while_a_step_is_noted_waits_for_a_step_that_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, saved = Resumable._is_due, []

    def interrupted(self: Resumable, number: int) -> bool:
        if number == 7:
            signal.raise_signal(signal.SIGINT)  # after the question whether one waits
        return ask(self, number)

    save = Checkpoint.save
    monkeypatch.setattr(Resumable, "_is_due", interrupted)
    monkeypatch.setattr(Checkpoint, "save", lambda *given: (saved.append(given[0]), save(*given)))
    with pytest.raises(KeyboardInterrupt):
        FITS["map"](checkpoint=Checkpoint(tmp_path / "state", every_seconds=3600.0))
    assert len(saved) == 1


@pytest.mark.parametrize("name", ["map", "process"])
def test_ctrl_c_waits_for_the_end_of_a_step_without_a_checkpoint_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupter = Interrupter(monkeypatch)
    for steps in range(1, 40, 3):
        with pytest.raises(KeyboardInterrupt) as raised, interrupter.after(steps, 5e-5 * steps):
            FITS[name]()
        assert "deliver" in [entry.name for entry in raised.traceback]
        assert torch.is_grad_enabled()


def test_a_second_ctrl_c_does_not_wait() -> None:
    interruptions = Interruptions()
    interruptions.__enter__()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interruptions.__exit__()


def test_signals_that_python_does_not_answer_stay_as_they_are() -> None:
    answers = [signal.getsignal(number) for number in ASKED_TO_END]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruptions():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, answers[0])
    assert [signal.getsignal(number) for number in ASKED_TO_END] == answers


def test_a_fit_in_a_thread_leaves_signals_alone() -> None:
    answers: list[Any] = []
    note = lambda _: answers.append(signal.getsignal(signal.SIGINT))  # noqa: E731
    thread = threading.Thread(target=partial(FITS["map"], callbacks=[note]))
    thread.start()
    thread.join()
    assert set(answers) == {signal.getsignal(signal.SIGINT)}


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_a_callback_that_ends_the_fit_loses_no_epoch(error: type[BaseException], tmp_path: Path) -> None:
    epochs: list[int] = []

    def stop(progress: Any) -> None:
        epochs.append(progress.epoch)
        if progress.epoch == 10:
            raise error

    checkpoint = Checkpoint(tmp_path / "state", every_seconds=3600.0)
    whole = FITS["map"]()
    with pytest.raises(error):
        FITS["map"](checkpoint=checkpoint, callbacks=[stop])
    found = FITS["map"](checkpoint=checkpoint, callbacks=[stop])
    assert epochs == [*range(15)]
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(found), tensors_of(whole), strict=True))


def test_a_full_disk_is_told_and_the_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sync, count = FITS["map"](), os.fsync, iter(range(10_000))

    def full(descriptor: int) -> None:
        if 4 < next(count) < 20:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    checkpoint = Checkpoint(tmp_path / "state", every_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.warns(UserWarning, match=r"state' could not be written .*No space left.* The fit goes on") as told:
            found = FITS["map"](checkpoint=checkpoint)
    assert 10 < len(told) < 20
    again = FITS["map"](checkpoint=checkpoint)  # it was written again once there was space
    for posterior in (found, again):
        assert all(torch.equal(a, b) for a, b in zip(tensors_of(posterior), tensors_of(whole), strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("name", ["map", "sgmcmc", "process"])
def test_two_fits_at_one_path_are_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / "state"
    with locked(path), pytest.raises(BlockingIOError, match=f"written by another fit, in process {os.getpid()}. Wait"):
        FITS[name](checkpoint=path)
    FITS[name](checkpoint=path)
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        with locked(tmp_path / "state"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".state.lock").exists()
    with locked(tmp_path / "state"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_many_that_want_a_path_have_it_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []

    def work() -> None:
        for _ in range(100):
            try:
                with locked(tmp_path / "state"):
                    inside.append(1)
                    assert sum(inside) == 1
                    inside.pop()
            except BlockingIOError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == []


@pytest.mark.parametrize("name", ["map", "sgmcmc", "hmc"])
def test_without_a_bar_no_tqdm_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bars, "tqdm", None)
    FITS[name]()
    with pytest.raises(TypeError, match="not callable"):
        FITS[name](progress=True)


def test_chains_that_are_given_no_process_of_their_own_leave_this_one_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"num_samples": 5, "num_warmup": 5, "num_chains": 2, "kernel": "hmc", "num_steps": 2}
    fit = of(hmc.fit, **options)
    monkeypatch.setattr(chain_processes, "num_cores", lambda: 1)  # joblib then computes in the calling process
    found, whole = fit(chain_method="parallel"), fit(chain_method="sequential")
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(found), tensors_of(whole), strict=True))


def ended(code: int) -> None:
    raise SystemExit(code)


def test_a_process_whose_parent_has_ended_writes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os._exit", ended)
    for parent in (os.getppid(), os.getpid()):  # the second is not this process's own
        loop = Resumable(Checkpoint(tmp_path / str(parent)), None, lambda: ({}, {}), parent=parent)
        if parent == os.getppid():
            loop.write(1)
        else:
            with pytest.raises(SystemExit):
                loop.write(1)
    assert [int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()] == [os.getppid()]


def test_a_process_of_a_chain_ends_soon_after_its_parent_though_it_writes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    has_ended, parent = threading.Event(), os.getpid()
    monkeypatch.setattr(chain_processes.os, "getppid", lambda: parent)
    monkeypatch.setattr(chain_processes.os, "_exit", lambda _: has_ended.set())
    monkeypatch.setattr(chain_processes, "BETWEEN_LOOKS", 0.01)
    chain_processes._follow.__wrapped__(parent)
    assert not has_ended.wait(0.1)
    parent = 1
    assert has_ended.wait(10)


LONG = """
import sys
import torch
from bayesuq.data import Dataset
from bayesuq.inference import hmc
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork

x = torch.linspace(-1, 1, 48)[:, None]
model = BayesianNetwork(networks.mlp(1, (6,), 1), priors.Normal(), likelihoods.Normal(scale=0.2))
hmc.fit(model, Dataset(x, x.sin()), num_samples=100_000, num_warmup=10, num_chains=2, kernel="hmc", num_steps=5, seed=1,
        chain_method="parallel", checkpoint=Checkpoint(sys.argv[1], every_seconds=0.1))
"""


def children(process: int) -> list[int]:
    """Of a process, by the kernel's word."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == process:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_processes_of_chains_that_are_started_anew_end_with_their_parent_and_write_no_more(tmp_path: Path) -> None:
    told = tmp_path.with_suffix(".stderr")
    with told.open("w") as stderr:
        parent = subprocess.Popen([sys.executable, "-c", LONG, str(tmp_path / "state")], stderr=stderr)
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("state.chain-?"))) < 2:
            assert time.monotonic() < deadline
            assert parent.poll() is None
            time.sleep(0.02)
        workers = children(parent.pid)
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        time.sleep(0.3)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
        assert "leaked" not in told.read_text()
    finally:
        parent.kill()
