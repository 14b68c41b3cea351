"""A recorder of what a CUDA graph would hold, on the CPU: operators, the tensors that they take, numbers as they were.

A repetition runs the same operators on the same memory, and Python does not run. So what the host would change from
step to step stays as it was when the tape was recorded, as it would in a graph; random operators go on with their
generators. What an accelerator would have to be waited for raises while it is recorded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_linalg_check_errors",
}
HOSTS = torch.int64  # counts, which stand on the host whatever the device


class _Operators(TorchDispatchMode):
    """Writes down what runs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # torch would import its compiler to wrap the mode

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function._schema.name in READS and args[0].dtype != HOSTS:
            raise RuntimeError(f"{function._schema.name} is asked for a value\nwhile a step is captured")
        found = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, found))
        return found


class Tape:
    """A `bayesuq.inference.training.captured.Recorder`.

    Attributes:
        num_recorded: Recordings made.
        num_repeated: Repetitions of them.
    """

    def __init__(self) -> None:
        self.num_recorded, self.num_repeated = 0, 0

    def __call__(self, step: Callable[[], Tensor], _noise: torch.Generator) -> Callable[[], Tensor]:
        """Run the step once to set up what it keeps, and once to write it down."""
        step()
        with _Operators() as operators:
            loss = step()
        self.num_recorded += 1

        def repeated() -> Tensor:
            self.num_repeated += 1
            _run(operators.calls)
            return loss

        return repeated


@torch.no_grad()
def _run(calls: list[tuple[Any, Any, Any, Any]]) -> None:
    for function, args, kwargs, found in calls:
        again = function(*args, **kwargs)
        for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
            if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # no view, and not written in place
                old.copy_(new)
