from pathlib import Path

import pytest

import bayesuq.evaluation

FOLDER = Path(bayesuq.evaluation.__file__).parent


def test_every_module_is_handed_on() -> None:
    names = {path.stem for path in FOLDER.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()} - {
        "__init__",
        "binning",
        "error_ranks",
        "gaps",
        "kinds",
        "observed",
        "ranks",
        "tally",
    }
    assert set(bayesuq.evaluation.__all__) == names
    assert names <= set(dir(bayesuq.evaluation))
    for name in names:
        assert getattr(bayesuq.evaluation, name).__name__ == f"bayesuq.evaluation.{name}"
    with pytest.raises(AttributeError, match="no attribute 'metrics'"):
        _ = bayesuq.evaluation.metrics
