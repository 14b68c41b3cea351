"""A file is written whole or not at all, and what is no such file is refused."""

import json
import math
import os
import signal
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bayesuq.storage import read, write
from bayesuq.writing import HOST

HEADER = {"format": 1, "nested": {"names": ["a", "b"], "value": 0.1, "nothing": None, "text": "é"}}
TENSORS = {
    "weights": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "buffers.count": torch.tensor(7),
    "double": torch.tensor([1e-300, math.inf, math.nan], dtype=torch.float64),
    "flags": torch.tensor([True, False]),
    "empty": torch.empty(0, 3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "posterior.safetensors"


def assert_holds(path: Path, header: dict, tensors: dict[str, torch.Tensor]) -> None:
    found_header, found = read(path)
    assert found_header == header
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].nan_to_num(), tensor.nan_to_num())


@pytest.mark.parametrize("form", [Path, str])
def test_header_and_tensors_come_back_to_the_bit(path, form):
    write(form(path), HEADER, TENSORS)
    assert_holds(path, HEADER, TENSORS)


def test_views_shared_memory_and_gradients_are_written_by_value(path):
    whole = torch.arange(12.0).reshape(3, 4)
    write(path, {}, {"column": whole[:, 1], "again": whole[:, 1], "rows": whole[1:], "leaf": torch.nn.Parameter(whole)})
    assert_holds(path, {}, {"column": whole[:, 1], "again": whole[:, 1], "rows": whole[1:], "leaf": whole})


def test_a_newer_file_replaces_an_older_one(path):
    write(path, {"number": 1}, TENSORS)
    write(path, {"number": 2}, {})
    assert_holds(path, {"number": 2}, {})
    assert os.listdir(path.parent) == [path.name]


def test_a_loaded_tensor_outlives_the_file_that_is_written_over_it(path):
    write(path, {}, {"a": torch.ones(100_000)})
    loaded = read(path)[1]["a"]
    write(path, {}, {"a": torch.zeros(100_000)})
    assert bool((loaded == 1).all())
    path.unlink()
    assert bool((loaded == 1).all())


def test_the_file_has_the_permissions_of_any_new_file(path):
    other = path.with_name("other")
    other.touch()
    write(path, {}, TENSORS)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


class Stopped(BaseException):
    """What ends a process in the midst of its work."""


def stop(*_args: object, **_kwargs: object) -> None:
    raise Stopped


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize(("owner", "step"), [(os, "fsync"), (Path, "replace")])
def test_an_interrupted_write_leaves_the_old_file_and_no_other(path, monkeypatch, owner, step, exists):
    if exists:
        write(path, HEADER, TENSORS)
    before = path.read_bytes() if exists else None
    monkeypatch.setattr(owner, step, stop)
    with pytest.raises(Stopped):
        write(path, {"number": 2}, {"a": torch.ones(1000)})
    assert os.listdir(path.parent) == ([path.name] if exists else [])
    if exists:
        assert path.read_bytes() == before


def test_a_full_disk_leaves_the_old_file_and_no_other(path, monkeypatch):
    write(path, HEADER, TENSORS)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(path, {}, {})
    assert_holds(path, HEADER, TENSORS)
    assert os.listdir(path.parent) == [path.name]


def test_the_file_is_synced_before_it_takes_the_name_and_the_folder_after(path, monkeypatch):
    order = []
    sync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: order.append("fsync") or sync(descriptor))
    monkeypatch.setattr(Path, "replace", lambda one, other: order.append("replace") or replace(one, other))
    write(path, HEADER, TENSORS)
    assert order == ["fsync", "replace", "fsync"]


def test_a_header_that_is_no_json_is_refused_before_anything_is_written(path):
    with pytest.raises(TypeError):
        write(path, {"a": object()}, {})
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("folder", ["missing", "file", "/proc"])
def test_a_folder_that_cannot_be_written_is_an_oserror(tmp_path, folder):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"."):
        write(tmp_path / folder / "posterior", HEADER, TENSORS)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_an_oserror(path):
    path.parent.chmod(0o500)
    with pytest.raises(PermissionError):
        write(path, HEADER, TENSORS)
    path.parent.chmod(0o700)


