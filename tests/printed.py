"""What the pages' examples print is what their comments say.

    print(len(split.train), len(split.val))  # 140 20

A comment that begins with a number says the numbers that are printed, to one of their last digit; one that begins
with a name and a bracket, such as `Dataset(`, says the whole text. Other comments say what is printed in words.
"""

import builtins
import linecache
import re
import sys
from typing import Any

NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
COMMENT = re.compile(r"\bprint\(.*\)  # (.+)$")
TEXT = re.compile(r"[A-Z]\w*\(")


def checked_print(*values: Any, **options: Any) -> None:
    """Print, and hold the values against the comment at the end of the line that asked for it.

    Raises:
        AssertionError: The comment says another value.
    """
    caller = sys._getframe(1)
    line = linecache.getline(caller.f_code.co_filename, caller.f_lineno).rstrip()
    said = COMMENT.search(line)
    if said:
        check(said[1], " ".join(map(str, values)))
    builtins.print(*values, **options)  # noqa: T201 - what the page prints


def check(comment: str, printed: str) -> None:
    """Hold what was printed against a comment.

    Raises:
        AssertionError: They differ.
    """
    if TEXT.match(comment):
        assert printed == comment, f"{printed!r} is printed where the page says {comment!r}"
    elif NUMBER.match(comment):
        told, found = NUMBER.findall(comment), NUMBER.findall(printed)
        assert len(told) == len(found), f"{printed!r} has other numbers than {comment!r}"
        for one, other in zip(told, found, strict=True):
            decimals = len(one.partition(".")[2])
            room = 1.5001 * 10.0**-decimals if decimals else 0.0  # for rounding, and for other processors
            assert abs(float(one) - float(other)) <= room, f"{printed!r} is printed where {comment!r} is said"
