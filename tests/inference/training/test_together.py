"""Two processes that fit one posterior find what one finds, fail together, and stop and go on together."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from bayesuq.inference import ensemble, gp, hmc, map_estimate, microcanonical, variational
from bayesuq.inference.gp import search
from bayesuq.inference.training import loop
from tests.inference.training import together
from tests.inference.training.together import BY_ROWS, DATA, METHODS, in_processes, network, values

pytestmark = [pytest.mark.distributed, pytest.mark.slow]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    map_estimate.fit(network(), DATA, num_epochs=1, seed=0)  # forked processes have the optimiser's imports, too
    folder = tmp_path_factory.mktemp("pair")
    in_processes(together.one_of_two, 2, str(folder))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("method", [*METHODS, *BY_ROWS])
def test_two_processes_fit_the_posterior_of_one(method: str, pair: list[dict[str, Any]]) -> None:
    alone = pair[0][f"alone, {method}"]
    assert sum(float(value.abs().sum()) for value in alone.values()) > 0
    for name, value in alone.items():
        torch.testing.assert_close(pair[0][method][name], value, rtol=1e-12, atol=1e-13, msg=f"{method}: {name}")


def test_all_processes_end_with_the_same_bits(pair: list[dict[str, Any]]) -> None:
    for case, found in pair[1].items():
        if isinstance(found, dict):
            assert all(torch.equal(value, pair[0][case][name]) for name, value in found.items()), case


def test_an_epoch_has_the_steps_of_the_largest_shard(pair: list[dict[str, Any]]) -> None:
    assert pair[0]["steps"] == [4, 8, 12, 16, 20]  # of 16 and of 5 rows by 4; 21 rows in one process take 6 an epoch
    assert pair[1]["steps"] == []  # callbacks are the first one's


def test_members_and_chains_that_are_shared_out_have_the_bits_of_one_process(pair: list[dict[str, Any]]) -> None:
    alone = ensemble.fit(network(), DATA, num_members=3, num_epochs=3, vectorised=False, seed=0)
    assert torch.equal(pair[1]["ensemble"]["values"], together.parts(alone).values)
    chains = hmc.fit(network(), DATA, chain_method="sequential", **together.SHORT, seed=0)
    assert torch.equal(pair[1]["hmc"]["draws"], chains.draws)


def test_restarts_that_are_shared_out_have_the_bits_of_one_process(
    pair: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[float] = []
    usual = search._climb

    def climb(*given: Any) -> Any:
        found = usual(*given)
        ends.append(float(found["loss"]))
        return found

    monkeypatch.setattr(search, "_climb", climb)
    alone = gp.fit(together.process(), DATA, seed=0)
    for name, value in alone.hyperparameters.items():
        assert torch.equal(pair[0]["process"][name], value)
        assert torch.equal(pair[1]["process"][name], value)
    assert ends.index(min(ends)) == 1  # of three: what is kept is the second process's


def test_microcanonical_chains_that_are_shared_out_are_those_of_one_process(pair: list[dict[str, Any]]) -> None:
    begun = ensemble.fit(network(), DATA, num_members=3, num_epochs=3, vectorised=False, seed=0)
    alone = microcanonical.fit(network(), DATA, start=begun, **together.FEW, seed=0)
    torch.testing.assert_close(pair[1]["microcanonical"]["draws"], alone.draws, rtol=1e-9, atol=1e-9)
    assert torch.equal(pair[1]["microcanonical, again"]["draws"], pair[1]["microcanonical, trained"]["draws"])
    of_program = microcanonical.fit(together.program, DATA, **together.FEW, seed=0)
    torch.testing.assert_close(pair[1]["microcanonical, program"], dict(of_program.draws), rtol=1e-9, atol=1e-9)


def test_each_process_draws_noise_of_its_own(pair: list[dict[str, Any]]) -> None:
    assert not torch.equal(pair[0]["other noise"]["loc"], pair[0]["same noise"]["loc"])


def test_what_one_process_meets_all_raise_and_then_fit_on(pair: list[dict[str, Any]]) -> None:
    assert pair[0]["errors"] == pair[1]["errors"]
    told = [
        "OSError: row 5 cannot be read",
        "ValueError: All processes read the same rows from their DataLoaders",
        "ValueError: `y in torch.float32` must be finite; 5 of 5 rows",
        "ValueError: The processes have different models or options",
        "InterruptedError: stopped by the callback",
        "ValueError: 1 rows cannot be divided among 2 processes",
        "ValueError: 1 chains cannot be shared out among 2 processes",
    ]
    assert [found.startswith(begin) for found, begin in zip(pair[0]["errors"], told, strict=True)] == [True] * 7


def test_a_signal_to_one_process_ends_all_after_the_first_has_written(pair: list[dict[str, Any]]) -> None:
    assert pair[0]["stopped"] == pair[1]["stopped"] == ["SystemExit: 143", 1]
    for name, value in pair[0]["undisturbed"].items():
        assert torch.equal(pair[0]["resumed"][name], value)


def left_by(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """What the first process has left."""
    found: dict[str, torch.Tensor] = torch.load(folder / f"{name}-0.pt", weights_only=True)
    return found


def killed_once(folder: str) -> None:
    """A fit whose second process is killed in the midst of its step 7, the first time."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    rank, is_first_time = int(os.environ["RANK"]), os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    usual = loop._Run.loss

    def loss(run: Any, number: int, batch: Any) -> Any:
        if rank == 1 and is_first_time and number == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return usual(run, number, batch)

    loop._Run.loss = loss  # type: ignore[method-assign]
    file = loop.Checkpoint(Path(folder) / "file", every_steps=2)
    fit = partial(variational.fit, network(), DATA, num_epochs=5, batch_size=4, seed=0, data_parallel=True)
    torch.save(values(fit(checkpoint=file)), f"{folder}/killed-{rank}.pt")
    if not is_first_time:
        torch.save(values(fit()), f"{folder}/undisturbed-{rank}.pt")


