"""Table files: their delimiter, encoding and compression are found out, and what is no table is told by its line.

CSV and TSV of any of the usual delimiters, compressed or not, and Parquet where pyarrow is installed; pandas reads.
"""

import csv
import gzip
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from bayesuq import optional
from bayesuq.tables import numbers

DELIMITERS = (",", ";", "\t", "|")
WORDS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}
SAMPLE = 200  # lines that tell the delimiter and the decimal mark
LONGEST_LINE = 2**20  # characters; no table has such a header
EXCELS = re.compile("sep=(.)", re.I)  # a first line by which spreadsheets tell the delimiter
OTHERS = re.compile(r"\s*(<[!?a-zA-Z]|[\[{]\s*[\[{\"])")  # as HTML, XML and JSON begin
MOST_BEFORE = 20  # lines before the names
PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".txt", ".tab", ".dat", ".psv")
GZIPPED = b"\x1f\x8b"
BEYOND = "\0"  # the name of what stands behind the last named column
TOO_LONG = re.compile(r"Expected \d+ fields in line (\d+), saw (\d+)")  # in pandas' words
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}  # that a file may begin with


def names_a_file(name: str) -> bool:
    """Whether a name is that of a table's file, by its ending.

    Example:
        >>> names_a_file("houses.csv.gz"), names_a_file("uci/boston")
        (True, False)
    """
    endings = [ending.lower() for ending in Path(name).suffixes if ending.lower() != ".gz"]
    return bool(endings) and endings[-1] in (*TEXT, *PARQUET)


@dataclass(frozen=True)
class Form:
    """How a file is written.

    Attributes:
        path: Of the file.
        columns: The names in its first line.
        delimiter: Between cells; empty for Parquet.
        encoding: Of its text.
        decimal: The decimal point, or comma, of most columns.
        otherwise: Columns of the other one.
        skipped: Rows before the names, of which one may take several lines, in quotes.
    """

    path: str
    columns: tuple[str, ...]
    delimiter: str = ""
    encoding: str = "utf-8"
    decimal: str = "."
    otherwise: tuple[str, ...] = ()
    skipped: int = 0

    def __str__(self) -> str:
        if not self.delimiter:
            return "Parquet"
        names = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "bars"}
        comma = ", decimal commas" if self.decimal == "," else ""
        return f"{names.get(self.delimiter, repr(self.delimiter))} between cells, {self.encoding}{comma}"


def look_at(path: str | PathLike[str], *, delimiter: str | None = None, encoding: str | None = None) -> Form:
    """Find out how a file is written.

    Args:
        path: Of the file.
        delimiter: Between cells; None finds it out.
        encoding: Of the text; None takes UTF-8, UTF-16 with its mark, and else Windows-1252, which is told.

    Raises:
        FileNotFoundError: No such file.
        IsADirectoryError: A folder.
        ImportError: Parquet, without pyarrow; or no pandas.
        ValueError: An empty file, one that is no table, two columns of one name, text that is not of the encoding.

    Warns:
        UserWarning: The text is not UTF-8.
    """
    place = Path(path)
    if place.is_dir():
        raise IsADirectoryError(f"{fspath(path)!r} is a folder; name the file in it.")
    if not place.is_file():
        raise FileNotFoundError(f"There is no file {fspath(path)!r}.")
    if place.suffix.lower() in PARQUET:
        schema = optional.parquet.read_schema(place)
        return Form(fspath(path), _distinct(schema.names, path))
    try:
        chosen = _encoding_of(place) if encoding is None else encoding
        lines = _lines_of(place, chosen)
    except DAMAGED as error:
        raise _damaged(path, error) from error
    except (UnicodeError, LookupError) as error:
        raise ValueError(f"{fspath(path)!r} cannot be read as {chosen}: {error}. Give its `encoding`.") from error
    if not "".join(lines).strip():
        raise ValueError(f"{fspath(path)!r} is empty: it has no names of columns in a first line.")
    if "\0" in "".join(lines) or len(lines[0]) == LONGEST_LINE:
        raise ValueError(f"{fspath(path)!r} is no text, and so no CSV; of a spreadsheet, save it as CSV first.")
    if OTHERS.match("".join(lines[:2])):
        raise ValueError(f"{fspath(path)!r} is a web page, XML or JSON, and no CSV.")
    try:
        between = _delimiter_of(lines) if delimiter is None else WORDS.get(delimiter, delimiter)
        if len(between) != 1:
            raise ValueError(f"`delimiter` must be one character, or tab; got {delimiter!r}.")
        skipped, lines_skipped = _before_names(lines, between, path)
        header, *rows = csv.reader(lines[lines_skipped:], delimiter=between, skipinitialspace=True)
    except csv.Error as error:
        raise ValueError(f"{fspath(path)!r} is no table: {error}.") from error
    names = _distinct(header, path)
    _check_widths(rows, names, path)
    return Form(fspath(path), names, between, chosen, *_decimals(names, rows, between), skipped)


