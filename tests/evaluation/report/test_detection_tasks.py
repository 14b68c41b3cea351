"""Detection as tasks: every score by every measure, own scores, the draws told, curves against scikit-learn."""

import pytest
import torch
from sklearn.metrics import roc_curve as sklearn_roc_curve

from bayesuq.evaluation.detection import aurc, auroc, average_precision, false_positive_rate_at
from bayesuq.evaluation.report.detection_tasks import (
    FROM_DRAWS,
    evaluate_misclassification,
    evaluate_ood,
    roc_curve,
    standard_scores,
)
from bayesuq.evaluation.report.reporting import evaluate, evaluate_detection
from bayesuq.evaluation.report.score_table import score_differences, score_table
from bayesuq.evaluation.segmentation.overlap import overlap_sweep
from bayesuq.evaluation.uncertainty import mutual_information, predictive_variance
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from tests.evaluation.examples import labelled, measured, noise

NAMES = ["maximum_probability", "margin", "predictive_entropy", "expected_entropy", "mutual_information"]
NAMES += ["variation_ratio"]
MEASURES = (auroc, average_precision, false_positive_rate_at, aurc)


def test_every_score_is_held_against_the_errors_by_every_measure() -> None:
    predictive, y = labelled(0)
    wrong = predictive.mean.argmax(dim=1) != y
    found = evaluate_misclassification(predictive, y)
    assert torch.equal(found.positives, wrong)
    assert found.table.num_points == 200
    assert found.table.positives == f"{int(wrong.sum())} of 200 values are errors"
    assert {"maximum_probability", "margin", "predictive_entropy", "mutual_information", "expected_entropy"} < set(
        found.scores
    )
    assert {"predictive_variance", "epistemic_variance"} < set(found.scores)
    assert list(found.scores)[:6] == NAMES
    for name, scores in found.scores.items():
        values = [measure.value for measure in found.table.measures[name]]
        assert values == pytest.approx([float(measure(scores, wrong)) for measure in MEASURES])
        auc, precision, rate, risk = (measure.standard_error for measure in found.table.measures[name])
        assert all((auc, precision, risk))
        assert min(auc, precision, risk) > 0
        assert rate is not None
        assert rate >= 0  # a rate of 1 stays 1
    torch.testing.assert_close(found.scores["mutual_information"], mutual_information(predictive))


def test_a_score_of_ones_own_is_values_or_a_function() -> None:
    predictive, y = labelled(0)
    oracle = (predictive.mean.argmax(dim=1) != y).float()
    scores = {"oracle": oracle, "gini": predictive_variance, "nothing": [0.0] * len(y)}
    found = evaluate_misclassification(predictive, y, scores=scores)
    areas = {name: measures[0].value for name, measures in found.table.measures.items()}
    assert areas["oracle"] == 1.0
    assert areas["nothing"] == 0.5
    assert areas["gini"] == areas["predictive_variance"]


def test_listed_scores_are_judged_alone() -> None:
    (predictive, y), outside = labelled(0), labelled(8, num_points=50)[0]

    def gini(predictive: CategoricalPredictive) -> torch.Tensor:
        return predictive_variance(predictive)

    every, wanted = evaluate_misclassification(predictive, y), ["margin", mutual_information, gini]
    found = evaluate_misclassification(predictive, y, scores=wanted)
    assert list(found.scores) == ["margin", "mutual_information", "gini"]
    assert found.table.measures["mutual_information"] == every.table.measures["mutual_information"]
    assert found.table.measures["gini"] == every.table.measures["predictive_variance"]
    assert "mutual_information: from S = " in str(found)
    assert list(evaluate_ood(predictive, outside, scores=wanted).scores) == ["margin", "mutual_information", "gini"]
    assert list(evaluate_misclassification(predictive, y, scores="margin").scores) == ["margin"]


