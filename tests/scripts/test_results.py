"""Tables made from lines: means, standard errors, and what is below a published value."""

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from scripts import mnist_methods as images
from scripts import results
from scripts.further_tables import of_distances, of_failures, of_maps, of_other_inputs, of_processes, of_words
from scripts.recording import Record, Records, digest
from scripts.results import beside_published, is_below, mean, published, replace, select
from scripts.tables import Mean, field, table
from scripts.uci_methods import Setting

SETTING = Setting(
    method="dropout", noise="learned", prior_scale=1.0, num_steps=10, batch_size=32, learning_rate=0.01, dropout=0.1
)
SOURCE: dict[str, Any] = {
    "method": "dropout",
    "label": "someone",
    "error": "standard error",
    "boston": {"rmse": [3.0, 0.1], "log_likelihood": [-2.5, 0.05]},
}


def line(split: int, **changes: Any) -> Record:
    record = {"data": "boston", "method": "dropout", "setting": "dropout", "settings": digest(SETTING), "part": "test"}
    judged = {"split": split, "division": 0, "seed": 0, "rmse": 3.0, "log_likelihood": -2.5, "coverage": 0.9}
    how = {"crps": 1.5, "seconds": 2.0, "threads": 1, "versions": {"torch": "2"}}
    return {**record, **judged, **how, **changes}


def test_a_mean_has_the_standard_error_of_a_sample() -> None:
    found = Mean.of([1.0, 2.0, 3.0, 6.0])
    assert found.value == 3
    assert found.error == pytest.approx((14 / 3) ** 0.5 / 2)  # squares 4 + 1 + 0 + 9 over n - 1 = 3


def test_a_mean_beyond_a_million_is_a_power_of_ten() -> None:
    assert Mean(999_999.0, 0.5).rounded(1) == "999999.0 ± 0.5"
    assert Mean(-2.34e21, 1.26e20).rounded(3) == "-2.3e+21 ± 1.3e+20"


@pytest.mark.parametrize(
    ("ours", "theirs", "worse", "below"),
    [
        ((3.0, 0.3), (2.3, 0.4), 1, False),  # an error .7 larger, and 1.645 x .5 = .82
        ((3.0, 0.3), (2.1, 0.4), 1, True),
        ((1.0, 0.3), (2.1, 0.4), 1, False),  # smaller is better
        ((-3.0, 0.3), (-2.3, 0.4), -1, False),
        ((-3.0, 0.3), (-2.1, 0.4), -1, True),
        ((-1.0, 0.3), (-2.1, 0.4), -1, False),  # larger is better
        ((3.0, 0.0), (3.0, 0.0), 1, False),
    ],
)
def test_below_is_more_than_one_sided_chance(ours: Any, theirs: Any, worse: int, below: bool) -> None:
    assert is_below(Mean(*ours), Mean(*theirs), worse) is below


def test_a_published_deviation_becomes_a_standard_error() -> None:
    assert published(SOURCE, "boston", "rmse") == Mean(3.0, 0.1)
    assert published(SOURCE, "yacht", "rmse") is None
    deviations = {"error": "deviation", "boston": {"rmse": [3.28, 1.0]}, "protein": {"rmse": [4.71, 0.06]}}
    twenty, five = published(deviations, "boston", "rmse"), published(deviations, "protein", "rmse")
    assert twenty is not None
    assert five is not None
    assert twenty.error == pytest.approx(1 / 20**0.5)
    assert five.error == pytest.approx(0.06 / 5**0.5)


def test_only_lines_of_the_settings_are_read_and_of_a_repeated_split_the_last() -> None:
    lines = [
        line(0, rmse=9.0),
        line(0),
        line(1, rmse=4.0),
        line(2, settings="another", rmse=9.0),
        line(3, part="val", rmse=9.0),
        line(0, method="dropout:1", rmse=9.0),
    ]
    found = select(lines, {"dropout": SETTING}, "test")
    assert mean(found["boston", "dropout"], "rmse").value == 3.5
    assert set(found) == {("boston", "dropout"), ("boston", "dropout:1")}