def launched(_rank: int, folder: str) -> None:
    """What `torchrun --nproc-per-node 2 --max-restarts 1` does, with processes that are forked."""
    config = LaunchConfig(1, 1, 2, run_id="killed", rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", max_restarts=1)
    config.start_method, config.monitor_interval = "fork", 0.05
    elastic_launch(config, killed_once)(folder)


def test_a_killed_process_costs_no_bit_of_the_fit(tmp_path: Path) -> None:
    map_estimate.fit(network(), DATA, num_epochs=1, seed=0)
    in_processes(launched, 1, str(tmp_path))
    killed, undisturbed = (
        torch.load(tmp_path / f"{name}-0.pt", weights_only=True) for name in ("killed", "undisturbed")
    )
    for name, value in undisturbed.items():
        assert torch.equal(killed[name], value), name


def go_on(rank: int, folder: str, number: int) -> None:
    """Half of a fit, and another number of processes that finish it."""
    fit = partial(map_estimate.fit, network(), DATA, batch_size=21, learning_rate=0.05, seed=0, data_parallel=True)
    file, stop = Path(folder) / "file", [together.stop]
    if number == 2:
        together.raised(lambda: fit(num_epochs=6, checkpoint=file, callbacks=stop))
        torch.save(values(fit(num_epochs=6)), f"{folder}/undisturbed-{rank}.pt")
        return
    with pytest.warns(UserWarning, match="2 processes have made this fit so far, and 3 go on with it"):
        posterior = fit(num_epochs=6, checkpoint=file)
    torch.save(values(posterior), f"{folder}/resumed-{rank}.pt")


def test_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    for number in (2, 3):
        in_processes(go_on, number, str(tmp_path), number)
    resumed, undisturbed = (
        torch.load(tmp_path / f"{name}-0.pt", weights_only=True) for name in ("resumed", "undisturbed")
    )
    torch.testing.assert_close(resumed["values"], undisturbed["values"], rtol=1e-12, atol=1e-13)


def test_a_process_that_raises_outside_of_a_fit_and_lives_on_leaves_none_waiting(tmp_path: Path) -> None:
    first, second = in_processes(together.raises_and_lives_on, 2, str(tmp_path / "told"), join=False).processes
    first.join(60)
    second.join(60)
    assert (first.exitcode, second.exitcode) == (0, 1)  # 0 of the second: it has lived as long as it would
