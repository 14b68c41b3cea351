import json

import pytest
import torch

from bayesuq.evaluation.detection import aurc, auroc, average_precision, false_positive_rate_at
from bayesuq.evaluation.score_table import (
    misclassification_table,
    out_of_distribution_table,
    score_table,
    uncertainty_scores,
)
from bayesuq.predictive import CategoricalPredictive
from tests.evaluation.examples import labelled, measured, noise, sure

NAMES = ["maximum_probability", "margin", "predictive_entropy", "expected_entropy", "mutual_information"]
NAMES += ["variation_ratio"]


def test_holds_what_the_functions_say_of_every_score() -> None:
    predictive, y = labelled(0)
    wrong = predictive.mean.argmax(dim=1) != y
    table = misclassification_table(predictive, y)
    assert list(table.measures) == NAMES
    for name, scores in uncertainty_scores(predictive).items():
        expected = [measure(scores, wrong) for measure in (auroc, average_precision, false_positive_rate_at, aurc)]
        assert [measure.value for measure in table.measures[name]] == pytest.approx([v.item() for v in expected])
        errors = [measure.standard_error for measure in table.measures[name]]
        assert min(errors[0], errors[1], errors[3]) > 0
        assert errors[2] >= 0  # a rate of 1 stays 1
    assert table.num_points == 200
    assert table.positives == f"{int(wrong.sum())} of 200 values are errors"


def test_out_of_distribution_inputs_are_the_positives() -> None:
    inside, outside = labelled(0, sharpness=3.0)[0], labelled(8, num_points=50, sharpness=0.3)[0]
    table = out_of_distribution_table(inside, outside)
    assert table.positives == "50 of 250 values are out of distribution"
    scores = torch.cat([inside.total, outside.total])
    expected = auroc(scores, torch.arange(250) >= 200)
    assert table.measures["predictive_entropy"][0].value == pytest.approx(expected.item())
    assert expected > 0.8


def test_of_one_draw_what_needs_two_is_left_out() -> None:
    assert list(uncertainty_scores(labelled(0, num_draws=1)[0])) == NAMES[:4]


def test_of_pixels_counts_images() -> None:
    logits, y = noise(0, 2, 12, 4, 5, 6), torch.arange(12 * 30).reshape(12, 5, 6) % 4
    table = misclassification_table(CategoricalPredictive.from_logits(logits), y)
    assert table.num_points == 12
    assert "of 360 values are errors" in table.positives
    assert all(measure.standard_error > 0 for measure in table.measures["margin"])


def test_prints_a_column_for_each_measure_and_a_row_for_each_score() -> None:
    lines = str(misclassification_table(*labelled(0))).splitlines()
    assert lines[0].endswith("values are errors (value ± standard error)")
    assert lines[1].split() == ["auroc", "average_precision", "false_positive_rate", "aurc"]
    assert [line.split()[0] for line in lines[2:]] == NAMES
    assert all(line.count("±") == 4 for line in lines[2:])
    at = lines[1].index("aurc")
    assert all(line[at - 1] == " " and line[at] != " " for line in lines[2:])


def test_becomes_strict_json_where_nothing_is_to_be_found() -> None:
    with pytest.warns(UserWarning, match="undefined"):
        table = misclassification_table(sure([0.9, 0.1], [0.2, 0.8]), [0, 1])
    plain = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert plain["measures"]["margin"][0] == {
        "name": "auroc",
        "value": None,
        "standard_error": None,
        "unit": "fraction",
        "remark": "0 of 2 positive",
    }


def test_refuses_what_has_no_scores() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        score_table({}, [True, False], what="errors")
    with pytest.raises(TypeError, match="GaussianPredictive"):
        misclassification_table(*measured(0))
    with pytest.raises(ValueError, match="same number of draws"):
        out_of_distribution_table(labelled(0)[0], labelled(0, num_draws=2)[0])
