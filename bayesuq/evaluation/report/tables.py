"""Numbers with their errors, and columns in line: how reports, comparisons and tables of scores are printed."""

import math
from collections.abc import Iterable, Sequence


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


def aligned(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> list[str]:
    r"""A line for each row, its cells in line with those of the others: to the left, but for the columns in `right`.

    Example:
        >>> print("\n".join(aligned([("a", "10"), ("long", "1")], right=[1])))
        a     10
        long   1
    """
    to_the_right = set(right)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, range(len(widths)), strict=True)
        lines.append("  ".join(c.rjust(width) if i in to_the_right else c.ljust(width) for c, width, i in cells))
    return [line.rstrip() for line in lines]
