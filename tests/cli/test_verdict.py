"""The three sentences over a report: what they say is what the reports say."""

import pytest

from bayesuq.cli.fitting import _off_nominal
from bayesuq.cli.paired import Standing
from bayesuq.cli.verdict import verdict
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report


def report(**values: float | tuple[float, float | None]) -> Report:
    measures = []
    for name, value in values.items():
        number, off = value if isinstance(value, tuple) else (value, None)
        measures.append(Measure(name, number, 0.01, "", off=off))
    return Report(tuple(measures), 50, 10)


def test_of_real_targets_intervals_that_are_off_are_named_on_their_side() -> None:
    shares = {"epistemic_variance": 1.0, "aleatoric_variance": 3.0}
    reports = {
        "map": report(interval_coverage=(0.71, -2.3), epistemic_variance=0.0, aleatoric_variance=3.0),
        "gp": report(interval_coverage=(0.9, None), **shares),
        "swag": report(interval_coverage=(0.99, 3.1), **shares),
    }
    assert verdict(reports, {"crps": Standing("gp", "map"), "root_mean_squared_error": Standing("gp", None)}) == [
        "Gp predicts clearly best (CRPS and root mean squared error) and map predicts clearly worst (CRPS).",
        (
            "The 90 % intervals of map (0.710 ± 0.010) are too narrow, those of swag (0.990 ± 0.010) are too wide and "
            "those of gp (0.900 ± 0.010) hold what they promise."
        ),
        "Of the predicted variance 0 % (map) to 25 % (gp) is epistemic, which more training rows would take away.",
    ]


def test_a_fit_tells_of_intervals_that_are_off_by_more_than_matters_and_names_other_methods() -> None:
    (told,) = _off_nominal(report(interval_coverage=(0.71, -2.3)), "gp")
    assert told.startswith("The 90 % intervals hold 71 % of the test rows: they are too narrow")
    assert told.endswith("such as quantile_calibration:gp and quantile_calibration:variational.")
    (told,) = _off_nominal(report(interval_coverage=(0.95, 2.3)), "quantile_calibration:gp")
    assert told.endswith("such as quantile_calibration:variational.")
    for coverage in ((0.9, None), (0.9033, 5.0)):  # of 200,000 rows
        assert _off_nominal(report(interval_coverage=coverage), "map") == []


def test_of_labels_the_ends_are_named_and_called_clear_where_they_are() -> None:
    reports = {
        name: report(
            expected_calibration_error=gap, ood_mutual_information_auroc=area, error_predictive_entropy_auroc=1.0
        )
        for name, gap, area in (("map", 0.05, 0.5), ("ensemble", 0.01, 0.9), ("dropout", 0.03, 0.8))
    }
    standings = {
        "expected_calibration_error": Standing(None, "map"),
        "ood_mutual_information_auroc": Standing("ensemble"),
    }
    assert verdict(reports, standings) == [
        "No method predicts clearly better than every other, or clearly worse.",
        (
            "Confidence comes closest to accuracy with ensemble (0.010 ± 0.010 on average) and is clearly farthest "
            "from it with map (0.050 ± 0.010)."
        ),
        "Data of another kind is noticed clearly best by the mutual information of ensemble (AUROC 0.900 ± 0.010).",
    ]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"accuracy": 0.9}, ["Map predicts with accuracy 0.900 ± 0.010."]),
        (
            {"error_predictive_entropy_auroc": 0.7},
            ["Errors are noticed best by the predictive entropy of map (AUROC 0.700 ± 0.010)."],
        ),
        (
            {"expected_calibration_error": 0.02},
            ["The confidence of map is 0.020 ± 0.010 from its accuracy on average."],
        ),
        ({"error_predictive_entropy_auroc": float("nan"), "expected_calibration_error": float("nan")}, []),
    ],
)
def test_one_method_is_told_by_its_values_and_what_is_undefined_is_left_out(
    values: dict[str, float], told: list[str]
) -> None:
    assert verdict({"map": report(**values)}, {}) == told
