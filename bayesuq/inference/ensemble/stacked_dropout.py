"""Dropout in a pass over several networks at once: each one's masks come from a stream of its own, as alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class StackedMasks:
    """What `with_masks` takes under `torch.func.vmap`: the first network's masks from the first stream, and so on.

    Attributes:
        streams: A generator for each network; layers draw from them in the order in which they run.
    """

    active = True

    def __init__(self, streams: Sequence[torch.Generator]) -> None:
        self.streams = streams

    def keep(self, like: Tensor, shape: tuple[int, ...], p: float) -> Tensor:
        """See `bayesuq.inference.joint.masks.Keep.keep`."""
        return _Drawn.apply(like, self.streams, shape, p)


class _Drawn(torch.autograd.Function):
    """Known to vmap: what one network cannot do alone is done for all of them."""

    @staticmethod
    def forward(_like: Tensor, _streams: Any, _shape: Any, _p: float) -> Tensor:
        raise RuntimeError("stacked masks are drawn under torch.func.vmap only")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: masks have no derivative."""

    @staticmethod
    def vmap(_info: Any, in_dims: Any, like: Tensor, streams: Any, shape: Any, p: float) -> tuple[Tensor, int]:
        if in_dims[0] is None:
            raise RuntimeError("a stacked dropout layer needs inputs of each network's own")
        size = like.shape[1 if in_dims[0] == 0 else 0]
        keep = like.new_empty(len(streams), size, *shape, requires_grad=False)
        for one, stream in zip(keep, streams, strict=True):
            one.bernoulli_(1 - p, generator=stream)
        return keep, 0
