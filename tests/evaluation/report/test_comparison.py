import json
import math

import pytest
import torch

from bayesuq.evaluation.report.comparison import Comparison, compare_predictives
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report, evaluate
from bayesuq.evaluation.scores import pointwise_brier_score, pointwise_crps
from bayesuq.evaluation.standard_errors import bootstrap, weighted
from bayesuq.evaluation.standard_errors.closed_form import of_mean
from bayesuq.predictive.categorical import CategoricalPredictive
from tests.evaluation.examples import labelled, measured, sure


def report(*measures: Measure, num_points: int = 100) -> Report:
    return Report(measures, num_points, 1)


class TestOfReports:
    def test_errors_add_in_quadrature_and_are_said_to(self) -> None:
        one = report(Measure("accuracy", 0.9, 0.03, "fraction"), Measure("crps", 2.0, 0.3, "y"))
        other = report(Measure("accuracy", 0.8, 0.04, "fraction"))
        comparison = one.compare(other)
        assert comparison.differences == (Measure("accuracy", pytest.approx(0.1), pytest.approx(0.05), "fraction"),)
        assert comparison["accuracy"].num_errors == pytest.approx(2.0)
        assert "too wide if the test points are the same" in str(comparison)

    def test_turns_round(self) -> None:
        one, other = (evaluate(*labelled(0, sharpness=sharpness)) for sharpness in (1.0, 2.0))
        for forth, back in zip(one.compare(other).differences, other.compare(one).differences, strict=True):
            assert forth.value == -back.value
            assert forth.standard_error == back.standard_error

    def test_an_error_that_one_lacks_is_unknown(self) -> None:
        one, other = (report(Measure("auroc", value, error, "")) for value, error in ((0.9, None), (0.8, 0.1)))
        assert one.compare(other)["auroc"].standard_error is None
        assert math.isnan(one.compare(other)["auroc"].num_errors)

    def test_what_is_infinite_for_both_has_no_difference(self) -> None:
        one, other = (report(Measure("nll", value, None, "nats")) for value in (math.inf, 1.0))
        assert math.isnan(one.compare(one)["nll"].value)
        assert one.compare(other)["nll"].value == math.inf

    def test_remarks_that_differ_are_both_told(self) -> None:
        one, other = (report(Measure("mutual_information", 0.1, 0.01, "nats", f"S = {s}")) for s in (4, 100))
        assert one.compare(other)["mutual_information"].remark == "S = 4 / S = 100"

    def test_other_points_units_or_kinds_are_refused(self) -> None:
        accuracy = Measure("accuracy", 0.9, 0.03, "fraction")
        with pytest.raises(ValueError, match="got 100 and 50 points"):
            report(accuracy).compare(report(accuracy, num_points=50))
        with pytest.raises(ValueError, match="`accuracy` is in 'fraction' and in 'percent'"):
            report(accuracy).compare(report(Measure("accuracy", 90.0, 3.0, "percent")))
        with pytest.raises(ValueError, match="no measure in common"):
            report(accuracy).compare(report(Measure("crps", 2.0, 0.3, "y")))

    def test_prints_an_aligned_table(self) -> None:
        comparison = Comparison(
            (
                Measure("accuracy", 0.1, 0.05, "fraction"),
                Measure("brier_score", -0.0213, None, "probability²", "from 0 to 2"),
            ),
            100,
            "paired",
        )
        assert str(comparison).splitlines() == [
            "100 points, first minus second (paired)",
            "accuracy       0.100 ± 0.050  +2.0 SE  fraction",
            "brier_score  -0.0213                   probability², from 0 to 2",
        ]

    def test_becomes_strict_json(self) -> None:
        one = report(Measure("nll", math.inf, None, "nats"))
        plain = json.loads(json.dumps(one.compare(one).to_dict(), allow_nan=False))
        assert plain["differences"][0]["value"] is None

    def test_an_unknown_difference_is_missed_with_the_known_ones(self) -> None:
        one = evaluate(*labelled(0))
        with pytest.raises(KeyError, match=r"no difference 'brier'.*brier_score"):
            one.compare(one)["brier"]


