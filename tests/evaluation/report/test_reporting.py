import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bayesuq.evaluation.calibration import (
    calibration_error_floor,
    expected_calibration_error,
    interval_coverage,
    interval_width,
)
from bayesuq.evaluation.detection import aurc, auroc
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report, evaluate, evaluate_detection, side_by_side
from bayesuq.evaluation.scores import (
    accuracy,
    brier_score,
    crps,
    interval_score,
    negative_log_likelihood,
    root_mean_squared_error,
)
from bayesuq.evaluation.standard_errors import bootstrap, weighted
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.evaluation.examples import labelled, measured, noise, sure

MEASURE = {
    "name": "a",
    "value": 0.5,
    "standard_error": 0.1,
    "unit": "nats",
    "remark": "",
    "interval": [0.3, 0.7],
    "off": None,
}


class TestOfLabels:
    def test_holds_what_the_measures_say(self) -> None:
        predictive, y = labelled(0)
        report = evaluate(predictive, y)
        wrong = predictive.mean.argmax(dim=1) != y
        expected = {
            "accuracy": accuracy(predictive, y),
            "negative_log_likelihood": negative_log_likelihood(predictive, y),
            "brier_score": brier_score(predictive, y),
            "expected_calibration_error": expected_calibration_error(predictive, y),
            "predictive_entropy": predictive.total.mean(),
            "expected_entropy": predictive.aleatoric.mean(),
            "mutual_information": predictive.epistemic.mean(),
            "misclassification_auroc": auroc(predictive.total, wrong),
            "aurc": aurc(predictive.total, wrong),
        }
        assert {measure.name: measure.value for measure in report.measures} == {
            name: pytest.approx(value.item(), rel=1e-12) for name, value in expected.items()
        }
        assert (report.num_points, report.num_samples, report.num_impossible) == (200, 4, 0)

    def test_entropies_add_up(self) -> None:
        report = evaluate(*labelled(0))
        parts = report["expected_entropy"].value + report["mutual_information"].value
        assert report["predictive_entropy"].value == pytest.approx(parts)

    def test_standard_error_of_a_share_is_binomial(self) -> None:
        report = evaluate(*labelled(0))
        share = report["accuracy"].value
        assert report["accuracy"].standard_error == pytest.approx(math.sqrt(share * (1 - share) / 199))

    def test_every_measure_has_an_error_and_a_unit(self) -> None:
        for example in (labelled(0), measured(0)):
            for measure in evaluate(*example).measures:
                assert measure.standard_error is not None
                assert measure.unit

    def test_mutual_information_is_shown_with_its_draws(self) -> None:
        assert "from S = 4 draws" in str(evaluate(*labelled(0))["mutual_information"])

    @pytest.mark.parametrize("y", [[0, 1], [1, 0]])
    def test_no_error_or_nothing_else_leaves_detection_undefined_without_a_warning(self, y: list[int]) -> None:
        measure = evaluate(sure([0.9, 0.1], [0.2, 0.8]), y)["misclassification_auroc"]
        assert math.isnan(measure.value)
        assert measure.standard_error is None
        assert measure.remark == f"entropy against {2 * y[0]} errors"

    def test_impossible_points_are_counted(self) -> None:
        report = evaluate(sure([1.0, 0.0], [0.5, 0.5], [1.0, 0.0]), [1, 0, 0])
        assert report.num_impossible == 1
        assert report["negative_log_likelihood"].value == math.inf
        assert report["negative_log_likelihood"].standard_error is None
        assert "1 of probability 0" in str(report)

    def test_images_are_units_and_their_pixels_are_not(self) -> None:
        predictive, y = labelled(0, num_draws=1)
        images = CategoricalPredictive.from_logits(predictive.draws[..., None].expand(-1, -1, -1, 6))
        one, many = evaluate(predictive, y), evaluate(images, y[:, None].expand(-1, 6))
        assert many.num_points == 200
        for single, repeated in zip(one.measures, many.measures, strict=True):
            # Six copies are six coverages, over which AURC is a finer mean.
            rel = 0.02 if single.name == "aurc" else 1e-6
            assert repeated.value == pytest.approx(single.value, rel=rel)
            # The ECE's is simulated, from counts of points or from sums of rows.
            drawn = 0.25 if single.name == "expected_calibration_error" else rel
            assert repeated.standard_error == pytest.approx(single.standard_error, rel=drawn)

    def test_the_seed_moves_the_bootstrap_only(self) -> None:
        one, same, other = (evaluate(*labelled(0), seed=seed) for seed in (0, 0, 1))
        assert one == same
        changed = {a.name for a, b in zip(one.measures, other.measures, strict=True) if a != b}
        assert changed == {"expected_calibration_error"}

    def test_bins_are_an_option_that_is_told(self) -> None:
        predictive, y = labelled(0)
        measure = evaluate(predictive, y, num_bins=5)["expected_calibration_error"]
        assert measure.value == pytest.approx(expected_calibration_error(predictive, y, 5).item())
        floor = float(calibration_error_floor(predictive, 5))
        assert measure.remark == f"5 equal bins, {floor:.2g} if calibrated"


