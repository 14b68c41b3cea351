"""Numbers with their errors, and columns in line: how reports, comparisons and tables of scores are printed."""

import math
import re
import textwrap
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Protocol, TypeVar

WIDTH = 80  # of a terminal, and of a mail
GAP = 2  # between columns
LONGEST_NAME, LONGEST_HEAD = 28, 16  # in a table that is too wide
COMPARED_NAME = 24  # beside which three cells of the longest head find room
LEAST = 16  # characters beside each other of text that is folded


def rounded(value: float, error: float | None) -> tuple[str, str]:
    """Both to two significant digits of the error, or the value to four where there is no error to go by."""
    if not math.isfinite(value):
        return str(value), ""
    if not error or error < 1e-12 * abs(value):  # rounding, where all values are equal
        return f"{value:.4g}", "" if error is None else "0"
    power = math.floor(math.log10(max(abs(value), error)))
    if -4 <= power < 6 and error >= 1e-6:
        power = 0
    value, error = value / 10.0**power, error / 10.0**power  # one power of ten for both, so that they compare
    decimals = max(0, 1 - math.floor(math.log10(error)))
    suffix = f"e{power:+03d}" if power else ""
    value = round(value, decimals) + 0.0  # no "-0.00"
    return f"{value:.{decimals}f}{suffix}", f"{error:.{decimals}f}{suffix}"


def counted(number: int, noun: str) -> str:
    """The number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class Named(Protocol):
    """What stands under its name in a table."""

    @property
    def name(self) -> str:
        """Its own."""
        ...


Row = TypeVar("Row", bound=Named)


def named(rows: Sequence[Row], name: str, what: str) -> Row:
    """The one of this name.

    Raises:
        KeyError: None; with the names that there are.
    """
    for row in rows:
        if row.name == name:
            return row
    raise KeyError(f"no {what} {name!r}; there are {', '.join(row.name for row in rows)}")


def value_cells(value: float, error: float | None, unit: str, remark: str) -> tuple[str, str, str]:
    """Value, standard error, and unit with remark, as printed."""
    number, spread = rounded(value, error)
    return number, f"± {spread}" if spread else "", f"{unit}, {remark}" if remark else unit


def interval_cells(value: float, ends: tuple[float, float], unit: str, remark: str) -> tuple[str, str, str]:
    """Value, the interval that it lies in, and unit with remark, to the digits that a quarter of its width has."""
    numbers = [rounded(number, (ends[1] - ends[0]) / 4)[0] for number in (value, *ends)]
    return numbers[0], f"[{numbers[1]}, {numbers[2]}]", f"{unit}, {remark}" if remark else unit


def in_line(values: Sequence[str], errors: Sequence[str]) -> list[str]:
    """Values to the right and errors to the left of one line, as one column."""
    widths = max(map(len, values)), max(map(len, errors))
    return [f"{v:>{widths[0]}} {e:<{widths[1]}}" for v, e in zip(values, errors, strict=True)]


def aligned(rows: Sequence[Sequence[str]], *, right: Iterable[int] = (), width: int = WIDTH) -> list[str]:
    r"""A line for each row, its cells in line with those of the others: to the left, but for the columns in `right`.

    What is wider than `width` is folded: long names in the first column and row at their underscores, then the text of
    the last column at its spaces; then the columns stand in blocks below each other, each with the first column.

    Example:
        >>> print("\n".join(aligned([("a", "10"), ("long", "1")], right=[1])))
        a     10
        long   1
    """
    cells = [[[cell] for cell in row] for row in rows]
    if _needed(cells) > width:
        cells = [[_folded(row[0][0], LONGEST_NAME), *row[1:]] for row in cells]
        cells[0][1:] = [_folded(head, LONGEST_HEAD) for (head,) in cells[0][1:]]
    room = width - _needed([row[:-1] for row in cells]) - GAP
    if _needed(cells) > width and room >= LEAST:
        cells = [[*row[:-1], textwrap.wrap(row[-1][0], room) or [""]] for row in cells]
    return _in_blocks(cells, width, right)


def compared(rows: Sequence[Sequence[str]], *, width: int = WIDTH) -> list[str]:
    r"""A line for each row of a name, a cell for each of what is compared, and a unit; the first row has the heads.

    Where they are wider than `width`, long cells stand over their errors and units under their names, so that as many
    as can be stand beside each other; the others follow in blocks below.

    Example:
        >>> rows = [("", "map", "swag", ""), ("log_loss", "0.5 ± 0.1", "0.50 [0.30, 0.80]", "nats")]
        >>> print("\n".join(compared(rows, width=36)))
                  map        swag
        log_loss  0.5 ± 0.1  0.50
          nats               [0.30, 0.80]
    """
    plain = [[[cell] for cell in row] for row in rows]
    if _needed(plain) <= width:
        return _in_blocks(plain, width)
    (corner, *heads, _), *body = rows
    cells = [[[corner], *(_folded(head, LONGEST_HEAD) for head in heads)]]
    for name, *values, unit in body:
        below = textwrap.wrap(unit, COMPARED_NAME, initial_indent="  ", subsequent_indent="  ")
        cells.append([_folded(name, COMPARED_NAME) + below, *map(_over_error, values)])
    return _in_blocks(cells, width)


def _over_error(cell: str) -> list[str]:
    """A long cell in two lines, the value and then what is said of its error."""
    return re.split(r" (?=[±[])", cell) if len(cell) > LONGEST_HEAD else [cell]


def _in_blocks(cells: Sequence[Sequence[list[str]]], width: int, right: Iterable[int] = ()) -> list[str]:
    """The columns beside each other as far as they find room, and further ones below, each with the first column."""
    blocks = _blocks(_widths(cells), width)
    texts = [
        _block([[row[place] for place in block] for row in cells], {block.index(i) for i in right if i in block})
        for block in blocks
    ]
    return [line for number, text in enumerate(texts) for line in ([""] if number else []) + text]


def _block(rows: Sequence[Sequence[list[str]]], right: set[int]) -> list[str]:
    """Rows of cells that may have several lines each, as lines of text."""
    widths, lines = _widths(rows), []
    for row in rows:
        for cells in zip_longest(*row, fillvalue=""):
            placed = zip(cells, widths, range(len(widths)), strict=True)
            line = (" " * GAP).join(c.rjust(width) if i in right else c.ljust(width) for c, width, i in placed)
            lines.append(line.rstrip())
    return lines


def _widths(rows: Sequence[Sequence[list[str]]]) -> list[int]:
    return [max(len(line) for cell in column for line in cell) for column in zip(*rows, strict=True)]


def _needed(rows: Sequence[Sequence[list[str]]]) -> int:
    """Characters of the widest line."""
    widths = _widths(rows)
    return sum(widths) + GAP * (len(widths) - 1)


def _folded(name: str, longest: int) -> list[str]:
    """A long name in parts that end with an underscore, the further ones set in.

    Example:
        >>> _folded("error_maximum_probability_false_positive_rate", 28)
        ['error_maximum_probability_', '  false_positive_rate']
    """
    parts = [""]
    for word in re.findall("[^_]*_|[^_]+", name):
        if len(parts[-1]) + len(word) > longest and parts[-1].strip():
            parts.append("  ")
        parts[-1] += word
    return parts


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """Columns that stand beside each other, the first one in every block."""
    blocks = [[0]]
    for place in range(1, len(widths)):
        if len(blocks[-1]) > 1 and sum(GAP + widths[i] for i in [*blocks[-1], place]) - GAP > width:
            blocks.append([0])
        blocks[-1].append(place)
    return blocks
