"""Tables of regress, of splits with a gap, of defaults and of targets, from lines."""

from typing import Any

from scripts.automatic_tables import of_automatic, of_bde, of_defaults, of_gaps, of_targets, of_two_commands
from scripts.recording import Record


def line(data: str, split: int, **changes: Any) -> Record:
    judged = {"log_likelihood": -2.0, "rmse": 2.0, "crps": 1.0, "coverage": 0.9, "cpu_seconds": 30.0}
    candidates = [["gp", -2.0, 0.25, 3.0, ""], ["microcanonical", -1.0, 0.75, 9.0, ""]]
    own = {"part": "test", "setting": "default"}
    return {"data": data, "split": split, **own, "candidates": candidates, **judged, **changes}


def test_regress_has_a_row_a_set_with_test_lines_alone() -> None:
    lines = [
        line("boston", 0, log_likelihood=-2.0),
        line("yacht", 0),
        line("boston", 1, log_likelihood=-3.0, candidates=[]),
        line("boston", 0, part="val", log_likelihood=100.0),
        line("boston", 1, setting="before", log_likelihood=-5.0),
        line("boston", 7, setting="before", log_likelihood=-500.0),  # a split that is not beside it
        line("boston", 1, setting="a pilot", log_likelihood=-500.0),
    ]
    rows = of_automatic(lines)
    assert rows[2].startswith("| yacht | `regress` | 1 | -2.000 | 0.59 (bde) |")
    assert rows[4].startswith("| boston | `regress`, before | 1 | -5.000 |")
    assert rows[3] == (
        "| boston | `regress` | 2 | -2.500 ± 0.500 | -2.17 (bde) | 2.00 ± 0.00 | 1.000 ± 0.000 | 0.900 ± 0.000 "
        "| 0.38 | 0.12 | 30 |"
    )
    assert len(rows) == 6


def test_bde_stands_beside_the_same_splits_with_differences_split_by_split() -> None:
    ours = [
        line("boston", 0, log_likelihood=-2.0),
        line("boston", 1, log_likelihood=-3.0),
        line("boston", 1, part="val", log_likelihood=100.0),
        line("boston", 0, setting="before", log_likelihood=100.0),
        line("boston", 2, log_likelihood=100.0),  # which bde does not have
    ]
    theirs = [line("boston", split, log_likelihood=-2.5 - split, rmse=3.0, cpu_seconds=60.0) for split in range(2)]
    rows = of_bde([*theirs, line("yacht", 0)], ours)[2:-1]
    assert rows == [
        "| boston | 2 | -2.500 ± 0.500 | -3.000 ± 0.500 | 0.500 ± 0.000 | 2.00 ± 0.00 | 3.00 ± 0.00 | 30 | 60 |"
    ]


def test_gaps_have_mean_median_and_a_verdict_on_coverage() -> None:
    lines = [
        line("yacht", split, method=method, coverage=covered, **measured)
        for method, covered, measured in (("exact", 0.7, {}), ("automatic", 0.85, {}))
        for split in range(3)
    ]
    for number, one in enumerate(lines[:3]):
        del one["log_likelihood"]
        one["nlpd"] = float([1, 2, 9][number])
    exact, automatic = of_gaps(lines)[2:4]
    assert exact == "| yacht | `exact` | 3 | -4.00 ± 2.52 | -2.00 | -2.11 | 0.70 ± 0.00 | 0.70 | **no** |"
    assert automatic.endswith("| 0.85 ± 0.00 | 0.85 | yes |")


def test_defaults_stand_beside_the_lines_of_the_same_splits() -> None:
    before = {("boston", "variational"): [line("boston", 0, rmse=4.0), line("boston", 5, rmse=400.0)]}
    (row,) = of_defaults([line("boston", 0, method="variational")], before)[2:3]
    assert row == "| boston | `variational` | 1 | 2.00 | -2.00 | 0.90 | 30 | 4.00 | -2.00 |"


def test_what_two_commands_hold_is_of_the_rows_of_all_splits() -> None:
    lines = [
        line(
            "yacht",
            split,
            held_out=rows,
            inside=inside,
            width=2.0,
            as_fitted={"inside": 0, **line("yacht", 0), "width": 1},
        )
        for split, rows, inside in ((0, 300, 282), (1, 100, 90))
    ]
    # .93 of 400, whose standard error is .015.
    (found,) = of_two_commands(lines)[2:3]
    assert (
        found == "| yacht | 2 | 400 | 0.930 | +2.0 | 2.00 ± 0.00 | -2.00 ± 0.00 | 0.000 | 1.00 ± 0.00 | -2.00 ± 0.00 |"
    )


def test_targets_stand_beside_each_other() -> None:
    lines = [
        line("yacht", 1, energy_variance=target, prediction_r_hat=r_hat, log_likelihood=density)
        for target, r_hat, density in ((0.05, 2.0, -1.5), (5e-4, 3.0, -0.5))
    ]
    head, _, row, _ = of_targets(lines)
    assert "at 0.0005 | R-hat at 0.0005" in head
    assert row == "| yacht | 1 | -0.50, 2.00 | 3.0 | 30 | -1.50, 2.00 | 2.0 | 30 |"
