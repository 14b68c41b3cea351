"""Several processes that fit one model together, each to rows of its own (a shard).

    loss = sum_r |B_r| loss_r / sum_r |B_r|,   loss_r = -log p(theta) - (N / |B_r|) sum_{n in B_r} log p(y_n | f(x_n))

N being the number of rows of all processes. So the loss is that of one process whose minibatch is the union of theirs,
whatever their sizes, and a method computes on each what it computes alone. Every process starts where the first one
does, and before each step gradients and losses are averaged in this way; all then take the same step, and no parameter
is sent again. The sums are `torch.distributed`'s, by gloo on CPUs and NCCL on GPUs.

What goes wrong in one process is raised by all: a mark travels with the sums, and where it is set, the error's kind and
words follow. So does a signal that asks one of them to end. An error outside of a fit, such as of a prediction or of a
file that cannot be read, ends a script, and its process within half a minute, whatever its threads do.

Reference:
    Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training.
"""

import atexit
import builtins
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from bayesuq.inference.training.meeting import met
from bayesuq.randomness import derive_seed

T = TypeVar("T")
Group = distributed.ProcessGroup
SECONDS_TO_END = 30.0  # that a process has, once an error has ended its script
SEED_BITS = 63  # of a whole number that a tensor holds
TOLD_BY_LAUNCHER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what `torchrun` says to each process
STORE_OF_LAUNCHER = "TORCHELASTIC_USE_AGENT_STORE"
SIGNALS = (signal.SIGINT, signal.SIGTERM)
NUM_MARKS = 2 + len(SIGNALS)  # the weight, whether something failed, and who was asked to end


