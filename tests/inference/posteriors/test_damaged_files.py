"""Files that are not what was written: an error or the same numbers, soon and in little memory."""

import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.models import records
from bayesuq.models.gp import records as process_records
from bayesuq.models.records import BUILDERS
from bayesuq.storage import read, write
from tests.files_of_before.cases import CHECKPOINTS, POSTERIORS, posterior_file
from tests.inference.examples import SHORT_FIT
from tests.zoo.bounds import within_bytes, within_seconds
from tests.zoo.damaged_files import BOMBS, damaged, rewrite_greedily
from tests.zoo.other_fits import energies, hamiltonian, langevin, mode, model

pytestmark = [
    pytest.mark.usefixtures("_fast_files"),
    pytest.mark.filterwarnings("ignore:The checkpoint .* is of an earlier version", *SHORT_FIT),
]
CLASSES = ("MapPosterior", "EnsemblePosterior", "SampledGpPosterior", "ConfidencePosterior")
MOST_SECONDS, MOST_BYTES = 10.0, 2**30


@pytest.fixture
def _fast_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def within_bounds() -> Any:
    """A test has no more memory than it may have."""
    with within_bytes(MOST_BYTES):
        yield


def refused(path: Path, name: str = "MapPosterior") -> bool:
    """Whether `load` raises a ValueError; anything else is a failure, as is a long time."""
    try:
        with within_seconds(MOST_SECONDS):
            load(path, **POSTERIORS[name].loads)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.usefixtures("within_bounds")
