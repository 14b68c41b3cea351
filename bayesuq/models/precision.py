"""Mixed precision from outside: fits and predictions inside of `torch.autocast`.

Autocast runs a network's matrix products and convolutions in low precision. It also keeps the weights that it has cast,
until it ends: weights that a fit moves in place would be seen as they were at the first step. So fits turn that memory
off. Densities are computed from outputs in the model's own precision, and what needs exact derivatives or factors of
matrices runs without autocast.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda")
LOW = (torch.bfloat16, torch.float16)


@contextmanager
def fresh_casts() -> Iterator[None]:
    """The caller's autocast, if there is one, casting weights anew each time they are used."""
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                own = torch.autocast(device, torch.get_autocast_dtype(device), cache_enabled=False)
                stack.enter_context(own)
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Without autocast."""
    with ExitStack() as stack:
        for device in DEVICES:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def raised(f: Tensor, dtype: torch.dtype) -> Tensor:
    """Outputs that are in low precision, in the dtype given; others as they are."""
    return f.to(dtype) if f.dtype in LOW else f