class TestOfPredictives:
    @pytest.mark.parametrize("example", [labelled, measured])
    def test_values_are_those_of_the_reports(self, example) -> None:
        one, y = example(0)
        other = labelled(0, sharpness=2.0)[0] if example is labelled else measured(50)[0]
        comparison = compare_predictives(one, other, y)
        expected = evaluate(one, y).compare(evaluate(other, y))
        assert [each.name for each in comparison.differences] == [each.name for each in expected.differences]
        for paired, apart in zip(comparison.differences, expected.differences, strict=True):
            assert paired.value == pytest.approx(apart.value, abs=1e-12)
            assert paired.unit == apart.unit
        assert comparison.num_points == 200
        assert comparison.basis == "same points, paired"

    def test_errors_of_means_are_those_of_the_points_differences(self) -> None:
        one, y = labelled(0)
        other, _ = labelled(0, sharpness=2.0)
        gap = pointwise_brier_score(one, y) - pointwise_brier_score(other, y)
        paired = compare_predictives(one, other, y)["brier_score"]
        assert paired.standard_error == pytest.approx(of_mean(gap).item())
        first, target = measured(0)
        second, _ = measured(50)
        gap = pointwise_crps(first, target) - pointwise_crps(second, target)
        assert compare_predictives(first, second, target)["crps"].standard_error == pytest.approx(of_mean(gap).item())

    def test_errors_of_the_others_are_those_of_a_paired_bootstrap(self) -> None:
        one, y = labelled(0, num_points=1000)
        other, _ = labelled(0, num_points=1000, sharpness=2.0)
        comparison = compare_predictives(one, other, y)
        wrong = [each.mean.argmax(dim=1) != y for each in (one, other)]
        pairs = {
            "expected_calibration_error": [weighted.expected_calibration_error(each, y) for each in (one, other)],
            "misclassification_auroc": [weighted.auroc(p.total, w) for p, w in zip((one, other), wrong, strict=True)],
            "aurc": [weighted.aurc(p.total, w) for p, w in zip((one, other), wrong, strict=True)],
        }
        for name, pair in pairs.items():
            expected = bootstrap.paired_difference(*pair, num_replicates=500)
            assert comparison[name].value == pytest.approx(expected.value)
            # Relative errors of .03 of the bootstrap, and .05 of the 200 replicates for the ECE.
            assert comparison[name].standard_error == pytest.approx(expected.standard_error, rel=4 * 0.06)

    def test_pairing_is_sharper_than_quadrature(self) -> None:
        one, y = labelled(0)
        other, _ = labelled(0, sharpness=1.2)
        apart = evaluate(one, y).compare(evaluate(other, y))
        for paired in compare_predictives(one, other, y).differences:
            assert paired.standard_error < apart[paired.name].standard_error

    def test_with_itself_there_is_no_difference(self) -> None:
        for predictive, y in (labelled(0), measured(0)):
            for each in compare_predictives(predictive, predictive, y).differences:
                assert each.value == 0
                assert each.standard_error == 0

    def test_images_are_units(self) -> None:
        one, y = labelled(0, num_draws=1)
        other, _ = labelled(0, num_draws=1, sharpness=2.0)
        images = [CategoricalPredictive.from_logits(p.draws[..., None].expand(-1, -1, -1, 6)) for p in (one, other)]
        single, many = compare_predictives(one, other, y), compare_predictives(*images, y[:, None].expand(-1, 6))
        for name in ("accuracy", "brier_score", "expected_calibration_error"):
            assert many[name].standard_error == pytest.approx(single[name].standard_error)

    def test_without_errors_detection_is_undefined(self) -> None:
        comparison = compare_predictives(sure([0.9, 0.1], [0.2, 0.8]), sure([0.6, 0.4], [0.4, 0.6]), [0, 1])
        assert math.isnan(comparison["misclassification_auroc"].value)
        assert comparison["misclassification_auroc"].standard_error is None
        assert "nan" in str(comparison)

    def test_other_kinds_are_refused(self) -> None:
        with pytest.raises(TypeError, match="labels and real targets"):
            compare_predictives(labelled(0)[0], measured(0)[0], [0])
        with pytest.raises(TypeError, match="got Tensor"):
            compare_predictives(torch.ones(3), torch.ones(3), [0])
