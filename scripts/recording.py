"""Results as JSON lines: a line for each run, written whole or not at all, so that a stopped command can go on."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("bayesuq", "torch", "pyro-ppl", "numpy")
Record = dict[str, Any]


class Records:
    """A file of JSON lines that grows by a line a run.

    A line that a kill left unfinished, at the end of the file, is no record; the next append takes its place.

    Args:
        path: Of the file; it need not be there yet, nor its folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> list[Record]:
        """All records, in the order of the file.

        Raises:
            ValueError: A finished line that is no JSON object.
        """
        records = []
        for number, line in enumerate(self._finished().splitlines(), start=1):
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"Line {number} of {self.path} is no JSON: {error}.") from error
            if not isinstance(record, dict):
                raise ValueError(f"Line {number} of {self.path} must be a JSON object; got {line[:40]!r}.")
            records.append(record)
        return records

    def has(self, **key: Any) -> bool:
        """Whether a record agrees with all these fields."""
        return any(all(record.get(name) == value for name, value in key.items()) for record in self.read())

    def append(self, *records: Record) -> None:
        """Add lines, on disk when this returns.

        Raises:
            ValueError: Numbers that JSON does not have, such as infinity.
        """
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # other processes may append to it
            self._drop_unfinished()
            file.write(lines)  # at once, so that a kill leaves all of them or none
            file.flush()
            os.fsync(file.fileno())

    def _drop_unfinished(self) -> None:
        whole = len(self._finished().encode())
        if self.path.exists() and self.path.stat().st_size > whole:
            os.truncate(self.path, whole)

    def _finished(self) -> str:
        """The text up to its last line break."""
        if not self.path.exists():
            return ""
        text, end, _ = self.path.read_text(encoding="utf-8").rpartition("\n")
        return text + end


def digest(setting: Any) -> str:
    """A short name for the values of a setting: any change gives another.

    Of a dataclass, fields at their default do not count, so that a new option does not rename old results.
    """
    values = dict(setting) if isinstance(setting, Mapping) else _chosen(setting)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def _chosen(setting: Any) -> dict[str, Any]:
    return {
        item.name: getattr(setting, item.name)
        for item in fields(setting)
        if getattr(setting, item.name) != item.default
    }


def versions() -> dict[str, str]:
    """Of the packages that decide the numbers; a local suffix, such as torch's `+cpu`, is left out."""
    return {name: version(name).partition("+")[0] for name in PACKAGES}
