"""Fits by two processes, each told of the other as `torchrun` does, and what they leave behind."""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from types import SimpleNamespace
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from bayesuq.data import Batch, Dataset
from bayesuq.inference import dropout, ensemble, gp, hmc, ivon, map_estimate, microcanonical, sgmcmc, swag, variational
from bayesuq.inference.training import loop, workers
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.workers import Workers
from bayesuq.models import BayesianNetwork, likelihoods, priors
from bayesuq.models.gp import RBF, GaussianProcess
from tests.inference.examples import noise

NUM_ROWS = 21  # of which the first process has one more than the second
X = noise(0, NUM_ROWS, 2)
Y = torch.sin(X.sum(dim=1)) + 0.1 * noise(1, NUM_ROWS)
DATA = Dataset(X, Y)
WATCHED = Dataset(noise(2, 9, 2), noise(3, 9))
STOPPED = 3  # epochs, after which a fit is stopped
VALUES = ("values", "loc", "log_scale", "factor", "mean", "deviations", "draws", "inducing_mean", "inducing_scale")


def network(layer: nn.Module | None = None) -> BayesianNetwork:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), *([] if layer is None else [layer]), nn.Linear(4, 1)).double()
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.3))


def process() -> GaussianProcess:
    return GaussianProcess(RBF())


