"""Numbers as people write them: decimal commas, points between thousands, units, accountants' brackets, clocks.

Of `1.234` nobody can say which number it is. Other cells of its column can, as `12,5` does: there the comma is decimal.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

MARKS = (".", ",")
SPACES = "'\u2019 \u00a0\u202f"  # between thousands
GROUP = {mark: f"[{SPACES}{other}]" for mark, other in (MARKS, MARKS[::-1])}  # by which mark is decimal
NUMBERS = {  # without sign, unit and exponent, by the decimal mark
    mark: re.compile(rf"(?:[1-9]\d{{0,2}}({group})\d{{3}}(?:\1\d{{3}})*|\d+)(?:[{mark}]\d*)?|[{mark}]\d+")
    for mark, group in GROUP.items()
}
EITHER = re.compile(r"[1-9]\d{0,2}[.,]\d{3}")  # thousands, or three decimals
DRESSED = re.compile(
    r"(?:[~\u2248]|ca\.?)?\s*(?P<open>\()?(?P<sign>[-+]?)\s*(?P<before>[A-Z]{3}|[Kk]r\.?|Rs\.?|[A-Z]{0,2}[^\w\s.,()<>+-])?\s*(?P<inner>[-+]?)\s*"
    rf"(?P<number>[.,]?\d(?:[\d.,{SPACES}]*\d)?[.,]?)(?P<exponent>[eE][-+]?\d+(?![\w.]))?"
    r"(?P<after>\s*[^\s\d_.,()+-][^()]{0,11}?)?(?P<trailing>\s*-)?(?(open)\))"
)
NO_CENTS = re.compile(r"(?<=\d)[.,][-\u2013\u2014]{1,2}(?=\s|$)")  # as in `500,-`
CLOCK = re.compile(r"(\d{1,3}):([0-5]\d)(?::([0-5]\d(?:\.\d+)?))?(?:\s*([aApP])\.?[mM]\.?)?")
HOURS = "hours"  # the unit of what a clock shows


@dataclass(frozen=True)
class Written:
    """A number as it stands in a cell.

    Attributes:
        number: As a computer writes it, but for the marks, which may be decimal or stand between thousands.
        unit: Beside it, as "%", "kg" or "$"; empty for none.
    """

    number: str
    unit: str = ""

    def plain(self, decimal: str) -> str:
        """As a computer writes it, where `decimal` is the decimal mark unless its own marks prove the other one."""
        sign, digits, exponent = _parts(self.number)
        mark = decimal if EITHER.fullmatch(digits) else _proof(digits) or decimal
        return sign + re.sub(GROUP[mark], "", digits).replace(mark, ".") + exponent


def read(cell: str) -> Written | None:
    """What a cell writes; None where that is no number.

    Example:
        >>> read("1.234,5 kg"), read("(12)"), read("$ 5"), read("14:30"), read("red"), read("1/2")
        (Written(number='1.234,5', unit='kg'), Written(number='-12', unit=''), Written(number='5', unit='$'), \
Written(number='14.500000000', unit='hours'), None, Written(number='1', unit='/2'))
    """
    word = NO_CENTS.sub("", cell.strip()).replace("\N{MINUS SIGN}", "-")
    clock = CLOCK.fullmatch(word)
    if clock is not None:
        return Written(f"{_hours(*clock.groups()):.9f}", HOURS)
    found = DRESSED.fullmatch(word)
    if found is None or not any(form.fullmatch(found["number"]) for form in NUMBERS.values()):
        return None
    signs = [found["sign"], found["inner"], "-" if found["open"] else "", (found["trailing"] or "").strip()]
    written = [sign for sign in signs if sign]
    if len(written) > 1:
        return None
    unit = " ".join(part.strip() for part in (found["before"], found["after"]) if part)
    return Written(("-" if written == ["-"] else "") + found["number"] + (found["exponent"] or ""), unit)


def decimal_mark(cells: Iterable[str]) -> str | None:
    """The decimal mark that the numbers among these cells prove; None where none does, or some prove one, some another.

    Example:
        >>> decimal_mark(["1.234", "12,5"]), decimal_mark(["1,234", "999"]), decimal_mark(["1.234", "5.678"])
        (',', '.', None)
    """
    digits = [_parts(written.number)[1] for written in map(read, cells) if written is not None]
    proved = {proof for proof in map(_proof, digits) if proof}
    if len(proved) == 1:
        return proved.pop()
    marks = {mark for one in digits if EITHER.fullmatch(one) for mark in MARKS if mark in one}
    if not proved and len(marks) == 1 and any(one.isdigit() for one in digits):
        return MARKS[MARKS.index(marks.pop()) - 1]  # thousands, since three decimals would stand in every cell
    return None


def units_of(cells: Iterable[str]) -> Counter[str]:
    """How many of the numbers among these cells stand beside which unit."""
    return Counter(written.unit for written in map(read, cells) if written is not None and written.unit)


def _proof(digits: str) -> str:
    """The mark that must be decimal in a number; empty where either may be, or none is there."""
    if not any(mark in digits for mark in MARKS) or EITHER.fullmatch(digits):
        return ""
    possible = [mark for mark in MARKS if NUMBERS[mark].fullmatch(digits)]
    return possible[0] if len(possible) == 1 else ""


def _parts(number: str) -> tuple[str, str, str]:
    """Sign, digits with their marks, and exponent."""
    digits, letter, power = number.lstrip("-").lower().partition("e")
    return "-" * number.startswith("-"), digits, letter + power


def _hours(hours: str, minutes: str, seconds: str | None, half: str | None) -> float:
    whole = int(hours) if half is None else int(hours) % 12 + 12 * (half in "pP")
    return whole + int(minutes) / 60 + float(seconds or 0) / 3600
