"""What a project that depends on this one reads: versions agree, and everything that a page names is there."""

import re
import tomllib
from pathlib import Path

import yaml

import bayesuq as bq

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = SETTINGS["project"]


def test_the_version_is_the_same_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert bq.__version__ == PROJECT["version"] == cited["version"]
    assert cited["license"] == PROJECT["license"]
    shown = (ROOT / "docs" / "index.md").read_text()
    assert f"version = {{{bq.__version__}}}" in shown
    assert f"title = {{{cited['title']}}}" in shown
    released = re.findall(r"^## (\d[\d.]*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert PROJECT["version"].startswith(released[0])


def test_files_that_the_pages_of_the_project_name_are_there() -> None:
    pages = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
    named = {
        path for page in pages for path in re.findall(r"(?:tests|docs|bayesuq|benchmarks)/[\w./]*\w", page.read_text())
    }
    assert len(named) >= 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_what_is_tested_is_what_is_pinned() -> None:
    """Each dependency has one version that the tests run with."""
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]}
    needed = {re.split(r"[<>=\[ ]", name)[0].lower() for name in PROJECT["dependencies"]}
    assert needed <= pinned


def test_what_builds_the_archives_is_installed_to_test_them_and_pinned() -> None:
    """Else the test of the archives is skipped."""
    builders = set(SETTINGS["build-system"]["requires"])
    assert builders <= set(PROJECT["optional-dependencies"]["test"])
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]}
    assert builders <= pinned
