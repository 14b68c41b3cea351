"""A table from a file: what its columns are taken for, the numbers that its cells become, and files that are bad."""

import gzip
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

import bayesuq as bq
from bayesuq.tables.encoding import Columns, Notes
from bayesuq.tables.files import names_a_file
from bayesuq.tables.kinds import infer
from bayesuq.tables.table import Table
from tests.tables.made import houses, written


def read(path: Path, **options: Any) -> Table:
    return bq.read_table(path, **{"target": "price", **options})


def test_columns_are_taken_for_what_they_hold_and_it_is_said(tmp_path: Path) -> None:
    table = read(written(houses(), tmp_path / "houses.csv"))
    assert {kind.name: kind.kind for kind in table.kinds} == {
        "size": "number",
        "rooms": "number",
        "city": "category",
        "sold": "date",
        "garden": "flag",
        "owner": "left out",
        "country": "left out",
    }
    told = repr(table)
    for line in ("sold: dates (%d.%m.%Y)", "country: left out: every cell is Norway", "price: numbers, predicted"):
        assert line in told
    assert "4 categories ((missing), Bergen, Narvik, Oslo)" in told


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1, 2, None, 4], "number"),
        ([True, False, None, True], "flag"),
        (["Y", "n", "y", None], "flag"),
        (["2020-01-05", "2021-12-31", None], "date"),
        (["2020-01-05 12:30", "2021-12-31 00:00"], "date"),
        (["2020-01-05T12:30:00Z", "2021-12-31T00:00:00+02:00"], "date"),
        (["1/31/2020", "12/1/2021"], "date"),
        (["31/1/2020", "1/12/2021"], "date"),
        ([*["1.5"] * 10, *["2.5"] * 10, "?"], "number"),
        ([*map(str, range(20)), *["-"] * 6, *["?"] * 6], "number"),
        ([*["1", "2", "3"] * 5, *["-"] * 6], "category"),
        (["1,234.5", "12,000", "1,234,567"], "number"),
        (["1.5", "high", "low", "2"], "category"),
        (["a", "b", "a"], "category"),
        ([None, None], "left out"),
        ([3, 3, 3], "left out"),
        ([2**60 + row for row in range(20)], "left out"),
        ([f"text {i}" for i in range(40)], "left out"),
    ],
)
def test_the_kind_of_a_column_is_inferred(cells: list[Any], kind: str) -> None:
    assert infer("it", pd.Series(cells)).kind == kind


def test_days_and_months_stand_where_the_rows_say() -> None:
    american = infer("it", pd.Series(["1/31/2020", "2/1/2020"]))
    european = infer("it", pd.Series(["31/1/2020", "1/2/2020"]))
    either = infer("it", pd.Series(["1/2/2020", "3/4/2020"]))
    assert (american.format, european.format) == ("%m/%d/%Y", "%d/%m/%Y")
    assert (american.is_ambiguous, either.is_ambiguous) == (False, True)
    assert "other way round" in either.said


def test_cells_become_the_numbers_that_scikit_learns_transformers_give(tmp_path: Path) -> None:
    """Those fitted to the training rows alone, whose medians and words a record keeps."""
    table = read(written(houses(), tmp_path / "houses.csv"))
    split, columns = table.split(seed=3)
    again = Columns.from_record(json.loads(json.dumps(columns.to_record())))
    assert again == columns
    encoded = again.encode(table.frame).x
    numbers = table.frame[["size", "rooms"]].to_numpy()
    order = {tuple(row): place for place, row in enumerate(encoded[:, :1].tolist())}
    train = table.frame.iloc[[order[(size,)] for size in split.train.x[:, 0].tolist()]]
    imputer = SimpleImputer(strategy="median", add_indicator=True).fit(train[["size", "rooms"]].to_numpy())
    expected = imputer.transform(numbers)
    names = list(columns.features)
    places = [names.index(name) for name in ("size", "rooms", "rooms is missing")]
    assert np.array_equal(encoded[:, places].numpy(), expected)
    words = table.frame[["city"]].fillna("").to_numpy()
    one_hot = OneHotEncoder(sparse_output=False).fit_transform(words)
    places = [names.index(f"city = {word}") for word in ("missing", "Bergen", "Narvik", "Oslo")]
    assert np.array_equal(encoded[:, places].numpy(), one_hot)
    assert split.train.columns == columns.features


