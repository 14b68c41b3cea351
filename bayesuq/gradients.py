"""Gradients of predictions in their inputs: kept where they are asked for, and nowhere else.

Predictions are computed without gradients, and the doors take tensors out of the graph that they come with. Within
`keeping()` both let the graph be, in the thread that asked alone, so that one code predicts in both ways.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

_KEPT: ContextVar[bool] = ContextVar("gradients kept", default=False)


def are_kept() -> bool:
    """Whether this is computed for its gradients."""
    return _KEPT.get()


@contextmanager
def keeping() -> Iterator[None]:
    """Compute with gradients, also where code asks for none by `unless_kept`."""
    token = _KEPT.set(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        _KEPT.reset(token)


def unless_kept() -> AbstractContextManager[None]:
    """`torch.no_grad()`, or nothing where gradients are kept."""
    return nullcontext() if are_kept() else torch.no_grad()


def detached(value: Tensor) -> Tensor:
    """The tensor outside of its graph, or in it where gradients are kept."""
    return value if are_kept() else value.detach()
