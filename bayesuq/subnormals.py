"""Numbers too small to be normal count as zero where much is computed, since a CPU is many times slower at them.

The prior pulls the weights of a unit that no row excites any more towards zero, by a factor a step: after some thousand
steps they are below 1.2e-38, the smallest normal number of float32, where each product with one takes a processor a
hundred cycles and more. So do products of the covariances of a process between rows that are many lengthscales apart.
Nothing else depends on numbers that small.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SUBNORMAL = 1e-310  # of float64


@contextmanager
def flushed() -> Iterator[None]:
    """Subnormal numbers are zero within, to a CPU that can do so, in this thread; as before afterwards.

    Threads that torch has for itself are not asked.

    Example:
        >>> with flushed():
        ...     float(torch.tensor(1e-40) * 1.0)
        0.0
        >>> float(torch.tensor(1e-40) * 1.0) > 0.0
        True
    """
    before = are_flushed()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def without_subnormals(tensors: Iterable[Tensor]) -> None:
    """Put zeros in the place of subnormal numbers, in tensors on a CPU: other threads of it may have made some.

    The smallest normal number itself, of either sign, becomes zero with them.

    Example:
        >>> weights = torch.tensor([1.0, 1e-40])
        >>> without_subnormals([weights])
        >>> weights
        tensor([1., 0.])
    """
    with torch.no_grad():
        for tensor in tensors:
            if tensor.device.type == "cpu":
                torch.hardshrink(tensor, torch.finfo(tensor.dtype).tiny, out=tensor)  # in one go through memory


def are_flushed() -> bool:
    """Whether they are zero now."""
    return float(torch.full((1,), SUBNORMAL, dtype=torch.float64, device="cpu") * 1.0) == 0.0
