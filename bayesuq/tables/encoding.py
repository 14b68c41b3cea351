"""Rows of a table as the numbers that a network takes, by what was learned from the rows that are fitted.

Numbers, flags and parts of dates go through scikit-learn's `SimpleImputer`: a missing cell becomes the median of its
column, and an input of its own says that it was missing. Words go through its `OneHotEncoder`. Both are kept as what
they have learned, medians and words, and made again from it: a file holds JSON, and nothing that could run.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from bayesuq import optional
from bayesuq.tables.kinds import (
    KINDS,
    Array,
    Category,
    Column,
    Date,
    LeftOut,
    Number,
    has_too_large,
    infer,
    labels_of,
    strays,
    unit_of,
    words_of,
)

__all__ = ["Columns", "Encoded", "Notes", "Target"]
__dir__ = __all__.copy

NAMED = 3  # rows that a remark names
ROW_COUNT = re.compile(r"column \d+|unnamed: ?\d+|#|no\.?|nr\.?|(row)?[ _]?(id|index|number|nr\.?|no\.?)|rows?|x", re.I)


@dataclass
class Notes:
    """Remarks on cells, gathered over the frames of a file: how many rows each concerns, and the first of them.

    Attributes:
        found: By column and what is remarked, the number of rows and the first ones, told.
    """

    found: dict[tuple[str, str], list[Any]] = field(default_factory=dict)

    def add(self, column: str, remark: str, rows: Array, told: Sequence[str] = ()) -> None:
        """Note rows by their numbers, each told by a word, if there are any."""
        if not len(rows):
            return
        entry = self.found.setdefault((column, remark), [0])
        for place, row in enumerate(rows):
            entry[0] += 1
            if len(entry) <= NAMED:
                entry.append(f"row {row}" + (f": {told[place]!r}" if told else ""))

    def lines(self) -> list[str]:
        """A sentence for each remark."""
        return [
            f"Column {column!r}: {count} {'row' if count == 1 else 'rows'} {remark} "
            f"({', '.join(first)}{', ...' if count > len(first) else ''})."
            for (column, remark), (count, *first) in self.found.items()
        ]


@dataclass(frozen=True)
class Target:
    """The column that is predicted.

    Attributes:
        name: Of the column.
        classes: The labels, sorted; empty for numbers.
        unit: What stands beside the numbers in their cells; empty for nothing.
    """

    name: str
    classes: tuple[str, ...] = ()
    unit: str = ""

    @property
    def said(self) -> str:
        """What it is taken for."""
        shown = ", ".join(self.classes[:4]) + (", ..." if len(self.classes) > 4 else "")
        return f"{len(self.classes)} labels ({shown})" if self.classes else self._number.said

    @classmethod
    def learn(cls, name: str, cells: Any, *, labels: bool | None) -> Self:
        """Labels where the cells are words, or flags, or 0 and 1; else numbers.

        Args:
            name: Of the column.
            cells: That are not missing.
            labels: Whether they are labels; None lets the cells say.

        Raises:
            ValueError: One value only; dates; numbers among which stand words; words that are hardly ever the same.
        """
        if cells.nunique() < 2:
            raise ValueError(
                f"The target {name!r} is {str(cells.iloc[0])!r} in every row, so that there is nothing to learn."
                if len(cells)
                else f"The target {name!r} is empty in every row."
            )
        if labels is not True and has_too_large(cells):
            raise ValueError(
                f"The target {name!r} holds whole numbers beyond 2^53, which floats do not tell apart. Divide them, or "
                "take them for labels."
            )
        kind = infer(name, cells)
        if isinstance(kind, Date) and labels is not True:
            raise ValueError(
                f"The target {name!r} is {kind.said}, and dates are not predicted. Write what is meant as a number, "
                "such as the days since one of them, or take it for labels."
            )
        unit = unit_of(cells)
        words = strays(cells, unit)
        is_numeric = len(words) < len(cells) / 2 and cells.dtype.kind != "b"
        if labels is None:
            labels = not is_numeric or (not words and set(Number(name).numbers(cells)[:, 0]) == {0.0, 1.0})
        if labels:
            classes = sorted(set(words_of(cells)), key=_by_number)
            if len(classes) > max(2, len(cells) // 2):
                few, are = len(cells) - len(words), "words" if words else "numbers"
                beside = f", and numbers in {few} of them" if words and few else ""
                raise ValueError(
                    f"The target {name!r} has {len(classes)} different {are} in {len(cells)} rows{beside}, "
                    f"which are no labels. Name another column, or mend this one."
                )
            return cls(name, tuple(classes))
        if words:
            row, word = next(iter(words.items()))
            mixed = f"numbers, but for {len(words)} of {len(cells)} rows that hold words"
            raise ValueError(
                f"The target {name!r} holds {mixed if len(words) < len(cells) else 'words and no numbers'}, the first "
                f"row {int(cells.index[row]) + 1}: {word!r}. Mend or empty them, or take it for labels."
            )
        return cls(name, unit=unit)

    @property
    def _number(self) -> Number:
        return Number(self.name, self.unit)

    def values(self, frame: Any) -> Array:
        """Numbers, (N,) float64, or labels, (N,) int64.

        Raises:
            ValueError: A label that was not fitted; words where numbers were, or infinite numbers.
        """
        cells, rows = frame[self.name], row_numbers(frame)
        if self.classes:
            words = words_of(cells)
            labels = labels_of(words, self.classes)
            if (labels < 0).any():
                place = int(np.flatnonzero(labels < 0)[0])
                raise ValueError(
                    f"The target {self.name!r} has the label {words[place]!r} in row {rows[place]}, which is "
                    f"not one of those that were fitted: {', '.join(self.classes)}."
                )
            return labels
        numbers = self._number.numbers(cells)[:, 0]
        if not np.isfinite(numbers).all():
            place = int(np.flatnonzero(~np.isfinite(numbers))[0])
            raise ValueError(
                f"The target {self.name!r} is '{cells.iloc[place]}' in row {rows[place]}, which is no finite number."
            )
        return numbers


@dataclass(frozen=True, eq=False)
class Encoded:
    """Rows as numbers.

    Attributes:
        x: (N, D), float64.
        unknown: Cells of each row whose word was not fitted, (N,), int64.
    """

    x: Tensor
    unknown: Tensor


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are, and what the rows that are fitted have taught of them.

    Attributes:
        columns: In the file's order, without the target.
        target: The column that is predicted.
        medians: Of each number that a cell gives, over all such columns.
        can_be_missing: Whether each of them has an input that says that it is missing.
    """

    columns: tuple[Column, ...]
    target: Target
    medians: tuple[float, ...]
    can_be_missing: tuple[bool, ...]

    @classmethod
    def learn(cls, columns: Sequence[Column], target: Target, frame: Any) -> Self:
        """Learn medians, and which cells can be missing, from the rows that are fitted.

        Args:
            columns: What they are.
            target: What is predicted.
            frame: Rows.

        Raises:
            ValueError: Infinite numbers.
        """
        numeric = [column for column in columns if not isinstance(column, Category | LeftOut)]
        medians: list[float] = []
        missing: list[bool] = []
        for column in numeric:
            numbers = column.numbers(frame[column.name])
            imputer = optional.impute.SimpleImputer(strategy="median").fit(_finite(numbers, column, frame))
            medians += np.nan_to_num(imputer.statistics_).tolist()  # of few rows all cells may be missing
            # The parts of a date are missing together: one input says so.
            missing += [bool(np.isnan(numbers[:, 0]).any()), *[False] * (numbers.shape[1] - 1)]
        return cls(tuple(columns), target, tuple(medians), tuple(missing))

    @property
    def used(self) -> tuple[str, ...]:
        """The names of the columns that are read."""
        return tuple(column.name for column in self.columns if not isinstance(column, LeftOut))

    @property
    def as_text(self) -> tuple[str, ...]:
        """The names of those whose cells must be kept as they are written."""
        return tuple(column.name for column in self.columns if not isinstance(column, LeftOut | Number))

    @cached_property
    def features(self) -> tuple[str, ...]:
        """The names of the inputs, D, in order."""
        names = [part for column in self._numeric for part in column.parts]
        missing = [f"{name} is missing" for name, can in zip(names, self.can_be_missing, strict=True) if can]
        words = [f"{column.name} = {word or 'missing'}" for column in self._words for word in column.categories]
        return (*names, *missing, *words)

    @cached_property
    def is_flag(self) -> Tensor:
        """Whether each input is 0 or 1, (D,), boolean: what says that a cell is missing, or which word it is."""
        numbers = [kind == "flag" for kind in (column.kind for column in self._numeric for _ in column.parts)]
        return torch.tensor([*numbers, *[True] * (len(self.features) - len(numbers))])

    def said(self) -> list[str]:
        """A line for each column: what it is taken for."""
        return [*(f"{c.name}: {c.said}" for c in self.columns), f"{self.target.name}: {self.target.said}, predicted"]

    def encode(self, frame: Any, *, notes: Notes | None = None) -> Encoded:
        """Rows as numbers.

        Args:
            frame: A data frame with the fitted columns, in any order; further ones are not read.
            notes: Where to remark cells that were never seen so: words, missing ones, text among numbers.

        Raises:
            TypeError: No data frame.
            ValueError: A column is missing; no rows; infinite numbers.
        """
        self.check_names(getattr(frame, "columns", None))
        if not len(frame):
            raise ValueError("The table has names of columns, and no rows.")
        remarks = Notes() if notes is None else notes
        rows, blocks = row_numbers(frame), list[Array]()
        for column in self._numeric:
            numbers = _finite(column.numbers(frame[column.name]), column, frame)
            can_be_missing = self.can_be_missing[sum(block.shape[1] for block in blocks)]
            _remark(remarks, column, frame[column.name], numbers, rows, can_be_missing=can_be_missing)
            blocks.append(numbers)
        inputs = [self._imputer.transform(np.concatenate(blocks, axis=1))] if blocks else []
        unknown = np.zeros(len(frame), dtype=np.int64)
        if self._words:
            words = [words_of(frame[column.name]) for column in self._words]
            inputs.append(self._one_hot.transform(np.array(words, dtype=object).T.reshape(len(frame), len(words))))
            for column, written in zip(self._words, words, strict=True):
                new = np.flatnonzero(labels_of(written, column.categories) < 0)
                what = "is rare or was not fitted" if column.num_rare else "was not fitted"
                remarks.add(column.name, f"with a word that {what}", rows[new], [written[row] for row in new])
                unknown[new] += 1
        x = np.ascontiguousarray(np.concatenate(inputs, axis=1))
        return Encoded(torch.from_numpy(x), torch.from_numpy(unknown))

    def check_names(self, names: Any) -> None:
        """Refuse columns among which fitted ones are missing.

        Raises:
            TypeError: No names.
            ValueError: With the names of those that are missing.
        """
        if names is None:
            raise TypeError("Rows of a table must come as a data frame, whose columns have names.")
        there = set(map(str, names))
        missing = [name for name in self.used if name not in there]
        if missing:
            raise ValueError(
                f"The table lacks {', '.join(map(repr, missing))}, which {'was' if len(missing) == 1 else 'were'} "
                f"fitted; it has {', '.join(sorted(there))}. Add "
                f"{'this column' if len(missing) == 1 else 'these columns'}; cells that are not known stay empty."
            )

    def to_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "columns": [{"kind": column.kind, **asdict(column)} for column in self.columns],
            "target": asdict(self.target),
            "medians": list(self.medians),
            "can_be_missing": list(self.can_be_missing),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The inverse of `to_record`.

        Raises:
            ValueError: A record of another kind.
        """
        try:
            columns = tuple(_column(one) for one in record["columns"])
            named = record["target"]
            target = Target(str(named["name"]), tuple(map(str, named["classes"])), str(named.get("unit", "")))
            medians, missing = tuple(map(float, record["medians"])), tuple(map(bool, record["can_be_missing"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"The file's columns are not those of a table: {error!r}.") from error
        made = cls(columns, target, medians, missing)
        if len(medians) != len(missing) or len(medians) != sum(len(column.parts) for column in made._numeric):
            raise ValueError("The file's columns and their medians do not belong together.")
        return made

    @property
    def _numeric(self) -> list[Any]:
        return [column for column in self.columns if not isinstance(column, Category | LeftOut)]

    @property
    def _words(self) -> list[Category]:
        return [column for column in self.columns if isinstance(column, Category)]

    @cached_property
    def _imputer(self) -> Any:
        """Fitted to two rows that have these medians, and a missing cell where there can be one."""
        medians = np.array(self.medians)
        rows = np.stack([medians, np.where(self.can_be_missing, math.nan, medians)])
        return optional.impute.SimpleImputer(strategy="median", add_indicator=True).fit(rows)

    @cached_property
    def _one_hot(self) -> Any:
        categories = [np.array(column.categories, dtype=object) for column in self._words]
        encoder = optional.preprocessing.OneHotEncoder(
            categories=categories, handle_unknown="ignore", sparse_output=False
        )
        return encoder.fit(np.array([[words[0] for words in categories]], dtype=object))


def inferred(frame: Any, target: str, names: Sequence[str], categories: Sequence[str]) -> tuple[Column, ...]:
    """What each of these columns of a frame is.

    Raises:
        ValueError: All of them are left out.
    """
    columns = tuple(
        LeftOut(name, "it counts the rows")
        if _counts_rows(name, frame)
        else infer(name, frame[name], as_category=name in categories)
        for name in names
    )
    if all(isinstance(column, LeftOut) for column in columns):
        told = "; ".join(f"{column.name} {column.said}" for column in columns) or "there is no other column"
        raise ValueError(f"No column is left to predict {target!r} from: {told}.")
    return columns


def _counts_rows(name: str, frame: Any) -> bool:
    """Whether a column has no name, or that of an index, and one more in each row of the file than in the last."""
    cells = frame[name]
    if cells.dtype.kind not in "iu" or not ROW_COUNT.fullmatch(name):
        return False
    return bool(np.ptp(cells.to_numpy() - row_numbers(frame)) == 0)


def _column(record: Mapping[str, Any]) -> Column:
    kind: Any = KINDS[record["kind"]]
    values = {item.name: record[item.name] for item in fields(kind) if item.name in record}  # earlier ones have fewer
    column: Column = kind(**{name: tuple(one) if isinstance(one, list) else one for name, one in values.items()})
    return column


def row_numbers(frame: Any) -> Array:
    """The rows of a frame as they are counted in its file, from 1; by place where the index is of words."""
    index = np.asarray(frame.index)
    return (index if index.dtype.kind in "iu" else np.arange(len(frame))) + 1


def _remark(notes: Notes, column: Column, cells: Any, numbers: Array, rows: Array, *, can_be_missing: bool) -> None:
    """Note cells that are missing where none was, words where a number or a date should be, and units left out."""
    if isinstance(column, Number):
        bare = column.without_unit(cells)
        notes.add(column.name, f"without {column.unit!r}, which are taken to be in that unit", rows[bare])
    lost = np.isnan(numbers[:, 0])
    if not lost.any():
        return
    odd = np.flatnonzero(lost & ~np.asarray(cells.isna()))
    wanted = {"date": "date", "flag": "yes or no"}.get(column.kind, "number")
    notes.add(
        column.name, f"with no {wanted}, which count as missing", rows[odd], [str(cells.iloc[row]) for row in odd]
    )
    if not can_be_missing:
        notes.add(column.name, "without a value, as none was that was fitted: the median is taken", rows[lost])


def _finite(numbers: Array, column: Column, frame: Any) -> Array:
    """The numbers, of which none is infinite.

    Raises:
        ValueError: One is; with its column and row.
    """
    infinite = np.isinf(numbers).any(axis=1)
    if infinite.any():
        first = row_numbers(frame)[infinite][0]
        raise ValueError(
            f"The column {column.name!r} is infinite in {int(infinite.sum())} rows, the first is row {first}."
        )
    return numbers


def _by_number(word: str) -> tuple[float, str]:
    """Labels that are numbers by their size, then words."""
    try:
        return float(word), word
    except ValueError:
        return math.inf, word