def test_inputs_of_another_kind_are_the_positives() -> None:
    inside, outside = labelled(0, sharpness=3.0)[0], labelled(8, num_points=50, sharpness=0.3)[0]
    values = noise(1, 200), noise(2, 50)
    found = evaluate_ood(inside, outside, scores={"own": values, "total": lambda predictive: predictive.total})
    assert int(found.positives.sum()) == 50
    assert found.table.positives == "50 of 250 values are out of distribution"
    is_outside = torch.arange(250) >= 200
    assert found.table.measures["own"][0].value == pytest.approx(float(auroc(torch.cat(values), is_outside)))
    assert found.table.measures["total"] == found.table.measures["predictive_entropy"]
    assert found.table.measures["predictive_entropy"][0].value > 0.8


def test_of_real_targets_variances_are_the_scores() -> None:
    inside = measured(0)[0]
    outside = GaussianPredictive(mean=5 * inside.component_means, noise_variance=inside.noise_variance)
    found = evaluate_ood(inside, outside)
    assert list(found.scores) == ["predictive_variance", "aleatoric_variance", "epistemic_variance"]
    assert found.table.measures["epistemic_variance"][0].value > 0.8
    assert found.table.measures["aleatoric_variance"][0].value == 0.5  # the same noise
    one = GaussianPredictive(mean=inside.component_means[:1], noise_variance=inside.noise_variance[:1])
    assert "epistemic_variance" not in standard_scores(one)


def test_of_one_draw_what_compares_draws_is_left_out() -> None:
    assert list(standard_scores(labelled(0, num_draws=1)[0]))[:4] == NAMES[:4]
    assert set(standard_scores(labelled(0)[0])) - set(standard_scores(labelled(0, num_draws=1)[0])) == FROM_DRAWS


def test_the_draws_are_printed_beside_what_compares_them() -> None:
    predictive, y = labelled(0, num_draws=5)
    told = str(evaluate_misclassification(predictive, y)).splitlines()[-1]
    assert told.startswith("mutual_information, variation_ratio, epistemic_variance: from S = 5 draws")
    single = evaluate_misclassification(*labelled(0, num_draws=1))
    assert str(single).endswith("from S = 1 draw")
    assert "mutual_information" not in single.scores


def test_mutual_information_is_too_small_by_about_one_over_the_draws() -> None:
    logits = noise(0, 1000, 300, 5)  # draws around one mean, as of a posterior
    whole = CategoricalPredictive.from_logits(logits).epistemic.mean()
    few = torch.stack([CategoricalPredictive.from_logits(part).epistemic.mean() for part in logits.split(5)]).mean()
    assert float(few / whole) == pytest.approx(1 - 1 / 5, abs=0.03)


def test_a_report_is_extended_by_it() -> None:
    predictive, y = labelled(0)
    found = evaluate_misclassification(predictive, y)
    report = evaluate(predictive, y).extended(found.measures)
    assert report["mutual_information_auroc"].value == found.table.measures["mutual_information"][0].value
    assert report["mutual_information_auroc"].remark.endswith("S = 4 draws")
    assert report["margin_aurc"].unit == "fraction"
    assert type(report).from_dict(report.to_dict()) == report


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_is_scikit_learns_and_its_area_is_auroc(ties: bool) -> None:
    scores, positives = noise(0, 300), noise(1, 300) > 0.5
    scores = scores + positives
    scores = (2 * scores).round() if ties else scores
    false_rate, true_rate = roc_curve(scores, positives)
    expected = sklearn_roc_curve(positives, scores, drop_intermediate=False)
    torch.testing.assert_close(false_rate, torch.tensor(expected[0]))
    torch.testing.assert_close(true_rate, torch.tensor(expected[1]))
    torch.testing.assert_close(torch.trapezoid(true_rate, false_rate), auroc(scores, positives))


