"""Attention in plain operations, for derivatives that torch's fused kernels do not have.

Fused kernels of attention and of transformer layers have a first derivative at most, no forward one, and no rule for
`torch.func.vmap`. What they compute can be written out: then all of these work, for more memory.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class PlainAttention(TorchFunctionMode):
    """While it is on, in this thread, attention is matrix products and a softmax.

    torch itself leaves the fused path of its attention and transformer layers where such a mode is on.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return torch.ops.aten._scaled_dot_product_attention_math(*args, **kwargs)[0]
        if func is functional.multi_head_attention_forward and kwargs.get("need_weights") is False:
            # Inside of it the mode is off; where its weights are asked for, it does not fuse.
            return func(*args, **{**kwargs, "need_weights": True})[0], None
        return func(*args, **kwargs)


def has_attention(net: nn.Module) -> bool:
    """Whether a network has torch's own attention in it."""
    return any(isinstance(module, nn.MultiheadAttention) for module in net.modules())