def test_a_folder_in_the_place_of_the_file_is_an_oserror_and_stays(path):
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write(path, HEADER, TENSORS)
    assert os.listdir(path.parent) == [path.name]
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read(path)


def test_a_folder_that_is_missing_is_named_and_not_the_temporary_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no folder '{tmp_path / 'missing'}' for the file 'posterior'; make"):
        write(tmp_path / "missing" / "posterior", HEADER, TENSORS)


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=str(path)):
        read(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    write(path, HEADER, TENSORS | {"large": torch.ones(1000)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not a complete file written by"):
        read(path)


def test_bytes_too_many_are_refused(path):
    write(path, HEADER, TENSORS)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(ValueError, match="not a complete file"):
        read(path)


@pytest.mark.parametrize(
    "content", [b"garbage", bytes(8), b"\xff" * 100, b"\x80\x05K\x01.", b'{"a": 1}', bytes(range(256))]
)
def test_garbage_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a complete file"):
        read(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"other": "x"},
        {"bayesuq": "no json"},
        {"bayesuq": "[1]"},
        {"bayesuq": "3"},
        {"bayesuq": "null"},
        {"bayesuq": "[" * 100_000},
    ],
    ids=["none", "other", "text", "list", "number", "null", "deep"],
)
def test_a_foreign_safetensors_file_is_refused(path, metadata):
    save_file({"a": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="not a complete file"):
        read(path)


def test_any_safetensors_reader_opens_the_file(path):
    write(path, HEADER, TENSORS)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    head = json.loads(path.read_bytes()[8 : 8 + length])
    header = json.loads(head["__metadata__"]["bayesuq"])
    assert header.pop("sha256")
    assert header == HEADER
    assert set(head) == {"__metadata__", *TENSORS}


def test_the_same_content_makes_the_same_file(path):
    write(path, HEADER, TENSORS)
    first = path.read_bytes()
    for _ in range(8):
        write(path, HEADER, TENSORS)
        assert path.read_bytes() == first


def test_one_number_of_a_wider_tensor_is_written(path):
    write(path, HEADER, {"one": torch.arange(10.0).double().view(2, 5)[:1, 2]})
    assert read(path)[1]["one"].tolist() == [2.0]


def test_a_link_stays_one_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    real, link = tmp_path / "there" / "file", tmp_path / "link"
    write(real, {"number": 1}, {})
    link.symlink_to(real)
    write(link, {"number": 2}, TENSORS)
    assert link.is_symlink()
    assert_holds(real, {"number": 2}, TENSORS)
    assert os.listdir(tmp_path / "there") == ["file"]
    (tmp_path / "new").symlink_to(tmp_path / "there" / "other")  # which is not there yet
    write(tmp_path / "new", {"number": 3}, {})
    assert_holds(tmp_path / "there" / "other", {"number": 3}, {})


def test_what_a_killed_writer_left_behind_is_taken_away_by_the_next(path):
    child = os.fork()
    if child == 0:
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write(path, HEADER, TENSORS)
    os.waitpid(child, 0)
    assert len(os.listdir(path.parent)) == 1  # the temporary file
    alive = path.with_name(f".{path.name}.{HOST}-{os.getpid()}-01234567")  # of a writer at work
    foreign = path.with_name(f".{path.name}.00000000-{child}-01234567")  # of another machine's
    for other in (alive, foreign):
        other.touch()
    write(path, HEADER, TENSORS)
    assert set(os.listdir(path.parent)) == {path.name, alive.name, foreign.name}


@pytest.mark.parametrize("bits", [1, 3])
def test_changed_bits_are_told(path, bits):
    write(path, HEADER, TENSORS | {"large": torch.ones(1000)})
    content = bytearray(path.read_bytes())
    for number in range(bits):
        content[-7 - 500 * number] ^= 1 << number
    path.write_bytes(content)
    with pytest.raises(ValueError, match="has changed since it was written: its checksum is another"):
        read(path)


def test_a_header_of_too_many_parts_is_refused(path):
    save_file({"a": torch.zeros(2)}, path, metadata={"bayesuq": "{" + '"a": [' + "[]," * 1_100_000 + "[]]}"})
    with pytest.raises(ValueError, match="larger than that of any file of ours"):
        read(path)