def test_curves_are_those_of_the_named_score() -> None:
    predictive, y = labelled(0)
    found = evaluate_misclassification(predictive, y)
    assert float(found.risk_coverage("margin").risk.mean()) == pytest.approx(found.table.measures["margin"][3].value)
    assert torch.equal(found.roc("margin")[0], roc_curve(found.scores["margin"], found.positives)[0])
    with pytest.raises(KeyError, match="margins"):
        found.roc("margins")


def test_pixels_are_points_and_images_the_unit() -> None:
    logits, y = noise(0, 2, 12, 4, 5, 6), torch.arange(12 * 30).reshape(12, 5, 6) % 4
    found = evaluate_misclassification(CategoricalPredictive.from_logits(logits), y)
    assert found.scores["margin"].shape == (12, 5, 6)
    assert found.table.num_points == 12
    assert "of 360 values are errors" in found.table.positives
    errors = [measure.standard_error for measure in found.table.measures["margin"]]
    assert all(error is not None and error > 0 for error in errors)


def test_what_cannot_be_scored_is_refused() -> None:
    (predictive, y), (real, _) = labelled(0), measured(0)

    def namesake(predictive: CategoricalPredictive) -> torch.Tensor:
        return predictive.total

    namesake.__name__ = "margin"
    with pytest.raises(TypeError, match="must be a CategoricalPredictive"):
        evaluate_misclassification(real, y)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="same kind; got CategoricalPredictive and GaussianPredictive"):
        evaluate_ood(predictive, real)
    with pytest.raises(ValueError, match="number of draws"):
        evaluate_ood(predictive, labelled(0, num_draws=3)[0])
    with pytest.raises(ValueError, match=r"among maximum_probability, margin, .*, or functions; got 'entropy'"):
        evaluate_misclassification(predictive, y, scores=["margin", "entropy"])
    with pytest.raises(ValueError, match="names, each its own"):
        evaluate_misclassification(predictive, y, scores=["margin", lambda predictive: predictive.total])
    with pytest.raises(ValueError, match="'margin' is there"):
        evaluate_misclassification(predictive, y, scores=[namesake])
    with pytest.raises(ValueError, match="at least one score"):
        evaluate_ood(predictive, predictive, scores=[])
    with pytest.raises(ValueError, match="'margin' is there"):
        evaluate_misclassification(predictive, y, scores={"margin": y.double()})
    with pytest.raises(ValueError, match=r"'own' must have shape \(200,\); got \(3,\)"):
        evaluate_misclassification(predictive, y, scores={"own": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="'own' must not hold NaN; got 200"):
        evaluate_misclassification(predictive, y, scores={"own": y * torch.nan})
    with pytest.raises(ValueError, match=r"'own' must have shape \(200,\)"):
        evaluate_ood(predictive, predictive, scores={"own": ([1.0], [2.0])})


def test_missing_labels_are_in_no_table() -> None:
    """Of rows that are missing, and of pixels: the table is that of the known ones, curve and positives too."""
    predictive, y = labelled(0)
    known = torch.arange(200) % 3 != 0
    found = evaluate_misclassification(predictive, torch.where(known, y, 99), weight=known)
    alone = evaluate_misclassification(CategoricalPredictive.from_logits(predictive.draws[:, known]), y[known])
    assert found.table.positives == alone.table.positives
    assert found.table.num_points == alone.table.num_points
    torch.testing.assert_close(found.risk_coverage("margin").risk, alone.risk_coverage("margin").risk)
    for name, measures in alone.table.measures.items():
        for one, other in zip(found.table.measures[name], measures, strict=True):
            assert one.value == pytest.approx(other.value, rel=1e-12)
            if one.name != "false_positive_rate":  # bootstrapped, with other counts
                assert one.standard_error == pytest.approx(other.standard_error, rel=1e-9)
            assert one.interval == pytest.approx(other.interval, rel=1e-9)


def test_curves_of_weighted_points_are_those_of_repeated_ones() -> None:
    predictive, y = labelled(0)
    times = torch.arange(200) % 4
    rows = torch.arange(200).repeat_interleave(times)
    found = evaluate_misclassification(predictive, y, weight=times)
    alone = evaluate_misclassification(CategoricalPredictive.from_logits(predictive.draws[:, rows]), y[rows])
    for one, other in zip(found.roc("margin"), alone.roc("margin"), strict=True):
        torch.testing.assert_close(one, other)
    weighted, repeated = found.risk_coverage("margin"), alone.risk_coverage("margin")
    for name in ("coverage", "risk"):
        one, other = (getattr(curve, name)[curve.attainable] for curve in (weighted, repeated))
        torch.testing.assert_close(one, other)
    area = torch.trapezoid(*found.roc("margin")[::-1])
    assert float(area) == pytest.approx(found.table.measures["margin"][0].value)


def test_infinite_scores_have_a_place_in_the_order() -> None:
    """As minus the log density of an input that no float holds."""
    inside, outside = labelled(0)[0], labelled(8, num_points=50)[0]
    own = {"density": (noise(0, 200), noise(1, 50) + 1), "same": (noise(0, 200), noise(1, 50) + 1)}
    own["density"][1][:5] = torch.inf
    own["same"][1][:5] = 1e9
    found = evaluate_ood(inside, outside, scores=own)
    for one, other in zip(found.table.measures["density"], found.table.measures["same"], strict=True):
        assert (one.value, one.standard_error) == (other.value, other.standard_error)
    assert torch.equal(torch.stack(found.roc("density")), torch.stack(found.roc("same")))


@pytest.mark.parametrize("positives", [[-1, 1, -1, 1], [0.1, 0.9, 0.2, 1.0], [0, 1, torch.nan, 1], [1, 2, 1, 2]])
def test_only_flags_are_positives(positives: list[float]) -> None:
    """Labels, probabilities and NaN were all taken for positives."""
    scores = {"one": [0.1, 0.2, 0.3, 0.4], "other": [0.4, 0.3, 0.2, 0.1]}
    with pytest.raises(ValueError, match="`positives` must be boolean, or 0 and 1"):
        score_table(scores, positives, what="errors")
    with pytest.raises(ValueError, match="`positives` must be boolean, or 0 and 1"):
        score_differences(scores, positives, "one", what="errors")
    with pytest.raises(ValueError, match="`positives` must be boolean, or 0 and 1"):
        roc_curve(scores["one"], positives)
    with pytest.raises(ValueError, match="`errors` must be boolean, or 0 and 1"):
        overlap_sweep([scores["one"]], [positives])
    with pytest.raises(ValueError, match="`labelled` must be boolean, or 0 and 1"):
        overlap_sweep([scores["one"]], [[0, 1, 0, 1]], labelled=[positives])


def test_what_has_no_weight_may_be_anything_in_every_table_of_scores() -> None:
    known = [True, True, False, True, True]
    scores = {"one": [0.1, 0.2, torch.nan, 0.3, 0.4], "other": [0.1, 0.3, torch.nan, 0.2, 0.4]}
    kept = {name: [value for value, holds in zip(each, known, strict=True) if holds] for name, each in scores.items()}
    flags = [0, 0, 7, 1, 1]
    table = score_table(scores, flags, what="errors", weight=known)
    alone = score_table(kept, [0, 0, 1, 1], what="errors")
    assert str(table) == str(alone)
    differences = score_differences(scores, flags, "one", what="errors", weight=known)
    assert differences.num_points == 4
    assert differences.measures["other"][0].value == pytest.approx(-0.25)
    assert evaluate_detection(scores["one"], flags, name="one", weight=known)[0].value == 1.0
    pixels = overlap_sweep([scores["one"]], [flags], labelled=[known], thresholds=(0.25,))
    assert (pixels.errors.tolist(), pixels.uncertain.tolist()) == ([2], [[2]])
    with pytest.raises(ValueError, match="at least one point"):
        evaluate_detection([], [], name="one")