def frames(
    form: Form, *, rows: int | None = None, as_text: Sequence[str] = (), columns: Sequence[str] | None = None
) -> Iterator[Any]:
    """The rows of a file as data frames, in order.

    Args:
        form: How it is written.
        rows: Of each frame, at most; None makes one of all.
        as_text: Columns whose cells are kept as they are written.
        columns: That are read; None reads all.

    Raises:
        ValueError: A line with more cells than the first one, or text of another encoding.
    """
    if not form.delimiter:
        whole = optional.pandas.read_parquet(form.path, columns=None if columns is None else list(columns))
        size = len(whole) if rows is None else rows
        yield from (whole.iloc[start : start + size] for start in range(0, max(len(whole), 1), max(size, 1)))
        return
    options: Mapping[str, Any] = {
        "sep": form.delimiter,
        "encoding": form.encoding,
        "decimal": form.decimal,
        "skipinitialspace": True,
        "header": None,
        "names": [*form.columns, BEYOND],  # pandas before 3.1 cuts a line that begins a piece without a word
        "index_col": False,
        "dtype": {BEYOND: "str", **{name: "str" for name in (*as_text, *form.otherwise) if name in form.columns}},
        "skiprows": form.skipped + 1,
        "low_memory": False,
        "compression": "gzip" if _is_gzipped(Path(form.path)) else None,
        "on_bad_lines": "error",
    }
    pandas = optional.pandas
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # of lines that it would cut
            wanted = list(form.columns if columns is None else columns)  # not `usecols`, by which longer lines are cut
            with pandas.read_csv(form.path, iterator=True, chunksize=rows, **options) as reader:
                for frame in [reader.read()] if rows is None else reader:
                    _check_nothing_beyond(frame, form)
                    yield _with_points(frame[wanted], form, as_text)
    except DAMAGED as error:
        raise _damaged(form.path, error) from error
    except (pandas.errors.ParserError, pandas.errors.ParserWarning, UnicodeError) as error:
        told = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        many = f"line \\1 has \\2 cells, and there are {len(form.columns)} names of columns"
        raise _no_table(form, TOO_LONG.sub(many, told)) from error


def _damaged(path: str | PathLike[str], error: Exception) -> ValueError:
    return ValueError(f"{fspath(path)!r} is a damaged gzip file: {error}. Copy or compress it again.")


def _no_table(form: Form, told: str) -> ValueError:
    return ValueError(
        f"{form.path!r} is no table with {form}: {told}. Give its `delimiter` and `encoding`, or mend that line."
    )


def _check_nothing_beyond(frame: Any, form: Form) -> None:
    """Refuse rows with cells behind the last named column.

    Raises:
        ValueError: With the first of them.
    """
    beyond = frame[BEYOND].notna()
    if beyond.any():
        row = int(beyond.idxmax()) + 1
        raise _no_table(form, f"row {row} has more cells than the {len(form.columns)} names of columns")


def _with_points(frame: Any, form: Form, as_text: Sequence[str]) -> Any:
    """A frame whose decimal commas, in columns that pandas could not read, are points.

    These are columns with a word or a unit among their numbers, or with points between the thousands, `1.234,5` and
    `1.234`, which would be read as another number.
    """
    for name in frame.columns:
        cells = frame[name]
        is_comma = (form.decimal == ",") != (name in form.otherwise)
        if not is_comma or name in as_text or cells.dtype.kind in "iufbM":
            continue
        written = [None if gone else numbers.read(str(cell)) for cell, gone in zip(cells, cells.isna(), strict=True)]
        if sum(one is not None for one in written) > cells.notna().sum() / 2:
            pairs = zip(cells, written, strict=True)
            frame[name] = [cell if one is None else f"{one.plain(',')} {one.unit}".strip() for cell, one in pairs]
    return frame


def _check_widths(rows: Sequence[Sequence[str]], names: Sequence[str], path: str | PathLike[str]) -> None:
    """Refuse rows with more cells than there are names, whose cells would stand under other names.

    Raises:
        ValueError: With the first of them.
    """
    for number, row in enumerate(rows, 1):
        if any(cell.strip() for cell in row[len(names) :]):
            raise ValueError(
                f"{fspath(path)!r} has {len(names)} names of columns, and {len(row)} cells in row {number}. Mend that "
                "row, put cells with a delimiter in them in quotes, or name the other columns."
            )


