"""Fetching against a server on this machine: what arrives whole is kept, and of anything else nothing."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from bayesuq.datasets import fetching, sources
from bayesuq.datasets import named as datasets
from bayesuq.datasets.fetching import FetchError, digest, get
from tests.datasets.test_sources import INDICES, idx

FILES = [
    b"".join(b"%d %d %d\n" % (row, row + 1, 2 * row) for row in range(6)),
    *INDICES[:2],
    *(b"0\n1\n2\n3\n4\n", b"1\n2\n3\n4\n5\n", b"5\n", b"0\n"),
]


class Server(ThreadingHTTPServer):
    """Serves `files` by path, spoilt by `fault`, and counts the requests."""

    daemon_threads = True
    files: dict[str, bytes]
    fault: str
    requests: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        content = self.server.files.get(self.path)
        if content is None or self.server.fault == "error":
            self.send_error(404 if content is None else 503)
            return
        last = self.path == list(self.server.files)[-1]
        sent = content[:-1] if last and self.server.fault in ("partial", "cut") else content
        sent = b"<html>sorry</html>" if last and self.server.fault == "other" else sent
        self.send_response(200)
        self.send_header("Content-Length", str(len(sent if self.server.fault != "partial" else content)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *arguments: object) -> None:
        """Not on the terminal."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "RETRIES", 0)
    with Server(("127.0.0.1", 0), Handler) as served:
        served.files, served.fault, served.requests = {}, "", 0
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where data sets go; not there yet."""
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def made_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """`uci/yacht` with two splits of six rows, on our server."""
    server.files = {f"/{number}.txt": content for number, content in enumerate(FILES)}
    source = replace(
        sources.SOURCES["uci/yacht"],
        addresses=tuple(server.address + path for path in server.files),
        convert=lambda contents: sources.published_table(contents, num_splits=2),
        digest=digest(FILES),
    )
    monkeypatch.setitem(sources.SOURCES, "uci/yacht", source)
    return server


def everything(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() or path.name.startswith(".")]


@pytest.mark.usefixtures("made_up")
def test_a_fetched_set_is_the_one_that_load_reads(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = get("uci/yacht", progress=lambda done, total: seen.append((done, total)))
    assert path == folder / "uci" / "yacht.npz"
    assert seen == [(number, 7) for number in range(7)]
    assert "uci/yacht" in datasets.available()
    split = datasets.load("uci/yacht", split=1)
    assert split.test.x.tolist() == [[0.0, 0.0]]
    assert split.test.y.tolist() == [[1.0]]
    assert everything(folder) == [path]


@pytest.mark.usefixtures("made_up")
def test_without_a_named_folder_it_goes_where_load_looks_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BAYESUQ_DATA", raising=False)
    monkeypatch.setattr(datasets, "user_cache_path", lambda name, **_: tmp_path / name)
    assert get("uci/yacht") == tmp_path / "bayesuq" / "uci" / "yacht.npz"
    assert len(datasets.load("uci/yacht").test) == 1


@pytest.mark.usefixtures("folder")
def test_images_arrive_from_idx_files(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)
    parts = [noise.integers(0, 256, (5002, 4, 4)), noise.integers(0, 10, 5002)]
    parts += [noise.integers(0, 256, (3, 4, 4)), noise.integers(0, 10, 3)]
    files = [idx(part) for part in parts]
    server.files = {f"/{name}.gz": content for name, content in zip(sources.IDX_FILES, files, strict=True)}
    monkeypatch.setitem(
        sources.SOURCES,
        "mnist",
        replace(
            sources.SOURCES["mnist"],
            addresses=tuple(server.address + path for path in server.files),
            hashes=(),
            digest=digest(files),
        ),
    )
    get("mnist")
    split = datasets.load("mnist")
    assert (split.test.x.squeeze(1) * 255).round().tolist() == parts[2].tolist()
    assert split.train.y.tolist() == parts[1][:2].tolist()


@pytest.mark.usefixtures("folder")
def test_what_is_there_is_fetched_again_on_request_only(made_up: Server) -> None:
    path = get("uci/yacht")
    path.write_text("mine")
    get("uci/yacht")
    assert made_up.requests == 7
    assert path.read_text() == "mine"
    get("uci/yacht", overwrite=True)
    assert made_up.requests == 14
    assert len(datasets.load("uci/yacht").test) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("error", "uci/yacht cannot be fetched: 503 Server Error"),
        ("partial", "uci/yacht cannot be fetched: .*IncompleteRead"),
        ("cut", "not what they should be: together they have the checksum [0-9a-f]{64}, not"),
        ("other", "not what they should be"),
    ],
)
def test_a_fault_leaves_nothing_behind_and_an_older_file_as_it_was(
    made_up: Server, folder: Path, fault: str, message: str
) -> None:
    made_up.fault = fault
    with pytest.raises(FetchError, match=message):
        get("uci/yacht")
    assert everything(folder) == []
    path = folder / "uci" / "yacht.npz"
    path.write_text("older")
    with pytest.raises(FetchError):
        get("uci/yacht", overwrite=True)
    assert everything(folder) == [path]
    assert path.read_text() == "older"


def test_a_file_with_another_checksum_of_its_own_is_named(
    made_up: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = replace(sources.SOURCES["uci/yacht"], hashes=("md5:" + "0" * 32,) * 7)
    monkeypatch.setitem(sources.SOURCES, "uci/yacht", source)
    with pytest.raises(FetchError, match=f"{made_up.address}/0.txt is not the file that it should be: .*hash"):
        get("uci/yacht")
    assert everything(folder) == []


def test_a_missing_file_and_an_absent_server_are_told(made_up: Server, folder: Path) -> None:
    made_up.files.pop("/3.txt")
    with pytest.raises(FetchError, match=r"404 .*/3\.txt"):
        get("uci/yacht")
    made_up.shutdown()
    made_up.server_close()
    with pytest.raises(FetchError, match=r"uci/yacht cannot be fetched: .*refused"):
        get("uci/yacht")
    assert everything(folder) == []


@pytest.mark.usefixtures("folder")
def test_a_passing_fault_is_tried_again(made_up: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "RETRIES", 1)
    monkeypatch.setattr("time.sleep", lambda _seconds: setattr(made_up, "fault", ""))
    made_up.fault = "error"
    assert get("uci/yacht").is_file()
    assert made_up.requests == 8


@pytest.mark.usefixtures("made_up")
def test_verified_files_of_another_form_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = replace(sources.SOURCES["uci/yacht"], convert=sources.idx_images)
    monkeypatch.setitem(sources.SOURCES, "uci/yacht", source)
    with pytest.raises(FetchError, match="not what they were when bayesuq was written"):
        get("uci/yacht")
    assert everything(folder) == []


@pytest.mark.parametrize("name", ["uci/yaht", "../uci/yacht", "/etc/passwd", "", "uci/../../x"])
def test_unknown_names_get_the_nearest_and_touch_nothing(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"There is no source for .*mnist"):
        get(name)
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_fetched(made_up: Server, folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="data"):
        get("uci/yacht")
    assert made_up.requests == 0
