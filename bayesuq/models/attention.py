"""Attention and layer norms in plain operations, for derivatives that torch's fused kernels do not have, or have wrong.

Fused kernels of attention and of transformer layers have a first derivative at most, no forward one, and no rule for
`torch.func.vmap`. What they compute can be written out: then all of these work, for more memory.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
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


class PlainNorms(TorchFunctionMode):
    """While it is on, in this thread, layer norms are sums and products.

    The fused kernel takes a row's mean and spread for constants in its third derivative, and in a second one that
    `torch.func` takes: without a word, the gradient in x of what a Jacobian gives would be another.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in (functional.layer_norm, torch.layer_norm):
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    _cudnn: bool = True,
) -> Tensor:
    """`torch.nn.functional.layer_norm` in plain operations."""
    dims = tuple(range(-len(normalized_shape), 0))
    centred = input - input.mean(dim=dims, keepdim=True)
    normal = centred / (centred.square().mean(dim=dims, keepdim=True) + eps).sqrt()
    scaled = normal if weight is None else normal * weight
    return scaled if bias is None else scaled + bias


def has_attention(net: nn.Module) -> bool:
    """Whether a network has torch's own attention in it."""
    return any(isinstance(module, nn.MultiheadAttention) for module in net.modules())
