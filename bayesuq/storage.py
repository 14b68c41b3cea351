"""One file for tensors and a JSON header: safetensors, which holds no code, written whole or not at all."""

import json
import os
import secrets
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

HEADER = "bayesuq"


def write(path: str | PathLike[str], header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors and header to a temporary file beside `path`, sync it, and rename it.

    Raises:
        OSError: The folder does not exist or cannot be written; an older file at `path` is then as it was.
    """
    target = Path(path)
    check_place(target)
    content = save(
        {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, {HEADER: json.dumps(header)}
    )
    temporary = target.parent / f".{target.name}.{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        _sync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_place(path: str | PathLike[str]) -> None:
    """Look before the work that a file is for.

    Raises:
        FileNotFoundError: The folder that it shall lie in does not exist.
        NotADirectoryError: That is no folder.
        IsADirectoryError: The path is one.
        PermissionError: The folder must not be written.
    """
    target = Path(path)
    folder = os.fspath(target.parent)
    if target.is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; name a file in it.")
    if not target.parent.exists():
        raise FileNotFoundError(f"There is no folder {folder!r} for the file {target.name!r}; make it first.")
    if not target.parent.is_dir():
        raise NotADirectoryError(f"{folder!r} is no folder; the file {target.name!r} cannot lie there.")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"The folder {folder!r} cannot be written.")


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets one sync a folder."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: str | PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors (on the CPU) of a file that `write` wrote.

    Raises:
        FileNotFoundError: No such file.
        IsADirectoryError: A folder.
        ValueError: Truncated, or another kind of file.
    """
    if Path(path).is_dir():
        raise IsADirectoryError(f"{os.fspath(path)!r} is a folder; name the file in it.")
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER])
            if not isinstance(header, dict):
                raise ValueError("its header is no mapping")
            # Copies, because a sum over memory that is not aligned, as in the file, can differ in its last bit.
            return header, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)!r} is not a complete file written by bayesuq: {error!r}.") from error
