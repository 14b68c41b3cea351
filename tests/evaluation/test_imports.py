import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bayesuq.evaluation

FOLDER = Path(bayesuq.evaluation.__file__).parent
MAY_IMPORT = ("bayesuq.predictive", "bayesuq.arrays", "bayesuq.randomness", "bayesuq.evaluation")


def imported(path: Path) -> set[str]:
    """Every module named in an import statement of the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_a_measure_needs_the_predictive_and_nothing_of_how_it_came_about(path: Path) -> None:
    own = {name for name in imported(path) if name.split(".")[0] == "bayesuq"}
    assert all(name.startswith(MAY_IMPORT) for name in own), own
    drawing = {name for name in imported(path) if name.split(".")[0] == "matplotlib"}
    assert not drawing or path.name == "plots.py"


def test_every_module_is_handed_on() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")} - {"__init__", "kinds"}
    assert set(bayesuq.evaluation.__all__) == names
    assert names <= set(dir(bayesuq.evaluation))
    for name in names:
        assert getattr(bayesuq.evaluation, name).__name__ == f"bayesuq.evaluation.{name}"
    with pytest.raises(AttributeError, match="no attribute 'metrics'"):
        _ = bayesuq.evaluation.metrics


@pytest.mark.slow
def test_importing_the_package_loads_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, bayesuq as bq\n"
        "bq.evaluation\n"
        "assert not {'torch', 'pyro', 'matplotlib'} & set(sys.modules)\n"
        "assert bq.evaluation.report.evaluate.__name__ == 'evaluate'\n"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
