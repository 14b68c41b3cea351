"""Table files: their delimiter, encoding and compression are found out, and what is no table is told by its line.

CSV and TSV of any of the usual delimiters, compressed or not, and Parquet where pyarrow is installed; pandas reads.
"""

import csv
import gzip
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from bayesuq import optional

DELIMITERS = (",", ";", "\t", "|")
WORDS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";"}
SAMPLE = 50  # lines that tell the delimiter
LONGEST_LINE = 2**20  # characters; no table has such a header
WITH_COMMA = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,\d+)?")  # a number where that is the decimal one
DECIMAL_COMMA = re.compile(r"[-+\u2212]?(?:\d{1,3}(?:\.\d{3})+|\d+),\d+")
PARQUET = (".parquet", ".pq")
TEXT = (".csv", ".tsv", ".txt", ".tab", ".dat", ".psv")
GZIPPED = b"\x1f\x8b"
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
        decimal: The decimal point, or comma.
    """

    path: str
    columns: tuple[str, ...]
    delimiter: str = ""
    encoding: str = "utf-8"
    decimal: str = "."

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
    chosen = _encoding_of(place) if encoding is None else encoding
    try:
        lines = _lines_of(place, chosen)
    except (UnicodeError, LookupError) as error:
        raise ValueError(f"{fspath(path)!r} cannot be read as {chosen}: {error}. Give its `encoding`.") from error
    if not "".join(lines).strip():
        raise ValueError(f"{fspath(path)!r} is empty: it has no names of columns in a first line.")
    if "\0" in "".join(lines) or len(lines[0]) == LONGEST_LINE:
        raise ValueError(f"{fspath(path)!r} is no text, and so no CSV; of a spreadsheet, save it as CSV first.")
    between = _delimiter_of(lines) if delimiter is None else WORDS.get(delimiter, delimiter)
    if len(between) != 1:
        raise ValueError(f"`delimiter` must be one character, or tab; got {delimiter!r}.")
    header, *rows = csv.reader(lines, delimiter=between, skipinitialspace=True)
    comma = between != "," and any(DECIMAL_COMMA.fullmatch(cell.strip()) for row in rows for cell in row)
    return Form(fspath(path), _distinct(header, path), between, chosen, "," if comma else ".")


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
        "header": 0,
        "names": list(form.columns),
        "index_col": False,
        "usecols": None if columns is None else list(columns),
        "dtype": {name: "str" for name in as_text if name in form.columns},
        "low_memory": False,
        "compression": "gzip" if _is_gzipped(Path(form.path)) else None,
        "on_bad_lines": "error",
    }
    pandas = optional.pandas
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # of lines that it would cut
            if rows is None:
                yield _with_points(pandas.read_csv(form.path, **options), form, as_text)
            else:
                with pandas.read_csv(form.path, chunksize=rows, **options) as reader:
                    yield from (_with_points(frame, form, as_text) for frame in reader)
    except (pandas.errors.ParserError, pandas.errors.ParserWarning, UnicodeError) as error:
        told = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        raise ValueError(
            f"{form.path!r} is no table with {form}: {told}. Give its `delimiter` and `encoding`, or mend that line."
        ) from error


def _with_points(frame: Any, form: Form, as_text: Sequence[str]) -> Any:
    """A frame of a file with decimal commas, whose columns that pandas could not read have decimal points.

    These are columns with a word among their numbers, or with points between the thousands, `1.234,5` and `1.234`,
    which would be read as another number.
    """
    if form.decimal != ",":
        return frame
    for name in frame.columns:
        cells = frame[name]
        if name in as_text or cells.dtype.kind in "iufbM":
            continue
        words = [str(cell).strip() for cell in cells]
        is_number = [WITH_COMMA.fullmatch(word) is not None for word in words]
        if sum(is_number) > cells.notna().sum() / 2:
            pairs = zip(words, is_number, cells, strict=True)
            frame[name] = [w.replace(".", "").replace(",", ".") if is_one else cell for w, is_one, cell in pairs]
    return frame


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

    def cells(delimiter: str) -> tuple[bool, int]:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if row]
        return len(set(widths)) == 1 and widths[0] > 1, widths[0]

    scores = {delimiter: cells(delimiter) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: scores[delimiter])
    return best if scores[best][1] > 1 else ","


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
