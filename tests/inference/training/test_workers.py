"""Two processes with half of the rows each take the steps of one process with all rows."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from bayesuq.data import Dataset
from bayesuq.inference import gp
from bayesuq.inference.gp import expectations
from bayesuq.inference.gp import sparse as sparse_gp
from bayesuq.inference.training import loop as optimize
from bayesuq.inference.training.workers import Workers
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods
from tests.inference.examples import noise

# Both halves have the same inputs and, in another order, the same targets: so k-means, and the units that start the
# hyperparameters, are those of all rows.
X = noise(0, 20, 2)
REAL = torch.sin(X.sum(dim=1)) + 0.1 * noise(1, 20)
LABELS = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()
VALIDATION = noise(2, 12, 2)
KERNEL = processes.Scale(processes.RBF())
WATCHED = torch.sin(VALIDATION.sum(dim=1))
OF_CLASSES = processes.GaussianProcess(KERNEL, likelihood=likelihoods.Categorical(), num_outputs=3)
OF_SIGNS = processes.GaussianProcess(KERNEL, likelihood=likelihoods.Bernoulli())
OF_REALS = processes.GaussianProcess(KERNEL)
CASES: dict[str, tuple[processes.GaussianProcess, Tensor, dict[str, Any]]] = {
    "regression, natural": (OF_REALS, REAL, {"max_grad_norm": 0.1}),
    "regression, Adam": (OF_REALS, REAL, {"natural_rate": 0.0}),
    "signs, natural": (OF_SIGNS, LABELS.clamp(max=1), {}),
    "classes, natural": (OF_CLASSES, LABELS, {}),
    "classes, Adam": (OF_CLASSES, LABELS, {"natural_rate": 0.0}),
    "watched": (OF_REALS, REAL, {"patience": 2, "num_epochs": 30, "learning_rate": 0.5, "validation": WATCHED}),
}


@contextmanager
def set_up() -> Iterator[None]:
    """The same draws for each row, that rows may be divided in any way; and an Adam that rounding does not move.

    It divides gradients by their size plus 1e-8: one that is 0 but for rounding, as that of an inducing point far from
    the others or of a mean that starts at the targets' own, would make a step of rounding alone.
    """

    def adam(objective: optimize.Objective, learning_rate: float) -> torch.optim.Optimizer:
        optimizer = optimize.adam(objective, learning_rate)
        for group in optimizer.param_groups:
            group["eps"] = 0.01
        return optimizer

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(expectations, "_points", common_draws)
        patched.setattr(sparse_gp, "adam", adam)
        yield


def common_draws(_: Any, mean: Tensor, variance: Tensor, *__: Any) -> tuple[Tensor, Tensor]:
    eps = noise(3, 6, 1, mean.shape[1])
    return mean + eps * variance.clamp(min=1e-20).sqrt(), mean.new_zeros(6) - torch.tensor(6.0, dtype=mean.dtype).log()


def fitted(case: str, halves: list[int], **more: Any) -> dict[str, Tensor]:
    model, y, own = CASES[case]
    order = {0: torch.arange(20), 1: torch.arange(19, -1, -1)}
    data = Dataset(X.repeat(len(halves), 1), torch.cat([y[order[half]] for half in halves]))
    options = {"num_epochs": 3, "num_inducing": 20, "learning_rate": 0.05, "seed": 3} | own | more
    if "validation" in options:
        rows = torch.cat([torch.arange(12)[half::2] for half in halves])
        options["validation"] = Dataset(VALIDATION[rows], WATCHED[rows])
    with set_up():
        posterior = gp.fit(model, data, approximation="sparse", **options)
    found = {"mean": posterior.inducing_mean, "scale": posterior.inducing_scale, "points": posterior.inducing_points}
    found |= {"losses": torch.tensor(posterior.history.loss, dtype=torch.float64), "example": posterior.example}
    found["watched"] = torch.tensor(posterior.history.validation_loss, dtype=torch.float64)
    return found | dict(posterior.hyperparameters)


def one_of_two(rank: int, folder: str) -> None:
    """What one of two processes does: it keeps what it fitted, and the errors that it met."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {case: fitted(case, [rank], data_parallel=True) for case in CASES}
    found["group"] = fitted("regression, natural", [rank], data_parallel=distributed.new_group([0, 1]))
    found["seeds"] = fitted("regression, natural", [rank], data_parallel=True, seed=None, batch_size=7)
    uneven = Dataset(X[: 20 - 7 * rank], REAL[: 20 - 7 * rank])
    short = {"approximation": "sparse", "num_inducing": 5, "num_epochs": 3, "data_parallel": True}
    of_each = gp.fit(OF_REALS, uneven, batch_size=7, seed=rank, **short)
    found["uneven"] = {"mean": of_each.inducing_mean, "points": of_each.inducing_points}
    found["errors"] = []
    for options in ({"learning_rate": 0.1 + rank}, {"num_inducing": 4 + rank}):
        with pytest.raises(ValueError, match="The processes have different models or options") as raised:
            gp.fit(OF_REALS, uneven, **{"batch_size": 20, **short, **options})
        found["errors"].append(str(raised.value))
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    # Forked processes have imported all that this one has.
    multiprocessing.start_processes(one_of_two, args=(str(folder),), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.distributed
@pytest.mark.slow
class TestProcesses:
    @pytest.mark.parametrize("case", CASES)
    def test_two_processes_with_half_of_the_rows_take_the_steps_of_one_with_all(
        self, case: str, pair: list[dict[str, Any]]
    ) -> None:
        alone = fitted(case, [0, 1])
        assert float(alone["mean"].abs().max()) > 0.01  # it has moved
        assert len(alone["losses"]) < 30  # early stopping
        for name, value in alone.items():
            torch.testing.assert_close(pair[0][case][name], value, rtol=1e-10, atol=1e-10, msg=f"{case}: {name}")

    def test_all_processes_end_with_the_same_bits(self, pair: list[dict[str, Any]]) -> None:
        for case, one in pair[0].items():
            if isinstance(one, dict):
                assert all(torch.equal(value, pair[1][case][name]) for name, value in one.items()), case

    def test_a_group_is_as_good_as_all(self, pair: list[dict[str, Any]]) -> None:
        for name, value in pair[0]["regression, natural"].items():
            assert torch.equal(value, pair[0]["group"][name])

    def test_what_would_wait_in_vain_is_refused_by_both(self, pair: list[dict[str, Any]]) -> None:
        assert len(pair[0]["errors"]) == 2
        assert pair[0]["errors"] == pair[1]["errors"]


def test_one_process_alone_sends_nothing() -> None:
    alone = Workers.of(False)
    value = torch.ones(3)
    assert alone.mean([value], 5.0) is None
    assert torch.equal(value, torch.ones(3))
    assert alone.of_first(value) is value
    assert alone.numbers(7) == [7]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"data_parallel": True}, ValueError, "start them by `torchrun`"),
        ({"data_parallel": 2}, TypeError, "must be True, False or a torch.distributed.ProcessGroup; got int"),
        ({"data_parallel": True, "approximation": "exact"}, ValueError, "start them by `torchrun`"),
    ],
    ids=["not started", "number", "exact"],
)
def test_what_cannot_be_fitted_together_is_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        gp.fit(OF_REALS, Dataset(X, REAL), **{"approximation": "sparse", **options})
