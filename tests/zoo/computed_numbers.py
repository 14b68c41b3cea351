"""How many numbers torch computes: work that no busy machine makes longer."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class ComputedNumbers(TorchDispatchMode):
    """Counts the numbers in the results of all operations within."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        self.count += found.numel() if isinstance(found, Tensor) else 0
        return found