class TestOfRealTargets:
    def test_holds_what_the_measures_say(self) -> None:
        predictive, y = measured(0, num_columns=2)
        report = evaluate(predictive, y)
        expected = {
            "root_mean_squared_error": root_mean_squared_error(predictive, y),
            "negative_log_likelihood": negative_log_likelihood(predictive, y),
            "crps": crps(predictive, y),
            "aleatoric_variance": predictive.aleatoric.mean(),
            "epistemic_variance": predictive.epistemic.mean(),
            "interval_coverage": interval_coverage(predictive, y, 0.9),
            "interval_width": interval_width(predictive, 0.9),
            "interval_score": interval_score(predictive, y, 0.9),
        }
        for column in range(2):
            alone, target = _column(predictive, column), y[:, column]
            expected[f"root_mean_squared_error[{column}]"] = root_mean_squared_error(alone, target)
            expected[f"crps[{column}]"] = crps(alone, target)
            expected[f"interval_coverage[{column}]"] = interval_coverage(alone, target, 0.9)
        assert {measure.name: measure.value for measure in report.measures} == {
            name: pytest.approx(value.item()) for name, value in expected.items()
        }

    def test_units_follow_y(self) -> None:
        predictive, y = measured(0)
        one, ten = evaluate(predictive, y), evaluate(predictive.rescale(torch.tensor(0.0), torch.tensor(10.0)), 10 * y)
        factors = {"y": 10, "y²": 100, "fraction": 1}
        for before, after in zip(one.measures, ten.measures, strict=True):
            if before.name == "negative_log_likelihood":
                assert after.value == pytest.approx(before.value + math.log(10))  # the Jacobian
            else:
                assert after.value == pytest.approx(factors[before.unit] * before.value)
                assert after.standard_error == pytest.approx(factors[before.unit] * before.standard_error)

    def test_one_point_has_values_and_no_errors(self) -> None:
        report = evaluate(GaussianPredictive(mean=[[[0.0]]], noise_variance=1.0), [1.0])
        assert report["root_mean_squared_error"].value == 1
        assert all(measure.standard_error is None for measure in report.measures)
        assert "nan" not in str(report)
        labels = evaluate(CategoricalPredictive.from_probs([[[0.75, 0.25]]]), [0])
        assert all(measure.standard_error is None for measure in labels.measures)
        assert "±" not in str(labels).partition("\n")[2]

    def test_a_negative_seed_is_told(self) -> None:
        with pytest.raises(ValueError, match="`seed` must be at least 0; got -1"):
            evaluate(*labelled(0), seed=-1)

    def test_more_than_one_column_is_told_where_it_matters(self) -> None:
        assert "jointly over 3 columns" in str(evaluate(*measured(0, num_columns=3)))
        assert "jointly" not in str(evaluate(*measured(0)))


def _column(predictive: GaussianPredictive, column: int) -> GaussianPredictive:
    only = slice(column, column + 1)
    return GaussianPredictive(
        mean=predictive.component_means[..., only],
        noise_variance=predictive.noise_variance[..., only],
        function_variance=predictive.function_variance[..., only],
    )


