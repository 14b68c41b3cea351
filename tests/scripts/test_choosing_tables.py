"""Tables of what a model chooses: regrets of seeds that both have, and labels that were not enough."""

from scripts.choosing_tables import of_labels, of_regrets
from scripts.recording import Record


def test_labels_are_told_seed_by_seed_and_those_that_were_not_enough_by_name() -> None:
    one: Record = {"num_labels": [20, 100], "accuracy": [0.5, 0.92], "cpu_seconds": 9.0, "seed": 1}
    one |= {"score": "bald", "labels_for": {"0.9": 100, "0.95": None}}
    other = {**one, "seed": 0, "accuracy": [0.9, 0.96], "labels_for": {"0.9": 20, "0.95": 100}}
    text = of_labels([one, other])
    assert text[0] == "| score | seeds | labels for 90 % | labels for 95 % | accuracy with 100 | CPU seconds |"
    assert text[2] == "| BALD | 2 | 20, 100 | 100, more than 100 | 0.940 ± 0.020 | 9 ± 0 |"
    assert len(text) == 4  # nothing of chance


def test_regrets_are_medians_of_the_seeds_that_both_have() -> None:
    last = {"SingleTaskGP": [3.0, 1.0, 2.0, 0.0], "process": [1.0, 1.5, 1.0], "ensemble": [7.0]}
    lines: list[Record] = [
        {"function": "Branin", "model": model, "seed": seed, "regret": [9.0, value]}
        for model, values in last.items()
        for seed, value in enumerate(values)
    ]
    assert of_regrets(lines)[2] == "| Branin | 2 | **1** | 2 of 3 | 7 (1 seed) |"
