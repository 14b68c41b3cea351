"""From one CSV file to another by two commands: row for row, in its own units and names, with honest intervals."""

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pandas as pd
import pytest
import yaml

import bayesuq as bq
from bayesuq import datasets
from bayesuq.cli import predicting
from bayesuq.cli.main import main
from bayesuq.to_arviz.container import group
from tests.cli.rendering import not_rendered
from tests.tables.made import NOISE, houses, written

__all__ = ["not_rendered"]  # a fixture
QUICK = ["--num_epochs", "150", "--batch_size", "1000", "--learning_rate", "0.05"]


def fit(path: Path, out: Path, *arguments: str, target: str = "price", method: str = "map") -> int:
    return main(["fit", "--data", str(path), "--target", target, "--method", method, "--out", str(out), *arguments])


def predict(run: Path, data: Path, out: Path, *arguments: str) -> int:
    return main(["predict", "--posterior", str(run), "--data", str(data), "--out", str(out), *arguments])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A line through houses, in whose file cells are missing."""
    folder = tmp_path_factory.mktemp("houses")
    path = written(houses(600), folder / "houses.csv")
    assert fit(path, folder / "run", *QUICK, "--hidden", "", method="laplace") == 0
    return folder / "run"


def test_two_commands_lead_from_a_table_to_intervals_that_hold(fitted: Path, tmp_path: Path) -> None:
    rows = 1000
    new = houses(rows, seed=1)
    path = written(new.drop(columns="price"), tmp_path / "new.csv")
    assert predict(fitted, path, tmp_path / "out.csv", "--level", "0.9") == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert [*found] == [
        *("price_mean", "price_sd", "price_sd_aleatoric", "price_sd_epistemic"),
        *("price_lower_90", "price_upper_90", "distance"),
    ]
    assert len(found) == rows
    truth = new["price"].to_numpy()
    assert np.abs(found["price_mean"] - truth).mean() < 1.2 * NOISE  # 0.8 of it alone
    variances = found["price_sd_aleatoric"] ** 2 + found["price_sd_epistemic"] ** 2
    assert np.allclose(found["price_sd"] ** 2, variances)
    inside = ((found["price_lower_90"] < truth) & (truth < found["price_upper_90"])).mean()
    # Of the new rows, and of the noise learned from 420 rows: a relative error of sqrt(1 / 840), for which coverage
    # changes by 2 * 1.645 * phi(1.645) = 0.34 a unit.
    assert abs(inside - 0.9) < 2 * np.hypot(np.sqrt(0.09 / rows), 0.34 * np.sqrt(1 / 840))
    assert 0.85 < (found["distance"] < 1).mean() < 1


def test_two_commands_without_a_method_have_intervals_that_hold_and_others_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(houses(120)[["size", "garden", "price"]], tmp_path / "houses.csv")
    assert main(["fit", "--data", str(path), "--target", "price", "--out", str(tmp_path / "run")]) == 0
    assert "warning" not in capsys.readouterr().err
    assert yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["method"] == "quantile_calibration:gp"
    new = houses(400, seed=1)
    assert predict(tmp_path / "run", written(new, tmp_path / "new.csv"), tmp_path / "out.csv") == 0
    found = pd.read_csv(tmp_path / "out.csv")
    inside = ((found["price_lower_90"] < new["price"]) & (new["price"] < found["price_upper_90"])).mean()
    assert abs(inside - 0.9) < 2 * np.sqrt(0.09 * (1 / 400 + 1 / 84))  # of new rows, and of those that calibrate
    capsys.readouterr()
    assert fit(written(houses(), path), tmp_path / "mode", *QUICK) == 0
    assert re.search(
        r"warning: map: The 90 % intervals hold \d+ % of the test rows: they are too narrow", capsys.readouterr().err
    )


def test_rows_are_read_in_any_order_of_columns_and_a_few_at_a_time(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = houses(70, seed=1)
    path = written(new, tmp_path / "new.csv")
    assert predict(fitted, path, tmp_path / "whole.csv") == 0
    monkeypatch.setattr(predicting, "ROWS", 16)
    turned = written(new[new.columns[::-1]].assign(more="x"), tmp_path / "turned.csv", sep=";")
    assert predict(fitted, turned, tmp_path / "parts.csv.gz") == 0
    whole = pd.read_csv(tmp_path / "whole.csv")
    with gzip.open(tmp_path / "parts.csv.gz") as file:
        pd.testing.assert_frame_equal(whole, pd.read_csv(file), rtol=1e-9)


def test_rows_far_away_and_words_that_were_not_fitted_are_told(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicting, "ROWS", 4)
    new = houses(12, seed=1)
    new.loc[5, "size"], new.loc[7, "city"] = 4000.0, "Paris"
    assert predict(fitted, written(new, tmp_path / "new.csv"), tmp_path / "out.csv") == 0
    found = pd.read_csv(tmp_path / "out.csv")
    assert found["distance"].idxmax() == 5
    assert found["distance"][5] > 20
    assert found["price_sd_epistemic"].idxmax() == 5
    assert "Column 'city': 1 row with a word that was not fitted (row 8: 'Paris')" in capsys.readouterr().err


def test_labels_keep_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = houses(200).assign(
        size_class=lambda f: np.where(f["size"] + f["rooms"].fillna(9) > 110, "large", "not large")
    )
    frame = frame[["size", "price", "size_class"]]
    path = written(frame, tmp_path / "houses.csv")
    assert fit(path, tmp_path / "run", *QUICK, target="size_class") == 0
    assert "size_class: 2 labels (large, not large), predicted" in capsys.readouterr().out
    assert predict(tmp_path / "run", path, tmp_path / "out.csv", "--quiet") == 0
    assert capsys.readouterr().out == ""
    found = pd.read_csv(tmp_path / "out.csv")
    names = ["size_class", "size_class_p_large", "size_class_p_not large", "size_class_entropy"]
    assert [*found][:4] == names
    assert (found["size_class"] == frame["size_class"]).mean() > 0.9
    posterior: Any = bq.load(tmp_path / "run" / "posterior.safetensors")
    predictive = posterior.predict(frame[["size", "price"]])
    assert predictive.to_pandas()["label"].tolist() == found["size_class"].tolist()
    assert "not large" in predictive._repr_html_()
    log_probs = predictive.log_prob(frame["size_class"].to_numpy())
    chosen = np.where(frame["size_class"] == "large", found[names[1]], found[names[2]])
    assert log_probs.exp().tolist() == pytest.approx(chosen.tolist(), rel=1e-5)
    with pytest.raises(ValueError, match="label 'huge', which is none of large, not large"):
        predictive.log_prob(["huge"] * len(frame))
    assert main(["diagnose", str(tmp_path / "run"), "--num_rows", "10"]) == 0
    assert "share of not large" in capsys.readouterr().out
    data = arviz.from_netcdf(str(tmp_path / "run" / "inference_data.nc"))
    assert group(data, "predictions")["p"]["class"].values.tolist() == ["large", "not large"]


@pytest.mark.usefixtures("not_rendered")
def test_a_table_is_compared_and_evaluated_as_a_named_set_is(tmp_path: Path) -> None:
    path = written(houses(120)[["size", "city", "price"]], tmp_path / "houses.csv")
    short = ["--num_epochs", "30", "--hidden", "4", "--num_samples", "5", "--num_members", "2"]
    named = ["--data", str(path), "--target", "price"]
    assert main(["compare", *named, "--methods", "map", "--out", str(tmp_path / "all"), *short]) == 0
    report = (tmp_path / "all" / "reports" / "map.json").read_text()
    shown = (tmp_path / "all" / "report.html").read_text().partition('class="examples"')[2].partition("</thead>")[0]
    heads = re.findall(r'<th scope="col">([^<]*)</th>', shown)
    assert heads[:6] == ["Test row", "price", "predicted", "90 % interval", "size", "city = missing"]
    posterior = tmp_path / "all" / "posteriors" / "map.safetensors"
    again = ["--posterior", str(posterior), "--num_samples", "5", "--out", str(tmp_path / "again")]
    assert main(["evaluate", *named, *again]) == 0
    assert (tmp_path / "again" / "report.json").read_text() == report
    assert predict(tmp_path / "all", path, tmp_path / "out.csv") == 0
    shutil.copy(posterior, posterior.with_name("other.safetensors"))
    assert predict(tmp_path / "all", path, tmp_path / "other.csv") == 2  # which of the two?


def test_another_table_is_evaluated_by_the_columns_that_were_fitted(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(table: pd.DataFrame, name: str) -> tuple[int, dict[str, Any]]:
        path, out = written(table, tmp_path / f"{name}.csv"), tmp_path / name
        code = main(["evaluate", "--posterior", str(fitted), "--data", str(path), "--out", str(out), "--quiet"])
        return code, json.loads((out / "report.json").read_text()) if code == 0 else {}

    frame = houses(120)
    code, report = evaluated(frame, "same")
    assert code == 0
    assert evaluated(frame[[*frame.columns][::-1]].assign(further=1), "turned") == (0, report)
    known, cities = frame["city"].notna(), frame["city"].dropna().unique()
    assert evaluated(frame[known & (frame["city"] != cities[0])], "fewer")[0] == 0
    capsys.readouterr()
    assert evaluated(frame.assign(city=frame["city"].where(frame["city"] != cities[0], "Rome")), "unseen")[0] == 0
    assert "with a word that was not fitted (row" in capsys.readouterr().err
    assert evaluated(frame.drop(columns=["city"]), "lacking")[0] == 1
    assert "lacks 'city', which was fitted" in capsys.readouterr().err
    wrong = ["evaluate", "--posterior", str(fitted), "--out", str(tmp_path / "wrong"), "--data"]
    assert main([*wrong, "digits"]) == 2
    assert "was fitted to a table; digits is none" in capsys.readouterr().err
    assert main([*wrong, str(tmp_path / "same.csv"), "--target", "size"]) == 2
    assert "predicts 'price', and not --target size" in capsys.readouterr().err


def test_all_rows_of_another_table_are_measured_where_none_was_fitted(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(table: pd.DataFrame, name: str) -> dict[str, Any]:
        path, out = written(table, tmp_path / f"{name}.csv"), tmp_path / name
        options = ["--part", "all", "--out", str(out)]
        assert main(["evaluate", "--posterior", str(fitted), "--data", str(path), *options]) == 0
        return json.loads((out / "report.json").read_text())

    new = houses(40, seed=3)
    (rmse,) = [one["value"] for one in evaluated(new, "new")["measures"] if one["name"] == "root_mean_squared_error"]
    told = capsys.readouterr()
    assert "all rows: 40 points" in told.out
    assert "fitted rows stand in it" not in told.err
    predicted = bq.load(fitted / "posterior.safetensors").predict(new).mean[:, 0].numpy()
    assert rmse == pytest.approx(((predicted - new["price"]) ** 2).mean() ** 0.5, rel=1e-4)
    evaluated(pd.concat([new, houses(600)]), "mixed")
    assert "of the fitted rows stand in it" in capsys.readouterr().err
    own = ["evaluate", "--posterior", str(fitted), "--part", "all", "--out", str(tmp_path / "own"), "--data"]
    assert main([*own, str(fitted.with_name("houses.csv"))]) == 2
    assert "were fitted, so that --part all" in capsys.readouterr().err


def test_a_table_that_changed_after_its_fit_is_not_taken_for_the_fitted_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = written(houses(60), tmp_path / "houses.csv"), tmp_path / "run"
    assert fit(path, run, "--num_epochs", "2", method="map") == 0
    again = ["evaluate", "--posterior", str(run), "--data", str(path), "--num_samples", "2", "--out"]
    assert main([*again, str(tmp_path / "before")]) == 0
    written(houses(70), path)
    assert main([*again, str(tmp_path / "after")]) == 2
    assert "is not as it was" in capsys.readouterr().err
    assert main(["diagnose", str(run)]) == 2
    assert "is not as it was" in capsys.readouterr().err


@pytest.mark.skipif("uci/yacht" not in datasets.available(), reason="uci/yacht is not in BAYESUQ_DATA")
def test_a_published_set_written_as_a_table_has_intervals_that_hold(tmp_path: Path) -> None:
    split = datasets.load("uci/yacht")
    parts = [
        pd.DataFrame(part.x.numpy()).add_prefix("x").assign(y=part.y[:, 0].numpy())
        for part in (split.refit, split.test)
    ]
    frame = pd.concat(parts, ignore_index=True).sample(frac=1, random_state=0)
    train, test = frame[:200], frame[200:]
    assert fit(written(train, tmp_path / "train.csv"), tmp_path / "run", target="y", method="gp") == 0
    assert predict(tmp_path / "run", written(test, tmp_path / "test.csv"), tmp_path / "out.csv") == 0
    found = pd.read_csv(tmp_path / "out.csv")
    truth = test["y"].to_numpy()
    inside = ((found["y_lower_90"] < truth) & (truth < found["y_upper_90"])).mean()
    assert abs(inside - 0.9) <= 2 * np.sqrt(0.09 / len(test))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["fit", "--data", "none.csv", "--target", "price"], 2, "There is no file 'none.csv'"),
        (["fit", "--data", "houses.csv"], 2, "by --target; houses.csv has size, rooms, city"),
        (["fit", "--data", "houses.csv", "--target", "prize"], 1, "did you mean 'price'"),
        (["fit", "--data", "digits", "--target", "price"], 2, "--target is of a table; digits is the name of a set"),
        (["fit", "--data", "houses.csv", "--target", "price", "--split", "1"], 2, "--split is of a uci/ set"),
    ],
)
def test_what_cannot_be_fitted_is_told(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    written(houses(40), tmp_path / "houses.csv")
    assert main([*arguments, "--method", "map", "--out", "run"]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_predicted_is_told(fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(houses(10), tmp_path / "new.csv"), tmp_path / "out.csv"
    assert predict(tmp_path, path, out) == 2
    assert "There is no posterior" in capsys.readouterr().err
    assert predict(fitted, tmp_path / "none.csv", out) == 2
    lacking = written(houses(10).drop(columns=["city", "sold"]), tmp_path / "lacking.csv")
    assert predict(fitted, lacking, out) == 1
    assert "lacks 'city', 'sold', which were fitted" in capsys.readouterr().err
    assert not out.exists()
    assert predict(fitted, path, out) == 0
    assert predict(fitted, path, out) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    for read in (path, fitted / "posterior.safetensors"):
        before = read.read_bytes()
        assert predict(fitted, path, read, "--overwrite") == 2
        assert "is what is read, and would be lost" in capsys.readouterr().err
        assert read.read_bytes() == before


def test_rows_unlike_those_that_were_fitted_are_told(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = houses(100, seed=1)
    assert predict(fitted, written(rows, tmp_path / "new.csv"), tmp_path / "out.csv") == 0
    assert "further from the fitted ones" not in capsys.readouterr().err
    in_feet = written(rows.assign(size=rows["size"] * 10.764), tmp_path / "feet.csv")
    assert predict(fitted, in_feet, tmp_path / "feet_out.csv") == 0
    assert re.search(r"\d+ of 100 rows are further from the fitted ones than 95 %", capsys.readouterr().err)


@pytest.mark.parametrize("kept", [40, 100])
def test_a_damaged_gzip_file_is_told(
    fitted: Path, kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = gzip.compress(houses(50).to_csv(index=False).encode())
    path = tmp_path / "new.csv.gz"
    path.write_bytes(whole[:-kept] if kept == 40 else whole[:kept] + bytes(200) + whole[kept + 200 :])
    for encoding in ([], ["--encoding", "utf-8"]):
        assert predict(fitted, path, tmp_path / "out.csv", *encoding) == 1
        assert "new.csv.gz' is a damaged gzip file" in capsys.readouterr().err
