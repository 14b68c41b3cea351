"""What notebooks show in the place of a line of text: small tables in HTML."""

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["table"]
__dir__ = __all__.copy


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]], *, note: str = "") -> str:
    """A table whose first column names its rows, as HTML; all text is escaped.

    Args:
        caption: Above the table.
        header: A name for each column.
        rows: The cells of each row.
        note: Below the table.

    Example:
        >>> table("1 point", ["measure", "value"], [("accuracy", "1 < 2")])
        '<table><caption>1 point</caption><thead><tr><th>measure</th><th>value</th></tr></thead><tbody><tr><th>accuracy</th><td>1 &lt; 2</td></tr></tbody></table>'
    """  # noqa: E501 - one line, as it comes out
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    foot = f'<tfoot><tr><td colspan="{len(header)}">{escape(note)}</td></tr></tfoot>' if note else ""
    return (
        f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}</table>"
    )