@dataclass(frozen=True)
class Workers:
    """The processes of a fit, seen from one of them; by default it is alone, and nothing is sent.

    Attributes:
        group: Of `torch.distributed`; None where the process is alone.
        rank: Number of this process in the group.
        size: How many there are.
        device: Where numbers that are sent must be.
    """

    group: Group | None = None
    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, wanted: "bool | Group") -> "Workers":
        """From what a user passes: a group, True for all processes, False for none but this one.

        Processes that `torchrun` has started, or another launcher that says the same, are made known to each other.

        Raises:
            TypeError: Neither a group nor a truth value.
            ValueError: No launcher has started this process, or it is not in the group.
        """
        if wanted is False:
            return cls()
        if wanted is not True and not isinstance(wanted, Group):
            kind = type(wanted).__name__
            raise TypeError(f"`data_parallel` must be True, False or a torch.distributed.ProcessGroup; got {kind}.")
        _meet()
        group = distributed.group.WORLD if wanted is True else wanted
        rank = -1 if group is None else distributed.get_rank(group)
        if group is None or rank < 0:
            raise ValueError("This process is not in the group of `data_parallel`.")
        on_cpu = "gloo" in str(distributed.get_backend_config(group))
        place = torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())
        return cls(group, rank, distributed.get_world_size(group), place)

    @property
    def are_together(self) -> bool:
        """Whether this is the fit of a group, even of one process."""
        return self.group is not None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes, shows and tells."""
        return self.rank == 0

    def key(self, seed: int) -> int:
        """The seed of what this process draws for itself: the first one's is the seed as it is."""
        return seed if self.is_first else derive_seed(seed, self.rank)

    def mean(
        self,
        tensors: Sequence[Tensor],
        weight: float,
        *,
        failure: Exception | None = None,
        asked: int | None = None,
        looks: bool = True,
    ) -> int | None:
        """Replace each tensor by its mean over the processes, in place, in one go.

        Args:
            tensors: Of the same shapes in all processes.
            weight: Of this process's: its rows.
            failure: What went wrong here; the tensors then count nothing.
            asked: The signal that has come here.
            looks: Whether marks are read, which waits for an accelerator. What was not read must be passed again.

        Returns:
            The signal that has come to any process, if there is one.

        Raises:
            Exception: What went wrong, here or elsewhere: the same in every process.
            ConnectionError: A process has ended.
        """
        if not self.are_together:
            if failure is not None:
                raise failure
            return asked
        marks = [float(weight), float(failure is not None), *(float(asked == one) for one in SIGNALS)]
        groups = _by_dtype(tensors)
        flats = [torch.cat([tensor.detach().reshape(-1) for tensor in group]) for group in groups]
        flats = [torch.zeros_like(flat) if failure is not None else flat * weight for flat in flats]
        flats[0] = torch.cat([flats[0], flats[0].new_tensor(marks)])
        for flat in flats:
            self._add_up(flat)
        found = flats[0][-NUM_MARKS:]
        flats[0] = flats[0][:-NUM_MARKS]
        for flat, group in zip(flats, groups, strict=True):
            parts = (flat / found[0]).split([tensor.numel() for tensor in group])
            for tensor, part in zip(group, parts, strict=True):
                tensor.detach().copy_(part.view_as(tensor))
        return self._read(found.tolist(), failure) if looks else None

    def check(self, failure: Exception | None) -> None:
        """Go on together, or raise what went wrong in any process; all wait for each other here.

        Raises:
            Exception: The same in every process.
            ConnectionError: A process has ended.
        """
        if self.are_together:
            failed = self.numbers(int(failure is not None))
            failure = self._told(failure, failed.index(1)) if any(failed) else None
        if failure is not None:
            raise failure

    def agreed(self, work: Callable[[], T]) -> T:
        """Do something on each process that may fail on one alone: then all raise what the first of them has raised."""
        found: list[T] = []
        failure = None
        try:
            found.append(work())
        except Exception as error:
            if not self.are_together:
                raise
            failure = error
        self.check(failure)
        return found[0]

    def numbers(self, value: int) -> list[int]:
        """A whole number of each process, by rank."""
        told = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        told[self.rank] = value
        self._add_up(told)
        return [int(each) for each in told]

    def total(self, value: float) -> float:
        """The sum of a number of each process, in float64."""
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        self._add_up(told)
        return float(told)

    def largest(self, tensor: Tensor) -> Tensor:
        """The largest of each entry over the processes."""
        if self.are_together:
            tensor = tensor.detach().clone()
            self._through(lambda: distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self.group))
        return tensor

    def text(self, value: str, rank: int = 0) -> str:
        """The text of one process."""
        if not self.are_together:
            return value
        told = torch.tensor(list(value.encode()), dtype=torch.uint8, device=self.device)
        return bytes(self.tensor(told, rank).tolist()).decode()

    def of_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in whatever shape it has there; of one dtype in all processes."""
        return self.tensor(tensor, 0)

    def tensor(self, tensor: Tensor, rank: int) -> Tensor:
        """The tensor of one process: see `of_first`."""
        if not self.are_together:
            return tensor
        num_dimensions = self.numbers(tensor.ndim)[rank]
        shape = torch.tensor(tensor.shape if self.rank == rank else [0] * num_dimensions, dtype=torch.int64)
        sizes = self._sent(shape.to(self.device), rank).tolist()
        mine = tensor.detach().clone(memory_format=torch.contiguous_format)
        return self._sent(mine if self.rank == rank else tensor.new_empty(sizes, requires_grad=False), rank)

    def all_of_first(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by name, the same names in all processes, as the first one has them."""
        return {name: self.of_first(tensor) for name, tensor in named.items()}

    def tensors(self, named: dict[str, Tensor] | None, rank: int = 0) -> dict[str, Tensor]:
        """Tensors of one process by name; the others pass None."""
        kinds = {} if named is None else {name: str(one.dtype).removeprefix("torch.") for name, one in named.items()}
        told = json.loads(self.text(json.dumps(kinds), rank))
        empty = {name: torch.empty(0, dtype=getattr(torch, kind)) for name, kind in told.items()}
        return {name: self.tensor(one, rank) for name, one in (named if named and self.rank == rank else empty).items()}

    def agree(self, options: str) -> None:
        """Hold what the processes are to do against each other, before they wait for each other in vain.

        Raises:
            ValueError: It differs; every process raises it.
        """
        bits = int(hashlib.sha256(options.encode()).hexdigest()[:15], 16)
        if len(set(self.numbers(bits))) > 1:
            raise ValueError("The processes have different models or options; all must be given the same.")

    def _add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over the processes."""
        if self.are_together:
            self._through(lambda: distributed.all_reduce(tensor, group=self.group))

    def _sent(self, tensor: Tensor, rank: int) -> Tensor:
        """The tensor of one process, in place of the others'."""
        if self.group is not None and tensor.numel():
            source = distributed.get_global_rank(self.group, rank)
            self._through(lambda: distributed.broadcast(tensor, source, group=self.group))
        return tensor

    def _through(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise ConnectionError(
                f"Another of the {self.size} processes of this fit has ended, and the others cannot go on without it. "
                "Its own output says why; a fit with a `checkpoint` goes on from there when all are started again, as "
                "`torchrun --max-restarts` does."
            ) from error

    def _read(self, found: Sequence[float], failure: Exception | None) -> int | None:
        """What the marks say."""
        if found[1]:
            raise self._told(failure, self.numbers(int(failure is not None)).index(1))
        return next((one for one, count in zip(SIGNALS, found[2:], strict=True) if count), None)

    def _told(self, failure: Exception | None, rank: int) -> Exception:
        """What one process has raised, as every process raises it."""
        name, words = json.loads(self.text(json.dumps([type(failure).__name__, str(failure)]), rank))
        if failure is not None and self.rank == rank:
            return failure
        kind = getattr(builtins, name, RuntimeError)
        error = kind(words) if issubclass(kind, ValueError | TypeError | ArithmeticError | OSError) else None
        error = RuntimeError(words) if error is None or str(error) != words else error
        error.add_note(f"This came from process {rank} of {self.size}.")
        return error


ALONE = Workers()


def check_alone(wanted: bool | Group, what: str) -> None:
    """Raise a ValueError where processes are to share what only one makes."""
    if wanted is not False:
        raise ValueError(f"`data_parallel` is not for {what}. Leave it out, and fit it in one process.")


def _meet() -> None:
    """Make the processes that were started together known to each other, unless they are."""
    if not distributed.is_available() or (
        not distributed.is_initialized() and not all(name in os.environ for name in TOLD_BY_LAUNCHER)
    ):
        raise ValueError(
            "`data_parallel` needs processes that know each other: start them by `torchrun`, as in `torchrun "
            "--nproc-per-node 2 script.py`, or call `torch.distributed.init_process_group` in each."
        )
    if not distributed.is_initialized():
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        life = met(_store(rank), rank, size)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(backend, store=life, rank=rank, world_size=size)
        atexit.register(_part)
        sys.excepthook = partial(_raised, sys.excepthook)


def _store(rank: int) -> distributed.Store:
    """Keys and values that all processes reach: the launcher's, where it has one, else the first process's."""
    is_launchers = os.environ.get(STORE_OF_LAUNCHER) == "True"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return distributed.TCPStore(host, port, is_master=rank == 0 and not is_launchers)


def _part() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _raised(show: Callable[..., Any], *error: Any) -> None:
    """Show an error that nothing has caught, and see to it that the process ends: so the others know that it has.

    The interpreter first waits for threads, such as those of loaders and pools, and the others would wait for those.
    """
    show(*error)
    if not hasattr(sys, "ps1") and not sys.flags.interactive:
        watch = threading.Timer(SECONDS_TO_END, os._exit, (1,))
        watch.daemon = True
        watch.start()


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors that can be sent as one, the first one's dtype first."""
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault(tensor.dtype, []).append(tensor)
    return list(groups.values())
