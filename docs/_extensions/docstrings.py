"""Docstrings as they are written for `help()`, made into reStructuredText for the site.

Formulas stand indented after an empty line, tables are drawn with bars; stars, bars and a letter with a full stop are
themselves.
"""

import re
from collections.abc import Iterator
from typing import Any

CODE = re.compile(r"(`[^`]*`)")
MARKUP = re.compile(r"[*|]")
ITEM = re.compile(r"^(\s*(?:\w+: )?[A-Za-z])\.(?=\s|$)")  # of a list, where a letter such as S or D is meant
BEFORE_NAPOLEON = 400


def rewrite(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Replace the lines in place."""
    lines[:] = list(_rewritten(lines))
    if what in ("property", "attribute"):
        lines.insert(0, "")  # what stands before a colon in their first line would be taken for a type


def _rewritten(lines: list[str]) -> Iterator[str]:
    literal = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line and not indented:
            literal = False
        elif indented and not literal and number > 1 and not lines[number - 1] and _at_margin(lines, number):
            literal = True  # a formula
            yield from ("::", "")
        if literal or line.lstrip().startswith((">>>", "...")):
            yield line
        elif line.startswith("|"):
            yield from _table_row(line, heading=number == 0 or not lines[number - 1].startswith("|"))
        else:
            yield _escaped(line)


def _at_margin(lines: list[str], number: int) -> bool:
    """Whether the last line before the empty ones is not indented."""
    before = [line for line in lines[:number] if line]
    return bool(before) and not before[-1].startswith(" ")


def _table_row(line: str, *, heading: bool) -> Iterator[str]:
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    if heading:
        yield from (".. list-table::", "   :header-rows: 1", "")
    if set("".join(cells)) <= set("-: "):
        return
    for place, cell in enumerate(cells):
        yield f"   {'*' if place == 0 else ' '} - {_escaped(cell)}"


def _escaped(line: str) -> str:
    """Stars and bars outside code as themselves, and a letter that stands for a number as no item of a list."""
    parts = CODE.split(ITEM.sub(r"\1\\.", line))
    return "".join(part if part.startswith("`") else MARKUP.sub(r"\\\g<0>", part) for part in parts)


def setup(app: Any) -> dict[str, bool]:
    """Rewrite before the sections of Google's style are read."""
    app.connect("autodoc-process-docstring", rewrite, priority=BEFORE_NAPOLEON)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