def test_a_table_tells_ours_theirs_and_the_verdict() -> None:
    found = {("boston", "dropout"): [line(0, rmse=3.4, log_likelihood=-2.3), line(1, rmse=3.6, log_likelihood=-2.5)]}
    text = "\n".join(beside_published(SOURCE, found))
    assert "| boston | 2 | 3.50 ± 0.10 | 3.00 ± 0.10 | -2.40 ± 0.10 | -2.50 ± 0.05 | RMSE |" in text
    both, neither = ({"log_likelihood": (Mean(value, 0.1), Mean(-2.0, 0.1))} for value in (-3.0, -2.1))
    assert results.below(both) == "log-likelihood"
    assert results.below(neither) == "nothing"
    assert beside_published(SOURCE, {}) == []


def test_a_value_without_error_has_no_verdict_nor_has_an_ablation() -> None:
    found = {("boston", "dropout"): [line(0), line(1)]}
    without = {**SOURCE, "boston": {"rmse": [2.0], "log_likelihood": [-2.5, 0.05]}}
    assert "| 3.00 ± 0.00 | 2.00 | -2.50 ± 0.00 | -2.50 ± 0.05 |  |" in "\n".join(beside_published(without, found))
    assert "nothing" in "\n".join(beside_published(SOURCE, found))
    assert "nothing" not in "\n".join(beside_published({**SOURCE, "verdict": False}, found))


def test_an_ablation_is_paired_by_split() -> None:
    scores = {"spread": [-9.0, -5.0], "ensemble:1": [-3.0, -1.0], "ensemble": [-1.5, -2.5]}
    found = {
        ("yacht", method): [line(split, log_likelihood=score) for split, score in enumerate(values)][::order]
        for (method, values), order in zip(scores.items(), (1, -1, 1), strict=True)
    }
    assert "| yacht | 5.00 ± 1.00 | 0.00 ± 1.50 |" in "\n".join(results.ablation(found))
    assert results.ablation({}) == []


def test_lines_of_before_stand_beside_those_of_their_splits_with_differences_split_by_split() -> None:
    then = [line(split, setting="dropout, longer", rmse=4.0 + split, log_likelihood=-2.0) for split in (0, 1, 2)]
    now = [line(0, rmse=3.0, log_likelihood=-2.4), line(1, rmse=3.0, log_likelihood=-2.2), line(5, rmse=900.0)]
    found = {("boston", "dropout"): now}
    (told,) = results.reruns([*then, *now, {**then[0], "part": "val", "rmse": 900.0}], found)[2:-1]
    assert told.startswith(
        "| boston | `dropout` | longer | 2 | 3.00 ± 0.00 | 4.50 ± 0.50 | -2.30 ± 0.10 | -2.00 ± 0.00 |"
    )
    assert told.endswith("| 1.500 ± 0.500 | -0.300 ± 0.100 | log-likelihood |")
    assert len(results.reruns(now, found)) == 3
    level = {("boston", "dropout"): [line(0, rmse=4.0), line(1, rmse=5.1, log_likelihood=-1.0)]}
    assert results.reruns(then, level)[2].endswith("| -0.050 ± 0.050 | 0.250 ± 0.750 | nothing |")


def test_every_published_value_is_of_a_set_and_a_method_of_the_tables() -> None:
    sources = tomllib.loads((results.HERE / "settings" / "published.toml").read_text(encoding="utf-8"))["source"]
    for source in sources:
        assert source["error"] in ("deviation", "standard error")
        assert set(source) - {"method", "label", "error", "verdict"} == set(results.SETS)
        assert source["method"] in {"ensemble", "ensemble:1", "spread", "dropout", "variational"}
        for data in results.SETS:
            for measure, sign in (("rmse", 1), ("log_likelihood", -1)):
                value = published(source, data, measure)
                assert value is not None
                assert sign * value.value > 0  # on these sets


def test_the_table_of_images_has_means_over_seeds() -> None:
    settings = {"map": images.Setting(method="map", prior_scales=[1.0], num_epochs=1, learning_rate=0.1)}
    lines = [
        {
            "method": "map",
            "settings": digest(settings["map"]),
            "part": "test",
            "seed": seed,
            "seconds": 3600.0,
            "error": error,
            "negative_log_likelihood": 0.06,
            "expected_calibration_error": 0.01,
            "median_scale": None,
            "auroc_total": 0.9,
            "auroc_epistemic": 0.5,
        }
        for seed, error in enumerate((0.016, 0.018))
    ]
    text = results.of_images([*lines, {**lines[0], "part": "val"}, {**lines[0], "settings": "other"}], settings)
    assert text[2].startswith("| `map` | 2 | 1.700 ± 0.100 | 0.060 ± 0.000 | 0.010 ± 0.000 |  | 0.900 ± 0.000 |")
    assert text[2].endswith("| 1.00 |")


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = "# A\n<!-- uci: made by scripts/results.py -->\nold\n<!-- uci: end -->\nafter\n"
    new = replace(page, "uci", ["new", ""])
    assert new == "# A\n<!-- uci: made by scripts/results.py -->\n\nnew\n\n<!-- uci: end -->\nafter\n"
    assert replace(new, "uci", ["new", ""]) == new
    with pytest.raises(ValueError, match="must have the lines"):
        replace(page, "other", [])


