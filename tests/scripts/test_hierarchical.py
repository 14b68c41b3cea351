"""`scripts/hierarchical.py` runs."""

import pytest

from scripts import hierarchical


@pytest.mark.slow
def test_the_script_prints_a_report_and_the_levels(capsys, monkeypatch):
    monkeypatch.setattr(hierarchical, "NUM_DRAWS", 26)
    hierarchical.main(num_epochs=2, seed=0)
    printed = capsys.readouterr().out
    assert "interval_coverage" in printed
    assert "pareto_k" in printed
    assert len(printed.splitlines()) > 24
