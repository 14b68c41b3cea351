"""Writes the files of the cases named, or of all that have none: `python -m tests.files_of_before.write [NAME ...]`.

To write the files of an older version, run it with that version's `bayesuq` first on PYTHONPATH.
"""

import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from bayesuq.inference.training.checkpoint import Checkpoint
from tests.files_of_before.cases import (
    CHECKPOINTS,
    NUMBERS,
    POSTERIORS,
    Case,
    checkpoint_archive,
    numbers,
    posterior_file,
)

EPOCH = (2026, 1, 1, 0, 0, 0)


class StoppedError(BaseException):
    """As if the power had failed."""


class Writes:
    """Counts writes of checkpoints, and stops a fit after so many."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after, self.count, self.original = stop_after, 0, Checkpoint.save

    def __call__(self, checkpoint: Checkpoint, *arguments: Any) -> None:
        self.original(checkpoint, *arguments)
        self.count += 1
        if self.count == self.stop_after:
            raise StoppedError


def write_posterior(name: str, case: Case) -> Mapping[str, Any]:
    posterior = case.fit()
    assert type(posterior).__name__ == name
    posterior_file(name).parent.mkdir(exist_ok=True)
    posterior.save(posterior_file(name))
    return numbers(posterior, case.x)


def write_checkpoint(name: str, case: Case) -> Mapping[str, Any]:
    def fit(writes: Writes, folder: str) -> Any:
        with mock.patch.object(Checkpoint, "save", lambda *arguments: writes(*arguments)):
            return case.fit(checkpoint=Checkpoint(Path(folder) / "state", every_steps=1))

    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as part:
        everything, some = Writes(), Writes(case.writes)
        expected = numbers(fit(everything, whole), case.x)
        try:
            fit(some, part)
        except StoppedError:
            pass
        else:
            raise AssertionError(f"{name} was over after {some.count} writes")
        checkpoint_archive(name).parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(checkpoint_archive(name), "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for path in sorted(Path(part).iterdir()):
                archive.writestr(zipfile.ZipInfo(path.name, EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return expected | {"writes": everything.count}


def main(names: list[str]) -> None:
    known = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {"posteriors": {}, "checkpoints": {}}
    for kind, cases, write in (
        ("posteriors", POSTERIORS, write_posterior),
        ("checkpoints", CHECKPOINTS, write_checkpoint),
    ):
        for name, case in cases.items():
            if name in names or (not names and name not in known[kind]):
                known[kind][name] = write(name, case)
                NUMBERS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
