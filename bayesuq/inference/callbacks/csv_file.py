"""The course of a fit in a CSV file."""

import csv
from os import PathLike
from pathlib import Path
from typing import Any

from bayesuq.inference.training.options import Progress

COLUMNS = ("fit", "epoch", "step", "loss", "validation_loss", "seconds")


class CSVLogger:
    """Writes a line for each epoch to a CSV file, which is closed, and can be read, after every line.

    The columns are `fit`, from 0, and the fields of `Progress`; `validation_loss` is empty where there is none.

    Example:
        >>> import tempfile
        >>> log = CSVLogger(Path(tempfile.mkdtemp(), "history.csv"))
        >>> log(Progress(epoch=0, step=10, loss=1.5, validation_loss=None, seconds=0.25))
        >>> print(log.path.read_text())
        fit,epoch,step,loss,validation_loss,seconds
        0,0,10,1.5,,0.25
    """

    def __init__(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write the header.

        Args:
            path: Of the file.
            overwrite: Whether to replace a file that is there.

        Raises:
            FileExistsError: It is there, and is not to be overwritten.
            OSError: The folder does not exist or cannot be written.
        """
        self.path = Path(path)
        self._fit = -1
        self._write(COLUMNS, "w" if overwrite else "x")

    def __call__(self, progress: Progress) -> None:
        """Write the line of this epoch."""
        self._fit += progress.epoch == 0 or self._fit < 0  # a fit that goes on from a file begins later
        seen = "" if progress.validation_loss is None else progress.validation_loss
        self._write((self._fit, progress.epoch, progress.step, progress.loss, seen, progress.seconds), "a")

    def _write(self, row: tuple[Any, ...], mode: str) -> None:
        with self.path.open(mode, encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
