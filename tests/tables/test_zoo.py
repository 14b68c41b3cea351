"""Tables as people send them: what stands in their cells is the number, day or label that it means, or is told."""

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bayesuq as bq
from bayesuq.tables.encoding import Notes
from bayesuq.tables.numbers import decimal_mark
from bayesuq.tables.table import Table, new_rows
from tests.tables.made import written

ROWS = 40
SIZES = np.round(np.random.default_rng(0).uniform(-3000, 250_000, ROWS), 2)
SIZES[:3] = [1234.0, -12.5, 0.25]
DAYS = pd.date_range("2020-01-05", periods=ROWS, freq="17D")


def table(path: Path, cells: Sequence[str], **options: Any) -> Table:
    frame = pd.DataFrame({"size": cells, "price": [f"{row}.5" for row in range(ROWS)]})
    return bq.read_table(written(frame, path / "it.csv", **options), target="price")


def german(number: float) -> str:
    return f"{number:,.2f}".translate(str.maketrans(",.", ".,"))


WRITTEN: dict[str, Callable[[float], str]] = {
    "percent": lambda number: f"{number}%",
    "dollars": lambda number: f"{'-' if number < 0 else ''}${abs(number):,.2f}",
    "accountants": lambda number: f"({-number:,.2f})" if number < 0 else f"{number:,.2f}",
    "pounds and brackets": lambda number: f"(\u00a3{-number:,.2f})" if number < 0 else f"\u00a3{number:,.2f}",
    "minus behind": lambda number: f"{abs(number)}-" if number < 0 else f"{number}",
    "euros, German": lambda number: german(number) + " \u20ac",
    "German between commas": german,
    "Swiss": lambda number: f"CHF {number:,.2f}".replace(",", "'"),
    "area": lambda number: f"{number} m2",
    "about": lambda number: f"~{number}",
    "French": lambda number: f"{number:,.2f}".replace(",", "\u202f").replace(".", ",") + "\u00a0kg",
    "points here and commas there": lambda number: f"{number:.2f}".replace(".", "," if number < 0 else "."),
    "exponents": lambda number: f"{number:.8e}",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_numbers_are_read_as_they_are_meant(how: str, tmp_path: Path) -> None:
    for between in (",", ";"):
        found = table(tmp_path, [WRITTEN[how](number) for number in SIZES], sep=between)
        assert found.data.x[:, 0].tolist() == SIZES.tolist()
        assert found.data.y[:, 0].tolist() == [row + 0.5 for row in range(ROWS)]


def test_thousands_of_a_file_with_tabs_are_no_decimals(tmp_path: Path) -> None:
    """`1,234` beside `999` is a thousand; in a German file so is `1.234`, and `59.913` beside `59.91` is none."""
    found = table(tmp_path, [f"{800 + 13 * row:,}" for row in range(ROWS)], sep="\t")
    assert found.data.x[:, 0].tolist() == [800 + 13 * row for row in range(ROWS)]
    frame = pd.DataFrame(
        {
            "north": [f"{59 + row / 1000:g}" for row in range(ROWS)],
            "size": [german(800 + 13 * row)[:-3] for row in range(ROWS)],
            "price": [f"{row},5" for row in range(ROWS)],
        }
    )
    found = bq.read_table(written(frame, tmp_path / "mixed.csv", sep=";"), target="price")
    assert found.data.x[:, 0].tolist() == [float(cell) for cell in frame["north"]]
    assert found.data.x[:, 1].tolist() == [800 + 13 * row for row in range(ROWS)]
    assert decimal_mark(["1.234", "5.678"]) is None


@pytest.mark.parametrize(
    "form",
    [
        *("%d %b %Y", "%d. %B %Y", "%B %d, %Y", "%d/%m/%y", "%d.%m.%y", "%d-%b-%y", "%Y%m%d"),
        *("%m/%d/%Y %I:%M %p", "%Y-%m-%d %H:%M:%S.%f"),
    ],
)
def test_days_are_read_as_they_are_written(form: str, tmp_path: Path) -> None:
    (kind,) = table(tmp_path, [day.strftime(form) for day in DAYS]).kinds
    year = kind.numbers(pd.Series([DAYS[7].strftime(form)]))[0, 0]  # type: ignore[union-attr]
    assert kind.kind == "date"
    assert year == pytest.approx(2020 + (DAYS[7].day_of_year - 1) / 365.2425)


def test_a_clock_is_read_in_hours(tmp_path: Path) -> None:
    cells = [f"{row % 24}:{row:02}" for row in range(ROWS)]
    assert table(tmp_path, cells).data.x[:, 0].tolist() == pytest.approx([row % 24 + row / 60 for row in range(ROWS)])
    assert table(tmp_path, ["12:30 am", "1:30 PM"] * 20).data.x[:2, 0].tolist() == [0.5, 13.5]


def test_yes_no_1_and_0_are_flags(tmp_path: Path) -> None:
    words = ["yes", "No", "Y", "n", "TRUE", "False", "1", "0"]
    assert table(tmp_path, words * 5).data.x[:8, 0].tolist() == [1, 0] * 4


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ([DAYS[row].strftime(("%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y")[row % 3]) for row in range(ROWS)], "several"),
        ([f"{row} {('kg', 'g')[row % 2]}" for row in range(ROWS)], r"several units \(g, kg\); write them in one"),
        ([f"name {row}" for row in range(ROWS)], "text, 40 different ones"),
        (["n/a"] * ROWS, "every cell is empty"),
    ],
)
def test_columns_that_cannot_be_read_say_why(cells: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"size left out: .*{reason}"):
        table(tmp_path, cells)