def test_a_file_with_any_change_is_refused_or_says_the_same(name: str, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    load(posterior_file(name), **POSTERIORS[name].loads).save(whole)
    content, chance = whole.read_bytes(), random.Random(name)
    header, tensors = read(whole)
    for _ in range(60):
        part.write_bytes(damaged(content, chance))
        if not refused(part, name):
            again, others = read(part)  # in which nothing of what it says has changed
            assert again == header
            assert all(torch.equal(others[one].nan_to_num(), tensors[one].nan_to_num()) for one in tensors)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.usefixtures("within_bounds")
def test_a_header_that_asks_for_too_much_is_answered_soon(name: str, tmp_path: Path) -> None:
    chance, count = random.Random(name), 0
    for _ in range(25):
        rewrite_greedily(posterior_file(name), tmp_path / "part", chance)
        count += refused(tmp_path / "part", name)
    assert count > 12  # some of what is changed has no meaning


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.usefixtures("within_bounds")
def test_no_memory_is_asked_for_on_a_files_word(kind: str, tmp_path: Path) -> None:
    header, tensors = read(posterior_file("MapPosterior"))
    BOMBS[kind](header["model"]["net"])
    write(tmp_path / "bomb", header, tensors)
    with (
        within_seconds(MOST_SECONDS),
        pytest.raises(ValueError, match=r"larger than its weights|tensors differ|no network that can"),
    ):
        load(tmp_path / "bomb")


def deep_process(header: dict[str, Any]) -> None:
    net = {"net": "mlp", "arguments": {"in_features": 1, "hidden": [4], "out_features": 2}}
    header["process"]["kernel"] = {"part": "gp.Deep", "net": net, "kernel": {"part": "gp.RBF"}}


@pytest.mark.parametrize(("name", "change"), [("MapPosterior", None), ("ExactGpPosterior", deep_process)])
def test_a_files_network_is_first_built_without_memory(name, change, tmp_path, monkeypatch) -> None:
    header, tensors = read(posterior_file(name))
    if change is not None:
        change(header)
    write(tmp_path / "file", header, tensors)
    devices = []

    def mlp(**arguments: Any) -> nn.Module:
        devices.append(torch.get_default_device().type)
        return BUILDERS["mlp"](**arguments)

    with monkeypatch.context() as patched:
        patched.setattr(records, "BUILDERS", {**BUILDERS, "mlp": mlp})
        patched.setattr(process_records, "BUILDERS", {**BUILDERS, "mlp": mlp})
        with suppress(ValueError):  # the process in the file has no tensors of a kernel with a network
            load(tmp_path / "file")
    assert devices[0] == "meta"


def deep_kernel(header: dict[str, Any]) -> None:
    net = {"net": "mlp", "arguments": {"in_features": 3, "hidden": [4000, 4000], "out_features": 4000}}
    header["process"]["kernel"] = {"part": "gp.Deep", "net": net, "kernel": {"part": "gp.RBF"}}


def nested(header: dict[str, Any]) -> None:
    for _ in range(300):
        header["process"]["kernel"] = {"part": "gp.Scale", "kernel": header["process"]["kernel"]}


@pytest.mark.parametrize("change", [deep_kernel, nested], ids=["wide", "nested"])
@pytest.mark.usefixtures("within_bounds")
def test_processes_are_bounded_too(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    header, tensors = read(posterior_file("ExactGpPosterior"))
    change(header)
    write(tmp_path / "bomb", header, tensors)
    assert refused(tmp_path / "bomb") or change is nested


def test_a_likelihood_has_no_more_columns_than_its_network_can_have(tmp_path: Path) -> None:
    header, tensors = read(posterior_file("MapPosterior"))
    header["model"]["likelihood"] |= {"per_column": 10**9, "initial_scale": 1.0, "scale": "learned"}
    write(tmp_path / "part", header, tensors)
    with pytest.raises(ValueError, match="of 1000000000 columns, more than its network can have"):
        load(tmp_path / "part")


def test_members_take_a_time_that_is_linear_in_their_number(tmp_path: Path) -> None:
    header, tensors = read(posterior_file("EnsemblePosterior"))
    members = header["posterior"]["fields"]["members"]["members"]
    first = {name.removeprefix("members.0."): tensor for name, tensor in tensors.items() if "members.0." in name}
    for number in range(2, 1500):
        members.append(members[0])
        tensors |= {f"members.{number}.{name}": tensor for name, tensor in first.items()}
    write(tmp_path / "many", header, tensors)
    with within_seconds(MOST_SECONDS):
        assert len(load(tmp_path / "many").members) == 1500


def test_a_flipped_bit_of_a_checkpoint_is_told(tmp_path: Path) -> None:
    case = CHECKPOINTS["variational"]
    state = Checkpoint(tmp_path / "state", every_seconds=3600)
    case.fit(checkpoint=state)
    content, chance = bytearray(state.path.read_bytes()), random.Random(0)
    for _ in range(10):
        place, bit = chance.randrange(len(content) - 5_000, len(content)), 1 << chance.randrange(8)
        content[place] ^= bit
        state.path.write_bytes(content)
        with pytest.raises(ValueError, match="has changed since it was written"):
            case.fit(checkpoint=state)
        content[place] ^= bit


def test_a_checksum_is_known_by_its_place_where_its_name_is_damaged(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    write(whole, {"kind": "any"}, {"x": torch.zeros(2)})
    assert read(whole)[0] == {"kind": "any"}
    content = bytearray(whole.read_bytes())
    begin = content.index(b"sha256")
    for place in range(begin, begin + 6):
        for bit in range(8):
            content[place] ^= 1 << bit
            part.write_bytes(content)
            with pytest.raises(ValueError, match=r"has changed since|is not a complete file"):
                read(part)
            content[place] ^= 1 << bit


def test_a_file_of_before_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    with safe_open(posterior_file("MapPosterior"), framework="pt") as file:
        assert "sha256" not in json.loads(file.metadata()["bayesuq"])
    load(posterior_file("MapPosterior")).save(tmp_path / "new")
    with safe_open(tmp_path / "new", framework="pt") as file:
        header = json.loads(file.metadata()["bayesuq"])
    assert header["posterior"]["class"] == "MapPosterior"
    assert len(header["sha256"]) == 64


STATES = {
    "mode": (mode(), "current.weights"),
    "Langevin": (langevin(), "draws"),
    "Hamiltonian": (hamiltonian(), "draws"),
    "microcanonical": (energies(model()), "draws.positions"),
}
CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "not a number": lambda state: torch.full_like(state, torch.nan),
    "another width": lambda state: state[..., :1].clone(),
    "half precision": lambda state: state.half(),
    "whole numbers": lambda state: state.long(),
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_not_of_the_fit_is_refused(name: str, tmp_path: Path) -> None:
    """The file is whole and of the same fit; a copy would round, stretch or take what it holds without a word."""
    fit, key = STATES[name]
    fit(checkpoint=tmp_path / "state")
    path = next(path for path in tmp_path.iterdir() if key in read(path)[1])
    header, tensors = read(path)
    for what, change in CHANGES.items():
        changed = {**tensors, key: change(tensors[key])}
        write(path, header, {other: value for other, value in changed.items() if value is not None})
        with pytest.raises(ValueError, match="does not hold the state of such a fit"):
            pytest.fail(f"{what}: {fit(checkpoint=tmp_path / 'state')}")
