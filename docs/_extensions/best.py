"""Tables of methods on the page of results: the best value of each column stands out.

A column is known by its title, which says what it measures; one of another title is left as it is. Where the first
column names a set or a network, each has its best; a value that stands beside a published one is held against that.
"""

import re
from collections.abc import Sequence
from typing import Any

PAGE = "results"
ENTRIES = ("method", "word", "score", "score, %", "uncertainty")  # titles of the column that names what is compared
WITHIN = {("set", "method"), ("network", "posterior"), ("network", "scaling")}  # compared within the first column
LARGER = re.compile(r"accuracy|AUROC\b.*|AUPR-.*|Dice|IoU|agreement.*|log-likelihood|rank correlation.*|ResNet-.*")
SMALLER = re.compile(r"error(, %)?|FPR95|NLL.*|ECE|total variation|Wasserstein-1.*|log score lost.*|RMSE|CRPS")
AFTER_AUROC = ("entropy", "mutual information", "maximum probability")
PUBLISHED = "published"
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def mark(page: str) -> str:
    """The page with the best values in bold."""
    lines = page.split("\n")
    begin = 0
    while begin < len(lines):
        end = begin
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        if end - begin > 2:
            lines[begin:end] = _marked(lines[begin:end])
        begin = max(end, begin + 1)
    return "\n".join(lines)


def _marked(table: Sequence[str]) -> list[str]:
    titles, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table if not _is_rule(line)]
    signs = directions(titles)
    names = (titles[0], titles[1])
    bold: set[tuple[int, int]] = set()
    for column, sign in enumerate(signs):
        if not sign:
            continue
        if titles[column + 1 : column + 2] == [PUBLISHED]:
            for number, row in enumerate(rows):
                bold |= {(number, place) for place in _best({p: row[p] for p in (column, column + 1)}, sign)}
        elif names in WITHIN or names[0] in ENTRIES or names[1] in ENTRIES:
            groups = {row[0] if names in WITHIN else "" for row in rows}
            for group in groups:
                cells = {
                    number: row[column]
                    for number, row in enumerate(rows)
                    if row[0] != PUBLISHED and (names not in WITHIN or row[0] == group)
                }
                bold |= {(number, column) for number in _best(cells, sign)}
    for number, column in bold:
        rows[number][column] = f"**{rows[number][column]}**"
    return [*table[:2], *(f"| {' | '.join(row)} |" for row in rows)]


def directions(titles: Sequence[str]) -> list[int]:
    """Of each column 1 where more is better, -1 where less is, 0 where neither is known."""
    signs: list[int] = []
    is_auroc = False
    for title in titles:
        is_auroc = title.startswith("AUROC") or (is_auroc and title in AFTER_AUROC)
        signs.append(1 if is_auroc or LARGER.fullmatch(title) else -1 if SMALLER.fullmatch(title) else 0)
    return signs


def _best(cells: dict[int, str], sign: int) -> list[int]:
    """The keys of the best of at least two cells that have a number; of equal ones all."""
    found = {key: sign * float(number[0]) for key, cell in cells.items() if (number := NUMBER.match(cell))}
    return [key for key, value in found.items() if value == max(found.values())] if len(found) > 1 else []


def _is_rule(line: str) -> bool:
    return set(line) <= set("|-: ")


def mark_results(_app: Any, page: str, source: list[str]) -> None:
    """Mark the page of results as it is read."""
    if page == PAGE:
        source[0] = mark(source[0])


def setup(app: Any) -> dict[str, bool]:
    """Connect the above."""
    app.connect("source-read", mark_results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
