import csv
import importlib
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bayesuq import inference
from bayesuq.data import Dataset
from bayesuq.inference import callbacks, ensemble, map_estimate
from bayesuq.inference.callbacks import CSVLogger, MLflowLogger, TensorBoardLogger, WandbLogger
from bayesuq.inference.callbacks.trackers import Fits
from bayesuq.inference.training.options import Progress
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors

DATA = Dataset([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0])


def line() -> BayesianNetwork:
    return BayesianNetwork(networks.mlp(1, (4,), 1), priors.Normal(), likelihoods.Normal(scale=0.1))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_csv_file_holds_the_history_of_the_fit(tmp_path: Path) -> None:
    log = CSVLogger(tmp_path / "history.csv")
    posterior = map_estimate.fit(line(), DATA, num_epochs=3, batch_size=2, validation=DATA, seed=0, callbacks=[log])
    written = rows(tmp_path / "history.csv")
    assert [float(row["loss"]) for row in written] == list(posterior.history.loss)
    assert [float(row["validation_loss"]) for row in written] == list(posterior.history.validation_loss)
    assert [(row["fit"], row["epoch"], row["step"]) for row in written] == [
        ("0", "0", "2"),
        ("0", "1", "4"),
        ("0", "2", "6"),
    ]


def test_a_fit_that_goes_on_from_a_file_is_the_first(tmp_path: Path) -> None:
    log, fits = CSVLogger(tmp_path / "history.csv"), Fits()
    epochs = [Progress(epoch, 4 * epoch, 1.5, None, 0.25) for epoch in (3, 4, 0, 1)]
    for one in epochs:
        log(one)
    assert [row["fit"] for row in rows(tmp_path / "history.csv")] == ["0", "0", "1", "1"]
    assert [min(fits.metrics(one)) for one in epochs] == ["loss", "loss", "fit-1/loss", "fit-1/loss"]


def test_the_csv_file_can_be_read_while_the_fit_runs(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    seen: list[int] = []
    map_estimate.fit(line(), DATA, num_epochs=3, callbacks=[CSVLogger(path), lambda _: seen.append(len(rows(path)))])
    assert seen == [1, 2, 3]
    assert rows(path)[0]["validation_loss"] == ""


def test_the_fits_of_an_ensemble_are_told_apart(tmp_path: Path) -> None:
    path, folder = tmp_path / "history.csv", tmp_path / "board"
    with TensorBoardLogger(folder) as board:
        posterior = ensemble.fit(
            line(), DATA, num_members=2, num_epochs=2, validation=DATA, callbacks=[CSVLogger(path), board]
        )
    assert [(row["fit"], row["epoch"]) for row in rows(path)] == [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")]
    for number, member in enumerate(posterior.members):
        for name, expected in (
            ("loss", member.history.loss),
            ("validation_loss", member.history.validation_loss),
        ):
            steps, values = zip(*scalars(folder / f"fit-{number}", name), strict=True)
            assert steps == (1, 2)
            assert values == pytest.approx(expected)  # TensorBoard keeps float32


def test_tensorboard_files_can_be_read_while_the_fit_runs_and_hold_no_validation_that_was_not_made(
    tmp_path: Path,
) -> None:
    board = TensorBoardLogger(tmp_path)
    for epoch in range(2):
        board(Progress(epoch, epoch + 1, 0.5, None, 0.1))
        assert scalars(tmp_path / "fit-0", "loss") == [(step + 1, 0.5) for step in range(epoch + 1)]
    events = EventAccumulator(str(tmp_path / "fit-0"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss", "seconds"]
    board.close()
    board.close()


def test_an_older_csv_file_is_replaced_on_request_only(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("precious")
    with pytest.raises(FileExistsError):
        CSVLogger(path)
    assert path.read_text() == "precious"
    CSVLogger(path, overwrite=True)
    assert path.read_text().startswith("fit,epoch")


def test_a_missing_folder_is_an_error_before_the_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        CSVLogger(tmp_path / "missing" / "history.csv")


def test_the_csv_logger_needs_no_tensorboard_and_the_other_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if "tensorboard" in name or name == callbacks.__name__]:
        monkeypatch.delitem(sys.modules, name)  # as in a new process
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr(inference, "callbacks", callbacks)  # the import below sets it
    fresh = importlib.import_module(callbacks.__name__)
    assert fresh is not callbacks
    assert fresh.CSVLogger
    with pytest.raises(ImportError, match=r"pip install 'bayesuq\[tensorboard\]'"):
        _ = fresh.TensorBoardLogger


class Tracker:
    """What both trackers are asked for: numbers by name, each with its step."""

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self.abscissas: dict[str, str] = {}

    def log_metric(self, run_id: str, key: str, value: float, *, step: int) -> None:
        assert run_id == "run"
        self.curves[key].append((step, value))

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self.abscissas[name] = step_metric

    def log(self, data: dict[str, float]) -> None:
        for name, value in data.items():
            if name in self.abscissas:
                self.curves[name].append((data[self.abscissas[name]], value))


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_trackers_get_every_curve_of_every_member(kind: str) -> None:
    tracker = Tracker()
    log = MLflowLogger(tracker, "run") if kind == "mlflow" else WandbLogger(tracker)
    posterior = ensemble.fit(line(), DATA, num_members=2, num_epochs=2, validation=DATA, callbacks=[log])
    for prefix, member in zip(("", "fit-1/"), posterior.members, strict=True):
        assert tracker.curves[f"{prefix}loss"] == list(enumerate(member.history.loss, start=1))
        assert tracker.curves[f"{prefix}validation_loss"] == list(enumerate(member.history.validation_loss, start=1))
    assert len(tracker.curves) == 6


def test_mlflow_itself_keeps_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs MLflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=tmp_path.as_uri())
    run = client.create_run(client.create_experiment("fits")).info.run_id
    posterior = ensemble.fit(line(), DATA, num_members=2, num_epochs=2, callbacks=[MLflowLogger(client, run)])
    for name, member in zip(("loss", "fit-1/loss"), posterior.members, strict=True):
        kept = [(metric.step, metric.value) for metric in client.get_metric_history(run, name)]
        assert kept == list(enumerate(member.history.loss, start=1))


def test_weights_and_biases_itself_keeps_the_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs Weights & Biases")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with wandb.init(mode="offline", dir=tmp_path, project="fits") as run:
        posterior = ensemble.fit(line(), DATA, num_members=2, num_epochs=2, callbacks=[WandbLogger(run)])
        for prefix, member in zip(("", "fit-1/"), posterior.members, strict=True):
            assert (run.summary[f"{prefix}loss"], run.summary[f"{prefix}step"]) == (member.history.loss[-1], 2)
