"""The commands from end to end: what they write is what was asked for, and the exit code tells how it went."""

import json
import math
import os
import shutil
import sys
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import yaml

import bayesuq as bq
from bayesuq import datasets
from bayesuq.cli import data_sets
from bayesuq.cli.main import main
from bayesuq.cli.problem import read_standardizer
from bayesuq.datasets.fetching import FetchError
from bayesuq.evaluation import scores
from tests.cli.rendering import not_rendered

__all__ = ["not_rendered"]  # a fixture
pytestmark = pytest.mark.usefixtures("not_rendered")
SHORT = ["--num_epochs", "2", "--hidden", "8", "--num_members", "2", "--num_samples", "4"]


def fit(out: Path, *arguments: str, data: str = "digits-0to8", method: str = "map") -> int:
    return main(["fit", "--data", data, "--method", method, "--out", str(out), *SHORT, *arguments])


def evaluate(out: Path, posterior: Path, *arguments: str, data: str = "digits-0to8") -> int:
    return main(
        ["evaluate", "--posterior", str(posterior), "--data", data, "--out", str(out), "--num_samples", "4", *arguments]
    )


def report(folder: Path, name: str = "report.json") -> dict[str, float]:
    """The values of a written report by measure."""
    content = json.loads((folder / name).read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return {measure["name"]: measure["value"] for measure in content["measures"]}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def uci(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A set of 40 rows with two splits, y = 500 + 100 (x1 - x2) + noise of scale 20, in the folder of data."""
    noise = np.random.default_rng(0)
    x = noise.normal(3, 10, (40, 2))
    order = np.stack([noise.permutation(40) for _ in range(2)])
    folder = tmp_path / "data" / "uci"
    folder.mkdir(parents=True)
    np.savez(
        folder / "made.npz",
        x=x,
        y=500 + 100 * (x[:, 0] - x[:, 1]) + 20 * noise.normal(size=40),
        train_index=order[:, :30],
        test_index=order[:, 30:],
    )
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path / "data"))
    return "uci/made"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["map", "variational", "temperature:ensemble", "ensemble:dropout"])
def test_a_saved_posterior_is_evaluated_as_it_was_when_fitted(tmp_path: Path, method: str) -> None:
    assert fit(tmp_path / "fit", method=method) == 0
    assert names(tmp_path / "fit") == ["posterior.safetensors", "report.json", "run.json", "settings.yaml"]
    assert evaluate(tmp_path / "again", tmp_path / "fit" / "posterior.safetensors") == 0
    found, quality = report(tmp_path / "fit"), {"elbo_rise", "scale_movement", "pareto_k"}
    assert report(tmp_path / "again") == {name: value for name, value in found.items() if name not in quality}
    assert quality.isdisjoint(found) == (method != "variational")


@pytest.mark.parametrize("arguments", [["--clip", "2.5"], ["--split", "1", "--likelihood", "heteroscedastic"]])
def test_real_targets_are_evaluated_in_their_own_units(tmp_path: Path, uci: str, arguments: list[str]) -> None:
    more = ["--num_epochs", "150", "--batch_size", "30", "--learning_rate", "0.05"]
    assert fit(tmp_path / "fit", *arguments, *more, data=uci, method="ensemble") == 0
    assert "standardizer.safetensors" in names(tmp_path / "fit")
    split_of = arguments[:2] if "--split" in arguments else []
    assert evaluate(tmp_path / "again", tmp_path / "fit" / "posterior.safetensors", *split_of, data=uci) == 0
    found = report(tmp_path / "again")
    assert found == report(tmp_path / "fit")

    # By hand: the posterior works in standard units, so a log density in units of y is smaller by log of y's scale.
    split = datasets.load(uci, split=int(split_of[1]) if split_of else None)
    standardizer = read_standardizer(tmp_path / "fit")
    assert standardizer is not None
    test = standardizer.transform(split.test)
    predictive = bq.load(tmp_path / "fit" / "posterior.safetensors").predict(test.x, num_samples=4, seed=0)
    scale = float(split.train.y.std(correction=0))
    loss = float(scores.negative_log_likelihood(predictive, test.y)) + math.log(scale)
    assert found["negative_log_likelihood"] == pytest.approx(loss, abs=1e-5)
    error = float((predictive.mean - test.y).square().mean().sqrt())
    assert found["root_mean_squared_error"] == pytest.approx(error * scale, rel=1e-5)
    assert found["root_mean_squared_error"] < 0.2 * scale  # it has learned something
    assert standardizer.clip == (2.5 if "--clip" in arguments else None)


def test_a_run_that_has_lost_its_units_is_not_measured_in_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "fit"
    assert fit(run, "--num_epochs", "1", data="toy/linear") == 0
    (run / "standardizer.safetensors").unlink()
    capsys.readouterr()
    assert evaluate(tmp_path / "again", run, data="toy/linear") == 2
    assert main(["diagnose", str(run)]) == 2
    assert capsys.readouterr().err.count("standardizer.safetensors holds, and that is not there") == 2
    assert not (tmp_path / "again").exists()
    alone = shutil.copy(run / "posterior.safetensors", tmp_path / "alone.safetensors")
    assert evaluate(tmp_path / "again", Path(alone), data="toy/linear") == 0  # of which nothing says how it was fitted
    assert "in the posterior's units: no standardizer is there" in capsys.readouterr().out


def test_a_linear_model_finds_the_line_and_its_noise(tmp_path: Path) -> None:
    # y = 1 + 2 x + N(0, 0.5^2): the best RMSE is 0.5, the best log score that of the noise.
    options = ["--hidden", "", "--num_epochs", "300", "--learning_rate", "0.03", "--prior_scale", "10"]
    assert fit(tmp_path / "fit", *options, data="toy/linear") == 0
    found = report(tmp_path / "fit")
    settings = str(tmp_path / "fit" / "settings.yaml")
    assert main(["fit", "--config", settings, "--out", str(tmp_path / "again")]) == 0  # no hidden layer is kept, too
    assert report(tmp_path / "again") == found
    # 1,000 test rows: standard errors 0.5 / sqrt(2000) and sqrt(1 / 2000); as much again for 100 training rows.
    assert found["root_mean_squared_error"] == pytest.approx(0.5, abs=0.05)
    assert found["negative_log_likelihood"] == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25), abs=0.1)


def test_the_written_settings_repeat_the_run(tmp_path: Path) -> None:
    assert fit(tmp_path / "fit", "--seed", "5", "--dropout", "0.4", method="dropout") == 0
    written = tmp_path / "fit" / "settings.yaml"
    assert main(["fit", "--config", str(written), "--out", str(tmp_path / "again")]) == 0
    assert report(tmp_path / "again") == report(tmp_path / "fit")
    first, second = (yaml.safe_load((tmp_path / name / "settings.yaml").read_text()) for name in ("fit", "again"))
    assert {**first, "out": ""} == {**second, "out": ""}
    assert (first["network"], first["likelihood"]) == ("mlp", "categorical")  # resolved, not "auto"
    assert main(["fit", "--config", str(written), "--out", str(tmp_path / "other"), "--seed", "6"]) == 0
    assert report(tmp_path / "other") != report(tmp_path / "fit")


def test_the_part_is_the_one_that_was_asked_for(tmp_path: Path) -> None:
    assert fit(tmp_path / "fit") == 0
    posterior = bq.load(tmp_path / "fit" / "posterior.safetensors")
    split = datasets.load("digits-0to8")
    for part in ("train", "val"):
        assert evaluate(tmp_path / part, tmp_path / "fit", "--part", part) == 0
        rows = getattr(split, part)
        expected = float(scores.accuracy(posterior.predict(rows.x, seed=0), rows.y))
        assert report(tmp_path / part)["accuracy"] == pytest.approx(expected)


def test_run_json_tells_how_the_fit_went(tmp_path: Path) -> None:
    assert fit(tmp_path / "fit", "--seed", "3", method="ensemble") == 0
    run = json.loads((tmp_path / "fit" / "run.json").read_text())
    assert run["settings"]["seed"] == 3
    assert run["circumstances"]["torch"] == version("torch")
    assert [len(losses) for losses in run["fits"]["ensemble"]["losses"]] == [2, 2]
    assert run["fits"]["ensemble"]["seconds"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digts", "--method", "map"], "Did you mean 'digits'"),
        (["--data", "digits", "--method", "mapp"], "did you mean 'map'"),
        (["--data", "toy/linear", "--method", "temperature"], "is for labels"),
        (["--data", "digits", "--method", "map", "--likelihood", "normal"], "does not go with digits"),
        (["--data", "digits", "--method", "map", "--network", "convnet"], "takes images"),
        (["--data", "digits", "--method", "map", "--split", "1"], "one division only"),
        (["--data", "digits", "--method", "map", "--device", "abacus"], "abacus"),
    ],
)
def test_wrong_usage_ends_with_2_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["fit", *arguments, "--out", str(tmp_path / "new")]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.startswith("error: ")
    assert told.out == ""
    assert not (tmp_path / "new").exists()


@pytest.mark.usefixtures("uci")
def test_failed_work_ends_with_1_and_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path / "fit", "--learning_rate", "1e30", "--num_epochs", "5") == 1
    told = capsys.readouterr().err
    assert told.startswith("error: The loss stopped being finite")
    assert "Traceback" not in told
    (tmp_path / "file").write_text("")
    assert fit(tmp_path / "file" / "fit") == 1
    assert "file" in capsys.readouterr().err
    (tmp_path / "data" / "uci" / "broken.npz").write_bytes(b"PK")
    assert fit(tmp_path / "other", data="uci/broken") == 1
    assert not (tmp_path / "other").exists()


def test_a_posterior_that_does_not_fit_the_data_or_is_none_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "fit") == 0
    posterior = tmp_path / "fit" / "posterior.safetensors"
    assert evaluate(tmp_path / "a", posterior, data="toy/linear") == 1
    (tmp_path / "cut.safetensors").write_bytes(posterior.read_bytes()[:-100])
    assert evaluate(tmp_path / "b", tmp_path / "cut.safetensors") == 1
    assert "not a complete file" in capsys.readouterr().err
    assert evaluate(tmp_path / "c", tmp_path / "nowhere.safetensors") == 2


def test_a_posterior_is_not_tested_on_rows_that_it_was_trained_on(
    tmp_path: Path, uci: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "fit", "--split", "1", data=uci) == 0
    compare = ["compare", "--data", uci, "--split", "1", "--methods", "map", "--out", str(tmp_path / "both"), *SHORT]
    assert main(compare) == 0
    for place in ("fit/posterior", "both/posteriors/map"):
        posterior = tmp_path / f"{place}.safetensors"
        capsys.readouterr()
        assert evaluate(tmp_path / "out", posterior, data=uci) == 2
        assert "was fitted to split 1 of uci/made" in capsys.readouterr().err
        assert evaluate(tmp_path / "out", posterior, "--split", "1", "--overwrite", data=uci) == 0
    settings = tmp_path / "fit" / "settings.yaml"
    settings.write_text(settings.read_text().splitlines()[0] + "\n[")  # edited: nothing is known of the split
    assert evaluate(tmp_path / "other", tmp_path / "fit" / "posterior.safetensors", data=uci) == 0


def test_labels_do_not_pass_for_numbers(tmp_path: Path, uci: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path / "fit") == 0
    with np.load(tmp_path / "data" / f"{uci}.npz") as made:
        arrays = {**made, "x": np.repeat(made["x"], 32, axis=1)}  # 64 inputs, as the digits have
    np.savez(tmp_path / "data" / "uci" / "wide.npz", **arrays)
    capsys.readouterr()
    assert evaluate(tmp_path / "again", tmp_path / "fit" / "posterior.safetensors", data="uci/wide") == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_interruption_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bayesuq.cli.fitting.fit", interrupt)
    assert fit(tmp_path / "fit") == 130


def test_an_existing_folder_is_not_overwritten_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(tmp_path / "fit", "--seed", "1") == 0
    (tmp_path / "fit" / "notes.txt").write_text("mine")
    before = {name: (tmp_path / "fit" / name).read_bytes() for name in names(tmp_path / "fit")}
    assert fit(tmp_path / "fit", "--seed", "2") == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert before == {name: (tmp_path / "fit" / name).read_bytes() for name in names(tmp_path / "fit")}
    assert fit(tmp_path / "fit", "--seed", "2", "--overwrite") == 0
    assert (tmp_path / "fit" / "notes.txt").read_text() == "mine"
    assert yaml.safe_load((tmp_path / "fit" / "settings.yaml").read_text())["seed"] == 2


def test_a_folder_that_is_no_output_is_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.json").write_text("precious")
    (tmp_path / "mine" / "settings.yaml").write_text("of: another program\n")
    (tmp_path / "file").write_text("precious")
    for name in ("mine", "file"):
        assert fit(tmp_path / name, "--overwrite") == 2
        assert "no output of bayesuq" in capsys.readouterr().err
    assert (tmp_path / "mine" / "report.json").read_text() == (tmp_path / "file").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    assert fit(tmp_path / "empty") == 0


def test_old_results_of_another_kind_do_not_stay_beside_the_new_ones(tmp_path: Path) -> None:
    out, both = tmp_path / "run", ["report.json", "run.json", "settings.yaml"]
    assert main(["compare", "--data", "digits", "--methods", "map", "--out", str(out), *SHORT]) == 0
    assert fit(out, "--overwrite", data="toy/linear") == 0
    assert names(out) == ["posterior.safetensors", *both[:2], "settings.yaml", "standardizer.safetensors"]
    assert evaluate(tmp_path / "kept", out / "posterior.safetensors", data="toy/linear") == 0
    assert evaluate(out, out / "posterior.safetensors", "--overwrite", data="toy/linear") == 2
    assert "posterior.safetensors" in names(out)  # what is to be read is not overwritten first
    assert fit(out, "--overwrite") == 0
    assert names(out) == ["posterior.safetensors", *both]


def test_nothing_but_results_and_warnings_is_printed_where_there_is_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fit(tmp_path / "fit") == 0
    told = capfd.readouterr()
    assert told.err == ""
    assert "accuracy" in told.out
    assert fit(tmp_path / "other", method="variational") == 0
    assert all(line.startswith("warning: variational: ") for line in capfd.readouterr().err.splitlines())


def test_sets_are_listed_with_those_that_can_be_fetched(capsys: pytest.CaptureFixture[str], uci: str) -> None:
    assert main(["data", "list"]) == 0
    whole = capsys.readouterr().out
    here, _, absent = whole.partition("To be fetched")
    assert uci in here
    assert "mnist" not in here
    assert max(map(len, absent.splitlines())) <= 80
    assert "uci/yacht" in absent
    assert "CC BY-NC 4.0" in absent


def list_into(output: int, errors: Path) -> None:
    """What a process does whose output goes into a pipe; it ends as an interpreter does, by writing out the rest."""
    os.dup2(output, 1)
    with errors.open("w") as sys.stderr, open(1, "w", closefd=False) as sys.stdout:
        code = main(["data", "list"])
        sys.stdout.flush()
    os._exit(code)


def test_a_reader_who_has_seen_enough_is_no_failure_to_tell_of(tmp_path: Path) -> None:
    nobody_reads, output = os.pipe()
    os.close(nobody_reads)
    process = get_context("fork").Process(target=list_into, args=(output, tmp_path / "errors"))
    process.start()
    os.close(output)
    process.join()
    assert (tmp_path / "errors").read_text() == ""
    assert process.exitcode == 141


def test_sets_are_fetched_by_name_and_failures_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched: list[tuple[str, bool]] = []

    def fetch(name: str, *, overwrite: bool, progress: object) -> Path:
        assert callable(progress)
        progress(0, 2)
        fetched.append((name, overwrite))
        if name == "co2":
            raise FetchError("co2 cannot be fetched: no answer")
        return tmp_path / f"{name}.npz"

    monkeypatch.setattr(data_sets, "fetch", fetch)
    assert main(["data", "get", "mnist", "uci/yacht"]) == 0
    assert capsys.readouterr().out == f"mnist: {tmp_path}/mnist.npz\nuci/yacht: {tmp_path}/uci/yacht.npz\n"
    assert main(["data", "get", "--overwrite", "co2"]) == 1
    assert capsys.readouterr().err == "error: co2 cannot be fetched: no answer\n"
    assert main(["data", "get", "mnist", "uci/yaht"]) == 2
    assert "did you mean 'uci/yacht'" in capsys.readouterr().err
    assert fetched == [("mnist", False), ("uci/yacht", False), ("co2", True)]