def program(x: Tensor, y: Tensor | None = None) -> Tensor:
    slope = pyro.sample("slope", pyro.distributions.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        return pyro.sample("y", pyro.distributions.Normal(x @ slope, 0.3), obs=y)


def fit_by(fit: Callable[..., Any], model: Any, **own: Any) -> Callable[..., Any]:
    shared = {"batch_size": NUM_ROWS, "seed": 3}
    if fit is not sgmcmc.fit:
        shared |= {"num_epochs": 4, "learning_rate": 0.05}
    return partial(fit, model, **{**shared, **own})


SHORT = {"num_samples": 4, "num_warmup": 4, "num_chains": 3, "max_tree_depth": 3}
FEW = {"num_samples": 3, "num_warmup": 30, "thinning": 2, "num_members": 3}
CHAINS = {"num_samples": 3, "num_warmup": 4, "num_chains": 2, "thinning": 1}
METHODS = {
    "map": fit_by(map_estimate.fit, network(), validation=WATCHED),
    "map, clipped": fit_by(map_estimate.fit, network(), max_grad_norm=0.1),
    "map, adversarial": fit_by(map_estimate.fit, network(), adversarial=True),
    "mean field": fit_by(variational.fit, network()),
    "low rank": fit_by(variational.fit, network(), guide=variational.low_rank(2)),
    "ivon": fit_by(ivon.fit, network(), max_grad_norm=1.0),
    "swag": fit_by(swag.fit, network(), rank=2, swa_learning_rate=1e-3, num_epochs=8),
    "sgld": fit_by(sgmcmc.fit, network(), sampler="sgld", step_size=0.01, **CHAINS),
    "sghmc": fit_by(sgmcmc.fit, network(), preconditioning="rmsprop", step_size=0.01, **CHAINS),
}
BY_ROWS = {  # whose noise, or statistics, belong to the rows of a process
    "dropout": fit_by(dropout.fit, network(nn.Dropout(0.3))),
    "norm": fit_by(map_estimate.fit, network(nn.BatchNorm1d(4))),
    "local": fit_by(variational.fit, network(), estimator="local"),
    "flipout": fit_by(variational.fit, network(), estimator="flipout"),
}


def parts(posterior: Any) -> SimpleNamespace:
    """The members of an ensemble side by side."""
    return SimpleNamespace(values=torch.stack([member.values for member in posterior.members]))


def values(posterior: Any) -> dict[str, Tensor]:
    found = {name: getattr(posterior, name) for name in VALUES if hasattr(posterior, name)}
    buffers = {f"buffer {name}": value for name, value in getattr(posterior, "buffers", {}).items()}
    history = getattr(posterior, "history", None)
    losses = () if history is None else (*history.loss, *history.validation_loss)
    return {**found, **buffers, "losses": torch.tensor(losses, dtype=torch.float64)}


@contextmanager
def same_noise(*, in_order: bool = False) -> Iterator[pytest.MonkeyPatch]:
    """Every process draws what the first one does; rows come in their order where that matters."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Workers, "key", lambda _, seed: seed)
        if in_order:
            patched.setattr(Source, "shuffled_epoch", lambda source, *_: source.epoch(None))
        yield patched


def of_two_shards(run: Any, _number: int, batch: Batch) -> Tensor:
    """What two processes find, found by one: loss, gradients and statistics of the odd and of the even rows."""
    objective = run.objective
    buffers = {name: value.clone() for name, value in objective.buffers.items()}
    found = []
    for shard in range(2):
        for name, value in objective.buffers.items():
            value.copy_(buffers[name])
        rows = Batch(batch.x[shard::2], batch.y[shard::2], None)
        loss = objective.loss_and_grads(rows, torch.Generator().manual_seed(run.noise.initial_seed()))
        parts = [leaf.grad for leaf in objective.leaves.values()] + list(objective.shared(rows))
        found.append([loss.clone(), *(part.clone() for part in parts)])
    shares = [len(batch.x[shard::2]) / len(batch.x) for shard in range(2)]
    loss, *means = [
        sum(share * part for share, part in zip(shares, pair, strict=True)) for pair in zip(*found, strict=True)
    ]
    for part, mean in zip(parts, means, strict=True):
        part.copy_(mean)
    return loss


def in_processes(work: Callable[..., None], number: int, *args: Any, join: bool = True) -> Any:
    """Fork processes that have imported all that this one has, and tell them what `torchrun` would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given: dict[str, Any] = {"args": (work, number, port, *args), "nprocs": number, "start_method": "fork"}
    return multiprocessing.start_processes(_told, join=join, **given)  # type: ignore[no-untyped-call]


def _told(rank: int, work: Callable[..., None], number: int, port: int, *args: Any) -> None:
    torch.set_num_threads(1)
    told = {"RANK": rank, "WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()}, GLOO_SOCKET_IFNAME="lo")
    work(rank, *args)


class Broken(TensorDataset):
    """Rows of which one cannot be read in the process that has it."""

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise OSError("row 5 cannot be read")
        return super().__getitem__(index)


def loader(rows: Any, rank: int | None = None) -> DataLoader[Any]:
    sampler = None if rank is None else DistributedSampler(rows, num_replicas=2, rank=rank, shuffle=False)
    return DataLoader(rows, batch_size=5, sampler=sampler)


def stop(progress: Any) -> None:
    if progress.epoch + 1 == STOPPED:
        raise InterruptedError("stopped by the callback")


def interrupt(progress: Any) -> None:
    if progress.epoch + 1 == STOPPED:
        signal.raise_signal(signal.SIGTERM)


def raised(call: Callable[[], Any]) -> str:
    with pytest.raises(BaseException) as found:  # noqa: PT011 - whatever it is, all raise it
        call()
    return f"{found.type.__name__}: {found.value}"


def raises_and_lives_on(rank: int, file: str) -> None:
    """The second process raises outside of a fit, and has a thread that goes on; the first waits for it."""
    together = Workers.of(True)
    if rank == 0:
        assert raised(lambda: together.total(1.0)).startswith("ConnectionError")
        Path(file).touch()
        return
    workers.SECONDS_TO_END = 0.1
    try:
        raise OSError("row 5 cannot be read")
    except OSError:
        sys.excepthook(*sys.exc_info())  # as the interpreter does, which then waits for the thread
    last = monotonic() + 20
    while monotonic() < last and not Path(file).exists():
        sleep(0.01)


def one_of_two(rank: int, folder: str) -> None:
    """All that two processes are asked to do together."""
    found: dict[str, Any] = {}
    with same_noise():
        found |= {name: values(fit(DATA, data_parallel=True)) for name, fit in METHODS.items()}
        alone = distributed.new_group([0])
        if rank == 0:
            found |= {f"alone, {name}": values(fit(DATA, data_parallel=alone)) for name, fit in METHODS.items()}
    with same_noise(in_order=True) as patched:
        found |= {name: values(fit(DATA, data_parallel=True)) for name, fit in BY_ROWS.items()}
        patched.setattr(loop._Run, "loss", of_two_shards)
        if rank == 0:
            found |= {f"alone, {name}": values(fit(DATA, data_parallel=alone)) for name, fit in BY_ROWS.items()}
    fit = partial(map_estimate.fit, network(), num_epochs=5, learning_rate=0.05, data_parallel=True)
    own = Dataset(X[rank * 16 :], Y[rank * 16 :]) if rank else Dataset(X[:16], Y[:16])  # 16 rows and 5
    steps: list[int] = []
    found["shards"] = values(fit(own, batch_size=4, seed=rank, callbacks=[lambda told: steps.append(told.step)]))
    found["steps"] = steps
    found["other noise"] = values(variational.fit(network(), DATA, num_epochs=2, seed=0, data_parallel=True))
    with same_noise():
        found["same noise"] = values(variational.fit(network(), DATA, num_epochs=2, seed=0, data_parallel=True))
    rows = TensorDataset(X[:20], Y[:20].unsqueeze(1))
    found["loader"] = values(fit(loader(rows, rank), seed=0))
    torch.manual_seed(rank)  # a network that was built without a seed
    net = nn.Linear(2, 1).double()
    other = BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.3))
    found["own start"] = values(map_estimate.fit(other, DATA, num_epochs=1, seed=0, data_parallel=True))
    apart = {"data_parallel": True, "seed": 0}
    found["ensemble"] = values(parts(ensemble.fit(network(), DATA, num_members=3, num_epochs=3, **apart)))
    found["hmc"] = values(hmc.fit(network(), DATA, **SHORT, **apart))
    begun = ensemble.fit(network(), DATA, num_members=3, num_epochs=3, **apart)
    exact = gp.fit(process(), DATA, **apart)
    found["process"] = {**exact.hyperparameters, "evidence": torch.tensor(exact.log_marginal_likelihood)}
    found["microcanonical"] = values(microcanonical.fit(network(), DATA, start=begun, **FEW, **apart))
    file = Path(folder) / "chains"
    again = [microcanonical.fit(network(), DATA, num_epochs=3, checkpoint=file, **FEW, **apart) for _ in range(2)]
    found["microcanonical, trained"], found["microcanonical, again"] = (values(one) for one in again)
    found["microcanonical, program"] = dict(microcanonical.fit(program, DATA, **FEW, **apart).draws)
    broken = Broken(X[:20], Y[:20].unsqueeze(1))
    huge = Dataset(own.x, own.y * (1e300 if rank else 1.0))  # beyond float32 in the second process alone
    single = BayesianNetwork(nn.Linear(2, 1), priors.Normal(), likelihoods.Normal(scale=0.3))
    found["errors"] = [
        raised(lambda: fit(loader(broken, rank), seed=0)),
        raised(lambda: fit(loader(rows), seed=0)),
        raised(lambda: map_estimate.fit(single, huge, seed=0, data_parallel=True)),
        raised(lambda: fit(DATA, seed=0, max_grad_norm=1.0 + rank)),
        raised(lambda: fit(own, seed=0, callbacks=[stop])),
        raised(lambda: fit(Dataset(X[:1], Y[:1]), seed=0)),
        raised(lambda: microcanonical.fit(network(), DATA, start=begun, **{**FEW, "num_members": 1}, **apart)),
    ]
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
    file, watch = Path(folder) / "checkpoint", {"batch_size": 4, "seed": 0}
    found["undisturbed"] = values(fit(DATA, **watch))
    stopped = raised(lambda: fit(DATA, checkpoint=file, callbacks=[interrupt], **watch))
    found["stopped"] = [stopped, int(file.exists())]
    found["resumed"] = values(fit(DATA, checkpoint=file, **watch))
    torch.save(found, f"{folder}/{rank}.pt")
