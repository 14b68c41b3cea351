"""`scripts/continual.py` runs, and its table is that of its runs."""

import json

import pytest
import torch

from scripts.continual import METHODS, main, table, tasks


def test_tasks_are_the_same_digits_with_their_pixels_in_another_order():
    first, second, third = tasks(3, seed=0)
    assert torch.equal(first.train.y, second.train.y)
    assert not torch.equal(first.train.x, second.train.x)
    assert not torch.equal(second.train.x, third.train.x)
    assert torch.equal(first.train.x.sort(dim=1).values, third.train.x.sort(dim=1).values)
    again = tasks(3, seed=0)[1]
    assert torch.equal(second.test.x, again.test.x)


def test_the_table_has_means_over_tasks_and_over_seeds():
    runs = [{name: [[0.9], [0.5 + shift, 0.7]] for name in METHODS} for shift in (0.0, 0.2)]
    rows = table(runs).splitlines()
    assert rows[1].split("  ")[0] == "sequential variational"
    assert rows[1].endswith("0.650 ± 0.050")  # of (.5 + .7) / 2 and (.7 + .7) / 2
    assert "0.600 ± 0.100" in rows[5]
    assert "2 seeds" in rows[-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The posterior scales were not learned:UserWarning")
@pytest.mark.filterwarnings("ignore:The ELBO was still rising:UserWarning")
def test_the_script_runs(tmp_path, capsys):
    main(tmp_path / "new" / "folder", num_seeds=2, num_tasks=2, num_epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "new" / "folder" / "continual.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1]
    assert [len(after) for after in lines[0]["joint MAP"]] == [1, 2]
    assert "fine-tuned MAP" in capsys.readouterr().out