def _decimals(names: Sequence[str], rows: Sequence[Sequence[str]], between: str) -> tuple[str, tuple[str, ...]]:
    """The decimal mark that most columns prove, and the columns that prove the other one."""
    columns = {name: [row[place] for row in rows if len(row) > place] for place, name in enumerate(names)}
    proved = {name: mark for name, cells in columns.items() if (mark := numbers.decimal_mark(cells))}
    counts = Counter(proved.values())
    unsure = between == ";" and any(numbers.EITHER.fullmatch(cell) for cells in columns.values() for cell in cells)
    commas = counts[","] > counts["."] or (counts[","] == counts["."] and (counts[","] > 0 or unsure))
    decimal = "," if commas else "."
    return decimal, tuple(name for name, mark in proved.items() if mark != decimal)


def _encoding_of(path: Path) -> str:
    """By the mark that it begins with, or UTF-8 where it is that.

    Warns:
        UserWarning: It is not.
    """
    with _bytes_of(path) as file:
        start = file.read(4)
        for mark, name in MARKS.items():
            if start.startswith(mark):
                return name
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                warnings.warn(
                    f"{path} is not UTF-8 (line {number}); it is read as Windows-1252. Where names come out wrong, "
                    "give its `encoding`, such as latin-1 or cp1250.",
                    UserWarning,
                    stacklevel=4,
                )
                return "cp1252"
    return "utf-8"


def _delimiter_of(lines: Sequence[str]) -> str:
    """The delimiter that cuts all lines into as many cells, the more the better; a comma where there is one column."""
    declared = EXCELS.fullmatch(lines[0].strip())
    if declared is not None:
        return declared[1]

    def cells(delimiter: str) -> tuple[bool, int]:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row]
        (usual, count), *_ = Counter(widths).most_common(1)
        return count == len(widths) and usual > 1, usual

    scores = {delimiter: cells(delimiter) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: scores[delimiter])
    return best if scores[best][1] > 1 else ","


def _before_names(lines: Sequence[str], delimiter: str, path: str | PathLike[str]) -> tuple[int, int]:
    """Rows before the names of the columns, and their lines: empty ones, what tells the delimiter, remarks and titles.

    Warns:
        UserWarning: With the first of them that says something.
    """
    reader = csv.reader(lines, delimiter=delimiter)
    starts, rows = [0], list[list[str]]()
    for row in reader:
        rows.append(row)
        starts.append(reader.line_num)
    (usual, _), *_ = Counter(len(row) for row in rows if row).most_common(1)

    def is_before(line: str, row: Sequence[str]) -> bool:
        filled = sum(bool(cell.strip()) for cell in row)
        is_title = filled == 1 and usual > 1 and (usual > 2 or len(row) != usual)
        return filled == 0 or is_title or EXCELS.fullmatch(line.strip()) is not None

    before = enumerate(zip(starts[:MOST_BEFORE], rows, strict=False))
    skipped, number = next(((place, at) for place, (at, row) in before if not is_before(lines[at], row)), (0, 0))
    told = [line.strip() for line in lines[:number] if line.strip() and not EXCELS.fullmatch(line.strip())]
    if told:
        warnings.warn(
            f"{fspath(path)!r} begins with {number} {'line' if number == 1 else 'lines'} before the names of its "
            f"columns, which {'is' if number == 1 else 'are'} skipped: {told[0][:60]!r}.",
            UserWarning,
            stacklevel=4,
        )
    return skipped, number


def _distinct(names: Sequence[str], path: str | PathLike[str]) -> tuple[str, ...]:
    """The names of columns.

    Raises:
        ValueError: One that is there twice, or empty.
    """
    stripped = [str(name).strip() for name in names]
    twice = [name for place, name in enumerate(stripped) if name in stripped[:place]]
    if twice and twice[0]:
        raise ValueError(f"{fspath(path)!r} has two columns of the name {twice[0]!r}. Rename or drop one of them.")
    named = [name or f"column {place}" for place, name in enumerate(stripped, 1)]  # as an index that was written along
    if sum(bool(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", name)) for name in named) > len(named) / 2:
        raise ValueError(
            f"{fspath(path)!r} has numbers in its first line ({', '.join(named[:3])}), where the names of the columns "
            "should stand. Write them there."
        )
    return tuple(named)


def _is_gzipped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == GZIPPED


def _bytes_of(path: Path) -> Any:
    return gzip.open(path, "rb") if _is_gzipped(path) else path.open("rb")


def _lines_of(path: Path, encoding: str) -> list[str]:
    """The first lines."""
    with _bytes_of(path) as file, TextIOWrapper(file, encoding=encoding, newline="") as text:
        return list(islice(iter(lambda: text.readline(LONGEST_LINE), ""), SAMPLE))
