"""Tables of Markdown from lines of JSON: means over seeds or splits with their standard errors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt
from statistics import fmean, stdev
from typing import Self

from scripts.recording import Record

Cell = Callable[[Record], float | None]
LARGE = 1e6


@dataclass(frozen=True)
class Mean:
    """A mean with its standard error; NaN where that is not known."""

    value: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Over splits; one split has no error, NaN."""
        return cls(fmean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else nan)

    def __str__(self) -> str:
        return self.rounded(2)

    def rounded(self, digits: int) -> str:
        """With so many digits behind the point; beyond a million two digits and a power of ten."""
        shown = f"z.{digits}f" if abs(self.value) < LARGE else ".1e"
        value = f"{self.value:{shown}}"
        return value if isnan(self.error) else f"{value} ± {self.error:{shown}}"


def row(cells: Sequence[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def table(records: Iterable[Record], keys: Sequence[str], columns: Mapping[str, tuple[Cell, int]]) -> list[str]:
    """A row for each combination of the keys, in the order of the lines, and the mean of each column over its lines.

    Args:
        records: Lines.
        keys: Fields that name a row.
        columns: By title, what is read from a line, None where it was not measured, and the digits to show.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(str(record[key]) for key in keys), []).append(record)
    lines = [row([*keys, *columns]), "|---" * (len(keys) + len(columns)) + "|"]
    for names, own in groups.items():
        lines.append(row([*names, *(_cell(own, read, digits) for read, digits in columns.values())]))
    return [*lines, ""]


def field(name: str, factor: float = 1.0) -> Cell:
    """What reads a field of a line, times a factor; a dot leads into a field of fields."""

    def read(record: Record) -> float | None:
        value = record
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None  # type: ignore[assignment]
        return None if value is None else factor * float(value)  # type: ignore[arg-type]

    return read


def _cell(records: Sequence[Record], read: Cell, digits: int) -> str:
    values = [value for value in map(read, records) if value is not None]
    return Mean.of(values).rounded(digits) if values else ""
