"""The method that docs/extend.md writes is a complete one: it keeps the promises of every posterior."""

import re
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.saved import load
from tests.inference.examples import measured
from tests.posterior_contract import PosteriorContract

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
SECTION = PAGE.read_text(encoding="utf-8").partition("## Your own method")[2]
CODE = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)[0]
METHOD: dict[str, Any] = {"__name__": "own_method"}
exec(compile(CODE, str(PAGE), "exec"), METHOD)


class TestSnapshots(PosteriorContract):
    fit = METHOD["fit_snapshots"]
    options: ClassVar = PosteriorContract.options | {"num_cycles": 2}
    num_members = default_num_samples = 2
    load_options: ClassVar = {"posteriors": [METHOD["SnapshotPosterior"]]}

    def test_a_class_that_loading_is_not_told_of_is_named(self, tmp_path: Path) -> None:
        self.fitted("regression").save(tmp_path / "posterior")
        with pytest.raises(ValueError, match=r"posteriors=\[SnapshotPosterior\]"):
            load(tmp_path / "posterior")

    def test_a_cycle_begins_where_the_last_one_ended(self) -> None:
        options = {"num_epochs": 3, "learning_rate": 1e-9}
        snapshots = self.posterior(self.regression(), measured(), **options).snapshots
        torch.testing.assert_close(snapshots[1:], snapshots[:-1], rtol=0, atol=1e-6)


def test_the_method_is_as_long_as_the_page_says() -> None:
    assert len(CODE.splitlines()) <= 70


@pytest.mark.parametrize(
    ("posteriors", "error", "says"),
    [
        ([int], TypeError, "classes that extend Posterior"),
        (METHOD["SnapshotPosterior"], TypeError, "must be a list"),
        ([METHOD["SnapshotPosterior"]] * 2, ValueError, "SnapshotPosterior is taken"),
        ([MapPosterior], ValueError, "MapPosterior is taken"),
    ],
)
def test_classes_of_another_kind_or_name_are_refused(
    tmp_path: Path, posteriors: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        load(tmp_path / "none", posteriors=posteriors)
