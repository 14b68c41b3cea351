"""How much memory torch's tensors take at once: what no busy machine and no allocator changes."""

import weakref
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """The bytes of all storages that operations within give and that live at the same time, at most.

    Attributes:
        peak: In bytes. The workspace of a single operation is not in it.
    """

    def __init__(self, *others: nn.Module | Tensor) -> None:
        """Begin at 0, without the tensors of some modules and others that were there before."""
        super().__init__()
        self.peak = self._now = 0
        tensors = [one for part in others for one in (part.parameters() if isinstance(part, nn.Module) else [part])]
        self._known = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return found

    def _count(self, storage: Any) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if place and place not in self._known:
            self._known.add(place)
            self._now += size
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._drop, place, size)

    def _drop(self, place: int, size: int) -> None:
        self._known.discard(place)
        self._now -= size
