"""`--checkpoint`: a command that was stopped, and is called again, ends with the bits of one that was not."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bayesuq.cli.judging import Judged
from bayesuq.cli.main import main
from bayesuq.cli.settings import METHODS
from bayesuq.evaluation.report.reporting import Report
from bayesuq.inference.training.checkpoint import Checkpoint
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.cli.rendering import not_drawn
from tests.inference.examples import SHORT_FIT

__all__ = ["not_drawn"]  # a fixture
pytestmark = [pytest.mark.filterwarnings(*SHORT_FIT), pytest.mark.usefixtures("not_drawn")]

SHORT = ["--num_epochs", "2", "--hidden", "4", "--num_members", "2", "--num_samples", "3"]
CHAINS = ["--num_chains", "2", "--num_warmup", "6", "--num_draws", "3"]
LABELS = ["--data", "digits-0to8", "--batch_size", "512"]  # three steps an epoch
NUMBERS = ["--data", "toy/linear", *CHAINS]

# Of each method: its data, and after how many writes it is stopped.
CASES = {
    "map": (LABELS, 3),
    "variational": (LABELS, 4),
    "ivon": (LABELS, 4),
    "dropout": (LABELS, 5),
    "laplace": (LABELS, 3),
    "swag": (LABELS, 8),
    "sgmcmc": (NUMBERS, 7),
    "hmc": (NUMBERS, 7),
    "microcanonical": (NUMBERS, 7),
    "gp": (NUMBERS, 5),
    "ensemble": (LABELS, 6),
    "temperature": (LABELS, 12),
    "quantile_calibration": (NUMBERS, 2),
    "confidence": (LABELS, 20),
}


@pytest.fixture(autouse=True)
def _not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks at the reports of fits here."""
    nothing = Judged(GaussianPredictive(mean=[[[0.0]]], noise_variance=1.0), torch.zeros(1, 1), None, Report((), 1, 1))
    monkeypatch.setattr("bayesuq.cli.fitting.judge_fit", lambda *_: nothing)


def interrupt() -> None:
    raise KeyboardInterrupt


@dataclass
class Writer:
    """Checkpoints are written at every step: to which files, and after how many more the process is interrupted."""

    written: list[str] = field(default_factory=list)
    stops_after: int | None = None
    stop: Callable[[], None] = interrupt

    def note(self, name: str) -> None:
        self.written.append(name)
        if self.stops_after is None:
            return
        self.stops_after -= 1
        if self.stops_after <= 0:
            self.written, self.stops_after = [], None
            self.stop()


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    noted, save = Writer(), Checkpoint.save

    def saved(self: Checkpoint, *what: Any) -> None:
        save(self, *what)
        noted.note(self.path.name)

    monkeypatch.setattr("bayesuq.cli.methods.CHECKPOINT_SECONDS", 1e-9)
    monkeypatch.setattr(Checkpoint, "save", saved)
    return noted


def test_every_method_is_stopped() -> None:
    assert set(CASES) == set(METHODS)


@pytest.mark.parametrize("method", CASES)
def test_a_stopped_fit_is_saved_with_the_same_bits(method: str, tmp_path: Path, writer: Writer) -> None:
    data, moment = CASES[method]
    command = ["fit", "--method", method, *data, *SHORT]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    command += ["--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "state")]
    writer.stops_after = moment
    assert main(command) == 130
    assert not (tmp_path / "run" / "posterior.safetensors").exists()
    assert main(command) == 0  # the same, without --overwrite
    whole, resumed = (tmp_path / name / "posterior.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == resumed.read_bytes()
    assert main(command) == 2  # now there are results


def test_a_comparison_goes_on_without_having_been_told_where_to_write(tmp_path: Path, writer: Writer, capsys) -> None:
    command = ["compare", "--methods", "map,swag", *LABELS, *SHORT, "--out", str(tmp_path / "run")]
    writer.stops_after = 12
    assert main(command) == 130
    assert sorted(path.name for path in (tmp_path / "run" / "under_way").iterdir()) == ["map", "swag", "swag.mode"]
    assert main([*command, "--seed", "7"]) == 2
    assert "holds a run that was stopped, of other options" in capsys.readouterr().err
    assert main(command) == 0
    assert "map" not in writer.written  # it was finished, and is read
    assert not (tmp_path / "run" / "under_way").exists()
    assert main([*command[:-1], str(tmp_path / "whole")]) == 0
    for method in ("map", "swag"):
        whole, resumed = (tmp_path / run / "posteriors" / f"{method}.safetensors" for run in ("whole", "run"))
        assert whole.read_bytes() == resumed.read_bytes()
    writer.stops_after = 3
    assert main([*command, "--overwrite"]) == 130
    writer.written = []
    assert main([*command, "--overwrite"]) == 0
    assert "map" in writer.written  # begun anew


def test_a_command_that_is_terminated_writes_what_it_knows_and_says_so(tmp_path: Path, writer: Writer, capsys) -> None:
    data, moment = CASES["variational"]
    command = ["fit", "--method", "variational", *data, *SHORT]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    command += ["--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "state")]
    before = signal.getsignal(signal.SIGTERM)
    writer.stops_after, writer.stop = moment, lambda: os.kill(os.getpid(), signal.SIGTERM)
    assert main(command) == 143
    assert "Terminated." in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["variational"]
    assert main(command) == 0
    whole, resumed = (tmp_path / name / "posterior.safetensors" for name in ("whole", "run"))
    assert whole.read_bytes() == resumed.read_bytes()


def test_a_stopped_comparison_goes_on_in_the_method_that_it_was_in(tmp_path: Path, writer: Writer) -> None:
    command = ["compare", "--methods", "temperature,map,ensemble", *LABELS, *SHORT]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    command += ["--out", str(tmp_path / "run"), "--checkpoint", str(tmp_path / "run" / "state")]
    writer.stops_after = 12
    assert main(command) == 130
    assert [path.name for path in (tmp_path / "run" / "posteriors").iterdir()] == ["map.safetensors"]
    assert main(command) == 0
    assert writer.written.count("map") <= 1  # it was finished
    assert 0 < writer.written.count("ensemble-map.members") < 6  # of six steps
    files = sorted(path.name for path in (tmp_path / "run" / "posteriors").iterdir())
    assert files == ["ensemble.safetensors", "map.safetensors", "temperature.safetensors"]
    for name in files:
        whole, resumed = (tmp_path / run / "posteriors" / name for run in ("whole", "run"))
        assert whole.read_bytes() == resumed.read_bytes()


def test_other_options_do_not_go_on_from_it_and_the_settings_do_not_name_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["fit", "--method", "map", *LABELS, *SHORT, "--checkpoint", str(tmp_path / "state")]
    assert main([*command, "--out", str(tmp_path / "one")]) == 0
    assert "checkpoint" not in yaml.safe_load((tmp_path / "one" / "settings.yaml").read_text())
    capsys.readouterr()
    assert main([*command, "--seed", "1", "--out", str(tmp_path / "other")]) == 1
    assert "belongs to another fit: its seed is 0, this one's 1" in capsys.readouterr().err


def test_a_file_is_no_folder_of_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").touch()
    command = ["fit", "--method", "map", *LABELS, *SHORT, "--checkpoint", str(tmp_path / "state")]
    assert main([*command, "--out", str(tmp_path / "one")]) == 2
    assert "--checkpoint is a folder, with a file for each fit" in capsys.readouterr().err
