"""Files that are written whole or not at all, whatever stops the writer: beside their place, synced, and renamed."""

import os
import re
import secrets
import socket
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import BinaryIO

HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"  # processes of other machines may share the folder


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of `path` at the end of the block, or never does.

    A link stays one: what it leads to is replaced. What writers that were killed left behind is taken away.

    Raises:
        OSError: The folder does not exist or cannot be written, or the disk is full; an older file at `path` is then as
            it was.
    """
    with replacing_by_name(path) as temporary, temporary.open("xb") as file:
        yield file


@contextmanager
def replacing_by_name(path: str | PathLike[str]) -> Iterator[Path]:
    """As `replacing`, for writers that open their file themselves: the name of one that is not there yet.

    Raises:
        OSError: As there.
    """
    target = check_place(path)
    _remove_leftovers(target)
    temporary = target.parent / f".{target.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | PathLike[str], text: str) -> None:
    """Write a text in UTF-8, whole or not at all.

    Raises:
        OSError: See `replacing`.
    """
    with replacing(path) as file:
        file.write(text.encode())


def check_place(path: str | PathLike[str]) -> Path:
    """Look before the work that a file is for; where it will lie, links followed.

    Raises:
        FileNotFoundError: The folder that it shall lie in does not exist.
        NotADirectoryError: That is no folder.
        IsADirectoryError: The path is one.
        PermissionError: The folder must not be written.
    """
    target = Path(path)
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    folder = os.fspath(target.parent)
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; name a file in it.")
    if not target.parent.exists():
        raise FileNotFoundError(f"There is no folder {folder!r} for the file {target.name!r}; make it first.")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"{folder!r} is no folder; the file {target.name!r} cannot lie there.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"The folder {folder!r} cannot be written.")
    return target


def _remove_leftovers(target: Path) -> None:
    """Take away temporary files of this place whose writers are no more."""
    name = re.compile(rf"\.{re.escape(target.name)}\.{HOST}-(\d+)-[0-9a-f]{{8}}")
    for file in os.listdir(target.parent):
        found = name.fullmatch(file)
        if found and not is_alive(int(found[1])):
            with suppress(OSError):
                (target.parent / file).unlink()


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there."""
    if os.name != "posix":
        return True  # there, the question would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets one sync a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
