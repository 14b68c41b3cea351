"""The UCI tables: what is fitted to which rows, in which units, once; and that a stopped command goes on."""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bayesuq.inference import variational
from bayesuq.inference.posteriors.network_mode import fit_mode
from bayesuq.inference.training import loop as optimize
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.randomness import derive_seed
from scripts.recording import Records
from scripts.uci import SETTINGS, main, tasks
from scripts.uci_methods import Problem, Setting, fit, judge, read_settings, spread_alone
from tests.inference.examples import SHORT_FIT

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT)
SHORT: dict[str, Any] = {"prior_scale": 1.0, "num_steps": 12, "batch_size": 20, "learning_rate": 0.01}
SHORT_SETTINGS = {
    "ensemble": Setting(method="ensemble", noise="heteroscedastic", num_members=2, adversarial=True, **SHORT),
    "spread": Setting(method="spread", noise="learned", num_members=3, **SHORT),
    "dropout": Setting(method="dropout", noise="learned", dropout=0.2, num_samples=20, **SHORT),
    "variational": Setting(method="variational", noise="learned", num_samples=20, anneals=True, **SHORT),
}
NUM_ROWS, NUM_TEST, NUM_SPLITS = 60, 12, 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two sets, `curve` and the same with y in a thousandth of its unit, `small`."""
    noise = np.random.default_rng(0)
    x = noise.normal(3.0, 2.0, size=(NUM_ROWS, 2))
    y = 50.0 + 8.0 * np.sin(x.sum(axis=1)) + noise.normal(size=NUM_ROWS)
    orders = [noise.permutation(NUM_ROWS) for _ in range(NUM_SPLITS)]
    index = {
        "train_index": [order[:-NUM_TEST] for order in orders],
        "test_index": [order[-NUM_TEST:] for order in orders],
    }
    (tmp_path / "data" / "uci").mkdir(parents=True)
    np.savez(tmp_path / "data/uci/curve.npz", x=x, y=y, **index)
    np.savez(tmp_path / "data/uci/small.npz", x=x, y=y * 1000, **index)
    monkeypatch.setenv("BAYESUQ_DATA", str(tmp_path / "data"))
    (tmp_path / "work").mkdir()
    return tmp_path


def options(folder: Path, **changes: Any) -> argparse.Namespace:
    text = "\n".join(
        f"[{name}]\n"
        + "\n".join(f"{key} = {json.dumps(value)}" for key, value in vars(setting).items() if value is not None)
        for name, setting in SHORT_SETTINGS.items()
    )
    (folder / "settings.toml").write_text(text, encoding="utf-8")
    defaults = {"settings": folder / "settings.toml", "part": "test", "count": None, "seed": 0}
    return argparse.Namespace(**{**defaults, "out": folder / "runs.jsonl", "work": folder / "work", **changes})


# Which rows


def test_processes_share_the_splits_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, done = options(folder), []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        main(["curve"], ["dropout"], given)
        done.append({record["split"] for record in Records(given.out).read()})
    assert done == [{0, 2}, {0, 1, 2}]


def test_choices_see_validation_rows_and_no_test_row(folder: Path) -> None:
    with np.load(folder / "data/uci/curve.npz") as file:
        y, train, test = file["y"], file["train_index"][1], file["test_index"][1]
    chosen, tested = (Problem.load("curve", 1, part) for part in ("val", "test"))
    fitted = {part.name: (part.train.y * part.units.y_scale + part.units.y_loc).flatten() for part in (chosen, tested)}
    for problem, rows in ((chosen, fitted[chosen.name]), (tested, fitted[tested.name])):
        assert float(problem.train.y.mean()) == pytest.approx(0, abs=1e-12)
        assert float(problem.train.x.std(dim=0, correction=0)[1]) == pytest.approx(1)
        assert len(rows) + len(problem.y) == (len(train) if problem is chosen else NUM_ROWS)
    np.testing.assert_allclose(np.sort(fitted[tested.name]), np.sort(y[train]))
    np.testing.assert_allclose(tested.y.flatten(), y[test])
    both = torch.cat([fitted[chosen.name], chosen.y.flatten()])
    np.testing.assert_allclose(np.sort(both), np.sort(y[train]))


@pytest.mark.usefixtures("folder")
def test_divisions_choose_other_validation_rows_of_the_same_split() -> None:
    one, other = (Problem.load("curve", 0, "val", division=division) for division in (0, 1))
    assert not torch.equal(one.y.sort(dim=0).values, other.y.sort(dim=0).values)
    assert [task["split"] for task in tasks("curve", "val", 3)] == [0, 0, 0]
    assert [task["split"] for task in tasks("curve", "test", None)] == [0, 1, 2]
    assert len(tasks("curve", "test", 99)) == NUM_SPLITS


# What is fitted


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", SHORT_SETTINGS)
def test_all_splits_in_one_pass_are_those_one_after_another(name: str) -> None:
    setting = SHORT_SETTINGS[name]
    problems = [Problem.load("curve", split, "test") for split in range(NUM_SPLITS)]
    together = fit(setting, problems)
    for problem, posteriors in zip(problems, together, strict=True):
        assert len(posteriors) == setting.num_members
        for number, posterior in enumerate(posteriors):
            model = problem.model(setting, derive_seed(problem.seed, 0, number))
            training = setting.training(len(problem.train), derive_seed(problem.seed, 1, number))
            if name == "variational":
                options = {key: getattr(training, key) for key in ("num_epochs", "batch_size", "learning_rate", "seed")}
                alone: Any = variational.fit(model, problem.train, **options)
                torch.testing.assert_close(posterior.log_scale, alone.log_scale, rtol=1e-4, atol=1e-5)  # float32
                torch.testing.assert_close(posterior.loc, alone.loc, rtol=1e-4, atol=1e-5)
            else:
                alone = fit_mode(model, problem.train, training, adversarial=setting.adversarial)
                torch.testing.assert_close(posterior.values, alone.values, rtol=1e-4, atol=1e-5)
    first, second = (posteriors[0].predict(problems[0].x, num_samples=1, seed=0) for posteriors in together[:2])
    assert not torch.allclose(first.mean, second.mean)


@pytest.mark.parametrize("name", SHORT_SETTINGS)
def test_a_unit_of_y_changes_errors_and_densities_as_it_must(folder: Path, name: str) -> None:
    found = {}
    for data in ("curve", "small"):
        problems = [Problem.load(data, split, "test") for split in (0, 2)]
        found[data] = [judged[name] for judged in judge(name, SHORT_SETTINGS[name], problems, folder / data)]
    for one, thousandth in zip(found["curve"], found["small"], strict=True):
        assert thousandth["rmse"] == pytest.approx(1000 * one["rmse"], rel=1e-4)
        assert thousandth["crps"] == pytest.approx(1000 * one["crps"], rel=1e-4)
        assert thousandth["log_likelihood"] == pytest.approx(one["log_likelihood"] - math.log(1000), rel=1e-4)
        assert thousandth["coverage"] == one["coverage"]


def test_steps_are_whole_epochs() -> None:
    setting = Setting(method="dropout", noise="learned", **{**SHORT, "num_steps": 1000})
    assert setting.training(101, 0).num_epochs == 167  # of six batches: 1,002 steps
    assert setting.training(10**6, 0).num_epochs == 1


def test_the_spread_alone_has_no_noise() -> None:
    predictive = GaussianPredictive(mean=torch.tensor([[[1.0]], [[2.0]], [[6.0]]]), noise_variance=100.0)
    alone = spread_alone(predictive)
    assert float(alone.mean) == pytest.approx(3)
    assert float(alone.total) == pytest.approx(14 / 3)  # (4 + 1 + 9) / 3
    assert float(alone.aleatoric) == 0
    exact = -0.5 * (2**2 / (14 / 3) + math.log(2 * math.pi * 14 / 3))
    assert float(alone.log_prob([5.0])) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "swag"}, "`method` must be"),
        ({"noise": "none"}, "`noise` must be"),
        ({"num_steps": 0}, "`num_steps`"),
        ({"dropout": 1.5}, "`dropout`"),
        ({"prior_scale": 0.0}, "`prior_scale`"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        replace(SHORT_SETTINGS["dropout"], **change)


def test_an_unknown_option_of_a_settings_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[dropout]\nmethod = "dropout"\nlerning_rate = 0.1\n', encoding="utf-8")
    with pytest.raises(TypeError, match="lerning_rate"):
        read_settings(path)


def test_the_committed_settings_have_every_method_of_the_tables() -> None:
    settings = read_settings(SETTINGS)
    assert [setting.method for setting in settings.values()] == ["ensemble", "spread", "dropout", "variational"]
    assert list(settings) == ["ensemble", "spread", "dropout", "variational"]
    assert settings["ensemble"].num_members == settings["spread"].num_members == 5
    assert settings["ensemble"].noise == "heteroscedastic"


# A command that goes on


def test_a_second_call_adds_nothing(folder: Path) -> None:
    main(["curve"], None, options(folder))
    lines = Records(folder / "runs.jsonl").read()
    assert {(line["split"], line["method"]) for line in lines} == {
        (split, name) for split in range(NUM_SPLITS) for name in (*SHORT_SETTINGS, "ensemble:1")
    }
    assert len(lines) == NUM_SPLITS * 5
    assert {(line["num_train"], line["num_judged"]) for line in lines} == {(NUM_ROWS - NUM_TEST, NUM_TEST)}
    assert all(line["seconds"] > 0 for line in lines)
    content = (folder / "runs.jsonl").read_bytes()
    main(["curve"], None, options(folder))
    assert (folder / "runs.jsonl").read_bytes() == content


@pytest.mark.parametrize("name", SHORT_SETTINGS)
def test_a_split_alone_is_that_split_among_others(folder: Path, name: str) -> None:
    main(["curve"], [name], options(folder))
    whole = Records(folder / "runs.jsonl").read()
    kept = [line for line in whole if line["split"] != 1]
    (folder / "runs.jsonl").unlink()
    Records(folder / "runs.jsonl").append(*kept)
    main(["curve"], [name], options(folder))
    again = [line for line in Records(folder / "runs.jsonl").read() if line["split"] == 1]
    before = [line for line in whole if line["split"] == 1]
    assert [line["method"] for line in again] == [line["method"] for line in before]
    for one, other in zip(again, before, strict=True):
        assert one["log_likelihood"] == pytest.approx(other["log_likelihood"], rel=1e-4)


class StoppedError(Exception):
    """The machine went away."""


@pytest.mark.parametrize("name", SHORT_SETTINGS)
def test_a_stopped_command_goes_on_and_ends_as_if_it_had_not(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    main(["curve"], [name], options(folder, out=folder / "whole.jsonl"))
    write = optimize._Log.note
    steps: list[object] = []

    def stop(log: optimize._Log) -> None:
        steps.append(log)
        if len(steps) == 7:
            log.resumable.write(log.run.epoch, log.run.batch)
            raise StoppedError
        write(log)

    with monkeypatch.context() as patch:
        patch.setattr(optimize._Log, "note", stop)
        with pytest.raises(StoppedError):
            main(["curve"], [name], options(folder))
    assert len(list((folder / "work").iterdir())) == 1
    assert Records(folder / "runs.jsonl").read() == []
    main(["curve"], [name], options(folder))
    assert list((folder / "work").iterdir()) == []
    went_on, whole = (Records(folder / file).read() for file in ("runs.jsonl", "whole.jsonl"))
    assert all(line["seconds"] > 0 for line in whole)
    assert [line.pop("seconds") for line in went_on] == [None] * len(whole)
    for line in whole:
        del line["seconds"]
    assert went_on == whole


def test_other_settings_and_seeds_have_lines_of_their_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["curve"], ["spread"], options(folder, count=1))
    main(["curve"], ["spread"], options(folder, count=1, seed=1))
    monkeypatch.setitem(SHORT_SETTINGS, "spread", replace(SHORT_SETTINGS["spread"], prior_scale=0.5))
    main(["curve"], ["spread"], options(folder, count=1))
    lines = Records(folder / "runs.jsonl").read()
    assert len({(line["seed"], line["settings"]) for line in lines}) == len(lines) == 3
    assert len({line["rmse"] for line in lines}) == 3


def test_of_steps_and_epochs_the_longer_counts() -> None:
    def epochs(**length: int) -> int:
        setting = Setting(method="dropout", noise="learned", **{**SHORT, "num_steps": None, **length})
        return setting.training(60, seed=0).num_epochs  # of three minibatches

    assert epochs(num_steps=12) == 4
    assert epochs(num_epochs=7) == 7
    assert epochs(num_steps=12, num_epochs=7) == 7
    assert epochs(num_steps=30, num_epochs=7) == 10
    with pytest.raises(ValueError, match="needs a length"):
        epochs()
