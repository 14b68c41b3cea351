"""A table of a user's own, from a file to data that can be fitted.

table = bayesuq.read_table("houses.csv", target="price")
print(table)  # what each column is taken for
split, columns = table.split()
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any

import numpy as np
import torch

from bayesuq import optional
from bayesuq.arrays import check_count
from bayesuq.data import Dataset, Split, split_dataset
from bayesuq.options import nearest
from bayesuq.tables.encoding import Columns, Notes, Target, inferred
from bayesuq.tables.files import Form, frames, look_at
from bayesuq.tables.kinds import Column, alike_but_for_case

__all__ = ["Table", "read_table"]
__dir__ = __all__.copy

FEWEST = 10  # rows of which something could be learned, and held out
MOST_COPIES = 0.05  # share of rows, beyond which copies are told of


def read_table(
    path: str | PathLike[str],
    *,
    target: str,
    labels: bool | None = None,
    categories: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    delimiter: str | None = None,
    encoding: str | None = None,
) -> "Table":
    """A table from a file: CSV or TSV, compressed or not, or Parquet, with the names of the columns in its first line.

    Rows without a target are left out. What each column is taken for is inferred, and told by `print(table)`: numbers,
    yes or no, dates, or words, each with an input of its own. Where words stand among many numbers they count as
    missing. Columns of one value, and of free text, are left out.

    Args:
        path: Of the file.
        target: Name of the column that is predicted.
        labels: Whether the target is labels. None takes words, yes and no, and 0 and 1 for labels, else numbers.
        categories: Columns that are categories though they are numbers, such as codes.
        leave_out: Columns that are not read, such as the number of a row.
        delimiter: Between cells; None finds it out.
        encoding: Of the text; None takes UTF-8, or else Windows-1252, which is told.

    Raises:
        FileNotFoundError: No such file.
        ImportError: No pandas; or Parquet without pyarrow.
        ValueError: No such column, two of one name, fewer than 10 rows, lines of another width, a target that is words
            among numbers, dates, the same in every row, left out or among `categories`, no column to predict from.

    Warns:
        UserWarning: Rows without a target, cells that are not what their column holds, text that is not UTF-8.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> rows = [f"{size},{'red' if size % 2 else 'blue'},{10 * size}" for size in range(1, 21)]
        >>> with TemporaryDirectory() as folder:
        ...     with open(f"{folder}/houses.csv", "w") as file:
        ...         _ = file.write("size,colour,price" + chr(10) + chr(10).join(rows))
        ...     table = read_table(f"{folder}/houses.csv", target="price")
        >>> table.columns.features
        ('size', 'colour = blue', 'colour = red')
        >>> table.data
        Dataset(x: (20, 3) float64, y: (20, 1) float64)
    """
    form = look_at(path, delimiter=delimiter, encoding=encoding)
    _check_columns(form, {"target": [target], "categories": categories, "leave_out": leave_out})
    _check_only_target(target, categories=categories, leave_out=leave_out)
    (frame,) = frames(form, as_text=categories)
    frame = _with_target(frame, target, path)
    meant = Target.learn(target, frame[target], labels=labels)
    _warn_of_labels(meant)
    names = [name for name in form.columns if name != target and name not in leave_out]
    _warn_of_copies(frame[[*names, target]])
    return Table(frame=frame, form=form, target=meant, kinds=inferred(frame, target, names, categories))


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Table:
    """Rows of a file, and what its columns are; from `read_table`.

    Attributes:
        frame: The rows that have a target, a pandas DataFrame.
        form: How the file is written.
        target: The column that is predicted.
        kinds: What each other column is.
    """

    frame: Any
    form: Form
    target: Target
    kinds: tuple[Column, ...]

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        lines = [f"{kind.name}: {kind.said}" for kind in self.kinds]
        head = f"Table({self.form.path!r}, {len(self)} rows, {self.form})"
        return "\n  ".join([head, *lines, f"{self.target.name}: {self.target.said}, predicted"])

    @property
    def columns(self) -> Columns:
        """What all of its rows teach of the columns."""
        return Columns.learn(self.kinds, self.target, self.frame)

    @property
    def data(self) -> Dataset:
        """All rows as inputs, float64, and targets."""
        return self._data(self.columns)

    def split(
        self,
        *,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        columns: Columns | None = None,
    ) -> tuple[Split, Columns]:
        """Divide the rows at random, and learn medians of the training rows alone.

        Args:
            val_fraction: See `bayesuq.data.split_dataset`.
            test_fraction: See there.
            seed: See there.
            columns: What a posterior was fitted to, whose inputs the rows become; None learns it from these rows.

        Returns:
            The parts, and what the training rows teach of the columns: as a posterior needs it for new rows.

        Raises:
            ValueError: See `split_dataset`.
        """
        targets = torch.tensor(self.target.values(self.frame))
        _check_labels(self.target, targets, 1 + (val_fraction > 0) + (test_fraction > 0))
        places = Dataset(torch.arange(len(self)).unsqueeze(1), targets)
        try:
            divided = split_dataset(places, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
        except ValueError as error:
            labels = f"{len(self.target.classes)} labels. " if self.target.classes else "numbers. "
            raise ValueError(f"The target {self.target.name!r} has {labels}{error}") from error
        fitted = self.frame.iloc[divided.train.x[:, 0].numpy()]
        columns = Columns.learn(self.kinds, self.target, fitted) if columns is None else columns
        notes = Notes()
        whole = self._data(columns, notes)
        for line in notes.lines():
            warnings.warn(line, UserWarning, stacklevel=2)
        train, val, test = (whole.rows(part.x[:, 0]) for part in (divided.train, divided.val, divided.test))
        return Split(train, val, test), columns

    def _data(self, columns: Columns, notes: Notes | None = None) -> Dataset:
        x = optional.pandas.DataFrame(columns.encode(self.frame, notes=notes).x.numpy(), columns=columns.features)
        return Dataset(x, self.target.values(self.frame))


def new_rows(path: str | PathLike[str], columns: Columns, *, rows: int, **form: Any) -> Any:
    """The rows of another file in frames of so many, read as the fitted columns are.

    Raises:
        ValueError: A column is missing; see `read_table` for the rest.
    """
    check_count(rows, "rows")
    looked_at = look_at(path, **form)
    columns.check_names(looked_at.columns)
    wanted = [name for name in looked_at.columns if name in {*columns.used, columns.target.name}]
    return frames(looked_at, rows=rows, as_text=columns.as_text, columns=wanted)


def read_as_fitted(
    path: str | PathLike[str], columns: Columns, *, delimiter: str | None = None, encoding: str | None = None
) -> Table:
    """The rows of a file that have a target, read as the fitted columns are, in whatever order they stand.

    `split(columns=columns)` then makes the inputs of the fit of them.

    Raises:
        ValueError: A column or the target is missing, fewer than 10 rows; see `read_table` for the rest.

    Warns:
        UserWarning: See `read_table`.
    """
    target = columns.target.name
    form = look_at(path, delimiter=delimiter, encoding=encoding)
    columns.check_names(form.columns)
    _check_columns(form, {"target": [target]})
    wanted = [name for name in form.columns if name in {*columns.used, target}]
    (frame,) = frames(form, as_text=columns.as_text, columns=wanted)
    frame = _with_target(frame, target, path)
    return Table(frame=frame, form=form, target=columns.target, kinds=columns.columns)


def _with_target(frame: Any, target: str, path: str | PathLike[str]) -> Any:
    """The rows that have a target.

    Raises:
        ValueError: They are too few.
    """
    known = frame[target].notna()
    _warn_of_rows_without_target(~known, target)
    rows = np.flatnonzero(known)
    if len(rows) < FEWEST:
        raise ValueError(
            f"{fspath(path)!r} has {len(rows)} rows with a target, {target!r}, of {len(known)}; at least {FEWEST} are "
            "needed."
        )
    return frame.iloc[rows]


def _check_columns(form: Form, named: Mapping[str, Sequence[str]]) -> None:
    """Refuse names of columns that the file does not have, by the option that they were given by."""
    for option, names in named.items():
        for name in names:
            if name not in form.columns:
                hint = " Is its `delimiter` another?" if len(form.columns) == 1 else ""
                raise ValueError(
                    f"{form.path!r} has no column {name!r} (`{option}`); {nearest(name, list(form.columns))}.{hint}"
                )


def _check_only_target(target: str, *, categories: Sequence[str], leave_out: Sequence[str]) -> None:
    """Refuse a target that is told to be something else, too.

    Raises:
        ValueError: A category, or left out.
    """
    if target in leave_out:
        raise ValueError(f"Column {target!r} is the target, and cannot be left out (`leave_out`). Name one of them.")
    if target in categories:
        raise ValueError(
            f"Column {target!r} is the target, which `categories` says nothing of. Take it for labels, if it is that."
        )


def _check_labels(target: Target, labels: torch.Tensor, parts: int) -> None:
    """Refuse labels of so few rows that they cannot stand in each of so many parts.

    Raises:
        ValueError: With their names.
    """
    if not target.classes:
        return
    counts = torch.bincount(labels, minlength=len(target.classes)).tolist()
    few = [f"{name!r} ({count})" for name, count in zip(target.classes, counts, strict=True) if 0 < count < parts]
    if few:
        raise ValueError(
            f"Each label of {target.name!r} must stand in {parts} rows, one for each part of the data, as for testing; "
            f"fewer have {', '.join(few[:4])}{', ...' if len(few) > 4 else ''}. Leave these rows out, or merge these "
            "labels with others."
        )


def _warn_of_labels(target: Target) -> None:
    alike = alike_but_for_case(target.classes)
    if alike:
        warnings.warn(
            f"The labels {' and '.join(map(repr, alike))} of {target.name!r} differ in upper and lower case alone, and "
            "are taken for different ones. Write them alike if they are one.",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_copies(frame: Any) -> None:
    """Tell of rows that stand there several times, where a column is measured so finely that they are no accident."""
    copies = frame.duplicated()
    distinct = frame[~copies]
    finest = max(distinct[name].nunique() for name in frame.columns) if copies.any() else 0
    if copies.mean() > MOST_COPIES and finest > len(distinct) / 2:
        warnings.warn(
            f"{int(copies.sum())} of {len(frame)} rows are copies of an earlier one. Copies of training rows among the "
            "test rows make a fit look better than it is: drop them, unless each is an observation.",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_rows_without_target(missing: Any, target: str) -> None:
    rows = np.flatnonzero(missing)
    if len(rows):
        warnings.warn(
            f"{len(rows)} of {len(missing)} rows have no target {target!r} and are left out, the first is row "
            f"{int(rows[0]) + 1}.",
            UserWarning,
            stacklevel=4,
        )
