"""Processes that are started again meet those of their own life, whatever earlier ones have left in the store."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from torch.distributed import HashStore

from bayesuq.inference.training import meeting
from bayesuq.inference.training.meeting import met


def lives(store: HashStore, size: int) -> set[str]:
    """What the processes of one life write, each into the part of the store that it has found."""
    written = Barrier(size)

    def one(rank: int) -> str:
        part = met(store, rank, size, most_seconds=20)
        part.set(str(rank), f"process {rank}")
        written.wait(20)
        return ", ".join(part.get(str(other)).decode() for other in range(size))

    with ThreadPoolExecutor(size) as threads:
        return set(threads.map(one, range(size)))


@pytest.mark.parametrize("size", [1, 2, 5])
def test_all_of_a_life_have_one_part_and_another_life_another(size: int) -> None:
    store = HashStore()
    for _ in range(3):
        before = store.num_keys()
        assert lives(store, size) == {", ".join(f"process {rank}" for rank in range(size))}
        assert store.num_keys() >= before + size  # nothing is written where an earlier life has


def test_who_has_heard_the_first_one_before_it_was_started_again_hears_the_next() -> None:
    store = HashStore()
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(met, store, 1, 3, 20.0)
        with pytest.raises(ConnectionError, match="Only some of the 3 processes"):
            met(store, 0, 3, 0.2)  # ends before the third has come
        assert not waiting.done()
        found = threads.submit(met, store, 0, 3, 20.0)
        part = met(store, 2, 3, 20.0)
        part.set("told", "by the third")
        assert [one.result(20).get("told") for one in (waiting, found)] == [b"by the third"] * 2


def test_a_process_that_is_alone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "PAUSE", 0.0)
    with pytest.raises(ConnectionError, match="within 0 seconds"):
        met(HashStore(), 1, 2, 0.0)
