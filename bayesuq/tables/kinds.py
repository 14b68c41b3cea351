"""What the columns of a table are: numbers, flags, dates, categories; what it takes to read one again, and its cells.

Each kind is a frozen dataclass of plain data, which a file holds as JSON, and gives cells as numbers, NaN where one is
missing; categories stay words.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, TypeAlias

import numpy as np

from bayesuq import optional
from bayesuq.tables import numbers

Array = np.ndarray[Any, Any]
FLAGS = {  # words of two that are no and yes
    **dict.fromkeys(("true", "yes", "y", "t", "on", "1"), 1.0),
    **dict.fromkeys(("false", "no", "n", "f", "off", "0"), 0.0),
}
MONTH = r"[^\W\d_]{3,9}\.?"
LOOKS_LIKE_A_DATE = re.compile(
    r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:\d{4}|\d{2}\b)|(?:19|20)\d{6}$|(?:19|20)\d{2}-\d{1,2}$"
    rf"|\d{{1,2}}\.?[ -]{MONTH},?[ -](?:\d{{4}}|\d{{2}}\b)|{MONTH} \d{{1,2}},? \d{{4}}|{MONTH}[ -]\d{{4}}$"
)
DAY_FORMATS = (
    *("%Y-%m-%d", "%Y/%m/%d", "%Y.%m.%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%d-%m-%Y", "%m-%d-%Y"),
    *("%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d-%m-%y", "%m-%d-%y", "%Y%m%d", "%Y-%m"),
    *("%d %b %Y", "%d. %b %Y", "%d-%b-%Y", "%d-%b-%y", "%d %B %Y", "%d. %B %Y", "%d-%B-%Y"),
    *("%b %d, %Y", "%b %d %Y", "%B %d, %Y", "%B %d %Y", "%b %Y", "%B %Y", "%b-%Y"),
)
TIMES = ("", " %H:%M", " %H:%M:%S", "T%H:%M:%S", "T%H:%M", "T%H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", " %H:%M:%S.%f")
ISO = "ISO8601"
WHOLE = re.compile(r"-?\d+\.0")
COMPACT = (19000101, 21001231)  # dates that are written as one number lie between
LARGEST_WHOLE = 2**53
WORDS_SHARE = 0.1  # of cells that may be words in a column of numbers, such as "unknown"
MARKS_SHARE = 0.5  # of cells that may be words where the numbers are many, so that "-" and "?" are gaps between them
FEWEST_MEASURED = 10  # different numbers that are many
MOST_WORDS = 3  # different words
DATES_SHARE = 0.95  # of cells that must be dates
MOST_CATEGORIES = 30  # that have an input of their own; rarer ones share none
DISTINCT_SHARE = 0.5  # of rows: more different words than that are names or free text
FEWEST_TEXTS = 10  # different words, as so few may be categories of few rows
YEAR = 365.2425  # days


@dataclass(frozen=True)
class _OneNumber:
    """A column whose cells give one number each.

    Attributes:
        name: Of the column.
    """

    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the numbers that a cell gives."""
        return (self.name,)


@dataclass(frozen=True)
class Number(_OneNumber):
    """A column of numbers.

    Attributes:
        name: Of the column.
        unit: What stands beside the numbers in their cells, as "%" or "kg"; empty for nothing.
    """

    kind: ClassVar[str] = "number"
    unit: str = ""

    @property
    def said(self) -> str:
        """What it is taken for."""
        return f"numbers in {self.unit}" if self.unit else "numbers"

    def numbers(self, cells: Any) -> Array:
        """Of N cells, (N, 1): with their unit or with none beside them."""
        return _as_numbers(cells, self.unit)[:, None]

    def without_unit(self, cells: Any) -> Array:
        """Whether a number stands by itself where fitted ones have a unit beside them, of N cells, (N,), boolean."""
        if not self.unit:
            return np.zeros(len(cells), dtype=bool)
        return ~np.isnan(_as_numbers(cells, "")) if cells.dtype.kind not in "iufb" else np.asarray(cells.notna())


@dataclass(frozen=True)
class Flag(_OneNumber):
    """A column of yes and no."""

    kind: ClassVar[str] = "flag"

    @property
    def said(self) -> str:
        """What it is taken for."""
        return "yes or no"

    def numbers(self, cells: Any) -> Array:
        """Of N cells, (N, 1): 1 for yes."""
        words = words_of(cells)
        found: Array = np.array([FLAGS.get(word.lower(), math.nan) for word in words], dtype=np.float64)
        return found[:, None]