def test_parts_of_a_date_are_its_year_and_its_places_in_the_year_week_and_day() -> None:
    column = infer("it", pd.Series(["2020-01-01 06:00", "2021-07-02 18:00"]))  # a Wednesday and a Friday
    first, second = column.numbers(pd.Series(["2020-01-01 06:00", "2021-07-02 18:00"]))
    assert column.parts[1:3] == ("it season sin", "it season cos")
    assert first[0] == pytest.approx(2020, abs=1e-3)
    assert second[0] == pytest.approx(2021.5, abs=3e-3)
    assert first[1:3] == pytest.approx([0, 1], abs=1e-6)
    assert first[3] == pytest.approx(math.sin(math.tau * 2 / 7))
    assert first[5:] == pytest.approx([1, 0], abs=1e-9)
    assert second[5:] == pytest.approx([-1, 0], abs=1e-9)


def test_cells_that_were_never_seen_so_are_told_by_column_and_row(tmp_path: Path) -> None:
    table = read(written(houses(), tmp_path / "houses.csv"))
    new = houses(8, seed=1).astype({"size": object})
    new.loc[1, "city"], new.loc[3, "size"], new.loc[[4, 6], "garden"] = "Paris", "big", [None, "perhaps"]
    notes = Notes()
    encoded = table.columns.encode(new, notes=notes)
    assert encoded.unknown.tolist() == [0, 1, 0, 0, 0, 0, 0, 0]
    assert encoded.x.isfinite().all()
    assert notes.lines() == [
        "Column 'size': 1 row with no number, which count as missing (row 4: 'big').",
        "Column 'size': 1 row without a value, as none was that was fitted: the median is taken (row 4).",
        "Column 'garden': 1 row with no yes or no, which count as missing (row 7: 'perhaps').",
        "Column 'garden': 2 rows without a value, as none was that was fitted: the median is taken (row 5, row 7).",
        "Column 'city': 1 row with a word that was not fitted (row 2: 'Paris').",
    ]
    with pytest.raises(ValueError, match=r"lacks 'rooms', which was fitted.*stay empty"):
        table.columns.encode(new.drop(columns="rooms"))
    with pytest.raises(ValueError, match="column 'size' is infinite in 1 rows, the first is row 2"):
        table.columns.encode(houses(3).assign(size=[1.0, math.inf, 2.0]))


def test_order_and_further_columns_do_not_matter(tmp_path: Path) -> None:
    columns = read(written(houses(), tmp_path / "houses.csv")).columns
    frame = houses(20)
    assert torch.equal(columns.encode(frame).x, columns.encode(frame[frame.columns[::-1]].assign(more=1)).x)


@pytest.mark.parametrize(
    ("options", "ending"),
    [
        ({}, ".csv"),
        ({"sep": ";", "decimal": ","}, ".csv"),
        ({"sep": "\t"}, ".tsv"),
        ({"sep": "|"}, ".txt"),
        ({"encoding": "utf-16"}, ".csv"),
        ({"encoding": "utf-8-sig"}, ".csv"),
        ({}, ".csv.gz"),
    ],
)
def test_delimiter_encoding_and_compression_are_found_out(options: dict[str, Any], ending: str, tmp_path: Path) -> None:
    frame = houses(60).replace({"city": {"Narvik": "Ålesund, old town"}})
    table = read(written(frame, tmp_path / f"houses{ending}", **options))
    assert names_a_file(f"houses{ending}")
    plain = read(written(frame, tmp_path / "plain.csv"))
    assert table.kinds == plain.kinds
    assert torch.equal(table.data.x, plain.data.x)