def test_the_page_holds_what_the_command_makes_of_the_committed_lines(tmp_path: Path) -> None:
    shutil.copy(results.PAGE, tmp_path / "results.md")
    results.main(results.PAGE.parent / "results", tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text(encoding="utf-8") == results.PAGE.read_text(encoding="utf-8")


def test_no_line_is_of_a_fit_that_was_judged_twice() -> None:
    for name in ("uci.jsonl", "uci-val.jsonl"):
        file = results.PAGE.parent / "results" / name
        fields = ("data", "method", "setting", "settings", "part", "split", "division", "seed")
        keys = [tuple(record[one] for one in fields) for record in Records(file).read()]
        assert len(keys) == len(set(keys))


def test_a_table_has_a_row_for_each_key_with_the_mean_of_its_lines() -> None:
    lines: list[Record] = [
        {"method": "a", "auroc": {"entropy": 0.5}},
        {"method": "b", "auroc": {"entropy": 0.25}, "width": 2.0},
        {"method": "a", "auroc": {"entropy": 0.7}},
    ]
    columns = {"AUROC, %": (field("auroc.entropy", 100), 1), "width": (field("width"), 0), "no": (field("a.b"), 1)}
    assert table(lines, ["method"], columns) == [
        "| method | AUROC, % | width | no |",
        "|---|---|---|---|",
        "| a | 60.0 ± 10.0 |  |  |",
        "| b | 25.0 | 2 |  |",
        "",
    ]


def test_chains_that_do_not_agree_are_shown_as_failed() -> None:
    told = {"split": 0, "least_ess": 100.0, "num_steps": 10.0, "seconds": 60.0}
    right = {"data": "a", "method": "NUTS", "share_converged": 0.96, "worst_r_hat": 1.04, **told}
    lines: list[Record] = [
        right,
        {**right, "data": "b", "share_converged": 0.94},
        {**right, "data": "c", "worst_r_hat": 1.06},
    ]
    assert [line.rsplit("|", 2)[1].strip() for line in of_distances(lines)[2:5]] == ["yes", "**no**", "**no**"]


def test_methods_beside_other_chains_have_a_table_of_their_own() -> None:
    told = {"data": "a", "split": 0, "least_ess": 100.0, "num_steps": 10.0, "seconds": 60.0}
    right = {"share_converged": 0.96, "worst_r_hat": 1.04, **told}
    lines: list[Record] = [
        {**right, "method": "NUTS"},
        {**told, "method": "MAP", "total_variation": 0.5},
        {**right, "method": "other", "reference": "other", "total_variation_between_halves": 0.0123},
        {**told, "method": "MAP", "reference": "other", "total_variation": 0.25},
    ]
    shown = of_distances(lines)
    assert shown[2:4] == [
        "| a | 0 | NUTS | 0.96 | 1.040 | 100 |  | 10 | 1 | yes |",
        "| a | 0 | other | 0.96 | 1.040 | 100 | 0.012 | 10 | 1 | yes |",
    ]
    assert [line.split("|")[2].strip() for line in shown if line.startswith("| MAP")] == ["0.500", "0.250"]
    assert "a, beside other:" in shown


def test_maps_have_a_table_a_set_and_no_mutual_information_of_one_draw() -> None:
    names = (
        "dice",
        "intersection_over_union",
        "negative_log_likelihood",
        "expected_calibration_error",
        "overlap_floor",
    )
    overlaps = [f"{score}_overlap" for score in ("predictive_entropy", "mutual_information", "maximum_probability")]
    measures = {name: [0.5, 0.1, ""] for name in (*names, *overlaps, "predictive_entropy_overlap_shuffled")}
    one: Record = {"data": "a", "method": "map", "num_draws": 1, "num_images": 5, "seconds": 60.0, "measures": measures}
    one |= {"settings": "first", "seed": 0}
    others = [{**one, "settings": "second", "seed": seed} for seed in (0, 1)]
    text = of_maps([one, {**one, "method": "ensemble", "num_draws": 5}, {**one, "data": "b"}, *others])
    assert [line for line in text if line.endswith(":")] == [
        *("a, 5 test images, 1 seed:", "a, 5 test images, 2 seeds:", "b, 5 test images, 1 seed:")
    ]
    single, several = (line.split("|") for line in text[4:6])
    assert [cell.strip() for cell in (single[8], several[8])] == ["", "0.500"]
    assert single[-2].strip() == "1.0"


def test_other_inputs_have_a_table_a_direction_and_the_paired_difference_below_it() -> None:
    areas = {"maximum_probability": 0.9, "predictive_entropy": 0.91}
    of_map: Record = {"data": "mnist", "network": "mlp", "method": "map", "auroc": areas, "width": None}
    of_map |= {"error": 0.02, "negative_log_likelihood": 0.1, "seed": 0}
    better = {**of_map, "method": "ensemble", "auroc": {name: area + 0.02 for name, area in areas.items()}}
    backwards = {**of_map, "data": "fashion_mnist"}
    text = of_other_inputs([of_map, {**of_map, "error": 0.04, "seed": 1}, better, {**better, "seed": 1}, backwards])
    assert text[0] == "Fitted to `mnist`, told from Fashion-MNIST; 2 seeds:"
    assert text[4] == "| mlp | map | 3.00 ± 1.00 | 0.100 ± 0.000 | 0.900 ± 0.000 | 0.910 ± 0.000 |  |  |"
    assert "Entropy of the ensemble less that of one mlp, AUROC by seed: 0.0200 ± 0.0000." in text
    assert text.count("Fitted to `fashion_mnist`, told from MNIST; 1 seed:") == 1
    assert sum(line.startswith("Entropy of") for line in text) == 1  # there is no ensemble in the other direction


def test_failures_stand_above_the_published_numbers() -> None:
    one: Record = {"score": "ConfidNet", "error": 1.5, "fpr95": 10.0, "aupr_error": 50.0, "aupr_success": 99.9}
    text = of_failures([{**one, "auroc": 97.0}, {**one, "auroc": 98.0}])
    assert text[2] == "| ConfidNet | 2 | 1.50 ± 0.00 | 10.00 ± 0.00 | 50.00 ± 0.00 | 99.90 ± 0.00 | 97.50 ± 0.50 |"
    assert text[3] == "| published | 5 |  | 11.79 | 57.37 | 99.95 | 97.83 |"


def test_processes_stand_above_the_networks_of_their_set() -> None:
    one: Record = {"data": "boston", "method": "exact", "rmse": 2.0, "nlpd": 2.5, "crps": 1.0, "coverage": 0.95}
    networks = {("boston", "dropout"): [line(0), line(1)], ("yacht", "dropout"): [line(0)]}
    text = of_processes([{**one, "cpu_seconds": 3.0}], networks)
    assert text[0] == "`boston`:"
    assert text[4] == "| exact | 1 | 2.000 | -2.500 | 1.000 | 0.950 | 3 |"
    assert text[5] == "| dropout | 2 | 3.000 ± 0.000 | -2.500 ± 0.000 | 1.500 ± 0.000 |  | 2 ± 0 |"
    assert len(text) == 7  # yacht has no process


def test_words_are_shown_with_what_they_cost_and_what_they_told() -> None:
    told = "The chains disagree in what they predict at some of the rows: the largest R-hat is 3. Raise `num_warmup`."
    measures = {"accuracy": 0.98, "negative_log_likelihood": 0.1234, "expected_calibration_error": 0.05}
    shown = of_words(
        [
            {"word": "sgmcmc", **measures, "told": [told, told], "cpu_seconds": 30.4},
            {
                "word": "hmc",
                "not_waited_for": "The chains have some 3.5 h to go: a gradient",
                "told": [],
                "cpu_seconds": 1,
            },
        ]
    )
    assert shown[2] == (
        "| `sgmcmc` | 0.980 | 0.123 | 0.050 | 30 | The chains disagree in what they predict at some of the rows |"
    )
    assert shown[3] == "| `hmc` |  |  |  |  | The chains have some 3.5 h to go |"