class TestReport:
    def test_prints_an_aligned_table(self) -> None:
        report = Report(
            measures=(
                Measure("accuracy", 0.97222, 0.00866, "fraction"),
                Measure("brier_score", 0.05, None, "probability²"),
                Measure("auroc", math.nan, None, "fraction", "no errors"),
                Measure("variance", 1234567.0, 2345.0, "y²"),
            ),
            num_points=360,
            num_samples=100,
        )
        assert str(report).splitlines() == [
            "360 points, 100 draws (value ± standard error)",
            "accuracy         0.9722 ± 0.0087      fraction",
            "brier_score        0.05               probability²",
            "auroc               nan               fraction, no errors",
            "variance     1.2346e+06 ± 0.0023e+06  y²",
        ]

    @pytest.mark.parametrize(
        ("value", "error", "printed"),
        [
            (0.5, 0.25, "0.50 ± 0.25"),
            (0.123456, 0.00012, "0.12346 ± 0.00012"),
            (14378.4, 451.0, "14378 ± 451"),
            (-7.4, 0.039, "-7.400 ± 0.039"),
            (9.77e7, 1.15e6, "9.77e+07 ± 0.12e+07"),
            (1.5e-8, 1.1e-10, "1.500e-08 ± 0.011e-08"),
            (0.0, 0.01, "0.000 ± 0.010"),
            (1.0, 0.0, "1 ± 0"),
            (0.333333, None, "0.3333"),
            (math.inf, None, "inf"),
        ],
    )
    def test_numbers_are_rounded_to_two_digits_of_their_error(
        self, value: float, error: float | None, printed: str
    ) -> None:
        assert str(Measure("it", value, error, "")) == f"it {printed}"

    def test_is_frozen_and_compares_by_value(self) -> None:
        report = evaluate(*labelled(0))
        with pytest.raises(dataclasses.FrozenInstanceError):
            report.num_points = 3  # type: ignore[misc]

    def test_an_unknown_measure_is_missed_with_the_known_ones(self) -> None:
        with pytest.raises(KeyError, match=r"no measure 'brier'.*brier_score"):
            evaluate(*labelled(0))["brier"]

    def test_becomes_strict_json(self) -> None:
        report = evaluate(sure([1.0, 0.0], [0.5, 0.5]), [1, 0])
        plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert plain["num_points"] == 2
        assert plain["num_impossible"] == 1
        by_name = {measure["name"]: measure for measure in plain["measures"]}
        assert by_name["negative_log_likelihood"]["value"] is None
        assert by_name["accuracy"] == {
            "name": "accuracy",
            "value": 0.5,
            "standard_error": 0.5,
            "unit": "fraction",
            "remark": "",
            "interval": by_name["accuracy"]["interval"],
            "off": None,
        }
        assert [round(end, 3) for end in by_name["accuracy"]["interval"]] == [0.055, 0.945]  # Wilson's, of 1 in 1

    def test_other_predictives_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"must be a CategoricalPredictive or a RealPredictive.*got Tensor"):
            evaluate(noise(0, 3, 2), [0, 1, 0])  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"posterior\.predict.*got Tensor"):
            evaluate(noise(0, 3, 2))  # type: ignore[arg-type]

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_values_are_the_same_on_a_gpu(self) -> None:
        for predictive, y in (labelled(0), measured(0)):
            here, there = evaluate(predictive, y), evaluate(predictive.to("cuda"), y)
            for one, other in zip(here.measures, there.measures, strict=True):
                assert other.value == pytest.approx(one.value)


