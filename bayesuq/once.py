"""What a call says once, however many fits it makes inside: an ensemble of five networks has one set of data."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_SAID: ContextVar[set[str] | None] = ContextVar("said", default=None)


@contextmanager
def one_call() -> Iterator[None]:
    """What is said inside, calls within this one included, is said once."""
    if _SAID.get() is not None:
        yield
        return
    token = _SAID.set(set())
    try:
        yield
    finally:
        _SAID.reset(token)


def is_first(topic: str) -> bool:
    """Whether nothing has been said of a topic in this call, as from now on it has; outside of any call, always."""
    said = _SAID.get()
    if said is None:
        return True
    is_new = topic not in said
    said.add(topic)
    return is_new
