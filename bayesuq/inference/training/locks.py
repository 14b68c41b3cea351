"""A lock on a path, which ends with its holder, however that ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from bayesuq.writing import check_place

try:
    import fcntl
except ImportError:  # on Windows, where no lock is offered
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: str | PathLike[str]) -> Iterator[None]:
    """Hold the path for the length of the block, by a lock on a file beside it, `.<name>.lock`.

    The system takes the lock of a process that ends, and the next one takes the file over. Where a file system knows no
    locks, none is held.

    Raises:
        BlockingIOError: Another fit holds it, in this process or in another one.
        OSError: The folder does not exist or cannot be written.
    """
    target = check_place(path)
    place = target.parent / f".{target.name}.lock"
    descriptor = _take(place, target) if fcntl else None
    try:
        yield
    finally:
        if descriptor is not None:
            place.unlink(missing_ok=True)
            os.close(descriptor)


def _take(place: Path, target: Path) -> int | None:
    """The descriptor of the lock's file, locked; None where locks are not known."""
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have taken the file away between the two lines above.
            if os.path.exists(place) and os.path.samestat(os.fstat(descriptor), os.stat(place)):
                os.truncate(descriptor, 0)
                os.write(descriptor, str(os.getpid()).encode())
                return descriptor
        except BlockingIOError as error:
            holder = os.read(descriptor, 20).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise BlockingIOError(
                error.errno,
                f"The checkpoint {os.fspath(target)!r} is being written by another fit, in process {holder}. Wait for "
                "it, or choose another path.",
            ) from error
        except OSError:
            place.unlink(missing_ok=True)
            os.close(descriptor)
            return None
        os.close(descriptor)
