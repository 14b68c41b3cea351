"""Dropout in a pass over several networks at once: each one's masks come from a stream of its own, as alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayesuq.models.layers import is_plain_dropout


class StackedDropout(nn.Module):
    """`torch.nn.Dropout` under `torch.func.vmap`, the first network's mask from the first stream, and so on.

    Attributes:
        p: Probability of dropping a unit.
        streams: A generator for each network; layers draw from them in the order in which they run.
    """

    def __init__(self, p: float, streams: Sequence[torch.Generator]) -> None:
        super().__init__()
        self.p, self.streams = p, streams

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (B, ...) of one network, with units dropped and the others scaled up."""
        return _Drop.apply(x, self)

    def masks(self, x: Tensor) -> Tensor:
        """For inputs (M, B, ...): 0, or 1 / (1 - p) with probability 1 - p."""
        keep = torch.empty_like(x, memory_format=torch.contiguous_format)
        for one, stream in zip(keep, self.streams, strict=True):
            one.bernoulli_(1 - self.p, generator=stream)
        return keep.div_(1 - self.p)


class _Drop(torch.autograd.Function):
    """Known to vmap: what one network cannot do alone is done for all of them."""

    @staticmethod
    def forward(_x: Tensor, _layer: StackedDropout) -> Tensor:
        raise RuntimeError("a stacked dropout layer runs under torch.func.vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: `vmap` is made of operations that differentiate themselves."""

    @staticmethod
    def vmap(_info: Any, in_dims: tuple[int | None, None], x: Tensor, layer: StackedDropout) -> tuple[Tensor, int]:
        if in_dims[0] is None:
            raise RuntimeError("a stacked dropout layer needs inputs of each network's own")
        first = x.movedim(in_dims[0], 0)
        return first * layer.masks(first), 0


def with_stacked_dropout(net: nn.Module, streams: Sequence[torch.Generator]) -> nn.Module:
    """The network, its own to change, with a `StackedDropout` in the place of each plain `torch.nn.Dropout`."""
    for path, layer in list(net.named_modules(remove_duplicate=False)):  # one layer may stand in several places
        if type(layer) is nn.Dropout and is_plain_dropout(layer):
            parent, _, name = path.rpartition(".")
            setattr(net.get_submodule(parent), name, StackedDropout(layer.p, streams))
    return net
