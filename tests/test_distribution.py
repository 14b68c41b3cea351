"""The archives that are released: built without a network, and the wheel in an environment that has nothing else."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import bayesuq as bq

ROOT = Path(__file__).parents[1]
LOOK = """
import importlib.util, sys
import bayesuq
assert importlib.util.find_spec("torch") is None, "the environment is not empty"
assert bayesuq.__file__.startswith(sys.prefix), bayesuq.__file__
print(bayesuq.__version__)
"""


def pip(*arguments: str | Path) -> None:
    """Without a network, and without a word but of what fails."""
    command = [sys.executable, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=120)


def files_of_the_package() -> set[str]:
    """All that a checkout has below `bayesuq`, from the folder that holds it."""
    found = (path for path in (ROOT / "bayesuq").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in found}


@pytest.mark.slow
def test_the_archive_of_the_source_makes_a_wheel_with_all_files_that_an_empty_environment_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend is called as pip calls it (PEP 517), from the folder of what it builds."""
    backend = pytest.importorskip("hatchling.build", reason="the build backend is not there: pip install -e '.[test]'")
    monkeypatch.chdir(ROOT)
    source = tmp_path / backend.build_sdist(str(tmp_path))
    assert source.name == f"bayesuq-{bq.__version__}.tar.gz"
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", *files_of_the_package()} <= held
    monkeypatch.chdir(tmp_path / f"bayesuq-{bq.__version__}")
    wheel = tmp_path / backend.build_wheel(str(tmp_path))
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("bayesuq/")}
    assert packed == files_of_the_package()
    assert {"bayesuq/py.typed", "bayesuq/cli/page.html", "bayesuq/cli/page.css"} <= packed
    empty = tmp_path / "empty"
    venv.create(empty, with_pip=False, symlinks=True)
    python = empty / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel)
    seen = subprocess.run([python, "-I", "-c", LOOK], check=True, capture_output=True, text=True, timeout=120)
    assert seen.stdout.strip() == bq.__version__
    assert (empty / "bin" / "bayesuq").is_file()
