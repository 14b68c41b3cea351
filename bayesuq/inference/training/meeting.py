"""How processes that a launcher has started find each other, time and again, through a store that outlives them.

`torchrun` keeps one store of keys and values while it starts processes again, and tells them how many times it has; but
the launchers of several hosts count differently where one host's processes end before another's. What an earlier life
has left in the store must not be taken for this one's, and no number tells them apart. So the first process makes a
name, and gives it to those that are there now, each of which has called by a name of its own.
"""

from time import monotonic, sleep
from uuid import uuid4

from torch.distributed import PrefixStore, Store

MOST_SECONDS = 300.0  # that the others are waited for
PAUSE = 0.01  # seconds between two looks


def met(store: Store, rank: int, size: int, most_seconds: float = MOST_SECONDS) -> PrefixStore:
    """A part of the store that the processes of this life have to themselves.

    Args:
        store: That all of them reach, whatever was written there before.
        rank: Of this process; the first one is 0.
        size: How many there are.
        most_seconds: How long the others are waited for.

    Raises:
        ConnectionError: Some of them did not come.
    """
    own, calls = uuid4().hex, PrefixStore("bayesuq/calls", store)
    find = _given if rank == 0 else _heard
    end = monotonic() + most_seconds
    while (name := find(calls, own, rank, size)) is None:
        if monotonic() > end:
            raise ConnectionError(
                f"Only some of the {size} processes of this fit have come within {most_seconds:.0f} seconds. Their own "
                "output says why."
            )
        sleep(PAUSE)
    return PrefixStore(f"bayesuq/{name}", store)


def _given(calls: PrefixStore, own: str, _rank: int, size: int) -> str | None:
    """The first one's look: answer who has called, and go when all have heard it."""
    others = range(1, size)
    for other in others:
        if calls.check([f"call/{other}"]):
            calls.set(f"answer/{calls.get(f'call/{other}').decode()}", own)
    if not all(calls.check([f"heard/{own}/{other}"]) for other in others):
        return None
    calls.set(f"go/{own}", "")
    return own


def _heard(calls: PrefixStore, own: str, rank: int, _size: int) -> str | None:
    """Another's look: the answer may change, where the first one was started again."""
    calls.set(f"call/{rank}", own)
    if not calls.check([f"answer/{own}"]):
        return None
    name = calls.get(f"answer/{own}").decode()
    calls.set(f"heard/{name}/{rank}", "")
    return name if calls.check([f"go/{name}"]) else None