def test_numbers_are_what_their_file_writes(tmp_path: Path) -> None:
    """Decimal commas, points or spaces between thousands, a typographer's minus, and gaps marked by words."""
    numbers = np.array([1234567.5, 999.0, 1234.0, -12.5, *np.arange(20.0)])
    english = [f"{number:,.1f}" for number in numbers]
    german = [word.translate(str.maketrans(",.", ".,")) for word in english]
    whole = [f"{int(1000 * number):,}".replace(",", ".") for number in numbers]  # without any decimal comma
    for name, cells, between, price in (
        ("english", [f'"{word}"' for word in english], ",", numbers),
        ("german", german, ";", numbers),
        ("whole", whole, ";", 1000 * numbers),
        ("typographer", [word.replace("-", "\N{MINUS SIGN}").replace(",", "\u202f") for word in english], ";", numbers),
    ):
        marks = ["unknown" if row % 12 == 4 else str(row) for row in range(24)]
        other = german if name == "whole" else cells
        lines = [between.join(row) for row in zip(marks, other, cells, strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join([f"mark{between}size{between}price", *lines]), encoding="utf-8")
        table = read(tmp_path / f"{name}.csv")
        assert [kind.kind for kind in table.kinds] == ["number", "number"]
        assert table.data.y[:, 0].tolist() == price.tolist()
        assert table.data.x[:, 1].tolist() == numbers.tolist()
        assert table.columns.can_be_missing == (True, False)


def test_another_encoding_is_read_as_windows_and_told(tmp_path: Path) -> None:
    frame = houses(60).replace({"city": {"Narvik": "Ålesund"}})
    path = written(frame, tmp_path / "houses.csv", encoding="cp1252")
    with pytest.warns(UserWarning, match=r"not UTF-8 \(line \d+\); it is read as Windows-1252"):
        assert "city = Ålesund" in read(path).columns.features
    assert "city = Ålesund" in read(path, encoding="latin-1").columns.features
    with pytest.raises(ValueError, match="cannot be read as utf-8"):
        read(path, encoding="utf-8")


BAD = {
    "a delimiter that is none": (lambda text: text, {"delimiter": "#"}, "has no column 'price'.*Is its `delimiter`"),
    "two columns of one name": (lambda text: text.replace("rooms", "size", 1), {}, "two columns of the name 'size'"),
    "one row": (
        lambda text: "\n".join(text.splitlines()[:2]),
        {},
        "has 1 rows with a target, 'price', of 1; at least 10",
    ),
    "no row": (lambda text: text.splitlines()[0], {}, "has 0 rows with a target, 'price', of 0"),
    "nothing": (lambda _text: "", {}, "is empty: it has no names"),
    "no names": (lambda _text: "1.5,2\n" * 20, {}, "has numbers in its first line"),
    "a misspelt target": (lambda text: text, {"target": "prize"}, r"no column 'prize'.*did you mean 'price'"),
    "a column that is not there": (lambda text: text, {"leave_out": ["id"]}, r"no column 'id' \(`leave_out`\)"),
    "a line that is too long": (lambda text: text + "1," * 9 + "1\n", {}, "8 names of columns, and 10 cells in row 31"),
    "a late one": (lambda text: text * 8 + "1," * 9 + "1\n", {}, "no table with commas.*mend that line"),
    "decimal commas": (lambda text: text.replace(".", ","), {}, "and [0-9]+ cells in row 1.*in quotes"),
    "a cell that is too long": (
        lambda text: text + "x" * 2**18 + "\n",
        {},
        "is no table: field larger than field limit",
    ),
    "a spreadsheet": (lambda _text: "PK\3\4\0\0", {}, "is no text, and so no CSV"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_told_by_what_is_wrong(name: str, tmp_path: Path) -> None:
    change, options, message = BAD[name]
    path = tmp_path / "bad.csv"
    path.write_text(change(houses(30).to_csv(index=False)))
    with pytest.raises(ValueError, match=f"(?s){message}"):
        read(path, **options)


def test_targets_that_cannot_be_learned_are_refused(tmp_path: Path) -> None:
    frame = houses(40)
    broken = frame.astype({"price": object})
    broken.loc[[3, 7], "price"] = "ask"
    with pytest.raises(ValueError, match="holds numbers, but for 2 of 40 rows that hold words, the first row 4: 'ask'"):
        read(written(broken, tmp_path / "broken.csv"))
    with pytest.raises(ValueError, match="target 'country' is 'Norway' in every row"):
        read(written(frame, tmp_path / "houses.csv"), target="country")
    with pytest.raises(ValueError, match="40 different words in 40 rows, which are no labels"):
        read(tmp_path / "houses.csv", target="owner")
    with pytest.raises(ValueError, match=r"No column is left to predict 'price' from: country left out"):
        read(written(frame[["country", "price"]], tmp_path / "alone.csv"))
    gone = frame.assign(price=frame["price"].where(frame.index > 4))
    with pytest.warns(UserWarning, match="5 of 40 rows have no target 'price' and are left out, the first is row 1"):
        assert len(read(written(gone, tmp_path / "gone.csv"))) == 35


NUMBERED = list(range(40))
DAYS = pd.date_range("2020-01-01", periods=40)
BAD_TARGETS = {
    "dates": (DAYS.strftime("%d.%m.%Y"), {}, r"target 'it' is dates \(%d.%m.%Y\), and dates are not predicted"),
    "dates as one number": (DAYS.strftime("%Y%m%d").astype(int), {}, r"target 'it' is dates \(%Y%m%d\)"),
    "a few months": (["2020-01", "2020-02"] * 20, {}, "target 'it' is dates.*or take it for labels"),
    "nothing": ([None] * 40, {}, "0 rows with a target, 'it', of 40"),
    "infinite": ([math.inf, *NUMBERED[1:]], {}, "target 'it' is 'inf' in row 1, which is no finite number"),
    "half of them words": (["no", 1.5, "ask", 2.5] * 5 + NUMBERED[:20], {}, "'it' holds numbers, but for 10 of 40"),
    "words, most of them": ([f"id {n}" for n in range(30)] + NUMBERED[:10], {}, "'it' .*, and numbers in 10 of them"),
    "words for numbers": (["yes", "no"] * 20, {"labels": False}, "'it' holds words and no numbers.*row 1: 'yes'"),
    "numbers for labels": (NUMBERED, {"labels": True}, "'it' has 40 different numbers in 40 rows, which are no labels"),
    "left out, too": (NUMBERED, {"leave_out": ["it"]}, "'it' is the target, and cannot be left out"),
    "a category, too": (NUMBERED, {"categories": ["it"]}, "'it' is the target, which `categories` says nothing of"),
    "too many labels": (list("abcdefghij") * 4, {}, "target 'it' has 10 labels. The 40 rows cannot be divided"),
}


@pytest.mark.parametrize("name", BAD_TARGETS)
@pytest.mark.filterwarnings("ignore:.* rows have no target")
def test_what_is_wrong_with_a_target_is_told_with_its_name(name: str, tmp_path: Path) -> None:
    cells, options, message = BAD_TARGETS[name]
    path = written(pd.DataFrame({"size": NUMBERED, "it": cells}), tmp_path / "it.csv")
    with pytest.raises(ValueError, match=message):
        read(path, target="it", **options).split()


def test_dates_are_labels_where_they_are_said_to_be(tmp_path: Path) -> None:
    path = written(pd.DataFrame({"size": NUMBERED, "it": ["2020-01", "2020-02"] * 20}), tmp_path / "it.csv")
    assert read(path, target="it", labels=True).target.classes == ("2020-01", "2020-02")


def test_words_yes_and_no_and_0_and_1_are_labels(tmp_path: Path) -> None:
    frame = houses(60).assign(sold_again=np.arange(60) % 2)
    path = written(frame, tmp_path / "houses.csv")
    assert read(path, target="garden").target.classes == ("no", "yes")
    assert read(path, target="sold_again").target.classes == ("0", "1")
    assert read(path, target="sold_again", labels=False).target.classes == ()
    written(frame.dropna(), path)
    assert read(path, target="rooms", labels=True).target.classes == ("1", "2", "3", "4", "5")
    assert "rooms = 5" in read(path, categories=["rooms"]).columns.features


def test_parquet_is_read_or_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "houses.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"Parquet needs pyarrow \(`pip install pyarrow`, or save the table as CSV\)"):
        read(tmp_path / "houses.parquet")


def test_a_broken_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "houses.csv.gz"
    path.write_bytes(gzip.compress(houses(40).to_csv(index=False).encode())[:-200])
    with pytest.raises((ValueError, EOFError, OSError)):
        read(path)
