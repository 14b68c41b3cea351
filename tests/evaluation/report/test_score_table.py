import json

import pytest

from bayesuq.evaluation.report.detection_tasks import evaluate_misclassification
from bayesuq.evaluation.report.score_table import score_table
from tests.evaluation.examples import labelled, sure


def test_prints_a_column_for_each_measure_and_a_row_for_each_score() -> None:
    names = ["margin", "predictive_entropy", "mutual_information"]
    lines = str(evaluate_misclassification(*labelled(0), scores=names).table).splitlines()
    assert lines[0].endswith("values are errors (value ± standard error, or [95 % interval])")
    first, second = (block.splitlines() for block in "\n".join(lines[1:]).split("\n\n"))
    assert first[0].split() == ["auroc", "average_", "false_positive_"]
    assert first[1].split() == ["precision", "rate"]  # folded, so that it fits, and what is left stands below
    assert second[0].split() == ["aurc"]
    assert [line.split()[0] for line in (*first[2:], *second[1:])] == 2 * names
    assert [line.count("±") + line.count("[") for line in (*first[2:], *second[1:])] == [3, 3, 3, 1, 1, 1]
    assert max(map(len, lines[1:])) <= 80


def test_becomes_strict_json_where_nothing_is_to_be_found() -> None:
    with pytest.warns(UserWarning, match="undefined"):
        table = evaluate_misclassification(sure([0.9, 0.1], [0.2, 0.8]), [0, 1]).table
    plain = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert plain["measures"]["margin"][0] == {
        "name": "auroc",
        "value": None,
        "standard_error": None,
        "unit": "fraction",
        "remark": "0 of 2 positive",
        "interval": None,
        "off": None,
    }


def test_of_no_score_there_is_no_table() -> None:
    with pytest.raises(ValueError, match="nothing to show"):
        score_table({}, [True, False], what="errors")
