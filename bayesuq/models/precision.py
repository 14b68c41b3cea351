"""Mixed precision: fits and predictions inside of `torch.autocast`, and networks that run in low precision themselves.

Autocast runs a network's matrix products and convolutions in low precision. It also keeps the weights that it has cast,
until it ends: weights that a fit moves in place would be seen as they were at the first step. So fits turn that memory
off. Densities are computed from outputs in the model's own precision, and what needs exact derivatives or factors of
matrices runs without autocast.
"""

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor

DEVICES = ("cpu", "cuda")
LOW = (torch.bfloat16, torch.float16)


class _Asked(threading.local):
    """Whether full precision is asked for, in this thread."""

    in_full = False


_asked = _Asked()


def is_in_full() -> bool:
    """Whether all is to be computed in full precision, in this thread."""
    return _asked.in_full


def lowered(device: str, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Low precision for the forward pass of a network that runs in it."""
    if device not in DEVICES:
        return nullcontext()
    return torch.autocast(device, dtype, cache_enabled=False)


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
    """Without autocast, that of networks that run in low precision included."""
    before, _asked.in_full = _asked.in_full, True
    try:
        with ExitStack() as stack:
            for device in DEVICES:
                if torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        _asked.in_full = before


def raised(f: Tensor, dtype: torch.dtype) -> Tensor:
    """Outputs that are in low precision, in the dtype given; others as they are."""
    return f.to(dtype) if f.dtype in LOW else f


def lost_steps(dtypes: Iterable[torch.dtype]) -> str:
    """What weights that are held in low precision cannot do, and what to pass instead; "" where none is."""
    for dtype in dtypes:
        if dtype in LOW:
            share = round(2 / torch.finfo(dtype).eps)
            return (
                f"weights of {dtype} lose each step that is smaller than 1/{share} of them. Pass the network as "
                f"`net.float()`; with autocast={dtype} the model runs it in low precision and holds its weights in full"
            )
    return ""
