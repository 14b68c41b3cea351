"""Several processes that fit one model together, each to rows of its own (a shard).

    loss = sum_r loss_r,   sum_r (N_r / |B_r|) sum_{n in B_r} log p(y_n | f(x_n)),   N = sum_r N_r

Every process starts where the first one does, and before each step the processes add up what they have found:
gradients, losses, and whatever else moves parameters. So all take the same step, and no parameter is sent again. The
sums are `torch.distributed`'s, by gloo on CPUs and NCCL on GPUs.

Reference:
    Li et al. 2020, PyTorch Distributed: Experiences on Accelerating Data Parallel Training.
"""

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, distributed

from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.options import Training
from bayesuq.randomness import derive_seed

Group = distributed.ProcessGroup
SEED_BITS = 63  # of a whole number that a tensor holds


@dataclass(frozen=True)
class Workers:
    """The processes of a fit, seen from one of them; by default it is alone, and nothing is sent.

    Attributes:
        group: Of `torch.distributed`; None where the process is alone.
        rank: Number of this process in the group.
        size: How many there are.
        device: Where tensors that are sent must be.
    """

    group: Group | None = None
    rank: int = 0
    size: int = 1
    device: torch.device | str = "cpu"

    @classmethod
    def of(cls, wanted: "bool | Group", device: torch.device) -> "Workers":
        """From what a user passes: a group, True for all processes, False for none but this one.

        Raises:
            TypeError: Neither a group nor a truth value.
            ValueError: `torch.distributed` has not been initialised, or the process is not in the group.
        """
        if wanted is False:
            return cls()
        if wanted is not True and not isinstance(wanted, Group):
            kind = type(wanted).__name__
            raise TypeError(f"`data_parallel` must be True, False or a torch.distributed.ProcessGroup; got {kind}.")
        if not distributed.is_available() or not distributed.is_initialized():
            raise ValueError(
                "`data_parallel` needs processes that know each other: start them by `torchrun`, and call "
                "`torch.distributed.init_process_group` in each."
            )
        group = distributed.group.WORLD if wanted is True else wanted
        rank = -1 if group is None else distributed.get_rank(group)
        if group is None or rank < 0:
            raise ValueError("This process is not in the group of `data_parallel`.")
        return cls(group, rank, distributed.get_world_size(group), device)

    @property
    def are_several(self) -> bool:
        """Whether there is anything to send."""
        return self.size > 1

    def add_up(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over the processes, in place, in one go."""
        if not self.are_several:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat, group=self.group)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def of_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in whatever shape it has there."""
        if not self.are_several:
            return tensor
        shape = torch.tensor(tensor.shape, dtype=torch.int64, device=self.device)
        self._send(shape)
        sent = tensor.detach().clone() if self.rank == 0 else tensor.new_empty(shape.tolist())
        self._send(sent)
        return sent

    def numbers(self, value: int) -> list[int]:
        """A whole number of each process, by rank."""
        told = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        told[self.rank] = value
        self.add_up(told)
        return [int(each) for each in told]

    def training(self, training: Training) -> Training:
        """The options of this process: seeds that belong together, and one bar for all.

        The first process keeps its seed; the others derive theirs from it, so that no two draw the same numbers.
        """
        if not self.are_several:
            return training
        first = self.numbers((training.seed or 0) % 2**SEED_BITS)[0]
        if self.rank == 0:
            return training
        return replace(training, seed=derive_seed(first, self.rank), progress=False)

    def whole(self, source: Source) -> Source:
        """The same minibatches, which know how many rows all processes have."""
        if not self.are_several:
            return source
        whole = copy.copy(source)
        whole.num_data = sum(self.numbers(source.num_data))
        return whole

    def agree(self, values: Mapping[str, int], options: str) -> None:
        """Hold numbers and options of the processes against each other, before they wait for each other in vain.

        Raises:
            ValueError: They differ; every process raises it.
        """
        for name, value in values.items():
            found = self.numbers(value)
            if len(set(found)) > 1:
                raise ValueError(
                    f"All processes must have equally many {name}; got {found}, by rank. Divide the rows evenly, or "
                    "give the smaller shards a smaller `batch_size`."
                )
        bits = int(hashlib.sha256(options.encode()).hexdigest()[:15], 16)
        if len(set(self.numbers(bits))) > 1:
            raise ValueError("The processes have different models or options; all must be given the same.")

    def _send(self, tensor: Tensor) -> None:
        if self.group is not None:
            distributed.broadcast(tensor, distributed.get_global_rank(self.group, 0), group=self.group)
