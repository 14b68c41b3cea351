"""`scripts/hierarchical.py` runs."""

import pytest

from scripts.hierarchical import main


@pytest.mark.slow
def test_the_script_prints_a_report_and_the_levels(capsys):
    main(num_epochs=30, seed=0)
    printed = capsys.readouterr().out
    assert "interval_coverage" in printed
    assert "pareto_k" in printed
    assert len(printed.splitlines()) > 24
