"""Tensors that are kept as small as they came: a number for all rows, or one a draw, takes no more than that.

A tensor of n dimensions is kept as its core: of the same number of dimensions, with size 1 wherever it is constant.

Whether cores are the same numbers is looked at where that saves memory; an accelerator would be waited for, and what is
small is put together there without a look.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesuq.waiting import numbers

SMALL = 2**16  # numbers


def core(value: Tensor, num_dims: int, num_event_dims: int = 0) -> Tensor:
    """The core of a tensor that broadcasts to `num_dims` dimensions, followed by those of an event, which stay."""
    value = value.reshape(*[1] * (num_dims + num_event_dims - value.ndim), *value.shape)
    for dim, (size, stride) in enumerate(zip(value.shape[:num_dims], value.stride()[:num_dims], strict=True)):
        if stride == 0 and size > 1:
            value = value.narrow(dim, 0, 1)
    return value


def joined(cores: Sequence[Tensor], sizes: Sequence[int], dim: int) -> Tensor:
    """The core of the tensors one after another in dimension `dim`, where they have the given sizes."""
    first = cores[0]
    is_one = all(each.shape == first.shape and each.shape[dim] == 1 for each in cores)
    is_small = first.device.type != "cpu" and first.numel() * sum(sizes) <= SMALL
    if is_one and not is_small and _are_equal(cores):
        return first
    common = list(torch.broadcast_shapes(*[_at_size(each.shape, dim, 1) for each in cores]))
    return torch.cat([each.expand(_at_size(common, dim, size)) for each, size in zip(cores, sizes, strict=True)], dim)


def _are_equal(cores: Sequence[Tensor]) -> bool:
    """Whether tensors of one shape are the same numbers, by one look at an accelerator."""
    first = cores[0]
    others = [each for each in cores if each is not first]
    if first.device.type == "cpu":
        return all(torch.equal(each, first) for each in others)
    return not others or bool(numbers((torch.stack(others) == first).all())[0])


def _at_size(shape: Sequence[int], dim: int, size: int) -> list[int]:
    return [*shape[:dim], size, *shape[dim + 1 :]]