class TestFiles:
    def test_a_report_comes_back_as_it_was(self, tmp_path: Path) -> None:
        report = evaluate(*labelled(0)).extended([Measure("pareto_k", 0.4, None, "", "fit")])
        report.save(tmp_path / "report.json")
        assert Report.load(tmp_path / "report.json") == report
        assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report
        assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
        too_sure = evaluate(GaussianPredictive(mean=torch.zeros(1, 40, 1), noise_variance=0.01), noise(0, 40))
        assert too_sure["interval_coverage"].off < -2
        assert Report.from_dict(too_sure.to_dict()) == too_sure

    def test_the_file_is_strict_json_and_what_is_undefined_stays_so(self, tmp_path: Path) -> None:
        report = evaluate(sure([1.0, 0.0], [0.5, 0.5]), [1, 1])
        report.save(tmp_path / "report.json")
        plain = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
        assert plain["schema"] == "bayesuq report, version 3"
        loaded = Report.load(tmp_path / "report.json")
        assert loaded["negative_log_likelihood"].value == math.inf
        assert math.isnan(loaded["misclassification_auroc"].value)
        assert loaded.num_impossible == 1
        assert str(loaded) == str(report)

    @pytest.mark.parametrize(
        ("change", "error", "reason"),
        [
            ({"schema": "bayesuq report, version 4"}, ValueError, "version 3'; got 'bayesuq report, version 4'"),
            ({"extra": 1}, ValueError, "it has extra"),
            ({"num_points": None}, TypeError, "`num_points`"),
            ({"num_points": True}, TypeError, "`num_points`"),
            ({"measures": {}}, TypeError, "`measures`"),
            ({"measures": [3]}, TypeError, "`measure`"),
            ({"measures": [{"name": "a"}]}, ValueError, "lacks interval, off, remark, standard_error, unit, value"),
            ({"num_points": -5}, ValueError, "`num_points` must be at least 0; got -5"),
            ({"measures": 2 * [MEASURE]}, ValueError, "once; got a, a"),
            ({"measures": [MEASURE | {"value": 10**400}]}, ValueError, "`value` of a must be finite"),
            ({"measures": [MEASURE | {"standard_error": -1.0}]}, ValueError, "`standard_error` must be at least 0"),
        ],
    )
    def test_other_files_are_refused(self, tmp_path: Path, change: dict, error: type[Exception], reason: str) -> None:
        plain = evaluate(*labelled(0)).to_dict() | change
        (tmp_path / "report.json").write_text(json.dumps(plain))
        with pytest.raises(error, match=reason):
            Report.load(tmp_path / "report.json")

    @pytest.mark.parametrize(("version", "lacks"), [(1, ("num_missing", "interval", "off")), (2, ("off",))])
    def test_a_file_of_an_earlier_version_lacks_what_came_since(self, version: int, lacks: tuple[str, ...]) -> None:
        plain = evaluate(*labelled(0)).to_dict()
        early = {key: value for key, value in plain.items() if key not in lacks}
        early["schema"] = f"bayesuq report, version {version}"
        early["measures"] = [{k: value for k, value in each.items() if k not in lacks} for each in plain["measures"]]
        report = Report.from_dict(early)
        assert report.num_missing == 0
        assert all(measure.off is None for measure in report.measures)
        assert all(measure.interval is None for measure in report.measures) == (version == 1)

    @pytest.mark.parametrize("text", ["", "{", '{"num_points": NaN}', "[" * 100_000])
    def test_what_is_no_strict_json_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(ValueError, match=r"report\.json' is not a complete file|holds no NaN"):
            Report.load(tmp_path / "report.json")

    @pytest.mark.parametrize("text", ["[]", "null", "3", '"report"'])
    def test_json_of_another_kind_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(TypeError, match="`report` must be"):
            Report.load(tmp_path / "report.json")

    def test_a_number_that_overflows_is_refused(self, tmp_path: Path) -> None:
        plain = evaluate(*labelled(0)).to_dict() | {"measures": [MEASURE]}
        (tmp_path / "report.json").write_text(json.dumps(plain).replace("0.5", "1e999"))
        with pytest.raises(ValueError, match="`value` of a must be finite"):
            Report.load(tmp_path / "report.json")

    def test_a_value_of_another_type_is_refused(self) -> None:
        plain = evaluate(*labelled(0)).to_dict()
        for key, value in (("value", "0.5"), ("unit", 3), ("standard_error", True)):
            broken = plain | {"measures": [plain["measures"][0] | {key: value}]}
            with pytest.raises(TypeError, match=f"`{key}`"):
                Report.from_dict(broken)

    def test_a_folder_that_is_not_there_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            evaluate(*labelled(0)).save(tmp_path / "none" / "report.json")
        with pytest.raises(FileNotFoundError):
            Report.load(tmp_path / "report.json")

    def test_a_failed_write_keeps_the_older_file(self, tmp_path: Path) -> None:
        report = evaluate(*labelled(0))
        report.save(tmp_path / "report.json")
        broken = Report((Measure("accuracy", 0.5, None, object()),), 3, 1)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            broken.save(tmp_path / "report.json")
        assert Report.load(tmp_path / "report.json") == report
        assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_detection_measures_are_those_of_the_functions_they_are_named_after() -> None:
    scores, positives = torch.tensor([0.1, 0.4, 0.35, 0.8]), [False, False, True, True]
    measures = {measure.name: measure for measure in evaluate_detection(scores, positives, name="entropy")}
    assert measures["entropy_auroc"].value == 0.75  # three of four pairs are in order
    assert measures["entropy_average_precision"].value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert measures["entropy_false_positive_rate"].value == 0.5
    assert measures["entropy_auroc"].remark == "2 of 4 positive"