@dataclass(frozen=True)
class Date:
    """A column of dates, read as parts: the year with its fraction, and where in the year, the week and the day it is.

    Attributes:
        name: Of the column.
        format: As `strptime` has it, or ISO8601.
        has_time: Whether the hour counts.
        is_ambiguous: Whether day and month could stand the other way round.
    """

    kind: ClassVar[str] = "date"
    name: str
    format: str
    has_time: bool = False
    is_ambiguous: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the numbers that a cell gives."""
        circles = ("season", "weekday", "hour") if self.has_time else ("season", "weekday")
        return (
            f"{self.name} year",
            *(f"{self.name} {circle} {axis}" for circle in circles for axis in ("sin", "cos")),
        )

    @property
    def said(self) -> str:
        """What it is taken for."""
        other = "; day and month could stand the other way round" if self.is_ambiguous else ""
        return f"dates ({self.format}{other})"

    def numbers(self, cells: Any) -> Array:
        """Of N cells, (N, number of parts)."""
        when = parsed_dates(cells, self.format).dt
        day = when.hour + when.minute / 60 + when.second / 3600
        turns = [(when.day_of_year - 1) / YEAR, when.day_of_week / 7, day / 24][: 3 if self.has_time else 2]
        circles = [axis(math.tau * np.asarray(turn, dtype=np.float64)) for turn in turns for axis in (np.sin, np.cos)]
        year = np.asarray(when.year + (when.day_of_year - 1 + day / 24) / YEAR, dtype=np.float64)
        return np.stack([year, *circles], axis=1)


@dataclass(frozen=True)
class Category:
    """A column of words, each with an input of its own; missing ones are a word, too, where some are missing.

    Attributes:
        name: Of the column.
        categories: The words, the most frequent ones where there are very many.
        num_rare: Further words that were seen, and have no input.
    """

    kind: ClassVar[str] = "category"
    name: str
    categories: tuple[str, ...]
    num_rare: int = 0

    @property
    def said(self) -> str:
        """What it is taken for."""
        rare = f", {self.num_rare} rarer ones taken together" if self.num_rare else ""
        shown = ", ".join(word or "(missing)" for word in self.categories[:4])
        alike = alike_but_for_case(self.categories)
        case = f"; {' and '.join(alike)} differ in case alone" if alike else ""
        return f"{len(self.categories)} categories ({shown}{', ...' if len(self.categories) > 4 else ''}{rare}{case})"


@dataclass(frozen=True)
class LeftOut:
    """A column that says nothing.

    Attributes:
        name: Of the column.
        reason: In words.
    """

    kind: ClassVar[str] = "left out"
    name: str
    reason: str

    @property
    def said(self) -> str:
        """Why it is left out."""
        return f"left out: {self.reason}"


Column: TypeAlias = Number | Flag | Date | Category | LeftOut
KINDS: dict[str, type[Column]] = {kind.kind: kind for kind in (Number, Flag, Date, Category, LeftOut)}


def infer(name: str, cells: Any, *, as_category: bool = False) -> Column:
    """What a column is, from all of its cells.

    Args:
        name: Of the column.
        cells: A pandas Series.
        as_category: Whether it is one of categories, whatever it looks like.
    """
    present = cells.dropna()
    if present.empty:
        return LeftOut(name, "every cell is empty")
    if present.nunique() == 1 and len(present) == len(cells):
        return LeftOut(name, f"every cell is {present.iloc[0]!s}")
    if as_category:
        return _category(name, cells, is_wanted=True)
    if has_too_large(present):
        return LeftOut(name, "whole numbers beyond 2^53, which floats do not tell apart")
    if present.dtype.kind in "iuf":
        is_date = bool(present.between(*COMPACT).all()) and date_format(present) == ("%Y%m%d", False)
        return _date(name, present, "%Y%m%d") if is_date else Number(name)
    if present.dtype.kind == "M":
        return _date(name, present, ISO)
    words = words_of(present)
    if {word.lower() for word in set(words)} <= FLAGS.keys():
        return Flag(name)
    found = date_format(present)
    if found is not None:
        return _date(name, present, *found)
    unit = unit_of(present)
    unread = {word for word, number in zip(words, _as_numbers(present, unit), strict=True) if math.isnan(number)}
    share = sum(word in unread for word in words) / len(words)
    is_measured = len(set(words) - unread) >= FEWEST_MEASURED and share <= MARKS_SHARE
    if len(unread) <= MOST_WORDS and (is_measured or share <= WORDS_SHARE):
        return Number(name, unit)
    return _category(name, cells)


def alike_but_for_case(words: Sequence[str]) -> list[str]:
    """The first words that differ in upper and lower case alone; none where all differ otherwise, too."""
    folded = [word.casefold() for word in words]
    twice = next((one for one in folded if folded.count(one) > 1), None)
    return [word for word, one in zip(words, folded, strict=True) if one == twice]


def has_too_large(cells: Any) -> bool:
    """Whether whole numbers stand in a column that float64 would round, as of identifiers."""
    return bool(cells.dtype.kind in "iu" and (cells.abs() > LARGEST_WHOLE).any())


def unit_of(cells: Any) -> str:
    """What stands beside most of the numbers in a column; empty for nothing."""
    if cells.dtype.kind in "iufbM":
        return ""
    return next(
        (unit for unit, count in numbers.units_of(words_of(cells)).most_common(1) if 2 * count > len(cells)), ""
    )


def strays(cells: Any, unit: str = "") -> dict[int, str]:
    """Cells of a column of numbers that are none, by their place."""
    if cells.dtype.kind in "iufb":
        return {}
    lost = np.isnan(_as_numbers(cells, unit)) & ~np.asarray(cells.isna())
    return {int(place): str(cells.iloc[place]) for place in np.flatnonzero(lost)}


def words_of(cells: Any) -> list[str]:
    """Cells as words, without spaces around them; the empty word where one is missing."""
    missing = np.asarray(cells.isna())
    return ["" if gone else _word(cell) for cell, gone in zip(cells, missing, strict=True)]


def _word(cell: Any) -> str:
    """A cell as a word; a whole number without a point, which it is given where cells beside it are missing."""
    word = str(cell).strip()
    return word.partition(".")[0] if WHOLE.fullmatch(word) else word


def parsed_dates(cells: Any, form: str) -> Any:
    """Cells as dates without time zones, a pandas Series; NaT where one is none."""
    pandas = optional.pandas
    if cells.dtype.kind != "M":
        words = pandas.Series(words_of(cells), index=cells.index, dtype="str")
        cells = pandas.to_datetime(words, format=form, errors="coerce", utc=True)
    zone = getattr(cells.dt, "tz", None)
    return cells if zone is None else cells.dt.tz_convert("UTC").dt.tz_localize(None)


def date_format(cells: Any) -> tuple[str, bool] | None:
    """The format of words that are dates, and whether another one reads other days; None where they are none."""
    sample = cells.iloc[:100]
    if not _look_like_dates(words_of(sample)):
        return None
    fits = [
        form
        for form in (*_possible_formats(words_of(sample.iloc[:5])), ISO)
        if parsed_dates(sample, form).notna().mean() >= DATES_SHARE
        and parsed_dates(cells, form).notna().mean() >= DATES_SHARE
    ]
    read = [parsed_dates(sample, form) for form in fits if form != ISO]
    return (fits[0], any(not other.equals(read[0]) for other in read[1:])) if fits else None


def _look_like_dates(words: Sequence[str]) -> bool:
    return sum(bool(LOOKS_LIKE_A_DATE.match(word)) for word in words) >= DATES_SHARE * len(words)


def _possible_formats(words: Sequence[str]) -> list[str]:
    """Formats that read one of these words."""
    return [form for form in (d + t for t in TIMES for d in DAY_FORMATS) if any(_is_date(word, form) for word in words)]


def _is_date(word: str, form: str) -> bool:
    try:
        datetime.strptime(word, form)
    except ValueError:
        return False
    return True


def _date(name: str, present: Any, form: str, is_ambiguous: bool = False) -> Date:
    when = parsed_dates(present, form)
    return Date(name, form, bool((when.dt.hour + when.dt.minute > 0).any()), is_ambiguous)


def _category(name: str, cells: Any, *, is_wanted: bool = False) -> Column:
    words = words_of(cells)
    counts = optional.pandas.Series(words).value_counts()
    if len(counts) > max(FEWEST_TEXTS, DISTINCT_SHARE * len(words)) and not is_wanted:
        return LeftOut(name, _why_text([word for word in words if word], len(counts)))
    kept = sorted(counts.index[:MOST_CATEGORIES])
    return Category(name, tuple(kept), len(counts) - len(kept))


def _why_text(words: Sequence[str], different: int) -> str:
    if _look_like_dates(words):
        return f"dates in no way that is read, or in several ({words[0]}, {words[1]}); write 2020-01-31"
    units = numbers.units_of(words)
    if len(units) > 1 and units.total() > len(words) / 2:
        return f"numbers in several units ({', '.join(sorted(units)[:3])}); write them in one"
    return f"text, {different} different ones in {len(words)} rows"


def _as_numbers(cells: Any, unit: str = "") -> Array:
    """Cells as float64, NaN where one is missing, or no number with this unit or none."""
    if cells.dtype.kind in "iufb":
        found: Array = cells.to_numpy(dtype=np.float64, na_value=math.nan)
        return found
    pandas = optional.pandas
    read: Array = pandas.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64, na_value=math.nan, copy=True)
    odd = np.flatnonzero(np.isnan(read) & ~np.asarray(cells.isna()))
    read[odd] = [_as_written(cell, unit) for cell in cells.iloc[odd]]
    return read


def _as_written(cell: Any, unit: str) -> float:
    """A number as people write it; see `numbers`."""
    written = numbers.read(str(cell))
    return float(written.plain(".")) if written is not None and written.unit in ("", unit) else math.nan


def labels_of(words: Sequence[str], classes: Sequence[str]) -> Array:
    """The number of each word among classes, (N,), int64; -1 where it is none of them."""
    places = {word: place for place, word in enumerate(classes)}
    found: Array = np.array([places.get(word, -1) for word in words], dtype=np.int64)
    return found
