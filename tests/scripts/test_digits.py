"""`scripts/digits.py` runs, and its table is that of its runs."""

import json

import pytest

from scripts.digits import main, table


def test_differences_are_paired():
    runs = [
        {"MAP entropy": 0.90, "MAP accuracy": 0.98, "ensemble mutual information": 0.95},
        {"MAP entropy": 0.80, "MAP accuracy": 0.98, "ensemble mutual information": 0.85},
    ]
    text = table(runs)
    assert "+0.0500 ± 0.0000" in text  # the seeds differ by .1 in both, which cancels
    assert "0.9000 ± 0.0500" in text
    assert "accuracy: MAP 0.9800 ± 0.0000" in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The posterior scales were not learned:UserWarning")
@pytest.mark.filterwarnings("ignore:The ELBO was still rising:UserWarning")
def test_the_script_runs(tmp_path, capsys):
    main(tmp_path / "new" / "folder", num_seeds=2, num_epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "new" / "folder" / "digits.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1]
    assert all(0 <= value <= 1 for line in lines for name, value in line.items() if name not in ("seed", "num_epochs"))
    assert "ensemble mutual information" in capsys.readouterr().out