@pytest.mark.parametrize("name", ["", "Unnamed: 0", "id", "row_number", "#"])
def test_a_column_that_counts_the_rows_is_left_out(name: str, tmp_path: Path) -> None:
    """Of a table that is sorted by its target it would tell the target, and nothing of new rows."""
    frame = pd.DataFrame({name: np.arange(5, ROWS + 5), "year": np.arange(ROWS) + 1980, "price": SIZES})
    frame.loc[3, "price"] = np.nan
    with pytest.warns(UserWarning, match="no target"):
        kinds = bq.read_table(written(frame, tmp_path / "it.csv"), target="price").kinds
    assert [kind.kind for kind in kinds] == ["left out", "number"]


@pytest.mark.parametrize(
    ("before", "told"),
    [
        ("\n\n", None),
        ("sep=,\n", None),
        ("# made by hand\n\n", "begins with 2 lines before.*made by hand"),
        ("House prices,,\n,,\n", "House prices"),
        ('"House prices\nof a town"\n', "begins with 2 lines before.*House prices"),
    ],
)
def test_lines_before_the_names_are_skipped_and_told(before: str, told: str | None, tmp_path: Path) -> None:
    path = tmp_path / "it.csv"
    frame = pd.DataFrame({"the\nsize": SIZES, "city": ["Oslo", "Bergen"] * 20, "price": SIZES})
    path.write_text(before + frame.to_csv(index=False), encoding="utf-8")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = bq.read_table(path, target="price")
    assert [kind.name for kind in found.kinds] == ["the\nsize", "city"]
    assert found.data.y[:, 0].tolist() == SIZES.tolist()
    messages = " ".join(str(one.message) for one in caught)
    assert messages == "" if told is None else re.search(told, messages)


def test_new_rows_that_are_too_long_or_not_there_are_told(tmp_path: Path) -> None:
    columns = table(tmp_path, [str(size) for size in SIZES]).columns
    for cells, message in (("1,5,9\n", "2 names of columns, and 3 cells in row 1"), ("", "and no rows")):
        (tmp_path / "new.csv").write_text("size,price\n" + cells, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            columns.encode(*new_rows(tmp_path / "new.csv", columns, rows=10))
    for late, together, message in (
        ("1,5,9\n", 100, "no table with commas.* row 301 has more cells than the 2 names"),
        ("1,5,9,9\n", 250, "no table with commas.* line 302 has 4 cells, and there are 2 names|row 301 has more"),
    ):
        (tmp_path / "new.csv").write_text("size,price\n" + "1,2\n" * 300 + late, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            list(new_rows(tmp_path / "new.csv", columns, rows=together))
    (tmp_path / "new.csv").write_text("size,price\n" + "1,2,\n" * 300, encoding="utf-8")  # nothing beyond
    assert sum(len(rows) for rows in new_rows(tmp_path / "new.csv", columns, rows=100)) == 300


def test_what_is_no_table_is_told(tmp_path: Path) -> None:
    for text in ("<!DOCTYPE html>\n<html></html>", '[{"size": 1, "price": 2}]', '{"size": [1, 2]}'):
        (tmp_path / "it.csv").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match="is a web page, XML or JSON"):
            bq.read_table(tmp_path / "it.csv", target="price")


def test_rare_labels_labels_of_another_case_and_copies_are_told(tmp_path: Path) -> None:
    frame = pd.DataFrame({"size": SIZES, "sold": ["yes", "no"] * 20})
    frame.loc[[0, 2], "sold"] = ["Yes", "perhaps"]
    with pytest.warns(UserWarning, match=r"labels 'Yes' and 'yes' of 'sold' differ in upper and lower case alone"):
        found = bq.read_table(written(frame, tmp_path / "it.csv"), target="sold")
    with pytest.raises(ValueError, match=r"fewer have 'Yes' \(1\), 'perhaps' \(1\)"):
        found.split()
    copies = pd.concat([frame[5:]] * 2)
    with pytest.warns(UserWarning, match="35 of 70 rows are copies of an earlier one"):
        bq.read_table(written(copies, tmp_path / "it.csv"), target="sold")


def test_new_rows_may_be_written_otherwise_than_fitted_ones(tmp_path: Path) -> None:
    """Fitted in German with a unit; new rows in English, without it, which is told."""
    columns = table(tmp_path, [german(number) + " \u20ac" for number in SIZES], sep=";").columns
    assert columns.columns[0].said == "numbers in \u20ac"
    assert type(columns).from_record(columns.to_record()) == columns
    (tmp_path / "new.csv").write_text('size\n"1,234.50"\n5\n7 USD\n', encoding="utf-8")
    (frame,) = new_rows(tmp_path / "new.csv", columns, rows=10)
    notes = Notes()
    assert columns.encode(frame, notes=notes).x[:2, 0].tolist() == [1234.5, 5.0]
    assert notes.lines()[:2] == [
        "Column 'size': 2 rows without '\u20ac', which are taken to be in that unit (row 1, row 2).",
        "Column 'size': 1 row with no number, which count as missing (row 3: '7 USD').",
    ]
