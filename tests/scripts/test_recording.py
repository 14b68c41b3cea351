"""Lines of results: whole or not there, and never lost."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from scripts.recording import Records, digest, versions

ROOT = Path(__file__).parents[2]


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = Records(tmp_path / "new" / "folder" / "runs.jsonl")
    assert records.read() == []
    records.append({"split": 0, "rmse": 0.1}, {"split": 1, "rmse": 1e-17})
    records.append({"split": 2, "rmse": None})
    assert records.read() == [{"split": 0, "rmse": 0.1}, {"split": 1, "rmse": 1e-17}, {"split": 2, "rmse": None}]
    assert records.has(split=1)
    assert records.has(split=1, rmse=1e-17)
    assert not records.has(split=1, rmse=0.1)
    assert not records.has(split=1, seed=0)


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_line_that_was_cut_is_no_record_and_is_replaced(tmp_path: Path, cut: int) -> None:
    records = Records(tmp_path / "runs.jsonl")
    records.append({"split": 0, "name": "ä"})
    records.append({"split": 1, "name": "ö"})
    content = records.path.read_bytes()
    records.path.write_bytes(content[:-cut])
    assert [record["split"] for record in records.read()] == [0]
    records.append({"split": 1, "name": "ö"})
    assert records.path.read_bytes() == content


def test_a_kill_leaves_lines_that_can_be_added_to(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    program = f"""
from scripts.recording import Records
records = Records({str(path)!r})
for number in range(10**9):
    records.append({{"number": number, "text": "x" * 100}})
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    while not path.exists() or path.stat().st_size < 2000:
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = Records(path).read()
    assert [record["number"] for record in before] == list(range(len(before)))
    Records(path).append({"number": len(before)})
    assert Records(path).read() == [*before, {"number": len(before)}]


def test_a_broken_line_in_the_middle_is_an_error_not_a_loss(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"split": 0}\n{"split": \n{"split": 2}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"Line 2 of .*runs.jsonl is no JSON"):
        Records(path).read()
    path.write_text("3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Line 1 of .* must be a JSON object; got '3'"):
        Records(path).read()


def test_numbers_that_json_does_not_have_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    records = Records(tmp_path / "runs.jsonl")
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="JSON"):
            records.append({"log_likelihood": value})
    assert records.read() == []


def test_a_digest_depends_on_values_not_on_their_order() -> None:
    assert digest({"a": 1, "b": 0.5}) == digest({"b": 0.5, "a": 1})
    assert digest({"a": 1, "b": 0.5}) != digest({"a": 1, "b": 0.25})


def test_an_option_at_its_default_does_not_rename_old_results() -> None:
    @dataclass(frozen=True)
    class Old:
        rate: float = 0.1

    @dataclass(frozen=True)
    class New:
        rate: float = 0.1
        draws: int = 1

    assert digest(Old(0.5)) == digest(New(0.5)) == digest({"rate": 0.5})
    assert digest(New(0.5, 2)) != digest(New(0.5))


def test_versions_are_those_of_the_packages_without_their_build() -> None:
    found = versions()
    assert {"bayesuq", "torch", "pyro-ppl", "numpy"} == found.keys()
    assert "+" not in json.dumps(found)
