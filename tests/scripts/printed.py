"""What scripts print, read back."""

import math
from itertools import pairwise


def row(printed: str, name: str) -> list[float]:
    """The values of a measure in a printed table, without their standard errors and its unit.

    Methods that find no room in a line stand in further blocks below, each of which begins with the measure's name.
    """
    lines = [line.removeprefix(name).split() for line in printed.splitlines() if line.startswith(name)]
    cells = [("", *words) for words in lines]
    values = (_number(word) for words in cells for before, word in pairwise(words) if before != "±")
    return [value for value in values if not math.isnan(value)]


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:  # of a unit
        return math.nan
