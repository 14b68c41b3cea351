import math
from dataclasses import replace

import pytest
import torch

from bayesuq.cli.judging import Judged
from bayesuq.cli.paired import Standing, differences, find_standings, leader
from bayesuq.evaluation.detection import auroc
from bayesuq.evaluation.report.reporting import evaluate, evaluate_detection
from bayesuq.evaluation.standard_errors import closed_form as standard_errors
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive


def find_best(judged: dict[str, Judged]) -> dict[str, str | None]:
    return {measure: each.best for measure, each in find_standings(judged).items()}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def judge(
    predictive: PredictiveDistribution,
    y: torch.Tensor,
    ood: PredictiveDistribution | None = None,
    confidence: torch.Tensor | None = None,
) -> Judged:
    """As the commands do, of predictions made by hand."""
    judged = Judged(predictive, y, ood, evaluate(predictive, y), confidence)
    measures = [
        measure
        for what, sought in judged.sought.items()
        for name, scores in sought.scores.items()
        for measure in evaluate_detection(scores, sought.positives, name=f"{what}_{name}")
    ]
    return replace(judged, report=judged.report.extended(measures))


def gaussian(mean: torch.Tensor) -> GaussianPredictive:
    return GaussianPredictive(mean=mean[None, :, None], noise_variance=1.0)


def test_a_paired_difference_sees_what_two_standard_errors_hide() -> None:
    y, hard = torch.zeros(50, 1, dtype=torch.float64), 3 * noise(50).abs()  # points differ far more than the methods do
    two = {name: judge(gaussian(hard + shift), y) for name, shift in (("good", 0.0), ("bad", 0.1))}
    gap, error = differences(two["bad"], two["good"])["crps"]
    assert gap < float(two["bad"].report["crps"].standard_error)
    assert gap > 5 * error
    assert find_best(two) == dict.fromkeys(
        ("root_mean_squared_error", "negative_log_likelihood", "crps", "interval_score"), "good"
    )


def test_of_three_methods_the_worst_is_found_as_well() -> None:
    y, hard = torch.zeros(50, 1, dtype=torch.float64), 3 * noise(50).abs()
    three = {name: judge(gaussian(hard + shift), y) for name, shift in (("a", 0.0), ("b", 0.0), ("worst", 0.1))}
    assert find_standings(three)["crps"] == Standing(best=None, worst="worst")
    three["best"] = judge(gaussian(hard - 0.1), y)
    assert find_standings(three)["crps"] == Standing(best="best", worst="worst")
    assert "interval_width" not in find_standings(three)  # more is not better


def test_measures_of_which_more_is_not_better_have_no_best() -> None:
    y = torch.arange(60) % 3
    sharp, flat = (CategoricalPredictive.from_logits(scale * noise(4, 60, 3)) for scale in (3.0, 0.1))
    found = find_best({"sharp": judge(sharp, y), "flat": judge(flat, y)})
    assert found["negative_log_likelihood"] == found["brier_score"] == "flat"  # guessing beats being sure of anything
    assert not {"predictive_entropy", "expected_entropy", "mutual_information"} & found.keys()


def test_one_method_is_never_the_best_and_two_equal_ones_neither() -> None:
    y = torch.arange(60) % 3
    predictive = CategoricalPredictive.from_logits(noise(4, 60, 3))
    assert find_best({"only": judge(predictive, y)}) == {}
    assert find_best({"one": judge(predictive, y), "same": judge(predictive, y)}) == {}


def test_the_better_detector_is_found_and_its_difference_has_the_standard_error_of_the_paired_auroc() -> None:
    y = torch.arange(80) % 2

    def predict(width: float, scale: float, seed: int) -> CategoricalPredictive:
        logits = torch.stack([torch.zeros(80, dtype=torch.float64), width + scale * noise(80, seed=seed)], dim=1)
        return CategoricalPredictive.from_logits(torch.stack([logits, -logits]))

    # Two opposite draws: the entropy of the mean is log 2 everywhere, the disagreement larger where `width` is.
    sees = judge(predict(0.1, 0.1, 1), y, predict(5.0, 0.1, 2))
    blind = judge(predict(1.0, 0.5, 3), y, predict(1.0, 0.5, 4))
    found = find_best({"blind": blind, "sees": sees})
    assert found["ood_mutual_information_auroc"] == found["ood_mutual_information_average_precision"] == "sees"
    gap, error = differences(sees, blind)["ood_mutual_information_auroc"]
    sought = [one.sought["ood"] for one in (sees, blind)]
    areas = [auroc(each.scores["mutual_information"], each.positives) for each in sought]
    assert gap == pytest.approx(float(areas[0] - areas[1]))
    # The perfect one has no error of its own, so that of the difference is the other's (DeLong's divides by n - 1).
    expected = standard_errors.of_auroc(sought[1].scores["mutual_information"], sought[1].positives)
    assert error == pytest.approx(float(expected), rel=0.02)


def test_a_learned_confidence_is_compared_where_every_method_has_one() -> None:
    y = torch.arange(60) % 3
    predictive = CategoricalPredictive.from_logits(noise(1, 60, 3))
    right = (predictive.mean.argmax(dim=1) == y).double()
    knows, guesses = (judge(predictive, y, confidence=value) for value in (right, torch.full((60,), 0.5)))
    assert knows.report["error_learned_confidence_auroc"].value == 1
    assert guesses.report["error_learned_confidence_auroc"].value == 0.5
    found = find_best({"guesses": guesses, "knows": knows})
    assert found["error_learned_confidence_auroc"] == "knows"
    without = {"guesses": guesses, "knows": knows, "without": judge(predictive, y)}
    assert "error_learned_confidence_auroc" not in find_best(without)
    shown = (1 - predictive.mean.max(dim=1).values, right == 0)
    assert without["without"].report["error_maximum_probability_auroc"].value == pytest.approx(float(auroc(*shown)))


@pytest.mark.parametrize(
    ("values", "gap"),
    [
        ({"only": 1.0}, (1.0, 0.0)),
        ({"one": 1.0, "other": 0.0}, (1.0, 0.51)),
        ({"one": 1.0, "same": 1.0}, (0.0, 0.0)),
        ({"one": 1.0, "other": -math.inf}, (math.inf, math.nan)),
        ({"one": math.nan, "other": 1.0}, (math.nan, 0.1)),
        ({"one": 1.0, "other": 0.0}, None),
    ],
)
def test_nothing_leads_without_a_clear_and_known_difference(
    values: dict[str, float], gap: tuple[float, float] | None
) -> None:
    assert leader(values, lambda *_: gap) is None


def test_a_leader_is_ahead_of_every_other() -> None:
    values = {"a": 1.0, "b": 3.0, "c": 2.9}
    asked: list[tuple[str, str]] = []

    def difference(best: str, other: str) -> tuple[float, float]:
        asked.append((best, other))
        return values[best] - values[other], 0.04

    assert leader(values, difference) == "b"
    assert asked == [("b", "a"), ("b", "c")]
    values["c"] = 2.95
    assert leader(values, difference) is None
