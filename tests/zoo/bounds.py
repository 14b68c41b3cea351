"""Bounds of time and memory that end what runs away, and do not only tell of it afterwards."""

import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType


@contextmanager
def within_seconds(seconds: float) -> Iterator[None]:
    """Raise an AssertionError in the block once it has taken so long; it must run in the main thread."""

    def end(_: int, __: FrameType | None) -> None:
        raise AssertionError(f"It takes longer than {seconds} s.")

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def within_bytes(number: int) -> Iterator[None]:
    """Let the block have so many bytes of addresses more than there are, on Linux; others cannot be asked for."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bound = pages * resource.getpagesize() + number
    resource.setrlimit(resource.RLIMIT_AS, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
