"""Public data sets from their sources into the folder where `datasets.load` looks: fetched, checked, converted.

A set is written whole or not at all, and only if its files have the checksums in `bayesuq.datasets.sources`.
"""

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pooch

from bayesuq.datasets.named import folder, relative_path
from bayesuq.datasets.sources import SOURCES, Arrays, Source
from bayesuq.options import nearest
from bayesuq.writing import replacing

TIMEOUT = 30.0  # seconds without an answer
RETRIES = 2
CHUNK = 2**16  # bytes


class FetchError(RuntimeError):
    """A data set did not arrive as it should."""


def get(name: str, *, overwrite: bool = False, progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a data set into the folder that BAYESUQ_DATA names, or else into the user's cache folder.

    Args:
        name: One of `bayesuq.datasets.sources.SOURCES`.
        overwrite: Whether to fetch it again where it is already there.
        progress: Called before each file with how many are done and how many there are.

    Returns:
        The file that `datasets.load(name)` now reads.

    Raises:
        ValueError: No such set.
        FetchError: The source cannot be reached, or sends something else than it should.
        OSError: The folder cannot be written.
    """
    if name not in SOURCES:
        raise ValueError(f"There is no source for {name!r}; {nearest(name, list(SOURCES))}.")
    path = folder() / str(relative_path(name))
    if path.exists() and not overwrite:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetching-") as workspace:  # an unwritable folder: now
        contents = _download(name, SOURCES[name], Path(workspace), progress)
    try:
        arrays = SOURCES[name].convert(contents)
    except ValueError as error:
        raise FetchError(f"The files of {name} are not what they were when bayesuq was written: {error}") from error
    _write(path, arrays)
    return path


def _download(
    name: str, source: Source, workspace: Path, progress: Callable[[int, int], None] | None
) -> Sequence[bytes]:
    files = {f"{number}-{address.rpartition('/')[2]}": address for number, address in enumerate(source.addresses)}
    hashes = source.hashes or (None,) * len(files)
    client = pooch.create(
        path=workspace,
        base_url="",
        registry=dict(zip(files, hashes, strict=True)),
        urls=files,
        retry_if_failed=RETRIES,
    )
    contents = []
    with _quiet():
        for number, (file, address) in enumerate(files.items()):
            if progress is not None:
                progress(number, len(files))
            try:
                client.fetch(file, downloader=pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=CHUNK))
            except ValueError as error:  # pooch: another checksum
                raise FetchError(f"{address} is not the file that it should be: {error}") from error
            except OSError as error:  # requests: no connection, no answer, an error of the server, a partial file
                raise FetchError(f"{name} cannot be fetched: {error}") from error
            contents.append((workspace / file).read_bytes())
    if source.digest is not None and digest(contents) != source.digest:
        raise FetchError(
            f"The files of {name} are not what they should be: together they have the checksum {digest(contents)}, "
            f"not {source.digest}."
        )
    return contents


def digest(contents: Sequence[bytes]) -> str:
    """SHA-256 over the contents in order, each preceded by its length in eight bytes, most significant first."""
    state = hashlib.sha256()
    for content in contents:
        state.update(len(content).to_bytes(8, "big") + content)
    return state.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Pooch tells of every file and of hashes that it is not given; we have our own words for both."""
    logger = pooch.get_logger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _write(path: Path, arrays: Arrays) -> None:
    """Whole or not at all."""
    with replacing(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