def test_detection_measures_have_the_standard_errors_of_their_bootstrap() -> None:
    positives = torch.arange(300) % 3 == 0
    scores = noise(0, 300) + positives
    measures = evaluate_detection(scores, positives, name="entropy", seed=1)
    functions = [weighted.auroc, weighted.average_precision, weighted.false_positive_rate_at]
    for measure, function in zip(measures, functions, strict=True):
        replicated = bootstrap.standard_error(function(scores, positives), num_replicates=1000).item()
        # The rate's own 200 replicates have a relative error of .05, the other two are derivatives.
        assert measure.standard_error == pytest.approx(replicated, rel=0.25)
    assert measures == evaluate_detection(scores, positives, name="entropy", seed=1)


def test_detection_among_very_many_scores_leaves_out_the_error_that_would_take_long() -> None:
    scores = torch.arange(2**17 + 1).flip(0)
    measures = evaluate_detection(scores, scores > 100, name="entropy")
    assert [measure.standard_error is None for measure in measures] == [False, False, True]


def test_one_score_is_sorted_once_for_all_its_measures_errors_and_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def noted(sort):
        return lambda values, *args, **options: sizes.append(len(values)) or sort(values, *args, **options)

    for module, name in ((torch.Tensor, "sort"), (torch, "sort"), (torch.Tensor, "unique"), (np, "sort")):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
    evaluate_detection(noise(0, 999), torch.arange(999) % 3 == 0, name="entropy")
    assert sizes.count(999) == 1
    assert not [size for size in sizes if size in (333, 666)]  # the positives or the negatives by themselves


def test_reports_stand_side_by_side_with_a_blank_for_a_measure_that_one_lacks() -> None:
    one = Report((Measure("accuracy", 0.5, 0.1, "fraction"),), num_points=3, num_samples=1)
    two = one.extended([Measure("nines_auroc", 0.25, None, "fraction")])
    assert one.measures == two.measures[:1]
    lines = side_by_side({"MAP": one, "ensemble": two}).splitlines()
    assert [line.split() for line in lines] == [
        ["MAP", "ensemble"],
        ["draws", "1", "1"],
        ["accuracy", "0.50", "±", "0.10", "0.50", "±", "0.10", "fraction"],
        ["nines_auroc", "0.25", "fraction"],
    ]
    assert lines[3].index("0.25") == lines[0].index("ensemble")
    with pytest.raises(ValueError, match="nothing to show"):
        side_by_side({})


def test_tables_fit_eighty_columns_and_lose_nothing() -> None:
    long = "error_maximum_probability_false_positive_rate"
    report = Report((Measure(long, 0.5, 0.1, "fraction", "of so many rows " * 4),), num_points=3, num_samples=1)
    told = str(report).splitlines()
    assert max(map(len, told)) <= 80
    words = " ".join(told[1:]).split()
    assert "".join(word for word in words if word.strip("_") in long and len(word) > 3) == long
    assert words.count("rows") == 4
    names = [f"method-{number}" for number in range(9)]
    lines = side_by_side(dict.fromkeys(names, report)).splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if "method-" in line]
    assert [name for head in heads for name in head] == names
    assert len(heads) == 3
    assert sum(line.count("0.50 ± 0.10") for line in lines) == 9
    assert sum(line.startswith("draws") for line in lines) == len(heads)


def test_methods_stand_beside_each_other_where_their_intervals_are_long() -> None:
    measures = tuple(
        Measure(name, 0.9876, 0.0071, "fraction", "", (0.9386, 0.9952)) for name in ("accuracy", "interval_coverage")
    )
    report = Report(measures, num_points=3, num_samples=1)
    lines = side_by_side(dict.fromkeys(("map", "swag", "laplace"), report)).splitlines()
    assert lines[0].split() == ["map", "swag", "laplace"]
    assert lines[2].split() == ["accuracy", *["0.988"] * 3]
    assert lines[3].split() == ["fraction", *["[0.939,", "0.995]"] * 3]
    assert len(lines) == 6
    assert max(map(len, lines)) <= 80


def test_of_few_rows_that_are_all_right_the_error_of_the_calibration_error_is_said_to_be_a_bound() -> None:
    probs = torch.tensor([[0.85, 0.15]], dtype=torch.float64)
    for num_rows, share, is_bound in ((20, 1.0, True), (60, 1.0, False), (20, 0.7, False)):
        predictive = CategoricalPredictive.from_probs(probs.expand(1, num_rows, 2))
        y = (torch.arange(num_rows) >= share * num_rows).long()
        remark = evaluate(predictive, y)["expected_calibration_error"].remark
        assert remark.endswith("its error an upper bound") == is_bound
