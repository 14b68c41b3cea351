"""Files that earlier versions wrote are read by this one, and say the same."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from bayesuq.inference.catalogue import HOMES
from bayesuq.inference.posteriors.saved import load
from bayesuq.inference.training.checkpoint import Checkpoint
from tests.files_of_before.cases import CHECKPOINTS, NUMBERS, POSTERIORS, checkpoint_archive, numbers, posterior_file
from tests.inference.examples import SHORT_FIT

EXPECTED = json.loads(NUMBERS.read_text())
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", *SHORT_FIT)


def assert_says(found: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    for name in ("mean", "total"):
        one, other = (torch.tensor(values[name], dtype=torch.float64) for values in (found, expected))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_every_class_has_a_file() -> None:
    assert set(POSTERIORS) == set(HOMES)
    assert set(EXPECTED["posteriors"]) == set(POSTERIORS)
    assert set(EXPECTED["checkpoints"]) == set(CHECKPOINTS)


@pytest.mark.parametrize("name", POSTERIORS)
def test_a_posterior_of_before_predicts_what_it_did(name: str) -> None:
    case = POSTERIORS[name]
    posterior = load(posterior_file(name), **case.loads)
    assert type(posterior).__name__ == name
    assert_says(numbers(posterior, case.x), EXPECTED["posteriors"][name])


SEARCHED_OTHERWISE = ("temperature",)  # it asks at other points now, says so, and ends where it did


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_fit_that_was_stopped_before_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, writes = CHECKPOINTS[name], []
    with zipfile.ZipFile(checkpoint_archive(name)) as archive:
        for member in archive.namelist():
            with archive.open(member) as source, (tmp_path / member).open("wb") as target:
                shutil.copyfileobj(source, target)
    original = Checkpoint.save

    def counted(*arguments: object) -> None:
        writes.append(1)
        original(*arguments)

    monkeypatch.setattr(Checkpoint, "save", counted)
    monkeypatch.setattr("os.fsync", lambda _: None)
    posterior = case.fit(checkpoint=Checkpoint(tmp_path / "state", every_steps=1))
    if name not in SEARCHED_OTHERWISE:
        assert len(writes) < EXPECTED["checkpoints"][name]["writes"]  # else it began anew
    assert_says(numbers(posterior, case.x), EXPECTED["checkpoints"][name])
